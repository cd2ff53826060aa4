//! The series of `/metrics`: there before their first event, and right.

use std::collections::BTreeMap;

use redbouncer::pool::Kind;
use redbouncer::session::Pin;
use redbouncer::telemetry::{ClientClose, UpstreamClose};

use crate::harness::{Authority, PATIENCE, Proxy, Server, Stage, encode, free_port, until};

/// The names and labels of counters, without those that no list bounds.
fn counters(proxy: &Proxy) -> BTreeMap<String, f64> {
    let mut metrics = proxy.metrics();
    metrics.retain(|series, _| {
        let name = series.split('{').next().unwrap();
        name.starts_with("redbouncer_") && name.ends_with("_total") && name != "redbouncer_commands_total"
    });
    metrics
}

/// `increase()` does not see the first event of a series that appears with it.
#[test]
fn every_counter_is_there_before_its_first_event() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    let proxy = Proxy::start(&server, &["auth.mode=passthrough"]);
    let at_the_start = counters(&proxy);
    for reason in ClientClose::ALL {
        let series = format!("redbouncer_clients_closed_total{{reason=\"{}\"}}", reason.label());
        assert_eq!(at_the_start.get(&series), Some(&0.0), "{series}: {at_the_start:?}");
    }
    for reason in UpstreamClose::ALL {
        let with = |label: &str| format!("{label}=\"{}\"", reason.label());
        let of_reason = at_the_start.keys().filter(|series| series.contains(&with("reason")));
        let of_reason = of_reason.filter(|series| series.starts_with("redbouncer_upstream_closed_total"));
        assert_eq!(of_reason.count(), Kind::ALL.len(), "{reason:?}");
    }
    for pin in Pin::ALL {
        let series = format!("redbouncer_leases_total{{pin=\"{}\"}}", pin.label());
        assert_eq!(at_the_start.get(&series), Some(&0.0), "{series}");
    }
    let mut client = proxy.connect();
    for command in ["AUTH sesame", "AUTH wrong", "PING", "SUBSCRIBE c", "UNSUBSCRIBE", "WATCH w"] {
        client.call(command);
    }
    client.call("UNWATCH");
    client.call("BLPOP none 0.01");
    drop(client);
    let mut other = proxy.connect();
    other.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    until("what has happened is counted", PATIENCE, || {
        let now = counters(&proxy);
        let closed = |reason: &str| now[&format!("redbouncer_clients_closed_total{{reason=\"{reason}\"}}")];
        closed("client_eof") >= 1.0 && closed("http") >= 1.0
    });
    let later = counters(&proxy);
    let new: Vec<_> = later.keys().filter(|series| !at_the_start.contains_key(*series)).collect();
    assert!(new.is_empty(), "counters that appeared with their first event: {new:?}");
    assert!(later.values().sum::<f64>() > at_the_start.values().sum::<f64>());
}

/// One series, which must be there.
#[track_caller]
fn value(proxy: &Proxy, series: &str) -> f64 {
    let metrics = proxy.metrics();
    *metrics.get(series).unwrap_or_else(|| panic!("no {series} in {:?}", metrics.keys()))
}

#[test]
fn leases_are_counted_while_they_are_held() {
    let stage = Stage::proxied();
    let mut clients: Vec<_> = (0..2).map(|_| stage.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.call("WATCH w").text(), "OK");
    }
    let held = || value(stage.proxy(), "redbouncer_leases{pin=\"WATCH\"}");
    let ended = || value(stage.proxy(), "redbouncer_lease_seconds_count{pin=\"WATCH\"}");
    assert_eq!((held(), ended()), (2.0, 0.0));
    let leased = stage.server.rows().iter().filter(|row| row.get("name").ends_with(":leased")).count();
    assert_eq!(leased, 2);
    assert_eq!(clients[0].call("UNWATCH").text(), "OK");
    until("one lease has ended", PATIENCE, || (held(), ended()) == (1.0, 1.0));
    drop(clients);
    until("both have", PATIENCE, || (held(), ended()) == (0.0, 2.0));
    assert!(value(stage.proxy(), "redbouncer_lease_seconds_sum{pin=\"WATCH\"}") > 0.0);
    assert_eq!(value(stage.proxy(), "redbouncer_leases_total{pin=\"WATCH\"}"), 2.0);
}

