//! The server: how far it is, what it is, how it is set.

use std::time::Duration;

use tokio::time::Instant;

use super::flavour::{Flavour, Program};
use super::{Findings, Plan};
use crate::hygiene::{Visit, VisitError, config_value, info_field};
use crate::resp::{self, ErrorCode};
use crate::telemetry::printable;

/// PINGs for the round-trip time.
const PINGS: usize = 20;
/// A round trip that is felt in every blocking call and every lease.
const FAR: Duration = Duration::from_millis(20);

/// The time of a round trip. `false`: the server answers nothing else just now.
pub(super) async fn round_trip(visit: &mut Visit, findings: &mut Findings) -> Result<bool, VisitError> {
    let mut times = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let begun = Instant::now();
        let answer = visit.ask(&["PING"]).await?;
        times.push(begun.elapsed());
        if let Some(text) = resp::error_text(&answer).map(printable)
            && let Some(advice) = passing(&text)
        {
            findings.failure("server", &format!("it does not accept commands: {text}"), advice);
            return Ok(false);
        }
    }
    times.sort_unstable();
    let (median, worst) = (times[PINGS / 2], times[PINGS - 1]);
    let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
    let text = format!("{} (median of {PINGS} PINGs), {} at the worst", ms(median), ms(worst));
    if median > FAR {
        findings.warning(
            "round trip",
            &text,
            "every command takes at least this time, with or without redbouncer: run clients and redbouncer in the server's region",
        );
    } else {
        findings.ok("round trip", &text);
    }
    Ok(true)
}

/// What to do about an error that says how the server is just now; `None` for one that says what we may do.
fn passing(text: &str) -> Option<&'static str> {
    match ErrorCode::of_text(text) {
        ErrorCode::Loading => Some("it is loading its data from disk: try again later"),
        ErrorCode::Busy => {
            Some("a script runs for longer than the server's limit: end it with SCRIPT KILL or FUNCTION KILL")
        }
        ErrorCode::MasterDown => {
            Some("this replica has lost its master and is configured not to answer: use another server")
        }
        ErrorCode::ClusterDown => Some("the cluster is incomplete: see CLUSTER INFO"),
        _ => None, // the server's words; all others are no passing state
    }
}

/// Program, version, mode and role.
pub(super) async fn server(visit: &mut Visit, findings: &mut Findings) -> Result<(), VisitError> {
    let info = visit.ask(&["INFO"]).await?;
    let known = visit.server.clone();
    let Flavour { program, version } = Flavour::of(&info, &known);
    let field = |name: &str, else_known: &str| info_field(&info, name).unwrap_or(else_known).to_owned();
    let role = field("role", &known.role);
    let replica = role == "slave" || role == "replica";
    let mode = match known.mode.as_str() {
        "" => "standalone",
        mode => mode,
    };
    let cluster = mode == "cluster" || info_field(&info, "cluster_enabled") == Some("1");
    let shown = if cluster { "cluster" } else { mode };
    let text =
        format!("{} {version}, {shown}, {}", program.name(), if replica { "a replica" } else { "a master" });
    if mode == "sentinel" {
        let advice = "this is a Sentinel, which has no data: set upstream.url to the server itself, or use redis-sentinel://";
        findings.failure("server", &text, advice);
    } else if cluster {
        findings.warning(
            "server",
            &text,
            "redbouncer serves this one node. Its redirections (MOVED) are passed on, and a client that follows them \
             leaves redbouncer: use a server that is no cluster, or an endpoint that hides it",
        );
    } else if replica {
        findings.warning("server", &text, "it refuses writes (READONLY): use the master");
    } else {
        match program {
            Program::Redis | Program::Valkey => findings.ok("server", &text),
            Program::Dragonfly | Program::KeyDb | Program::Other(_) => findings.warning(
                "server",
                &text,
                "redbouncer is tested only with Redis and Valkey: test your application first",
            ),
        }
    }
    Ok(())
}

/// What is set there that matters to connections and queues.
pub(super) async fn settings(
    plan: Plan<'_>,
    visit: &mut Visit,
    findings: &mut Findings,
) -> Result<(), VisitError> {
    let number = |reply: &[u8]| config_value(reply).and_then(|value| value.parse::<u64>().ok());
    timeout(number(&visit.ask(&["CONFIG", "GET", "timeout"]).await?), plan.heartbeat, findings);
    keepalive(number(&visit.ask(&["CONFIG", "GET", "tcp-keepalive"]).await?), findings);
    let memory = visit.ask(&["INFO", "memory"]).await?;
    let policy = match info_field(&memory, "maxmemory_policy").map(str::to_owned) {
        Some(policy) => Some(policy),
        None => config_value(&visit.ask(&["CONFIG", "GET", "maxmemory-policy"]).await?).map(str::to_owned),
    };
    let limit = info_field(&memory, "maxmemory_human").filter(|limit| *limit != "0B");
    eviction(policy.as_deref(), limit, findings);
    Ok(())
}

fn timeout(seconds: Option<u64>, heartbeat: Duration, findings: &mut Findings) {
    match seconds {
        None => findings.ok("timeout", "not available: the server refuses CONFIG GET"),
        Some(0) => findings.ok("timeout", "0: the server closes no idle connections"),
        Some(seconds) if Duration::from_secs(seconds) < 2 * heartbeat => findings.warning(
            "timeout",
            &format!("the server closes connections that are idle for {seconds} s, redbouncer's between two heartbeats"),
            &format!("set hygiene.heartbeat (now {heartbeat:?}) to less than half of it"),
        ),
        Some(seconds) => findings.note(
            "timeout",
            &format!("the server closes connections that are idle for {seconds} s"),
            "redbouncer sends heartbeats more often; a client that holds a WATCH for longer loses it, as with a direct connection",
        ),
    }
}

fn keepalive(seconds: Option<u64>, findings: &mut Findings) {
    match seconds {
        None => findings.ok("tcp-keepalive", "not available: the server refuses CONFIG GET"),
        Some(0) => findings.warning(
            "tcp-keepalive",
            "0: connections of hosts that are gone stay for ever",
            "CONFIG SET tcp-keepalive 60. redbouncer ends what dead redbouncers left; of other clients nobody does",
        ),
        Some(seconds) => findings
            .ok("tcp-keepalive", &format!("{seconds} s: a host that is gone is noticed after {} s at most", 2 * seconds)),
    }
}

fn eviction(policy: Option<&str>, limit: Option<&str>, findings: &mut Findings) {
    let limit = limit.map_or_else(String::new, |limit| format!(" (maxmemory {limit})"));
    match policy {
        None => findings.ok("eviction", "not available"),
        Some("noeviction") => {
            findings.ok("eviction", &format!("noeviction{limit}, as BullMQ and other queues require"));
        }
        Some(policy) => findings.warning(
            "eviction",
            &format!("{policy}{limit}: when memory is full the server drops keys"),
            "suitable for a cache; BullMQ and other queues lose jobs: they require maxmemory-policy noeviction",
        ),
    }
}
