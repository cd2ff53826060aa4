//! Whether the server of `upstream.url` would be redbouncer itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use super::Config;

/// The listener of `config` that a connection to its server would reach, where that has these addresses.
#[must_use]
pub fn own_listener<'a>(config: &'a Config, server: &[IpAddr]) -> Option<&'a String> {
    let mut listeners = config.listen.addresses.iter().chain(&config.listen.tls.addresses);
    listeners.find(|listener| {
        let Some((host, port)) = listener.rsplit_once(':') else { return false };
        port.parse() == Ok(config.upstream.port)
            && literal_addresses(host).iter().any(|own| server.iter().any(|server| reaches(*server, *own)))
    })
}

/// The addresses of a host, as far as no resolver is needed.
pub(super) fn literal_addresses(host: &str) -> Vec<IpAddr> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.eq_ignore_ascii_case("localhost") {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    host.parse().into_iter().collect()
}

/// Whether a connection to `server` arrives at a listener that is bound to `own`. A listener of IPv6 takes no IPv4.
fn reaches(server: IpAddr, own: IpAddr) -> bool {
    // Connecting to the unspecified address reaches this host (Linux, `man 7 ip`).
    let server = match server {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        other => other,
    };
    server == own || own.is_unspecified() && own.is_ipv4() == server.is_ipv4() && is_of_this_host(server)
}

/// Only an address of this host can be bound to.
fn is_of_this_host(address: IpAddr) -> bool {
    address.is_loopback() || UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn found(listen: &[&str], host: &str, port: u16) -> bool {
        let mut config = Config::default();
        config.listen.addresses = listen.iter().map(|address| (*address).to_owned()).collect();
        config.upstream.host = host.to_owned();
        config.upstream.port = port;
        own_listener(&config, &literal_addresses(host)).is_some()
    }

    #[test]
    fn a_server_at_a_listener_of_ours_is_found() {
        for (listen, host) in [
            ("127.0.0.1:6379", "127.0.0.1"),
            ("127.0.0.1:6379", "localhost"),
            ("127.0.0.1:6379", "0.0.0.0"),
            ("localhost:6379", "127.0.0.1"),
            ("0.0.0.0:6379", "127.0.0.1"),
            ("0.0.0.0:6379", "localhost"),
            ("0.0.0.0:6379", "127.1.2.3"),
            ("[::1]:6379", "::1"),
            ("[::]:6379", "::1"),
            ("[::]:6379", "localhost"),
        ] {
            assert!(found(&[listen], host, 6379), "{listen} {host}");
        }
        assert!(found(&["127.0.0.1:1", "127.0.0.1:6379"], "127.0.0.1", 6379));
    }

    #[test]
    fn another_port_or_address_is_another_server() {
        for (listen, host) in [
            ("127.0.0.1:6380", "127.0.0.1"),
            ("127.0.0.1:0", "127.0.0.1"),
            ("127.0.0.2:6379", "127.0.0.1"),
            ("[::]:6379", "127.0.0.1"),
            // Of the documentation's networks: no address of this host (RFC 5737).
            ("0.0.0.0:6379", "192.0.2.1"),
            ("0.0.0.0:6379", "redis.example.com"),
            ("unix:/run/redis.sock", "127.0.0.1"),
        ] {
            assert!(!found(&[listen], host, 6379), "{listen} {host}");
        }
    }
}
