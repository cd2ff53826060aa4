//! What a worker does when the server is another one than before: clients that know things of the former one are closed.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::Worker;
use crate::telemetry::ClientClose;

/// How soon a pause between two looks ends with a drain.
const STEP: Duration = Duration::from_millis(100);

impl Worker {
    /// Closes those who have outlived the server they knew; to be called in short intervals.
    pub(super) fn close_outdated_clients(self: &Rc<Self>) {
        let change = self.context.pool.shared.connector.server_change();
        if change != self.heeded.change.get() || self.heeded.unfinished.get() {
            self.heeded.change.set(change);
            self.heeded.unfinished.set(false);
            for client in
                self.context.clients.borrow().values().filter(|client| client.has_outlived_the_server())
            {
                // Its answers first. A command that waits for a connection finds out before it is sent.
                if client.is_busy() {
                    self.heeded.unfinished.set(true);
                } else {
                    client.close(ClientClose::ServerChanged);
                }
            }
        }
        if self.context.pool.take_loss() {
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
        let context = Rc::clone(&self.context);
        self.context.pool.tasks().spawn_local(async move {
            loop {
                let concerned = context.clients.borrow().values().find_map(|client| client.lanes_to_watch());
                let Some((key, identity)) = concerned else { break };
                let group = context.pool.group(key, &identity);
                if context.pool.lane_ready(&group, context.pool.wait_deadline()).await.is_ok() {
                    break;
                }
                // In small steps: a drain waits for this task.
                let again = Instant::now() + context.pool.shared.upstream.get().backoff_max;
                while Instant::now() < again && !context.is_stopping() {
                    tokio::time::sleep(STEP).await;
                }
                if context.is_stopping() {
                    break;
                }
            }
            worker.heeded.looking.set(false);
        });
    }
}
