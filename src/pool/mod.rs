//! The pool of one worker: lanes by key, leases, and the rules that open and close them.
//!
//! All upstream connections of all workers are counted by one [`Budget`]; everything else here belongs to one worker
//! and one thread.

pub mod budget;
mod closing;
mod control;
mod demotion;
mod dial;
mod dial_rate;
mod group;
mod health;
mod homes;
mod lane;
mod lease;
mod lease_queue;
mod limits;
mod liveness;
mod mastership;
mod measures;
mod memory;
mod node_budget;
mod options;
mod pause;
mod pressure;
mod queue;
mod reclaim;
mod redirected;
mod roles;
mod rotation;
mod slice;
mod tracker;
mod turns;
mod unavailable;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::telemetry::{Tracer, UpstreamClose};
use crate::upstream::{Capability, Connector, DialError, Identity, Instance, UpstreamTimes};

pub use budget::{
    Budget, Claim, FleetDemand, FleetShare, Holder, Holding, HoldingClient, Hubs, HumanDuration, Kind,
    KindUse, Permit, Phase, Pressure, RefusedClients, Who,
};
pub use control::Control;
pub use dial_rate::DialRateLimiter;
use group::Pick;
pub use group::{Group, SessionGuard, Stage};
pub use health::{Health, RefusedLogin};
pub use homes::{Homes, Housing};
pub use lane::{
    Change, Held, Lane, LaneKey, Lost, Nature, Outcome, Receiver, Refusal, Step, Then, refusal, steps,
};
pub use lease::Lease;
pub use liveness::Liveness;
pub use mastership::Mastership;
pub use measures::{Measures, Sample, Took};
pub use memory::{Account, Charge, ClientMemory, LONG, Victim};
pub use node_budget::NodeBudget;
pub use options::PoolOptions;
pub use pause::{Pause, Paused};
pub use reclaim::Blocked;
use roles::Roles;
use rotation::Rotation;
pub use slice::{SLICE, Slice, go_on_later};
use tracker::{MOST_NAMED, Tracker};
pub use tracker::{News, Reader, Tracked};
pub use turns::{Hand, Order, Turn, Turns};
pub use unavailable::Unavailable;

/// Redis's default `proto-max-bulk-len`, taken for granted where the server does not say.
pub const MAX_BULK: u64 = 512 << 20;

/// What all workers' pools share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The cap.
    pub budget: Arc<Budget>,
    /// Which worker serves which key.
    pub homes: Arc<Homes>,
    /// How to dial.
    pub connector: Arc<Connector>,
    /// How often to dial.
    pub dial_rate: Arc<DialRateLimiter>,
    /// Whether dials succeed.
    pub health: Arc<Health>,
    /// Sizes and times of the pool. Each worker has a copy of its own, which a reload replaces.
    pub options: Cell<PoolOptions>,
    /// What is set about upstream connections, in the same way.
    pub upstream: Cell<UpstreamTimes>,
    /// How often our connections show activity in the server's CLIENT LIST.
    pub heartbeat: Duration,
    /// When a lane last showed others that we live.
    pub liveness: Arc<Liveness>,
    /// The server's `proto-max-bulk-len` in bytes: a longer bulk is refused before it reaches a lane, where the
    /// server's own refusal would end everybody's connection.
    pub max_bulk: Arc<AtomicU64>,
    /// What is held for clients.
    pub memory: Arc<ClientMemory>,
    /// Which run of redbouncer this is.
    pub instance: Arc<Instance>,
    /// Whether the server is still a master.
    pub mastership: Arc<Mastership>,
    /// Whether new commands wait.
    pub pause: Arc<Pause>,
    /// Takes spans of sampled commands.
    pub tracer: Tracer,
    /// Cancelled when an operator stops the proxy by PROXY SHUTDOWN.
    pub stop: CancellationToken,
}

