//! What the scenarios stand on: servers, proxies, clients, relays, and waiting with a deadline.
//!
//! Everything that is started here ends with the value that started it, a failed test included.

// Suites arrive one by one; what the last one needs is here from the start.
#![allow(unused_imports, dead_code)]

mod client;
mod client_fleet;
mod cluster;
mod fake_server;
pub(crate) mod http;
mod namespace;
mod paired_servers;
mod port;
mod proxy;
mod relay;
mod reply;
mod sampler;
mod secure;
mod sentinels;
mod server;
mod stage;

pub(crate) use client::{Client, Ended, encode};
pub(crate) use client_fleet::{ClientFleet, State, enter_state};
pub(crate) use cluster::Cluster;
pub(crate) use fake_server::{FakeServer, bulk};
pub(crate) use namespace::{Namespace, is_root};
pub(crate) use paired_servers::PairedServers;
pub(crate) use port::free_port;
pub(crate) use proxy::{Exit, Proxy};
pub(crate) use relay::Relay;
pub(crate) use reply::{Reply, Value};
pub(crate) use sampler::Sampler;
pub(crate) use secure::{Authority, Issued, VALID};
pub(crate) use sentinels::{Guarded, SERVICE, Sentinel, Service};
pub(crate) use server::{Row, Server, Version, rows_of, signal};
pub(crate) use stage::Stage;

use std::thread;
use std::time::{Duration, Instant};

/// How long an answer that should come at once may take on a busy machine before the test calls it missing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(8);

/// Polls `condition` until it holds; panics with `what` when `deadline` has passed first.
#[track_caller]
pub(crate) fn until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    loop {
        if condition() {
            return start.elapsed();
        }
        assert!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        thread::sleep(Duration::from_millis(3));
    }
}

/// Polls `condition` for the whole of `span` and panics with `what` as soon as it does not hold.
#[track_caller]
pub(crate) fn throughout(what: &str, span: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < span {
        assert!(condition(), "after {:?} no longer true: {what}", start.elapsed());
        thread::sleep(Duration::from_millis(3));
    }
}

/// The long forms (20 restarts instead of 5, and so on) run with `REDBOUNCER_LONG=1`.
pub(crate) fn long() -> bool {
    std::env::var_os("REDBOUNCER_LONG").is_some_and(|value| value == "1")
}

/// Makes two tests of every named scenario: `directly::name` and `proxied::name`. With `secured:` the server wants the
/// password `sesame` and the proxy passes logins through.
macro_rules! on_both {
    (secured: $($name:ident),* $(,)?) => {
        mod secured_directly {
            $(#[test] fn $name() { super::$name(&crate::harness::Stage::direct_secured()); })*
        }
        mod secured_proxied {
            $(#[test] fn $name() { super::$name(&crate::harness::Stage::proxied_secured()); })*
        }
    };
    ($($name:ident),* $(,)?) => {
        mod directly {
            $(#[test] fn $name() { super::$name(&crate::harness::Stage::direct()); })*
        }
        mod proxied {
            $(#[test] fn $name() { super::$name(&crate::harness::Stage::proxied()); })*
        }
    };
}
