//! Who has a place: clients that are inside, and peers that have not logged in.
//!
//! A peer that must log in, or has yet to make its TLS handshake, waits in a room of its own, so that strangers take no
//! place from those who may come in. The room is never closed: when it is full, a newcomer takes the place of somebody
//! who has been there long. An honest client is in it for some round trips; whoever stays there longest is none.
//! Addresses share the room alike: the one with the most peers in it gives way.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::session::Endpoint;

/// How many places there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Clients inside (`client.max`).
    pub inside: usize,
    /// Peers that have not logged in (`client.max_unauthenticated`).
    pub waiting: usize,
    /// Both together: there are no open files for more.
    pub together: usize,
    /// Clients inside from one address (`client.max_per_address`); 0 for any number.
    pub per_address: usize,
}

/// All places.
#[derive(Debug)]
pub struct Admission {
    limits: Mutex<Limits>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    inside: usize,
    /// Clients inside by their address; counted without a limit as well, because one may be set later.
    by_address: HashMap<IpAddr, usize>,
    /// The waiting peers, oldest first.
    waiting: BTreeMap<u64, Waiting>,
    /// The same by where they come from.
    crowds: HashMap<Option<IpAddr>, BTreeSet<u64>>,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    from: Option<IpAddr>,
    stay: Arc<Stay>,
}

/// A stay among those that have not logged in: how it ends, and whether its first login is being checked.
#[derive(Debug, Default)]
pub(in crate::downstream) struct Stay {
    number: u64,
    end: AtomicU8,
    ended: Notify,
    is_checked: AtomicBool,
    /// Its first login has been begun.
    has_tried: AtomicBool,
}

/// How a stay ends.
const NOT_YET: u8 = 0;
const SETTLED: u8 = 1;
const GAVE_WAY: u8 = 2;

impl Stay {
    fn ends(&self, how: u8) {
        self.end.store(how, SeqCst);
        self.ended.notify_one();
    }

    /// Returns when it is over: whether the place was taken away. One task may wait for that.
    pub(in crate::downstream) async fn is_given_up(&self) -> bool {
        loop {
            match self.end.load(SeqCst) {
                NOT_YET => self.ended.notified().await,
                end => return end == GAVE_WAY,
            }
        }
    }
}

/// There is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::downstream) enum Refused {
    /// `client.max` clients are inside.
    Full,
    /// `client.max_per_address` clients from that address are.
    FullForAddress,
}

/// A place, given back when dropped.
pub(in crate::downstream) struct AdmissionGuard {
    places: Arc<Admission>,
    /// Where it comes from; nowhere by a Unix socket.
    address: Option<Box<IpAddr>>,
    /// Not inside yet.
    waits: Cell<Option<Arc<Stay>>>,
}

/// The key of a group: an address, or for IPv6 the network of one customer.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(all) => {
            let [a, b, c, d, ..] = all.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

impl Admission {
    /// All places are free.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits: Mutex::new(limits), state: Mutex::default() })
    }

    /// Changes the limits; admitted clients stay.
    pub fn resize(&self, inside: usize, waiting: usize, per_address: usize) {
        let mut limits = self.limits.lock();
        (limits.inside, limits.waiting, limits.per_address) = (inside, waiting, per_address);
    }

    fn limits(&self) -> Limits {
        *self.limits.lock()
    }

    /// How many have not logged in.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// A slot for a client from `peer`: admitted or, with `waits`, among the peers that have not logged in. Clients of
    /// Unix sockets have no address.
    pub(in crate::downstream) fn enter(
        self: &Arc<Self>,
        peer: &Endpoint,
        waits: bool,
    ) -> Result<AdmissionGuard, Refused> {
        let address = peer.host().map(|address| address.to_canonical());
        let limits = self.limits();
        let mut state = self.state.lock();
        // Waiting peers would be refused after their login.
        state.has_room_inside(&limits, address)?;
        let full = |state: &State| {
            waits && state.waiting.len() >= limits.waiting
                || state.inside + state.waiting.len() >= limits.together
        };
        while full(&state) {
            if !state.give_way(address.map(neighbourhood)) {
                return Err(Refused::Full);
            }
        }
        let stay = waits.then(|| state.wait(address.map(neighbourhood)));
        if !waits {
            state.take(address);
        }
        drop(state);
        let address = address.map(Box::new);
        Ok(AdmissionGuard { places: Arc::clone(self), address, waits: Cell::new(stay) })
    }
}