/// The pool of one worker.
pub struct Pool {
    /// What it shares with the other workers.
    pub shared: Shared,
    groups: RefCell<BTreeMap<LaneKey, Rc<Group>>>,
    parked: RefCell<Vec<(Instant, Lease)>>,
    lease_waiters: RefCell<Vec<LeaseWaiter>>,
    /// Blocking calls whose leases can be called back, longest held first.
    blocked: RefCell<Vec<Rc<Notify>>>,
    /// Users whom the server has refused, until somebody has asked for them.
    refusals: RefCell<HashSet<u64>>,
    scratch: RefCell<Vec<u8>>,
    measures: Rc<Measures>,
    tasks: TaskTracker,
    /// Cancelled with [`Self::stop`].
    stopping: CancellationToken,
    roles: Roles,
    rotation: Rotation,
    /// There are not lanes enough for every worker to have one of each key.
    is_crowded: Cell<bool>,
    housing: Cell<Housing>,
    /// A lane was lost, and nobody has asked since.
    lost: Cell<bool>,
    /// Leases that were opened before are closed when they are given back.
    renewed: Cell<Option<Instant>>,
}

struct LeaseWaiter {
    ticket: u64,
    key: LaneKey,
    /// What it is for would stand.
    stands: bool,
    hand: oneshot::Sender<Result<Lease, DialError>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("groups", &self.groups.borrow().len()).finish_non_exhaustive()
    }
}

/// One row of the listing of lanes.
#[derive(Clone, Debug)]
pub struct LaneRow {
    /// Its key.
    pub key: LaneKey,
    /// The user's name on the server.
    pub user: String,
    /// Open lanes.
    pub lanes: usize,
    /// Sessions that use the key.
    pub sessions: usize,
    /// Replies outstanding.
    pub outstanding: usize,
}

/// What is to be done with a command for a lane.
#[derive(Debug)]
pub enum Choice {
    /// It goes over this lane.
    Lane(Rc<Lane>),
    /// Every lane is held, and another one is being opened: [`Group::wait`].
    Wait,
}

impl Pool {
    /// A pool without connections. Its tasks run on the current `LocalRuntime`, tracked by `tasks`.
    #[must_use]
    pub fn new(shared: Shared, tasks: TaskTracker) -> Rc<Self> {
        Rc::new(Self {
            shared,
            groups: RefCell::default(),
            parked: RefCell::default(),
            lease_waiters: RefCell::default(),
            blocked: RefCell::default(),
            refusals: RefCell::default(),
            scratch: RefCell::new(vec![0; 64 << 10]),
            measures: Rc::default(),
            tasks,
            stopping: CancellationToken::new(),
            roles: Roles::default(),
            rotation: Rotation::default(),
            is_crowded: Cell::new(false),
            housing: Cell::default(),
            lost: Cell::new(false),
            renewed: Cell::new(None),
        })
    }

    /// Whether a lane was lost since this was last asked.
    #[must_use]
    pub fn take_loss(&self) -> bool {
        self.lost.take()
    }

    /// What is measured, for the metrics.
    #[must_use]
    pub fn measures(&self) -> &Measures {
        &self.measures
    }

    /// Bytes of requests on lanes that the server has not taken.
    #[must_use]
    pub fn unwritten(&self) -> usize {
        let groups = self.groups.borrow();
        groups.values().flat_map(|group| group.lanes()).map(|lane| lane.unwritten()).sum()
    }

    /// What connections of this worker are read into, one at a time.
    #[must_use]
    pub fn scratch(&self) -> &RefCell<Vec<u8>> {
        &self.scratch
    }

    /// The tasks of this worker.
    #[must_use]
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// The lanes of `key`, made when there are none.
    #[must_use]
    pub fn group(&self, key: LaneKey, identity: &Arc<Identity>) -> Rc<Group> {
        let mut groups = self.groups.borrow_mut();
        Rc::clone(groups.entry(key).or_insert_with(|| Group::new(key, Arc::clone(identity))))
    }

