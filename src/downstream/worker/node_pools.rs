//! What a worker does for the nodes of a cluster other than the home node.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::Worker;
use crate::pool::Pool;

/// A reply this late has the other nodes asked who owns the slots.
const SUSPECT_AFTER: Duration = Duration::from_secs(1);

impl Worker {
    /// Every tick: what is done for the pool of the home node, for the others.
    pub(super) fn tend_nodes(self: &Rc<Self>, now: Instant) {
        let Some(nodes) = &self.context.nodes else { return };
        // A node that stands still says nothing of its successor; the others do.
        let pools = self.context.pools();
        if pools.iter().any(|pool| pool.oldest(now).is_some_and(|age| age >= SUSPECT_AFTER)) {
            nodes.nodes().doubt();
        }
        for (pool, hubs) in self.context.all_hubs().into_iter().skip(1) {
            let budget = &pool.shared.budget;
            let pressure = budget.pressure();
            let wanted = pressure.leases + pressure.hubs + pressure.lanes;
            hubs.yield_open_permits(wanted.saturating_sub(budget.closing()), now);
        }
        for pool in nodes.others() {
            pool.tick(now);
            if pool.take_loss() {
                nodes.nodes().doubt();
            }
            let budget = &pool.shared.budget;
            for user in budget.crowded() {
                pool.make_room_within(user, now);
            }
            let pressure = budget.pressure();
            if pressure.any() {
                pool.release_under_pressure(pressure, now);
            }
        }
        let version = nodes.version();
        if self.heeded.nodes.replace(version) != version {
            for (pool, hubs) in self.context.all_hubs() {
                // A slot that nobody owns may come back to the node that had it.
                hubs.leave_slots(|slot| nodes.owner(slot).is_none_or(|owner| Rc::ptr_eq(&owner, &pool)));
            }
            nodes.deposed().iter().for_each(|pool| self.leave_node(pool));
        }
    }

    /// Leaves a node that owns no slots any more: what was sent there is waited for as long as `upstream.switch_grace`.
    fn leave_node(self: &Rc<Self>, pool: &Rc<Pool>) {
        let end = Instant::now() + pool.shared.upstream.get().switch_grace;
        self.context.hubs_at(pool).depose(end);
        let left = Rc::clone(self).leave_by(self.remains_of(pool), end);
        self.context.pool.tasks().spawn_local(left);
    }
}
