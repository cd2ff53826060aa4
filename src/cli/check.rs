//! `redbouncer check`: the doctor's findings, for people and for scripts.

use std::net::IpAddr;

use clap::ValueEnum;
use hyper::StatusCode;

use super::admin_port::{self, AdminPortError};
use super::output::counted;
use super::terminal;
use crate::admin::AdminOptions;
use crate::config::{Config, ConfigError, fewer_cpus_than};
use crate::downstream::{AuthMode, ServerTls};
use crate::hygiene::check::{Finding, Findings, Level, Plan, examine, examine_own_certificate};
use crate::pool::{Budget, Hubs, Kind};
use crate::telemetry::printable;
use serde_json::{Value, json};

/// Where the text begins: behind level and subject.
const INDENT: usize = 23;

/// Which page of a running proxy is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OwnPage {
    /// It accepts clients.
    Ready,
    /// It responds.
    Live,
}

/// Why a running proxy does not count as healthy.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unhealthy {
    /// The page returned another status.
    #[error("{url} answered {status}: {text}")]
    No {
        /// The requested URL.
        url: String,
        /// The status.
        status: StatusCode,
        /// The text of the response.
        text: String,
    },
    /// It could not be asked.
    #[error(transparent)]
    Unasked(#[from] AdminPortError),
}

/// Asks the proxy that runs with these options about itself.
pub(super) fn running(options: &AdminOptions, page: OwnPage) -> Result<String, Unhealthy> {
    let path = match page {
        OwnPage::Ready => "/ready",
        OwnPage::Live => "/live",
    };
    let admin_port::Page { url, status, body } = admin_port::get(options, path)?;
    let text = printable(body.trim_ascii());
    if status == StatusCode::OK { Ok(format!("{text}\n")) } else { Err(Unhealthy::No { url, status, text }) }
}

/// Runs the checks for a configuration.
pub(super) async fn run(config: &Config) -> Findings {
    let mut findings = Findings::default();
    configuration(config, &mut findings);
    let plan = Plan {
        upstream: &config.upstream,
        hygiene: &config.hygiene,
        name: &config.naming.name,
        heartbeat: config.naming.heartbeat,
        cap: config.pool.max_connections,
        fleet: &config.fleet,
        clients_log_in: clients_log_in(config),
    };
    findings.extend(examine(plan).await);
    findings
}

/// The planned proxy, and the use of its connections.
fn configuration(config: &Config, findings: &mut Findings) {
    let tls = config.listen.tls.addresses.iter().map(|address| format!("{address} (TLS)"));
    let listen: Vec<String> = config.listen.addresses.iter().cloned().chain(tls).collect();
    let text = format!("clients at {}, server {}", listen.join(", "), config.upstream_shown());
    findings.ok("configuration", &text);
    match ServerTls::new(&config.listen.tls).and_then(|tls| tls.map(|tls| tls.certificates()).transpose()) {
        Ok(None) => {}
        Ok(Some(file)) => examine_own_certificate(&file, findings),
        Err(wrong) => {
            findings.failure("listen.tls", &wrong.to_string(), "mend the file that listen.tls names");
        }
    }
    let (cap, workers) = (config.pool.max_connections, config.workers);
    let budget = Budget::new(cap, workers, Hubs { blocking: config.blocking.hub, pubsub: config.pubsub.hub });
    let hubs = budget.floor(Kind::Blocking) + budget.floor(Kind::PubSub);
    let (control, lanes, open) =
        (budget.floor(Kind::Control), budget.floor(Kind::Lane), budget.open_permits());
    let text = format!(
        "pool.max_connections {cap} = {control} control + {} + {} + {open} open to all else{}",
        counted(lanes, "lane"),
        counted(hubs, "hub"),
        if workers == 1 { String::new() } else { format!(", for {workers} workers") }
    );
    let formula = "needed: 1, a lane for each user, database and RESP version (2 at the least), 2 hubs for each user that \
                   blocks or subscribes, one for each MONITOR and open WATCH or MULTI";
    if workers > 1 && lanes + open < 2 * workers {
        findings.note(
            "workers",
            &format!(
                "{workers} workers can have {} in all: one each for one user, database and RESP version; with more in use, each is \
                 served by some workers only",
                counted(lanes + open, "lane")
            ),
            &format!(
                "for k combinations of these on every worker, set pool.max_connections to at least 1 + (2 + k) x {workers}, or lower \
                 listen.workers"
            ),
        );
    }
    if let Some(cpus) = fewer_cpus_than(workers) {
        findings.warning(
            "workers",
            &format!(
                "{workers} workers on {}: they serve no more requests and use more CPU time",
                counted(cpus, "CPU")
            ),
            "lower listen.workers",
        );
    }
    if open == 0 {
        findings.warning(
            "budget",
            &text,
            &format!("nothing is open to WATCH, MULTI and further users. {formula}"),
        );
    } else {
        findings.note("budget", &text, formula);
    }
}

