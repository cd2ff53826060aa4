//! What can be set about clients that wait and clients that listen.

use std::time::Duration;

/// How blocking calls wait (`[blocking]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockingOptions {
    /// All blocked clients of a user wait on one connection. Off: each takes a lease, or is tried on a lane.
    pub hub: bool,
    /// Put an element back that was popped for a client that is gone and that nobody else waits for.
    pub give_back: bool,
    /// The shortest time between two tries of one waiting call.
    pub retry_min: Duration,
    /// The longest time between two tries of one waiting call.
    pub retry_max: Duration,
    /// How long after a call's own timeout an answer already under way is still waited for.
    pub grace: Duration,
}

impl Default for BlockingOptions {
    fn default() -> Self {
        Self {
            hub: true,
            give_back: true,
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(1),
            grace: Duration::from_millis(200),
        }
    }
}

/// How subscribers are served (`[pubsub]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PubSubOptions {
    /// All subscribers of a user share one connection. Off: each takes a lease.
    pub hub: bool,
    /// What subscribers notice of the loss of that connection.
    pub resubscribe: Resubscribe,
}

impl Default for PubSubOptions {
    fn default() -> Self {
        Self { hub: true, resubscribe: Resubscribe::default() }
    }
}

/// What subscribers notice when the hub's connection is lost (`pubsub.resubscribe`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resubscribe {
    /// They are closed, as a restart of the server would: their libraries subscribe anew and know that messages may
    /// have been missed.
    #[default]
    Close,
    /// Nothing: the hub subscribes anew, and what was published meanwhile is missed in silence.
    Silent,
}

impl Resubscribe {
    /// The configuration values.
    pub const WORDS: [(&'static str, Self); 2] = [("close", Self::Close), ("silent", Self::Silent)];
}
