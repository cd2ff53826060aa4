//! How many subscribers are between two processes at a time: so few that each of them is there for a short time only.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

/// So many at a time.
const AT_A_TIME: usize = 32;

/// Subscribers that are on their way, and those that wait for it.
#[derive(Debug, Default)]
pub(in crate::downstream) struct Departures {
    moving: Cell<usize>,
    waiting: RefCell<BTreeSet<u64>>,
}

impl Departures {
    /// Whether client `id` may begin. If not, it is named by [`Self::end`] later.
    pub(in crate::downstream) fn may_begin(&self, id: u64) -> bool {
        let may = self.moving.get() < AT_A_TIME;
        if !may {
            self.waiting.borrow_mut().insert(id);
        }
        may
    }

    /// Client `id` begins.
    pub(in crate::downstream) fn begin(&self, id: u64) {
        self.moving.set(self.moving.get() + 1);
        self.waiting.borrow_mut().remove(&id);
    }

    /// One has gone, or stays. Returns who may begin now; it may have left.
    pub(in crate::downstream) fn end(&self) -> Option<u64> {
        self.moving.set(self.moving.get().saturating_sub(1));
        self.waiting.borrow_mut().pop_first()
    }
}
