//! The lanes of a client's commands, and their outstanding replies.

use std::cell::Cell;
use std::rc::Rc;

use crate::pool::{Group, Lane, SessionGuard};

/// The lanes of one client.
#[derive(Default)]
pub(super) struct Lanes {
    /// Replies that lanes still owe.
    outstanding: Cell<u32>,
    /// The lane that its last command went over.
    last: Cell<Option<Rc<Lane>>>,
    /// Its use of the lanes of its key.
    session: Cell<Option<SessionGuard>>,
    /// Since its last blocking call it has sent commands, and may wait for what they wrote.
    has_written: Cell<bool>,
}

impl Lanes {
    /// Replies that lanes still owe.
    pub(super) fn outstanding(&self) -> u32 {
        self.outstanding.get()
    }

    /// `count` commands go over `lane`.
    pub(super) fn owe(&self, lane: &Rc<Lane>, count: u32) {
        self.outstanding.set(self.outstanding.get() + count);
        self.has_written.set(true);
        let last = self.last.take().filter(|last| Rc::ptr_eq(last, lane));
        self.last.set(Some(last.unwrap_or_else(|| Rc::clone(lane))));
    }

    /// So many commands are answered, or never will be. Returns how many are left.
    pub(super) fn settle(&self, count: u32) -> u32 {
        let left = self.outstanding.get().saturating_sub(count);
        self.outstanding.set(left);
        left
    }

    /// The lane that its last command went over.
    pub(super) fn last(&self) -> Option<Rc<Lane>> {
        look(&self.last, Rc::clone)
    }

    /// Its lanes, if it has used any since its key has changed.
    pub(super) fn group(&self) -> Option<Rc<Group>> {
        look(&self.session, |session| Rc::clone(session))
    }

    /// These are its lanes from now on.
    pub(super) fn join(&self, group: &Rc<Group>) {
        self.session.set(Some(group.attach()));
    }

    /// Its use of the lanes of its key, which it takes up again or not.
    pub(super) fn take_session(&self) -> Option<SessionGuard> {
        self.last.set(None);
        self.session.take()
    }

    /// See [`Self::take_session`].
    pub(super) fn restore(&self, session: Option<SessionGuard>) {
        self.session.set(session);
    }

    /// Its lanes are no longer its own.
    pub(super) fn leave(&self) {
        self.last.set(None);
        self.session.set(None);
    }

    /// It has sent a command that a blocking call behind it may wait for.
    pub(super) fn note_written(&self) {
        self.has_written.set(true);
    }

    /// Whether it has, since it was last asked.
    pub(super) fn take_written(&self) -> bool {
        self.has_written.take()
    }
}

/// A copy of what `cell` holds, which stays there.
fn look<T, C>(cell: &Cell<Option<T>>, copy: impl FnOnce(&T) -> C) -> Option<C> {
    let held = cell.take();
    let copied = held.as_ref().map(copy);
    cell.set(held);
    copied
}
