//! What is full, and the leases that are held for long: gauges, and a line in the log for each.

use std::time::Duration;

use crate::pool::{Budget, Holding};
use crate::session::Pin;
use crate::telemetry::publish_gauge;

/// Lines about leases at the most each time: once a second.
const LINES: usize = 5;

/// How many connections of each kind there may be, and the age of the oldest lease of each reason.
pub(super) fn publish(budget: &Budget) {
    for of in budget.kinds() {
        let labels = [("kind", of.kind.label())];
        publish_gauge("redbouncer_permits_max", &labels, of.max);
        publish_gauge("redbouncer_permits_reserved", &labels, of.reserved);
    }
    let oldest = budget.oldest_leases();
    for pin in Pin::ALL {
        let seconds = oldest.get(pin.label()).map_or(0, Duration::as_secs);
        let seconds = usize::try_from(seconds).unwrap_or(usize::MAX);
        publish_gauge("redbouncer_lease_oldest_seconds", &[("pin", pin.label())], seconds);
    }
}

/// Tells of each lease once that has been held for `limit`. A blocking call is meant to last, and gives its lease up when others
/// need it.
pub(super) fn tell_of_long_ones(budget: &Budget, limit: Duration) {
    for row in budget.take_long_leases(limit, Pin::Blocked.label(), LINES) {
        tell(&row);
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
