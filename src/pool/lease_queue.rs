//! Leases that have ended clean: handed to the next session that waits for the same key, or parked for a moment.

use std::rc::Rc;

use tokio::time::Instant;

use super::{Claim, LaneKey, Lease, Pool};
use crate::telemetry::UpstreamClose;

impl Pool {
    /// Closes `lease` in order, or hands it on: when `clean`, to the next session that waits for the same key, or to
    /// the next of the same key within `pool.linger`. `gone` is when the client left, where it did.
    pub fn end_lease(
        self: &Rc<Self>,
        lease: Lease,
        clean: bool,
        reason: UpstreamClose,
        gone: Option<Instant>,
    ) {
        if self.renewed.get().is_some_and(|at| lease.opened <= at) {
            return self.close(lease.stream, lease.permit, UpstreamClose::Reconnect, gone);
        }
        let young = lease.opened.elapsed() < self.shared.options.get().max_lifetime;
        let current = lease.generation == self.shared.connector.generation();
        let fits = !self.shared.budget.is_above_limit();
        if clean && gone.is_none() && young && current && fits && !self.is_stopping() && lease.is_quiet() {
            self.keep_lease(lease);
        } else {
            self.close(lease.stream, lease.permit, reason, gone);
        }
    }

    fn keep_lease(self: &Rc<Self>, lease: Lease) {
        let mut waiters = self.lease_waiters.borrow_mut();
        waiters.retain(|waiter| !waiter.hand.is_closed());
        lease.permit.stands(false);
        let next = waiters.iter().position(|waiter| {
            waiter.key == lease.key
                && self.shared.budget.is_next(waiter.ticket)
                && (!waiter.stands || lease.permit.may_stand())
        });
        let lease = match next.map(|at| waiters.remove(at)) {
            Some(waiter) => match waiter.hand.send(Ok(lease)) {
                Err(Ok(lease)) => lease,
                Ok(()) | Err(Err(_)) => return,
            },
            None => lease,
        };
        lease.permit.stands(false);
        drop(waiters);
        if self.shared.budget.pressure().any() {
            self.close(lease.stream, lease.permit, UpstreamClose::LeaseEnded, None);
        } else {
            lease.permit.describe("parked");
            self.parked.borrow_mut().push((Instant::now(), lease));
        }
    }

    /// A clean connection of `key` that was held a moment ago, if it is still good and `claim` may have it.
    #[must_use]
    pub fn parked_lease(self: &Rc<Self>, key: LaneKey, claim: Claim) -> Option<Lease> {
        loop {
            let mut parked = self.parked.borrow_mut();
            let at = parked.iter().rposition(|(_, lease)| lease.key == key)?;
            let (_, lease) = parked.swap_remove(at);
            drop(parked);
            if !lease.is_quiet() {
                self.close(lease.stream, lease.permit, UpstreamClose::Lost, None);
                continue;
            }
            if claim.stands() && !lease.permit.may_stand() {
                // Somebody else may.
                self.parked.borrow_mut().push((Instant::now(), lease));
                return None;
            }
            return Some(lease);
        }
    }
}