#[test]
fn the_wait_for_a_permit_is_measured() {
    let stage = Stage::proxied_with(&["pool.max_connections=4", "pool.wait_timeout=300ms"]);
    let count = || value(stage.proxy(), "redbouncer_pool_wait_seconds_count{claim=\"lease\"}");
    let sum = || value(stage.proxy(), "redbouncer_pool_wait_seconds_sum{claim=\"lease\"}");
    let mut holders = Vec::new();
    let refused = loop {
        let mut client = stage.connect();
        let reply = client.call("WATCH w");
        if reply.is_error() {
            break reply;
        }
        holders.push(client);
        assert!(holders.len() < 4, "the pool has no end");
    };
    assert!(refused.text().contains("no upstream connection"), "{}", refused.text());
    let claims = holders.len() as f64 + 1.0;
    until("every claim is counted", PATIENCE, || count() == claims);
    assert!(sum() >= 0.3, "the one that was refused waited for 300 ms: {}", sum());
    let below = value(stage.proxy(), "redbouncer_pool_wait_seconds_bucket{claim=\"lease\",le=\"0.1\"}");
    assert!(below < claims, "it is in no bucket below its wait");
}

#[test]
fn errors_are_counted_by_who_made_them() {
    let stage = Stage::proxied();
    let count = |origin: &str, kind: &str| {
        let series = format!("redbouncer_command_errors_total{{origin=\"{origin}\",kind=\"{kind}\"}}");
        value(stage.proxy(), &series)
    };
    assert_eq!((count("server", "WRONGTYPE"), count("redbouncer", "ERR")), (0.0, 0.0));
    let mut client = stage.connect();
    assert_eq!(client.call("SET text x").text(), "OK");
    // Over a lane, in a pipeline, by the blocking hub or a try, and on a lease.
    assert!(client.call("LPUSH text x").is_error());
    assert!(client.pipeline(&["PING", "SADD text x", "GET text"])[1].is_error());
    assert!(client.call("BLPOP text 1").is_error());
    assert_eq!(client.call("WATCH w").text(), "OK");
    assert!(client.call("LPUSH text x").is_error());
    assert_eq!(client.call("UNWATCH").text(), "OK");
    until("four errors of the server are counted", PATIENCE, || count("server", "WRONGTYPE") == 4.0);
    assert_eq!(count("redbouncer", "WRONGTYPE"), 0.0);
    assert!(client.call("CLIENT NONSENSE").is_error());
    assert!(client.call("SELECT x").is_error());
    until("two of redbouncer are counted", PATIENCE, || count("redbouncer", "ERR") == 2.0);
    assert!(client.call("NOSUCHCOMMAND").is_error());
    until("an unknown command is the server's", PATIENCE, || count("server", "ERR") >= 1.0);
    assert_eq!(count("redbouncer", "ERR"), 2.0);
}

#[test]
fn the_time_of_one_command_in_256_is_measured_by_family() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    let count = |family: &str| {
        let series = format!("redbouncer_command_seconds_count{{family=\"{family}\"}}");
        stage.proxy().metrics().get(&series).copied().unwrap_or(0.0)
    };
    for _ in 0..2560 {
        client.call("GET none");
    }
    until("ten or so are measured", PATIENCE, || count("string") >= 9.0);
    assert!(count("string") <= 11.0, "{} of 2560", count("string"));
    for _ in 0..3 {
        client.pipeline(&["HSET hash a 1"; 300]);
    }
    until("a batch is measured once", PATIENCE, || count("hash") >= 1.0);
    let hash = count("hash");
    assert!(hash <= 4.0, "{hash} of 3 pipelines");
    let sum = value(stage.proxy(), "redbouncer_command_seconds_sum{family=\"string\"}");
    assert!(sum > 0.0 && sum < 11.0, "{sum} s");
    assert_eq!(count("list"), 0.0);
}

#[test]
fn heartbeats_measure_the_round_trip() {
    let stage = Stage::proxied_with(&["hygiene.heartbeat=1s", "hygiene.orphan_after=10s"]);
    let mut client = stage.connect();
    assert_eq!(client.call("PING").text(), "PONG");
    let count = || value(stage.proxy(), "redbouncer_upstream_rtt_seconds_count");
    until("a heartbeat is measured", 3 * PATIENCE, || count() >= 1.0);
    let sum = value(stage.proxy(), "redbouncer_upstream_rtt_seconds_sum");
    assert!(sum > 0.0 && sum / count() < 1.0, "{sum} s in {} round trips", count());
}

