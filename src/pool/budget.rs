//! The one cap over upstream connections of every kind.
//!
//! Every connection, from before its dial until its socket is closed, holds a [`Permit`]; the permit gives itself back
//! when it is dropped, so no error path can leak one. Workers share the budget and nothing else of the pool, and only
//! when a connection is made or ends: it is never touched by a command that goes over a lane.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

/// What an upstream connection is for. Its permit is counted under this kind from dial to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Answers what no client command may delay: listings, kills, `SCRIPT KILL`.
    Control,
    /// Shared by many sessions.
    Lane,
    /// Held by one session alone.
    Lease,
}

impl Kind {
    /// All kinds, in the order of listings.
    pub const ALL: [Self; 3] = [Self::Control, Self::Lane, Self::Lease];

    /// The word used in metrics, listings and connection names.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Lane => "shared",
            Self::Lease => "leased",
        }
    }
}

/// Where in its life a connection is. Every connection is in exactly one of these lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// From the decision to dial until the login has succeeded.
    Dialling,
    /// In use, or ready to be.
    Open,
    /// Shut down for writing, waiting for the server's end of file.
    Closing,
}

impl Phase {
    /// All phases, in the order of listings.
    pub const ALL: [Self; 3] = [Self::Dialling, Self::Open, Self::Closing];

    /// The word used in metrics and listings.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Dialling => "dialling",
            Self::Open => "open",
            Self::Closing => "closing",
        }
    }
}

/// Who waits for a permit. Each has its own queue, first in, first out; the queues are served in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A lane that sessions need now.
    Lane,
    /// A lease that a session cannot do without (WATCH, subscriptions, MONITOR …).
    Lease,
    /// A lease for a blocking call, which is served by tries on a lane meanwhile. It waits behind the others.
    BlockingLease,
}

/// How many wait in each queue: what tells workers to give something up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Waiting lanes.
    pub lanes: usize,
    /// Waiting leases that no try can stand in for.
    pub leases: usize,
    /// Waiting leases for blocking calls.
    pub blocking: usize,
}

impl Pressure {
    /// Whether anybody waits at all.
    #[must_use]
    pub fn any(&self) -> bool {
        self.lanes + self.leases + self.blocking > 0
    }
}

/// One row of the listing of held permits.
#[derive(Clone, Debug)]
pub struct Holding {
    /// What the connection is for.
    pub kind: Kind,
    /// Where in its life it is.
    pub phase: Phase,
    /// When the permit was granted.
    pub since: Instant,
    /// Who holds it and why, in words for people.
    pub holder: String,
}

/// The cap and what is held under it.
#[derive(Debug)]
pub struct Budget {
    cap: usize,
    lane_floor: usize,
    state: Mutex<State>,
    pressure: watch::Sender<Pressure>,
}

#[derive(Debug, Default)]
struct State {
    holdings: HashMap<u64, Holding>,
    held: [usize; 3],
    lanes: VecDeque<Waiting>,
    leases: VecDeque<Waiting>,
    blocking: VecDeque<Waiting>,
    next: u64,
    /// Which of lanes and leases gets the next open permit when both wait.
    lane_turn: bool,
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    holder: String,
    grant: oneshot::Sender<Permit>,
}

/// A place in a queue of the budget. Dropping it leaves the queue; a permit granted meanwhile goes to the next.
#[derive(Debug)]
pub struct Place {
    ticket: u64,
    claim: Claim,
    granted: oneshot::Receiver<Permit>,
    budget: Arc<Budget>,
}

/// The right to one upstream connection. Held until the socket is closed, given back by dropping.
#[derive(Debug)]
pub struct Permit {
    id: u64,
    kind: Kind,
    budget: Option<Arc<Budget>>,
}

impl Budget {
    /// A budget of `cap` connections for `workers` worker threads. Floors: one control connection, and lanes
    /// max(2, workers) (one lane when the cap is below 6); they are never lent to a lease.
    #[must_use]
    pub fn new(cap: usize, workers: usize) -> Arc<Self> {
        let lane_floor = if cap < 6 { 1 } else { workers.max(2) };
        Arc::new(Self {
            cap,
            lane_floor,
            state: Mutex::new(State::default()),
            pressure: watch::Sender::new(Pressure::default()),
        })
    }

