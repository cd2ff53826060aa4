//! The state of a subscribed client.

use std::cell::{Cell, RefCell};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::hub::Station;
use crate::pool::{Charge, Unavailable};
use crate::resp::Protocol;
use crate::session::{Listen, Subscriptions};

/// Memory of a name besides its bytes.
const PER_NAME: usize = 256;
/// Size of a name besides its bytes in the message to another process.
const LISTED: usize = 8;

/// A client's subscriptions in the pub/sub hub, and its request there.
#[derive(Debug)]
pub(in crate::downstream) struct Subscriber {
    pub(in crate::downstream) station: Station,
    subscriptions: RefCell<Subscriptions>,
    /// Its names count.
    charge: RefCell<Charge>,
    /// Its request has been answered.
    done: Cell<bool>,
    answered: Notify,
    /// Why its request is given up.
    unserved: RefCell<Option<Unavailable>>,
    /// It has been given all that was published before it last asked.
    is_caught_up: Cell<bool>,
    caught_up: Notify,
    /// So it was after its FIN.
    has_heard_all: Cell<bool>,
    /// It could not go to another process; it is not tried again before this.
    stays_until: Cell<Option<Instant>>,
}

impl Subscriber {
    /// Subscribed to nothing yet.
    pub(in crate::downstream) fn new(station: Station, charge: Charge) -> Self {
        Self {
            station,
            subscriptions: RefCell::default(),
            charge: RefCell::new(charge),
            done: Cell::new(false),
            answered: Notify::new(),
            unserved: RefCell::default(),
            is_caught_up: Cell::new(false),
            caught_up: Notify::new(),
            has_heard_all: Cell::new(false),
            stays_until: Cell::new(None),
        }
    }

    /// The names of one kind.
    pub(in crate::downstream) fn names(&self, listen: Listen) -> Vec<Bytes> {
        self.subscriptions.borrow().of(listen).iter().cloned().collect()
    }

    /// How many names of one kind it has.
    pub(super) fn count(&self, listen: Listen) -> usize {
        self.subscriptions.borrow().of(listen).len()
    }

    pub(in crate::downstream) fn is_empty(&self) -> bool {
        self.subscriptions.borrow().is_empty()
    }

    /// Takes all names away.
    pub(in crate::downstream) fn take_all(&self) -> Subscriptions {
        self.charge.borrow_mut().set(0);
        self.subscriptions.take()
    }

    /// Removes `name`, or answers that there is none without one. Whether it was there.
    pub(in crate::downstream) fn remove(
        &self,
        listen: Listen,
        name: Option<&Bytes>,
        protocol: Protocol,
        out: &mut BytesMut,
    ) -> bool {
        self.subscriptions.borrow_mut().remove(listen, name, protocol, out)
    }

    /// A request of it begins.
    pub(in crate::downstream) fn asks(&self) {
        self.done.set(false);
    }

    pub(in crate::downstream) fn is_done(&self) -> bool {
        self.done.get()
    }

    pub(super) fn is_answered(&self) {
        self.done.set(true);
        self.answered.notify_one();
    }

    /// Returns when its request may have been answered.
    pub(in crate::downstream) async fn answered(&self) {
        self.answered.notified().await;
    }

    /// Why its request is given up, if it is.
    pub(in crate::downstream) fn take_unserved(&self) -> Option<Unavailable> {
        self.unserved.take()
    }

    /// It asks for all that was published before.
    pub(in crate::downstream) fn wants_to_catch_up(&self) {
        self.is_caught_up.set(false);
    }

    /// Returns when it has been given all that was published before it asked.
    pub(in crate::downstream) async fn caught_up(&self) {
        while !self.is_caught_up.get() {
            self.caught_up.notified().await;
        }
    }

    /// It has caught up, with `after_fin` behind its FIN.
    pub(in crate::downstream) fn has_caught_up(&self, after_fin: bool) {
        self.has_heard_all.set(after_fin);
    }

    /// Whether it has been given all that was published before its FIN.
    pub(in crate::downstream) fn has_heard_all(&self) -> bool {
        self.has_heard_all.get()
    }

    /// Whether it may be tried to send it to another process now.
    pub(super) fn may_move(&self, now: Instant) -> bool {
        self.station.is_open() && self.stays_until.get().is_none_or(|until| now >= until)
    }

    /// It could not go there.
    pub(in crate::downstream) fn stays(&self, until: Instant) {
        self.stays_until.set(Some(until));
    }

    /// The bytes of its names, and what it takes to list them.
    pub(super) fn size(&self) -> usize {
        let all = self.subscriptions.borrow();
        all.bytes() + all.len() * LISTED
    }

    /// Adds `names`, and writes their confirmations.
    pub(super) fn add(&self, listen: Listen, names: &[Bytes], protocol: Protocol, out: &mut BytesMut) {
        let mut all = self.subscriptions.borrow_mut();
        for name in names {
            all.add(listen, name, protocol, out);
        }
    }

    /// Counts its names. Returns how many there are, and whether they take more memory than before.
    pub(super) fn count_all(&self) -> (usize, bool) {
        let all = self.subscriptions.borrow();
        let has_grown = self.charge.borrow_mut().set(all.bytes() + all.len() * PER_NAME);
        (all.len(), has_grown)
    }

    /// Its request is given up.
    pub(super) fn gives_up(&self, why: &Unavailable) {
        self.unserved.replace(Some(why.clone()));
        self.is_answered();
    }

    /// All has been given out that was published before it asked.
    pub(super) fn is_up_to_date(&self) {
        self.is_caught_up.set(true);
        self.caught_up.notify_one();
    }
}
