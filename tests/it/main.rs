//! The integration tests: a real redis-server, the real proxy, raw RESP on the wire.
//!
//! One file per capability. A scenario whose expectation is Redis's own behaviour is listed in `on_both!` and runs twice:
//! `directly` against the server, which shows that the expectation is right, and `proxied`, which shows that the proxy
//! keeps it. Numbers of connections are always read from the server's `CLIENT LIST`, never from our own counters.
//! Waiting is always for a condition with a deadline (`until`); there is no bare sleep.

// A failed expectation is how a test reports, so what the library forbids itself is the normal tool here. A scenario is told
// from its beginning to its end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]
#![allow(clippy::too_many_lines)]

#[macro_use]
mod harness;

mod blocking;
mod blocking_calls;
mod blocking_held;
mod check;
mod cleanup;
mod client_caching;
mod client_caching_by_prefix;
mod client_caching_redirected;
mod close_reasons;
mod cluster;
mod cluster_blocked;
mod cluster_operator;
mod command_table;
mod compatibility;
mod concurrency;
mod config;
mod connection_cap;
mod convert;
mod dashboard;
mod demotion;
mod differential;
mod docs;
mod fairness;
mod fleet;
mod framing;
mod half_close;
mod harness_self_test;
mod hub;
mod hub_load;
mod hub_model;
mod hub_refusals;
mod hub_regressions;
mod hub_unblock;
mod hub_wakes;
mod large_bulks;
mod late_readers;
mod listeners;
mod listings;
mod live_settings;
mod logging;
mod logins;
mod loss;
mod manual;
mod memory;
mod metrics;
mod miscounts;
mod module_commands;
mod neighbours;
mod network;
mod network_partition;
mod observability;
mod operator;
mod orphans;
mod pool_exhausted;
mod protocol_quirks;
mod providers;
mod pubsub;
mod pubsub_counts;
mod pubsub_hub;
mod queued;
mod readiness;
mod reconnect_storms;
mod regressions;
mod release;
mod reload;
mod reply_modes;
mod rotation;
mod secrets;
mod sentinel;
mod server_change;
mod server_unavailable;
mod server_words;
mod service_manager;
mod sessions;
mod size;
mod slow_commands;
mod slow_peers;
mod stalled_lanes;
mod stopping;
mod structure;
mod takeover;
mod takeover_blocked;
mod takeover_caching;
mod takeover_subscribers;
mod tls;
mod transactions;
mod turns;
mod unauthenticated_peers;
mod unknown_commands;
mod untrusted_replies;
mod users;
mod versions;
mod wait;
mod watch;
mod workers;