    /// The cap.
    #[must_use]
    pub fn cap(&self) -> usize {
        self.cap
    }

    /// How many permits are open to leases and to lanes beyond their floor.
    #[must_use]
    pub fn open_permits(&self) -> usize {
        self.cap.saturating_sub(1 + self.lane_floor)
    }

    /// Watches how many wait, so that a worker can give up what it does not need.
    #[must_use]
    pub fn watch_pressure(&self) -> watch::Receiver<Pressure> {
        self.pressure.subscribe()
    }

    /// A permit now, or none. Never overtakes those who wait.
    #[must_use]
    pub fn try_acquire(self: &Arc<Self>, kind: Kind, holder: &str) -> Option<Permit> {
        let mut state = self.state.lock();
        let somebody_waits = match kind {
            Kind::Control => false,
            Kind::Lane => !state.lanes.is_empty(),
            Kind::Lease => !(state.leases.is_empty() && state.blocking.is_empty() && state.lanes.is_empty()),
        };
        if somebody_waits || !self.has_room(&state, kind) {
            return None;
        }
        Some(self.grant(&mut state, kind, holder.to_owned()))
    }

    /// A place in the queue for `claim`, granted at once when there is room. `holder` says in listings who it is for.
    #[must_use]
    pub fn queue(self: &Arc<Self>, claim: Claim, holder: &str) -> Place {
        let (grant, granted) = oneshot::channel();
        let mut state = self.state.lock();
        state.next += 1;
        let ticket = state.next;
        state.queue(claim).push_back(Waiting { ticket, holder: holder.to_owned(), grant });
        self.serve(&mut state);
        drop(state);
        Place { ticket, claim, granted, budget: Arc::clone(self) }
    }

    /// Whether `place` is the one that the next open permit of its kind goes to.
    #[must_use]
    pub fn is_next(&self, place: u64) -> bool {
        let state = self.state.lock();
        let first = state.leases.front().or_else(|| state.blocking.front());
        state.lanes.is_empty() && first.is_some_and(|waiting| waiting.ticket == place)
    }

    /// Every connection that holds a permit, oldest first.
    #[must_use]
    pub fn holdings(&self) -> Vec<Holding> {
        let mut rows: Vec<_> = self.state.lock().holdings.values().cloned().collect();
        rows.sort_by_key(|row| row.since);
        rows
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
        self.state.lock().holdings.values().filter(|row| row.phase == Phase::Closing).count()
    }

    /// How many lanes there are beyond those that only lanes may be.
    #[must_use]
    pub fn lanes_above_floor(&self) -> usize {
        self.state.lock().held[Kind::Lane as usize].saturating_sub(self.lane_floor)
    }

    /// The error a client gets when no permit came free within `waited`: who holds what, and the longest lease.
    #[must_use]
    pub fn full_text(&self, waited: Duration) -> String {
        let state = self.state.lock();
        let [control, lanes, leases] = state.held;
        let mut text = format!(
            "redbouncer: no upstream connection within {} ({} of {}: {control} control, {lanes} lanes, {leases} of {} leases",
            Short(waited),
            state.holdings.len(),
            self.cap,
            self.open_permits().saturating_sub(lanes.saturating_sub(self.lane_floor)),
        );
        let longest =
            state.holdings.values().filter(|row| row.kind == Kind::Lease).min_by_key(|row| row.since);
        if let Some(row) = longest {
            let _ = write!(text, "; longest: {}, {}", Short(row.since.elapsed()), row.holder);
        }
        text.push(')');
        text
    }

    fn has_room(&self, state: &State, kind: Kind) -> bool {
        let [control, lanes, leases] = state.held;
        if state.holdings.len() >= self.cap {
            return false;
        }
        let open_used = leases + lanes.saturating_sub(self.lane_floor);
        match kind {
            Kind::Control => control < 1,
            Kind::Lane => lanes < self.lane_floor || open_used < self.open_permits(),
            Kind::Lease => open_used < self.open_permits(),
        }
    }

    fn grant(self: &Arc<Self>, state: &mut State, kind: Kind, holder: String) -> Permit {
        state.next += 1;
        let id = state.next;
        state.held[kind as usize] += 1;
        state.holdings.insert(id, Holding { kind, phase: Phase::Dialling, since: Instant::now(), holder });
        Permit { id, kind, budget: Some(Arc::clone(self)) }
    }

