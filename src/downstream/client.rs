//! One client: what it has sent and not yet had answered, and what it is owed.
//!
//! The state lies in cells, because three parties touch it from one thread: the client's own task reads and routes,
//! the tasks of lanes deliver replies ([`Receiver`]), and the worker lists and kills. None of them holds a borrow
//! across an await.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Worker;
use super::backpressure::Backpressure;
use super::identity::{Account, Membership};
use super::memory::Held;
use super::places::Place;
use super::server_change::Learned;
use super::socket::ClientSocket;
use super::subscriptions::Subscriber;
use crate::hub::Unblock;
use crate::pool::{Group, Lane, LaneKey, Receiver, Tracked};
use crate::resp::{Protocol, RequestScanner, Unsent, encode, give_buffer};
use crate::session::{ClientRow, Endpoint, Flags, Policy, Rights, Session};
use crate::telemetry::ClientClose;
use crate::upstream::{Identity, OnLoss};

/// An emptied buffer of replies larger than this is given back.
const KEEP: usize = 4 << 10;

/// What has been read and not yet run.
#[derive(Debug, Default)]
pub(super) struct Input {
    pub(super) buffer: BytesMut,
    pub(super) scanner: RequestScanner,
    /// The peer has closed its side.
    pub(super) eof: bool,
    /// What lies here has waited for the server as long as a command may, in vain: a pipeline of a hundred commands does
    /// not wait a hundred times.
    pub(super) waited_in_vain: bool,
}

