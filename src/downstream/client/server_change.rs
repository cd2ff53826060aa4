//! Clients that know something of a server which is no more: a direct connection would have been closed.
//!
//! Libraries remember which scripts a connection has loaded and what HELLO has said, and begin anew with a connection.
//! So a client that has used scripts or functions is closed when the server is another one than before (`upstream`'s `Change`),
//! and one that has said HELLO when the server describes itself otherwise: once it owes and is owed nothing, and in any
//! case before its next command goes to the new server. The others notice nothing.

use std::cell::Cell;

use super::Client;
use crate::command::{Class, Row};
use crate::telemetry::ClientClose;
use crate::upstream::Change;

/// Since which change of the server a client knows things that it forgets.
#[derive(Debug, Default)]
pub(in crate::downstream) struct Learned {
    scripts: Cell<Option<Change>>,
    greeting: Cell<Option<Change>>,
    /// The first command that uses scripts has not been sent yet: what a dial for it finds is no news.
    begun: Cell<bool>,
}

impl Client {
    /// A command of `row` is begun.
    pub(in crate::downstream) fn learns_by(&self, row: &Row) {
        if row.uses_scripts {
            self.uses_scripts();
        } else if row.class == Class::Hello && self.learned.greeting.get().is_none() {
            self.learned.greeting.set(Some(self.context.pool.shared.connector.server_change()));
        }
    }

    /// A script or a function is used, perhaps inside a transaction.
    pub(in crate::downstream) fn uses_scripts(&self) {
        if self.learned.scripts.get().is_none() {
            self.learned.scripts.set(Some(self.context.pool.shared.connector.server_change()));
            self.learned.begun.set(true);
        }
    }

    /// What has been begun is on its way.
    pub(in crate::downstream) fn has_sent(&self) {
        self.learned.begun.set(false);
    }

    /// There is a connection for the command that has waited for it: whether it may be sent.
    pub(in crate::downstream) fn may_go_on(&self) -> Result<(), ClientClose> {
        if self.learned.begun.take() {
            self.learned.scripts.set(Some(self.context.pool.shared.connector.server_change()));
        }
        if self.has_outlived_the_server() { Err(ClientClose::ServerChanged) } else { Ok(()) }
    }

    pub(super) fn knows_things(&self) -> bool {
        self.learned.scripts.get().is_some() || self.learned.greeting.get().is_some()
    }

    /// Whether the server that it knows things of is no more. Cheap for who knows nothing.
    pub(in crate::downstream) fn has_outlived_the_server(&self) -> bool {
        let connector = &self.context.pool.shared.connector;
        let Learned { scripts, greeting, .. } = &self.learned;
        scripts.get().is_some_and(|since| since < connector.server_change())
            || greeting.get().is_some_and(|since| since < connector.facts_change())
    }
}
