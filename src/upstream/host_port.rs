//! A host and a port, as written in a configuration and as servers announce each other.

use std::fmt;

/// A host name or address, without brackets for IPv6, and a TCP port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The host.
    pub host: String,
    /// The port; never 0.
    pub port: u16,
}

impl HostPort {
    /// Reads `host:port`, `host` where there is a default, and both with an IPv6 address in brackets. `None`: it is
    /// something else.
    #[must_use]
    pub fn parse(text: &str, default: Option<u16>) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, behind) = rest.split_once(']')?;
                host.parse::<std::net::Ipv6Addr>().ok()?;
                (host, if behind.is_empty() { None } else { Some(behind.strip_prefix(':')?) })
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
        if host.is_empty() || !host.bytes().all(is_host) {
            return None;
        }
        let port = match port {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
            Some(_) => return None,
            None => default?,
        };
        (port != 0).then(|| Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_shown_alike() {
        for text in ["10.0.0.1:6379", "[::1]:26379", "a-b.example:1", "my_host:65535"] {
            assert_eq!(HostPort::parse(text, None).unwrap().to_string(), text);
        }
        assert_eq!(HostPort::parse("s1", Some(26379)).unwrap().to_string(), "s1:26379");
        assert_eq!(HostPort::parse("[::1]", Some(26379)).unwrap().to_string(), "[::1]:26379");
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "", ":1", "h:", "h:0", "h:65536", "h:+1", "::1:1", "[::1", "[h]:1", "a b:1", "h:1:2", "%:1",
            "é:1",
        ] {
            assert_eq!(HostPort::parse(text, Some(1)), None, "{text:?}");
        }
        assert_eq!(HostPort::parse("h", None), None);
    }
}