/// One connected client.
pub(crate) struct Client {
    pub(super) id: u64,
    pub(super) peer: Endpoint,
    pub(super) local: Endpoint,
    pub(super) opened: Instant,
    pub(super) socket: ClientSocket,
    pub(super) worker: Rc<Worker>,
    pub(super) session: RefCell<Session>,
    /// That it is who it is, and as whom it is upstream.
    pub(super) membership: RefCell<Option<Membership>>,
    /// What its user may ask for.
    pub(super) rights: Cell<Rights>,
    /// Its place among those inside, or those that have not logged in. Given back when it is closed.
    pub(super) admission: RefCell<Option<Place>>,
    /// It came by a listener that only this host can reach.
    pub(super) trusted: bool,
    pub(super) input: RefCell<Input>,
    pub(super) out: RefCell<Unsent>,
    /// How much memory is held for it.
    pub(super) held: Held,
    /// Replies that lanes still owe.
    pub(super) outstanding: Cell<u32>,
    pub(super) lane: RefCell<Option<Rc<Lane>>>,
    pub(super) group: RefCell<Option<Rc<Group>>>,
    /// Its subscriptions, if it has any.
    pub(super) subscriber: RefCell<Option<Rc<Subscriber>>>,
    /// As a subscriber it has been given all that was published before its last command was read or sent.
    pub(super) is_caught_up: Cell<bool>,
    /// Part of a reply has been sent.
    pub(super) mid_reply: Cell<bool>,
    /// Messages and invalidations that wait for its end.
    pub(super) held_pushes: RefCell<Option<Box<Unsent>>>,
    /// It has had CLIENT TRACKING on.
    pub(super) has_tracked: Cell<bool>,
    /// It could not be told that all it has read may have changed.
    pub(super) has_missed: Cell<bool>,
    /// Since when it has left more unread than subscribers may for long.
    pub(super) over_soft_since: Cell<Option<Instant>>,
    /// Decided to be closed, by whoever found the reason.
    pub(super) doomed: Cell<Option<ClientClose>>,
    pub(super) closed: Cell<bool>,
    pub(super) waker: RefCell<Option<Waker>>,
    pub(super) last_input: Cell<Instant>,
    /// When what it has sent began to be run without a pause, where that was noted.
    pub(super) slice: Cell<Option<Instant>>,
    pub(super) last_command: Cell<&'static str>,
    pub(super) place: Cell<&'static str>,
    pub(super) flags: Cell<Flags>,
    /// What it may leave unread.
    pub(super) backpressure: Backpressure,
    /// A command is being carried out off the lane: a drain waits for its answer.
    pub(super) busy: Cell<bool>,
    /// In the slow path: its own task does not read requests there.
    pub(super) in_slow_path: Cell<bool>,
    /// While stopping: what had arrived before has been read.
    pub(super) last_read: Cell<bool>,
    pub(super) unblock: Cell<Option<Unblock>>,
    pub(super) unblocked: Notify,
    /// Since its last blocking call it has sent commands, and may wait for what they wrote.
    pub(super) has_written: Cell<bool>,
    /// Its FIN was noticed while something was awaited for it.
    pub(super) farewell: Cell<bool>,
    /// It has closed its side and then reset the connection: nothing more is written to it.
    pub(super) deaf: Cell<bool>,
    /// What it knows of the server and forgets with its connection.
    pub(super) learned: Learned,
    /// When its leaving was noticed.
    pub(super) gone: Cell<Option<Instant>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("id", &self.id).field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Client {
    pub(super) fn new(
        worker: Rc<Worker>,
        socket: ClientSocket,
        addresses: (Endpoint, Endpoint),
        session: Session,
        membership: Option<Membership>,
        trusted: bool,
        admission: Place,
    ) -> Rc<Self> {
        let now = Instant::now();
        let held = Held::new(worker.pool.shared.memory.open(session.id, worker.index));
        Rc::new(Self {
            id: session.id,
            peer: addresses.0,
            local: addresses.1,
            opened: now,
            socket,
            worker,
            trusted,
            admission: RefCell::new(Some(admission)),
            session: RefCell::new(session),
            membership: RefCell::new(membership),
            rights: Cell::default(),
            input: RefCell::default(),
            out: RefCell::default(),
            held,
            outstanding: Cell::new(0),
            lane: RefCell::new(None),
            group: RefCell::new(None),
            subscriber: RefCell::new(None),
            is_caught_up: Cell::new(false),
            mid_reply: Cell::new(false),
            held_pushes: RefCell::new(None),
            has_tracked: Cell::new(false),
            has_missed: Cell::new(false),
            over_soft_since: Cell::new(None),
            doomed: Cell::new(None),
            closed: Cell::new(false),
            waker: RefCell::new(None),
            last_input: Cell::new(now),
            slice: Cell::new(None),
            last_command: Cell::new("NULL"),
            place: Cell::new("lane"),
            flags: Cell::new(Flags::default()),
            backpressure: Backpressure::default(),
            busy: Cell::new(false),
            in_slow_path: Cell::new(false),
            last_read: Cell::new(false),
            unblock: Cell::new(None),
            unblocked: Notify::new(),
            has_written: Cell::new(false),
            farewell: Cell::new(false),
            deaf: Cell::new(false),
            learned: Learned::default(),
            gone: Cell::new(None),
        })
    }

    /// Marks the client to be closed; its own task does it. The first reason stays.
    pub(super) fn doom(&self, reason: ClientClose) {
        if self.doomed.get().is_none() {
            self.doomed.set(Some(reason));
            self.wake();
        }
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    pub(super) fn remember_waker(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(known) => known.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }

    /// Sends bytes to the client: what the kernel does not take now waits in the client's own buffer.
    pub(super) fn send(&self, bytes: &[u8]) {
        if self.closed.get() || self.deaf.get() || bytes.is_empty() {
            return;
        }
        let mut out = self.out.borrow_mut();
        let mut rest = bytes;
        if out.is_empty() {
            match self.socket.try_write(bytes) {
                Ok(written) => {
                    self.worker.metrics.bytes_out.add(written as u64);
                    rest = &bytes[written..];
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    drop(out);
                    return self.write_failed(&error);
                }
            }
        }
        if rest.is_empty() {
            drop(out);
            return self.flush_later();
        }
        out.append(rest);
        let unsent = out.len();
        drop(out);
        self.holds_output(unsent);
        self.check_limits(unsent);
        // The client's own task waits for the socket to take more.
        self.wake();
    }

    /// As [`Self::send`], but what the kernel does not take now is kept by reference.
    pub(super) fn send_shared(&self, mut bytes: Bytes) {
        if self.closed.get() || self.deaf.get() || bytes.is_empty() {
            return;
        }
        let mut out = self.out.borrow_mut();
        if out.is_empty() {
            match self.socket.try_write(&bytes) {
                Ok(written) => {
                    self.worker.metrics.bytes_out.add(written as u64);
                    bytes.advance(written);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    drop(out);
                    return self.write_failed(&error);
                }
            }
        }
        if bytes.is_empty() {
            drop(out);
            return self.flush_later();
        }
        out.share(bytes);
        let unsent = out.len();
        drop(out);
        self.holds_output(unsent);
        self.check_limits(unsent);
        self.wake();
    }

    /// What TLS has taken and the kernel has not is flushed by the client's own task.
    fn flush_later(&self) {
        if self.socket.holds_back() {
            self.wake();
        }
    }

    /// Sends the bytes of a reply made here.
    pub(super) fn reply(&self, write: impl FnOnce(&mut BytesMut)) {
        let mut bytes = BytesMut::new();
        write(&mut bytes);
        self.send(&bytes);
    }

    /// Sends an error (no leading `-`) unless the client wants no replies.
    pub(super) fn error(&self, text: &str, muted: bool) {
        if !muted {
            self.reply(|out| encode::error(out, text));
        }
    }

    /// Writes unsent replies. Pending: the kernel takes no more now.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut out = self.out.borrow_mut();
        while !out.is_empty() {
            match out.write_by(|bytes| self.socket.try_write(bytes)) {
                Ok(written) => {
                    self.worker.metrics.bytes_out.add(written as u64);
                    self.backpressure.took(written);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if self.socket.poll_writable(cx).is_pending() {
                        let unsent = out.len();
                        drop(out);
                        self.holds_output(unsent);
                        self.check_limits(unsent);
                        return Poll::Pending;
                    }
                }
                Err(error) => {
                    out.clear();
                    drop(out);
                    self.holds_output(0);
                    self.write_failed(&error);
                    return Poll::Ready(());
                }
            }
        }
        out.shrink(KEEP);
        drop(out);
        self.holds_output(0);
        match self.socket.poll_flush(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => {
                self.write_failed(&error);
                return Poll::Ready(());
            }
        }
        if self.backpressure.is_above() || self.over_soft_since.get().is_some() {
            self.check_limits(0);
        }
        Poll::Ready(())
    }

    /// Hands a popped element (a whole reply) to the client in one step: checks that it is there, and writes. `false`:
    /// it is gone and not a byte was taken, so the element may go to somebody else. A client that has closed its side is
    /// gone when its call has waited; for one whose call finds something at once, it is the answer.
    pub(super) fn deliver_element(&self, reply: &[u8], has_waited: bool) -> bool {
        if self.closed.get() || self.doomed.get().is_some() || self.deaf.get() || has_waited && self.is_gone()
        {
            return false;
        }
        if !self.out.borrow().is_empty() {
            self.send(reply);
            return true;
        }
        match self.socket.try_write(reply) {
            Ok(0) => false,
            Ok(written) => {
                self.worker.metrics.bytes_out.add(written as u64);
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

    /// Whether its FIN, or its end, is known to the kernel.
    pub(super) fn is_gone(&self) -> bool {
        let gone = self.socket.is_gone();
        if self.socket.has_read_ahead() {
            self.wake();
        }
        gone
    }

    /// The key of the lanes this client's commands go over.
    pub(super) fn lane_key(&self) -> Option<(LaneKey, Arc<Identity>)> {
        let session = self.session.borrow();
        let identity = self.membership.borrow().as_ref().map(|own| Arc::clone(&own.identity))?;
        let user = session.user.as_ref()?.id;
        let key = LaneKey {
            user,
            database: session.database,
            protocol: session.protocol,
            readonly: session.readonly,
            tracked: if session.hears_invalidations() { Tracked::Reads } else { Tracked::No },
        };
        Some((key, identity))
    }

    /// The lanes this client uses, found again after its key has changed.
    pub(super) fn current_group(&self) -> Option<Rc<Group>> {
        if let Some(group) = &*self.group.borrow() {
            return Some(Rc::clone(group));
        }
        let (key, identity) = self.lane_key()?;
        if self.has_tracked.get() {
            self.hears_on(key.tracked);
        }
        let group = self.worker.pool.group(key, &identity);
        group.join();
        self.group.replace(Some(Rc::clone(&group)));
        Some(group)
    }

    /// The session's key has changed, or the client leaves: its lanes are no longer its own.
    pub(super) fn leave_group(&self) {
        self.lane.replace(None);
        if let Some(group) = self.group.take() {
            group.part(Instant::now());
        }
    }

    /// The client is somebody else from now on, or nobody.
    pub(super) fn become_user(&self, membership: Option<Membership>) {
        self.leave_group();
        let account = membership.as_ref().map(|own| Arc::clone(&own.account));
        self.rights.set(account.as_ref().map_or(Rights::ALL, |account| account.rights));
        self.session.borrow_mut().user = account.map(|account| account.user.clone());
        self.membership.replace(membership);
    }

    /// Whether it has logged in as `account` by showing a secret.
    pub(super) fn has_logged_in_as(&self, account: &Arc<Account>) -> bool {
        self.membership
            .borrow()
            .as_ref()
            .is_some_and(|own| own.by_login && Arc::ptr_eq(&own.account, account))
    }

    /// What an operator has decided about its commands.
    pub(super) fn policy(&self) -> Policy {
        Policy { rights: self.rights.get(), ..self.worker.policy() }
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.session.borrow().protocol
    }

    /// How listings and the full-pool error call this client.
    pub(super) fn called(&self) -> String {
        let session = self.session.borrow();
        if session.name.is_empty() {
            format!("client {} ({})", self.id, self.peer)
        } else {
            format!("client '{}'", String::from_utf8_lossy(&session.name))
        }
    }

    /// Its row in listings.
    pub(super) fn row(&self, now: Instant) -> ClientRow {
        let mut row = ClientRow::of(&self.session.borrow(), self.peer.clone(), self.local.clone());
        row.age = now.saturating_duration_since(self.opened);
        row.idle = now.saturating_duration_since(self.last_input.get());
        row.flags = self.listed_flags();
        row.input = self.input.borrow().buffer.len();
        row.output = self.out.borrow().len();
        row.memory = self.held.bytes();
        row.command = self.last_command.get();
        row.transport = self.socket.transport();
        row.place = match self.place.get() {
            "lane" if self.session.borrow().listens > 0 => "pubsub hub",
            place => place,
        };
        row
    }

    /// When the wait for a lane must end that begins now, with the command's turn: its bytes may have lain here for long,
    /// behind replies that the client did not read.
    pub(super) fn lane_deadline(&self) -> Instant {
        match self.input.borrow().waited_in_vain {
            true => Instant::now(),
            false => self.worker.pool.wait_deadline(),
        }
    }

    /// The same for a lease. A client that has closed its side has a bounded number of commands left, and they wait once.
    pub(super) fn lease_deadline(&self) -> Instant {
        if self.has_said_all() { self.lane_deadline() } else { self.worker.pool.wait_deadline() }
    }

    /// Notes the moment of departure, for the release metric.
    pub(super) fn departs(&self, reason: ClientClose) -> ClientClose {
        if self.gone.get().is_none() {
            self.gone.set(Some(Instant::now()));
        }
        reason
    }

    /// Gives idle memory back.
    pub(super) fn shrink(&self) {
        let mut input = self.input.borrow_mut();
        if input.buffer.is_empty() && input.buffer.capacity() > 0 {
            give_buffer(std::mem::take(&mut input.buffer));
        }
    }

    /// Bytes read ahead while the client waits for something.
    pub(super) fn read_ahead(&self) -> usize {
        self.input.borrow().buffer.len()
    }

    /// How long nothing has come.
    pub(super) fn idle(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_input.get())
    }

    /// Whether bytes for this client lie here that the kernel has not taken.
    pub(super) fn has_unsent(&self) -> bool {
        !self.out.borrow().is_empty() || self.socket.holds_back()
    }

    /// Whether commands of this client are unanswered, or answers unsent: a drain waits for it. A blocked client is
    /// not: its call is given up, as by a server that stops.
    pub(super) fn is_busy(&self) -> bool {
        !self.flags.get().blocked && (self.outstanding.get() > 0 || self.has_unsent() || self.busy.get())
    }

    /// So many of its commands have been answered.
    fn are_answered(&self, ended: u32) {
        if ended == 0 {
            return;
        }
        let left = self.outstanding.get().saturating_sub(ended);
        self.outstanding.set(left);
        let input = self.input.borrow();
        // The task sleeps until the socket is readable; only what waits for these replies must be woken.
        if !input.buffer.is_empty() || (left == 0 && input.eof) {
            drop(input);
            self.wake();
        }
    }
}

impl Receiver for Client {
    fn replies(&self, bytes: &[u8], ended: u32, begun: bool) {
        self.send(bytes);
        self.set_mid_reply(begun);
        self.are_answered(ended);
    }

    fn whole(&self, replies: Bytes, ended: u32) {
        self.send_shared(replies);
        self.set_mid_reply(false);
        self.are_answered(ended);
    }

    fn lost(&self, unanswered: u32, muted: bool, partial: bool) {
        self.outstanding.set(self.outstanding.get().saturating_sub(unanswered));
        if partial || self.worker.pool.shared.upstream.on_loss == OnLoss::Close {
            self.doom(ClientClose::UpstreamLost);
        }
        // Behind a reply that will not be whole nothing is said, for what comes after it neither.
        if self.doomed.get().is_some() {
            return;
        }
        if !muted {
            self.reply(|out| {
                for _ in 0..unanswered {
                    encode::error(out, "ERR redbouncer: upstream connection lost, the command may have run");
                }
            });
        }
        self.wake();
    }

    fn resume(&self) {
        self.wake();
    }

    fn gathers(&self, bytes: usize) -> bool {
        self.holds_reply(bytes);
        !self.closed.get() && !self.deaf.get()
    }
}
