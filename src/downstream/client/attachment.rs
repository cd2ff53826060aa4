//! The state of a client: the route of its commands, or what they wait for.
//!
//! Listings print it, the drain and CLIENT UNBLOCK decide by it. Subscriptions are not among the states: a RESP3 client that is
//! subscribed has commands on lanes and leases, too.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::sync::Notify;

use crate::hub::Unblock;
use crate::session::{Flags, Pin};
use crate::telemetry::ClientClose;

/// The state of one client.
#[derive(Clone, Debug)]
pub(in crate::downstream) enum Attachment {
    /// Its commands go over lanes as they come.
    Serving,
    /// Its next command waits for PROXY RESUME.
    Paused,
    /// Its next command waits for a lane.
    AwaitingLane,
    /// Its next command waits for a lease.
    AwaitingLease,
    /// It waits for earlier messages or for its subscriptions; then its command is answered.
    AwaitingPubSub { owes_reply: bool },
    /// A command of it is answered beside its lanes: a listing, the control connection, a database seen for the first time.
    Answering,
    /// Its login is being checked.
    LoggingIn,
    /// Its commands go over a connection of its own.
    Leased(Rc<LeasedState>),
    /// A blocking call of it waits.
    Blocked(Rc<BlockedCall>),
    /// It is a subscriber between two processes.
    Moving,
    /// Its task is closing it.
    Closing(ClientClose),
}

/// The public view of a client's lease.
#[derive(Debug)]
pub(in crate::downstream) struct LeasedState {
    pin: Pin,
    flags: Cell<Flags>,
    /// Replies are owed that do not wait for other clients.
    owes_replies: Cell<bool>,
}

impl LeasedState {
    pub(in crate::downstream) fn new(pin: Pin) -> Rc<Self> {
        Rc::new(Self { pin, flags: Cell::default(), owes_replies: Cell::new(true) })
    }

    /// The state of the lease, and whether a drain waits for its replies.
    pub(in crate::downstream) fn note(&self, flags: Flags, owes_replies: bool) {
        self.flags.set(flags);
        self.owes_replies.set(owes_replies);
    }

    /// The same while members of its transaction are answered here.
    pub(in crate::downstream) fn note_flags(&self, flags: Flags) {
        self.flags.set(flags);
    }
}

/// Where a blocking call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::downstream) enum BlockedOn {
    /// In the hub of its user: it holds nothing upstream.
    Hub,
    /// On a lease, or for one; it is tried on a lane meanwhile.
    Lease,
}

/// A blocking call, for the code that may end it: CLIENT UNBLOCK, and the client's own FIN.
pub(in crate::downstream) struct BlockedCall {
    on: Cell<BlockedOn>,
    /// The lease of its client, if that has one for other reasons.
    lease: Option<Rc<LeasedState>>,
    unblock: Cell<Option<Unblock>>,
    woken: Notify,
}

impl std::fmt::Debug for BlockedCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockedCall").field("on", &self.on.get()).finish_non_exhaustive()
    }
}

impl BlockedCall {
    pub(in crate::downstream) fn waits_on(&self, on: BlockedOn) {
        self.on.set(on);
    }

    /// Whether it is all that its client has: the client holds no lease for other reasons.
    pub(in crate::downstream) fn is_alone(&self) -> bool {
        self.lease.is_none()
    }

    /// How CLIENT UNBLOCK ends it, if it does.
    pub(in crate::downstream) fn take_unblock(&self) -> Option<Unblock> {
        self.unblock.take()
    }

    /// Whether CLIENT UNBLOCK applies to it, and its outcome is not decided yet.
    pub(in crate::downstream) fn is_being_unblocked(&self) -> bool {
        let unblock = self.unblock.take();
        let is = unblock.is_some();
        self.unblock.set(unblock);
        is
    }

    /// Returns when CLIENT UNBLOCK names it, or its client has closed its side.
    pub(in crate::downstream) async fn woken(&self) {
        self.woken.notified().await;
    }
}

/// The state of one client, and its transitions.
#[derive(Debug)]
pub(in crate::downstream) struct AttachmentCell(RefCell<Attachment>);

impl Default for AttachmentCell {
    fn default() -> Self {
        Self(RefCell::new(Attachment::Serving))
    }
}

/// A state that ends when this is dropped: the one before it comes back.
#[must_use]
pub(in crate::downstream) struct Entered<'a> {
    cell: &'a AttachmentCell,
    before: Attachment,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let before = std::mem::replace(&mut self.before, Attachment::Serving);
        self.cell.0.replace(before);
    }
}

