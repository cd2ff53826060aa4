//! Clients that know something of a server which is no more: a direct connection would have been closed.
//!
//! Libraries remember which scripts a connection has loaded and what HELLO has said, and begin anew with a connection.
//! So a client that has used scripts or functions is closed when the server is another one than before (`upstream`'s `Change`),
//! and one that has said HELLO when the server describes itself otherwise: once it owes and is owed nothing, and in any
//! case before its next command goes to the new server. The others notice nothing.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::Worker;
use super::client::Client;
use crate::command::{Class, Row};
use crate::telemetry::ClientClose;
use crate::upstream::Change;

/// How soon a pause between two looks ends with a drain.
const STEP: Duration = Duration::from_millis(100);

/// Since which change of the server a client knows things that it forgets.
#[derive(Debug, Default)]
pub(super) struct Learned {
    scripts: Cell<Option<Change>>,
    greeting: Cell<Option<Change>>,
    /// The first command that uses scripts has not been sent yet: what a dial for it finds is no news.
    begun: Cell<bool>,
}

/// What one worker has done about changes.
#[derive(Debug, Default)]
pub(super) struct Heeded {
    change: Cell<Change>,
    /// Not all clients concerned could be closed yet.
    unfinished: Cell<bool>,
    /// A dial is under way that shows whether the server is another one.
    looking: Cell<bool>,
}

impl Client {
    /// A command of `row` is begun.
    pub(super) fn learns_by(&self, row: &Row) {
        if row.uses_scripts {
            self.uses_scripts();
        } else if row.class == Class::Hello && self.learned.greeting.get().is_none() {
            self.learned.greeting.set(Some(self.worker.pool.shared.connector.server_change()));
        }
    }

    /// A script or a function is used, perhaps inside a transaction.
    pub(super) fn uses_scripts(&self) {
        if self.learned.scripts.get().is_none() {
            self.learned.scripts.set(Some(self.worker.pool.shared.connector.server_change()));
            self.learned.begun.set(true);
        }
    }

    /// What has been begun is on its way.
    pub(super) fn has_sent(&self) {
        self.learned.begun.set(false);
    }

    /// There is a connection for the command that has waited for it: whether it may be sent.
    pub(super) fn may_go_on(&self) -> Result<(), ClientClose> {
        if self.learned.begun.take() {
            self.learned.scripts.set(Some(self.worker.pool.shared.connector.server_change()));
        }
        if self.has_outlived_the_server() { Err(ClientClose::ServerChanged) } else { Ok(()) }
    }

    fn knows_things(&self) -> bool {
        self.learned.scripts.get().is_some() || self.learned.greeting.get().is_some()
    }

    /// Whether the server that it knows things of is no more. Cheap for who knows nothing.
    pub(super) fn has_outlived_the_server(&self) -> bool {
        let connector = &self.worker.pool.shared.connector;
        let Learned { scripts, greeting, .. } = &self.learned;
        scripts.get().is_some_and(|since| since < connector.server_change())
            || greeting.get().is_some_and(|since| since < connector.facts_change())
    }
}

impl Worker {
    /// Closes those who have outlived the server they knew; to be called in short intervals.
    pub(super) fn heed_changes(self: &Rc<Self>) {
        let change = self.pool.shared.connector.server_change();
        if change != self.heeded.change.get() || self.heeded.unfinished.get() {
            self.heeded.change.set(change);
            self.heeded.unfinished.set(false);
            for client in self.clients.borrow().values().filter(|client| client.has_outlived_the_server()) {
                // Its answers first. A command that waits for a connection finds out before it is sent.
                if client.is_busy() {
                    self.heeded.unfinished.set(true);
                } else {
                    client.doom(ClientClose::ServerChanged);
                }
            }
        }
        if self.pool.take_loss() {
            self.look_for_a_change();
        }
    }

    /// A lane was lost. Nobody may have a reason to dial for long, so where somebody would have to know whether the server
    /// is another one now, it is found out.
    fn look_for_a_change(self: &Rc<Self>) {
        if self.heeded.looking.replace(true) {
            return;
        }
        let worker = Rc::clone(self);
        self.pool.tasks().spawn_local(async move {
            loop {
                let concerned =
                    worker.clients.borrow().values().find(|client| client.knows_things()).cloned();
                let Some((key, identity)) = concerned.and_then(|client| client.lane_key()) else { break };
                let group = worker.pool.group(key, &identity);
                if worker.pool.lane_ready(&group, worker.pool.wait_deadline()).await.is_ok() {
                    break;
                }
                // In small steps: a drain waits for this task.
                let again = Instant::now() + worker.pool.shared.upstream.backoff_max;
                while Instant::now() < again && !worker.stopping.get() {
                    tokio::time::sleep(STEP).await;
                }
                if worker.stopping.get() {
                    break;
                }
            }
            worker.heeded.looking.set(false);
        });
    }
}
