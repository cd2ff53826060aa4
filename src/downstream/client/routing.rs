//! The routes of one client's commands in a cluster.
//!
//! A client has commands outstanding on one node at a time. A command for another node waits for all earlier replies,
//! so the commands of a client run in the order in which it sent them, as on one server.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;

use crate::nodes::NodePools;
use crate::pool::{Charge, LONG, Lost, Pool, SessionGuard};

/// Commands that were sent, and are kept until it is known that they ran.
#[derive(Clone, Debug)]
pub(in crate::downstream) struct Kept {
    /// Whole canonical frames.
    pub(in crate::downstream) commands: Bytes,
    /// As many replies are owed.
    pub(in crate::downstream) count: u32,
    /// The replies are not wanted.
    pub(in crate::downstream) muted: bool,
    /// They are one transaction, MULTI and EXEC included.
    pub(in crate::downstream) is_block: bool,
    /// A reply counts our hubs where it should count their clients.
    pub(in crate::downstream) counts: bool,
}

/// What commands that are kept take besides their bytes.
const PER_KEPT: usize = 512;
/// What is kept is counted in steps of this, so that a command which is answered at once costs no more than an addition.
const STEP: usize = 16 << 10;

impl Kept {
    /// What they count until they are answered. Long ones count by themselves.
    fn size(&self) -> usize {
        PER_KEPT + if self.commands.len() < LONG { self.commands.len() } else { 0 }
    }
}

/// Their outcomes.
#[derive(Debug)]
pub(in crate::downstream) struct Answer {
    pub(in crate::downstream) kept: Kept,
    /// Their replies, each whole.
    pub(in crate::downstream) outcome: Result<Vec<Bytes>, Lost>,
}

impl Answer {
    /// What it counts while it waits.
    fn size(&self) -> usize {
        let replies = self.outcome.as_ref().map_or(0, |replies| replies.iter().map(Bytes::len).sum());
        self.kept.size() + replies
    }
}

/// The part of a client that only those of a cluster have.
pub(in crate::downstream) struct Routing {
    pub(in crate::downstream) pools: Rc<NodePools>,
    /// The pool of the node that its commands go to.
    at: RefCell<Rc<Pool>>,
    /// Its use of lanes of other nodes, which stay while it may come back to them.
    stays: RefCell<Vec<(Rc<Pool>, SessionGuard)>>,
    /// Replies that wait until it is known what becomes of earlier commands.
    answers: RefCell<VecDeque<Answer>>,
    is_mending: Cell<bool>,
    /// MULTI was answered, and where its commands go is not known yet.
    multi: Cell<bool>,
    /// The slot of the keys that its lease is for.
    slot: Cell<Option<u16>>,
    /// What is kept for it, and as much of it as counts.
    held: Cell<usize>,
    counted: Cell<usize>,
    charge: RefCell<Charge>,
}

impl Routing {
    pub(super) fn new(pools: &Rc<NodePools>, charge: Charge) -> Self {
        Self {
            pools: Rc::clone(pools),
            at: RefCell::new(Rc::clone(pools.home())),
            stays: RefCell::default(),
            answers: RefCell::default(),
            is_mending: Cell::new(false),
            multi: Cell::new(false),
            slot: Cell::new(None),
            held: Cell::new(0),
            counted: Cell::new(0),
            charge: RefCell::new(charge),
        }
    }

    /// The pool of the node that its commands go to.
    pub(super) fn at(&self) -> Rc<Pool> {
        Rc::clone(&self.at.borrow())
    }

    /// Whether that is the pool of `node`.
    pub(in crate::downstream) fn is_at(&self, node: &Rc<Pool>) -> bool {
        Rc::ptr_eq(&self.at.borrow(), node)
    }

    /// Its commands go to `node` from now on. `session` is its use of the lanes it leaves; returns that of the lanes it comes to.
    pub(super) fn go_to(&self, node: &Rc<Pool>, session: Option<SessionGuard>) -> Option<SessionGuard> {
        let left = self.at.replace(Rc::clone(node));
        let mut stays = self.stays.borrow_mut();
        let at = stays.iter().position(|(pool, _)| Rc::ptr_eq(pool, node));
        let found = at.map(|at| stays.swap_remove(at).1);
        stays.extend(session.map(|session| (left, session)));
        found
    }

    /// None of its lanes are its own any more.
    pub(super) fn leave(&self) {
        self.stays.borrow_mut().clear();
    }

    /// `kept` is sent. Whether notably more is kept than before.
    pub(in crate::downstream) fn keeps(&self, kept: &Kept) -> bool {
        self.holds(self.held.get() + kept.size())
    }

    /// `kept` need not be kept any more.
    pub(in crate::downstream) fn releases(&self, kept: &Kept) {
        self.holds(self.held.get().saturating_sub(kept.size()));
    }

    /// So much is held for it. Whether notably more counts than before.
    fn holds(&self, held: usize) -> bool {
        self.held.set(held);
        let counted = self.counted.get();
        if held.abs_diff(counted) < STEP && (held > 0 || counted == 0) {
            return false;
        }
        self.counted.set(held);
        self.charge.borrow_mut().set(held)
    }

    /// Keeps an answer behind others that wait. Whether notably more is kept than before.
    pub(in crate::downstream) fn hold(&self, answer: Answer) -> bool {
        let has_grown = self.holds(self.held.get() + answer.size());
        self.answers.borrow_mut().push_back(answer);
        has_grown
    }

    /// The next answer that waits.
    pub(in crate::downstream) fn next_answer(&self) -> Option<Answer> {
        let answer = self.answers.borrow_mut().pop_front()?;
        self.holds(self.held.get().saturating_sub(answer.size()));
        Some(answer)
    }

    /// MULTI was answered; where its commands go is decided with the first of them.
    pub(in crate::downstream) fn opens_multi(&self) {
        self.multi.set(true);
    }

    /// Whether it was. The next command is the first.
    pub(in crate::downstream) fn take_multi(&self) -> bool {
        self.multi.take()
    }

    /// Whether MULTI was answered and nothing sent yet.
    pub(in crate::downstream) fn has_multi(&self) -> bool {
        self.multi.get()
    }

    /// The lease that follows is for keys of this slot, or for none.
    pub(in crate::downstream) fn leases_for(&self, slot: Option<u16>) {
        self.slot.set(slot);
    }

    /// See [`Self::leases_for`].
    pub(in crate::downstream) fn leased_slot(&self) -> Option<u16> {
        self.slot.get()
    }

    /// Whether answers wait.
    pub(in crate::downstream) fn has_answers(&self) -> bool {
        !self.answers.borrow().is_empty()
    }

    /// Whether a new command must wait for an earlier one.
    pub(in crate::downstream) fn is_holding(&self) -> bool {
        self.is_mending.get() || self.has_answers()
    }

    /// An earlier command is sent again; later ones wait.
    pub(in crate::downstream) fn mends(&self, mends: bool) {
        self.is_mending.set(mends);
    }
}
