//! A lease: one upstream connection that one session holds alone.

use tokio::time::Instant;

use super::{LaneKey, Permit};
use crate::upstream::UpstreamStream;

/// A connection of a session's own, logged in under `key`. Whoever drops it closes it; [`super::Pool::end_lease`]
/// closes it in order, or hands it on when it is clean.
#[derive(Debug)]
pub struct Lease {
    /// The socket.
    pub stream: UpstreamStream,
    /// What it is logged in as.
    pub key: LaneKey,
    /// Its place under the cap.
    pub permit: Permit,
    /// When it was dialled.
    pub opened: Instant,
    /// The connector's generation then: one from before the server moved is not handed on.
    pub generation: u64,
}

impl Lease {
    /// Whether the connection is quiet and open. Data or end of file on an idle connection means that it cannot be
    /// trusted: it must not be lent.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.stream.is_quiet()
    }
}
