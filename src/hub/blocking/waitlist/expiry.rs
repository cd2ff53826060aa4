//! Waits that end without an element: the time is up, CLIENT UNBLOCK, or a client that has closed its side.

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::super::waiter::{End, State, Unblock};
use super::{Access, Waitlist};
use crate::command::blocking::{Call, Waited};
use crate::resp::encode;
use crate::telemetry::ClientClose;

impl Waitlist {
    /// Ends what is due, and lets delayed tries go.
    pub(super) fn end_the_due(&mut self, now: Instant) {
        while let Some((_, id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.pop_first();
            self.is_due(id, now);
        }
        while let Some((_, at)) = self.delayed.first().copied().filter(|(at, _)| *at <= now) {
            self.delayed.pop_first();
            if let Some(spot) = self.spots.at_mut(at) {
                spot.not_before = None;
            }
            self.pump(at);
        }
    }

    /// A call's time is up. With nothing in flight that could say otherwise it gets nil at once. With a request in flight
    /// the answer decides, for a while: an element that was popped for it, or pushed before its time was up, should reach
    /// it. A wake that was put off is followed up now.
    fn is_due(&mut self, id: u64, now: Instant) {
        self.look_before_nil(id);
        let asking = self.is_being_asked(id) || self.is_unlooked(id);
        let Some(waiter) = self.waiters.get_mut(&id) else { return };
        waiter.deadline = None;
        let moves = Call::moves_before_answering(waiter.call.command);
        if !moves && let Some(unblock) = waiter.unblock.take() {
            return self.end_unblocked(id, unblock);
        }
        match (waiter.state, waiter.overdue) {
            (State::Queued, false) if asking => {
                waiter.overdue = true;
                self.overdue.insert(id);
                self.remind(id, now + self.times.grace);
            }
            (State::Queued, _) => self.finish(id, End::Nil),
            (State::Trying, false) => {
                waiter.overdue = true;
                self.remind(id, now + if moves { self.times.stall } else { self.times.grace });
            }
            (State::Trying, true) if moves => {
                self.finish(id, End::Close(Bytes::new(), ClientClose::UpstreamLost));
            }
            (State::Trying, true) => self.finish(id, End::Nil),
        }
    }

    /// What is known of a waiter's keys may be older than their last wake, or than its arrival.
    fn look_before_nil(&mut self, id: u64) {
        let Some(waiter) = self.waiters.get(&id).filter(|waiter| waiter.is_free() && !waiter.overdue) else {
            return;
        };
        let is_woken = |at: &usize| self.spots.at(*at).is_some_and(|spot| spot.woken);
        let woken: Vec<usize> = waiter.spots.iter().copied().filter(is_woken).collect();
        let streams = waiter.kind() == Waited::Stream;
        for at in woken.iter().filter(|_| !streams) {
            self.end_delay(*at);
            self.pump(*at);
        }
        let Some(waiter) = self.waiters.get(&id).filter(|waiter| waiter.is_free()) else { return };
        let may_ask = self.online && self.access.get(&waiter.key.database) == Some(&Access::Granted);
        // Of a stream only its own answer says something. The others' turn comes with the end of the delay.
        if may_ask && (streams && !woken.is_empty() || waiter.first && !self.is_being_asked(id)) {
            self.start(id);
        }
    }

    /// Whether a waiter's first look waits for the connection, or for the answer whether its database may be used.
    fn is_unlooked(&self, id: u64) -> bool {
        let Some(waiter) = self.waiters.get(&id).filter(|waiter| waiter.first) else { return false };
        !self.online || self.access.get(&waiter.key.database) != Some(&Access::Granted)
    }

    fn remind(&mut self, id: u64, at: Instant) {
        if let Some(waiter) = self.waiters.get_mut(&id) {
            waiter.deadline = Some(at);
            self.deadlines.insert((at, id));
        }
    }

    /// Whether an answer under way will say what a waiter's keys hold.
    fn is_being_asked(&self, id: u64) -> bool {
        let Some(waiter) = self.waiters.get(&id) else { return false };
        waiter.spots.iter().any(|at| self.spots.at(*at).is_some_and(|spot| spot.asking > 0))
    }

    /// Those whose time was up while an older waiter's answer was awaited: it has come, and they are still not served.
    pub(super) fn end_the_overdue(&mut self) {
        let waiting: Vec<_> = self.overdue.iter().copied().collect();
        for id in waiting {
            let free = self.waiters.get(&id).is_some_and(|waiter| waiter.is_free());
            if free && !self.is_being_asked(id) && !self.is_unlooked(id) {
                self.finish(id, End::Nil);
            }
        }
    }

    /// A waiter's client has closed its side ([`super::super::Seat::farewell`]).
    pub(in crate::hub::blocking) fn farewell(&mut self, id: u64) -> bool {
        let Some(waiter) = self.waiters.get(&id) else { return true };
        let database = waiter.key.database;
        // A try that was written before its FIN was known, or nobody can look yet. What is tried for it later would be
        // popped for nobody where its program has closed.
        let will_look = waiter.first
            && (waiter.state == State::Trying
                || !self.online
                || !matches!(self.access.get(&database), Some(Access::Granted)));
        if let Some(waiter) = self.waiters.get_mut(&id) {
            waiter.leaving = will_look;
        }
        !will_look
    }

    pub(super) fn end_unblocked(&mut self, id: u64, unblock: Unblock) {
        if self.waiters.get(&id).is_some_and(|waiter| !waiter.gone) {
            self.finish(id, Self::unblocked(unblock));
        }
    }

    /// How a wait ends that CLIENT UNBLOCK ends; whoever asked for it is told so.
    pub(super) fn unblocked(unblock: Unblock) -> End {
        if !unblock.ends_the_wait() {
            return End::Nil;
        }
        let mut words = BytesMut::new();
        encode::error(&mut words, "UNBLOCKED client unblocked via CLIENT UNBLOCK");
        End::Error(words.freeze())
    }
}
