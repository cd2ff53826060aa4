//! What is sent to a client: the only way to its socket, what the socket has not taken yet, and how much that may be.
//!
//! Above `client.output_soft_limit` nothing more of the client's commands is run, so that one which reads slowly takes
//! little memory here. But some clients write all their commands before they read the first reply, as every pipeline of a
//! blocking library does: held back, they would never read, and neither would go on. A server buffers for them. So a client
//! that takes nothing at all is held back no longer, up to `client.output_hard_limit` and within the memory that all clients
//! may hold, until it reads again.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::task::{self, Poll, Waker};

use bytes::{Buf, Bytes};
use tokio::time::Instant;

use crate::downstream::context::Context;
use crate::downstream::socket::ClientSocket;
use crate::pool::{Account, Charge};
use crate::resp::Unsent;
use crate::telemetry::ClientClose;

/// An emptied queue of replies larger than this is given back.
const KEEP: usize = 4 << 10;
/// Limit on unread bytes of a peer that has not logged in: errors and HELLO replies.
const BEFORE_LOGIN: usize = 64 << 10;
/// A client that has taken no byte for so many ticks of the worker is not reading.
const STALLED: u32 = 3;

/// The kind of a client, which determines its output limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::downstream) enum Reader {
    /// It has not logged in.
    Stranger,
    /// It sends commands and reads replies.
    Normal,
    /// It is subscribed: what it leaves unread grows without a command of its own (`client.output_buffer_limit`).
    Subscriber,
}

/// The sending side of one client. Knows no request.
pub(in crate::downstream) struct Outbound {
    id: u64,
    context: Rc<Context>,
    socket: ClientSocket,
    /// What its buffers hold is charged to it, from the first time on that they hold something.
    account: OnceCell<Account>,
    /// There while something waits to be sent, or has lately.
    queue: RefCell<Option<Box<Queue>>>,
    reader: Cell<Reader>,
    /// It is above its soft limit.
    is_above: Cell<bool>,
    /// Nothing more is read or run for it until it reads.
    holds_back: Cell<bool>,
    /// Part of a reply has been sent.
    mid_reply: Cell<bool>,
    /// It has closed its side and then reset the connection: nothing more is written to it.
    deaf: Cell<bool>,
    /// The socket is closed.
    closed: Cell<bool>,
    /// Its FIN is known to have come.
    said_all: Cell<bool>,
    close_reason: Cell<Option<ClientClose>>,
    /// When its leaving was noticed.
    departed: OnceCell<Box<Instant>>,
    waker: Cell<Option<Waker>>,
}

/// The output queue, and its sending.
struct Queue {
    unsent: Unsent,
    unsent_charge: Charge,
    /// Messages and invalidations that wait for the end of a reply.
    pushes: Unsent,
    pushes_charge: Charge,
    /// A reply that a lane gathers until it is whole, and the copy of it that follows.
    gathered: Charge,
    /// Since when it has left more unread than subscribers may for long.
    over_soft_since: Option<Instant>,
    /// Bytes that its socket has taken since the last tick.
    took: usize,
    /// Bytes that its host had acknowledged at the last tick.
    acknowledged: Option<u64>,
    /// For how many ticks, up to [`STALLED`], it has taken nothing.
    stalled: u32,
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.unsent.is_empty()
            && self.pushes.is_empty()
            && self.gathered.is_empty()
            && self.over_soft_since.is_none()
    }

    /// Judges whether anything was taken since the last tick.
    fn judge(&mut self, acknowledged: Option<u64>) {
        let took = std::mem::take(&mut self.took);
        let before = std::mem::replace(&mut self.acknowledged, acknowledged);
        let reads = if acknowledged.is_some() { acknowledged != before } else { took > 0 };
        self.stalled = if reads { 0 } else { STALLED.min(self.stalled + 1) };
    }
}

