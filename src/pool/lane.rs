//! A lane: one upstream connection that carries the commands of many sessions.
//!
//! One task owns the socket. Sessions append their bytes and push a slot in one step ([`Lane::push`]); the task writes
//! what has been gathered when its turn comes, after all clients that were readable in this turn of the event loop, so
//! their commands leave together. Replies are matched first in, first out, and go from the read buffer straight to
//! their receivers: a run of replies for one client is one call.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::future::poll_fn;
use std::hash::BuildHasher;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Permit;
use crate::resp::{self, ReplyKind, ReplyScanner, encode};
use crate::telemetry::{CommandSeconds, UpstreamClose, printable};
use crate::upstream::UpstreamStream;

/// What keeps lanes apart: nothing of one key is ever seen under another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneKey {
    /// The identity, as a number.
    pub user: u64,
    /// The selected database.
    pub database: u32,
    /// The protocol the connection speaks.
    pub protocol: crate::resp::Protocol,
    /// READONLY was sent.
    pub readonly: bool,
}

/// Who gets replies. Called from the lane's task; must not call back into the lane.
pub trait Receiver {
    /// Bytes of replies, in order; with them `ended` replies are complete, and with `begun` the last one is not.
    fn replies(&self, bytes: &[u8], ended: u32, begun: bool);
    /// The connection is lost: `unanswered` commands were written and have no reply; `partial` when the first of them
    /// had begun. With `muted` nothing is owed for them: their replies were unwanted, or a time-out was the answer.
    fn lost(&self, unanswered: u32, muted: bool, partial: bool);
    /// The lane takes commands again after [`Lane::is_full`].
    fn resume(&self);
}

/// The connection was lost before the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// What becomes of an exchange of our own: all its reply frames, whole, or the loss.
pub type Then = Box<dyn FnOnce(Result<Vec<Bytes>, Lost>)>;

/// What becomes of a reply on its way to its receiver. Must not call back into the lane.
pub type Change = Box<dyn FnOnce(Bytes) -> Bytes>;

/// What is to be known of commands that are pushed together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nature {
    /// Their replies are not wanted (CLIENT REPLY): they are read and dropped.
    pub muted: bool,
    /// The text of a reply may be of a script's making, or a module's: it says nothing of the server.
    pub may_invent: bool,
    /// They are a whole transaction: the last one is its EXEC.
    pub is_block: bool,
}

/// The promise of replies, in the order of the commands.
enum Slot {
    Replies {
        to: Rc<dyn Receiver>,
        count: u32,
        since: Instant,
        /// Replies are read and dropped: CLIENT REPLY OFF, or the client was answered with a time-out.
        muted: bool,
        /// See [`Nature`].
        may_invent: bool,
        is_block: bool,
        /// Answered with a time-out already; only the late reply is awaited.
        abandoned: bool,
    },
    /// One reply that is read whole, changed, and delivered in its turn.
    Changed {
        to: Rc<dyn Receiver>,
        left: u32,
        partial: BytesMut,
        since: Instant,
        /// It is the EXEC of a transaction.
        is_exec: bool,
        /// Gone when the client was answered with a time-out.
        change: Option<Change>,
    },
    Whole {
        left: u32,
        frames: Vec<Bytes>,
        partial: BytesMut,
        since: Instant,
        then: Option<Then>,
        /// What a PING must be answered with.
        nonce: Option<Bytes>,
    },
}

impl Slot {
    fn since(&self) -> Instant {
        match self {
            Self::Replies { since, .. } | Self::Changed { since, .. } | Self::Whole { since, .. } => *since,
        }
    }

    fn left(&self) -> u32 {
        match self {
            Self::Replies { count, .. } => *count,
            Self::Changed { left, .. } | Self::Whole { left, .. } => *left,
        }
    }
}

/// After this many commands an echo is asked for before its time.
const ECHO_AFTER: u32 = 10_000;
/// Above this many unwritten bytes a lane takes no more commands until the server has read.
const FULL: usize = 4 << 20;
/// Commands of one client this close together share a slot, and so a time from which they are measured.
const MERGE: Duration = Duration::from_millis(10);
/// A drained write buffer larger than this is given back.
const KEEP: usize = 64 << 10;

