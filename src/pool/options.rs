//! What can be set about the pool: how many upstream connections there may be and how long each kind of waiting lasts.

use std::time::Duration;

/// The bound on upstream connections and the times that govern them (`[pool]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Upstream connections of all kinds, those being dialled or closing included.
    pub max_connections: usize,
    /// Lanes that one (user, database, protocol) may have at the most.
    pub lanes_per_key: usize,
    /// A lane whose clients have sent nothing for this long closes.
    pub idle_timeout: Duration,
    /// A lane without clients closes after this.
    pub linger: Duration,
    /// A connection older than this (±10%) is replaced when nothing is in flight on it.
    pub max_lifetime: Duration,
    /// How long a command waits for an upstream connection before its client gets an error.
    pub wait_timeout: Duration,
    /// A client that holds a lease and is silent for this long is closed; `None` leaves it to the client.
    pub lease_idle_timeout: Option<Duration>,
    /// How long a lane keeps its turn when there are more keys than permits.
    pub min_turn: Duration,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            max_connections: 8,
            lanes_per_key: 2,
            idle_timeout: Duration::from_secs(30),
            linger: Duration::from_secs(1),
            max_lifetime: Duration::from_secs(3600),
            wait_timeout: Duration::from_secs(2),
            lease_idle_timeout: None,
            min_turn: Duration::from_millis(50),
        }
    }
}
