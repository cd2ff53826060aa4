//! What can be set about sharing a server's connections with other instances.

use std::time::Duration;

/// How all instances on a server share its connections (`[fleet]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetOptions {
    /// Connections of all instances together; 0: nothing is shared, each instance has `pool.max_connections`.
    pub total: usize,
    /// Of these, connections that no instance claims: for the control connections of instances that start.
    pub headroom: usize,
    /// What each instance claims even when it is idle, its control connection among them.
    pub minimum: usize,
    /// How often an instance that needs nothing looks at the others.
    pub interval: Duration,
}

impl FleetOptions {
    /// Whether connections are shared.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.total > 0
    }

    /// What all instances together may claim.
    #[must_use]
    pub fn claimable(&self) -> usize {
        self.total.saturating_sub(self.headroom)
    }
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self { total: 0, headroom: 2, minimum: 4, interval: Duration::from_secs(5) }
    }
}