/// One lane. Cheap to share inside its worker.
pub struct Lane {
    key: LaneKey,
    opened: Instant,
    used: Cell<Instant>,
    progress: Cell<Instant>,
    written: RefCell<BytesMut>,
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
    /// The last MOVED that came by.
    redirection: RefCell<Option<String>>,
    /// The server was a replica when the lane logged in, so that a refused write says nothing new.
    of_replica: Cell<bool>,
    /// A write was refused with READONLY since this was last asked.
    was_refused_a_write: Cell<bool>,
    permit: RefCell<Option<Permit>>,
    seconds: Rc<CommandSeconds>,
}

impl Lane {
    pub(super) fn new(key: LaneKey, permit: Permit, seconds: Rc<CommandSeconds>) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            key,
            opened: now,
            used: Cell::new(now),
            progress: Cell::new(now),
            written: RefCell::new(BytesMut::new()),
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
            redirection: RefCell::new(None),
            of_replica: Cell::new(false),
            was_refused_a_write: Cell::new(false),
            permit: RefCell::new(Some(permit)),
            seconds,
        })
    }

    /// The key it was opened for.
    #[must_use]
    pub fn key(&self) -> LaneKey {
        self.key
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

    /// Whether it takes commands.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.leaving.get().is_none() && !self.closed.get() && !self.severed.get()
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
        self.used.set(now);
        self.append(commands, count, now);
        let Nature { muted, may_invent, is_block } = nature;
        let mut fifo = self.fifo.borrow_mut();
        // A transaction has a slot of its own, so that its last reply is known to be EXEC's.
        if let Some(Slot::Replies {
            to: last,
            count: more,
            since,
            muted: same,
            may_invent: any,
            is_block: false,
            abandoned: false,
        }) = fifo.back_mut()
            && !is_block
            && *same == muted
            && now.saturating_duration_since(*since) < MERGE
            && Rc::ptr_eq(last, to)
        {
            *more += count;
            *any |= may_invent;
        } else {
            let to = Rc::clone(to);
            let abandoned = false;
            fifo.push_back(Slot::Replies { to, count, since: now, muted, may_invent, is_block, abandoned });
        }
    }

    /// Appends one whole command of a session whose reply is changed on its way; `is_exec` where it ends a transaction.
    pub fn push_changed(
        &self,
        command: &[u8],
        to: &Rc<dyn Receiver>,
        is_exec: bool,
        now: Instant,
        change: Change,
    ) {
        self.used.set(now);
        self.append(command, 1, now);
        self.fifo.borrow_mut().push_back(Slot::Changed {
            to: Rc::clone(to),
            left: 1,
            partial: BytesMut::new(),
            since: now,
            is_exec,
            change: Some(change),
        });
    }

    /// Sends commands of our own and calls `then` with their `replies` frames, outside of any borrow of the lane.
    pub fn exchange(&self, commands: &[u8], replies: u32, now: Instant, then: Then) {
        self.append(commands, replies, now);
        self.fifo.borrow_mut().push_back(Slot::Whole {
            left: replies,
            frames: Vec::new(),
            partial: BytesMut::new(),
            since: now,
            then: Some(then),
            nonce: None,
        });
    }

    /// Asks for an echo of a word that nobody else asks for, which shows that replies are still counted right.
    pub(super) fn ask_for_an_echo(&self, now: Instant) {
        let number = RandomState::new().hash_one(now);
        let nonce = Bytes::from(format!("redbouncer:{number:016x}"));
        let mut ping = BytesMut::new();
        encode::command(&mut ping, &[b"PING", &nonce]);
        self.append(&ping, 1, now);
        self.echo_asked.set(now);
        self.since_echo.set(0);
        self.fifo.borrow_mut().push_back(Slot::Whole {
            left: 1,
            frames: Vec::new(),
            partial: BytesMut::new(),
            since: now,
            then: None,
            nonce: Some(nonce),
        });
    }

    /// Whether the next echo is due: the lane has been silent for `limit`, or has carried commands for as long, or very
    /// many.
    pub(super) fn wants_an_echo(&self, limit: Duration, now: Instant) -> bool {
        let carried = self.since_echo.get();
        let is_long_ago = now.saturating_duration_since(self.echo_asked.get()) >= limit;
        self.is_silent(limit, now) || carried >= ECHO_AFTER || carried > 0 && is_long_ago
    }

    /// Notes a use by a session whose commands went by [`Self::exchange`].
    pub fn touch(&self, now: Instant) {
        self.used.set(now);
    }

    fn append(&self, commands: &[u8], count: u32, now: Instant) {
        let mut written = self.written.borrow_mut();
        let first = written.is_empty();
        written.extend_from_slice(commands);
        drop(written);
        if self.outstanding.get() == 0 {
            self.progress.set(now);
        }
        self.outstanding.set(self.outstanding.get() + count as usize);
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
            if let Slot::Replies { to, count, muted, abandoned, .. } = slot
                && !*abandoned
                && begun.as_ref().is_none_or(|begun| !Rc::ptr_eq(begun, to))
            {
                if !*muted {
                    let mut out = BytesMut::new();
                    for _ in 0..*count {
                        encode::error(&mut out, text);
                    }
                    to.replies(&out, 0, false);
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
        self.redirection.take()
    }

    /// The server is a replica: known from the login, or asked since.
    pub(super) fn belongs_to_a_replica(&self) {
        self.of_replica.set(true);
    }

    /// Whether a write was refused with READONLY since this was last asked.
    pub(super) fn was_refused_a_write(&self) -> bool {
        self.was_refused_a_write.take()
    }

    /// See [`Self::belongs_to_a_replica`].
    pub(super) fn is_of_replica(&self) -> bool {
        self.of_replica.get()
    }

    pub(super) fn take_permit(&self) -> Option<Permit> {
        self.permit.borrow_mut().take()
    }

    /// Carries commands and replies until the lane leaves or is lost. Returns why, with the stream where it is still
    /// fit to be closed in order.
    pub(super) async fn carry(
        self: &Rc<Self>,
        stream: UpstreamStream,
        scratch: &RefCell<Vec<u8>>,
    ) -> (UpstreamClose, Option<UpstreamStream>) {
        let mut carrier = Carrier {
            lane: Rc::clone(self),
            stream,
            scanner: ReplyScanner::default(),
            unflushed: false,
            begun_error: Vec::new(),
            in_multi: false,
        };
        let reason = poll_fn(|cx| carrier.poll(cx, scratch)).await;
        self.closed.set(true);
        self.waker.borrow_mut().take();
        self.lose_the_rest(carrier.scanner.in_frame());
        let orderly = self.leaving.get() == Some(reason);
        (reason, orderly.then_some(carrier.stream))
    }

    fn lose_the_rest(&self, mut partial: bool) {
        let slots = std::mem::take(&mut *self.fifo.borrow_mut());
        for slot in slots {
            match slot {
                Slot::Replies { to, count, muted, .. } => {
                    to.lost(count, muted, std::mem::take(&mut partial) && !muted);
                }
                Slot::Changed { to, change, .. } => {
                    partial = false;
                    to.lost(1, change.is_none(), false);
                }
                Slot::Whole { then, .. } => {
                    partial = false;
                    if let Some(then) = then {
                        then(Err(Lost));
                    }
                }
            }
        }
        self.outstanding.set(0);
        self.resume_the_blocked();
    }

    fn resume_the_blocked(&self) {
        for receiver in std::mem::take(&mut *self.blocked.borrow_mut()) {
            receiver.resume();
        }
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("key", &self.key).field("outstanding", &self.outstanding).finish()
    }
}

/// The part of a lane that only its task touches.
struct Carrier {
    lane: Rc<Lane>,
    stream: UpstreamStream,
    scanner: ReplyScanner,
    /// Something was written since the last flush that succeeded.
    unflushed: bool,
    /// The beginning of an error that is not whole yet.
    begun_error: Vec<u8>,
    /// A client's MULTI was not ended by its EXEC.
    in_multi: bool,
}

/// Whether `frame` may be the answer to PING with `nonce`. A refusal, and the answer to a PING without a word, which some
/// proxies give to all, prove nothing either way.
fn may_echo(frame: &[u8], nonce: &[u8]) -> bool {
    resp::error_text(frame).is_some() || frame == b"+PONG\r\n" || resp::bulk(frame) == Some(nonce)
}

/// What of an error tells what it means for the lane.
const TELLING: usize = 64;

/// Whether the server does not know EXEC (`rename-command`). A refusal by rights ends the transaction, this does not.
fn is_unknown_exec(error: &[u8]) -> bool {
    const UNKNOWN: &[u8] = b"-ERR unknown command ";
    // Quoted by 'these' or by `those`, depending on the version.
    let name = error.strip_prefix(UNKNOWN).and_then(|rest| rest.get(1..5));
    name.is_some_and(|name| name.eq_ignore_ascii_case(b"exec"))
}

impl Carrier {
    fn poll(&mut self, cx: &mut Context<'_>, scratch: &RefCell<Vec<u8>>) -> Poll<UpstreamClose> {
        self.remember_waker(cx);
        loop {
            if self.lane.closed.get() {
                return Poll::Ready(UpstreamClose::Stalled);
            }
            if !self.lane.severed.get()
                && let Poll::Ready(Err(error)) = self.poll_write(cx)
            {
                if !UpstreamStream::is_to_be_read_out(&error) {
                    return Poll::Ready(UpstreamClose::Lost);
                }
                self.lane.severed.set(true);
            }
            let nothing_left = self.lane.outstanding.get() == 0 && self.lane.written.borrow().is_empty();
            if let Some(reason) = self.lane.leaving.get()
                && nothing_left
            {
                return Poll::Ready(reason);
            }
            if let Err(reason) = ready!(self.poll_read(cx, scratch)) {
                return Poll::Ready(reason);
            }
        }
    }

    fn remember_waker(&self, cx: &Context<'_>) {
        let mut waker = self.lane.waker.borrow_mut();
        match &mut *waker {
            Some(known) => known.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }

    /// Writes what has been gathered. Pending also means: nothing to write.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let mut written = self.lane.written.borrow_mut();
        let was_full = written.len() > FULL;
        let had = !written.is_empty();
        self.unflushed |= had;
        while !written.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &written) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(sent)) => written.advance(sent),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        if written.is_empty() && had {
            // `advance` leaves the buffer at its end: clearing lets it start again at the front of its memory.
            if written.capacity() > KEEP {
                *written = BytesMut::new();
            } else {
                written.clear();
            }
        }
        let has_room = written.len() <= FULL / 2;
        drop(written);
        if has_room && (was_full || !self.lane.blocked.borrow().is_empty()) {
            self.lane.resume_the_blocked();
        }
        // Over TLS what was written may lie in rustls until a flush is ready, however many turns that takes.
        if self.unflushed && self.stream.is_buffered() {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        }
        self.unflushed = false;
        Poll::Pending
    }

    /// Reads once and gives every reply to whom it belongs.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &RefCell<Vec<u8>>,
    ) -> Poll<Result<(), UpstreamClose>> {
        let mut finished = Vec::new();
        let result = {
            let mut scratch = scratch.borrow_mut();
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Err(_) => Err(UpstreamClose::Lost),
                Ok(()) if buffer.filled().is_empty() => Err(UpstreamClose::Lost),
                Ok(()) => {
                    let now = Instant::now();
                    self.lane.progress.set(now);
                    self.distribute(buffer.filled(), now, &mut finished)
                }
            }
        };
        for (then, frames) in finished {
            then(Ok(frames));
        }
        Poll::Ready(result)
    }

    fn distribute(
        &mut self,
        data: &[u8],
        now: Instant,
        finished: &mut Vec<(Then, Vec<Bytes>)>,
    ) -> Result<(), UpstreamClose> {
        let lane = Rc::clone(&self.lane);
        let mut fifo = lane.fifo.borrow_mut();
        let mut rest = data;
        while !rest.is_empty() {
            let Some(slot) = fifo.front_mut() else { return Err(UpstreamClose::Desync) };
            let (taken, ended) = self.fill(slot, rest)?;
            rest = &rest[taken..];
            lane.outstanding.set(lane.outstanding.get() - ended as usize);
            if self.in_multi {
                return Err(UpstreamClose::Unfit);
            }
            if slot.left() == 0 {
                lane.seconds.record(now.saturating_duration_since(slot.since()));
                if let Some(Slot::Whole { then: Some(then), frames, .. }) = fifo.pop_front() {
                    finished.push((then, frames));
                }
            }
        }
        lane.mid_reply.set(self.scanner.in_frame());
        Ok(())
    }

    /// What an error says about the server, besides being the client's; `left` replies of its slot were owed with it.
    /// `true`: the lane is of no further use. A text that a script could have made up says nothing.
    fn heed(&mut self, error: &[u8], slot: &Slot, left: u32) -> bool {
        let (may_invent, is_exec) = match slot {
            Slot::Replies { may_invent, is_block, .. } => (*may_invent, *is_block && left == 1),
            Slot::Changed { is_exec, .. } => (false, *is_exec),
            Slot::Whole { .. } => (false, false),
        };
        if !may_invent && error.starts_with(b"-READONLY ") {
            self.lane.was_refused_a_write.set(true);
        } else if !may_invent && error.starts_with(b"-MOVED ") {
            self.lane.redirection.replace(Some(printable(error[1..].trim_ascii_end())));
        }
        // Without EXEC the transaction that came this way stays open, and what follows would be queued in it.
        self.in_multi = is_exec && is_unknown_exec(error);
        self.in_multi
    }

    /// Feeds one slot from `data`: as many of its replies as are there. Returns the bytes taken and the replies ended.
    fn fill(&mut self, slot: &mut Slot, data: &[u8]) -> Result<(usize, u32), UpstreamClose> {
        let mut at = 0;
        let mut ended = 0;
        while at < data.len() && slot.left() > ended {
            let step = self.scanner.step(&data[at..]).map_err(|_| UpstreamClose::Desync)?;
            let kind = step.complete.or_else(|| self.scanner.kind());
            // A push belongs to one client's tracking or subscription, and neither is ever on a lane.
            if kind == Some(ReplyKind::Push) || step.consumed == 0 && step.complete.is_none() {
                return Err(UpstreamClose::Desync);
            }
            match slot {
                Slot::Whole { frames, partial, nonce, .. } => {
                    partial.extend_from_slice(&data[at..at + step.consumed]);
                    if step.complete.is_some() {
                        let frame = partial.split().freeze();
                        // Some other command's reply: nobody knows any more whose is whose.
                        if nonce.as_ref().is_some_and(|nonce| !may_echo(&frame, nonce)) {
                            return Err(UpstreamClose::Desync);
                        }
                        frames.push(frame);
                    }
                }
                Slot::Changed { partial, .. } => partial.extend_from_slice(&data[at..at + step.consumed]),
                Slot::Replies { .. } => {}
            }
            let is_error = step.complete == Some(ReplyKind::Error);
            let reply = &data[at..at + step.consumed];
            at += step.consumed;
            ended += u32::from(step.complete.is_some());
            if is_error {
                let left = slot.left() - (ended - 1);
                let ruined = if self.begun_error.is_empty() {
                    self.heed(reply, slot, left)
                } else {
                    let mut whole = std::mem::take(&mut self.begun_error);
                    whole.extend_from_slice(&reply[..reply.len().min(TELLING)]);
                    self.heed(&whole, slot, left)
                };
                if ruined {
                    break;
                }
            } else if kind == Some(ReplyKind::Error) && self.begun_error.len() < TELLING {
                self.begun_error.extend_from_slice(&reply[..reply.len().min(TELLING)]);
            }
        }
        match slot {
            Slot::Replies { to, count, muted, .. } => {
                *count -= ended;
                let begun = !*muted && self.scanner.in_frame();
                to.replies(if *muted { &[] } else { &data[..at] }, ended, begun);
            }
            Slot::Changed { to, left, partial, change, .. } => {
                *left -= ended;
                if ended > 0 {
                    let reply = partial.split().freeze();
                    let reply = change.take().map(|change| change(reply)).unwrap_or_default();
                    to.replies(&reply, ended, false);
                }
            }
            Slot::Whole { left, .. } => *left -= ended,
        }
        Ok((at, ended))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::pool::{Budget, Kind};
    use crate::resp::Protocol;

    #[derive(Default)]
    struct Listener {
        heard: RefCell<Vec<u8>>,
        owed: Cell<u32>,
    }

    impl Receiver for Listener {
        fn replies(&self, bytes: &[u8], _ended: u32, _begun: bool) {
            self.heard.borrow_mut().extend_from_slice(bytes);
        }

        fn lost(&self, unanswered: u32, muted: bool, _partial: bool) {
            self.owed.set(self.owed.get() + if muted { 0 } else { unanswered });
        }

        fn resume(&self) {}
    }

    fn lane() -> Rc<Lane> {
        let key = LaneKey { user: 1, database: 0, protocol: Protocol::Resp2, readonly: false };
        let permit = Budget::new(8, 1, crate::pool::Hubs::default()).try_acquire(Kind::Lane, "test").unwrap();
        Lane::new(key, permit, Rc::default())
    }

    const LIMIT: Duration = Duration::from_secs(1);

    #[test]
    fn commands_that_follow_an_old_one_are_not_timed_out_with_it() {
        let (lane, listener) = (lane(), Rc::new(Listener::default()));
        let to = Rc::clone(&listener) as Rc<dyn Receiver>;
        let start = Instant::now();
        lane.push(b"a", 1, &to, Nature::default(), start);
        lane.push(b"b", 1, &to, Nature::default(), start + Duration::from_millis(900));
        lane.time_out(LIMIT, start + LIMIT, "ERR late");
        assert_eq!(&*listener.heard.borrow(), b"-ERR late\r\n");
    }

    #[test]
    fn no_time_out_is_told_inside_a_reply_that_has_begun() {
        let (lane, listener, other) = (lane(), Rc::new(Listener::default()), Rc::new(Listener::default()));
        let (to, between) = (Rc::clone(&listener) as Rc<dyn Receiver>, Rc::clone(&other) as Rc<dyn Receiver>);
        let start = Instant::now();
        lane.push(b"a", 1, &to, Nature::default(), start);
        lane.push(b"b", 1, &between, Nature::default(), start);
        lane.push(b"c", 1, &to, Nature::default(), start);
        lane.mid_reply.set(true);
        lane.time_out(LIMIT, start + LIMIT, "ERR late");
        assert!(listener.heard.borrow().is_empty());
        assert_eq!(&*other.heard.borrow(), b"-ERR late\r\n");
    }

    #[test]
    fn what_a_time_out_has_answered_is_not_owed_again_when_the_lane_is_lost() {
        let (lane, listener) = (lane(), Rc::new(Listener::default()));
        let to = Rc::clone(&listener) as Rc<dyn Receiver>;
        let start = Instant::now();
        lane.push(b"a", 1, &to, Nature::default(), start);
        lane.time_out(LIMIT, start + LIMIT, "ERR late");
        lane.push(b"b", 1, &to, Nature::default(), start + LIMIT);
        lane.lose_the_rest(false);
        assert_eq!(listener.owed.get(), 1);
    }

    /// What `first` and then `second` from the server do to a lane with a client's transaction and another's command.
    async fn after(first: &[u8], second: &[u8]) -> (Result<(), UpstreamClose>, Vec<u8>, Vec<u8>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (lane, own, other) = (lane(), Rc::new(Listener::default()), Rc::new(Listener::default()));
        let now = Instant::now();
        let block = Nature { is_block: true, ..Nature::default() };
        lane.push(b"MULTI GET EXEC", 3, &(Rc::clone(&own) as Rc<dyn Receiver>), block, now);
        lane.push(b"GET", 1, &(Rc::clone(&other) as Rc<dyn Receiver>), Nature::default(), now);
        let mut carrier = Carrier {
            lane,
            stream: UpstreamStream::plain(tcp, Duration::from_secs(12)),
            scanner: ReplyScanner::default(),
            unflushed: false,
            begun_error: Vec::new(),
            in_multi: false,
        };
        let mut finished = Vec::new();
        let mut end = Ok(());
        for data in [first, second] {
            end = end.and_then(|()| carrier.distribute(data, now, &mut finished));
        }
        (end, own.heard.take(), other.heard.take())
    }

    #[tokio::test]
    async fn behind_an_exec_that_the_server_does_not_know_nobody_hears_more() {
        let error = b"-ERR unknown command 'EXEC', with args beginning with: \r\n";
        let replies = [&b"+OK\r\n+QUEUED\r\n"[..], error, b"+QUEUED\r\n"].concat();
        for cut in 0..replies.len() - 9 {
            let (first, second) = replies.split_at(cut);
            let (end, own, other) = after(first, second).await;
            assert_eq!((end, other), (Err(UpstreamClose::Unfit), Vec::new()), "cut at {cut}");
            assert!(own.ends_with(error), "the error is the client's: {cut}");
        }
        let refused = b"-NOPERM User x has no permissions to run the 'exec' command\r\n";
        let replies = [&b"+OK\r\n+QUEUED\r\n"[..], refused, b"$1\r\nv\r\n"].concat();
        let (end, _, other) = after(&replies, b"").await;
        assert_eq!((end, &other[..]), (Ok(()), &b"$1\r\nv\r\n"[..]), "this ends the transaction");
    }
}
