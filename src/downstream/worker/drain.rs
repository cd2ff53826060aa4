//! How a worker stops: every client that is owed a reply gets it first, within a deadline.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Worker;
use crate::downstream::context::Stage;
use crate::downstream::workers::Message;
use crate::telemetry::{ClientClose, UpstreamClose, client_closed};

/// How often a drain looks whether it is done.
const DRAIN_STEP: Duration = Duration::from_millis(5);
/// How many clients that are owed nothing are closed in one step: those that connect elsewhere do not all come at once.
const BATCH: usize = 50;

impl Worker {
    /// Closes idle and blocked clients in batches, the others when their answers are out, and then everything upstream.
    pub(super) async fn drain(
        self: &Rc<Self>,
        deadline: Instant,
        messages: &mut mpsc::Receiver<Message>,
    ) -> usize {
        self.context.stage.set(Stage::Stopping);
        for task in self.upkeep.take() {
            task.abort();
        }
        let mut cut = 0;
        while !self.context.clients.borrow().is_empty() {
            let late = Instant::now() >= deadline;
            let mut closed = 0;
            for client in self.context.clients.borrow().values() {
                if late && client.is_busy() && client.close_reason().is_none() {
                    cut += 1;
                }
                if late {
                    client.close(ClientClose::Shutdown);
                } else if client.is_busy() && !client.waits_in_vain_for_a_drain() {
                    client.wake();
                } else if closed < BATCH {
                    closed += 1;
                    // One that waits for nothing closes by itself.
                    match client.waits_in_vain_for_a_drain() {
                        true => client.close(ClientClose::Shutdown),
                        false => client.wake(),
                    }
                }
            }
            self.pause(messages).await;
        }
        while self.is_settling() && Instant::now() < deadline {
            self.pause(messages).await;
        }
        // Accepted in the last moment: their sockets close with their messages.
        messages.close();
        while let Ok(message) = messages.try_recv() {
            if matches!(message, Message::Client(_)) {
                client_closed(ClientClose::Shutdown);
            }
        }
        self.context.pools().iter().for_each(|pool| pool.stop());
        for (_, hubs) in self.context.all_hubs() {
            hubs.leave_all(UpstreamClose::Shutdown);
        }
        self.context.pubsub.leave_all(UpstreamClose::Shutdown);
        let mut control = self.control.lock().await;
        // It has said all it had to say on the control connection. From here on nothing is opened that would have to be claimed.
        self.keeper.iter().for_each(AbortHandle::abort);
        control.close(&self.context.pool, UpstreamClose::Shutdown).await;
        drop(control);
        let tasks = self.context.pool.tasks();
        tasks.close();
        let patience = self.context.pool.shared.upstream.get().close_timeout + Duration::from_secs(1);
        if tokio::time::timeout(patience, tasks.wait()).await.is_err() {
            tracing::warn!("some connections did not close in time");
        }
        self.publish();
        cut
    }

    /// Whether replies or elements are still under way.
    fn is_settling(&self) -> bool {
        self.context.pools().iter().map(|pool| pool.outstanding()).sum::<usize>()
            + self.context.all_hubs().iter().map(|(_, hubs)| hubs.in_flight()).sum::<usize>()
            + self.context.give_back.pending()
            + self.context.saving.get()
            > 0
    }

    /// One step of the drain; questions from outside are still answered.
    async fn pause(self: &Rc<Self>, messages: &mut mpsc::Receiver<Message>) {
        if let Ok(Some(message)) = tokio::time::timeout(DRAIN_STEP, messages.recv()).await {
            self.handle(message);
        }
    }
}
