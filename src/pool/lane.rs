//! A lane: one upstream connection that carries the commands of many sessions.
//!
//! One task owns the socket. Sessions append their bytes and push a slot in one step ([`Lane::push`]); the task writes
//! what has been gathered when its turn comes, after all clients that were readable in this turn of the event loop, so
//! their commands leave together. Replies are matched first in, first out, and go from the read buffer straight to
//! their receivers: a run of replies for one client is one call.

mod echo;
mod held;
mod io;
mod redirected;
mod redirection;
mod refusal;
mod slot;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::Permit;
use super::measures::{Measures, Sample};
use super::tracker::{Reader, Tracked, Tracker};
use crate::resp::{self, ErrorCode, Outgoing, encode};
use crate::telemetry::{CommandOutcome, Origin, UpstreamClose};

use redirection::Redirection;
pub use refusal::{Held, Outcome, Refusal, Step, refusal, steps};
pub use slot::{Change, Lost, Nature, Receiver, Then};
use slot::{Gathered, Slot};

/// What keeps lanes apart: nothing of one key is ever seen under another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LaneKey {
    /// The identity, as a number.
    pub user: u64,
    /// The selected database.
    pub database: u32,
    /// The protocol the connection speaks.
    pub protocol: crate::resp::Protocol,
    /// READONLY was sent.
    pub readonly: bool,
    /// What the server tells of, unasked.
    pub tracked: Tracked,
}

impl LaneKey {
    /// The same for a connection that no session shares.
    #[must_use]
    pub fn untracked(self) -> Self {
        Self { tracked: Tracked::No, ..self }
    }
}

/// Above this many unwritten bytes a lane takes no more commands until the server has read.
const FULL: usize = 4 << 20;
/// Commands of one client this close together share a slot, and so a time from which they are measured.
const MERGE: Duration = Duration::from_millis(10);
/// A drained write buffer larger than this is given back.
const KEEP: usize = 64 << 10;

/// Why a lane that is well takes no commands for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// It takes commands.
    None,
    /// Its turn is over: it is to run empty, for another key.
    Yields,
    /// The server has not confirmed its new key yet.
    Moving,
}

/// One lane. Cheap to share inside its worker.
pub struct Lane {
    key: Cell<LaneKey>,
    opened: Instant,
    /// Since when it has had its key.
    serves_since: Cell<Instant>,
    hold: Cell<Hold>,
    used: Cell<Instant>,
    progress: Cell<Instant>,
    written: RefCell<Outgoing>,
    fifo: RefCell<VecDeque<Slot>>,
    outstanding: Cell<usize>,
    blocked: RefCell<Vec<Rc<dyn Receiver>>>,
    waker: RefCell<Option<Waker>>,
    leaving: Cell<Option<UpstreamClose>>,
    closed: Cell<bool>,
    /// A write has found the connection closed; what was answered before is still read.
    severed: Cell<bool>,
    /// Part of the oldest reply has been delivered.
    mid_reply: Cell<bool>,
    /// When an echo was last asked for, and how many commands were carried since.
    echo_asked: Cell<Instant>,
    since_echo: Cell<u32>,
    /// The word whose echo is outstanding.
    echo: RefCell<Option<Bytes>>,
    /// The last MOVED that came by.
    moved: RefCell<Option<String>>,
    /// The server was a replica when the lane logged in, so that a refused write says nothing new.
    of_replica: Cell<bool>,
    /// A write was refused with READONLY since this was last asked.
    was_refused_a_write: Cell<bool>,
    /// Such a refusal has been held back.
    has_held_back: Cell<bool>,
    /// The server was a master when the lane logged in: the number of demotions until then.
    of_master: Cell<Option<u64>>,
    /// Commands that were ever appended.
    carried: Cell<u64>,
    /// Who has read what, where the server tracks for the lane, or did a moment ago.
    tracker: RefCell<Option<Rc<Tracker>>>,
    redirection: Redirection<Self>,
    permit: RefCell<Option<Permit>>,
    measures: Rc<Measures>,
}

