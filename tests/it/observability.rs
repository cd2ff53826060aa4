//! What an operator sees: health, metrics, status, log. Compared with what the server itself says.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use serde_json::Value as Json;

use crate::harness::{Client, PATIENCE, Proxy, Server, Stage, free_port, http, until};

/// The sum of every series of one metric.
fn sum(metrics: &BTreeMap<String, f64>, name: &str) -> f64 {
    let series = metrics.iter().filter(|(series, _)| series.split('{').next() == Some(name));
    series.map(|(_, value)| value).sum()
}

#[test]
fn a_running_proxy_is_live_and_ready() {
    let stage = Stage::proxied();
    assert_eq!(stage.proxy().http("/live").0, 200);
    until("it is ready", PATIENCE, || stage.proxy().http("/ready").0 == 200);
    assert_eq!(stage.proxy().http("/nothing-here").0, 404);
}

#[test]
fn without_its_upstream_a_proxy_stays_live() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    let proxy = Proxy::launch(&url, &[]).expect("it starts");
    assert_eq!(proxy.http("/live").0, 200);
    let mut client = proxy.connect();
    client.start("PING");
    until("it is known to be down", PATIENCE, || {
        proxy.metrics().get("redbouncer_upstream_up").is_some_and(|value| *value == 0.0)
    });
    assert_eq!(proxy.http("/live").0, 200);
}

#[test]
fn tasks_come_with_clients_and_go_with_them() {
    let stage = Stage::proxied();
    let tasks = || {
        let metrics = stage.proxy().metrics();
        assert!(metrics["redbouncer_tasks{thread=\"main\"}"] > 0.0, "{metrics:?}");
        metrics["redbouncer_tasks{thread=\"worker-0\"}"]
    };
    // The first login and the first look for orphans have connections of their own, until they linger no more.
    until("nothing is connected", PATIENCE, || {
        let metrics = stage.proxy().metrics();
        metrics["redbouncer_upstream_up"] == 1.0 && sum(&metrics, "redbouncer_upstream_connections") == 0.0
    });
    let before = tasks();
    let mut clients: Vec<_> = (0..20).map(|_| stage.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.call("PING").text(), "PONG");
    }
    assert!(tasks() >= before + 20.0, "{} before, {} with 20 clients", before, tasks());
    drop(clients);
    until("they have gone", PATIENCE, || tasks() == before);
}

#[test]
fn every_metric_has_the_prefix_and_a_description() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    client.call("PING");
    client.call("BLPOP none 0.01");
    until("the measured times are published", PATIENCE, || {
        stage.proxy().counted().keys().any(|series| series.starts_with("redbouncer_upstream_reply_seconds_"))
    });
    let (_, body) = stage.proxy().http("/metrics");
    for line in body.lines().filter(|line| !line.trim().is_empty()) {
        let name = line.strip_prefix("# HELP ").or(line.strip_prefix("# TYPE ")).unwrap_or(line);
        assert!(name.starts_with("redbouncer_") || name.starts_with("process_"), "{line}");
        if !line.starts_with('#') {
            let family = name.split(['{', ' ']).next().unwrap();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| family.strip_suffix(end))
                .unwrap_or(family);
            assert!(body.contains(&format!("# TYPE {family} ")), "{family} has no type");
            assert!(body.contains(&format!("# HELP {family} ")), "{family} has no description");
        }
    }
}

#[test]
fn the_gauge_of_upstream_connections_agrees_with_the_server() {
    let stage = Stage::proxied();
    let mut clients: Vec<Client> = (0..6).map(|_| stage.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        match number % 3 {
            0 => drop(client.call("PING")),
            1 => drop(client.call("WATCH w")),
            _ => client.start("BLPOP none 0"),
        }
    }
    let agree = || {
        let gauge = sum(&stage.proxy().metrics(), "redbouncer_upstream_connections");
        gauge > 0.0 && gauge == stage.server.clients() as f64
    };
    until("gauge and CLIENT LIST agree", Duration::from_secs(4), agree);
    until("clients and cap are told", PATIENCE, || {
        let metrics = stage.proxy().metrics();
        sum(&metrics, "redbouncer_clients") == 6.0
            && sum(&metrics, "redbouncer_upstream_connections_max") == 8.0
    });
    drop(clients);
    until("both are back at rest", Duration::from_secs(5), || {
        let metrics = stage.proxy().metrics();
        let held = stage.server.rows().iter().filter(|row| !row.get("name").ends_with(":control")).count();
        held == 0
            && sum(&metrics, "redbouncer_clients") == 0.0
            && sum(&metrics, "redbouncer_upstream_connections") == stage.server.clients() as f64
    });
}

