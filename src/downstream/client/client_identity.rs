//! The user of a client, its rights, and its slot.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use crate::downstream::admission::{AdmissionGuard, Refused, Stay};
use crate::downstream::identity::{Account, Membership};
use crate::session::Rights;
use crate::upstream::Identity;

/// The identity of one client.
pub(super) struct ClientIdentity {
    /// The account it is logged in as, and the identity that this is upstream.
    membership: RefCell<Option<Membership>>,
    /// The commands that its user may send.
    rights: Cell<Rights>,
    /// Its place among those inside, or those that have not logged in. Given back when it is closed.
    place: RefCell<Option<AdmissionGuard>>,
    /// It came by a listener that only this host can reach.
    pub(super) trusted: bool,
}

impl ClientIdentity {
    pub(super) fn new(membership: Option<Membership>, trusted: bool, place: AdmissionGuard) -> Self {
        Self {
            membership: RefCell::new(membership),
            rights: Cell::default(),
            place: RefCell::new(Some(place)),
            trusted,
        }
    }

    /// Changes its account, or removes it.
    pub(super) fn become_user(&self, membership: Option<Membership>) {
        let rights = membership.as_ref().map_or(Rights::ALL, |own| own.account.rights);
        self.rights.set(rights);
        self.membership.replace(membership);
    }

    pub(super) fn rights(&self) -> Rights {
        self.rights.get()
    }

    /// The identity of its user upstream.
    pub(super) fn identity(&self) -> Option<Arc<Identity>> {
        self.membership.borrow().as_ref().map(|own| Arc::clone(&own.identity))
    }

    /// Its account's number, and the identity that this is upstream.
    pub(super) fn account(&self) -> Option<(u64, Arc<Identity>)> {
        let membership = self.membership.borrow();
        membership.as_ref().map(|own| (own.account.user.id, Arc::clone(&own.identity)))
    }

    /// The identity whose secret it has shown, if it has shown any.
    pub(super) fn shown_secret(&self) -> Option<Arc<Identity>> {
        let membership = self.membership.borrow();
        membership.as_ref().filter(|own| own.by_login).map(|own| Arc::clone(&own.identity))
    }

    /// Whether it has logged in as `account` by showing a secret.
    pub(super) fn has_logged_in_as(&self, account: &Arc<Account>) -> bool {
        let membership = self.membership.borrow();
        membership.as_ref().is_some_and(|own| own.by_login && Arc::ptr_eq(&own.account, account))
    }

    /// Its login is good: it takes a place among those inside.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn go_inside(&self) -> Result<(), Refused> {
        self.place.borrow().as_ref().map_or(Ok(()), AdmissionGuard::go_inside)
    }

    /// Its login is being checked until this is dropped.
    pub(super) fn is_being_checked(&self) -> Option<impl Drop + use<>> {
        self.place.borrow().as_ref().and_then(AdmissionGuard::is_checked)
    }

    /// Its stay among those that have not logged in, if that is where it is.
    pub(super) fn stay(&self) -> Option<Arc<Stay>> {
        self.place.borrow().as_ref().and_then(AdmissionGuard::stay)
    }

    /// Moves it to another worker, with its account and slot. `None`: it has no account.
    pub(super) fn hand_over(&self) -> Option<(Membership, AdmissionGuard)> {
        let (mut membership, mut place) = (self.membership.borrow_mut(), self.place.borrow_mut());
        if membership.is_none() {
            return None;
        }
        place.take().and_then(|place| Some((membership.take()?, place)))
    }

    /// Closes the client: it has no account and no slot any more.
    pub(super) fn leave(&self) {
        self.membership.take();
        self.place.take();
    }
}
