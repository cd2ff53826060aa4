//! The lanes of one key, the sessions that use them, and those that wait for one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Lane, LaneKey, PoolOptions, Unavailable};
use crate::telemetry::UpstreamClose;
use crate::upstream::Identity;

/// A lane whose oldest command has waited this long is busy: a second one may open.
pub(super) const BUSY: Duration = Duration::from_millis(10);

/// Lanes that have been held this long are worth one more than `pool.lanes_per_key`.
const HELD: Duration = Duration::from_millis(50);

/// How far the search for a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It waits for a place under the cap.
    Queued,
    /// It has one, and waits for `upstream.connect_rate`.
    Slowed,
    /// The server is being dialled.
    Dialling,
}

/// Whether a group waits for a lane of another key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Turn {
    /// It has lanes, or a dial is to bring one.
    #[default]
    None,
    /// It is in the queue.
    Queued,
    /// A lane is being moved to it.
    Coming,
}

/// All lanes of one key inside one worker.
#[derive(Debug)]
pub struct Group {
    key: LaneKey,
    identity: Arc<Identity>,
    lanes: RefCell<Vec<Rc<Lane>>>,
    sessions: Cell<usize>,
    /// When the last session left; `None` while there are any.
    empty_since: Cell<Option<Instant>>,
    /// One dial at a time: the others wait for its outcome.
    pub(super) dialling: Cell<bool>,
    waiters: RefCell<Vec<oneshot::Sender<Result<(), Unavailable>>>>,
    /// Why the last dial failed, for those whose patience ends before the next.
    last_failure: RefCell<Option<Unavailable>>,
    /// Whether it waits for a lane of another key.
    pub(super) turn: Cell<Turn>,
    /// How far its dial has come.
    pub(super) stage: Cell<Stage>,
    /// A login with this key has succeeded.
    verified: Cell<bool>,
    /// A lane was held when one was last chosen.
    held: Cell<bool>,
    /// The worker that its sessions belong to, where that is another.
    home: Cell<Option<usize>>,
}

/// A session's use of the lanes of one key. While there is one they stay, whether they are used or not.
#[derive(Debug)]
pub struct SessionGuard(Rc<Group>);

impl std::ops::Deref for SessionGuard {
    type Target = Rc<Group>;

    fn deref(&self) -> &Rc<Group> {
        &self.0
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        let left = self.0.sessions.get().saturating_sub(1);
        self.0.sessions.set(left);
        if left == 0 {
            self.0.empty_since.set(Some(Instant::now()));
        }
    }
}

/// Where a command goes.
#[derive(Debug)]
pub(super) enum Pick {
    /// Over this lane.
    Lane(Rc<Lane>),
    /// Every lane is held: over another one, or else over this.
    Another(Rc<Lane>),
}

impl Group {
    pub(super) fn new(key: LaneKey, identity: Arc<Identity>) -> Rc<Self> {
        Rc::new(Self {
            key,
            identity,
            lanes: RefCell::new(Vec::new()),
            sessions: Cell::new(0),
            empty_since: Cell::new(Some(Instant::now())),
            dialling: Cell::new(false),
            waiters: RefCell::new(Vec::new()),
            last_failure: RefCell::new(None),
            turn: Cell::new(Turn::None),
            stage: Cell::new(Stage::Queued),
            verified: Cell::new(false),
            held: Cell::new(false),
            home: Cell::new(None),
        })
    }

    /// The worker that its sessions belong to, where that is another.
    #[must_use]
    pub fn home(&self) -> Option<usize> {
        self.home.get()
    }

    /// Its sessions belong there from now on. Returns whether they did not before.
    pub(super) fn set_home(&self, home: Option<usize>) -> bool {
        self.home.replace(home) != home
    }

    /// The key of its lanes.
    #[must_use]
    pub fn key(&self) -> LaneKey {
        self.key
    }