#[test]
fn a_release_is_measured_and_takes_a_moment() {
    let stage = Stage::proxied();
    for _ in 0..20 {
        let mut client = stage.connect();
        assert_eq!(client.call("WATCH w").text(), "OK");
        client.reset();
    }
    until("20 releases are counted", PATIENCE, || {
        sum(&stage.proxy().metrics(), "redbouncer_upstream_release_seconds_count") >= 20.0
    });
    let metrics = stage.proxy().metrics();
    let mean = sum(&metrics, "redbouncer_upstream_release_seconds_sum")
        / sum(&metrics, "redbouncer_upstream_release_seconds_count");
    assert!(mean < 0.010, "{mean} s from knowing to FIN");
}

#[test]
fn commands_and_clients_are_counted() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    for _ in 0..50 {
        client.call("INCR n");
    }
    drop(client);
    until("50 commands and a closed client are counted", PATIENCE, || {
        let metrics = stage.proxy().metrics();
        sum(&metrics, "redbouncer_commands_total") >= 50.0
            && sum(&metrics, "redbouncer_clients_accepted_total") >= 1.0
            && sum(&metrics, "redbouncer_clients_closed_total") >= 1.0
    });
}

#[test]
fn status_tells_who_holds_what() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    client.call("CLIENT SETNAME the-holder");
    client.call("WATCH w");
    let id = client.call("CLIENT ID").int();
    until("the status shows the client and its pin", PATIENCE, || {
        let text = stage.proxy().status().to_string();
        text.contains("the-holder") && text.to_lowercase().contains("watch") && text.contains(&id.to_string())
    });
    let status: Json = stage.proxy().status();
    assert!(status.is_object());
}

#[test]
fn the_log_is_json_and_tells_why_connections_close() {
    let stage = Stage::proxied_with(&["log.level=debug"]);
    let mut client = stage.connect();
    client.call("WATCH w");
    client.reset();
    until("the close has a reason", PATIENCE, || {
        stage.proxy().log().lines().any(|line| line.contains("reason"))
    });
    for line in stage.proxy().log().lines() {
        let parsed: Result<Json, _> = serde_json::from_str(line);
        assert!(parsed.is_ok(), "not JSON: {line}");
    }
}

#[test]
fn no_secret_is_ever_logged() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    let stage = Stage::before(server, &["log.level=trace", "auth.mode=passthrough"]);
    let mut client = stage.connect();
    client.call("AUTH sesame");
    client.call("AUTH wrong-barley");
    client.call("HELLO 3 AUTH default wrong-wheat");
    client.call("SET private-key private-value");
    client.call("CONFIG SET masterauth hidden-word");
    drop(client);
    let (status, _) = stage.proxy().http("/status");
    assert_eq!(status, 200);
    let seen =
        [stage.proxy().log(), stage.proxy().status().to_string(), stage.proxy().http("/metrics").1].concat();
    for secret in ["sesame", "wrong-barley", "wrong-wheat", "private-value", "hidden-word"] {
        assert!(!seen.contains(secret), "{secret} is shown");
    }
}

#[test]
fn many_client_names_do_not_become_many_metrics() {
    let stage = Stage::proxied();
    let before = stage.proxy().metrics().len();
    for number in 0..200 {
        let mut client = stage.connect();
        client.call(&format!("CLIENT SETNAME name:{number}"));
        client.call(&format!("UNKNOWN{number} x"));
    }
    assert!(stage.proxy().metrics().len() < before + 60, "labels must be bounded");
}

#[test]
fn connections_that_ask_and_do_not_read_keep_no_probe_from_its_answer() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &[]);
    let mut open = Vec::new();
    for round in 0..300 {
        let mut stream = std::net::TcpStream::connect(proxy.admin()).unwrap();
        if round % 2 == 0 {
            // Many requests at once, so that their answers do not fit into the buffers between.
            let many = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1000);
            let _ = stream.write_all(many.as_bytes());
        }
        open.push(stream);
        if round % 20 == 19 {
            assert_eq!(proxy.http("/live").0, 200);
            assert_eq!(proxy.http("/ready").0, 200);
        }
    }
    // Of 300 there are at most 64.
    let gone = |stream: &std::net::TcpStream| {
        stream.set_nonblocking(true).unwrap();
        let mut bytes = [0; 4096];
        loop {
            match (&mut &*stream).read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
    };
    until("the older ones have given way", PATIENCE, || {
        open.iter().filter(|stream| gone(stream)).count() >= 236
    });
}

#[test]
fn the_admin_port_answers_under_no_foreign_name() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["admin.hosts=proxy.example.com"]);
    let status = |host: &str| http::get_as(proxy.admin(), "/status", host).unwrap().0;
    for known in ["127.0.0.1:9380", "localhost", "[::1]:9380", "redbouncer:9380", "proxy.example.com"] {
        assert_eq!(status(known), 200, "{known}");
    }
    for foreign in ["evil.example", "evil.example:9380", "a b"] {
        assert!([421, 400].contains(&status(foreign)), "{foreign}");
    }
}