    /// Grants what can be granted. Lanes within their floor first: nobody else can use those.
    fn serve(self: &Arc<Self>, state: &mut State) {
        loop {
            state.forget_the_gone();
            let lane = !state.lanes.is_empty() && self.has_room(state, Kind::Lane);
            let within_floor = lane && state.held[Kind::Lane as usize] < self.lane_floor;
            let lease = self.has_room(state, Kind::Lease);
            let claim = if within_floor || (lane && (state.lane_turn || state.leases.is_empty())) {
                Claim::Lane
            } else if lease && !state.leases.is_empty() {
                Claim::Lease
            } else if lease && !state.blocking.is_empty() {
                Claim::BlockingLease
            } else {
                break;
            };
            let kind = match claim {
                Claim::Lane => Kind::Lane,
                Claim::Lease | Claim::BlockingLease => Kind::Lease,
            };
            let Some(waiting) = state.queue(claim).pop_front() else { break };
            if !within_floor {
                state.lane_turn = claim != Claim::Lane;
            }
            let permit = self.grant(state, kind, waiting.holder);
            if let Err(mut unwanted) = waiting.grant.send(permit) {
                unwanted.budget = None;
                state.give_back(unwanted.id, kind);
            }
        }
        let now =
            Pressure { lanes: state.lanes.len(), leases: state.leases.len(), blocking: state.blocking.len() };
        self.pressure.send_if_modified(|was| std::mem::replace(was, now) != now);
    }
}

impl State {
    fn queue(&mut self, claim: Claim) -> &mut VecDeque<Waiting> {
        match claim {
            Claim::Lane => &mut self.lanes,
            Claim::Lease => &mut self.leases,
            Claim::BlockingLease => &mut self.blocking,
        }
    }

    fn forget_the_gone(&mut self) {
        for queue in [&mut self.lanes, &mut self.leases, &mut self.blocking] {
            while queue.front().is_some_and(|waiting| waiting.grant.is_closed()) {
                queue.pop_front();
            }
        }
    }

    fn give_back(&mut self, id: u64, kind: Kind) {
        if self.holdings.remove(&id).is_some() {
            self.held[kind as usize] -= 1;
        }
    }
}

impl Place {
    /// The number of this place, for [`Budget::is_next`].
    #[must_use]
    pub fn ticket(&self) -> u64 {
        self.ticket
    }

    /// The permit, when it is this place's turn. The caller sets the deadline.
    pub async fn granted(&mut self) -> Option<Permit> {
        (&mut self.granted).await.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.granted.close();
        let mut state = self.budget.state.lock();
        let queue = state.queue(self.claim);
        if let Some(at) = queue.iter().position(|waiting| waiting.ticket == self.ticket) {
            queue.remove(at);
        }
        self.budget.serve(&mut state);
        drop(state);
        // A permit that was granted but never taken is dropped here, after the lock: it gives itself back.
        drop(self.granted.try_recv());
    }
}

impl Permit {
    /// What the connection is for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Moves the connection to another list.
    pub fn enter(&self, phase: Phase) {
        self.change(|row| row.phase = phase);
    }

    /// Says who holds the connection now, and why: shown in listings and in the full-pool error.
    pub fn describe(&self, holder: &str) {
        self.change(|row| {
            row.holder.clear();
            row.holder.push_str(holder);
            row.since = Instant::now();
        });
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
            state.give_back(self.id, self.kind);
            budget.serve(&mut state);
        }
    }
}

/// A duration as people say it: `2s`, `41s`, `250ms`, `3m`.
#[derive(Clone, Copy, Debug)]
pub struct Short(pub Duration);

impl std::fmt::Display for Short {
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
mod tests {
    use super::*;

    fn take(budget: &Arc<Budget>, kind: Kind) -> Option<Permit> {
        budget.try_acquire(kind, "test")
    }

    async fn now(place: &mut Place) -> Option<Permit> {
        tokio::time::timeout(Duration::from_millis(1), place.granted()).await.ok().flatten()
    }

