//! A hub's connection: what others ask of it, and when it is left. Its task is in `task`.

mod task;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::driver::WakerSlot;
use super::super::{BlockingOptions, GiveBack};
use super::waiter::{Arrival, End, Unblock, Withdrawn};
use super::waitlist::{Times, Waitlist};
use crate::command::Blocking;
use crate::pool::{LaneKey, Pool};
use crate::telemetry::{TriedOn, UpstreamClose};
use crate::upstream::{Capability, Identity, OnLoss};

/// A connection that has been silent so long with requests outstanding is held.
const HELD: Duration = Duration::from_millis(10);
/// Redis's default for `tracking-table-max-keys`, taken for granted where the server does not say.
const TABLE: usize = 1_000_000;

/// The first version of Redis that keeps invalidations out of the reply that is being written.
const FIRST_VERSION: u32 = 7;

/// The hub of one user.
pub(super) struct Hub {
    pool: Rc<Pool>,
    user: u64,
    identity: Arc<Identity>,
    waitlist: RefCell<Waitlist>,
    bell: WakerSlot,
    leaving: Cell<Option<UpstreamClose>>,
    /// Until when its replies are waited for, where it leaves a server that may not answer.
    cut_at: Cell<Option<Instant>>,
    /// Of the connector when it was dialled.
    generation: Cell<u64>,
    /// Its permit is wanted by somebody who cannot do without.
    yielding: Cell<bool>,
    opened: Cell<Option<Instant>>,
    /// Since when there is no connection.
    away_since: Cell<Option<Instant>>,
    /// Since when nobody waits.
    idle_since: Cell<Option<Instant>>,
    /// When something last came from the server.
    heard: Cell<Instant>,
    swept: Cell<Instant>,
    /// Keys that may be watched: half of the server's tracking table.
    limit: Cell<usize>,
    tries: metrics::Counter,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub for the user of `arrival`, not yet connected. `None` where the server is known to be unfit.
    pub(super) fn new(
        pool: Rc<Pool>,
        options: &BlockingOptions,
        give_back: &Rc<GiveBack>,
        of_node: bool,
        arrival: &Arrival,
    ) -> Option<Rc<Self>> {
        if !is_fit(&pool, arrival.identity.name()) {
            return None;
        }
        let times = Times { grace: options.grace, stall: pool.shared.upstream.get().stall_timeout };
        let giver = Rc::clone(give_back);
        let give_back = Rc::new(move |key: LaneKey, identity: &Arc<Identity>, back: Option<Bytes>| {
            giver.send(key, identity, back);
        });
        let now = Instant::now();
        Some(Rc::new(Self {
            pool,
            user: arrival.key.user,
            identity: Arc::clone(&arrival.identity),
            waitlist: RefCell::new(Waitlist::new(times, give_back, of_node)),
            bell: WakerSlot::default(),
            leaving: Cell::new(None),
            cut_at: Cell::new(None),
            generation: Cell::new(0),
            yielding: Cell::new(false),
            opened: Cell::new(None),
            away_since: Cell::new(Some(now)),
            idle_since: Cell::new(None),
            heard: Cell::new(now),
            swept: Cell::new(now),
            limit: Cell::new(TABLE / 2),
            tries: metrics::counter!("redbouncer_blocking_tries_total", "on" => TriedOn::Hub.label()),
        }))
    }

    pub(super) fn arrive(&self, arrival: Arrival) -> Option<u64> {
        if self.yielding.get() {
            return None;
        }
        let mut waitlist = self.waitlist.borrow_mut();
        // The server keeps a write back, as CLIENT PAUSE lets it, and what is read behind it on this connection, too.
        if arrival.call.command == Blocking::XRead {
            let now = Instant::now();
            let is_long = |since: Duration| since > HELD;
            if waitlist.oldest(now).is_some_and(is_long)
                && is_long(now.saturating_duration_since(self.heard.get()))
            {
                return None;
            }
        }
        if !waitlist.has_room(self.limit.get()) {
            return None;
        }
        let id = waitlist.arrive(arrival, Instant::now());
        drop(waitlist);
        self.idle_since.set(None);
        self.bell.ring();
        id
    }

    pub(super) fn gone(&self, id: u64) {
        self.waitlist.borrow_mut().gone(id);
    }

    pub(super) fn unblock(&self, id: u64, how: Unblock) {
        self.waitlist.borrow_mut().unblock(id, how, Instant::now());
        self.bell.ring();
    }

    pub(super) fn withdraw(&self, id: u64) -> Option<Withdrawn> {
        self.waitlist.borrow_mut().withdraw(id)
    }

    pub(super) fn farewell(&self, id: u64) -> bool {
        self.waitlist.borrow_mut().farewell(id)
    }

