//! Which slots of a cluster a hub watches.

use std::collections::HashSet;

use crate::cluster::slot_of;

/// What the channels are called, before the tag.
pub(super) const CHANNEL: &str = "redbouncer:";

/// What is known of slots, in the hub of a node.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Those whose channel is subscribed to, or has been asked for.
    pub(super) watched: HashSet<u16>,
    /// The user or the server refuses shard channels.
    pub(super) is_refused: bool,
}

impl Slots {
    /// Nothing is known of a new connection.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// The slot of a channel of ours.
pub(super) fn slot_of_channel(channel: &[u8]) -> Option<u16> {
    channel.starts_with(CHANNEL.as_bytes()).then(|| slot_of(channel))
}
