//! A client in listings, errors and the log.

use std::sync::Arc;

use tokio::time::Instant;

use super::Client;
use crate::pool::HoldingClient;
use crate::session::{ClientRow, Endpoint, Flags, Listen, Pin};

impl Client {
    /// Its row while it holds a connection for the reason `pin`.
    pub(in crate::downstream) fn holding(&self, pin: Pin) -> Arc<HoldingClient> {
        let session = self.session.borrow();
        let user = session.user.as_ref().map(|user| Arc::clone(&user.name));
        let client = HoldingClient::new(self.id(), &session.name, self.peer.clone(), user, pin.label());
        client.sends(self.last_command.get());
        Arc::new(client)
    }

    /// Where its commands go, in a word.
    pub(in crate::downstream) fn place_shown(&self) -> &'static str {
        self.attachment.label(self.session.borrow().listens > 0)
    }

    /// Its row in listings.
    pub(in crate::downstream) fn row(&self, now: Instant) -> ClientRow {
        // Both ends of a Unix socket have the same name.
        let local = self.outbound.socket().local().map_or_else(|| self.peer.clone(), Endpoint::from);
        let session = self.session.borrow();
        let mut row = ClientRow::of(&session, self.peer.clone(), local);
        row.place = self.attachment.label(session.listens > 0);
        drop(session);
        row.age = self.connected_for();
        row.idle = now.saturating_duration_since(self.inbound.last_input());
        row.flags = self.listed_flags();
        row.input = self.inbound.len();
        row.output = self.outbound.unsent();
        row.memory = self.outbound.memory();
        row.command = self.last_command.get().map_or("NULL", |row| row.name);
        row.transport = self.outbound.socket().transport();
        row
    }

    /// Its flags in listings.
    pub(in crate::downstream) fn listed_flags(&self) -> Flags {
        let mut flags = self.attachment.flags();
        let session = self.session.borrow();
        flags.readonly = session.readonly;
        flags.no_evict = session.no_evict;
        flags.tracking |= session.tracking.is_some();
        flags.broadcast |= session.tracking.as_ref().is_some_and(|tracking| tracking.prefixes.is_some());
        flags.redirect = session.tracking.as_ref().and_then(|tracking| tracking.redirect);
        drop(session);
        if let Some(subscriber) = &*self.subscriber.borrow() {
            let count = |listen| subscriber.count(listen);
            flags.channels += count(Listen::Channels);
            flags.patterns += count(Listen::Patterns);
            flags.shards += count(Listen::Shards);
        }
        flags
    }
}
