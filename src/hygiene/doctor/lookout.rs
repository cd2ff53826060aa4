//! The server: how far, what it is, how many places it has, how it is set, who is connected.

use std::time::{Duration, Instant};

use super::{Findings, Plan};
use crate::hygiene::{Visit, VisitError, config_value, info_field, orphans};
use crate::resp;

/// PINGs for the round-trip time.
const PINGS: usize = 20;
/// A round trip that is felt in every blocking call and every lease.
const FAR: Duration = Duration::from_millis(20);
/// A server that closes idle connections sooner closes ours between two heartbeats.
const SHORT_TIMEOUT: u64 = 60;

pub(super) async fn round_trip(visit: &mut Visit, findings: &mut Findings) -> Result<(), VisitError> {
    let mut times = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let begun = Instant::now();
        visit.ask(&["PING"]).await?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let (median, worst) = (times[PINGS / 2], times[PINGS - 1]);
    let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
    let text = format!("{} of {PINGS} (median), {} at the worst", ms(median), ms(worst));
    if median > FAR {
        findings.warning("round trip", &text, "put redbouncer beside the clients, in the server's region");
    } else {
        findings.ok("round trip", &text);
    }
    Ok(())
}

pub(super) async fn flavour(visit: &mut Visit, findings: &mut Findings) -> Result<(), VisitError> {
    let info = visit.ask(&["INFO"]).await?;
    let field = |name: &str| info_field(&info, name).map(str::to_owned);
    let server = visit.server.clone();
    let (flavour, version) = if let Some(version) = field("dragonfly_version") {
        ("Dragonfly".to_owned(), version)
    } else if field("mvcc_depth").is_some()
        || field("executable").is_some_and(|path| path.contains("keydb-server"))
    {
        ("KeyDB".to_owned(), server.version.clone())
    } else {
        let mut letters = server.server.chars();
        let name: String = letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect();
        (name, server.version.clone())
    };
    let role = field("role").unwrap_or_else(|| server.role.clone());
    let replica = role == "slave" || role == "replica";
    let mode = if server.mode.is_empty() { "standalone".to_owned() } else { server.mode.clone() };
    let role = if replica { "a replica" } else { "a master" };
    let text = format!("{flavour} {version}, {mode}, {role}");
    match mode.as_str() {
        "sentinel" => findings.failure(
            "server",
            &text,
            "this is a Sentinel, which has no data: upstream.url has to name the server itself",
        ),
        "cluster" => findings.warning(
            "server",
            &text,
            "a cluster's redirections (MOVED) are passed on to the clients, which then leave redbouncer: use an endpoint \
             that is no cluster, or that hides it",
        ),
        _ if replica => findings.warning("server", &text, "writes will be refused (READONLY): name the master"),
        _ if flavour == "Dragonfly" || flavour == "KeyDB" => findings.warning(
            "server",
            &text,
            "redbouncer is not tested against it; what it does not have is done without",
        ),
        _ => findings.ok("server", &text),
    }
    Ok(())
}

pub(super) async fn places(
    plan: Plan<'_>,
    visit: &mut Visit,
    findings: &mut Findings,
) -> Result<(), VisitError> {
    let info = visit.ask(&["INFO", "clients"]).await?;
    let taken = info_field(&info, "connected_clients").and_then(|count| count.parse::<usize>().ok());
    let (Some(limit), Some(taken)) = (visit.limit().await?, taken) else {
        findings.warning(
            "places",
            "the server does not say how many connections it allows",
            "look at the plan: pool.max_connections × the number of proxies has to stay below its limit",
        );
        return Ok(());
    };
    let cap = plan.cap;
    // The check itself will be gone.
    let free = limit.saturating_sub(taken.saturating_sub(1));
    let share = 100 * cap / limit.max(1);
    let text = format!("{taken} of {limit} connections are taken; a cap of {cap} is {share} % of the limit");
    if cap > free {
        findings.failure(
            "places",
            &text,
            "there are fewer places free than redbouncer may open: redbouncer cleanup shows who has them",
        );
    } else if 2 * cap > limit {
        findings.warning(
            "places",
            &text,
            "a proxy that is replaced overlaps with the new one: keep 2 × pool.max_connections × the number of proxies \
             below the limit",
        );
    } else {
        findings.ok("places", &text);
    }
    Ok(())
}

