//! The one cap over upstream connections of every kind.
//!
//! Every connection, from before its dial until its socket is closed, holds a [`Permit`]; the permit gives itself back
//! when it is dropped, so no error path can leak one. Workers share the budget and nothing else of the pool, and only
//! when a connection is made or ends: it is never touched by a command that goes over a lane.

mod fleet;
mod full;
mod holder;
mod kinds;
mod ledger;
mod permit;
mod shown;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::queue::Queue;
use crate::telemetry::Seconds;
pub use fleet::FleetDemand;
pub use full::KindUse;
pub use holder::{Holder, HoldingClient, Who};
pub use kinds::{Claim, Holding, Hubs, Kind, Phase, Pressure, RefusedClients};
pub use ledger::FleetShare;
use ledger::{Grant, Share, State};
pub use permit::{Permit, Place};

/// A smaller cap than this has smaller floors.
const SMALL: usize = 6;

/// The cap and what is held under it.
#[derive(Debug)]
pub struct Budget {
    cap: AtomicUsize,
    workers: usize,
    hubs: Hubs,
    state: Mutex<State>,
    pressure: watch::Sender<Pressure>,
    lost: Notify,
    share_wanted: Notify,
    refused: Mutex<Option<RefusedClients>>,
    /// How long permits were waited for, by claim.
    waits: Mutex<[Seconds; Claim::ALL.len()]>,
}

impl Budget {
    /// A budget of `cap` connections for `workers` worker threads. Floors, never lent to another kind: one control
    /// connection, lanes max(2, workers) (one lane when the cap is below 6), and for each worker one connection of each
    /// hub in use (with a cap of 4 only of the first of them).
    #[must_use]
    pub fn new(cap: usize, workers: usize, hubs: Hubs) -> Arc<Self> {
        let mut state = State::default();
        state.bound(cap, floors(cap, workers, hubs));
        Arc::new(Self {
            cap: AtomicUsize::new(cap),
            workers,
            hubs,
            state: Mutex::new(state),
            pressure: watch::Sender::new(Pressure::default()),
            lost: Notify::new(),
            share_wanted: Notify::new(),
            refused: Mutex::default(),
            waits: Mutex::new(Claim::ALL.map(|_| Seconds::long())),
        })
    }

    /// The cap.
    #[must_use]
    pub fn cap(&self) -> usize {
        self.cap.load(Ordering::Relaxed)
    }

    /// Whether the cap may become `cap` while connections are open: floors do not change with it.
    #[must_use]
    pub fn may_become(&self, cap: usize) -> bool {
        let is_small = |cap: usize| cap < SMALL;
        cap == self.cap()
            || !is_small(cap)
                && !is_small(self.cap())
                && floors(cap, self.workers, self.hubs).iter().sum::<usize>() < cap
    }

    /// Changes the cap. With a smaller one nothing is closed for it: what is held beyond it is not replaced when it ends, and
    /// others who wait have it released as ever.
    pub fn resize(&self, cap: usize) {
        let mut state = self.state.lock();
        self.cap.store(cap, Ordering::Relaxed);
        self.rebound(&mut state);
        self.serve(&mut state);
    }

    /// How many permits only this kind gets.
    #[must_use]
    pub fn floor(&self, kind: Kind) -> usize {
        self.state.lock().floors[kind as usize]
    }

