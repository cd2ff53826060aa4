//! What a session's own upstream connection holds, and when it holds nothing any more.
//!
//! A lease ends by a reply, never by a request: a WATCH that was sent may be refused, an EXEC may be one without
//! MULTI (which leaves the watch on), an UNSUBSCRIBE may leave other channels. So every command that is sent pushes an
//! [`Expect`], and the reply that answers it changes the state. Commands whose meaning depends on that state wait until
//! all replies are in ([`Plan::AfterReplies`]); the rest is pipelined as it comes.

mod expected;
mod plan;
mod replies;

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;

use super::transaction::Transaction;
use super::{Flags, Pin, ReplyMode};
use crate::command::{Asked, Class};

pub use expected::{Beside, Expect, Received};
pub use plan::Plan;

/// The state of a leased connection.
#[derive(Debug)]
pub struct LeaseState {
    fifo: VecDeque<(Expect, bool)>,
    ever_sent: u64,
    /// Bytes of requests and replies that are kept in it.
    kept: usize,
    /// How many of them may open a transaction or add subscriptions.
    unsettling: usize,
    channels: HashSet<Bytes>,
    patterns: HashSet<Bytes>,
    shards: HashSet<Bytes>,
    multi: Option<Transaction>,
    watching: bool,
    tracking: bool,
    no_touch: bool,
    /// CLIENT CACHING was sent last: it is about the next command.
    caching: bool,
    monitor: bool,
    /// State that is not modelled: until the client leaves or resets.
    for_good: bool,
    clean: bool,
    failed_publish: Option<Bytes>,
}

impl Default for LeaseState {
    fn default() -> Self {
        Self::new()
    }
}

impl LeaseState {
    /// A lease on a fresh connection.
    #[must_use]
    pub fn new() -> Self {
        Self {
            fifo: VecDeque::new(),
            ever_sent: 0,
            kept: 0,
            unsettling: 0,
            channels: HashSet::new(),
            patterns: HashSet::new(),
            shards: HashSet::new(),
            multi: None,
            watching: false,
            tracking: false,
            no_touch: false,
            caching: false,
            monitor: false,
            for_good: false,
            clean: true,
            failed_publish: None,
        }
    }

