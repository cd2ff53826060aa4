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

    /// Adds what has been counted since the last time to the exporter.
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

/// The headline: from knowing that the client is gone to our FIN on the upstream connection that it held.
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

/// Says until when a certificate is valid.
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

/// Every metric with its type, labels and meaning: what `docs/reference/metrics.md` lists, and what is described to the exporter.
pub const METRICS: &[(&str, &str, &str, &str)] = &[
    ("redbouncer_build_info", "gauge", "version", "1, with the version that runs."),
    ("redbouncer_clients", "gauge", "worker", "Connected clients."),
    (
        "redbouncer_clients_unauthenticated",
        "gauge",
        "",
        "Peers that must log in and have not, or are in their TLS handshake.",
    ),
    ("redbouncer_clients_accepted_total", "counter", "", "Clients accepted since the start."),
    ("redbouncer_clients_closed_total", "counter", "reason", "Client connections closed, by reason."),
    (
        "redbouncer_tls_handshakes_total",
        "counter",
        "side, outcome",
        "TLS handshakes with clients and with the server: full, resumed, or failed.",
    ),
    (
        "redbouncer_tls_certificate_expiry_timestamp_seconds",
        "gauge",
        "side",
        "Until when a certificate is valid, in Unix time: the one that clients are shown (client), the one that the server has shown last (upstream), and the one that the server is shown (upstream_own).",
    ),
    ("redbouncer_commands_total", "counter", "command", "Commands taken from clients."),
    (
        "redbouncer_command_seconds",
        "histogram",
        "family",
        "From reading a command to handing its reply to the client's socket: one in 256 of those that go over lanes, by family.",
    ),
    (
        "redbouncer_command_errors_total",
        "counter",
        "origin, kind",
        "Error replies to commands, of the server or of redbouncer itself, by the first word of the error.",
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
        "Memory held for clients: requests that have begun or wait, unread replies, subscriptions.",
    ),
    ("redbouncer_client_memory_bytes_max", "gauge", "", "The bound on it, client.memory_max; 0 for none."),
    (
        "redbouncer_memory_bytes",
        "gauge",
        "side",
        "Memory held for clients (as above), and for the server: requests that it has not taken yet.",
    ),
    (
        "redbouncer_upstream_connections",
        "gauge",
        "kind, phase, node",
        "Upstream connections: every one is in exactly one cell. `node` only in front of a cluster.",
    ),
    (
        "redbouncer_upstream_connections_max",
        "gauge",
        "",
        "The cap, pool.max_connections; in front of a cluster, the sum of the caps of all nodes that own slots.",
    ),
    (
        "redbouncer_permits_max",
        "gauge",
        "kind",
        "How many connections of this kind there may be, given what the other kinds hold.",
    ),
    (
        "redbouncer_permits_reserved",
        "gauge",
        "kind",
        "Of the free connections, those that only this kind may take.",
    ),
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
        "From knowing that a client is gone to the FIN on the upstream connection that it held.",
    ),
    (
        "redbouncer_upstream_reply_seconds",
        "histogram",
        "",
        "From the first command of a batch to its last reply.",
    ),
    (
        "redbouncer_upstream_rtt_seconds",
        "histogram",
        "",
        "A PING on each lane at every heartbeat, behind the commands that are outstanding there.",
    ),
    (
        "redbouncer_upstream_up",
        "gauge",
        "",
        "1 while the last dial succeeded and the server accepts the login of upstream.url; 0 until the first login.",
    ),
    (
        "redbouncer_pool_waiting",
        "gauge",
        "claim",
        "Waiting for a permit: lanes, leases, pub/sub hubs of further users, leases for blocking calls, and leases that would last while no more of these may be held.",
    ),
    (
        "redbouncer_pool_wait_seconds",
        "histogram",
        "claim",
        "From asking for a permit to having it, or a connection handed over, or giving up.",
    ),
    (
        "redbouncer_standing_leases",
        "gauge",
        "",
        "Leases that last for as long as their clients please: MONITOR, CLIENT TRACKING, blocking calls.",
    ),
    ("redbouncer_standing_leases_max", "gauge", "", "How many may; the others are kept for transactions."),
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
        "Commands held back because a server that was a master refused a write with READONLY: answered by the next \
         master, refused as before, or lost.",
    ),
    (
        "redbouncer_master_switches_total",
        "counter",
        "cause",
        "Masters that were left because the Sentinels name another one: lost, or switched while it still answered.",
    ),
    (
        "redbouncer_master_switch_seconds",
        "gauge",
        "",
        "How long the last of these took, from its first sign until commands went to the other one.",
    ),
    ("redbouncer_nodes", "gauge", "role", "Nodes of the cluster as it lists them: master, replica."),
    ("redbouncer_slots_uncovered", "gauge", "", "Slots of the cluster that no node serves."),
    ("redbouncer_map_age_seconds", "gauge", "", "For how long no node of the cluster has told of its slots."),
    (
        "redbouncer_map_refreshes_total",
        "counter",
        "outcome",
        "Questions for the slots of the cluster: changed, same, unanswered.",
    ),
    (
        "redbouncer_redirects_total",
        "counter",
        "kind",
        "Replies of the cluster's nodes after which a command was sent again, or its client told: moved, ask, tryagain, clusterdown, loading, readonly.",
    ),
    ("redbouncer_paused", "gauge", "", "1 while new commands wait for PROXY RESUME, else 0."),
    ("redbouncer_pool_full_total", "counter", "", "Clients that got the full-pool error."),
    (
        "redbouncer_logins_total",
        "counter",
        "outcome",
        "Logins of clients: verified, remembered, refused, limited (not asked, too many failures), unavailable.",
    ),
    ("redbouncer_user_clients", "gauge", "user", "Clients that are this user."),
    ("redbouncer_user_clients_max", "gauge", "user", "How many there may be, where the users file says so."),
    ("redbouncer_user_connections", "gauge", "user", "Upstream connections logged in as this user."),
    (
        "redbouncer_user_connections_max",
        "gauge",
        "user",
        "How many there may be, where the users file says so.",
    ),
    (
        "redbouncer_lane_turns_total",
        "counter",
        "",
        "Lanes that changed their database or protocol, because others had none. Often: more of these than lanes, enlarge the pool.",
    ),
    (
        "redbouncer_client_moves_total",
        "counter",
        "",
        "Clients that another worker goes on with, because there are not lanes enough for every worker to serve every key.",
    ),
    ("redbouncer_leases_total", "counter", "pin", "Leases taken, by the reason for them."),
    (
        "redbouncer_lease_oldest_seconds",
        "gauge",
        "pin",
        "For how long the oldest lease of this reason has been held; 0 without one.",
    ),
    ("redbouncer_leases", "gauge", "pin", "Leases that clients hold now, by the reason for them."),
    (
        "redbouncer_lease_seconds",
        "histogram",
        "pin",
        "How long leases were held that have ended, by the reason for them.",
    ),
    ("redbouncer_blocking_waiters", "gauge", "", "Blocked clients that wait in a blocking hub."),
    ("redbouncer_blocking_keys", "gauge", "", "Keys that blocking hubs watch."),
    (
        "redbouncer_blocking_tries_total",
        "counter",
        "on",
        "Blocking calls tried without blocking: on the hub's connection, or on a lane.",
    ),
    ("redbouncer_pubsub_names", "gauge", "", "Channels and patterns that pub/sub hubs are subscribed to."),
    (
        "redbouncer_pubsub_messages_total",
        "counter",
        "",
        "Published messages that pub/sub hubs have received.",
    ),
    ("redbouncer_pubsub_deliveries_total", "counter", "", "Deliveries of published messages to clients."),
    (
        "redbouncer_elements_undelivered_total",
        "counter",
        "fate",
        "Popped elements whose client was gone: handed_on, given_back, or lost.",
    ),
    (
        "redbouncer_orphans_killed_total",
        "counter",
        "reason",
        "Connections on the server killed because nobody owns them: dead_instance, or left_behind by this very run.",
    ),
    (
        "redbouncer_orphan_rounds_total",
        "counter",
        "outcome",
        "Looks for orphans: judged, or why not (no_login, unavailable, slow, list_refused, kill_refused).",
    ),
    (
        "redbouncer_fleet_claim",
        "gauge",
        "",
        "Connections that this instance claims of fleet.total_connections, the control connection among them. Only with a total.",
    ),
    (
        "redbouncer_fleet_share",
        "gauge",
        "",
        "How many of these it may use beside the control connection. Only with a total.",
    ),
    (
        "redbouncer_fleet_instances",
        "gauge",
        "",
        "Instances of redbouncer on the server, as this one listed them last. Only with a total.",
    ),
    (
        "redbouncer_fleet_raises_total",
        "counter",
        "outcome",
        "Raises of the claim: confirmed, or withdrawn because others had claimed too much by then.",
    ),
    (
        "redbouncer_tasks",
        "gauge",
        "thread",
        "Tasks alive on a thread (main, worker-0 …): those of its clients and upstream connections, and its own.",
    ),
    (
        "redbouncer_config_reload_success",
        "gauge",
        "",
        "1 if the last reload of the configuration succeeded, or there was none yet; 0 if it was refused.",
    ),
    (
        "redbouncer_config_reload_timestamp_seconds",
        "gauge",
        "",
        "When the configuration was last read, used or not, as Unix time.",
    ),
    (
        "redbouncer_spans_total",
        "counter",
        "fate",
        "Spans of traced commands: exported, queue_full or export_failed (lost). Where commands are traced only.",
    ),
    (
        "redbouncer_log_lines_dropped_total",
        "counter",
        "reason",
        "Log lines that are lost: queue_full (nobody reads them fast enough) or write_failed (a full disk).",
    ),
];

/// What the system says of the process, with the names that all Prometheus clients use.
pub const PROCESS_METRICS: &[(&str, &str, &str)] = &[
    ("process_cpu_seconds_total", "counter", "Processor time used, in whole seconds."),
    ("process_max_fds", "gauge", "How many files and connections may be open."),
    ("process_open_fds", "gauge", "How many are."),
    ("process_resident_memory_bytes", "gauge", "Memory in use."),
    ("process_start_time_seconds", "gauge", "When the process started, in Unix time."),
    ("process_threads", "gauge", "Threads."),
    ("process_virtual_memory_bytes", "gauge", "Address space."),
    ("process_virtual_memory_max_bytes", "gauge", "The limit on it; 0 for none."),
];

/// A client's connection is closed, for this reason. Every close is counted, by this and nothing else.
pub fn client_closed(reason: ClientClose) {
    client_close_counter(reason).increment(1);
}

pub(super) fn client_close_counter(reason: ClientClose) -> Counter {
    metrics::counter!("redbouncer_clients_closed_total", "reason" => reason.label())
}

/// A connection to the server is closed, for this reason. `kind` is the word for what it was for.
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
