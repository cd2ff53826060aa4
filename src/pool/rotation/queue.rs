//! Who waits for a lane of another key.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use crate::pool::group::{Group, Turn};

/// The groups that wait for a lane of another key, first come, first served.
#[derive(Debug, Default)]
pub(in crate::pool) struct Rotation {
    pub(super) queue: RefCell<VecDeque<Rc<Group>>>,
    /// A task ends the turns of lanes that never run empty.
    pub(super) watched: Cell<bool>,
}

impl Rotation {
    pub(in crate::pool) fn is_empty(&self) -> bool {
        self.queue.borrow().is_empty()
    }

    /// Takes out the first group that a lane of `user` can serve. Those for whom nobody waits any more are forgotten.
    pub(in crate::pool) fn next(&self, user: u64, readonly: bool) -> Option<Rc<Group>> {
        let mut queue = self.queue.borrow_mut();
        queue.retain(|group| {
            let is_wanted = group.has_waiters();
            if !is_wanted {
                group.turn.set(Turn::None);
            }
            is_wanted
        });
        let serves = |group: &Rc<Group>| group.key().user == user && group.key().readonly == readonly;
        let group = queue.iter().position(serves).and_then(|at| queue.remove(at))?;
        group.turn.set(Turn::None);
        Some(group)
    }

    /// How many groups of `user` wait.
    pub(in crate::pool) fn waiting(&self, user: u64) -> usize {
        self.queue.borrow().iter().filter(|group| group.key().user == user).count()
    }

    pub(in crate::pool) fn users(&self) -> Vec<u64> {
        let mut users: Vec<_> = self.queue.borrow().iter().map(|group| group.key().user).collect();
        users.sort_unstable();
        users.dedup();
        users
    }
}