impl Lane {
    pub(super) fn new(key: LaneKey, permit: Permit, measures: Rc<Measures>) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            key: Cell::new(key),
            opened: now,
            serves_since: Cell::new(now),
            hold: Cell::new(Hold::None),
            used: Cell::new(now),
            progress: Cell::new(now),
            written: RefCell::default(),
            fifo: RefCell::new(VecDeque::new()),
            outstanding: Cell::new(0),
            blocked: RefCell::new(Vec::new()),
            waker: RefCell::new(None),
            leaving: Cell::new(None),
            closed: Cell::new(false),
            severed: Cell::new(false),
            mid_reply: Cell::new(false),
            echo_asked: Cell::new(now),
            since_echo: Cell::new(0),
            echo: RefCell::new(None),
            moved: RefCell::new(None),
            of_replica: Cell::new(false),
            was_refused_a_write: Cell::new(false),
            has_held_back: Cell::new(false),
            of_master: Cell::new(None),
            carried: Cell::new(0),
            tracker: RefCell::new(None),
            redirection: Redirection::default(),
            permit: RefCell::new(Some(permit)),
            measures,
        })
    }

    /// The key whose commands it carries.
    #[must_use]
    pub fn key(&self) -> LaneKey {
        self.key.get()
    }

    /// Since when it has had its key.
    pub(super) fn serves_since(&self) -> Instant {
        self.serves_since.get()
    }

    pub(super) fn hold(&self) -> Hold {
        self.hold.get()
    }

    pub(super) fn set_hold(&self, hold: Hold) {
        self.hold.set(hold);
    }

    /// Begins to serve another key: nothing is outstanding, and what follows first tells the server.
    pub(super) fn begin_turn(&self, key: LaneKey, holder: &str, now: Instant) {
        self.key.set(key);
        self.serves_since.set(now);
        self.hold.set(Hold::Moving);
        if let Some(permit) = &*self.permit.borrow() {
            permit.describe(holder);
        }
    }

    /// The server has confirmed its key: from now on it serves those who have waited for it, however long the round trip was.
    pub(super) fn serves_from(&self, now: Instant) {
        self.serves_since.set(now);
        self.hold.set(Hold::None);
    }

    /// Whether it may get another key now: it has nothing to do, and has served its own key or was not used for `unused`.
    pub(super) fn is_free(&self, unused: Duration, now: Instant) -> bool {
        let since = self.serves_since.get();
        let has_served = || self.used.get() > since || now.saturating_duration_since(since) >= unused;
        self.outstanding.get() == 0
            && self.written.borrow().is_empty()
            && !self.is_leaving()
            && match self.hold.get() {
                Hold::None => has_served(),
                Hold::Yields => true,
                Hold::Moving => false,
            }
    }

    /// Whether it will never take a command again.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.get().is_some() || self.closed.get() || self.severed.get()
    }

    /// When it was opened.
    #[must_use]
    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// When a session last used it. Heartbeats are not use.
    #[must_use]
    pub fn used(&self) -> Instant {
        self.used.get()
    }

    /// When something last came from the server, or was sent to it after all had been answered.
    pub(super) fn progress(&self) -> Instant {
        self.progress.get()
    }

    /// The place of the next command among all that were ever appended.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.carried.get()
    }

    /// How many of them have their replies.
    fn answered(&self) -> u64 {
        self.carried.get() - self.outstanding.get() as u64
    }

    /// The server tracks for the lane: what it tells goes by `tracker`.
    pub(super) fn track(&self, tracker: Rc<Tracker>) {
        self.tracker.replace(Some(tracker));
    }

    /// The server tells nothing any more.
    pub(super) fn stop_tracking(&self) {
        self.tracker.replace(None);
    }

    pub(super) fn tracker(&self) -> Option<Rc<Tracker>> {
        self.tracker.borrow().clone()
    }

    /// Whether client `id` is told of what the server tells.
    #[must_use]
    pub fn is_told(&self, id: u64) -> bool {
        self.tracker.borrow().as_ref().is_some_and(|tracker| tracker.knows(id))
    }

    /// Client `id` is told no more, and to forget what it has read here last, by name. Whether that was all of it.
    #[must_use]
    pub fn forgets_reader(&self, id: u64) -> bool {
        let Some(tracker) = self.tracker() else { return true };
        let is_all = tracker.names_all(id);
        tracker.name_last_read(id);
        tracker.part(id);
        is_all
    }

    /// Whether client `id` is told of keys with any of its `count` prefixes.
    #[must_use]
    pub fn is_told_by_prefix(&self, id: u64, count: usize) -> bool {
        self.tracker.borrow().as_ref().is_some_and(|tracker| tracker.knows_prefixes(id, count))
    }

    /// Tells all readers to forget what they have read here, because nothing more will be told.
    pub(super) fn forget_readers(&self) {
        if let Some(tracker) = self.tracker() {
            tracker.lose();
        }
    }

    /// Whether readers count on what the server tells of this lane.
    pub(super) fn has_readers(&self) -> bool {
        self.hears_for_others() || self.tracker.borrow().as_ref().is_some_and(|tracker| tracker.has_readers())
    }

    /// `reader` sends commands over the lane.
    pub fn serves(&self, reader: impl FnOnce() -> Rc<dyn Reader>) {
        if let Some(tracker) = &*self.tracker.borrow() {
            tracker.join(&reader());
        }
    }

    /// `reader` is told of every change of a key with one of `prefixes`. `then` gets what the server answers to being asked for
    /// it; `false`: it tells of them already.
    pub fn broadcasts(
        self: &Rc<Self>,
        reader: &Rc<dyn Reader>,
        prefixes: &BTreeSet<Bytes>,
        then: Then,
    ) -> bool {
        let Some(tracker) = self.tracker() else { return false };
        let Some(asking) = tracker.broadcasts(reader, prefixes, self.told_over()) else { return false };
        let lane = Rc::downgrade(self);
        let answered = move |answer: Result<Vec<Bytes>, Lost>| {
            let is_refused =
                answer.as_ref().is_ok_and(|frames| frames.iter().any(|frame| resp::is_error(frame)));
            if let Some(lane) = lane.upgrade().filter(|_| is_refused) {
                // What it tells now is not certain.
                lane.leave(UpstreamClose::Unfit);
            } else if asking.has_gap {
                tracker.tell_all(asking.newcomer);
            }
            then(answer);
        };
        self.exchange(&asking.commands, asking.replies, Instant::now(), Box::new(answered));
        true
    }

    /// `reader` reads `keys` (`None`: nobody knows which) by the command at `place`, see [`Self::carried`].
    pub fn is_read(&self, reader: &Rc<dyn Reader>, keys: Option<&[Bytes]>, place: u64) {
        let Some(tracker) = self.tracker() else { return };
        match keys {
            Some(keys) => keys.iter().for_each(|key| tracker.note(reader, key, place, self.answered())),
            None => tracker.note_unknown(reader),
        }
        self.settle();
    }

    /// Client `id` has surely written `key` by the command at `place`, and need not be told of it.
    pub fn is_written(&self, id: u64, key: Bytes, place: u64) {
        if let Some(tracker) = &*self.tracker.borrow() {
            tracker.wrote(id, key, place);
        }
    }

    /// Whether its connection is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Whether it takes commands.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.hold.get() == Hold::None && !self.is_leaving()
    }

    /// Whether so much is unwritten that a session must wait ([`Self::await_room`]).
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.written.borrow().len() > FULL
    }

    /// Calls `receiver` back ([`Receiver::resume`]) when there is room again.
    pub fn await_room(&self, receiver: Rc<dyn Receiver>) {
        self.blocked.borrow_mut().push(receiver);
    }

    /// How many replies are outstanding.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.outstanding.get()
    }

    /// How long the oldest command has waited for its reply.
    #[must_use]
    pub fn oldest(&self, now: Instant) -> Option<Duration> {
        self.fifo.borrow().front().map(|slot| now.saturating_duration_since(slot.since()))
    }

    /// Whether commands are outstanding and nothing has come for `limit`: the server holds the oldest one (CLIENT PAUSE), or
    /// is busy with it.
    pub(super) fn is_held(&self, limit: Duration, now: Instant) -> bool {
        self.outstanding.get() > 0 && now.saturating_duration_since(self.progress.get()) > limit
    }

    /// Whether the oldest command outstanding may be a script.
    pub(super) fn waits_for_a_script(&self) -> bool {
        match self.fifo.borrow().front() {
            Some(Slot::Replies { may_invent, .. }) => *may_invent,
            Some(Slot::Changed { .. } | Slot::Whole { .. }) | None => false,
        }
    }

    /// Appends `count` whole commands of one session and promises it as many replies.
    pub fn push(&self, commands: &[u8], count: u32, to: &Rc<dyn Receiver>, nature: Nature, now: Instant) {
        self.append(|written, place| written.append(commands, place, count), count, now);
        self.promise(count, to, nature, now);
    }

    /// The same without a copy.
    pub fn push_long(
        &self,
        commands: Bytes,
        count: u32,
        to: &Rc<dyn Receiver>,
        nature: Nature,
        now: Instant,
    ) {
        self.append(|written, place| written.share(commands, place, count), count, now);
        self.promise(count, to, nature, now);
    }

    fn promise(&self, count: u32, to: &Rc<dyn Receiver>, nature: Nature, now: Instant) {
        self.used.set(now);
        let Nature { muted, may_invent, is_block } = nature;
        let mut fifo = self.fifo.borrow_mut();
        // A transaction has a slot of its own, so that its last reply is known to be EXEC's.
        if let Some(Slot::Replies {
            to: last,
            count: more,
            since,
            muted: same,
            may_invent: invents,
            is_block: false,
            abandoned: false,
            // What comes later is not part of what is measured.
            sample: None,
        }) = fifo.back_mut()
            && !is_block
            && *same == muted
            && *invents == may_invent
            && now.saturating_duration_since(*since) < MERGE
            && Rc::ptr_eq(last, to)
        {
            *more += count;
        } else {
            let to = Rc::clone(to);
            let abandoned = false;
            let sample = None;
            fifo.push_back(Slot::Replies {
                to,
                count,
                since: now,
                muted,
                may_invent,
                is_block,
                abandoned,
                sample,
            });
        }
    }

    /// Measures what was pushed last, until its last reply is on its way.
    pub fn measure(&self, begun: Sample) {
        if let Some(Slot::Replies { sample, .. }) = self.fifo.borrow_mut().back_mut() {
            *sample = Some(Box::new(begun));
        }
    }

    /// Bytes that the server has not taken.
    pub(super) fn unwritten(&self) -> usize {
        self.written.borrow().len()
    }

    /// Appends one whole command of a session whose reply is changed on its way; `is_exec` where it ends a transaction.
    pub fn push_changed(
        &self,
        command: Bytes,
        to: &Rc<dyn Receiver>,
        is_exec: bool,
        now: Instant,
        change: Change,
    ) {
        self.used.set(now);
        self.append(|written, place| written.share(command, place, 1), 1, now);
        self.fifo.borrow_mut().push_back(Slot::Changed {
            to: Rc::clone(to),
            left: 1,
            partial: BytesMut::new(),
            since: now,
            is_exec,
            change: Some(change),
        });
    }

    /// Sends commands of our own and calls `then` with their `replies` frames, outside of any borrow of the lane. What is
    /// read of them counts for `owner`.
    pub fn exchange_for(
        &self,
        owner: Option<Rc<dyn Receiver>>,
        commands: &[u8],
        replies: u32,
        now: Instant,
        then: Then,
    ) {
        self.append(|written, place| written.append(commands, place, replies), replies, now);
        self.fifo.borrow_mut().push_back(Slot::Whole {
            owner,
            left: replies,
            frames: Vec::new(),
            partial: BytesMut::new(),
            gathered: Gathered::default(),
            since: now,
            then: Some(then),
            nonce: None,
            is_block: false,
        });
    }

    /// The same for no client.
    pub fn exchange(&self, commands: &[u8], replies: u32, now: Instant, then: Then) {
        self.exchange_for(None, commands, replies, now, then);
    }

    /// Notes a use by a session whose commands went by [`Self::exchange`].
    pub fn touch(&self, now: Instant) {
        self.used.set(now);
    }

    fn append(&self, append: impl FnOnce(&mut Outgoing, u64), count: u32, now: Instant) {
        let mut written = self.written.borrow_mut();
        let first = written.is_empty();
        append(&mut written, self.carried.get());
        drop(written);
        if self.outstanding.get() == 0 {
            self.progress.set(now);
        }
        self.outstanding.set(self.outstanding.get() + count as usize);
        self.carried.set(self.carried.get() + u64::from(count));
        self.since_echo.set(self.since_echo.get().saturating_add(count));
        if first {
            self.wake();
        }
    }

    /// Takes no more commands, and closes when every reply has arrived.
    pub fn leave(&self, reason: UpstreamClose) {
        if self.leaving.get().is_none() {
            self.leaving.set(Some(reason));
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Answers commands older than `timeout` with an error; their late replies will be swallowed. A command whose
    /// reply has begun cannot be answered otherwise and is left alone.
    pub(super) fn time_out(&self, timeout: Duration, now: Instant, text: &str) {
        let mut fifo = self.fifo.borrow_mut();
        let mut slots = fifo.iter_mut();
        // Nor can later ones of the same client: the error would land inside that reply.
        let mut begun = None;
        if self.mid_reply.get()
            && let Some(Slot::Replies { to, muted: false, .. }) = slots.next()
        {
            begun = Some(Rc::clone(to));
        }
        for slot in slots {
            if now.saturating_duration_since(slot.since()) < timeout {
                break;
            }
            if let Slot::Replies { to, count, muted, abandoned, sample, .. } = slot
                && !*abandoned
                && begun.as_ref().is_none_or(|begun| !Rc::ptr_eq(begun, to))
            {
                if !*muted {
                    let mut out = BytesMut::new();
                    for _ in 0..*count {
                        encode::error(&mut out, text);
                        self.measures.error(Origin::Redbouncer, ErrorCode::Err);
                    }
                    to.replies(&out, 0, false);
                }
                if let Some(sample) = sample.take() {
                    sample.fails(CommandOutcome::TimedOut);
                }
                *abandoned = true;
                *muted = true;
            }
            if let Slot::Changed { to, change, .. } = slot
                && change.is_some()
                && begun.as_ref().is_none_or(|begun| !Rc::ptr_eq(begun, to))
            {
                let mut out = BytesMut::new();
                encode::error(&mut out, text);
                self.measures.error(Origin::Redbouncer, ErrorCode::Err);
                to.replies(&out, 0, false);
                *change = None;
            }
        }
    }

    /// Whether commands are outstanding and nothing has come for `limit`.
    pub(super) fn is_stalled(&self, limit: Duration, now: Instant) -> bool {
        self.outstanding.get() > 0 && now.saturating_duration_since(self.progress.get()) > limit
    }

    /// Whether nothing is outstanding and nothing was sent or received for `limit`.
    pub(super) fn is_silent(&self, limit: Duration, now: Instant) -> bool {
        let last = self.progress.get().max(self.used.get());
        self.outstanding.get() == 0 && now.saturating_duration_since(last) >= limit
    }

    /// Gives the lane up at once; its task ends as if the connection were lost.
    pub fn condemn(&self) {
        self.closed.set(true);
        self.wake();
    }

    /// What the server has said, since this was last asked, about keys of another node.
    pub(super) fn take_redirection(&self) -> Option<String> {
        self.moved.take()
    }

    /// The server is a replica: known from the login, or asked since.
    pub(super) fn belongs_to_a_replica(&self) {
        self.of_replica.set(true);
    }

    /// Whether a write was refused with READONLY since this was last asked.
    pub(super) fn was_refused_a_write(&self) -> bool {
        self.was_refused_a_write.take()
    }

    /// The server said at the login that it is a master; `demotions` were known until then.
    pub(super) fn belongs_to_a_master(&self, demotions: u64) {
        self.of_master.set(Some(demotions));
    }

    /// How many demotions were known when it logged in to a master; `None`: it did not log in to one.
    pub(super) fn of_master(&self) -> Option<u64> {
        self.of_master.get()
    }

    /// Whether a refusal was held back since this was last asked: the server is no master.
    pub(super) fn has_held_back(&self) -> bool {
        self.has_held_back.take()
    }

    /// See [`Self::belongs_to_a_replica`].
    pub(super) fn is_of_replica(&self) -> bool {
        self.of_replica.get()
    }

    pub(super) fn take_permit(&self) -> Option<Permit> {
        self.permit.borrow_mut().take()
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("key", &self.key).field("outstanding", &self.outstanding).finish()
    }
}
