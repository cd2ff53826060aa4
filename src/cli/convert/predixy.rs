//! predixy's configuration files: the directives of its `conf/` and `doc/`.

use std::path::Path;

use super::conversion::{Conversion, host_and_port, milliseconds, url};
use super::error::ConvertError;
use super::predixy_text::{Directive, read};

/// The default address of predixy.
const BIND: &str = "0.0.0.0:7617";

/// Reads the file, and those that it includes.
///
/// # Errors
/// One of them cannot be read, or is no configuration of predixy.
pub(super) fn convert(path: &Path, text: &str) -> Result<Conversion, ConvertError> {
    let directives = read(path, text)?;
    let mut out = Conversion::default();
    if !directives.iter().any(|directive| directive.is("Bind")) {
        out.set("listen", "addresses", vec![BIND.to_owned()], "Bind, predixy's default");
    }
    let pools =
        directives.iter().filter(|directive| directive.name.to_ascii_lowercase().ends_with("serverpool"));
    if pools.count() != 1 {
        out.refuse("There must be one StandaloneServerPool: redbouncer has one server.");
    }
    for directive in &directives {
        general(&mut out, directive);
    }
    Ok(out)
}

fn general(out: &mut Conversion, directive: &Directive) {
    let value = directive.value();
    match directive.name.to_ascii_lowercase().as_str() {
        "name" => out.remark(
            "Name: hygiene.name is the host's name by default, and is shown in CLIENT LIST of the server.",
        ),
        "bind" if value.starts_with('/') => {
            out.set("listen", "addresses", vec![format!("unix:{value}")], "Bind");
        }
        "bind" => out.set("listen", "addresses", vec![value.to_owned()], "Bind"),
        "workerthreads" => match value.parse::<i64>() {
            Ok(1) | Err(_) => {
                out.remark("WorkerThreads: listen.workers is 1 by default, which keeps up with one Redis.");
            }
            Ok(workers) => {
                out.set("listen", "workers", workers, "WorkerThreads");
                out.set("pool", "max_connections", (2 + 3 * workers).max(8), "the least for so many workers");
            }
        },
        "maxmemory" if value == "0" => {}
        "maxmemory" => match size(value) {
            Some(size) => out.set("client", "memory_max", size, "MaxMemory"),
            None => out.refuse(format!("MaxMemory: {value} is no size.")),
        },
        "clienttimeout" if value == "0" => {}
        "clienttimeout" => out.set("client", "idle_timeout", format!("{value}s"), "ClientTimeout"),
        "bufsize" => out.remark("BufSize: buffers have the size of what they hold."),
        "log" | "logrotate" | "allowmisslog" => {
            out.remark(format!(
                "{}: the log goes to stderr; a service manager keeps and rotates it.",
                directive.name
            ));
        }
        name if name.starts_with("log") && name.ends_with("sample") => {
            out.remark(format!("{}: see log.level.", directive.name));
        }
        "latencymonitor" => {
            out.remark(
                "LatencyMonitor: see redbouncer_command_seconds and the other metrics at admin.address.",
            );
        }
        "authority" => authority(out, directive),
        "standaloneserverpool" => standalone(out, directive),
        "clusterserverpool" => {
            out.refuse("ClusterServerPool: redbouncer has one server, and does not follow a cluster.");
        }
        "sentinelserverpool" => {
            out.refuse("SentinelServerPool: redbouncer does not ask Sentinels. Name the master.");
        }
        "localdc" | "datacenter" => {
            out.refuse(format!(
                "{}: redbouncer has one server, and no rules for reading near.",
                directive.name
            ));
        }
        "customcommand" => {
            out.refuse("CustomCommand: redbouncer's table has the commands of Redis and its modules.");
        }
        _ => out.refuse(format!("{} (line {}): unknown.", directive.name, directive.line)),
    }
}

/// Everything is allowed to all: nothing to do. Passwords and prefixes are the server's business.
fn authority(out: &mut Conversion, authority: &Directive) {
    for entry in authority.children.iter().filter(|child| child.is("Auth")) {
        let mode = entry.child("Mode").map_or("", Directive::value);
        let prefixes =
            entry.children.iter().any(|child| child.name.to_ascii_lowercase().ends_with("keyprefix"));
        let whose =
            if entry.value().is_empty() { "without a password" } else { "with a password of its own" };
        if !entry.value().is_empty() || prefixes || mode.eq_ignore_ascii_case("read") {
            out.refuse(format!(
                "Authority: an Auth {whose} (line {}), Mode {mode}: make a user on the server (ACL SETUSER), which redbouncer passes \
                 clients on to, or one in auth.users_file.",
                entry.line
            ));
        } else {
            out.remark(format!(
                "Authority: an Auth {whose}, Mode {mode}: on loopback clients need none (auth.mode)."
            ));
        }
    }
}

