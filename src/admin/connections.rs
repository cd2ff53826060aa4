//! The admin port's open connections: a bound, and who gives way at it.
//!
//! A probe must be answered however many others are connected. So a new connection is always accepted, and at the
//! bound the one that has been idle longest is closed; where none is idle, the oldest.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::task::AbortHandle;

/// Whether a request is being answered on a connection.
pub(super) type Busy = Rc<Cell<bool>>;

/// The open connections, by age.
#[derive(Debug)]
pub(super) struct Connections {
    limit: usize,
    next: Cell<u64>,
    open: Rc<RefCell<BTreeMap<u64, Open>>>,
}

#[derive(Debug)]
struct Open {
    busy: Busy,
    task: AbortHandle,
}

/// Takes its connection off the list, also when its task is aborted.
struct Listed {
    number: u64,
    open: Rc<RefCell<BTreeMap<u64, Open>>>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.open.borrow_mut().remove(&self.number);
    }
}

impl Connections {
    /// None open; at most `limit` will be.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, next: Cell::default(), open: Rc::default() }
    }

    /// Serves a connection by `converse`. Must be called on a `LocalRuntime`.
    pub(super) fn open<F: Future<Output = ()> + 'static>(&self, converse: impl FnOnce(Busy) -> F) {
        if self.open.borrow().len() >= self.limit {
            self.give_way();
        }
        let (number, busy) = (self.next.get(), Busy::default());
        self.next.set(number + 1);
        let listed = Listed { number, open: Rc::clone(&self.open) };
        let work = converse(Rc::clone(&busy));
        let task = tokio::task::spawn_local(async move {
            work.await;
            drop(listed);
        });
        self.open.borrow_mut().insert(number, Open { busy, task: task.abort_handle() });
    }

    fn give_way(&self) {
        let mut open = self.open.borrow_mut();
        let idle = open.iter().find(|(_, open)| !open.busy.get()).map(|(number, _)| *number);
        if let Some(number) = idle.or_else(|| open.keys().next().copied())
            && let Some(gone) = open.remove(&number)
        {
            gone.task.abort();
        }
    }
}
