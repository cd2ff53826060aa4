//! Options for orphaned connections.

use std::time::Duration;

/// When connections on the server count as orphans, and how often they are looked for (`[hygiene]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HygieneOptions {
    /// Whether orphans are killed.
    pub reap: bool,
    /// An instance none of whose connections was active for this long is dead.
    pub orphan_after: Duration,
    /// How often orphans are looked for.
    pub interval: Duration,
}

impl Default for HygieneOptions {
    fn default() -> Self {
        Self { reap: true, orphan_after: Duration::from_secs(60), interval: Duration::from_secs(30) }
    }
}
