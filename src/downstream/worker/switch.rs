//! What a worker does when Sentinels name another master: nothing more is asked of the former one, which may stand still, be cut
//! off, or take writes that will be lost.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Worker;
use crate::pool::{Lane, Pool};
use crate::telemetry::ClientClose;

/// Between two looks at what is left.
const STEP: Duration = Duration::from_millis(20);

/// What is left of the connections to the former master.
pub(super) struct Remains {
    pool: Rc<Pool>,
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
        let remains = self.remains_of(&context.pool);
        let (pool, control) = (Rc::clone(&context.pool), Rc::clone(&self.control));
        context.pool.tasks().spawn_local(async move { control.lock().await.leave_deposed(&pool) });
        let worker = Rc::clone(self);
        context.pool.tasks().spawn_local(async move {
            worker.leave_by(remains, end).await;
            let _ = done.send(());
        });
    }

    /// What is left of the connections by `pool`, whose server takes no new commands from now on.
    pub(super) fn remains_of(&self, pool: &Rc<Pool>) -> Remains {
        let clients = self.context.clients.borrow();
        let holders =
            clients.iter().filter(|(_, client)| client.holds_lease(pool)).map(|(id, _)| *id).collect();
        drop(clients);
        Remains { pool: Rc::clone(pool), lanes: pool.depose(), holders }
    }

    /// Closes what is left, when it waits for nothing any more and at `end` at the latest.
    pub(super) async fn leave_by(self: Rc<Self>, mut remains: Remains, end: Instant) {
        while !self.leave(&mut remains, Instant::now() >= end) && !self.context.is_stopping() {
            tokio::time::sleep(STEP).await;
        }
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
            let client = self.context.client(*id).filter(|client| client.holds_lease(&remains.pool));
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
