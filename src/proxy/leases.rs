//! What is full, and the leases that are held for long: gauges, and a line in the log for each.

use std::time::Duration;

use crate::pool::{Holding, Kind, NodeBudget};
use crate::session::Pin;
use crate::telemetry::publish_gauge;

/// Lines about leases at the most each time: once a second.
const LINES: usize = 5;

/// How many connections of each kind there may be, and the age of the oldest lease of each reason.
pub(super) fn publish(budgets: &[NodeBudget]) {
    let kinds: Vec<_> = budgets.iter().filter(|of| of.serves).map(|of| of.budget.kinds()).collect();
    for kind in Kind::ALL {
        let labels = [("kind", kind.label())];
        let rows = || kinds.iter().flatten().filter(|of| of.kind == kind);
        publish_gauge("redbouncer_permits_max", &labels, rows().map(|of| of.max).sum());
        publish_gauge("redbouncer_permits_reserved", &labels, rows().map(|of| of.reserved).sum());
    }
    let oldest: Vec<_> = budgets.iter().map(|of| of.budget.oldest_leases()).collect();
    for pin in Pin::ALL {
        let longest = oldest.iter().filter_map(|of| of.get(pin.label())).max();
        let seconds = longest.map_or(0, Duration::as_secs);
        let seconds = usize::try_from(seconds).unwrap_or(usize::MAX);
        publish_gauge("redbouncer_lease_oldest_seconds", &[("pin", pin.label())], seconds);
    }
}

/// Tells of each lease once that has been held for `limit`. A blocking call is meant to last, and gives its lease up when others
/// need it.
pub(super) fn tell_of_long_ones(budgets: &[NodeBudget], limit: Duration) {
    for of in budgets {
        for row in of.budget.take_long_leases(limit, Pin::Blocked.label(), LINES) {
            tell(&row);
        }
    }
}

fn tell(row: &Holding) {
    let Some(client) = row.client() else { return };
    tracing::warn!(
        client = client.id,
        name = client.name,
        address = %client.peer,
        user = client.user(),
        pin = client.pin,
        held_seconds = row.since.elapsed().as_secs(),
        command = client.command(),
        server_id = row.id,
        local_port = row.local_port,
        "a lease is held for longer than log.long_lease"
    );
}
