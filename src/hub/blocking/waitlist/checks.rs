//! What the server has against a call, though its keys are known to be empty: rights, its role, its replicas.
//!
//! A direct client is told so at each call (NOPERM, READONLY, NOREPLICAS). Here a call on a key that is known to be empty
//! asks nothing, so what the server last said to a call like it is believed for a moment, [`FRESH`], and then asked again
//! by the next such call, for all of them: at most one request in flight for each form of calls. Is it an error, every
//! call that was believed since the last good answer is asked for itself and so gets its own.
//!
//! Rights may also differ between keys. They are asked about in the same way, but at most once every [`KEYS_PACE`] for
//! all keys together.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::waiter::{End, Waiter};
use super::accepted::{FORMS, Form};
use super::sent::Ask;
use super::{GiveUp, Waitlist};
use crate::command::blocking::DEMOTED;
use crate::resp::{self, ErrorCode};
use crate::telemetry::ClientClose;

/// How long an answer is believed for calls that come after it.
const FRESH: Duration = Duration::from_millis(250);
/// Between two calls that look whether their key may still be used, where their form was seen to be in order.
const KEYS_PACE: Duration = Duration::from_millis(100);
/// A server that was never seen to accept a write is left for its role this rarely: the name may always point to a
/// replica.
const RARELY: Duration = Duration::from_secs(15);

impl Waitlist {
    /// Whether a call like this one is known to have passed the server's checks.
    pub(super) fn is_accepted(&self, id: u64) -> bool {
        self.waiters.get(&id).is_some_and(|waiter| self.checks.forms.contains_key(&waiter.form()))
    }

    /// Whether this call that arrives has to be sent, to see whether calls like it are still accepted. Otherwise it
    /// believes in the last answer.
    pub(super) fn must_ask(&mut self, id: u64) -> bool {
        let now = self.now;
        let Some(waiter) = self.waiters.get_mut(&id).filter(|waiter| waiter.first) else { return false };
        let Some(form) = self.checks.forms.get_mut(&waiter.form()) else { return true };
        let is_old = |at: Instant| now.saturating_duration_since(at) >= FRESH;
        let mut ask = is_old(form.accepted) && !form.asking;
        let keyed = waiter.form_with_keys();
        if !ask
            && self.checks.keyed.get(&keyed).is_none_or(|at| is_old(*at))
            && self.checks.last_key.is_none_or(|at| now.saturating_duration_since(at) >= KEYS_PACE)
        {
            self.checks.last_key = Some(now);
            ask = true;
        }
        if ask {
            form.asking = true;
            self.checks.note_key(keyed, now);
            waiter.checks = true;
        } else {
            waiter.believed = Some(now);
        }
        ask
    }

    /// The first answer to a call of this form was no error.
    pub(super) fn accepted(&mut self, id: u64) {
        let Some(waiter) = self.waiters.get(&id) else { return };
        let (form, keyed, writes) = (waiter.form(), waiter.form_with_keys(), waiter.writes());
        let arrived = waiter.arrived;
        if self.checks.forms.len() >= FORMS {
            self.checks.forms.clear();
        }
        self.checks.forms.insert(form, Form { accepted: self.now, asking: false });
        self.checks.note_key(keyed, self.now);
        if writes {
            self.checks.was_master(arrived);
        }
    }

    /// The first answer to a call was this error.
    pub(super) fn refused(&mut self, id: u64, error: &[u8]) {
        let Some(form) = self.waiters.get(&id).map(Waiter::form) else { return };
        if ErrorCode::WrongType.is(error) || ErrorCode::NoGroup.is(error) {
            // It has run: the error is of the key alone.
            return self.accepted(id);
        }
        let Some(known) = self.checks.forms.get_mut(&form) else { return };
        known.asking = false;
        if ErrorCode::Oom.is(error) {
            // Of the try, not of the call.
            return;
        }
        let accepted = known.accepted;
        self.checks.forms.remove(&form);
        self.ask_the_believed(|waiter| {
            waiter.believed.is_some_and(|at| at >= accepted) && waiter.form() == form
        });
    }