#[test]
fn gauges_are_sums_over_the_workers() {
    let stage = Stage::proxied_with(&["listen.workers=2", "pool.max_connections=16"]);
    let mut clients: Vec<_> = (0..6).map(|_| stage.connect()).collect();
    for client in &mut clients {
        client.start("BLPOP none 0");
    }
    until("all of both workers are counted", PATIENCE, || {
        value(stage.proxy(), "redbouncer_blocking_waiters") == 6.0
    });
}

#[test]
fn the_process_is_described() {
    let stage = Stage::proxied();
    let proxy = stage.proxy();
    let (open, resident) = (value(proxy, "process_open_fds"), value(proxy, "process_resident_memory_bytes"));
    assert!((open - proxy.descriptors() as f64).abs() <= 4.0, "{open} files, {}", proxy.descriptors());
    assert!((resident / proxy.resident() as f64 - 1.0).abs() < 0.3, "{resident}, {}", proxy.resident());
    assert!(value(proxy, "process_max_fds") >= open);
    for side in ["client", "upstream"] {
        assert!(value(proxy, &format!("redbouncer_memory_bytes{{side=\"{side}\"}}")) >= 0.0);
    }
}

/// Requests that the server does not take stay here, and count.
#[test]
fn what_the_server_does_not_read_counts_as_memory() {
    let stage = Stage::proxied_with(&["upstream.stall_timeout=60s"]);
    let mut clients: Vec<_> = (0..8).map(|_| stage.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.call("PING").text(), "PONG");
    }
    stage.server.signal("STOP");
    // More than the buffers of the kernel take.
    let request = encode(&["SET", "key", &"v".repeat(900 << 10)]);
    for client in &mut clients {
        client.send(request.repeat(4));
    }
    let held = || value(stage.proxy(), "redbouncer_memory_bytes{side=\"upstream\"}");
    until("what the server does not take is counted", PATIENCE, || held() > 500_000.0);
    stage.server.signal("CONT");
    until("it is gone when the server reads again", PATIENCE, || held() == 0.0);
}

#[test]
fn certificates_say_until_when_they_are_valid() {
    let authority = Authority::new("the test's authority");
    let issued = authority.issue("server", &["localhost"], (2020, 2050));
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let port = free_port();
    let _server = Server::start_with(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &text(&issued.cert),
        "--tls-key-file",
        &text(&issued.key),
        "--tls-auth-clients",
        "no",
    ]);
    let own = authority.issue("proxy", &["localhost"], (2020, 2040));
    let shown = authority.issue("shown", &["proxy"], (2020, 2030));
    let settings = [
        format!("upstream.tls.cert={}", shown.cert.display()),
        format!("upstream.tls.key={}", shown.key.display()),
        format!("upstream.tls.ca={}", authority.ca().display()),
        "listen.tls.addresses=127.0.0.1:0".to_owned(),
        format!("listen.tls.cert={}", own.cert.display()),
        format!("listen.tls.key={}", own.key.display()),
    ];
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let proxy = Proxy::launch(&format!("rediss://localhost:{port}"), &settings).expect("it starts");
    let until_then = |side: &str| {
        let series = format!("redbouncer_tls_certificate_expiry_timestamp_seconds{{side=\"{side}\"}}");
        proxy.metrics().get(&series).copied()
    };
    // 1 January 2040, 2030 and 2050, 0:00 UTC.
    assert_eq!(until_then("client"), Some(2_208_988_800.0));
    assert_eq!(until_then("upstream_own"), Some(1_893_456_000.0));
    until("the server has shown its own", PATIENCE, || until_then("upstream") == Some(2_524_608_000.0));
    authority.issue("proxy", &["localhost"], (2020, 2041));
    authority.issue("shown", &["proxy"], (2020, 2024));
    proxy.signal("HUP");
    until("a renewed one is known", PATIENCE, || until_then("client") == Some(2_240_611_200.0));
    until("the other one, too", PATIENCE, || until_then("upstream_own") == Some(1_704_067_200.0));
    assert!(proxy.log().contains("the certificate in upstream.tls.cert has expired"), "{}", proxy.log());
}
