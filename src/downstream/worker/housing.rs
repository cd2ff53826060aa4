//! Clients are with the worker that has lanes for them.

use tokio::time::Instant;

use super::Worker;
use crate::downstream::context::Stage;

impl Worker {
    /// Every tick: where there are not lanes enough for every worker to have one of each key, each key has its own.
    pub(super) fn tend_homes(&self, now: Instant) {
        let context = &self.context;
        let is_later = context.moves_later.take();
        let Some(housing) = context.pool.find_homes(context.index, now) else {
            if is_later && context.stage.get() == Stage::Serving {
                self.send_on();
            }
            return;
        };
        if housing.keys > 0 && !self.has_warned_of_lanes.replace(true) && context.index == 0 {
            tracing::warn!(
                keys = housing.keys,
                lanes = housing.lanes,
                "pool.max_connections is too small for every worker to have a lane for each user, database and RESP version in \
                 use: raise it, or lower listen.workers"
            );
        }
        if context.stage.get() == Stage::Serving {
            context.moves_clients.set(housing.sends_away);
            if housing.sends_away {
                self.send_on();
            }
        }
    }
}
