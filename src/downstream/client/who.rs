//! A client's identity, as the rest of this room asks for it.

use std::sync::Arc;

use super::Client;
use super::outbound::Reader;
use crate::downstream::admission::{Refused, Stay};
use crate::downstream::identity::Membership;
use crate::session::Policy;
use crate::upstream::Identity;

impl Client {
    /// Changes the account of the client, or removes it.
    pub(in crate::downstream) fn become_user(&self, membership: Option<Membership>) {
        self.leave_group();
        self.context.redirections.close_inbox(self.id());
        self.session.borrow_mut().user = membership.as_ref().map(|own| own.account.user.clone());
        self.identified.become_user(membership);
        self.judge_reader();
    }

    /// The kind of the client, which determines its output limits.
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
        self.identified.identity()
    }

    /// Its account's number, and the identity that this is upstream.
    pub(in crate::downstream) fn account(&self) -> Option<(u64, Arc<Identity>)> {
        self.identified.account()
    }

    /// Its account without a login, if there is one.
    pub(in crate::downstream) fn anonymous(&self) -> Option<Membership> {
        self.context.directory.anonymous(self.identified.trusted)
    }

    /// Whether it has logged in, or need not.
    pub(in crate::downstream) fn is_logged_in(&self) -> bool {
        self.session.borrow().user.is_some()
    }

    /// Its user as a number, for the turns of users.
    pub(in crate::downstream) fn user(&self) -> u64 {
        self.session.borrow().user.as_ref().map_or(0, |user| user.id)
    }

    /// The operator's policy for its commands.
    pub(in crate::downstream) fn policy(&self) -> Policy {
        Policy { rights: self.identified.rights(), ..self.context.server.policy() }
    }

    /// Its login is good: it takes a place among those inside.
    ///
    /// # Errors
    /// There is none.
    pub(in crate::downstream) fn go_inside(&self) -> Result<(), Refused> {
        self.identified.go_inside()
    }

    /// Its login is being checked until this is dropped: its place is not given to another meanwhile.
    pub(in crate::downstream) fn is_being_checked(&self) -> Option<impl Drop + use<>> {
        self.identified.is_being_checked()
    }

    /// Its stay among those that have not logged in, if that is where it is.
    pub(in crate::downstream) fn stay(&self) -> Option<Arc<Stay>> {
        self.identified.stay()
    }
}
