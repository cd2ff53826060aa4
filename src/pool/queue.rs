//! Who waits for something: the users in turn, within a user the addresses in turn, within an address first come, first served.
//! So an address with a thousand clients delays another one by a single turn.

use std::collections::VecDeque;
use std::net::IpAddr;

/// One that waits.
#[derive(Debug)]
pub(super) struct Waiting<G> {
    pub(super) ticket: u64,
    pub(super) user: u64,
    /// The host of the client that waits; `None` for what many clients wait for, and for Unix sockets.
    pub(super) address: Option<IpAddr>,
    /// How it is told.
    pub(super) grant: G,
}

/// All that wait for the same.
#[derive(Debug)]
pub(super) struct Queue<G> {
    /// The first one's turn is next.
    users: VecDeque<OfUser<G>>,
}

impl<G> Default for Queue<G> {
    fn default() -> Self {
        Self { users: VecDeque::new() }
    }
}

#[derive(Debug)]
struct OfUser<G> {
    user: u64,
    addresses: VecDeque<OfAddress<G>>,
    len: usize,
}

#[derive(Debug)]
struct OfAddress<G> {
    address: Option<IpAddr>,
    waiting: VecDeque<Waiting<G>>,
}

impl<G> OfUser<G> {
    fn first(&self) -> Option<u64> {
        Some(self.addresses.front()?.waiting.front()?.ticket)
    }
}

impl<G> Queue<G> {
    pub(super) fn push(&mut self, waiting: Waiting<G>) {
        let (user, address) = (waiting.user, waiting.address);
        let at = self.users.iter().position(|of| of.user == user).unwrap_or_else(|| {
            self.users.push_back(OfUser { user, addresses: VecDeque::new(), len: 0 });
            self.users.len() - 1
        });
        let of = &mut self.users[at];
        of.len += 1;
        match of.addresses.iter_mut().find(|of| of.address == address) {
            Some(of) => of.waiting.push_back(waiting),
            None => of.addresses.push_back(OfAddress { address, waiting: VecDeque::from([waiting]) }),
        }
    }

    /// The ticket of the one whose turn it is, among the users that `may` have a permit.
    pub(super) fn first(&self, may: impl Fn(u64) -> bool) -> Option<u64> {
        self.users.iter().find(|of| may(of.user))?.first()
    }

    /// Takes that one out; its user and its address come last from now on.
    pub(super) fn pop(&mut self, may: impl Fn(u64) -> bool) -> Option<Waiting<G>> {
        let at = self.users.iter().position(|of| may(of.user))?;
        let mut of = self.users.remove(at)?;
        let mut first = of.addresses.pop_front()?;
        let waiting = first.waiting.pop_front()?;
        of.len -= 1;
        if !first.waiting.is_empty() {
            of.addresses.push_back(first);
        }
        if !of.addresses.is_empty() {
            self.users.push_back(of);
        }
        Some(waiting)
    }

    /// Takes out one that waits no more. Where it was its turn it has had it: a connection was handed to it by another one.
    pub(super) fn remove(&mut self, ticket: u64, user: u64, address: Option<IpAddr>) {
        let Some(user) = self.users.iter().position(|of| of.user == user) else { return };
        let is_first = self.users[user].first() == Some(ticket);
        let of = &mut self.users[user];
        let Some(place) = of.addresses.iter().position(|of| of.address == address) else { return };
        let waiting = &mut of.addresses[place].waiting;
        let Some(at) = waiting.iter().position(|waiting| waiting.ticket == ticket) else { return };
        waiting.remove(at);
        of.len -= 1;
        if waiting.is_empty() {
            of.addresses.remove(place);
        } else if is_first {
            of.addresses.rotate_left(1);
        }
        if of.addresses.is_empty() {
            self.users.remove(user);
        } else if is_first {
            let last = self.users.remove(user);
            self.users.extend(last);
        }
    }

    /// The users that wait, and how many of each.
    pub(super) fn users(&self) -> impl Iterator<Item = (u64, usize)> {
        self.users.iter().map(|of| (of.user, of.len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(ticket: u64, user: u64, host: u8) -> Waiting<()> {
        Waiting { ticket, user, address: Some([10, 0, 0, host].into()), grant: () }
    }

    fn order(queue: &mut Queue<()>, count: usize) -> Vec<u64> {
        (0..count).filter_map(|_| queue.pop(|_| true)).map(|waiting| waiting.ticket).collect()
    }

    #[test]
    fn an_address_with_many_delays_others_by_one_turn() {
        let mut queue = Queue::default();
        (0..1_000).for_each(|ticket| queue.push(waiting(ticket, 1, 1)));
        queue.push(waiting(2_000, 1, 2));
        queue.push(waiting(3_000, 2, 1));
        queue.push(waiting(2_001, 1, 2));
        assert_eq!(order(&mut queue, 7), [0, 3_000, 2_000, 1, 2_001, 2, 3]);
        // One that comes back waits for one turn again.
        queue.push(waiting(2_002, 1, 2));
        assert_eq!(order(&mut queue, 3), [4, 2_002, 5]);
    }

    #[test]
    fn who_may_not_is_passed_over_and_keeps_the_turn() {
        let mut queue = Queue::default();
        [(1, 1), (2, 1), (3, 2)].into_iter().for_each(|(ticket, user)| queue.push(waiting(ticket, user, 1)));
        assert_eq!(queue.first(|user| user != 1), Some(3));
        assert_eq!(queue.pop(|user| user != 1).map(|waiting| waiting.ticket), Some(3));
        assert_eq!(queue.first(|user| user != 1), None);
        assert_eq!(order(&mut queue, 3), [1, 2]);
        assert_eq!(queue.users().count(), 0);
    }

    #[test]
    fn who_was_served_by_another_has_had_its_turn() {
        let mut queue = Queue::default();
        (0..5).for_each(|ticket| queue.push(waiting(ticket, 1, 1)));
        queue.push(waiting(10, 1, 2));
        queue.push(waiting(20, 2, 1));
        for (first, user, host) in [(0, 1, 1), (20, 2, 1), (10, 1, 2), (1, 1, 1)] {
            assert_eq!(queue.first(|_| true), Some(first));
            queue.remove(first, user, Some([10, 0, 0, host].into()));
        }
    }

    #[test]
    fn who_leaves_is_forgotten() {
        let mut queue = Queue::default();
        [(1, 1, 1), (2, 1, 2), (3, 1, 1)].into_iter().for_each(|(t, u, h)| queue.push(waiting(t, u, h)));
        queue.remove(1, 1, Some([10, 0, 0, 1].into()));
        queue.remove(2, 1, Some([10, 0, 0, 2].into()));
        queue.remove(9, 1, Some([10, 0, 0, 1].into()));
        assert_eq!(queue.users().collect::<Vec<_>>(), [(1, 1)]);
        assert_eq!(order(&mut queue, 2), [3]);
    }
}
