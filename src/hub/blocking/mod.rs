//! The blocking hub: any number of blocked clients on one upstream connection per user.
//!
//! `waitlist` decides (pure), `connection` carries its bytes, this file keeps one hub for every user who needs one.
//! Where a hub cannot work (no RESP3, CLIENT TRACKING or MULTI refused, no connection to be had) a call is refused here
//! and its client goes about it otherwise.

mod connection;
mod waiter;
mod waitlist;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Duration;

use super::driver::Ended;
use super::hub_row::HubRow;
use super::{BlockingOptions, GiveBack};
use crate::pool::{Kind, Pool};
use crate::telemetry::UpstreamClose;

use connection::Hub;
use tokio::time::Instant;
pub use waiter::{Arrival, End, Unblock, Waiting, Withdrawn};
#[cfg(any(test, fuzzing))]
pub(crate) use waitlist::property::holds as waitlist_property;

/// How long a user without a connection for its hub is served otherwise before the next look.
const NO_PERMIT: Duration = Duration::from_secs(1);
/// A refusal is believed for this long at the least.
const SHORTEST_TTL: Duration = Duration::from_secs(1);

/// The blocking hubs of all users.
pub struct BlockingHubs {
    pool: Rc<Pool>,
    options: Cell<BlockingOptions>,
    give_back: Rc<GiveBack>,
    hubs: RefCell<BTreeMap<u64, Rc<Hub>>>,
    /// Users who may not use a hub, until they are asked again.
    refused: RefCell<HashMap<u64, Instant>>,
    /// How long a refusal is believed (`auth.cache_ttl`, at least a second).
    ttl: Cell<Duration>,
    /// The server is a node of a cluster.
    of_node: bool,
}

/// A place in a hub. Dropping it leaves: nothing is popped for it any more.
#[derive(Debug)]
pub struct Seat {
    hub: Rc<Hub>,
    id: u64,
}

impl Seat {
    /// CLIENT UNBLOCK.
    pub fn unblock(&self, how: Unblock) {
        self.hub.unblock(self.id, how);
    }

    /// Takes the call out of the hub, if nothing is in flight for it: nothing is popped for it here any more.
    #[must_use]
    pub fn withdraw(&self) -> Option<Withdrawn> {
        self.hub.withdraw(self.id)
    }

    /// The client has closed its side. `true`: its call has found nothing, and nobody waits for it any more. `false`:
    /// that is still to be seen; a call that finds nothing ends with nil.
    #[must_use]
    pub fn farewell(&self) -> bool {
        self.hub.farewell(self.id)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.hub.gone(self.id);
    }
}

impl std::fmt::Debug for BlockingHubs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockingHubs").field("hubs", &self.hubs.borrow().len()).finish_non_exhaustive()
    }
}

impl BlockingHubs {
    /// No hubs yet; each is opened by the first call that needs it.
    #[must_use]
    pub fn new(
        pool: Rc<Pool>,
        options: BlockingOptions,
        give_back: Rc<GiveBack>,
        refusal_ttl: Duration,
        of_node: bool,
    ) -> Rc<Self> {
        Rc::new(Self {
            of_node,
            pool,
            options: Cell::new(options),
            give_back,
            hubs: RefCell::default(),
            refused: RefCell::default(),
            ttl: Cell::new(refusal_ttl.max(SHORTEST_TTL)),
        })
    }

    /// Those of another node of the cluster, with the same settings.
    #[must_use]
    pub fn beside(&self, pool: &Rc<Pool>) -> Rc<Self> {
        Self::new(Rc::clone(pool), self.options.get(), Rc::clone(&self.give_back), self.ttl.get(), true)
    }

    /// Those who wait for keys of slots that are not here any more have to wait elsewhere.
    pub fn leave_slots(&self, is_here: impl Fn(u16) -> bool) {
        for hub in self.hubs.borrow().values() {
            hub.leave_slots(&is_here);
        }
    }

    /// Other settings, for hubs that are opened from now on, and for refusals and elements at once.
    pub fn configure(&self, options: BlockingOptions, refusal_ttl: Duration) {
        self.options.set(options);
        self.ttl.set(refusal_ttl.max(SHORTEST_TTL));
        self.give_back.enable(options.give_back);
    }

