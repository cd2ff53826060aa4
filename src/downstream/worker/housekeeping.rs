//! What a worker does by itself, every tick and once a second.

use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use super::Worker;
use crate::downstream::context::Stage;
use crate::downstream::workers::WorkerFigures;
use crate::pool::{HumanDuration, Pressure};
use crate::telemetry::{publish_gauge, publish_tasks};

impl Worker {
    pub(super) fn tick(self: &Rc<Self>, ticks: u64) {
        let now = Instant::now();
        self.context.pool.tick(now);
        self.tend_nodes(now);
        let is_deserted = self.context.workers.clients() == 0;
        for (_, hubs) in self.context.all_hubs() {
            hubs.tick(now, is_deserted);
        }
        self.context.pubsub.tick(now);
        self.tend_homes(now);
        self.heed_refusals();
        self.close_outdated_clients();
        self.tend_slow_readers();
        self.tend_paused();
        if self.context.stage.get() == Stage::Leaving {
            self.send_on();
        }
        self.context.keep_within_bound();
        for user in self.context.pool.shared.budget.crowded() {
            self.context.pool.make_room_within(user, now);
        }
        // A lane or a hub may have been too young to give up, a blocking call still on its way to its lease.
        let pressure = self.context.pool.shared.budget.pressure();
        if pressure.any() {
            self.release_under_pressure(pressure, now);
        }
        self.context.server.learn_from_login();
        if let Some(waited) = self.context.pool.shared.pause.expire(now) {
            tracing::info!(after = %HumanDuration(waited), "PROXY PAUSE has expired; commands continue");
        }
        if !ticks.is_multiple_of(10) {
            return;
        }
        for client in self.context.clients.borrow().values() {
            client.age(now);
        }
        self.publish();
        let (pool, control) = (Rc::clone(&self.context.pool), Rc::clone(&self.control));
        let options = self.context.pool.shared.options.get();
        let limit = if self.context.workers.clients() == 0 { options.linger } else { options.idle_timeout };
        self.context.pool.tasks().spawn_local(async move {
            // In use: then it is not idle.
            if let Ok(mut control) = control.try_lock() {
                control.age(&pool, limit).await;
            }
        });
    }

    /// Gives up what others wait for and cannot do without.
    pub(super) fn release_under_pressure(&self, pressure: Pressure, now: Instant) {
        self.context.pool.release_under_pressure(pressure, now);
        let wanted = pressure.leases + pressure.hubs + pressure.lanes;
        let coming = self.context.pool.shared.budget.closing();
        self.context.hubs.yield_open_permits(wanted.saturating_sub(coming), now);
    }

    /// A login of a lane, a lease or a hub was refused: whoever has shown that secret is not let in any more.
    fn heed_refusals(self: &Rc<Self>) {
        let pools = self.context.pools();
        for user in pools.iter().flat_map(|pool| pool.take_refusals()) {
            for account in self.context.directory.live(user) {
                let (directory, workers) =
                    (Arc::clone(&self.context.directory), self.context.workers.clone());
                self.context
                    .pool
                    .tasks()
                    .spawn_local(async move { workers.revoke(&directory, account).await });
            }
        }
    }

    /// Every tick: those who are above their soft output limit.
    fn tend_slow_readers(&self) {
        let slow = std::mem::take(&mut *self.context.slow_readers.borrow_mut());
        let clients = self.context.clients.borrow();
        let still: Vec<u64> = slow
            .into_iter()
            .filter(|id| clients.get(id).is_some_and(|client| client.tend_output()))
            .collect();
        self.context.slow_readers.borrow_mut().extend(still);
    }

    /// Every tick: those that were read no further may go on where there is room, or where they have waited long enough.
    fn tend_paused(&self) {
        let paused: Vec<u64> = self.context.paused.borrow().keys().copied().collect();
        if !self.context.pool.shared.memory.is_above_mark() {
            self.context.paused.borrow_mut().clear();
        }
        let clients = self.context.clients.borrow();
        for client in paused.iter().filter_map(|id| clients.get(id)) {
            client.wake();
        }
    }

    pub(super) fn publish(&self) {
        self.context.metrics.publish();
        self.context.pools().iter().for_each(|pool| pool.measures().publish());
        publish_gauge(
            "redbouncer_clients",
            &[("worker", &self.context.metrics.label)],
            self.context.clients.borrow().len(),
        );
        publish_tasks(&format!("worker-{}", self.context.metrics.label));
    }

    pub(super) fn figures(&self) -> WorkerFigures {
        let (context, measures) = (&self.context, self.context.pool.measures());
        let hubs = context.all_hubs();
        WorkerFigures {
            replies: measures.replies.clone(),
            round_trips: measures.round_trips.clone(),
            families: context.metrics.families(),
            leases: context.metrics.leases(),
            unwritten: context.pools().iter().map(|pool| pool.unwritten()).sum(),
            blocked: hubs.iter().map(|(_, hubs)| hubs.waiting()).sum(),
            keys: hubs.iter().map(|(_, hubs)| hubs.watched()).sum(),
            names: context.pubsub.names(),
        }
    }
}
