//! What a worker does when Sentinels name another master: nothing more is asked of the former one, which may stand still, be cut
//! off, or take writes that will be lost.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Worker;
use crate::pool::Lane;
use crate::telemetry::ClientClose;

/// Between two looks at what is left.
const STEP: Duration = Duration::from_millis(20);

/// What is left of the connections to the former master.
struct Remains {
    lanes: Vec<Rc<Lane>>,
    /// Clients with connections of their own.
    holders: Vec<u64>,
}

impl Worker {
    /// Leaves the former master. Replies to what was sent there are waited for as long as `grace`; then their clients are
    /// closed, as those are at once that hold a connection there and wait for nothing.
    pub(super) fn switch_master(self: &Rc<Self>, grace: Duration, done: oneshot::Sender<()>) {
        let end = Instant::now() + grace;
        let context = &self.context;
        context.hubs.depose(end);
        context.pubsub.depose(end);
        let clients = context.clients.borrow();
        let holders = clients.iter().filter(|(_, client)| client.holds_lease()).map(|(id, _)| *id).collect();
        drop(clients);
        let mut remains = Remains { lanes: context.pool.depose(), holders };
        let (pool, control) = (Rc::clone(&context.pool), Rc::clone(&self.control));
        context.pool.tasks().spawn_local(async move { control.lock().await.leave_deposed(&pool) });
        let worker = Rc::clone(self);
        context.pool.tasks().spawn_local(async move {
            while !worker.leave(&mut remains, Instant::now() >= end) && !worker.context.is_stopping() {
                tokio::time::sleep(STEP).await;
            }
            let _ = done.send(());
        });
    }

    /// Closes what waits for nothing any more, or everything if it is `late`. Returns whether nothing is left.
    fn leave(&self, remains: &mut Remains, late: bool) -> bool {
        remains.lanes.retain(|lane| {
            if late && !lane.is_closed() {
                lane.condemn();
            }
            !lane.is_closed()
        });
        remains.holders.retain(|id| {
            let client = self.context.client(*id).filter(|client| client.holds_lease());
            let Some(client) = client else { return false };
            if late || !client.is_busy() {
                client.close(ClientClose::LeaseLost);
                return false;
            }
            true
        });
        remains.lanes.is_empty() && remains.holders.is_empty()
    }
}