impl AttachmentCell {
    /// Enters `next` until the guard is dropped.
    pub(in crate::downstream) fn enter(&self, next: Attachment) -> Entered<'_> {
        Entered { cell: self, before: self.0.replace(next) }
    }

    /// Waits for the pub/sub hub until the guard is dropped.
    pub(in crate::downstream) fn await_pubsub(&self) -> Entered<'_> {
        let owes_reply = !matches!(*self.0.borrow(), Attachment::Serving);
        self.enter(Attachment::AwaitingPubSub { owes_reply })
    }

    /// A blocking call begins, which waits until the guard is dropped.
    pub(in crate::downstream) fn block(&self) -> (Rc<BlockedCall>, Entered<'_>) {
        let lease = match &*self.0.borrow() {
            Attachment::Leased(lease) => Some(Rc::clone(lease)),
            _ => None,
        };
        let call = Rc::new(BlockedCall {
            on: Cell::new(BlockedOn::Lease),
            lease,
            unblock: Cell::new(None),
            woken: Notify::new(),
        });
        (Rc::clone(&call), self.enter(Attachment::Blocked(call)))
    }

    /// The client's task closes it.
    pub(in crate::downstream) fn close(&self, reason: ClientClose) {
        self.0.replace(Attachment::Closing(reason));
    }

    fn blocked(&self) -> Option<Rc<BlockedCall>> {
        match &*self.0.borrow() {
            Attachment::Blocked(call) => Some(Rc::clone(call)),
            _ => None,
        }
    }

    /// CLIENT UNBLOCK, of a call that waits here. The first one stays.
    pub(in crate::downstream) fn unblock(&self, how: Unblock) {
        if let Some(call) = self.blocked().filter(|call| !call.is_being_unblocked()) {
            call.unblock.set(Some(how));
            call.woken.notify_one();
        }
    }

    /// Its FIN has arrived; the blocking call decides the consequence.
    pub(in crate::downstream) fn wake_blocked(&self) {
        if let Some(call) = self.blocked() {
            call.woken.notify_one();
        }
    }

    /// Another process has taken over: a blocking call that `may_go` there looks whether it can.
    pub(in crate::downstream) fn wake_to_go(&self, may_go: impl FnOnce(&BlockedCall) -> bool) {
        if let Some(call) = self.blocked().filter(|call| may_go(call)) {
            call.woken.notify_one();
        }
    }

    /// Its flags in listings, as far as this state has any.
    pub(in crate::downstream) fn flags(&self) -> Flags {
        match &*self.0.borrow() {
            Attachment::Leased(lease) => lease.flags.get(),
            Attachment::Blocked(call) => {
                let held = call.lease.as_ref().map(|lease| lease.flags.get());
                Flags { blocked: true, ..held.unwrap_or_default() }
            }
            _ => Flags::default(),
        }
    }

    /// Whether a drain waits for it, where `owes` says whether replies of lanes are missing or bytes unsent. A blocked
    /// client is not waited for: its call is given up, as by a server that stops.
    pub(in crate::downstream) fn is_busy(&self, owes: impl FnOnce() -> bool) -> bool {
        match &*self.0.borrow() {
            Attachment::Serving | Attachment::Closing(_) => owes(),
            Attachment::AwaitingPubSub { owes_reply } => *owes_reply || owes(),
            Attachment::Paused
            | Attachment::AwaitingLane
            | Attachment::AwaitingLease
            | Attachment::Answering
            | Attachment::LoggingIn => true,
            Attachment::Leased(lease) => !lease.flags.get().blocked && (lease.owes_replies.get() || owes()),
            Attachment::Blocked(_) | Attachment::Moving => false,
        }
    }

    /// Whether its own task waits for something else than its next command.
    pub(in crate::downstream) fn is_away(&self) -> bool {
        !matches!(*self.0.borrow(), Attachment::Serving | Attachment::Closing(_))
    }

    /// Whether it holds a connection of its own.
    pub(in crate::downstream) fn holds_lease(&self) -> bool {
        match &*self.0.borrow() {
            Attachment::Leased(_) => true,
            Attachment::Blocked(call) => call.lease.is_some(),
            _ => false,
        }
    }

    /// Whether its next command waits for PROXY RESUME: a drain does not wait for that.
    pub(in crate::downstream) fn is_paused(&self) -> bool {
        matches!(*self.0.borrow(), Attachment::Paused)
    }

    /// Whether it is on its way to or from another process.
    pub(in crate::downstream) fn is_moving(&self) -> bool {
        matches!(*self.0.borrow(), Attachment::Moving)
    }

    /// The text in listings.
    pub(in crate::downstream) fn label(&self, is_subscribed: bool) -> &'static str {
        match &*self.0.borrow() {
            Attachment::Serving | Attachment::Answering if is_subscribed => "pubsub hub",
            Attachment::Serving | Attachment::Answering | Attachment::LoggingIn => "lane",
            Attachment::Paused => "paused",
            Attachment::AwaitingLane => "waits for a lane",
            Attachment::AwaitingLease => "waits for a lease",
            Attachment::AwaitingPubSub { .. } => "waits for the pub/sub hub",
            Attachment::Leased(lease) => lease.pin.label(),
            Attachment::Blocked(call) => match call.on.get() {
                BlockedOn::Hub => Pin::HUB,
                BlockedOn::Lease => Pin::Blocked.label(),
            },
            Attachment::Moving => "moving",
            Attachment::Closing(reason) => reason.label(),
        }
    }
}
