//! The hub of one node of a cluster: keys leave it with their slots.
//!
//! Tracking does not tell that a slot has moved: no command changes a key that is not there (redis `cluster.c`, SETSLOT NODE). But
//! a node unsubscribes shard channels of a slot that it loses, and says so, unasked, on the same connection. So one channel is
//! subscribed to for each slot that is waited for, the canary. Where that may not be done, the look around with every heartbeat
//! finds a moved slot by its MOVED.

use std::collections::HashSet;

use bytes::Bytes;

use super::super::waiter::{End, State, Withdrawn};
use super::Waitlist;
use super::sent::{Purpose, Sent};
use super::slots::{CHANNEL, slot_of_channel};
use crate::cluster::{Redirect, slot_of, tag_of};
use crate::resp::{self, encode};
use crate::telemetry::UpstreamClose;

impl Waitlist {
    /// Whether a reply says that the node does not serve the keys.
    pub(super) fn is_redirect(&self, reply: &[u8]) -> bool {
        self.slots.is_some() && Redirect::is_one(reply)
    }

    fn slot_of_waiter(&self, id: u64) -> Option<u16> {
        let at = self.waiters.get(&id)?.spots.first()?;
        Some(slot_of(&self.spots.at(*at)?.name))
    }

    /// Before the keys of a call are asked for: its slot is watched.
    pub(super) fn watch_slot_of(&mut self, id: u64) {
        if self.slots.as_ref().is_none_or(|slots| slots.is_refused) {
            return;
        }
        let Some(slot) = self.slot_of_waiter(id) else { return };
        if self.slots.as_mut().is_some_and(|slots| slots.watched.insert(slot)) {
            let channel = format!("{CHANNEL}{{{}}}", tag_of(slot));
            encode::command(&mut self.out, &[b"SSUBSCRIBE", channel.as_bytes()]);
            self.sent.push_back(Sent::new(Purpose::Canary(slot)));
        }
    }

    /// SSUBSCRIBE was answered by an error.
    pub(super) fn canary_refused(&mut self, slot: u16, reply: &[u8]) {
        let redirected = Redirect::is_one(reply);
        if let Some(slots) = &mut self.slots {
            slots.watched.remove(&slot);
            slots.is_refused |= !redirected;
        }
    }

    /// A push about shard channels. `None`: it is about something else.
    pub(super) fn heard_of_slot(&mut self, frame: &[u8]) -> Option<Result<(), UpstreamClose>> {
        self.slots.as_ref()?;
        let mut parts = resp::elements(frame)?;
        let kind = parts.next().and_then(resp::bulk)?;
        let is_subscribed = kind == b"ssubscribe";
        if !is_subscribed && kind != b"sunsubscribe" {
            return None;
        }
        let slot = parts.next().and_then(resp::bulk).and_then(slot_of_channel)?;
        if is_subscribed {
            // In the order of the requests, as any reply.
            let is_asked = self
                .sent
                .front()
                .is_some_and(|sent| matches!(sent.purpose, Purpose::Canary(of) if of == slot));
            if !is_asked {
                return Some(Err(UpstreamClose::Desync));
            }
            self.sent.pop_front();
        } else {
            if let Some(slots) = &mut self.slots {
                slots.watched.remove(&slot);
            }
            self.leave_slots(|of| of != slot, &Bytes::new());
        }
        Some(Ok(()))
    }

    /// Those who wait for keys of slots that are not here any more have to wait elsewhere. Those in a try have its answer first.
    pub(in crate::hub::blocking) fn leave_slots(&mut self, is_here: impl Fn(u16) -> bool, reply: &Bytes) {
        if self.slots.is_none() {
            return;
        }
        let left: HashSet<usize> =
            self.spots.iter().filter(|(_, spot)| !is_here(slot_of(&spot.name))).map(|(at, _)| at).collect();
        if left.is_empty() {
            return;
        }
        for at in &left {
            self.end_delay(*at);
            if let Some(spot) = self.spots.at_mut(*at) {
                spot.forget();
            }
        }
        let mut leaving: Vec<u64> = self
            .waiters
            .iter()
            .filter(|(_, waiter)| waiter.is_free() && waiter.spots.iter().any(|at| left.contains(at)))
            .map(|(id, _)| *id)
            .collect();
        leaving.sort_unstable();
        for id in leaving {
            self.redirect(id, reply.clone());
        }
    }

    /// All have to wait elsewhere: the node is no master any more.
    pub(super) fn leave_all_slots(&mut self) {
        self.leave_slots(|_| false, &Bytes::new());
    }

    /// A call was answered by a redirection: it has not run. So would others of its slot be.
    pub(super) fn redirected(&mut self, id: u64, reply: &[u8]) {
        let slot = self.slot_of_waiter(id);
        let reply = Bytes::copy_from_slice(reply);
        if let Some(waiter) = self.waiters.get_mut(&id) {
            waiter.state = State::Queued;
        }
        self.redirect(id, reply.clone());
        if let (Some(slot), true) = (slot, reply.starts_with(b"-MOVED ") || reply.starts_with(b"-ASK ")) {
            self.leave_slots(|of| of != slot, &reply);
        }
    }

    fn redirect(&mut self, id: u64, reply: Bytes) {
        let Some(waiter) = self.waiters.get_mut(&id) else { return };
        if waiter.gone {
            return self.remove(id);
        }
        if let Some(how) = waiter.unblock.take() {
            return self.end_unblocked(id, how);
        }
        if waiter.overdue || waiter.leaving {
            return self.finish(id, End::Nil);
        }
        let now = Withdrawn { request: waiter.request.clone(), has_looked: !waiter.first };
        for at in waiter.spots.clone() {
            if let Some(spot) = self.spots.at_mut(at) {
                spot.forget();
            }
        }
        self.finish(id, End::Redirected(reply, now));
    }
}
