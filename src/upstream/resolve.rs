//! The server's addresses: looked up at every dial, because a failover in a cloud is a change in DNS.
//!
//! One working address serves all connections, so the address in use is tried first as long as the name still has
//! it; a name with several addresses in turning order would otherwise spread one server's clients over several.

use std::io;
use std::net::{IpAddr, SocketAddr};

use parking_lot::Mutex;

/// A host and port, and the address in use.
#[derive(Debug)]
pub(super) struct Resolver {
    host: String,
    port: u16,
    choice: Mutex<Choice>,
}

/// Knowledge about the addresses from earlier dials.
#[derive(Debug, Default)]
struct Choice {
    /// Serves the connections there are; tried first.
    in_use: Option<SocketAddr>,
    /// Accepted TCP but no login; tried last.
    failed: Option<SocketAddr>,
}

impl Resolver {
    pub(super) fn new(host: &str, port: u16) -> Self {
        Self { host: host.to_owned(), port, choice: Mutex::default() }
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The addresses of the name now, in the order in which to try them; never empty.
    pub(super) async fn lookup(&self) -> io::Result<Vec<SocketAddr>> {
        let mut found: Vec<SocketAddr> = match self.host.parse::<IpAddr>() {
            // An address needs no resolver, and no thread for one.
            Ok(address) => vec![SocketAddr::new(address, self.port)],
            Err(_) => tokio::net::lookup_host((self.host.as_str(), self.port)).await?.collect(),
        };
        let mut seen = Vec::with_capacity(found.len());
        found.retain(|address| !seen.contains(address) && (seen.push(*address), true).1);
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        self.choice.lock().order(&mut found);
        Ok(found)
    }

    /// Resolves the name and returns whether the address in use has disappeared from it; reported once for each
    /// address.
    pub(super) async fn in_use_is_gone(&self) -> io::Result<bool> {
        let found = self.lookup().await?;
        let mut choice = self.choice.lock();
        let gone = choice.in_use.is_some_and(|address| !found.contains(&address));
        if gone {
            choice.in_use = None;
        }
        Ok(gone)
    }

    /// The address that new connections go to, if one has worked.
    pub(super) fn in_use(&self) -> Option<SocketAddr> {
        self.choice.lock().in_use
    }

    /// A login at `address` succeeded.
    pub(super) fn works(&self, address: SocketAddr) {
        *self.choice.lock() = Choice { in_use: Some(address), failed: None };
    }

    /// `address` accepted TCP and nothing more.
    pub(super) fn fails(&self, address: SocketAddr) {
        let mut choice = self.choice.lock();
        choice.failed = Some(address);
        if choice.in_use == Some(address) {
            choice.in_use = None;
        }
    }
}

impl Choice {
    fn order(&self, addresses: &mut [SocketAddr]) {
        // Stable: the resolver's order (RFC 6724) stands among the others.
        addresses.sort_by_key(|address| {
            if Some(*address) == self.in_use {
                0
            } else if Some(*address) == self.failed {
                2
            } else {
                1
            }
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 6379))
    }

    #[test]
    fn the_address_in_use_is_tried_first_and_a_failed_one_last() {
        let mut addresses: Vec<_> = (1..=4).map(address).collect();
        Choice { in_use: Some(address(3)), failed: Some(address(1)) }.order(&mut addresses);
        assert_eq!(addresses, [address(3), address(2), address(4), address(1)]);
    }

    #[tokio::test]
    async fn a_name_has_each_address_once() {
        let found = Resolver::new("localhost", 6379).lookup().await.unwrap();
        assert!(
            !found.is_empty() && found.iter().all(|a| a.ip().is_loopback() && a.port() == 6379),
            "{found:?}"
        );
        assert!(found.iter().all(|a| found.iter().filter(|b| a == *b).count() == 1), "{found:?}");
    }

    #[tokio::test]
    async fn an_address_is_its_own_answer() {
        assert_eq!(Resolver::new("::1", 7).lookup().await.unwrap(), ["[::1]:7".parse().unwrap()]);
        assert_eq!(Resolver::new("192.0.2.1", 6379).lookup().await.unwrap(), [address(1)]);
    }

    #[tokio::test]
    async fn a_changed_address_is_reported_once() {
        let resolver = Resolver::new("127.0.0.1", 6379);
        assert!(!resolver.in_use_is_gone().await.unwrap(), "nothing was in use");
        resolver.works("127.0.0.1:6379".parse().unwrap());
        assert!(!resolver.in_use_is_gone().await.unwrap(), "still there");
        resolver.works(address(9));
        assert!(resolver.in_use_is_gone().await.unwrap(), "not in the set any more");
        assert_eq!(resolver.in_use(), None);
        assert!(!resolver.in_use_is_gone().await.unwrap(), "said once");
    }

    #[test]
    fn an_address_that_fails_at_login_is_in_use_no_more() {
        let resolver = Resolver::new("name.invalid", 1);
        resolver.works(address(1));
        resolver.fails(address(2));
        assert_eq!(resolver.in_use(), Some(address(1)));
        resolver.fails(address(1));
        assert_eq!(resolver.in_use(), None);
        resolver.works(address(2));
        assert_eq!(resolver.in_use(), Some(address(2)));
    }
}
