//! Clients that know something of a server which is no more: a direct connection would have been closed.
//!
//! Libraries remember which scripts a connection has loaded and what HELLO has said, and begin anew with a connection.
//! So a client that has used scripts or functions is closed when the server is another one than before ([`Change`](crate::upstream::Change)),
//! and one that has said HELLO when the server describes itself otherwise: once it owes and is owed nothing, and in any
//! case before its next command goes to the new server. The others notice nothing.

use super::Client;
use crate::command::{Class, Row};
use crate::telemetry::ClientClose;

impl Client {
    /// A command of `row` is begun.
    pub(super) fn learns_by(&self, row: &Row) {
        if row.uses_scripts {
            self.uses_scripts();
        } else if row.class == Class::Hello {
            self.learned.greets(|| self.context.pool.shared.connector.server_change());
        }
    }

    /// A script or a function is used, perhaps inside a transaction.
    pub(in crate::downstream) fn uses_scripts(&self) {
        self.learned.uses_scripts(|| self.context.pool.shared.connector.server_change());
    }

    /// What has been begun is on its way.
    pub(in crate::downstream) fn has_sent(&self) {
        self.learned.has_sent();
    }

    /// There is a connection for the command that has waited for it: whether it may be sent.
    ///
    /// # Errors
    /// The server is another one than the client knows.
    pub(in crate::downstream) fn may_go_on(&self) -> Result<(), ClientClose> {
        self.learned.sends(|| self.context.pool.shared.connector.server_change());
        if self.has_outlived_the_server() { Err(ClientClose::ServerChanged) } else { Ok(()) }
    }

    /// Whether the server that it knows things of is no more. Cheap for a client that knows nothing.
    pub(in crate::downstream) fn has_outlived_the_server(&self) -> bool {
        // In a cluster no one node's end is that of the server; a script that is missing somewhere is loaded again there.
        if self.routing().is_some() {
            return false;
        }
        let connector = &self.context.pool.shared.connector;
        self.learned.is_outdated(|| connector.server_change(), || connector.facts_change())
    }
}
