//! A command that the fast path cannot finish, as it is handed on.

use bytes::Bytes;

use crate::session::Route;

/// A command taken out of the input that the fast path cannot finish.
#[derive(Debug)]
pub(in crate::downstream) struct PendingCommand {
    /// The whole canonical frame (or block of frames).
    pub(in crate::downstream) request: Bytes,
    /// Where it goes.
    pub(in crate::downstream) route: Route,
    /// Its reply is not wanted.
    pub(in crate::downstream) muted: bool,
    /// See [`Nature`].
    pub(in crate::downstream) may_invent: bool,
    /// How many replies it is owed; more than one are a transaction's.
    pub(in crate::downstream) replies: u32,
    /// A reply counts our hubs where it should count their clients: PUBLISH, or a block with one.
    pub(in crate::downstream) counts: bool,
    /// What it reads is remembered, because its client tracks.
    pub(in crate::downstream) remembered: bool,
}
