//! Which lanes are told of changes over which.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

/// Where the server tells of changes for one of the lanes `L`.
pub(super) struct Redirection<L> {
    /// The lane over which this one is told, and its id on the server.
    pub(super) hearing: RefCell<Option<(Rc<L>, u64)>>,
    /// The lanes that are told over this one.
    pub(super) others: RefCell<Vec<Weak<L>>>,
    /// So many replies had come here before the last answer that the telling lane has given.
    pub(super) settled: Rc<Cell<u64>>,
    /// A PING is outstanding there for this lane.
    pub(super) is_settling: Rc<Cell<bool>>,
    /// Something was told since the last one was sent.
    pub(super) has_told: Cell<bool>,
}

impl<L> Default for Redirection<L> {
    fn default() -> Self {
        Self {
            hearing: RefCell::new(None),
            others: RefCell::default(),
            settled: Rc::default(),
            is_settling: Rc::default(),
            has_told: Cell::default(),
        }
    }
}
