//! Options of takeovers.

use std::path::PathBuf;
use std::time::Duration;

/// How another process may take over (`[takeover]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakeoverOptions {
    /// The Unix socket for takeovers; none if they are disabled.
    pub socket: Option<PathBuf>,
    /// How long clients that stay with the process that was replaced may stay.
    pub client_timeout: Duration,
}

impl Default for TakeoverOptions {
    fn default() -> Self {
        Self { socket: None, client_timeout: Duration::from_secs(3600) }
    }
}
