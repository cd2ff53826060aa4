//! Every metric's name and meaning, and the counters that the hot path may afford.
//!
//! A `metrics` handle costs an atomic operation and a `histogram!` keeps every sample until it is rendered, so what is
//! counted per command is counted in plain cells of the worker and published once a second. Rare events use the macros.

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use super::{Certificate, ClientClose, UpstreamClose};
use metrics::{Counter, Unit, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

/// A counter of the hot path: a plain cell, published to a handle that was made once.
pub struct Counted {
    value: Cell<u64>,
    handle: Counter,
}

impl Counted {
    /// A counter behind `handle`.
    #[must_use]
    pub fn new(handle: Counter) -> Self {
        Self { value: Cell::new(0), handle }
    }

    /// Counts `more`.
    pub fn add(&self, more: u64) {
        self.value.set(self.value.get() + more);
    }

    /// Adds the counts since the last call to the exporter.
    pub fn publish(&self) {
        let value = self.value.replace(0);
        if value > 0 {
            self.handle.increment(value);
        }
    }
}

impl std::fmt::Debug for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Counted({})", self.value.get())
    }
}

/// A duration as a field of a log line: seconds, to the millisecond.
#[allow(clippy::cast_precision_loss, reason = "milliseconds of thousands of years fit")]
#[must_use]
pub fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1e3
}

/// The time from detecting that a client has left to our FIN on its upstream connection.
pub fn release_seconds(took: Duration) {
    histogram!("redbouncer_upstream_release_seconds").record(took.as_secs_f64());
}

/// Sets a gauge that has up to two labels. For values published once a second.
#[allow(clippy::cast_precision_loss, reason = "counts of connections are small")]
pub fn publish_gauge(name: &'static str, labels: &[(&'static str, &str)], value: usize) {
    let labels: Vec<_> =
        labels.iter().map(|(key, value)| metrics::Label::new(*key, (*value).to_owned())).collect();
    gauge!(name, labels).set(value as f64);
}

/// Publishes the end of validity of a certificate.
pub fn certificate_expires(whose: Certificate, until: SystemTime) {
    let since_1970 = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    gauge!("redbouncer_tls_certificate_expiry_timestamp_seconds", "side" => whose.label())
        .set(since_1970.as_secs_f64());
}

/// Sets the gauge of the tasks that are alive on this thread, which the metrics call `thread`. Only inside a runtime.
pub fn publish_tasks(thread: &str) {
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    publish_gauge("redbouncer_tasks", &[("thread", thread)], tasks);
}

