//! The promise of replies, and who gets them.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::refusal::Held;
use crate::pool::LONG;
use crate::pool::measures::Sample;

/// What a reply takes besides its bytes while it is kept.
const PER_FRAME: usize = 64;

/// Who gets replies. Called from the lane's task; must not call back into the lane.
pub trait Receiver {
    /// Bytes of replies, in order; with them `ended` replies are complete, and with `begun` the last one is not.
    fn replies(&self, bytes: &[u8], ended: u32, begun: bool);
    /// `ended` complete replies, which were held here until they were whole.
    fn whole(&self, replies: Bytes, ended: u32);
    /// The connection is lost: `unanswered` commands were written and have no reply; `partial` when the first of them
    /// had begun. With `muted` nothing is owed for them: their replies were unwanted, or a time-out was the answer.
    fn lost(&self, unanswered: u32, muted: bool, partial: bool);
    /// The lane takes commands again after [`Lane::is_full`](super::Lane::is_full).
    fn resume(&self);
    /// So many bytes of a reply that must be whole are held here for it. `false`: it is being closed, and they need not be.
    fn gathers(&self, bytes: usize) -> bool;
    /// The server has refused the first of these and has run nothing of it; behind it, all that it had on the lane, in order.
    /// It owes itself their replies, by [`steps`](super::steps).
    fn takes_back(self: Rc<Self>, held: Vec<Held>);
}

/// The connection was lost before the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// What becomes of an exchange of our own: all its reply frames, whole, or the loss.
pub type Then = Box<dyn FnOnce(Result<Vec<Bytes>, Lost>)>;

/// What becomes of a reply on its way to its receiver. Must not call back into the lane.
pub type Change = Box<dyn FnOnce(Bytes) -> Bytes>;

/// What is to be known of commands that are pushed together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nature {
    /// Their replies are not wanted (CLIENT REPLY): they are read and dropped.
    pub muted: bool,
    /// The text of a reply may be of a script's making, or a module's, or is not all there is to say of what has run: it
    /// says nothing of the server.
    pub may_invent: bool,
    /// They are a whole transaction: the last one is its EXEC.
    pub is_block: bool,
}

/// The promise of replies, in the order of the commands.
pub(super) enum Slot {
    Replies {
        to: Rc<dyn Receiver>,
        count: u32,
        since: Instant,
        /// Replies are read and dropped: CLIENT REPLY OFF, or the client was answered with a time-out.
        muted: bool,
        /// See [`Nature`].
        may_invent: bool,
        is_block: bool,
        /// Answered with a time-out already; only the late reply is awaited.
        abandoned: bool,
        /// Few are measured at the client's edge. Boxed, so that the others have no more to carry.
        sample: Option<Box<Sample>>,
    },
    /// One reply that is read whole, changed, and delivered in its turn.
    Changed {
        to: Rc<dyn Receiver>,
        left: u32,
        partial: BytesMut,
        since: Instant,
        /// It is the EXEC of a transaction.
        is_exec: bool,
        /// Gone when the client was answered with a time-out.
        change: Option<Change>,
    },
    Whole {
        /// For whom it is made, if it is for one client.
        owner: Option<Rc<dyn Receiver>>,
        left: u32,
        frames: Vec<Bytes>,
        partial: BytesMut,
        gathered: Gathered,
        since: Instant,
        then: Option<Then>,
        /// What a PING must be answered with.
        nonce: Option<Bytes>,
        /// See [`Nature`].
        is_block: bool,
    },
}

/// What is held here of replies that must be whole, so that their client's memory counts it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gathered {
    /// Bytes of whole replies, and what each takes besides.
    whole: usize,
    /// As much as the client was last told.
    told: usize,
}

impl Gathered {
    /// One more reply of `len` bytes is whole.
    pub(super) fn is_whole(&mut self, len: usize) {
        self.whole += len + PER_FRAME;
    }

    /// What to tell the client now, if it is much more than it was last told; `partial` bytes of a reply have begun.
    pub(super) fn due(&mut self, partial: usize) -> Option<usize> {
        let bytes = self.whole + partial;
        let is_more = bytes >= self.told + LONG;
        if is_more {
            self.told = bytes;
        }
        is_more.then_some(bytes)
    }
}

impl Slot {
    pub(super) fn since(&self) -> Instant {
        match self {
            Self::Replies { since, .. } | Self::Changed { since, .. } | Self::Whole { since, .. } => *since,
        }
    }

    pub(super) fn left(&self) -> u32 {
        match self {
            Self::Replies { count, .. } => *count,
            Self::Changed { left, .. } | Self::Whole { left, .. } => *left,
        }
    }
}
