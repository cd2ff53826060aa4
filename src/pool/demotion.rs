//! Lanes to a server that refuses writes are left, so that the next ones go where its name points now.

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

impl Pool {
    /// Looks after a lane on which a write was refused with READONLY.
    pub(super) fn tend_role(self: &Rc<Self>, lane: &Rc<Lane>, now: Instant) {
        if !lane.was_refused_a_write() {
            return;
        }
        self.shared.health.doubt();
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
