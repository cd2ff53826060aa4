//! Why connections ended: every one of them is counted, once, with a reason of the closed lists.

use std::collections::BTreeSet;
use std::time::Duration;

use redbouncer::telemetry::{ClientClose, UpstreamClose};

use crate::harness::{ClientFleet, PATIENCE, Proxy, Server, State, until};

/// The values of `metric` by their label `reason`, those that are 0 left out.
fn by_reason(proxy: &Proxy, metric: &str) -> Vec<(String, u64)> {
    let metrics = proxy.metrics();
    let is_asked = |name: &str| name.starts_with(&format!("{metric}{{"));
    let series = metrics.iter().filter(|(name, count)| is_asked(name) && **count > 0.0);
    series
        .map(|(name, count)| {
            let reason = name.split("reason=\"").nth(1).unwrap().split('"').next().unwrap();
            (reason.to_owned(), *count as u64)
        })
        .collect()
}

fn total(counts: &[(String, u64)]) -> u64 {
    counts.iter().map(|(_, count)| count).sum()
}

fn reasons(counts: &[(String, u64)]) -> BTreeSet<&str> {
    counts.iter().map(|(reason, _)| reason.as_str()).collect()
}

/// How many dials have failed, as the log says when one succeeds again.
fn failed_dials(proxy: &Proxy) -> u64 {
    let log = proxy.log();
    let ends = log.lines().filter(|line| line.contains("upstream reached again"));
    let lines = ends.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.map(|line| line["dials"].as_u64().unwrap()).sum()
}

#[test]
fn as_many_connections_are_counted_as_closed_as_have_been_opened() {
    let server = Server::start();
    server.call(&format!("SET big {}", "x".repeat(3 << 20)));
    let received = || -> u64 { server.info("total_connections_received").parse().unwrap() };
    let before = received();
    let proxy = Proxy::start(&server, &["pool.idle_timeout=1s", "hygiene.interval=1s", "client.max=60"]);
    let start = |state| ClientFleet::start(proxy.address(), 4, state);
    // Killed in every state; then closed by the loss of the server's side in every state; then by a kill of the server's.
    for round in ["backend", "server"] {
        let crowds: Vec<_> = State::ALL.into_iter().map(start).collect();
        until("leases are held", PATIENCE, || {
            server.rows().iter().any(|row| row.get("name").ends_with(":leased"))
        });
        if round == "server" {
            assert!(server.call("CLIENT KILL TYPE normal SKIPME yes").int() > 0);
            server.call("CLIENT KILL TYPE pubsub");
        }
        crowds.into_iter().for_each(ClientFleet::kill);
    }
    let mut client = proxy.connect();
    client.call("QUIT");
    client.expect_end(PATIENCE);
    let mut http = proxy.connect();
    http.send("POST / HTTP/1.1\r\nHost: x\r\n\r\n");
    http.expect_end(PATIENCE);
    let full: Vec<_> = (0..64).map(|_| proxy.connect()).collect();
    until("those over the limit are refused", PATIENCE, || {
        by_reason(&proxy, "redbouncer_clients_closed_total").iter().any(|(reason, _)| reason == "too_many")
    });
    drop(full);
    let settled = || proxy.metrics()["redbouncer_clients{worker=\"0\"}"] == 0.0 && server.clients() == 0;
    until("everything is released", Duration::from_secs(15), settled);

    let clients = by_reason(&proxy, "redbouncer_clients_closed_total");
    assert_eq!(total(&clients), proxy.metrics()["redbouncer_clients_accepted_total"] as u64, "{clients:?}");
    let known: BTreeSet<_> = ClientClose::ALL.iter().map(|reason| reason.label()).collect();
    assert!(reasons(&clients).is_subset(&known), "{clients:?}");

    // A round of the reaper may be between its dial and its close: then they differ by one, for a moment.
    let mut counts = (0, Vec::new());
    until("what was opened is counted as closed", PATIENCE, || {
        // A kill may meet a connection in its login: a dial that has failed was never opened.
        let opened = received() - before - failed_dials(&proxy);
        counts = (opened, by_reason(&proxy, "redbouncer_upstream_closed_total"));
        counts.0 == total(&counts.1)
    });
    let known: BTreeSet<_> = UpstreamClose::ALL.iter().map(|reason| reason.label()).collect();
    let seen = reasons(&counts.1);
    assert!(seen.is_subset(&known) && !seen.contains("cut"), "{counts:?}");
    assert!(seen.contains("lost") && seen.contains("client_gone"), "{counts:?}");
}
