//! The right to one upstream connection, and the place of those who wait for it.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::holder::Occupant;
use super::ledger::Grant;
use super::{Budget, Claim, Holder, Holding, Kind, Phase};
use crate::pool::queue::Waiting;
use crate::telemetry::{UpstreamClose, upstream_closed};

/// A place in a queue of the budget. Dropping it leaves the queue; a permit granted meanwhile goes to the next.
#[derive(Debug)]
pub struct Place {
    ticket: u64,
    user: u64,
    address: Option<IpAddr>,
    claim: Claim,
    since: Instant,
    granted: oneshot::Receiver<u64>,
    budget: Arc<Budget>,
}

/// The right to one upstream connection. Held until the socket is closed, given back by dropping.
#[derive(Debug)]
pub struct Permit {
    id: u64,
    kind: Kind,
    budget: Option<Arc<Budget>>,
}

impl Place {
    /// The number of this place, for [`Budget::is_next`].
    #[must_use]
    pub fn ticket(&self) -> u64 {
        self.ticket
    }

    /// The permit, when it is this place's turn. The caller sets the deadline.
    pub async fn granted(&mut self) -> Option<Permit> {
        let id = (&mut self.granted).await.ok()?;
        Some(self.permit(id))
    }

    fn permit(&self, id: u64) -> Permit {
        Permit { id, kind: self.claim.kind(), budget: Some(Arc::clone(&self.budget)) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.granted.close();
        if let Some(seconds) = self.budget.waits.lock().get(self.claim as usize) {
            seconds.record(self.since.elapsed());
        }
        let mut state = self.budget.state.lock();
        state.queue(self.claim).remove(self.ticket, self.user, self.address);
        self.budget.serve(&mut state);
        drop(state);
        // A permit that was granted but never taken is dropped here, after the lock: it gives itself back.
        drop(self.granted.try_recv().map(|id| self.permit(id)));
    }
}

impl Permit {
    /// What the connection is for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Begins a dial. A new one under the same permit is the end of the connection before.
    pub fn dials(&self) {
        let mut before = None;
        self.change(|row| {
            before = Some(row.clone());
            row.phase = Phase::Dialling;
            (row.on_server, row.uncounted) = (false, false);
        });
        if let (Some(budget), Some(before)) = (&self.budget, before) {
            if before.on_server {
                budget.doubt_share();
            }
            budget.note_the_end(&before);
        }
    }

    /// Its orderly close begins.
    pub(in crate::pool) fn closing(&self) {
        self.change(|row| row.phase = Phase::Closing);
        if let Some(budget) = self.budget.as_ref().filter(|_| self.kind == Kind::Control) {
            // What it registers goes with it.
            budget.doubt_share();
        }
    }

    /// The connection is given up, for this reason. Counted once for each connection; one that ends without
    /// a word from whoever had it counts as cut.
    pub fn closes(&self, reason: UpstreamClose) {
        let mut first = false;
        self.change(|row| first = std::mem::take(&mut row.uncounted));
        if first {
            upstream_closed(self.kind.label(), reason);
        }
    }

    /// The connection is logged in; `id` is its client id on the server, where that tells, and `local_port` is ours.
    pub fn opened(&self, id: Option<u64>, local_port: Option<u16>) {
        self.change(|row| {
            row.phase = Phase::Open;
            (row.on_server, row.uncounted) = (true, true);
            (row.id, row.local_port) = (id, local_port);
        });
    }

    /// The connection's client id on the server, where that tells.
    #[must_use]
    pub fn client_id(&self) -> Option<u64> {
        self.budget.as_ref()?.state.lock().holdings.get(&self.id)?.id
    }

    /// The server has answered our end of file with its own: nothing is left of the connection there.
    pub fn ended(&self) {
        self.change(|row| row.on_server = false);
    }

    /// Says who holds the connection now, and why: shown in listings and in the full-pool error.
    pub fn describe<'a>(&self, holder: impl Into<Holder<'a>>) {
        let who = Occupant::from(holder.into().who);
        self.change(|row| {
            row.who = who;
            row.since = Instant::now();
            row.is_told_of = false;
        });
    }

    /// A lease begins to stand. `false`: no more may.
    #[must_use]
    pub fn may_stand(&self) -> bool {
        let Some(budget) = &self.budget else { return false };
        let mut state = budget.state.lock();
        let Some((stands, user)) = state.holdings.get(&self.id).map(|row| (row.stands, row.user)) else {
            return false;
        };
        if !stands && !state.may_stand(user) {
            return false;
        }
        state.set_standing(self.id, true);
        true
    }

    /// Says whether a lease stands, however many do.
    pub fn stands(&self, stands: bool) {
        if let Some(budget) = &self.budget {
            let mut state = budget.state.lock();
            state.set_standing(self.id, stands);
            if !stands {
                budget.serve(&mut state);
            }
        }
    }

    fn change(&self, how: impl FnOnce(&mut Holding)) {
        if let Some(budget) = &self.budget
            && let Some(row) = budget.state.lock().holdings.get_mut(&self.id)
        {
            how(row);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(budget) = self.budget.take() {
            let mut state = budget.state.lock();
            let held = state.give_back(self.id, self.kind);
            if held.as_ref().is_some_and(|held| held.on_server) {
                // Where one connection is lost, the control connection may be, too.
                budget.doubt(&mut state);
            }
            budget.serve(&mut state);
            drop(state);
            if let Some(held) = held {
                budget.note_the_end(&held);
            }
        }
    }
}

impl Budget {
    /// A permit now, or none. Never overtakes those who wait.
    #[must_use]
    pub fn try_acquire<'a>(self: &Arc<Self>, kind: Kind, holder: impl Into<Holder<'a>>) -> Option<Permit> {
        let holder = holder.into();
        let mut state = self.state.lock();
        let somebody_waits = match kind {
            Kind::Control => false,
            Kind::Lane => state.first(Claim::Lane).is_some(),
            Kind::Lease | Kind::Blocking | Kind::PubSub if self.is_within_floor(&state, kind) => false,
            Kind::Lease | Kind::Blocking | Kind::PubSub => state.anybody_waits(),
        };
        if somebody_waits || !state.has_share(holder.user) || !self.has_room(&state, kind) {
            self.note_missed(&mut state, kind);
            return None;
        }
        let id = state.grant(kind, (holder.user, false), holder.who.into());
        Some(Permit { id, kind, budget: Some(Arc::clone(self)) })
    }

    /// A place in the queue for `claim`, granted at once when there is room. `holder` says in listings who it is for.
    #[must_use]
    pub fn queue<'a>(self: &Arc<Self>, claim: Claim, holder: impl Into<Holder<'a>>) -> Place {
        let holder = holder.into();
        let (hand, granted) = oneshot::channel();
        let mut state = self.state.lock();
        state.next += 1;
        let ticket = state.next;
        state.queue(claim).push(Waiting {
            ticket,
            user: holder.user,
            address: holder.address,
            grant: Grant { holder: holder.who.into(), hand },
        });
        self.serve(&mut state);
        drop(state);
        let (user, address, budget) = (holder.user, holder.address, Arc::clone(self));
        Place { ticket, user, address, claim, since: Instant::now(), granted, budget }
    }

    /// What was held is no more.
    fn note_the_end(&self, was: &Holding) {
        if was.uncounted {
            upstream_closed(was.kind.label(), UpstreamClose::Cut);
        }
        if was.on_server {
            self.lost.notify_one();
        }
    }
}
