//! What `/metrics` says beside the exporter's own: sums over the workers, and what is looked up at a scrape.

use std::collections::BTreeMap;

use metrics_process::Collector;

use crate::downstream::WorkerFigures;
use crate::pool::NodeBudget;
use crate::telemetry::{Seconds, Side, publish_gauge};

/// Sets the gauges that are sums over the workers.
pub(super) fn publish(figures: &[WorkerFigures], client_memory: usize) {
    let sum = |of: fn(&WorkerFigures) -> usize| figures.iter().map(of).sum::<usize>();
    publish_gauge("redbouncer_blocking_waiters", &[], sum(|worker| worker.blocked));
    publish_gauge("redbouncer_blocking_keys", &[], sum(|worker| worker.keys));
    publish_gauge("redbouncer_pubsub_names", &[], sum(|worker| worker.names));
    for (side, bytes) in [(Side::Client, client_memory), (Side::Upstream, sum(|worker| worker.unwritten))] {
        publish_gauge("redbouncer_memory_bytes", &[("side", side.label())], bytes);
    }
    let mut held = BTreeMap::new();
    for (pin, count, _) in figures.iter().flat_map(|worker| &worker.leases) {
        *held.entry(*pin).or_insert(0) += count;
    }
    for (pin, count) in held {
        publish_gauge("redbouncer_leases", &[("pin", pin)], count);
    }
}

/// Sets the metrics of the process, as the system has them. Open files are counted in a folder, one by one, which is no work
/// for the thread that accepts clients.
pub(super) async fn publish_process() {
    // A task that panicked has said so; the metrics stay as they were.
    drop(tokio::task::spawn_blocking(|| Collector::default().collect()).await);
}

/// The histograms that are not the exporter's, in Prometheus' text format.
pub(super) fn render(figures: &[WorkerFigures], budgets: &[NodeBudget]) -> String {
    let total = |of: fn(&WorkerFigures) -> &Seconds| {
        let total = Seconds::short();
        figures.iter().for_each(|worker| total.merge(of(worker)));
        total
    };
    let replies = total(|worker| &worker.replies);
    let round_trips = total(|worker| &worker.round_trips);
    let families = figures.iter().flat_map(|worker| &worker.families);
    let families = by_label(families.map(|(family, seconds)| (*family, seconds)));
    let leases = figures.iter().flat_map(|worker| &worker.leases);
    let leases = by_label(leases.map(|(pin, _, seconds)| (*pin, seconds)));
    let waits: Vec<_> = budgets.iter().flat_map(|of| of.budget.waits()).collect();
    let waits = by_label(waits.iter().map(|(claim, seconds)| (*claim, seconds)));
    [
        Seconds::render("redbouncer_upstream_reply_seconds", None, &[("", replies)]),
        Seconds::render("redbouncer_upstream_rtt_seconds", None, &[("", round_trips)]),
        Seconds::render("redbouncer_command_seconds", Some("family"), &families),
        Seconds::render("redbouncer_lease_seconds", Some("pin"), &leases),
        Seconds::render("redbouncer_pool_wait_seconds", Some("claim"), &waits),
    ]
    .concat()
}

/// The sum of all with the same label.
fn by_label<'a>(rows: impl Iterator<Item = (&'static str, &'a Seconds)>) -> Vec<(&'static str, Seconds)> {
    let mut sums: BTreeMap<&'static str, Seconds> = BTreeMap::new();
    for (label, seconds) in rows {
        match sums.get(label) {
            Some(sum) => sum.merge(seconds),
            None => drop(sums.insert(label, seconds.clone())),
        }
    }
    sums.into_iter().collect()
}