    /// How many permits there are now: the cap, but for what another process may hold of it.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.state.lock().limit
    }

    /// Keeps at most so many permits and leaves the others to the process that takes over, or takes them back (`None`). What is
    /// held is kept until it closes; whoever holds more than he needs is asked to give it up.
    pub fn keep(&self, kept: Option<usize>) {
        let mut state = self.state.lock();
        state.kept = kept;
        self.rebound(&mut state);
    }

    /// The process before this one still has so many permits of the cap.
    pub fn set_elsewhere(&self, elsewhere: usize) {
        let mut state = self.state.lock();
        state.elsewhere = elsewhere;
        self.rebound(&mut state);
    }

    /// How many permits the process before this one still has.
    #[must_use]
    pub fn elsewhere(&self) -> usize {
        self.state.lock().elsewhere
    }

    /// How many permits this process and those before it hold or may still grant. It only falls while fewer and fewer are
    /// [kept](Self::keep).
    #[must_use]
    pub fn ceiling(&self) -> usize {
        let state = self.state.lock();
        state.limit.max(state.holdings.len()) + state.elsewhere
    }

    fn rebound(&self, state: &mut State) {
        let unshared = self.unshared_limit(state);
        let limit = state.fleet.map_or(unshared, |part| part.share.min(unshared));
        if state.limit != limit {
            let mut floors = floors(limit, self.workers, self.hubs);
            if state.fleet.is_some() && limit <= 2 {
                // Without the control connection there would be nothing at all.
                floors = [0; Kind::ALL.len()];
                floors[Kind::Control as usize] = limit.min(1);
                floors[Kind::Lane as usize] = limit.saturating_sub(1);
            }
            state.bound(limit, floors);
            self.serve(state);
        }
    }

    /// How many permits are open to leases, and to lanes and hubs beyond their floors.
    #[must_use]
    pub fn open_permits(&self) -> usize {
        self.state.lock().open_permits()
    }

    /// How many lanes the cap, and this instance's share of a limit for all, allow for, if nothing else takes an open permit.
    #[must_use]
    pub fn lanes_at_most(&self) -> usize {
        let cap = self.state.lock().fleet.map_or(self.cap(), |part| part.share.min(self.cap()));
        let floors = floors(cap, self.workers, self.hubs);
        let others = floors.iter().sum::<usize>() - floors[Kind::Lane as usize];
        cap.saturating_sub(others)
    }

    /// Leases that stand, that is, last for as long as their clients please (MONITOR, CLIENT TRACKING, a blocking call …), and
    /// how many may at the same time.
    #[must_use]
    pub fn standing(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.standing, state.standing_max)
    }

    /// How long permits were waited for, by claim: until there was one, another connection was handed over, or nobody waited any
    /// more.
    #[must_use]
    pub fn waits(&self) -> Vec<(&'static str, Seconds)> {
        let waits = self.waits.lock();
        Claim::ALL.iter().zip(&*waits).map(|(claim, seconds)| (claim.label(), seconds.clone())).collect()
    }

    /// Watches how many wait, so that a worker can give up what it does not need.
    #[must_use]
    pub fn watch_pressure(&self) -> watch::Receiver<Pressure> {
        self.pressure.subscribe()
    }

    /// Whether `place` is the one that the next open permit of its kind goes to.
    #[must_use]
    pub fn is_next(&self, place: u64) -> bool {
        let state = self.state.lock();
        let [lease, standing, blocking] =
            [Claim::Lease, Claim::StandingLease, Claim::BlockingLease].map(|claim| state.first(claim));
        let first = [lease, standing].contains(&Some(place))
            || lease.is_none() && standing.is_none() && blocking == Some(place);
        state.first(Claim::Lane).is_none() && state.first(Claim::PubSub).is_none() && first
    }

    /// Bounds what `user` may hold at the same time; `None` leaves it to the cap. What it holds already it keeps.
    pub fn limit_user(self: &Arc<Self>, user: u64, limit: Option<usize>) {
        let mut state = self.state.lock();
        let (mut held, mut standing) = (0, 0);
        for row in state.holdings.values().filter(|row| row.user == user) {
            held += 1;
            standing += usize::from(row.stands);
        }
        match limit {
            Some(limit) => drop(state.users.insert(user, Share { held, limit, standing })),
            None => drop(state.users.remove(&user)),
        }
        self.serve(&mut state);
    }

    /// The users for whom somebody waits only because of the user's own cap: they must make room among themselves.
    #[must_use]
    pub fn crowded(&self) -> Vec<u64> {
        let state = self.state.lock();
        if state.users.is_empty() {
            return Vec::new();
        }
        let waiting = state.queues().flat_map(Queue::users);
        let mut users: Vec<_> =
            waiting.map(|(user, _)| user).filter(|user| !state.has_share(*user)).collect();
        users.sort_unstable();
        users.dedup();
        users
    }

    /// Every connection that holds a permit, oldest first.
    #[must_use]
    pub fn holdings(&self) -> Vec<Holding> {
        let mut rows: Vec<_> = self.state.lock().holdings.values().cloned().collect();
        rows.sort_by_key(|row| row.since);
        rows
    }

    /// The client ids, on the server, of all connections that are logged in. `None` when the server does not tell them.
    #[must_use]
    pub fn ids(&self) -> Option<HashSet<u64>> {
        let state = self.state.lock();
        state.holdings.values().filter(|row| row.on_server).map(|row| row.id).collect()
    }

    /// Whether others would see that we live if there were no lanes: the control connection is there to show it, or
    /// nothing is held that could be taken for a dead one's.
    #[must_use]
    pub fn can_do_without_lanes(&self) -> bool {
        let state = self.state.lock();
        let mut open = state.holdings.values().filter(|row| row.phase == Phase::Open).map(|row| row.kind);
        let mut silent = false;
        open.any(|kind| {
            silent |= kind != Kind::Lane;
            kind == Kind::Control
        }) || !silent
    }

    /// Whether a dial is under way, or about to be: a connection that the server lists may not be known here yet.
    #[must_use]
    pub fn is_dialling(&self) -> bool {
        self.state.lock().holdings.values().any(|row| row.phase == Phase::Dialling)
    }

    /// Waits until a connection is lost whose end the server may not have seen: until the next one, or at once when
    /// there has been one since the last time.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }

    /// How many wait.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        *self.pressure.borrow()
    }

    /// How many connections hold a permit.
    #[must_use]
    pub fn held(&self) -> usize {
        self.state.lock().holdings.len()
    }

    /// How many connections are on their way out: their permits come back by themselves.
    #[must_use]
    pub fn closing(&self) -> usize {
        self.state.lock().closing()
    }

    /// Whether more is held than there may be now, what closes already left out: what becomes free is to be closed, not handed on.
    #[must_use]
    pub fn is_above_limit(&self) -> bool {
        let state = self.state.lock();
        state.holdings.len() > state.limit && state.holdings.len() - state.closing() > state.limit
    }

    /// How many lanes there are beyond those that only lanes may be.
    #[must_use]
    pub fn lanes_above_floor(&self) -> usize {
        self.above_floor(&self.state.lock(), Kind::Lane)
    }

    /// How many blocking hubs there are beyond the one that only a hub may be.
    #[must_use]
    pub fn hubs_above_floor(&self) -> usize {
        self.above_floor(&self.state.lock(), Kind::Blocking)
    }

    /// Whether a permit for `user` has to wait, for others or for the user's own.
    #[must_use]
    pub fn is_full_for(&self, user: u64) -> bool {
        self.pressure().any() || !self.state.lock().has_share(user)
    }

    fn above_floor(&self, state: &State, kind: Kind) -> usize {
        state.held[kind as usize].saturating_sub(state.floors[kind as usize])
    }

    fn is_within_floor(&self, state: &State, kind: Kind) -> bool {
        state.held[kind as usize] < state.floors[kind as usize]
    }

    /// How many open permits are taken.
    fn open_used(&self, state: &State) -> usize {
        Kind::ALL.iter().map(|kind| self.above_floor(state, *kind)).sum()
    }

    fn has_room(&self, state: &State, kind: Kind) -> bool {
        if let Some(may) = self.may_grant(state, kind) {
            return may;
        }
        if state.holdings.len() >= state.limit {
            return false;
        }
        self.is_within_floor(state, kind)
            || (kind != Kind::Control && self.open_used(state) < state.open_permits())
    }

    /// Grants what can be granted: first what lies within a floor, which nobody else can use; then the queues in turn.
    fn serve(&self, state: &mut State) {
        while let Some(claim) = self.next_claim(state) {
            let kind = claim.kind();
            if !self.is_within_floor(state, kind) {
                state.last = Some(claim);
            }
            let Some(waiting) = state.pop(claim) else { break };
            let Grant { holder, hand } = waiting.grant;
            let id = state.grant(kind, (waiting.user, claim.stands()), holder);
            if hand.send(id).is_err() {
                state.give_back(id, kind);
            }
        }
        // Who waits for its own user's share is not helped by what others give up.
        let count = |claim: Claim| -> usize {
            let users = state.queue_of(claim).users();
            users.filter(|(user, _)| state.may_have(claim, *user)).map(|(_, count)| count).sum()
        };
        // Nor is a lease that would stand, beyond those that may.
        let left = state.standing_max.saturating_sub(state.standing);
        let lasting = count(Claim::StandingLease).min(left);
        let all = state.standing_leases.users().filter(|(user, _)| state.has_share(*user));
        // What another process waits for counts as leases do: nothing else may stand in for it.
        let too_many = state.holdings.len().saturating_sub(state.limit);
        let now = Pressure {
            lanes: count(Claim::Lane),
            leases: count(Claim::Lease) + lasting + too_many,
            hubs: count(Claim::PubSub),
            blocking: count(Claim::BlockingLease),
            standing: all.map(|(_, count)| count).sum::<usize>() - lasting,
        };
        if state.fleet.is_some() && state.anybody_waits() {
            self.share_wanted.notify_one();
        }
        self.pressure.send_if_modified(|was| std::mem::replace(was, now) != now);
    }

    fn next_claim(&self, state: &mut State) -> Option<Claim> {
        let mut in_turn = [Claim::Lane, Claim::PubSub, Claim::Lease, Claim::StandingLease];
        if let Some(at) = state.last.and_then(|last| in_turn.iter().position(|claim| *claim == last)) {
            in_turn.rotate_left(at + 1);
        }
        let mut waiting = in_turn.to_vec();
        waiting.push(Claim::BlockingLease);
        waiting.retain(|claim| state.first(*claim).is_some() && self.has_room(state, claim.kind()));
        let within = waiting.iter().find(|claim| self.is_within_floor(state, claim.kind()));
        within.or(waiting.first()).copied()
    }
}

