//! Who a client is, what it may do, and its place among the others.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::{Client, Reader};
use crate::downstream::admission::{Place, Refused, Stay};
use crate::downstream::identity::{Account, Membership};
use crate::session::{Policy, Rights};
use crate::upstream::Identity;

/// Who one client is.
pub(super) struct Identified {
    /// The account it is logged in as, and the identity that this is upstream.
    membership: RefCell<Option<Membership>>,
    /// What its user may ask for.
    rights: Cell<Rights>,
    /// Its place among those inside, or those that have not logged in. Given back when it is closed.
    place: RefCell<Option<Place>>,
    /// It came by a listener that only this host can reach.
    trusted: bool,
}

impl Identified {
    pub(super) fn new(membership: Option<Membership>, trusted: bool, place: Place) -> Self {
        Self {
            membership: RefCell::new(membership),
            rights: Cell::default(),
            place: RefCell::new(Some(place)),
            trusted,
        }
    }

    /// The client is closed: it is nobody, and has no place.
    pub(super) fn leave(&self) {
        self.membership.take();
        self.place.take();
    }
}

impl Client {
    /// The client is somebody else from now on, or nobody.
    pub(in crate::downstream) fn become_user(&self, membership: Option<Membership>) {
        self.leave_group();
        let account = membership.as_ref().map(|own| Arc::clone(&own.account));
        self.identified.rights.set(account.as_ref().map_or(Rights::ALL, |account| account.rights));
        self.session.borrow_mut().user = account.map(|account| account.user.clone());
        self.identified.membership.replace(membership);
        self.judge_reader();
    }

    /// What it is, where its output is judged.
    pub(in crate::downstream) fn judge_reader(&self) {
        let session = self.session.borrow();
        self.outbound.is_read_by(match (&session.user, session.listens) {
            (None, _) => Reader::Stranger,
            (Some(_), 0) => Reader::Normal,
            (Some(_), _) => Reader::Subscriber,
        });
    }

    /// The identity of its user upstream.
    pub(in crate::downstream) fn identity(&self) -> Option<Arc<Identity>> {
        self.identified.membership.borrow().as_ref().map(|own| Arc::clone(&own.identity))
    }

    /// Its account's number, and the identity that this is upstream.
    pub(in crate::downstream) fn account(&self) -> Option<(u64, Arc<Identity>)> {
        let membership = self.identified.membership.borrow();
        membership.as_ref().map(|own| (own.account.user.id, Arc::clone(&own.identity)))
    }

    /// Who it is without a login, if it may be anybody.
    pub(in crate::downstream) fn anonymous(&self) -> Option<Membership> {
        self.context.directory.anonymous(self.identified.trusted)
    }

    /// Whether it has logged in, or need not.
    pub(in crate::downstream) fn is_logged_in(&self) -> bool {
        self.session.borrow().user.is_some()
    }

    pub(super) fn is_member_by_login(&self, account: &Arc<Account>) -> bool {
        let membership = self.identified.membership.borrow();
        membership.as_ref().is_some_and(|own| own.by_login && Arc::ptr_eq(&own.account, account))
    }

    /// Its user as a number, for the turns of users.
    pub(in crate::downstream) fn user(&self) -> u64 {
        self.session.borrow().user.as_ref().map_or(0, |user| user.id)
    }

    /// What an operator has decided about its commands.
    pub(in crate::downstream) fn policy(&self) -> Policy {
        Policy { rights: self.identified.rights.get(), ..self.context.server.policy() }
    }

    /// Its login is good: it takes a place among those inside.
    ///
    /// # Errors
    /// There is none.
    pub(in crate::downstream) fn go_inside(&self) -> Result<(), Refused> {
        self.identified.place.borrow().as_ref().map_or(Ok(()), Place::go_inside)
    }

    /// Its login is being checked until this is dropped: its place is not given to another meanwhile.
    pub(in crate::downstream) fn is_being_checked(&self) -> Option<impl Drop + use<>> {
        self.identified.place.borrow().as_ref().and_then(Place::is_checked)
    }

    /// Its stay among those that have not logged in, if that is where it is.
    pub(in crate::downstream) fn stay(&self) -> Option<Arc<Stay>> {
        self.identified.place.borrow().as_ref().and_then(Place::stay)
    }
}