    /// Who its lanes log in as.
    #[must_use]
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Whether the server has accepted this user and database before.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.verified.get()
    }

    /// The least busy lane that takes commands.
    #[must_use]
    pub fn lane(&self) -> Option<Rc<Lane>> {
        let lanes = self.lanes.borrow();
        lanes.iter().filter(|lane| lane.is_usable()).min_by_key(|lane| lane.outstanding()).cloned()
    }

    /// The lane for a command. While one is held, as by CLIENT PAUSE, which holds writes and lets reads pass, or by a long
    /// script, behind which the server answers BUSY to other connections only:
    /// - a write joins those that wait, so that it does not hold the next lane, too, unless it would wait for a script;
    /// - everything else takes a lane that is not held.
    pub(super) fn pick(&self, only_reads: impl FnOnce() -> bool, now: Instant) -> Option<Pick> {
        let lanes = self.lanes.borrow();
        let usable = || lanes.iter().filter(|lane| lane.is_usable());
        let least = |lanes: &mut dyn Iterator<Item = &Rc<Lane>>| {
            lanes.min_by_key(|lane| lane.outstanding()).map(Rc::clone)
        };
        let best = least(&mut usable())?;
        let any_held = usable().any(|lane| lane.is_held(BUSY, now));
        self.held.set(any_held);
        if !any_held {
            return Some(Pick::Lane(best));
        }
        let mut queues = usable().filter(|lane| lane.is_held(BUSY, now) && !lane.waits_for_a_script());
        if let Some(queue) = queues.next()
            && !only_reads()
        {
            return Some(Pick::Lane(Rc::clone(queue)));
        }
        let free = least(&mut usable().filter(|lane| !lane.is_held(BUSY, now)));
        Some(free.map_or(Pick::Another(best), Pick::Lane))
    }

    /// Whether a lane was held when one was last chosen: until then reads and writes share lanes.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.get()
    }

    /// Whether another lane may be opened because all are held: up to `limit`, and one more when that lasts.
    pub(super) fn deserves_another(&self, limit: usize, now: Instant) -> bool {
        let lanes = self.lanes.borrow();
        lanes.len() < limit || lanes.len() == limit && lanes.iter().all(|lane| lane.is_held(HELD, now))
    }

    /// Whether all lanes are held, as many as `limit` allows, and not for so long yet that one more may be opened.
    pub(super) fn may_deserve_another(&self, limit: usize, now: Instant) -> bool {
        let lanes = self.lanes.borrow();
        lanes.len() == limit && !lanes.iter().all(|lane| lane.is_held(HELD, now))
    }

    /// Whether `lane` is held.
    #[must_use]
    pub fn holds(&self, lane: &Lane, now: Instant) -> bool {
        lane.is_held(BUSY, now)
    }

    /// Those who wait for a lane that is not held may go on when there is one.
    pub(super) fn release(&self, now: Instant) {
        let free = self.lanes.borrow().iter().any(|lane| lane.is_usable() && !lane.is_held(BUSY, now));
        if free && self.has_waiters() {
            self.tell(&Ok(()));
        }
    }

    /// Those who wait for a lane that is not held take one that is.
    pub(super) fn give_way(&self) {
        self.tell(&Ok(()));
    }

    /// Whether another lane would help and `limit` allows it.
    pub(super) fn wants_another(&self, limit: usize, now: Instant) -> bool {
        let lanes = self.lanes.borrow();
        !self.dialling.get()
            && lanes.len() < limit
            && !lanes.is_empty()
            && lanes.iter().all(|lane| lane.oldest(now).is_some_and(|age| age > BUSY))
    }

    /// A session uses this key from now on, until the value returned is dropped.
    #[must_use]
    pub fn attach(self: &Rc<Self>) -> SessionGuard {
        self.sessions.set(self.sessions.get() + 1);
        self.empty_since.set(None);
        SessionGuard(Rc::clone(self))
    }

    /// How many sessions use this key.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.get()
    }

    pub(super) fn lanes(&self) -> Vec<Rc<Lane>> {
        self.lanes.borrow().clone()
    }

    pub(super) fn is_forgettable(&self, linger: Duration, now: Instant) -> bool {
        self.lanes.borrow().is_empty()
            && !self.dialling.get()
            && self.turn.get() == Turn::None
            && self.empty_since.get().is_some_and(|since| now.saturating_duration_since(since) > linger)
    }

    /// A place among those who wait for a lane.
    pub fn wait(&self) -> oneshot::Receiver<Result<(), Unavailable>> {
        let (sender, receiver) = oneshot::channel();
        let mut waiters = self.waiters.borrow_mut();
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(sender);
        receiver
    }

    pub(super) fn has_waiters(&self) -> bool {
        self.waiters.borrow().iter().any(|waiter| !waiter.is_closed())
    }

    pub(super) fn opened(&self, lane: Rc<Lane>) {
        self.is_given(lane);
        self.has_a_lane();
    }

    /// A lane of another key is on its way to this one.
    pub(super) fn is_given(&self, lane: Rc<Lane>) {
        self.lanes.borrow_mut().push(lane);
    }

    /// Whether there is a lane that will take commands, now or when it has run empty.
    pub(super) fn has_lanes_to_stay(&self) -> bool {
        self.lanes.borrow().iter().any(|lane| !lane.is_leaving())
    }

    /// A lane takes commands of this key: the server has accepted its user and database.
    pub(super) fn has_a_lane(&self) {
        self.verified.set(true);
        self.last_failure.replace(None);
        self.tell(&Ok(()));
    }

    pub(super) fn failed_for_good(&self, why: &Unavailable) {
        self.tell(&Err(why.clone()));
    }

    pub(super) fn failed_for_now(&self, why: Unavailable) {
        self.last_failure.replace(Some(why));
    }

    pub(super) fn last_failure(&self) -> Option<Unavailable> {
        self.last_failure.borrow().clone()
    }

    fn tell(&self, outcome: &Result<(), Unavailable>) {
        for waiter in std::mem::take(&mut *self.waiters.borrow_mut()) {
            // A waiter that is gone has stopped waiting; there is nobody to tell.
            drop(waiter.send(outcome.clone()));
        }
    }

    pub(super) fn closed(&self, lane: &Rc<Lane>) {
        self.lanes.borrow_mut().retain(|other| !Rc::ptr_eq(other, lane));
    }

    /// The rules that close lanes: no sessions for `linger`, silence for `idle`, age beyond `lifetime`. Unless they
    /// `may_leave` nothing is closed; returns whether something would have been.
    pub(super) fn age(&self, options: &PoolOptions, may_leave: bool, now: Instant) -> bool {
        let (linger, idle, lifetime) = (options.linger, options.idle_timeout, options.max_lifetime);
        let mut held_up = false;
        let abandoned =
            self.empty_since.get().is_some_and(|since| now.saturating_duration_since(since) >= linger);
        for lane in self.lanes.borrow().iter() {
            // Clients that answer from their caches send nothing, and would have to forget them.
            let silent = now.saturating_duration_since(lane.used()) >= idle && !lane.has_readers();
            // Spread by ±10% so that lanes opened together do not all leave together.
            let spread = 0.9 + 0.2 * f64::from(u8::try_from(self.key.user % 251).unwrap_or(0)) / 251.0;
            let old = now.saturating_duration_since(lane.opened()) >= lifetime.mul_f64(spread);
            let reason = if abandoned {
                UpstreamClose::Linger
            } else if silent && lane.outstanding() == 0 {
                UpstreamClose::Idle
            } else if old {
                UpstreamClose::Lifetime
            } else {
                continue;
            };
            if may_leave {
                lane.leave(reason);
            } else {
                held_up |= !lane.is_leaving();
            }
        }
        held_up
    }
}