    pub(super) fn dismiss(&self, how: &End) {
        self.waitlist.borrow_mut().dismiss(how);
    }

    /// Those who wait for keys of slots that are not here any more have to wait elsewhere.
    pub(super) fn leave_slots(&self, is_here: impl Fn(u16) -> bool) {
        self.waitlist.borrow_mut().leave_slots(is_here, &Bytes::new());
    }

    pub(super) fn in_flight(&self) -> usize {
        self.waitlist.borrow().in_flight()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waitlist.borrow().waiting()
    }

    pub(super) fn watched(&self) -> usize {
        self.waitlist.borrow().watched()
    }

    pub(super) fn user_name(&self) -> &str {
        self.identity.name()
    }

    pub(super) fn opened(&self) -> Option<Instant> {
        self.opened.get()
    }

    /// Whether it has had its turn.
    pub(super) fn may_yield(&self, now: Instant) -> bool {
        let turn = self.pool.shared.options.get().min_turn;
        self.opened.get().is_some_and(|at| now.saturating_duration_since(at) >= turn)
    }

    pub(super) fn yield_permit(&self) {
        self.yielding.set(true);
        self.leave(UpstreamClose::Turn);
    }

    /// The connection is closed when what is in flight has been answered.
    pub(super) fn leave(&self, reason: UpstreamClose) {
        if self.leaving.get().is_none() || reason == UpstreamClose::Shutdown {
            self.leaving.set(Some(reason));
            self.bell.ring();
        }
    }

    /// Another server is the master now: the connection is left, at the latest at `end`. A dial under way finds that out by
    /// itself.
    pub(super) fn depose(&self, end: Instant) {
        if self.opened.get().is_some() && self.leaving.get() != Some(UpstreamClose::Shutdown) {
            self.leaving.set(Some(UpstreamClose::Deposed));
            self.cut_at.set(Some(end));
            self.bell.ring();
        }
    }

    /// What waits here for a server that is not there learns it, as whoever sends a command does.
    fn tell_of_outage(&self, now: Instant) {
        let patience = self.pool.patience();
        let is_long_away =
            self.away_since.get().is_some_and(|since| now.saturating_duration_since(since) >= patience);
        if self.pool.shared.upstream.get().on_loss == OnLoss::Close
            && is_long_away
            && let (Some(away), Some(then)) = (self.pool.away(), now.checked_sub(patience))
        {
            self.waitlist.borrow_mut().dismiss_since(Some(then), &End::Unserved(away));
        }
    }

    pub(super) fn tick(&self, now: Instant, deserted: bool) {
        self.tell_of_outage(now);
        let mut waitlist = self.waitlist.borrow_mut();
        self.tries.increment(waitlist.take_tries());
        if waitlist.waiting() > 0 {
            self.idle_since.set(None);
        } else if self.idle_since.get().is_none() {
            self.idle_since.set(Some(now));
        }
        let options = self.pool.shared.options.get();
        let patience = if deserted { options.linger } else { options.idle_timeout };
        let idle = self.idle_since.get().is_some_and(|at| now.saturating_duration_since(at) >= patience);
        let heartbeat = self.pool.shared.heartbeat;
        if self.opened.get().is_some() && now.saturating_duration_since(self.swept.get()) >= heartbeat {
            self.swept.set(now);
            waitlist.sweep();
            self.bell.ring();
        }
        if self.cut_at.get().is_some_and(|at| at <= now) {
            self.bell.ring();
        }
        let stall = self.pool.shared.upstream.get().stall_timeout;
        let stalled = waitlist.oldest(now).is_some_and(|age| age > stall)
            && now.saturating_duration_since(self.heard.get()) > stall;
        drop(waitlist);
        if idle {
            self.leave(UpstreamClose::Idle);
        }
        if self.opened.get().is_some_and(|at| now.saturating_duration_since(at) >= options.max_lifetime) {
            self.leave(UpstreamClose::Lifetime);
        }
        if stalled {
            self.leaving.set(Some(UpstreamClose::Stalled));
            self.bell.ring();
        }
    }
}

/// Whether the server can serve a hub for `user`, as far as is known: RESP3, invalidations that never come inside a reply,
/// and the rights.
fn is_fit(pool: &Pool, user: &str) -> bool {
    let connector = &pool.shared.connector;
    let is_new_enough = connector.server().is_none_or(|server| {
        let major = server.version.split('.').next().and_then(|major| major.parse().ok());
        major.is_none_or(|major: u32| major >= FIRST_VERSION)
    });
    let needs = [Capability::Tracking, Capability::Transactions];
    is_new_enough
        && connector.speaks_resp3(user)
        && !needs.iter().any(|what| connector.missing_capabilities().has(*what, user))
}