/// Every metric with its type, labels and meaning, for `docs/reference/metrics.md` and the exporter.
pub const METRICS: &[(&str, &str, &str, &str)] = &[
    ("redbouncer_build_info", "gauge", "version", "Always 1; the label has the running version."),
    ("redbouncer_clients", "gauge", "worker", "Connected clients."),
    (
        "redbouncer_clients_unauthenticated",
        "gauge",
        "",
        "Peers that have not logged in yet, or are in their TLS handshake.",
    ),
    ("redbouncer_clients_accepted_total", "counter", "", "Clients accepted since the start."),
    ("redbouncer_clients_closed_total", "counter", "reason", "Client connections closed, by reason."),
    (
        "redbouncer_tls_handshakes_total",
        "counter",
        "side, outcome",
        "TLS handshakes with clients and with the server, by outcome.",
    ),
    (
        "redbouncer_tls_certificate_expiry_timestamp_seconds",
        "gauge",
        "side",
        "End of a certificate's validity, as Unix time: of listen.tls (client), of the server's last certificate (upstream), and of upstream.tls (upstream_own).",
    ),
    ("redbouncer_commands_total", "counter", "command", "Commands received from clients."),
    (
        "redbouncer_command_seconds",
        "histogram",
        "family",
        "Time from reading a command to writing its reply to the client's socket; one in 256 commands on lanes is measured.",
    ),
    (
        "redbouncer_command_errors_total",
        "counter",
        "origin, kind",
        "Error replies to commands, from the server or from redbouncer, by the first word of the error.",
    ),
    (
        "redbouncer_client_bytes_total",
        "counter",
        "direction",
        "Bytes read from (in) and written to (out) clients.",
    ),
    (
        "redbouncer_client_memory_bytes",
        "gauge",
        "",
        "Memory used for clients: incomplete and waiting requests, unread replies, subscriptions.",
    ),
    (
        "redbouncer_client_memory_bytes_max",
        "gauge",
        "",
        "Limit of redbouncer_client_memory_bytes, client.memory_max; 0 for none.",
    ),
    (
        "redbouncer_memory_bytes",
        "gauge",
        "side",
        "Memory used for clients (as above), and for requests not yet sent to the server.",
    ),
    (
        "redbouncer_upstream_connections",
        "gauge",
        "kind, phase, node",
        "Upstream connections, each counted once. The label `node` exists only with a cluster.",
    ),
    (
        "redbouncer_upstream_connections_max",
        "gauge",
        "",
        "Limit of upstream connections, pool.max_connections; with a cluster, the sum over all nodes that own slots.",
    ),
    (
        "redbouncer_permits_max",
        "gauge",
        "kind",
        "Maximum number of connections of this kind, given the connections of the other kinds.",
    ),
    ("redbouncer_permits_reserved", "gauge", "kind", "Free connections reserved for this kind."),
    (
        "redbouncer_upstream_closed_total",
        "counter",
        "kind, reason",
        "Upstream connections closed, by reason.",
    ),
    (
        "redbouncer_upstream_release_seconds",
        "histogram",
        "",
        "Time from detecting that a client has left to the FIN on its upstream connection.",
    ),
    (
        "redbouncer_upstream_reply_seconds",
        "histogram",
        "",
        "Time from the first command of a batch to its last reply.",
    ),
    (
        "redbouncer_upstream_rtt_seconds",
        "histogram",
        "",
        "Round-trip time of the heartbeat PING on each lane, including the wait for outstanding replies.",
    ),
    (
        "redbouncer_upstream_up",
        "gauge",
        "",
        "1 if the last dial succeeded and the server accepts the login of upstream.url, else 0; 0 until the first login.",
    ),
    (
        "redbouncer_pool_waiting",
        "gauge",
        "claim",
        "Requests waiting for a permit: for lanes, leases, pub/sub hubs of further users, leases for blocking calls, and standing leases beyond their limit.",
    ),
    (
        "redbouncer_pool_wait_seconds",
        "histogram",
        "claim",
        "Time from requesting a permit until the permit or a released connection is received, or the wait ends.",
    ),
    (
        "redbouncer_standing_leases",
        "gauge",
        "",
        "Leases without a foreseeable end: MONITOR, CLIENT TRACKING, blocking calls.",
    ),
    (
        "redbouncer_standing_leases_max",
        "gauge",
        "",
        "Maximum number of standing leases; the others are reserved for transactions.",
    ),
    (
        "redbouncer_sentinels",
        "gauge",
        "state",
        "Sentinels by state: connecting, connected, unreachable, refused, unknown_service.",
    ),
    (
        "redbouncer_held_commands_total",
        "counter",
        "outcome",
        "Commands held because a former master refused a write with READONLY: answered by the next master, refused again, or lost.",
    ),
    (
        "redbouncer_master_switches_total",
        "counter",
        "cause",
        "Switches to another master named by the Sentinels: the former master was lost, or switched while it still answered.",
    ),
    (
        "redbouncer_master_switch_seconds",
        "gauge",
        "",
        "Duration of the last switch, from its first sign until commands went to the new master.",
    ),
    ("redbouncer_nodes", "gauge", "role", "Nodes that the cluster lists, by role: master, replica."),
    ("redbouncer_slots_uncovered", "gauge", "", "Slots of the cluster without a node."),
    (
        "redbouncer_map_age_seconds",
        "gauge",
        "",
        "Time since a node of the cluster last returned the slot map.",
    ),
    (
        "redbouncer_map_refreshes_total",
        "counter",
        "outcome",
        "Queries for the slot map of the cluster: changed, same, unanswered.",
    ),
    (
        "redbouncer_redirects_total",
        "counter",
        "kind",
        "Replies of cluster nodes that caused a command to be sent again or an error to its client: moved, ask, tryagain, clusterdown, loading, readonly.",
    ),
    ("redbouncer_paused", "gauge", "", "1 while new commands wait for PROXY RESUME, else 0."),
    ("redbouncer_pool_full_total", "counter", "", "Clients that got the full-pool error."),
    (
        "redbouncer_logins_total",
        "counter",
        "outcome",
        "Logins of clients: verified, remembered, refused, limited (not checked, too many failures), unavailable.",
    ),
    ("redbouncer_user_clients", "gauge", "user", "Clients logged in as this user."),
    ("redbouncer_user_clients_max", "gauge", "user", "Limit of redbouncer_user_clients in the users file."),
    ("redbouncer_user_connections", "gauge", "user", "Upstream connections logged in as this user."),
    (
        "redbouncer_user_connections_max",
        "gauge",
        "user",
        "Limit of redbouncer_user_connections in the users file.",
    ),
    (
        "redbouncer_lane_turns_total",
        "counter",
        "",
        "Lanes that changed their database or protocol for clients without a lane. If frequent, there are more combinations than lanes: raise pool.max_connections.",
    ),
    (
        "redbouncer_client_moves_total",
        "counter",
        "",
        "Clients moved to another worker, because there are too few lanes for every worker to serve every key.",
    ),
    ("redbouncer_leases_total", "counter", "pin", "Leases taken, by reason."),
    (
        "redbouncer_lease_oldest_seconds",
        "gauge",
        "pin",
        "Age of the oldest lease with this reason; 0 without one.",
    ),
    ("redbouncer_leases", "gauge", "pin", "Leases currently held by clients, by reason."),
    ("redbouncer_lease_seconds", "histogram", "pin", "Duration of leases that have ended, by reason."),
    ("redbouncer_blocking_waiters", "gauge", "", "Blocked clients in blocking hubs."),
    ("redbouncer_blocking_keys", "gauge", "", "Keys tracked by blocking hubs."),
    (
        "redbouncer_blocking_tries_total",
        "counter",
        "on",
        "Blocking calls tried without blocking: on the hub's connection, or on a lane.",
    ),
    ("redbouncer_pubsub_names", "gauge", "", "Channels and patterns subscribed by pub/sub hubs."),
    ("redbouncer_pubsub_messages_total", "counter", "", "Published messages received by pub/sub hubs."),
    ("redbouncer_pubsub_deliveries_total", "counter", "", "Deliveries of published messages to clients."),
    (
        "redbouncer_elements_undelivered_total",
        "counter",
        "fate",
        "Popped elements whose client had left: handed_on, given_back, or lost.",
    ),
    (
        "redbouncer_orphans_killed_total",
        "counter",
        "reason",
        "Orphaned connections killed on the server: of a dead_instance, or left_behind by this process.",
    ),
    (
        "redbouncer_orphan_rounds_total",
        "counter",
        "outcome",
        "Searches for orphans: judged, or the reason for none (no_login, unavailable, slow, list_refused, kill_refused).",
    ),
    (
        "redbouncer_fleet_claim",
        "gauge",
        "",
        "Connections of fleet.total_connections claimed by this instance, including the control connection. Only with a total.",
    ),
    (
        "redbouncer_fleet_share",
        "gauge",
        "",
        "Claimed connections that this instance may use besides the control connection. Only with a total.",
    ),
    (
        "redbouncer_fleet_instances",
        "gauge",
        "",
        "Instances of redbouncer in this instance's last listing of the server. Only with a total.",
    ),
    (
        "redbouncer_fleet_raises_total",
        "counter",
        "outcome",
        "Raises of the claim: confirmed, or withdrawn because the sum of all claims was too high.",
    ),
    ("redbouncer_tasks", "gauge", "thread", "Running tasks of a thread (main, worker-0 …)."),
    (
        "redbouncer_config_reload_success",
        "gauge",
        "",
        "0 if the last reload of the configuration was refused, else 1.",
    ),
    (
        "redbouncer_config_reload_timestamp_seconds",
        "gauge",
        "",
        "Time of the last reading of the configuration, applied or not, as Unix time.",
    ),
    (
        "redbouncer_spans_total",
        "counter",
        "fate",
        "Spans of traced commands: exported, queue_full or export_failed (lost). Only with tracing.",
    ),
    (
        "redbouncer_log_lines_dropped_total",
        "counter",
        "reason",
        "Lost log lines: queue_full (the reader is too slow) or write_failed (a full disk).",
    ),
];

