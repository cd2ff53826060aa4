//! The lanes that a client's commands go over, and what they owe it.

use std::cell::Cell;
use std::rc::Rc;

use tokio::time::Instant;

use crate::pool::{Group, Lane};

/// The lanes of one client.
#[derive(Default)]
pub(super) struct Lanes {
    /// Replies that lanes still owe.
    outstanding: Cell<u32>,
    /// The lane that its last command went over.
    last: Cell<Option<Rc<Lane>>>,
    group: Cell<Option<Rc<Group>>>,
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
        look(&self.last)
    }

    /// Its lanes, if it has used any since its key has changed.
    pub(super) fn group(&self) -> Option<Rc<Group>> {
        look(&self.group)
    }

    /// These are its lanes from now on.
    pub(super) fn join(&self, group: &Rc<Group>) {
        group.join();
        self.group.set(Some(Rc::clone(group)));
    }

    /// Its lanes are no longer its own.
    pub(super) fn leave(&self) {
        self.last.set(None);
        if let Some(group) = self.group.take() {
            group.part(Instant::now());
        }
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

/// What `cell` holds, which stays there.
fn look<T>(cell: &Cell<Option<Rc<T>>>) -> Option<Rc<T>> {
    let held = cell.take();
    let copy = held.clone();
    cell.set(held);
    copy
}
