//! The look around with every heartbeat: what tracking does not tell.
//!
//! SWAPDB, XGROUP DESTROY and XGROUP SETID wake nobody. So what should be empty is looked at from time to time, a
//! hundred keys a request; streams are read again.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::time::Instant;

use super::{KeyState, Waitlist};
use crate::cluster::slot_of;
use crate::command::blocking::Waited;
use crate::resp;

/// Keys looked at by one request.
const CHUNK: usize = 100;

impl Waitlist {
    /// Looks at everything that is waited for; with nothing to look at, PING.
    pub(in crate::hub::blocking) fn sweep(&mut self) {
        // In front of a cluster the keys of one request are of one slot.
        let mut empty: BTreeMap<(u32, u16), Vec<usize>> = BTreeMap::new();
        let mut again = Vec::new();
        for (at, spot) in self.spots.iter().filter(|(_, spot)| !spot.queue.is_empty() && spot.asking == 0) {
            match (spot.kind, spot.known) {
                (Waited::List | Waited::SortedSet, KeyState::Remaining(0)) if !self.exists_refused => {
                    let slot = if self.slots.is_some() { slot_of(&spot.name) } else { 0 };
                    empty.entry((spot.database, slot)).or_default().push(at);
                }
                (_, KeyState::Unknown) => {}
                (_, KeyState::Remaining(_) | KeyState::OtherType) => again.push(at),
            }
        }
        for ((database, _), spots) in empty {
            for chunk in spots.chunks(CHUNK) {
                self.look(database, chunk.to_vec());
            }
        }
        self.ask_again(again);
        self.look_for_demotion();
        if self.sent.is_empty() {
            self.ping();
        }
    }

    fn ask_again(&mut self, spots: Vec<usize>) {
        for at in &spots {
            if let Some(spot) = self.spots.at_mut(*at) {
                spot.forget();
            }
        }
        spots.into_iter().for_each(|at| self.pump(at));
    }

    /// EXISTS was answered by a redirection.
    pub(super) fn looked_in_vain(&mut self, spots: &[usize], reply: &[u8]) {
        let mut slot = None;
        for at in spots {
            if let Some(spot) = self.spots.at_mut(*at) {
                spot.asking = spot.asking.saturating_sub(1);
                slot = Some(slot_of(&spot.name));
            }
        }
        if let Some(slot) = slot {
            self.leave_slots(|of| of != slot, &Bytes::copy_from_slice(reply));
        }
    }

    /// EXISTS has been answered: none, or there is something where nothing should be. `None`: refused.
    pub(super) fn looked(&mut self, spots: &[usize], found: Option<&[u8]>, now: Instant) {
        let count = found.and_then(resp::integer);
        self.exists_refused |= count.is_none();
        let mut again = Vec::new();
        for at in spots {
            let Some(spot) = self.spots.at_mut(*at) else { continue };
            spot.asking = spot.asking.saturating_sub(1);
            if count != Some(0) && spot.not_before.is_none_or(|at| at <= now) {
                again.push(*at);
            }
        }
        if again.is_empty() {
            // A wake may have come while the answer was awaited.
            spots.iter().for_each(|at| self.pump(*at));
        } else {
            self.ask_again(again);
        }
    }
}
