//! What is in flight.

use bytes::Bytes;
use tokio::time::Instant;

use crate::resp;

/// Requests in one write of ours that the server answers together.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) purpose: Purpose,
    pub(super) since: Instant,
    /// SELECT of this database is the first member.
    pub(super) select: Option<u32>,
    /// The spots whose cardinality is asked, by the last members in this order.
    pub(super) cards: Vec<usize>,
    /// ASKING is before it.
    pub(super) asking: bool,
    /// Replies read so far.
    seen: usize,
    /// MULTI was refused, so the members ran on their own.
    pub(super) unguarded: bool,
    /// The first member that the server refused to queue, and its words.
    pub(super) refused: Option<(usize, Bytes)>,
}

/// What a request in flight is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// The call of these waiters: of one, or of several that ask for the same entries of a stream.
    Call {
        waiters: Vec<u64>,
        /// As it was sent.
        request: Bytes,
    },
    /// The ids that a call's `$` and `+` stand for.
    Positions { waiter: u64, count: usize },
    /// Whether there is anything at all where nothing should be.
    Look { spots: Vec<usize> },
    /// Whether the user may use a database; by itself, so that nothing follows in the wrong one.
    Select(u32),
    /// Whether this slot moves: a shard channel of it is subscribed to. The confirmation is a push.
    Canary(u16),
    /// That we are alive.
    Ping,
    /// Whether the server is a master.
    Role,
}

impl Purpose {
    /// It is sent by itself, outside of MULTI, and has one reply.
    fn is_alone(&self) -> bool {
        matches!(self, Self::Select(_) | Self::Canary(_) | Self::Ping | Self::Role)
    }
}

impl Sent {
    pub(super) fn new(purpose: Purpose) -> Self {
        Self {
            purpose,
            since: Instant::now(),
            select: None,
            cards: Vec::new(),
            asking: false,
            seen: 0,
            unguarded: false,
            refused: None,
        }
    }

    /// The waiters in it.
    pub(super) fn waiters(&self) -> &[u64] {
        match &self.purpose {
            Purpose::Call { waiters, .. } => waiters,
            Purpose::Positions { waiter, .. } => std::slice::from_ref(waiter),
            Purpose::Look { .. }
            | Purpose::Select(_)
            | Purpose::Canary(_)
            | Purpose::Ping
            | Purpose::Role => &[],
        }
    }

    /// Whether a waiter's own call is among it.
    pub(super) fn runs_a_call(&self) -> bool {
        matches!(self.purpose, Purpose::Call { .. })
    }

    /// How many members stand between SELECT and the cardinalities.
    pub(super) fn own_members(&self) -> usize {
        match self.purpose {
            Purpose::Call { .. } | Purpose::Look { .. } => 1,
            Purpose::Positions { count, .. } => count,
            Purpose::Select(_) | Purpose::Canary(_) | Purpose::Ping | Purpose::Role => 0,
        }
    }

    pub(super) fn members(&self) -> usize {
        usize::from(self.select.is_some()) + self.own_members() + self.cards.len()
    }

    /// Takes the next reply. `true`: it was the last one.
    pub(super) fn take(&mut self, frame: &[u8]) -> bool {
        let at = self.seen;
        self.seen += 1;
        if self.purpose.is_alone() {
            return true;
        }
        // What is said of ASKING says nothing: where it is not taken, what follows is refused.
        let Some(at) = at.checked_sub(usize::from(self.asking)) else { return false };
        if at > self.members() {
            return true;
        }
        if resp::is_error(frame) {
            let Some(member) = at.checked_sub(1) else {
                // The members run on their own, and the call may block: there may be no further reply.
                self.unguarded = true;
                return true;
            };
            self.refused.get_or_insert_with(|| (member, Bytes::copy_from_slice(frame)));
        }
        false
    }
}

/// Which spots a try asks about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ask {
    /// All that are not settled.
    All,
    /// All but this one: a later try of the same write asks about it.
    AllBut(usize),
}
