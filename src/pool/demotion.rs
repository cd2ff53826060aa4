//! Lanes to a server that refuses writes are left, so that the next ones go where its name points now; and a server that has
//! become a replica is not used while another one is about to take its place.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Kind, Lane, Lost, Pool};
use crate::resp::{self, encode};
use crate::telemetry::{UpstreamClose, seconds};
use crate::upstream::{DialError, Established};

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
        if lane.has_held_back() {
            self.has_become_a_replica(lane);
        } else if !lane.is_of_replica() {
            self.ask_for_the_role(lane, now);
        } else if self.roles.may_look(now) {
            tracing::info!("a replica refuses writes; lanes are reopened at the current address of its name");
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
        let (pool, asked) = (Rc::downgrade(self), Rc::clone(lane));
        let then = move |answer: Result<Vec<Bytes>, Lost>| {
            let Some(pool) = pool.upgrade() else { return };
            // An error: this user may not ask. The refusals of a server that was a master then speak for themselves.
            let is_master = answer.ok().and_then(|frames| {
                let role = resp::bulk(resp::elements(frames.first()?)?.next()?)?;
                Some(role == b"master")
            });
            if is_master != Some(true) {
                pool.has_become_a_replica(&asked);
            }
        };
        lane.exchange(&question, 1, now, Box::new(then));
    }

    /// The server of `lane` has been a master and is none now.
    fn has_become_a_replica(&self, lane: &Lane) {
        self.roles.is_replica.set(true);
        self.roles.was_master.set(true);
        let mastership = &self.shared.mastership;
        // Where no login tells the role, none would tell that there is a master again.
        if lane.of_master().is_none_or(|demotions| mastership.is_lost(demotions)) {
            tracing::warn!(
                "the server has become a replica; lanes are reopened at the current address of its name"
            );
        }
        if lane.of_master().is_none() {
            self.leave_lanes();
        }
        self.heed_demotions();
    }

    /// Looks after all lanes on which a write was refused.
    pub fn heed_refusals(self: &Rc<Self>, now: Instant) {
        let groups: Vec<_> = self.groups.borrow().values().cloned().collect();
        for lane in groups.iter().flat_map(|group| group.lanes()) {
            self.tend_role(&lane, now);
        }
    }

    /// Lanes that were made before the last demotion are left, whichever worker has noticed it.
    pub(super) fn heed_demotions(&self) {
        let demotions = self.shared.mastership.demotions();
        if self.roles.heeded.replace(demotions) == demotions {
            return;
        }
        self.roles.was_master.set(true);
        for lane in self.groups.borrow().values().flat_map(|group| group.lanes()) {
            if lane.of_master() != Some(demotions) {
                lane.belongs_to_a_replica();
                lane.leave(UpstreamClose::Moved);
            }
        }
    }

    /// Takes note of the role that a login has shown; `demotions` were known when its dial began. A replica is turned away
    /// while a master is awaited, but not for a hub: those who wait there learn of the demotion by it.
    ///
    /// # Errors
    /// It is turned away.
    pub(super) async fn unless_demoted(
        &self,
        established: Established,
        kind: Kind,
        demotions: u64,
    ) -> Result<Established, DialError> {
        let (mastership, upstream) = (&self.shared.mastership, self.shared.upstream.get());
        match established.server.is_replica() {
            Some(true)
                if matches!(kind, Kind::Lane | Kind::Lease)
                    && mastership.is_awaited(upstream.failover_wait) =>
            {
                super::closing::turn_away(established.stream, upstream.close_timeout).await;
                Err(DialError::Demoted { peer: established.peer })
            }
            Some(false) if demotions == mastership.demotions() => {
                if let Some(after) = mastership.met_a_master() {
                    tracing::warn!(after_seconds = seconds(after), "a master is reached again");
                }
                Ok(established)
            }
            Some(_) | None => Ok(established),
        }
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
