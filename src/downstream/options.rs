//! Options of clients: limits and timeouts.

use std::time::Duration;

use crate::upstream::Keepalive;

/// How much memory may be held for all clients together (`client.memory_max`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryMax {
    /// A share of the memory that there is.
    Percent(u8),
    /// Bytes; 0 for no bound.
    Size(usize),
}

/// Limits and timeouts of one client (`[client]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// Clients at the same time, those that must log in when they have.
    pub max: usize,
    /// Peers at the same time that have not logged in.
    pub max_unauthenticated: usize,
    /// Clients from one address at the same time; 0 for as many as `max`.
    pub max_per_address: usize,
    /// A client that sends nothing for this long is closed; `None` leaves it to keepalive.
    pub idle_timeout: Option<Duration>,
    /// A client that must log in and has not within this time is closed.
    pub login_timeout: Duration,
    /// A client that sent half a command and nothing more for this long is closed.
    pub half_command_timeout: Duration,
    /// The largest request in bytes, as Redis's `client-query-buffer-limit`.
    pub request_limit: usize,
    /// The memory limit of all clients together.
    pub memory_max: MemoryMax,
    /// Commands of one client that may be outstanding before its socket is not read.
    pub pipeline_limit: usize,
    /// Unsent reply bytes above which no more of a client's requests are read.
    pub output_soft_limit: usize,
    /// Unsent reply bytes above which a client is closed.
    pub output_hard_limit: usize,
    /// How much a subscriber may leave unread.
    pub output_buffer_limit: OutputLimit,
    /// How long a client's host may leave sent data unacknowledged. Not below [`Keepalive::total`].
    pub user_timeout: Duration,
    /// Without effect: no client that is slow to read is closed by time.
    pub user_timeout_backpressured: Option<Duration>,
    /// TCP keepalive of an idle client.
    pub keepalive: Keepalive,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            max: 10_000,
            max_unauthenticated: 1_000,
            max_per_address: 0,
            idle_timeout: None,
            login_timeout: Duration::from_secs(10),
            half_command_timeout: Duration::from_secs(60),
            request_limit: 1 << 30,
            memory_max: MemoryMax::Percent(25),
            pipeline_limit: 1024,
            output_soft_limit: 1 << 20,
            output_hard_limit: 512 << 20,
            output_buffer_limit: OutputLimit::default(),
            user_timeout: Duration::from_secs(12),
            user_timeout_backpressured: None,
            keepalive: Keepalive::default(),
        }
    }
}

/// How much a subscriber may leave unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputLimit {
    /// Bytes above which it is closed at once.
    pub hard: usize,
    /// Bytes above which it is closed after `soft_for`.
    pub soft: usize,
    /// How long it may stay above `soft`.
    pub soft_for: Duration,
}

impl Default for OutputLimit {
    /// Redis's own limits for subscribers (`client-output-buffer-limit pubsub`).
    fn default() -> Self {
        Self { hard: 32 << 20, soft: 8 << 20, soft_for: Duration::from_secs(60) }
    }
}