    /// Lets a call wait. `None`: not here.
    #[must_use]
    pub fn arrive(self: &Rc<Self>, arrival: Arrival) -> Option<Seat> {
        let user = arrival.key.user;
        if !self.options.get().hub || self.is_refused(user) {
            return None;
        }
        let known = self.hubs.borrow().get(&user).cloned();
        let hub = match known {
            Some(hub) => hub,
            None => {
                let hub = Hub::new(
                    Rc::clone(&self.pool),
                    &self.options.get(),
                    &self.give_back,
                    self.of_node,
                    &arrival,
                )?;
                self.hubs.borrow_mut().insert(user, Rc::clone(&hub));
                self.pool.tasks().spawn_local(Rc::clone(self).keep(user, Rc::clone(&hub)));
                hub
            }
        };
        let id = hub.arrive(arrival)?;
        Some(Seat { hub, id })
    }

    /// Runs a hub until nobody needs it, or it turns out not to work.
    async fn keep(self: Rc<Self>, user: u64, hub: Rc<Hub>) {
        let ended = hub.run().await;
        self.hubs.borrow_mut().remove(&user);
        let silence = match ended {
            Ended::Done => None,
            Ended::Refused => Some(self.ttl.get()),
            Ended::NoPermit => Some(NO_PERMIT),
        };
        if let Some(silence) = silence {
            let now = Instant::now();
            let mut refused = self.refused.borrow_mut();
            refused.retain(|_, until| *until > now);
            refused.insert(user, now + silence);
        }
        // After its removal, so that a client which comes back at once does not meet it again.
        hub.dismiss(&End::Fallback);
    }

    fn is_refused(&self, user: u64) -> bool {
        self.refused.borrow().get(&user).is_some_and(|until| *until > Instant::now())
    }

    /// What must be done every tenth of a second: heartbeats, stalls, hubs that nobody needs. `deserted`: no client is
    /// connected at all.
    pub fn tick(&self, now: Instant, deserted: bool) {
        for hub in self.hubs.borrow().values() {
            hub.tick(now, deserted);
        }
    }

    /// The connections are to be made anew (the server's address has changed).
    pub fn leave_all(&self, reason: UpstreamClose) {
        for hub in self.hubs.borrow().values() {
            hub.leave(reason);
        }
    }

    /// Another server is the master now: connections are made anew there, and replies of this one are waited for until `end`.
    pub fn depose(&self, end: Instant) {
        for hub in self.hubs.borrow().values() {
            hub.depose(end);
        }
    }

    /// The server no longer lets `user` in, and those who waited have gone.
    pub fn leave_user(&self, user: u64, reason: UpstreamClose) {
        self.refused.borrow_mut().remove(&user);
        if let Some(hub) = self.hubs.borrow().get(&user) {
            hub.leave(reason);
        }
    }

    /// How many requests are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.hubs.borrow().values().map(|hub| hub.in_flight()).sum()
    }

    /// How many calls wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.hubs.borrow().values().map(|hub| hub.waiting()).sum()
    }

    /// How many keys are watched.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.hubs.borrow().values().map(|hub| hub.watched()).sum()
    }

    /// The hubs, for listings.
    pub fn rows(&self, worker: usize) -> Vec<HubRow> {
        let hubs = self.hubs.borrow();
        let rows = hubs.values().map(|hub| HubRow {
            worker,
            node: None,
            kind: Kind::Blocking,
            user: hub.user_name().to_owned(),
            open_for: hub.opened().map(|at| at.elapsed()),
            waiting: hub.waiting(),
            names: hub.watched(),
            in_flight: hub.in_flight(),
        });
        rows.collect()
    }

    /// Gives a hub's open permit to those who cannot do without: its waiters go on by tries.
    pub fn yield_open_permits(&self, wanted: usize, now: Instant) {
        let beyond = self.pool.shared.budget.hubs_above_floor();
        let hubs = self.hubs.borrow();
        let mut oldest: Vec<_> = hubs.values().filter(|hub| hub.may_yield(now)).collect();
        oldest.sort_by_key(|hub| hub.opened());
        for hub in oldest.into_iter().take(wanted.min(beyond)) {
            hub.yield_permit();
        }
    }
}