impl Outbound {
    pub(super) fn new(id: u64, context: Rc<Context>, socket: ClientSocket, reader: Reader) -> Self {
        Self {
            id,
            context,
            socket,
            account: OnceCell::new(),
            queue: RefCell::new(None),
            reader: Cell::new(reader),
            is_above: Cell::new(false),
            holds_back: Cell::new(false),
            mid_reply: Cell::new(false),
            deaf: Cell::new(false),
            closed: Cell::new(false),
            said_all: Cell::new(false),
            close_reason: Cell::new(None),
            departed: OnceCell::new(),
            waker: Cell::new(None),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The socket, for reading and for queries to the kernel.
    pub(super) fn socket(&self) -> &ClientSocket {
        &self.socket
    }

    /// Sets the kind of the client, which determines its output limits.
    pub(super) fn is_read_by(&self, reader: Reader) {
        self.reader.set(reader);
    }

    /// The memory account of the client.
    pub(super) fn account(&self) -> &Account {
        self.account.get_or_init(|| self.context.pool.shared.memory.open(self.id, self.context.index))
    }

    /// Bytes that are held for the client.
    pub(super) fn memory(&self) -> usize {
        self.account.get().map_or(0, Account::bytes)
    }

    fn with_queue<T>(&self, f: impl FnOnce(&mut Queue) -> T) -> T {
        let mut queue = self.queue.borrow_mut();
        f(queue.get_or_insert_with(|| {
            let account = self.account();
            Box::new(Queue {
                unsent: Unsent::default(),
                unsent_charge: account.charge(0),
                pushes: Unsent::default(),
                pushes_charge: account.charge(0),
                gathered: account.charge(0),
                over_soft_since: None,
                took: 0,
                acknowledged: None,
                stalled: 0,
            })
        }))
    }

    /// Marks the client to be closed; its own task does it. The first reason stays.
    pub(super) fn close(&self, reason: ClientClose) {
        if self.close_reason.get().is_none() {
            self.close_reason.set(Some(reason));
            self.wake();
        }
    }

    pub(super) fn close_reason(&self) -> Option<ClientClose> {
        self.close_reason.get()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// No more data is written: the client is closed or has left.
    fn is_mute(&self) -> bool {
        self.closed.get() || self.deaf.get()
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake_by_ref();
            self.waker.set(Some(waker));
        }
    }

    pub(super) fn remember_waker(&self, cx: &task::Context<'_>) {
        let mut waker = self.waker.take();
        match &mut waker {
            Some(known) => known.clone_from(cx.waker()),
            None => waker = Some(cx.waker().clone()),
        }
        self.waker.set(waker);
    }

    /// Notes the moment of departure, for the release metric.
    pub(super) fn mark_departed(&self) {
        self.departed.get_or_init(|| Box::new(Instant::now()));
    }

    pub(super) fn departed(&self) -> Option<Instant> {
        self.departed.get().map(|departed| **departed)
    }

    /// Whether its FIN is known to have arrived, so that no more commands follow.
    pub(super) fn has_ended_input(&self) -> bool {
        self.said_all.get()
    }

    pub(super) fn note_end_of_input(&self) {
        self.said_all.set(true);
    }

    /// The socket takes no more. Behind a FIN only nobody listens any more; else the client is lost.
    fn write_failed(&self, error: &std::io::Error) {
        // Linux returns EPIPE if the peer had closed its side before it reset (`tcp_reset` in `tcp_input.c`).
        if self.has_ended_input() || error.kind() == std::io::ErrorKind::BrokenPipe {
            self.deaf.set(true);
            self.wake();
        } else {
            self.close(ClientClose::ClientLost);
        }
    }

    /// What TLS has taken and the kernel has not is flushed by the client's own task.
    fn flush_later(&self) {
        if self.socket.has_unflushed() {
            self.wake();
        }
    }

    /// Whether the queue is empty.
    fn is_drained(&self) -> bool {
        self.queue.borrow().as_ref().is_none_or(|queue| queue.unsent.is_empty())
    }

    /// Writes as much as the socket accepts now. `None`: it has failed.
    fn write(&self, bytes: &[u8]) -> Option<usize> {
        match self.socket.try_write(bytes) {
            Ok(written) => {
                self.context.metrics.bytes_out.add(written as u64);
                Some(written)
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Some(0),
            Err(error) => {
                self.write_failed(&error);
                None
            }
        }
    }

    /// Sends bytes; those that the kernel does not accept now are queued.
    pub(super) fn send(&self, bytes: &[u8]) {
        if self.is_mute() || bytes.is_empty() {
            return;
        }
        let written = if self.is_drained() { self.write(bytes) } else { Some(0) };
        match written.map(|written| &bytes[written..]) {
            None => {}
            Some([]) => self.flush_later(),
            Some(rest) => self.enqueue(|unsent| unsent.append(rest)),
        }
    }

    /// As [`Self::send`], but bytes that the kernel does not accept now are queued by reference.
    pub(super) fn send_shared(&self, mut bytes: Bytes) {
        if self.is_mute() || bytes.is_empty() {
            return;
        }
        let written = if self.is_drained() { self.write(&bytes) } else { Some(0) };
        let Some(written) = written else { return };
        bytes.advance(written);
        if bytes.is_empty() {
            return self.flush_later();
        }
        self.enqueue(|unsent| unsent.share(bytes));
    }

    fn enqueue(&self, add: impl FnOnce(&mut Unsent)) {
        let unsent = self.with_queue(|queue| {
            add(&mut queue.unsent);
            queue.unsent.len()
        });
        self.is_unsent(unsent);
        // The client's own task waits for the socket to take more.
        self.wake();
    }

    /// So many bytes are unsent now: counts them, and judges them.
    fn is_unsent(&self, unsent: usize) {
        if self.with_queue(|queue| queue.unsent_charge.set(unsent)) {
            self.context.keep_within_bound();
        }
        self.check_limits(unsent);
    }

    /// Sends data that is not a reply, by reference: never between the parts of a reply.
    pub(super) fn push(&self, frame: Bytes) {
        if !self.mid_reply.get() {
            return self.send_shared(frame);
        }
        let (bytes, has_grown) = self.with_queue(|queue| {
            queue.pushes.share(frame);
            let bytes = queue.pushes.len();
            (bytes, queue.pushes_charge.set(bytes))
        });
        if has_grown {
            self.context.keep_within_bound();
        }
        self.check_limits(bytes);
    }

    /// Whether a reply has been sent partly, so that no other data may follow now.
    pub(super) fn set_mid_reply(&self, begun: bool) {
        if self.mid_reply.replace(begun) && !begun {
            self.release_pushes();
        }
    }

    /// Another process has the client: what comes for it is not for us to write, until [`Self::holds_pushes`].
    pub(super) fn leaves_to_another(&self) {
        self.deaf.set(true);
    }

    /// From now on data that is not a reply is held, until `set_mid_reply(false)`.
    pub(super) fn holds_pushes(&self) {
        self.deaf.set(false);
        self.mid_reply.set(true);
    }

    /// Sends the data held until the end of a reply.
    pub(super) fn release_pushes(&self) {
        let waiting = self.queue.borrow_mut().as_mut().and_then(|queue| {
            queue.pushes_charge.set(0);
            (!queue.pushes.is_empty()).then(|| std::mem::take(&mut queue.pushes))
        });
        let Some(mut waiting) = waiting else { return };
        while let Some(frames) = waiting.pop() {
            self.send_shared(frames);
        }
    }

    /// So many bytes of a reply are gathered for it until it is whole; it will be copied when it is. `false`: it need not be.
    pub(super) fn gathers(&self, bytes: usize) -> bool {
        if bytes > 0 || self.queue.borrow().is_some() {
            let has_grown = self.with_queue(|queue| queue.gathered.set(2 * bytes));
            if has_grown {
                self.context.keep_within_bound();
            }
        }
        !self.is_mute()
    }

    /// Writes unsent replies. Pending: the kernel takes no more now.
    pub(super) fn poll_flush(&self, cx: &mut task::Context<'_>) -> Poll<()> {
        while !self.is_drained() {
            let written = self.with_queue(|queue| {
                let written = queue.unsent.write_by(|bytes| self.socket.try_write(bytes));
                queue.took += *written.as_ref().unwrap_or(&0);
                written
            });
            match written {
                Ok(written) => self.context.metrics.bytes_out.add(written as u64),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if self.socket.poll_writable(cx).is_pending() {
                        self.is_unsent(self.unsent());
                        return Poll::Pending;
                    }
                }
                Err(error) => {
                    self.drop_unsent();
                    self.write_failed(&error);
                    return Poll::Ready(());
                }
            }
        }
        if let Some(queue) = &mut *self.queue.borrow_mut() {
            queue.unsent.shrink(KEEP);
            queue.unsent_charge.set(0);
        }
        match self.socket.poll_flush(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                self.write_failed(&error);
                return Poll::Ready(());
            }
        }
        if self.is_above.get() || self.over_soft_since().is_some() {
            self.check_limits(0);
        }
        Poll::Ready(())
    }

    /// Hands a popped element (a whole reply) to the client in one step: checks that it is there, and writes. `false`: it is
    /// gone and not a byte was taken, so the element may go to somebody else.
    pub(super) fn deliver(&self, reply: &[u8]) -> bool {
        if self.is_mute() || self.close_reason.get().is_some() {
            return false;
        }
        if !self.is_drained() {
            self.send(reply);
            return true;
        }
        match self.socket.try_write(reply) {
            Ok(0) => false,
            Ok(written) => {
                self.context.metrics.bytes_out.add(written as u64);
                self.send(&reply[written..]);
                self.flush_later();
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.send(reply);
                true
            }
            Err(error) => {
                self.write_failed(&error);
                false
            }
        }
    }

    /// Bytes that the kernel has not taken.
    pub(super) fn unsent(&self) -> usize {
        self.queue.borrow().as_ref().map_or(0, |queue| queue.unsent.len())
    }

    /// Bytes that wait for the end of a reply.
    fn unsent_pushes(&self) -> usize {
        self.queue.borrow().as_ref().map_or(0, |queue| queue.pushes.len())
    }

    /// Whether bytes for the client lie here that the kernel has not taken.
    pub(super) fn has_unsent(&self) -> bool {
        !self.is_drained() || self.socket.has_unflushed()
    }

    /// More is unsent than the client may leave unread now: nothing more is read from it or run for it.
    pub(super) fn is_backpressured(&self) -> bool {
        self.holds_back.get()
    }

    fn over_soft_since(&self) -> Option<Instant> {
        self.queue.borrow().as_ref().and_then(|queue| queue.over_soft_since)
    }

    /// Judges how much is unsent, whenever that may have crossed a limit.
    fn check_limits(&self, unsent: usize) {
        let options = self.context.options.get();
        let is_strange = unsent > BEFORE_LOGIN && self.reader.get() == Reader::Stranger;
        if unsent > options.output_hard_limit || is_strange {
            self.close(ClientClose::OutputLimit);
        }
        self.check_subscriber(unsent);
        let above = unsent > options.output_soft_limit;
        if above && !self.is_above.get() {
            self.with_queue(|queue| queue.stalled = 0);
            self.context.slow_readers.borrow_mut().insert(self.id);
        }
        self.is_above.set(above);
        self.judge_back_pressure();
    }

    /// Nothing more is run for a client that is above its soft limit and reads.
    fn judge_back_pressure(&self) {
        let stalled = self.queue.borrow().as_ref().map_or(0, |queue| queue.stalled);
        self.holds_back.set(self.is_above.get() && stalled < STALLED);
    }

    /// Closes a subscriber that does not read: above the hard limit at once, above the soft limit after its time
    /// (`client.output_buffer_limit`, as Redis's class `pubsub`).
    fn check_subscriber(&self, unsent: usize) {
        if self.reader.get() != Reader::Subscriber {
            return;
        }
        let limit = self.context.options.get().output_buffer_limit;
        let now = Instant::now();
        let since = match (unsent > limit.soft, self.over_soft_since()) {
            (true, None) => Some(now),
            (true, since) => since,
            (false, _) => None,
        };
        if since != self.over_soft_since() {
            self.with_queue(|queue| queue.over_soft_since = since);
        }
        let too_long = since.is_some_and(|since| now.saturating_duration_since(since) >= limit.soft_for);
        if unsent > limit.hard || too_long {
            self.close(ClientClose::OutputLimit);
        }
    }

    /// Every second: whether a subscriber has been above its soft limit for too long.
    pub(super) fn age(&self) {
        if self.over_soft_since().is_some() {
            self.check_subscriber(self.unsent() + self.unsent_pushes());
        }
    }

    /// Every tick while the client is above its soft limit (`false`: no longer): whether it reads.
    pub(super) fn tend(&self) -> bool {
        if !self.is_above.get() {
            return false;
        }
        let held_back = self.holds_back.get();
        let taken = self.with_queue(|queue| queue.unsent.write_by(|bytes| self.socket.write_now(bytes)));
        let unsent = self.unsent();
        self.is_unsent(unsent);
        let taken = match taken {
            Ok(taken) => taken,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                self.write_failed(&error);
                return false;
            }
        };
        self.context.metrics.bytes_out.add(taken as u64);
        self.with_queue(|queue| {
            queue.took += taken;
            queue.judge(self.socket.acknowledged());
        });
        self.check_limits(unsent);
        if held_back && (taken > 0 || !self.holds_back.get()) {
            // It may be read and run again.
            self.wake();
        }
        true
    }

    /// Gives idle memory back.
    pub(super) fn shrink(&self) {
        let mut queue = self.queue.borrow_mut();
        if queue.as_ref().is_some_and(|queue| queue.is_idle()) && !self.is_above.get() {
            *queue = None;
        }
    }

    fn drop_unsent(&self) {
        if let Ok(mut queue) = self.queue.try_borrow_mut()
            && let Some(queue) = &mut *queue
        {
            queue.unsent.clear();
            queue.unsent_charge.set(0);
        }
    }

    /// Writes no more data, and drops the queue.
    pub(super) fn silence(&self) {
        self.deaf.set(true);
        self.drop_unsent();
    }

    /// Closes the socket, even if other references exist.
    pub(super) fn shut(&self) {
        self.closed.set(true);
        self.waker.take();
        self.socket.close();
    }

    /// Nothing more is written here; the socket stays open for another process.
    pub(super) fn let_go(&self) {
        self.closed.set(true);
        self.waker.take();
    }

    /// The client is closed: nothing waits for it any more.
    pub(super) fn drop_queue(&self) {
        if let Ok(mut queue) = self.queue.try_borrow_mut() {
            *queue = None;
        }
    }
}
