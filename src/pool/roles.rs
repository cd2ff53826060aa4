//! What the server's role says about the lanes: they are for where the name points, and after a failover that is another
//! server, though nobody has closed the connections to this one.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Lane, Lost, Pool};
use crate::resp::{self, encode};
use crate::telemetry::UpstreamClose;

/// A master is asked for its role at most once in this time, not for each reply: in front of a replica that clients
/// write to, every reply is a refusal.
const ASKED_ONCE_IN: Duration = Duration::from_secs(1);
/// Between two looks where the name points now, while writes are refused: growing from the first to the second.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(15)];

/// The role of the server that lanes were made to.
#[derive(Debug, Default)]
pub(super) struct Roles {
    is_replica: Cell<bool>,
    /// Some server of this name was a master: a replica there is not what clients are meant to write to.
    was_master: Cell<bool>,
    asked: Cell<Option<Instant>>,
    looked: Cell<Option<Instant>>,
    pause: Cell<Duration>,
}

impl Roles {
    /// Takes note of what a login has told; `None`: nothing. Returns whether the new connection's server is a replica.
    pub(super) fn met(&self, is_replica: Option<bool>) -> bool {
        if let Some(is_replica) = is_replica {
            self.is_replica.set(is_replica);
        }
        if is_replica == Some(false) {
            self.was_master.set(true);
            self.looked.set(None);
        }
        self.is_replica.get()
    }

    /// Whether the name may point to a master by now. The next time is later each time.
    fn may_look(&self, now: Instant) -> bool {
        let [first, longest] = PAUSES;
        let pause = match self.looked.get() {
            None if self.was_master.get() => first,
            None => longest,
            Some(_) => self.pause.get(),
        };
        let Some(last) = self.looked.get() else {
            self.looked.set(Some(now));
            self.pause.set(pause);
            return false;
        };
        if now.saturating_duration_since(last) < pause {
            return false;
        }
        self.looked.set(Some(now));
        self.pause.set((pause * 2).min(longest));
        true
    }
}

impl Pool {
    /// Looks after a lane on which a write was refused with READONLY.
    pub(super) fn tend_role(self: &Rc<Self>, lane: &Rc<Lane>, now: Instant) {
        if !lane.was_refused_a_write() {
            return;
        }
        if !lane.is_of_replica() {
            self.ask_for_the_role(lane, now);
        } else if self.roles.may_look(now) {
            tracing::info!("writes are refused by a replica; lanes are made anew where its name points now");
            self.leave_lanes();
        }
    }

    /// A server that was a master refuses writes: is it one no more? Lanes to a master that has become a replica leave, so
    /// that the next ones go where the name points now.
    fn ask_for_the_role(self: &Rc<Self>, lane: &Rc<Lane>, now: Instant) {
        if self.roles.asked.get().is_some_and(|at| now.saturating_duration_since(at) < ASKED_ONCE_IN) {
            return;
        }
        self.roles.asked.set(Some(now));
        let question = encode::one_command(&[b"ROLE"]);
        let pool = Rc::downgrade(self);
        let then = move |answer: Result<Vec<Bytes>, Lost>| {
            let Some(pool) = pool.upgrade() else { return };
            // An error: this user may not ask. The refusals of a server that was a master then speak for themselves.
            let is_master = answer.ok().and_then(|frames| {
                let role = resp::bulk(resp::elements(frames.first()?)?.next()?)?;
                Some(role == b"master")
            });
            if is_master != Some(true) {
                tracing::warn!(
                    "the server has become a replica; lanes are made anew where its name points now"
                );
                pool.roles.is_replica.set(true);
                pool.roles.was_master.set(true);
                pool.leave_lanes();
            }
        };
        lane.exchange(&question, 1, now, Box::new(then));
    }

    fn leave_lanes(&self) {
        for group in self.groups.borrow().values() {
            for lane in group.lanes() {
                // Those whose login did not tell the role would be asked about again and again.
                lane.belongs_to_a_replica();
                lane.leave(UpstreamClose::Moved);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(roles: &Roles, seconds: u64) -> Vec<u64> {
        let start = Instant::now();
        (0..seconds).filter(|&second| roles.may_look(start + Duration::from_secs(second))).collect()
    }

    #[test]
    fn after_a_demotion_the_pauses_grow_to_the_longest() {
        let roles = Roles::default();
        assert!(!roles.met(Some(false)));
        assert!(roles.met(Some(true)));
        assert_eq!(looks(&roles, 80), [1, 3, 7, 15, 30, 45, 60, 75]);
        // A master in between, and it begins anew.
        assert!(!roles.met(Some(false)));
        assert_eq!(looks(&roles, 8), [1, 3, 7]);
    }

    #[test]
    fn a_replica_from_the_beginning_is_left_rarely() {
        let roles = Roles::default();
        assert!(roles.met(Some(true)));
        assert_eq!(looks(&roles, 50), [15, 30, 45]);
    }
}
