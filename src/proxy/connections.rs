//! The connections to all servers, as `/metrics` shows them.

use std::collections::BTreeMap;

use crate::pool::{Kind, NodeBudget, Phase};
use crate::telemetry::publish_gauge;

/// Sets the gauges of connections and of who waits for one. With a cluster the first has a label `node`.
pub(super) fn publish(budgets: &[NodeBudget]) {
    // The home node may have two budgets: for a moment it has connections that it had before it was home.
    // Without a node's name stands what there is without a cluster, and 0 with one.
    let mut by_node: BTreeMap<Option<&str>, Vec<_>> = BTreeMap::from([(None, Vec::new())]);
    for of in budgets {
        by_node.entry(of.node.as_deref()).or_default().extend(of.budget.holdings());
    }
    for (node, holdings) in by_node {
        for kind in Kind::ALL {
            for phase in Phase::ALL {
                let count = holdings.iter().filter(|row| row.kind == kind && row.phase == phase).count();
                let mut labels = vec![("kind", kind.label()), ("phase", phase.label())];
                labels.extend(node.map(|node| ("node", node)));
                publish_gauge("redbouncer_upstream_connections", &labels, count);
            }
        }
    }
    publish_gauge("redbouncer_upstream_connections_max", &[], NodeBudget::cap(budgets));
    let waiting = NodeBudget::pressure(budgets);
    for (claim, count) in [
        ("lane", waiting.lanes),
        ("lease", waiting.leases),
        ("hub", waiting.hubs),
        ("blocking", waiting.blocking),
        ("standing", waiting.standing),
    ] {
        publish_gauge("redbouncer_pool_waiting", &[("claim", claim)], count);
    }
}