/// How many permits only one kind gets, where there are `limit`: see [`Budget::new`]. While another process has a part of
/// the cap, there may be fewer than those take; then they are lent, but for a lane.
fn floors(limit: usize, workers: usize, hubs: Hubs) -> [usize; Kind::ALL.len()] {
    let mut floors = [0; Kind::ALL.len()];
    floors[Kind::Control as usize] = 1;
    floors[Kind::Lane as usize] = if limit < SMALL { 1 } else { workers.max(2) };
    floors[Kind::Blocking as usize] = if hubs.blocking { workers } else { 0 };
    floors[Kind::PubSub as usize] = if hubs.pubsub && (limit > 4 || !hubs.blocking) { workers } else { 0 };
    if floors.iter().sum::<usize>() > limit {
        floors = [0; Kind::ALL.len()];
        floors[Kind::Lane as usize] = limit.min(1);
        floors[Kind::Control as usize] = usize::from(limit > 2);
    }
    floors
}

/// A duration as people say it: `2s`, `41s`, `250ms`, `3m`.
#[derive(Clone, Copy, Debug)]
pub struct HumanDuration(pub Duration);

impl std::fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = self.0.as_millis();
        match ms {
            0..1_000 => write!(f, "{ms}ms"),
            1_000..120_000 => write!(f, "{}s", ms / 1_000),
            120_000..7_200_000 => write!(f, "{}m", ms / 60_000),
            _ => write!(f, "{}h", ms / 3_600_000),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