/// Process metrics from the operating system, with the names that all Prometheus clients use.
pub const PROCESS_METRICS: &[(&str, &str, &str)] = &[
    ("process_cpu_seconds_total", "counter", "CPU time used, in whole seconds."),
    ("process_max_fds", "gauge", "Limit of open files and connections."),
    ("process_open_fds", "gauge", "Open files and connections."),
    ("process_resident_memory_bytes", "gauge", "Resident memory."),
    ("process_start_time_seconds", "gauge", "Start of the process, as Unix time."),
    ("process_threads", "gauge", "Threads."),
    ("process_virtual_memory_bytes", "gauge", "Address space."),
    ("process_virtual_memory_max_bytes", "gauge", "Limit of the address space; 0 for none."),
];

/// Counts a closed client connection. Every close is counted here and nowhere else.
pub fn client_closed(reason: ClientClose) {
    client_close_counter(reason).increment(1);
}

pub(super) fn client_close_counter(reason: ClientClose) -> Counter {
    metrics::counter!("redbouncer_clients_closed_total", "reason" => reason.label())
}

/// Counts a closed connection to the server. `kind` is the label of its use.
pub fn upstream_closed(kind: &'static str, reason: UpstreamClose) {
    upstream_close_counter(kind, reason).increment(1);
}

pub(super) fn upstream_close_counter(kind: &'static str, reason: UpstreamClose) -> Counter {
    metrics::counter!("redbouncer_upstream_closed_total", "reason" => reason.label(), "kind" => kind)
}

/// Describes every metric to the installed exporter.
pub fn describe() {
    for (name, kind, text) in PROCESS_METRICS {
        match *kind {
            "gauge" => describe_gauge!(*name, *text),
            _ => describe_counter!(*name, *text),
        }
    }
    for (name, kind, _, text) in METRICS {
        match *kind {
            "gauge" => describe_gauge!(*name, *text),
            // Those that the exporter has no samples of are rendered by `Seconds` itself.
            "histogram" => describe_histogram!(*name, Unit::Seconds, *text),
            _ => describe_counter!(*name, *text),
        }
    }
}