pub(super) async fn settings(visit: &mut Visit, findings: &mut Findings) -> Result<(), VisitError> {
    let number = |reply: &[u8]| config_value(reply).and_then(|value| value.parse::<u64>().ok());
    match number(&visit.ask(&["CONFIG", "GET", "timeout"]).await?) {
        None => {
            findings.ok("timeout", "not readable (CONFIG is refused): connections that idle are redialled");
        }
        Some(0) => findings.ok("timeout", "0: the server closes no idle connection by itself"),
        Some(seconds) if seconds < SHORT_TIMEOUT => findings.warning(
            "timeout",
            &format!("the server closes connections that are idle for {seconds} s"),
            "set hygiene.heartbeat to less than half of that, or blocked clients on leases are cut off",
        ),
        Some(seconds) => {
            findings.ok("timeout", &format!("{seconds} s: idle connections are closed by the server"));
        }
    }
    match number(&visit.ask(&["CONFIG", "GET", "tcp-keepalive"]).await?) {
        None => findings.ok("tcp-keepalive", "not readable (CONFIG is refused)"),
        Some(0) => findings.warning(
            "tcp-keepalive",
            "0: connections of hosts that are gone stay for ever",
            "CONFIG SET tcp-keepalive 60; redbouncer removes its own, but nobody removes those of other clients",
        ),
        Some(seconds) => findings.ok("tcp-keepalive", &format!("{seconds} s")),
    }
    let memory = visit.ask(&["INFO", "memory"]).await?;
    let policy = match info_field(&memory, "maxmemory_policy").map(str::to_owned) {
        Some(policy) => Some(policy),
        None => config_value(&visit.ask(&["CONFIG", "GET", "maxmemory-policy"]).await?).map(str::to_owned),
    };
    match policy.as_deref() {
        None => findings.ok("eviction", "not readable"),
        Some("noeviction") => findings.ok("eviction", "noeviction: queues lose nothing when memory is full"),
        Some(policy) => findings.warning(
            "eviction",
            &format!("{policy}: the server may drop keys when its memory is full"),
            "right for a cache; BullMQ and other queues need noeviction",
        ),
    }
    Ok(())
}

pub(super) async fn connections(
    plan: Plan<'_>,
    visit: &mut Visit,
    findings: &mut Findings,
) -> Result<(), VisitError> {
    let reply = visit.ask(&["CLIENT", "LIST"]).await?;
    let Some(text) = resp::bulk(&reply) else {
        findings.warning(
            "connections",
            "CLIENT LIST is refused",
            "orphans of dead proxies cannot be found: allow CLIENT LIST and CLIENT KILL (ACL: +client|list +client|kill)",
        );
        return Ok(());
    };
    let rows = crate::session::Listed::parse_all(text);
    let idle =
        |least: u64, most: u64| rows.iter().filter(|row| (least..most).contains(&row.idle.as_secs())).count();
    findings.ok(
        "idle",
        &format!(
            "of {} connections {} were active within 10 s, {} within 1 m, {} within 10 m, {} within 1 h, {} not",
            rows.len(),
            idle(0, 10),
            idle(10, 60),
            idle(60, 600),
            idle(600, 3_600),
            idle(3_600, u64::MAX),
        ),
    );
    match orphans(&rows, None, plan.hygiene.orphan_after).len() {
        0 => findings.ok("orphans", "no connection of a dead redbouncer"),
        count => findings.warning(
            "orphans",
            &format!("{count} connections were left by a redbouncer that is dead"),
            "redbouncer cleanup --orphans --yes, or wait: any running redbouncer kills them",
        ),
    }
    Ok(())
}
