//! Series that exist from the start, at 0.
//!
//! `increase()` and `rate()` compare a series with its earlier value. For a series that appears with its first event
//! they return nothing, so alerts would miss the first event of a kind.

use metrics::{counter, histogram};

use super::labels::{ElementFate, FleetRaise, Handshake, LineLoss, LoginOutcome, OrphanRound, Side, TriedOn};
use super::metrics::{client_close_counter, upstream_close_counter};
use super::{ClientClose, Reap, UpstreamClose};

/// Creates the series of all counters whose labels are closed lists: all but those of commands and users. `kinds` are those of
/// upstream connections, `pins` the reasons for leases.
pub fn create_series(kinds: &[&'static str], pins: &[&'static str]) {
    for name in [
        "redbouncer_clients_accepted_total",
        "redbouncer_pool_full_total",
        "redbouncer_lane_turns_total",
        "redbouncer_client_moves_total",
        "redbouncer_pubsub_messages_total",
        "redbouncer_pubsub_deliveries_total",
    ] {
        counter!(name).increment(0);
    }
    for reason in ClientClose::ALL {
        client_close_counter(reason).increment(0);
    }
    for reason in UpstreamClose::ALL {
        kinds.iter().for_each(|kind| upstream_close_counter(kind, reason).increment(0));
    }
    for side in Side::ALL {
        for outcome in Handshake::ALL {
            handshakes(*side, *outcome, 0);
        }
    }
    each("redbouncer_client_bytes_total", "direction", &["in", "out"]);
    each("redbouncer_leases_total", "pin", pins);
    each("redbouncer_held_commands_total", "outcome", &["answered", "refused", "lost"]);
    each("redbouncer_master_switches_total", "cause", &["lost", "switched"]);
    each("redbouncer_map_refreshes_total", "outcome", &["changed", "same", "unanswered"]);
    each(
        "redbouncer_redirects_total",
        "kind",
        &["moved", "ask", "tryagain", "clusterdown", "loading", "readonly"],
    );
    each("redbouncer_logins_total", "outcome", &words(LoginOutcome::ALL, LoginOutcome::label));
    each("redbouncer_blocking_tries_total", "on", &words(TriedOn::ALL, TriedOn::label));
    each("redbouncer_elements_undelivered_total", "fate", &words(ElementFate::ALL, ElementFate::label));
    each("redbouncer_orphans_killed_total", "reason", &words(&Reap::ALL, Reap::label));
    each("redbouncer_orphan_rounds_total", "outcome", &words(OrphanRound::ALL, OrphanRound::label));
    each("redbouncer_fleet_raises_total", "outcome", &words(FleetRaise::ALL, FleetRaise::label));
    each("redbouncer_log_lines_dropped_total", "reason", &words(LineLoss::ALL, LineLoss::label));
    // A histogram without a sample has all its buckets.
    drop(histogram!("redbouncer_upstream_release_seconds"));
}

/// Counts TLS handshakes.
fn handshakes(side: Side, outcome: Handshake, more: u64) {
    counter!("redbouncer_tls_handshakes_total", "side" => side.label(), "outcome" => outcome.label())
        .increment(more);
}

/// Counts a completed TLS handshake.
pub fn handshake_ended(side: Side, outcome: Handshake) {
    handshakes(side, outcome, 1);
}

fn each(name: &'static str, label: &'static str, values: &[&'static str]) {
    for value in values {
        counter!(name, label => *value).increment(0);
    }
}

fn words<T: Copy>(all: &[T], word: impl Fn(T) -> &'static str) -> Vec<&'static str> {
    all.iter().map(|value| word(*value)).collect()
}