    /// Calls that took an earlier call's answer for theirs, since when things have changed: each gets its own.
    fn ask_the_believed(&mut self, which: impl Fn(&Waiter) -> bool) {
        let again = self.those_who(|waiter| waiter.believed.is_some() && which(waiter));
        for id in again {
            if let Some(waiter) = self.waiters.get_mut(&id) {
                waiter.first = true;
                waiter.believed = None;
            }
            self.send_call(vec![id], Ask::All);
        }
    }

    /// By arrival; those in a try are not among them.
    fn those_who(&self, which: impl Fn(&Waiter) -> bool) -> Vec<u64> {
        let waiters = self.waiters.iter().filter(|(_, waiter)| waiter.is_free() && which(waiter));
        let mut found: Vec<u64> = waiters.map(|(id, _)| *id).collect();
        found.sort_unstable();
        found
    }

    /// The oldest that waits with the same call, before the one that only looked whether calls are accepted. One in a try
    /// of its own, too: that one runs later and may find less.
    pub(super) fn older_alike(&self, id: u64) -> Option<u64> {
        let waiter = self.waiters.get(&id).filter(|waiter| waiter.checks)?;
        let spot = self.spots.at(*waiter.spots.first()?)?;
        spot.queue.range(..id).copied().filter(|_| waiter.pops()).find(|other| {
            self.waiters.get(other).is_some_and(|other| !other.gone && other.shape == waiter.shape)
        })
    }

    /// The server is a replica. If it was not always one, all who wait are told so, as Redis does it at once; those that
    /// came after the last write that it accepted are told in answer to their own call.
    pub(super) fn demoted(&mut self) {
        if self.slots.is_some() {
            return self.leave_all_slots();
        }
        if self.checks.master_at.is_none() {
            let rarely =
                self.checks.left_for_role.is_none_or(|at| self.now.saturating_duration_since(at) >= RARELY);
            if rarely {
                self.checks.left_for_role = Some(self.now);
                self.given_up = Some(GiveUp::Moved);
            }
            return;
        }
        self.given_up = Some(GiveUp::Moved);
        for id in self.those_who(|waiter| !waiter.first && waiter.believed.is_none()) {
            self.finish(id, Self::unblocked_by_demotion());
        }
        self.ask_the_believed(Waiter::writes);
    }

    pub(super) fn unblocked_by_demotion() -> End {
        End::Close(Bytes::from_static(DEMOTED), ClientClose::UpstreamLost)
    }

    /// Lets those who wait learn of a demotion that nobody else met: the longest waiter's call is run once more. Where none
    /// writes, the server is asked for its role.
    pub(super) fn look_for_demotion(&mut self) {
        if !self.online {
            return;
        }
        match self.those_who(|waiter| !waiter.first && waiter.pops()).first().copied() {
            Some(id) => {
                if let Some(waiter) = self.waiters.get_mut(&id) {
                    waiter.probes = true;
                }
                self.send_call(vec![id], Ask::All);
            }
            None if self.checks.role_refused || self.waiters.is_empty() => {}
            None => self.ask_for_role(),
        }
    }

    /// ROLE, asked `at` that time, has been answered: an array that begins with `master`, `slave` or `sentinel`. Readers may
    /// wait before a replica, so only those are told that have waited since before it was one.
    pub(super) fn told_role(&mut self, reply: &[u8], at: Instant) {
        match resp::elements(reply).and_then(|mut said| resp::bulk(said.next()?)) {
            Some(b"master") => self.checks.was_master(at),
            Some(b"slave") if self.slots.is_some() => self.leave_all_slots(),
            Some(b"slave") => {
                let Some(last) = self.checks.master_at else { return };
                let older =
                    self.those_who(|waiter| !waiter.first && !waiter.writes() && waiter.arrived < last);
                if !older.is_empty() {
                    self.given_up = Some(GiveUp::Moved);
                }
                for id in older {
                    self.finish(id, Self::unblocked_by_demotion());
                }
            }
            Some(_) => {}
            None => self.checks.role_refused = true,
        }
    }
}