    #[test]
    fn leases_never_get_the_floors_of_lanes_and_control() {
        let budget = Budget::new(8, 1);
        let leases: Vec<_> = (0..8).filter_map(|_| take(&budget, Kind::Lease)).collect();
        assert_eq!(leases.len(), 5);
        assert!(take(&budget, Kind::Lane).is_some());
        assert!(take(&budget, Kind::Control).is_some());
    }

    #[test]
    fn lanes_beyond_their_floor_use_open_permits_and_the_cap_holds() {
        let budget = Budget::new(8, 1);
        let lanes: Vec<_> = (0..20).filter_map(|_| take(&budget, Kind::Lane)).collect();
        assert_eq!(lanes.len(), 7);
        let control = take(&budget, Kind::Control).unwrap();
        assert_eq!(budget.held(), 8);
        assert!(take(&budget, Kind::Lease).is_none());
        drop((lanes, control));
        assert_eq!(budget.held(), 0);
    }

    #[tokio::test]
    async fn a_permit_given_back_goes_to_the_longest_waiter() {
        let budget = Budget::new(4, 1);
        let held: Vec<_> = (0..2).filter_map(|_| take(&budget, Kind::Lease)).collect();
        let mut first = budget.queue(Claim::Lease, "first");
        let mut second = budget.queue(Claim::Lease, "second");
        assert!(now(&mut first).await.is_none());
        drop(held);
        assert!(now(&mut first).await.is_some_and(|permit| permit.kind() == Kind::Lease));
        assert!(now(&mut second).await.is_some());
    }

    #[tokio::test]
    async fn a_blocking_call_waits_behind_those_who_cannot_do_without() {
        let budget = Budget::new(4, 1);
        let held: Vec<_> = (0..2).filter_map(|_| take(&budget, Kind::Lease)).collect();
        let mut blocking = budget.queue(Claim::BlockingLease, "b");
        let mut watch = budget.queue(Claim::Lease, "w");
        assert_eq!(budget.pressure(), Pressure { lanes: 0, leases: 1, blocking: 1 });
        let [a, b] = <[Permit; 2]>::try_from(held).unwrap();
        drop(a);
        let permit = now(&mut watch).await;
        assert!(permit.is_some());
        assert!(now(&mut blocking).await.is_none());
        drop(b);
        assert!(now(&mut blocking).await.is_some());
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_loses_no_permit() {
        let budget = Budget::new(4, 1);
        let held: Vec<_> = (0..2).filter_map(|_| take(&budget, Kind::Lease)).collect();
        let gone = budget.queue(Claim::Lease, "gone");
        let granted_then_gone = budget.queue(Claim::Lease, "late");
        drop(gone);
        drop(held);
        drop(granted_then_gone);
        assert_eq!(budget.held(), 0);
        assert_eq!(budget.pressure(), Pressure::default());
    }

    #[tokio::test]
    async fn lanes_and_leases_take_turns_for_open_permits() {
        let budget = Budget::new(4, 1);
        let mut held: Vec<_> = (0..3).filter_map(|_| take(&budget, Kind::Lane)).collect();
        assert_eq!(held.len(), 3);
        let mut lanes = [budget.queue(Claim::Lane, "l1"), budget.queue(Claim::Lane, "l2")];
        let mut leases = [budget.queue(Claim::Lease, "w1"), budget.queue(Claim::Lease, "w2")];
        held.pop();
        held.pop();
        let mut got = (Vec::new(), Vec::new());
        for (lane, lease) in lanes.iter_mut().zip(leases.iter_mut()) {
            got.0.extend(now(lane).await);
            got.1.extend(now(lease).await);
        }
        assert_eq!((got.0.len(), got.1.len()), (1, 1));
    }

    #[test]
    fn the_full_text_says_who_holds_what() {
        let budget = Budget::new(8, 1);
        let leases: Vec<_> = (0..5).filter_map(|_| take(&budget, Kind::Lease)).collect();
        leases[0].describe("client 'x', WATCH");
        let text = budget.full_text(Duration::from_secs(2));
        assert!(
            text.starts_with(
                "redbouncer: no upstream connection within 2s (5 of 8: 0 control, 0 lanes, 5 of 5 leases"
            ),
            "{text}"
        );
        assert!(text.contains("longest: "), "{text}");
    }
}