    /// A lane of `group` to use now, for a command that reads, or may do more. Opens a second one in the background when
    /// the first is slow and a permit is free. `None`: there is none yet, or new commands wait ([`Pause`]).
    pub fn lane(
        self: &Rc<Self>,
        group: &Rc<Group>,
        only_reads: impl FnOnce() -> bool,
        now: Instant,
    ) -> Option<Choice> {
        if self.shared.pause.is_on() {
            return None;
        }
        let limit = self.lanes_per_key();
        match group.pick(only_reads, now)? {
            Pick::Lane(lane) => {
                if lane.outstanding() > 0 && group.wants_another(limit, now) {
                    self.open_another(group);
                }
                Some(Choice::Lane(lane))
            }
            Pick::Another(_) if group.dialling.get() || group.turn.get() != group::Turn::None => {
                Some(Choice::Wait)
            }
            Pick::Another(_) if group.deserves_another(limit, now) && self.find_another(group, now) => {
                Some(Choice::Wait)
            }
            Pick::Another(_) if group.may_deserve_another(limit, now) => Some(Choice::Wait),
            Pick::Another(lane) => Some(Choice::Lane(lane)),
        }
    }

    /// Whether the next command of a client may go over `lane` as well as over another one.
    #[must_use]
    pub fn may_stay(&self, lane: &Lane, now: Instant) -> bool {
        lane.is_usable() && !self.shared.pause.is_on() && !lane.is_held(group::BUSY, now)
    }

    /// Those who wait because every lane is held get another one, or what there is.
    fn end_the_wait_for_another(self: &Rc<Self>, group: &Rc<Group>, now: Instant) {
        let limit = self.lanes_per_key();
        self.forget_a_vain_turn(group, now);
        let is_stuck = group.has_waiters()
            && !group.dialling.get()
            && group.turn.get() == group::Turn::None
            && !group.lanes().is_empty();
        if is_stuck
            && !group.may_deserve_another(limit, now)
            && !(group.deserves_another(limit, now) && self.find_another(group, now))
        {
            group.give_way();
        }
    }

    /// Another lane is on its way to `group`, whose own are held: by a dial, or one of another key.
    fn find_another(self: &Rc<Self>, group: &Rc<Group>, now: Instant) -> bool {
        self.open_another(group) || self.take_a_turn(group, now)
    }

    fn open_another(self: &Rc<Self>, group: &Rc<Group>) -> bool {
        let holder =
            Holder { user: group.key().user, address: None, who: Who::Words(&holder_of(group.key())) };
        let permit = self.shared.budget.try_acquire(Kind::Lane, holder);
        let is_free = permit.is_some();
        if is_free {
            self.open_lane(group, permit);
        }
        is_free
    }