impl State {
    fn has_room_inside(&self, limits: &Limits, address: Option<IpAddr>) -> Result<(), Refused> {
        let here = address.and_then(|address| self.by_address.get(&address)).copied().unwrap_or(0);
        if self.inside >= limits.inside {
            Err(Refused::Full)
        } else if limits.per_address > 0 && here >= limits.per_address {
            Err(Refused::FullForAddress)
        } else {
            Ok(())
        }
    }

    fn take(&mut self, address: Option<IpAddr>) {
        self.inside += 1;
        if let Some(address) = address {
            *self.by_address.entry(address).or_default() += 1;
        }
    }

    fn wait(&mut self, from: Option<IpAddr>) -> Arc<Stay> {
        let number = self.next;
        self.next += 1;
        let stay = Arc::new(Stay { number, ..Stay::default() });
        self.waiting.insert(number, Waiting { from, stay: Arc::clone(&stay) });
        self.crowds.entry(from).or_default().insert(number);
        stay
    }

    /// Takes one out of the room; `false` where it is not there any more.
    fn leave(&mut self, number: u64) -> bool {
        let Some(Waiting { from, .. }) = self.waiting.remove(&number) else { return false };
        if let Some(crowd) = self.crowds.get_mut(&from) {
            crowd.remove(&number);
            if crowd.is_empty() {
                self.crowds.remove(&from);
            }
        }
        true
    }

    /// Closes the oldest peer of the largest group, peers whose login is being checked last; the group of `newcomer`
    /// counts one more. `false`: no peer waits.
    fn give_way(&mut self, newcomer: Option<IpAddr>) -> bool {
        let size = |(from, crowd): &(&Option<IpAddr>, &BTreeSet<u64>)| {
            (crowd.len() + usize::from(**from == newcomer), std::cmp::Reverse(crowd.first().copied()))
        };
        let Some((_, crowd)) = self.crowds.iter().max_by_key(size) else { return false };
        let is_idle = |number: &&u64| {
            let waiting = self.waiting.get(*number);
            waiting.is_some_and(|waiting| !waiting.stay.is_checked.load(SeqCst))
        };
        let Some(number) = crowd.iter().find(is_idle).or_else(|| crowd.first()).copied() else {
            return false;
        };
        let stay = self.waiting.get(&number).map(|waiting| Arc::clone(&waiting.stay));
        let left = self.leave(number);
        if let Some(stay) = stay {
            stay.ends(GAVE_WAY);
        }
        left
    }
}

impl std::fmt::Debug for AdmissionGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdmissionGuard").field("address", &self.address).finish_non_exhaustive()
    }
}

impl AdmissionGuard {
    /// Its stay among those that have not logged in; `None`: it is inside.
    pub(in crate::downstream) fn stay(&self) -> Option<Arc<Stay>> {
        let stay = self.waits.take();
        self.waits.set(stay.clone());
        stay
    }

    /// It has logged in, or need not: from now on it counts among those inside. Nothing, if it does already.
    pub(in crate::downstream) fn go_inside(&self) -> Result<(), Refused> {
        let Some(stay) = self.stay() else { return Ok(()) };
        let address = self.address.as_deref().copied();
        let limits = self.places.limits();
        let mut state = self.places.state.lock();
        state.has_room_inside(&limits, address)?;
        if !state.leave(stay.number) {
            // Its place has been taken away, and it is being closed.
            return Err(Refused::Full);
        }
        state.take(address);
        drop(state);
        self.waits.take();
        stay.ends(SETTLED);
        Ok(())
    }

