//! `host:port` or `unix:/path`, where a listener binds.

use super::value::{Wrong, is_harmless};
use crate::downstream::UNIX;
use crate::upstream::{HostPort, Reachable};

/// The kernel's bound on the path of a Unix socket (`sun_path`), its closing zero left out.
const LONGEST_PATH: usize = 107;

/// Checks one address and returns it trimmed. Names are resolved when they are bound, not here.
pub(super) fn parse(text: &str) -> Result<String, Wrong> {
    let text = text.trim();
    let wrong = |what: &str| {
        let found = if is_harmless(&text.replace([':', '[', ']'], "")) {
            format!(", found \"{text}\"")
        } else {
            String::new()
        };
        Err(format!(
            "{what}: expected host:port, such as \"127.0.0.1:6380\", \"[::1]:6380\" or \"0.0.0.0:6380\"{found}"
        ))
    };
    let Some((host, port)) = text.rsplit_once(':') else { return wrong("no port") };
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err() {
        return wrong("the port is not a number up to 65535");
    }
    if host.is_empty() {
        return wrong("no host");
    }
    let is_ipv6 = |host: &str| {
        let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        inner.is_some_and(|h| h.split('%').next().unwrap_or(h).parse::<std::net::Ipv6Addr>().is_ok())
    };
    if is_name(host) || is_ipv6(host) { Ok(text.to_owned()) } else { wrong("not a host name or address") }
}

/// Whether `host` is written like the name of a host.
pub(super) fn is_name(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

/// Checks one address that may also be `unix:/path`.
fn parse_with_unix(text: &str) -> Result<String, Wrong> {
    let text = text.trim();
    let Some(path) = text.strip_prefix(UNIX) else { return parse(text) };
    // CLIENT LIST shows the path, and its rows are taken apart at spaces.
    if !path.starts_with('/') || path.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(
            "expected unix: and an absolute path without spaces, such as \"unix:/run/redis.sock\"".to_owned()
        );
    }
    if path.len() > LONGEST_PATH {
        return Err(format!(
            "the path of a Unix socket has at most {LONGEST_PATH} bytes, this one has {}",
            path.len()
        ));
    }
    Ok(text.to_owned())
}

/// Checks a list of addresses, none twice; with those of Unix sockets if `unix`.
pub(super) fn parse_all(texts: &[String], unix: bool) -> Result<Vec<String>, Wrong> {
    let mut addresses: Vec<String> = Vec::new();
    for text in texts {
        let address = if unix { parse_with_unix(text)? } else { parse(text)? };
        if addresses.contains(&address) && !address.ends_with(":0") {
            return Err(format!("{address} is listed twice"));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

/// One row of `upstream.addresses`, `announced=reachable`.
pub(super) fn reachable(text: &str) -> Option<Reachable> {
    let (announced, at) = text.split_once('=')?;
    let parse = |text: &str| HostPort::parse(text.trim(), None);
    Some(Reachable { announced: parse(announced)?, at: parse(at)? })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_addresses_with_a_port_are_taken() {
        for good in [
            "127.0.0.1:6380",
            "0.0.0.0:0",
            "[::1]:6380",
            "[::]:1",
            "[fe80::1%eth0]:1",
            "localhost:65535",
            "my-host_1.local:1",
        ] {
            assert_eq!(parse(good).unwrap(), good);
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for bad in [
            "",
            "6380",
            ":6380",
            "localhost",
            "localhost:",
            "h:65536",
            "h:-1",
            "h:+1",
            "::1:6380",
            "[::1]",
            "redis://h:1",
            "a b:1",
            "[h]:1",
            "h:6380/0",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert!(!parse("redis://:hunter2@h").unwrap_err().contains("hunter2"));
    }

    #[test]
    fn an_announced_address_has_one_that_is_reachable() {
        let row = reachable("10.0.0.5:6379 = redis.example.com:7000").unwrap();
        assert_eq!(
            (row.announced.to_string(), row.at.to_string()),
            ("10.0.0.5:6379".to_owned(), "redis.example.com:7000".to_owned())
        );
        for bad in ["", "a:1", "a:1=", "a:1=b", "a=b:1", "=b:1", "redis://a:1=b:1"] {
            assert_eq!(reachable(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_list_names_each_address_once() {
        let list =
            |texts: &[&str]| parse_all(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>(), true);
        assert!(list(&["a:1", "a:1"]).unwrap_err().contains("twice"));
        assert_eq!(list(&["a:0", "a:0"]).unwrap().len(), 2);
        assert_eq!(list(&["a:1", "unix:/run/a.sock"]).unwrap().len(), 2);
        assert!(list(&["unix:/a", "unix:/a"]).unwrap_err().contains("twice"));
    }

    #[test]
    fn a_unix_socket_has_an_absolute_path_that_the_kernel_takes() {
        assert!(parse_with_unix("unix:/run/redbouncer/redis.sock").is_ok());
        let long = format!("unix:/{}", "x".repeat(LONGEST_PATH));
        for bad in ["unix:", "unix:redis.sock", "unix:/a b", "unix:/a\nb", &long] {
            assert!(parse_with_unix(bad).is_err(), "{bad:?}");
        }
        assert!(parse("unix:/run/a.sock").is_err(), "not for TLS, not for the admin port");
    }
}