    /// Waits until `group` has a lane, at most until `deadline`.
    ///
    /// # Errors
    /// When the cap is reached, the server cannot be reached, or it refuses login or database.
    pub async fn lane_ready(
        self: &Rc<Self>,
        group: &Rc<Group>,
        deadline: Instant,
    ) -> Result<(), Unavailable> {
        loop {
            if self.is_stopping() {
                return Err(Unavailable::Stopping);
            }
            if group.lane().is_some() {
                return Ok(());
            }
            let waiter = group.wait();
            self.want_lane(group);
            let waited = tokio::select! {
                biased;
                () = self.stopping.cancelled() => continue,
                waited = tokio::time::timeout_at(deadline, waiter) => waited,
            };
            match waited {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(why))) => return Err(why),
                // The dialling task ended without a word: it found nobody waiting just before we came.
                Ok(Err(_)) => {}
                Err(_) => return Err(self.unavailable_reason(group)),
            }
        }
    }

    fn unavailable_reason(&self, group: &Group) -> Unavailable {
        group
            .last_failure()
            .unwrap_or_else(|| self.why_nothing(Kind::Lane, group.key().user, group.stage.get()))
    }

    /// Why there is no connection of `kind` for `user` after all the time that a wait may take: because there is no server, whatever
    /// else is in the way then, else because of how far its own search has come.
    #[must_use]
    pub fn why_nothing(&self, kind: Kind, user: u64, stage: Stage) -> Unavailable {
        if let Some(away) = self.away() {
            return away;
        }
        let waited = self.patience();
        match stage {
            Stage::Queued => Unavailable::Full(self.shared.budget.full_text(kind, user, waited)),
            Stage::Slowed => Unavailable::Full(format!(
                "redbouncer: no upstream connection within {}: upstream.connect_rate limits new connections",
                HumanDuration(waited)
            )),
            Stage::Dialling => Unavailable::still_connecting(waited),
        }
    }

    /// That there is no server, where a whole wait has shown it: its dials fail, or do not come to an end.
    #[must_use]
    pub fn away(&self) -> Option<Unavailable> {
        let waited = self.patience();
        let health = &self.shared.health;
        if let Some(text) = health.failed_within(waited + self.shared.upstream.get().connect_timeout) {
            return Some(Unavailable::Down(text));
        }
        health.has_tried_for(waited).then(|| Unavailable::still_connecting(waited))
    }

    /// Closes a connection in the background. See [`closing`].
    pub fn close(
        &self,
        stream: crate::upstream::UpstreamStream,
        permit: Permit,
        reason: UpstreamClose,
        gone: Option<Instant>,
    ) {
        let timeout = self.shared.upstream.get().close_timeout;
        self.tasks.spawn_local(closing::close(stream, permit, reason, gone, false, timeout));
    }

    /// Closes a connection and returns when its permit is back.
    pub async fn close_now(
        &self,
        stream: crate::upstream::UpstreamStream,
        permit: Permit,
        reason: UpstreamClose,
    ) {
        closing::close(stream, permit, reason, None, false, self.shared.upstream.get().close_timeout).await;
    }

    /// Closes a lease and returns what the server still had to say: everything up to its end of file, or `None` when
    /// that did not come in time.
    pub async fn close_and_keep(
        &self,
        lease: Lease,
        reason: UpstreamClose,
        gone: Option<Instant>,
    ) -> Option<Vec<u8>> {
        let timeout = self.shared.upstream.get().close_timeout;
        closing::close(lease.stream, lease.permit, reason, gone, true, timeout).await
    }

    /// What must be done every tenth of a second: lanes that are idle, old, abandoned or stalled, heartbeats,
    /// commands that have waited too long, parked leases.
    pub fn tick(self: &Rc<Self>, now: Instant) {
        let options = self.shared.options.get();
        self.heed_demotions();
        let groups: Vec<_> = self.groups.borrow().values().cloned().collect();
        let may_leave = self.shared.budget.can_do_without_lanes();
        for group in groups {
            if group.age(&options, may_leave, now) {
                self.shared.liveness.request_control();
            }
            group.release(now);
            self.end_the_wait_for_another(&group, now);
            for lane in group.lanes() {
                self.shared.liveness.record_activity(lane.progress());
                self.check_lane(&lane, now);
            }
            if group.is_forgettable(options.linger, now) {
                self.groups.borrow_mut().remove(&group.key());
            }
        }
        let parked = std::mem::take(&mut *self.parked.borrow_mut());
        for (since, lease) in parked {
            if now.saturating_duration_since(since) >= options.linger || !lease.is_quiet() {
                self.close(lease.stream, lease.permit, UpstreamClose::Parked, None);
            } else {
                self.parked.borrow_mut().push((since, lease));
            }
        }
    }

    fn check_lane(self: &Rc<Self>, lane: &Rc<Lane>, now: Instant) {
        let upstream = self.shared.upstream.get();
        if let Some(timeout) = upstream.command_timeout {
            let text = format!("ERR redbouncer: no reply within {}", HumanDuration(timeout));
            lane.time_out(timeout, now, &text);
        }
        if lane.is_stalled(upstream.stall_timeout, now) {
            lane.condemn();
        }
        if let Some(text) = lane.take_redirection()
            && !self.shared.connector.is_of_cluster()
        {
            self.shared.connector.missing_capabilities().record_refusal(Capability::WholeKeyspace, "", &text);
        }
        self.tend_role(lane, now);
        if lane.is_usable() && lane.wants_an_echo(self.shared.heartbeat, now) {
            lane.ask_for_an_echo(now);
        }
    }

    /// The server no longer lets `user` in: what was opened as it closes, when what is in flight has been answered.
    pub fn leave_user(self: &Rc<Self>, user: u64) {
        for lane in self.lanes_of(user) {
            lane.leave(UpstreamClose::LoginRevoked);
        }
        let (gone, kept) =
            self.parked.take().into_iter().partition(|(_, lease): &(_, Lease)| lease.key.user == user);
        self.parked.replace(kept);
        let gone: Vec<(Instant, Lease)> = gone;
        for (_, lease) in gone {
            self.close(lease.stream, lease.permit, UpstreamClose::LoginRevoked, None);
        }
    }

    fn lanes_of(&self, user: u64) -> impl Iterator<Item = Rc<Lane>> {
        let groups: Vec<_> =
            self.groups.borrow().values().filter(|group| group.key().user == user).cloned().collect();
        groups.into_iter().flat_map(|group| group.lanes())
    }

    /// The server's address has changed: no lane takes new commands, each closes when its replies are in.
    pub fn leave_all(&self, reason: UpstreamClose) {
        for group in self.groups.borrow().values() {
            for lane in group.lanes() {
                lane.leave(reason);
            }
        }
    }

    /// `upstream.url` names another server or user: lanes close when their replies are in, idle leases at once, and calls that
    /// block on a lease go on elsewhere. A lease that holds its client's state stays where that is.
    pub fn move_all(self: &Rc<Self>) {
        self.leave_all(UpstreamClose::Reloaded);
        for (_, lease) in self.parked.take() {
            self.close(lease.stream, lease.permit, UpstreamClose::Reloaded, None);
        }
        self.reclaim(usize::MAX);
    }

    /// Another server is the master now. Nothing begins on connections to this one any more: idle leases are dropped, and calls
    /// that block on a lease go on elsewhere. Returns the lanes that are left, for [`Lane::condemn`] in the end.
    pub fn depose(self: &Rc<Self>) -> Vec<Rc<Lane>> {
        self.leave_all(UpstreamClose::Deposed);
        for (_, lease) in self.parked.take() {
            lease.permit.closes(UpstreamClose::Deposed);
        }
        self.reclaim(usize::MAX);
        // Who knows something of the former server is looked for.
        self.lost.set(true);
        self.groups.borrow().values().flat_map(|group| group.lanes()).collect()
    }

    /// Other sizes and times, from now on.
    pub fn configure(&self, options: PoolOptions, upstream: UpstreamTimes) {
        self.shared.options.set(options);
        self.shared.upstream.set(upstream);
    }

    /// All connections are to be made anew: lanes close when their replies are in, leases when they are given back.
    pub fn renew(&self) {
        self.renewed.set(Some(Instant::now()));
        self.leave_all(UpstreamClose::Reconnect);
        for (_, lease) in self.parked.take() {
            self.close(lease.stream, lease.permit, UpstreamClose::Reconnect, None);
        }
    }

    /// Closes everything in order, and opens nothing more. Waits for a lane end.
    pub fn stop(self: &Rc<Self>) {
        self.stopping.cancel();
        self.leave_all(UpstreamClose::Shutdown);
        for (_, lease) in std::mem::take(&mut *self.parked.borrow_mut()) {
            self.close(lease.stream, lease.permit, UpstreamClose::Shutdown, None);
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Commands whose replies are outstanding on lanes.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.groups.borrow().values().flat_map(|group| group.lanes()).map(|lane| lane.outstanding()).sum()
    }

    /// How long the oldest command on a lane has waited for its reply.
    #[must_use]
    pub fn oldest(&self, now: Instant) -> Option<Duration> {
        let groups = self.groups.borrow();
        groups.values().flat_map(|group| group.lanes()).filter_map(|lane| lane.oldest(now)).max()
    }

    /// The lanes by key, for listings.
    #[must_use]
    pub fn lane_rows(&self) -> Vec<LaneRow> {
        let groups = self.groups.borrow();
        groups
            .values()
            .map(|group| {
                let lanes = group.lanes();
                LaneRow {
                    key: group.key(),
                    user: group.identity().name().to_owned(),
                    lanes: lanes.len(),
                    sessions: group.sessions(),
                    outstanding: lanes.iter().map(|lane| lane.outstanding()).sum(),
                }
            })
            .collect()
    }

    /// Client `id` has gone: nothing of it is remembered on lanes.
    pub fn forget_reader(&self, id: u64) {
        for lane in self.groups.borrow().values().flat_map(|group| group.lanes()) {
            if let Some(tracker) = lane.tracker() {
                tracker.part(id);
            }
        }
    }

    /// Client `id` does not ask for keys by prefix any more.
    pub fn ends_broadcasts(&self, id: u64) {
        for lane in self.groups.borrow().values().flat_map(|group| group.lanes()) {
            if let Some(tracker) = lane.tracker() {
                tracker.ends_broadcasts(id);
            }
        }
    }

    /// The lanes whose server tells the client `id` of what it has read.
    pub fn lanes_read_by(&self, id: u64) -> Vec<Rc<Lane>> {
        let groups = self.groups.borrow();
        let lanes = groups.values().flat_map(|group| group.lanes());
        lanes.filter(|lane| lane.is_told(id)).collect()
    }

    /// The keys that client `id` has read last, of those that it is to be told of: on each lane some hundreds at the most. Whether
    /// these are all.
    pub fn last_read_by(&self, id: u64) -> (Vec<Bytes>, bool) {
        let lanes = self.lanes_read_by(id);
        let trackers: Vec<_> = lanes.iter().filter_map(|lane| lane.tracker()).collect();
        let keys = trackers.iter().flat_map(|tracker| tracker.last_read(id, MOST_NAMED)).collect();
        (keys, trackers.iter().all(|tracker| tracker.names_all(id)))
    }

    fn new_tracker(&self) -> Rc<Tracker> {
        let memory = &self.shared.memory;
        Tracker::new(memory.unnamed(), memory.bound())
    }

    /// How long a command waits for an upstream connection: `pool.wait_timeout`, and at least as long as a failover may take
    /// behind Sentinels and after a demotion.
    #[must_use]
    pub fn patience(&self) -> Duration {
        let (wait, upstream) = (self.shared.options.get().wait_timeout, self.shared.upstream.get());
        let is_longer = upstream.has_sentinels || self.shared.mastership.is_awaited(upstream.failover_wait);
        if is_longer { wait.max(upstream.failover_wait) } else { wait }
    }

    /// When a wait for an upstream connection that begins now must end.
    #[must_use]
    pub fn wait_deadline(&self) -> Instant {
        Instant::now() + self.patience()
    }
}

/// How a lane is called in listings.
fn holder_of(key: LaneKey) -> String {
    let tracks = match key.tracked {
        Tracked::No => "",
        Tracked::Reads => ", CLIENT TRACKING",
        Tracked::Prefixes => ", CLIENT TRACKING BCAST",
        Tracked::RedirectedReads => ", CLIENT TRACKING REDIRECT",
        Tracked::RedirectedPrefixes => ", CLIENT TRACKING REDIRECT BCAST",
        Tracked::ForOthers => ", invalidations",
    };
    format!("lane of database {}, RESP{}{tracks}", key.database, key.protocol.number())
}