    /// Marks the peer's login as being checked, until dropped. Only the first check protects its slot, because an
    /// address that guesses always has a check in progress.
    pub(in crate::downstream) fn is_checked(&self) -> Option<Checked> {
        let stay = self.stay()?;
        let is_first = !stay.has_tried.swap(true, SeqCst);
        stay.is_checked.store(is_first, SeqCst);
        Some(Checked(stay))
    }
}

/// See [`AdmissionGuard::is_checked`].
pub(in crate::downstream) struct Checked(Arc<Stay>);

impl Drop for Checked {
    fn drop(&mut self) {
        self.0.is_checked.store(false, SeqCst);
    }
}

impl Drop for AdmissionGuard {
    fn drop(&mut self) {
        let mut state = self.places.state.lock();
        if let Some(stay) = self.waits.take() {
            if state.leave(stay.number) {
                stay.ends(SETTLED);
            }
            return;
        }
        state.inside -= 1;
        if let Some(address) = self.address.as_deref()
            && let Some(count) = state.by_address.get_mut(address)
        {
            *count -= 1;
            if *count == 0 {
                state.by_address.remove(address);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn places(inside: usize, waiting: usize) -> Arc<Admission> {
        Admission::new(Limits { inside, waiting, together: usize::MAX, per_address: 0 })
    }

    fn at(text: &str) -> Endpoint {
        Endpoint::Tcp(SocketAddr::new(text.parse().unwrap(), 1000))
    }

    fn gave_way(place: &AdmissionGuard) -> bool {
        place.stay().is_some_and(|stay| stay.end.load(SeqCst) == GAVE_WAY)
    }

    #[test]
    fn every_address_has_its_own_places() {
        let places = Admission::new(Limits { inside: 100, waiting: 100, together: 200, per_address: 2 });
        let [one, other] = [at("10.0.0.1"), at("10.0.0.2")];
        let mut taken: Vec<_> =
            [&one, &one, &other].iter().map(|peer| places.enter(peer, false).unwrap()).collect();
        assert_eq!(places.enter(&one, false).unwrap_err(), Refused::FullForAddress, "a third one");
        let same = at("::ffff:10.0.0.1");
        assert_eq!(places.enter(&same, true).unwrap_err(), Refused::FullForAddress, "in IPv6's form");
        taken.remove(0);
        taken.push(places.enter(&one, false).unwrap());
        drop(taken);
        let local = Endpoint::Unix("/run/redis.sock".into());
        let all: Vec<_> = (0..50).map(|_| places.enter(&local, false).unwrap()).collect();
        drop(all);
        let state = places.state.lock();
        assert!(state.by_address.is_empty() && state.inside == 0);
    }

    #[test]
    fn those_who_wait_take_no_place_inside() {
        let places = places(2, 10);
        let strangers: Vec<_> = (0..10).map(|_| places.enter(&at("10.0.0.1"), true).unwrap()).collect();
        let [one, two, three] = [0, 1, 2].map(|_| places.enter(&at("10.0.0.2"), true).unwrap());
        assert_eq!((one.go_inside(), two.go_inside()), (Ok(()), Ok(())));
        assert_eq!(three.go_inside(), Err(Refused::Full));
        assert_eq!(places.enter(&at("10.0.0.3"), true).unwrap_err(), Refused::Full);
        drop(one);
        assert_eq!(three.go_inside(), Ok(()));
        assert_eq!(three.go_inside(), Ok(()), "it is inside already");
        drop((strangers, two, three));
        let state = places.state.lock();
        assert!(state.inside == 0 && state.waiting.is_empty() && state.crowds.is_empty());
    }

    #[test]
    fn the_oldest_gives_way_to_a_newcomer() {
        let places = places(10, 3);
        let mut room: Vec<_> = (0..3).map(|_| places.enter(&at("10.0.0.1"), true).unwrap()).collect();
        room.push(places.enter(&at("10.0.0.1"), true).unwrap());
        assert_eq!(room.iter().map(gave_way).collect::<Vec<_>>(), [true, false, false, false]);
        assert_eq!(room[0].go_inside(), Err(Refused::Full), "too late");
        assert_eq!(room[1].go_inside(), Ok(()));
        room.push(places.enter(&at("10.0.0.1"), true).unwrap());
        assert_eq!(room.iter().filter(|place| gave_way(place)).count(), 1, "there was room again");
        assert_eq!(places.waiting(), 3);
    }

    #[test]
    fn the_address_with_the_most_peers_gives_way() {
        let places = places(10, 4);
        let quiet = places.enter(&at("10.0.0.1"), true).unwrap();
        let crowd: Vec<_> = (0..20).map(|_| places.enter(&at("10.0.0.2"), true).unwrap()).collect();
        assert!(!gave_way(&quiet) && crowd[..17].iter().all(gave_way) && !gave_way(&crowd[17]));
        let other = places.enter(&at("10.0.0.3"), true).unwrap();
        assert!(gave_way(&crowd[17]) && !gave_way(&quiet) && !gave_way(&other));
    }

    #[test]
    fn a_network_of_ipv6_is_one_neighbour() {
        let places = places(10, 2);
        let quiet = places.enter(&at("2001:db8:1:1::1"), true).unwrap();
        let crowd: Vec<_> = (0..9)
            .map(|number| places.enter(&at(&format!("2001:db8:1:2::{number}")), true).unwrap())
            .collect();
        assert!(!gave_way(&quiet) && crowd[..8].iter().all(gave_way));
    }

    #[test]
    fn a_first_login_that_is_being_checked_is_waited_for() {
        let places = places(10, 2);
        let [first, second] = [0, 1].map(|_| places.enter(&at("10.0.0.1"), true).unwrap());
        let check = first.is_checked();
        let third = places.enter(&at("10.0.0.1"), true).unwrap();
        assert!(gave_way(&second) && !gave_way(&first));
        drop(check);
        // A guess: the next one is no reason.
        let _check = first.is_checked();
        let fourth = places.enter(&at("10.0.0.1"), true).unwrap();
        assert!(gave_way(&first) && !gave_way(&third) && !gave_way(&fourth));
        let _checks = [third.is_checked(), fourth.is_checked()];
        let _fifth = places.enter(&at("10.0.0.1"), true).unwrap();
        assert!(gave_way(&third), "nobody is refused where all are being checked");
    }

    #[test]
    fn open_files_are_taken_from_those_who_wait() {
        let places = Admission::new(Limits { inside: 4, waiting: 4, together: 5, per_address: 0 });
        let strangers: Vec<_> = (0..4).map(|_| places.enter(&at("10.0.0.1"), true).unwrap()).collect();
        let inside: Vec<_> = (0..4).map(|_| places.enter(&at("10.0.0.2"), false).unwrap()).collect();
        assert_eq!(strangers.iter().filter(|place| gave_way(place)).count(), 3);
        assert_eq!(inside.len() + places.waiting(), 5);
        let tight = Admission::new(Limits { inside: 9, waiting: 4, together: 2, per_address: 0 });
        let all: Vec<_> = (0..2).map(|_| tight.enter(&at("10.0.0.1"), false).unwrap()).collect();
        assert_eq!(tight.enter(&at("10.0.0.1"), false).unwrap_err(), Refused::Full);
        drop(all);
    }

    #[tokio::test]
    async fn how_a_stay_ends_is_told() {
        let places = places(10, 1);
        let first = places.enter(&at("10.0.0.1"), true).unwrap();
        let stay = first.stay().unwrap();
        let second = places.enter(&at("10.0.0.1"), true).unwrap();
        assert!(stay.is_given_up().await);
        let stay = second.stay().unwrap();
        second.go_inside().unwrap();
        assert!(!stay.is_given_up().await && second.stay().is_none());
        let third = places.enter(&at("10.0.0.1"), true).unwrap();
        let stay = third.stay().unwrap();
        drop(third);
        assert!(!stay.is_given_up().await);
    }
}
