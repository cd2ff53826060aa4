//! Who hears what, on all workers: what PUBLISH's count is corrected by.
//!
//! The server counts each of our hub connections as one receiver. The client that publishes wants to know how many
//! clients have heard it.

use std::collections::HashMap;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::command::glob;
use crate::session::Listen;

/// Connections of ours that are subscribed to one name, and the clients behind them.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    connections: i64,
    clients: i64,
}

/// All subscriptions of all hubs.
#[derive(Debug, Default)]
pub struct Audience {
    channels: Mutex<HashMap<Bytes, Heard>>,
    patterns: Mutex<HashMap<Bytes, Heard>>,
    shards: Mutex<HashMap<Bytes, Heard>>,
}

impl Audience {
    fn of(&self, listen: Listen) -> &Mutex<HashMap<Bytes, Heard>> {
        match listen {
            Listen::Channels => &self.channels,
            Listen::Patterns => &self.patterns,
            Listen::Shards => &self.shards,
        }
    }

    /// A hub's connection or its clients came or went.
    pub(super) fn change(&self, listen: Listen, name: &Bytes, connections: i64, clients: i64) {
        let mut all = self.of(listen).lock();
        let heard = all.entry(name.clone()).or_default();
        heard.connections += connections;
        heard.clients += clients;
        if heard.connections == 0 && heard.clients == 0 {
            all.remove(name);
        }
    }

    /// Whether nobody listens to anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        Listen::ALL.iter().all(|listen| self.of(*listen).lock().is_empty())
    }

    /// The number of clients that PUBLISH (or SPUBLISH, with `shard`) on `channel` has reached, from the server's count.
    #[must_use]
    pub fn corrected(&self, channel: &[u8], shard: bool, count: i64) -> i64 {
        let listen = if shard { Listen::Shards } else { Listen::Channels };
        let mut more = 0;
        if let Some(heard) = self.of(listen).lock().get(channel) {
            more += heard.clients - heard.connections;
        }
        if !shard {
            for (pattern, heard) in self.patterns.lock().iter() {
                if glob::matches(pattern, channel) {
                    more += heard.clients - heard.connections;
                }
            }
        }
        (count + more).max(0)
    }
}