/// Whether every client must log in, according to `auth.mode` and the listeners.
fn clients_log_in(config: &Config) -> bool {
    let is_near = |address: &String| {
        if address.starts_with("unix:") {
            return true;
        }
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
    };
    match config.auth.mode {
        AuthMode::Passthrough => true,
        // Those without a user of their own there are the one of the URL.
        AuthMode::Static => config.auth.users.iter().all(|user| user.upstream.is_some()),
        AuthMode::Open => false,
        AuthMode::Unset => !config.listen.addresses.iter().chain(&config.listen.tls.addresses).any(is_near),
    }
}

/// A configuration that cannot be used is a finding, too.
pub(super) fn unusable(errors: &[ConfigError]) -> Findings {
    let mut findings = Findings::default();
    for wrong in errors {
        findings.failure("configuration", &wrong.to_string(), "");
    }
    findings
}

/// The findings, a line each, and the verdict.
pub(super) fn listing(findings: &Findings, width: usize) -> String {
    let out: String = findings.iter().map(|finding| lines(finding, width)).collect();
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (warnings, failures) = (count(Level::Warning), count(Level::Failure));
    let verdict = match findings.worst() {
        Level::Failure => "redbouncer could not serve",
        Level::Warning | Level::Ok => "redbouncer can serve",
    };
    let (failures, warnings) = (counted(failures, "failure"), counted(warnings, "warning"));
    let verdict = format!("{verdict}: {failures}, {warnings}");
    format!("{out}\n{}\n", textwrap::fill(&verdict, terminal::lines(width)))
}

fn lines(finding: &Finding, width: usize) -> String {
    let indent = " ".repeat(INDENT);
    let head = format!("{:<7}  {:<13} ", finding.level.word(), finding.subject);
    let wrapped = |text: &str, first: &str, rest: &str| {
        textwrap::fill(text, terminal::lines(width).initial_indent(first).subsequent_indent(rest))
    };
    let mut out = wrapped(&finding.text, &head, &indent);
    out.push('\n');
    if !finding.advice.is_empty() {
        out.push_str(&wrapped(&finding.advice, &format!("{indent}→ "), &format!("{indent}  ")));
        out.push('\n');
    }
    out
}

/// The same for scripts.
pub(super) fn as_json(findings: &Findings) -> Value {
    let rows: Vec<Value> = findings
        .iter()
        .map(|finding| {
            json!({
                "level": finding.level.word(),
                "subject": finding.subject,
                "text": finding.text,
                "advice": finding.advice,
            })
        })
        .collect();
    json!({ "can_serve": findings.worst() != Level::Failure, "findings": rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_fit_the_width() {
        let mut findings = Findings::default();
        findings.ok("tcp-keepalive", "60 s");
        findings.warning("configuration", &"word ".repeat(60), &"more words ".repeat(40));
        findings.failure("TLS", &"x".repeat(200), "");
        for width in [40, 80, 100] {
            let shown = listing(&findings, width);
            assert!(shown.lines().all(|line| textwrap::core::display_width(line) <= width), "{shown}");
            assert!(shown.starts_with("ok       tcp-keepalive 60 s\n"), "{shown}");
            let verdict = shown.split("\n\n").last().map(|verdict| verdict.replace('\n', " "));
            assert_eq!(verdict.as_deref(), Some("redbouncer could not serve: 1 failure, 1 warning "));
        }
    }

    #[test]
    fn clients_log_in_where_the_listener_or_the_mode_asks_for_it() {
        let config = |addresses: &[&str], mode| {
            let mut config = Config::default();
            config.listen.addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
            config.auth.mode = mode;
            config
        };
        for near in ["127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/run/redis.sock"] {
            assert!(!clients_log_in(&config(&["0.0.0.0:1", near], AuthMode::Unset)), "{near}");
            assert!(clients_log_in(&config(&[near], AuthMode::Passthrough)));
        }
        for far in ["0.0.0.0:1", "[::]:1", "redis.internal:1"] {
            assert!(clients_log_in(&config(&[far], AuthMode::Unset)), "{far}");
            assert!(!clients_log_in(&config(&[far], AuthMode::Open)));
        }
    }
}
