//! How many clients each address has, for `client.max_per_address`.

use std::collections::HashMap;
use std::net::IpAddr;

use parking_lot::Mutex;

use crate::session::Endpoint;

/// Clients by the address they come from; nothing is counted without a limit.
#[derive(Debug, Default)]
pub struct Places {
    /// 0: none.
    limit: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

impl Places {
    /// At most `limit` clients from one address; 0 for any number.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, taken: Mutex::default() }
    }

    /// A client comes from `peer`. `false`: there are too many from there, and it is not counted. Who comes by a Unix
    /// socket has no address.
    pub(super) fn enter(&self, peer: &Endpoint) -> bool {
        let Some(address) = peer.host().filter(|_| self.limit > 0) else { return true };
        let mut taken = self.taken.lock();
        let count = taken.entry(address.to_canonical()).or_default();
        let room = *count < self.limit;
        *count += usize::from(room);
        room
    }

    /// A client that had entered is gone.
    pub(super) fn leave(&self, peer: &Endpoint) {
        let Some(address) = peer.host().filter(|_| self.limit > 0) else { return };
        let (mut taken, address) = (self.taken.lock(), address.to_canonical());
        if let Some(count) = taken.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&address);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn every_address_has_its_own_places() {
        let places = Places::new(2);
        let at = |text: &str| Endpoint::Tcp(SocketAddr::new(text.parse().unwrap(), 1000));
        let [one, other] = [at("10.0.0.1"), at("10.0.0.2")];
        assert!(places.enter(&one) && places.enter(&one) && places.enter(&other));
        assert!(!places.enter(&one), "a third one");
        assert!(!places.enter(&at("::ffff:10.0.0.1")), "the same address in IPv6's form");
        places.leave(&one);
        assert!(places.enter(&one));
        for address in [&one, &one, &other] {
            places.leave(address);
        }
        let local = Endpoint::Unix("/run/redis.sock".into());
        assert!((0..100).all(|_| places.enter(&local)));
        assert!(places.taken.lock().is_empty());
    }

    #[test]
    fn without_a_limit_nothing_is_counted() {
        let places = Places::default();
        let somewhere = Endpoint::Tcp(SocketAddr::from(([10, 0, 0, 1], 1000)));
        assert!((0..100).all(|_| places.enter(&somewhere)));
        assert!(places.taken.lock().is_empty());
    }
}