fn standalone(out: &mut Conversion, pool: &Directive) {
    servers(out, pool);
    for directive in &pool.children {
        let value = directive.value();
        match directive.name.to_ascii_lowercase().as_str() {
            "group" | "sentinels" | "refreshmethod" => {}
            "password" => {
                out.set("upstream", "password", value, "Password");
                out.remark(
                    "Password: predixy's clients need not know it. redbouncer's do, unless they come over loopback or a Unix \
                     socket, or auth.mode is static or open.",
                );
            }
            "databases" => out.remark("Databases: clients may SELECT whatever the server has."),
            "hash" | "hashtag" | "distribution" => {
                out.remark(format!("{}: there is one server, so nothing is distributed.", directive.name));
            }
            "masterreadpriority" | "staticslavereadpriority" | "dynamicslavereadpriority" => {
                out.remark(format!(
                    "{}: redbouncer reads from the server that it writes to.",
                    directive.name
                ));
            }
            "refreshinterval" => out.remark(
                "RefreshInterval: the name of the server is resolved again (upstream.resolve_interval).",
            ),
            "servertimeout" => match duration(value) {
                Some(0) => {}
                Some(time) => out.set("upstream", "command_timeout", milliseconds(time), "ServerTimeout"),
                None => out.refuse(format!("ServerTimeout: {value} is no duration.")),
            },
            "serverfailurelimit" => {
                out.remark("ServerFailureLimit: there is one server, so none is left out.");
            }
            "serverretrytimeout" => match duration(value) {
                Some(time) if time > 0 => {
                    out.set("upstream", "backoff_max", milliseconds(time), "ServerRetryTimeout");
                }
                Some(_) | None => out.refuse(format!("ServerRetryTimeout: {value} is no duration.")),
            },
            "keepalive" => out.remark("KeepAlive: always on (upstream.keepalive_idle, 15s)."),
            _ => out.refuse(format!("{} (line {}): unknown.", directive.name, directive.line)),
        }
    }
}

/// The one group's first address, which is its master.
fn servers(out: &mut Conversion, pool: &Directive) {
    let by_sentinel =
        pool.child("RefreshMethod").is_some_and(|method| method.value().eq_ignore_ascii_case("sentinel"));
    let groups: Vec<&Directive> = pool.children.iter().filter(|child| child.is("Group")).collect();
    let wrong = match &groups[..] {
        _ if by_sentinel => {
            "RefreshMethod sentinel: redbouncer does not ask Sentinels. Name the master, by a name that moves with it.".to_owned()
        }
        [group] => {
            let addresses: Vec<&str> =
                group.children.iter().filter(|child| child.is("+")).map(Directive::value).collect();
            if addresses.len() > 1 {
                out.remark("Group: replicas are not used; redbouncer connects to the first address, the master.");
            }
            match addresses.first().copied().and_then(host_and_port) {
                Some((host, port)) => return out.set("upstream", "url", url(host, port, 0), "Group"),
                None => "Group: there is no host:port.".to_owned(),
            }
        }
        [] => "Group: there is none.".to_owned(),
        several => format!(
            "Group: keys are distributed over {} groups, and redbouncer has one server. Choose one for all data, or run one \
             redbouncer for each of them and distribute in the client.",
            several.len()
        ),
    };
    // Empty, so that redbouncer refuses to start with it.
    out.set("upstream", "url", "", "Group: to be decided");
    out.refuse(wrong);
}

/// `100M`, `1G`: as a size of ours.
fn size(text: &str) -> Option<String> {
    let digits = text.trim_end_matches(|sign: char| sign.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => Some(number.to_string()),
        "K" | "KB" => Some(format!("{number}KiB")),
        "M" | "MB" => Some(format!("{number}MiB")),
        "G" | "GB" => Some(format!("{number}GiB")),
        _ => None,
    }
}

/// `1`, `1s`, `200ms`, `500us`: in milliseconds, rounded up.
fn duration(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|sign: char| sign.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    match &text[digits.len()..] {
        "" | "s" => number.checked_mul(1000),
        "ms" => Some(number),
        "us" => Some(number.div_ceil(1000)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_of_predixy_are_read() {
        assert_eq!(size("100M").as_deref(), Some("100MiB"));
        assert_eq!(size("1g").as_deref(), Some("1GiB"));
        assert_eq!(size("4096").as_deref(), Some("4096"));
        assert_eq!(size("a lot"), None);
        let durations = ["1", "30s", "200ms", "500us", "2h"].map(duration);
        assert_eq!(durations, [Some(1000), Some(30_000), Some(200), Some(1), None]);
    }
}