    /// Whether the connection holds nothing any more and all replies are in.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.fifo.is_empty() && !self.holds_state()
    }

    /// Whether the connection is known to have no residual state, so that another session may use it.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.clean && self.is_over()
    }

    /// Whether replies are outstanding.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.fifo.is_empty()
    }

    /// Whether nothing but outstanding replies holds the connection, and none of them can bring it new state: what
    /// follows waits for the end of the lease, or a client that pipelines without a pause would keep it for ever.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        let changes_nothing = |(expect, _): &(Expect, bool)| {
            matches!(expect, Expect::Reply | Expect::Counted(_) | Expect::Blocking | Expect::Unwatch)
        };
        !self.fifo.is_empty() && !self.holds_state() && self.fifo.iter().all(changes_nothing)
    }

    /// Whether the oldest reply comes only when its command has waited for something: such a client counts as idle.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        matches!(self.fifo.front(), Some((Expect::Blocking | Expect::Wait, _)))
    }

    /// Whether the server tells this client which keys change that it has read.
    #[must_use]
    pub fn is_tracking(&self) -> bool {
        self.tracking
    }

    /// How many commands were ever sent.
    #[must_use]
    pub fn ever_sent(&self) -> u64 {
        self.ever_sent
    }

    /// How many of them have been answered.
    #[must_use]
    pub fn ever_answered(&self) -> u64 {
        self.ever_sent - self.fifo.len() as u64
    }

    /// Whether a command that is sent now may be queued: what CLIENT CACHING said is about the whole transaction.
    #[must_use]
    pub fn may_be_in_multi(&self) -> bool {
        self.multi.is_some() || self.unsettling > 0
    }

    /// Whether a transaction is open.
    #[must_use]
    pub fn is_in_multi(&self) -> bool {
        self.multi.is_some()
    }

    /// How many commands are outstanding.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.fifo.len()
    }

    /// Bytes of requests and replies that are kept here, for commands under way and for the open transaction.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept + self.multi.as_ref().map_or(0, Transaction::kept)
    }

    /// Whether a command means the same now as when the outstanding replies are in, as far as a transaction and
    /// subscriptions give it another meaning.
    fn is_settled(&self) -> bool {
        self.multi.is_none() && !self.is_subscribed() && self.unsettling == 0
    }

    fn holds_state(&self) -> bool {
        self.multi.is_some() || self.watching || self.stands()
    }

    /// Whether only the client decides when the lease ends ([`Pin::stands`]).
    #[must_use]
    pub fn stands(&self) -> bool {
        self.tracking || self.no_touch || self.monitor || self.for_good || self.is_subscribed()
    }

    /// Whether commands are being queued.
    #[must_use]
    pub fn is_queueing(&self) -> bool {
        self.multi.is_some()
    }

    fn is_subscribed(&self) -> bool {
        !(self.channels.is_empty() && self.patterns.is_empty() && self.shards.is_empty())
    }

    /// Whether its client need say nothing: the server tells it something of its own accord.
    #[must_use]
    pub fn listens(&self) -> bool {
        self.monitor || self.tracking || self.is_subscribed()
    }

    /// The pin to show while the lease is held; `None` when only outstanding replies hold it.
    #[must_use]
    pub fn pin(&self) -> Option<Pin> {
        if self.monitor {
            Some(Pin::Monitor)
        } else if self.is_subscribed() {
            Some(Pin::Subscribed)
        } else if self.multi.is_some() {
            Some(Pin::Multi)
        } else if self.watching {
            Some(Pin::Watch)
        } else if self.tracking {
            Some(Pin::Tracking)
        } else if self.no_touch {
            Some(Pin::NoTouch)
        } else if self.for_good {
            Some(Pin::State)
        } else {
            None
        }
    }

    /// The values for CLIENT LIST.
    #[must_use]
    pub fn flags(&self) -> Flags {
        Flags {
            blocked: self.is_blocked(),
            multi: self.multi.as_ref().map(Transaction::queued),
            watching: self.watching,
            monitor: self.monitor,
            tracking: self.tracking,
            redirect: None,
            broadcast: false,
            no_touch: self.no_touch,
            readonly: false,
            no_evict: false,
            channels: self.channels.len(),
            patterns: self.patterns.len(),
            shards: self.shards.len(),
        }
    }

    /// Notes that a command was sent; `muted` keeps its reply from the client. Tells whether it may leave state.
    pub fn sent(&mut self, expect: Expect, asked: &Asked, muted: bool) {
        let known = matches!(
            asked.class,
            Class::Pass | Class::Publish | Class::PubSub | Class::Ping | Class::Blocking(_) | Class::Unwatch
        ) || matches!(asked.class, Class::Multi | Class::Exec | Class::Discard | Class::Watch);
        self.clean &= match &expect {
            Expect::Queued(member) => member.leaves_nothing(),
            _ => known, // the command itself was sent
        };
        self.caching = asked.class == Class::ClientCaching;
        self.unsettling += usize::from(expect.is_unsettling());
        self.kept += expect.kept();
        self.ever_sent += 1;
        self.fifo.push_back((expect, muted));
    }

    /// The server's refusal of our PUBLISH before WAIT, until WAIT's own reply comes.
    #[must_use]
    pub fn refused_publish(&self) -> Option<&[u8]> {
        self.failed_publish.as_deref()
    }

    /// Whether the reply now arriving is kept from the client.
    #[must_use]
    pub fn mutes_next(&self, mode: ReplyMode) -> bool {
        match self.fifo.front() {
            Some((_, muted)) => *muted,
            // MONITOR's output consists of replies, not pushes (`replicationFeedMonitors` in redis `replication.c`).
            None => self.monitor && mode == ReplyMode::Off,
        }
    }
}
