//! The three kinds of subscriptions, and their words on the wire (redis `pubsub.c`).

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};

use crate::command::Class;
use crate::resp::{Protocol, encode};

/// Which of the three sets of subscriptions something is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Listen {
    /// SUBSCRIBE.
    Channels,
    /// PSUBSCRIBE.
    Patterns,
    /// SSUBSCRIBE.
    Shards,
}

impl Listen {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Channels, Self::Patterns, Self::Shards];

    /// The command, and the first word of its confirmation.
    #[must_use]
    pub fn subscribe(self) -> &'static str {
        match self {
            Self::Channels => "subscribe",
            Self::Patterns => "psubscribe",
            Self::Shards => "ssubscribe",
        }
    }

    /// The command that ends it, and the first word of that confirmation.
    #[must_use]
    pub fn unsubscribe(self) -> &'static str {
        match self {
            Self::Channels => "unsubscribe",
            Self::Patterns => "punsubscribe",
            Self::Shards => "sunsubscribe",
        }
    }

    /// What a command of this class subscribes to (`true`) or leaves (`false`).
    #[must_use]
    pub fn of(class: Class) -> Option<(Self, bool)> {
        match class {
            Class::Subscribe => Some((Self::Channels, true)),
            Class::PSubscribe => Some((Self::Patterns, true)),
            Class::SSubscribe => Some((Self::Shards, true)),
            Class::Unsubscribe => Some((Self::Channels, false)),
            Class::PUnsubscribe => Some((Self::Patterns, false)),
            Class::SUnsubscribe => Some((Self::Shards, false)),
            _ => None,
        }
    }
}

/// What one client is subscribed to.
#[derive(Debug, Default)]
pub struct Subscriptions {
    channels: BTreeSet<Bytes>,
    patterns: BTreeSet<Bytes>,
    shards: BTreeSet<Bytes>,
    /// The length of all names together.
    bytes: usize,
}

impl Subscriptions {
    /// The names of one kind.
    #[must_use]
    pub fn of(&self, listen: Listen) -> &BTreeSet<Bytes> {
        match listen {
            Listen::Channels => &self.channels,
            Listen::Patterns => &self.patterns,
            Listen::Shards => &self.shards,
        }
    }

    fn of_mut(&mut self, listen: Listen) -> &mut BTreeSet<Bytes> {
        match listen {
            Listen::Channels => &mut self.channels,
            Listen::Patterns => &mut self.patterns,
            Listen::Shards => &mut self.shards,
        }
    }

    /// How many there are of all kinds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.channels.len() + self.patterns.len() + self.shards.len()
    }

    /// The length of their names together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a subscription and appends its confirmation.
    pub fn add(&mut self, listen: Listen, name: &Bytes, protocol: Protocol, out: &mut BytesMut) {
        if self.of_mut(listen).insert(name.clone()) {
            self.bytes += name.len();
        }
        self.confirm(listen.subscribe(), listen, Some(name), protocol, out);
    }

    /// Removes a subscription and appends the confirmation, which there is also for what was not subscribed. `None`:
    /// an UNSUBSCRIBE that had nothing to leave. Tells whether it was there.
    pub fn remove(
        &mut self,
        listen: Listen,
        name: Option<&Bytes>,
        protocol: Protocol,
        out: &mut BytesMut,
    ) -> bool {
        let was_there = name.is_some_and(|name| self.of_mut(listen).remove(name));
        if was_there {
            self.bytes -= name.map_or(0, Bytes::len);
        }
        self.confirm(listen.unsubscribe(), listen, name, protocol, out);
        was_there
    }

    /// The count is of channels and patterns together, or of shard channels.
    fn confirm(
        &self,
        word: &str,
        listen: Listen,
        name: Option<&Bytes>,
        protocol: Protocol,
        out: &mut BytesMut,
    ) {
        let count = match listen {
            Listen::Channels | Listen::Patterns => self.channels.len() + self.patterns.len(),
            Listen::Shards => self.shards.len(),
        };
        encode::push(out, protocol, 3);
        encode::bulk(out, word.as_bytes());
        match name {
            Some(name) => encode::bulk(out, name),
            None => encode::null(out, protocol),
        }
        encode::integer(out, i64::try_from(count).unwrap_or(i64::MAX));
    }
}
