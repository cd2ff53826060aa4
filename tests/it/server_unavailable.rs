//! A server that is away looks like a server that is away: a closed connection, which every client library recovers from.

use std::time::{Duration, Instant};

use crate::harness::{Client, Ended, PATIENCE, Proxy, Server, Stage, encode, throughout, until};

const SETTINGS: &[&str] = &["pool.wait_timeout=300ms", "hygiene.reap=false"];

/// One of each way that a command takes.
const COMMANDS: &[&str] = &[
    "GET k",
    "PING",
    "MULTI",
    "WATCH k",
    "SELECT 5",
    "HELLO 3",
    "SUBSCRIBE c",
    "SSUBSCRIBE c",
    "PUBLISH c m",
    "PUBSUB NUMSUB c",
    "BLPOP k 0",
    "BLPOP k",
    "XREAD BLOCK 0 STREAMS s $",
    "BLMOVE a b LEFT RIGHT 0",
    "WAIT 1 0",
    "DEBUG SLEEP 0",
    "CLIENT TRACKING ON",
    "CLIENT LIST",
    "CLIENT KILL ID 1",
    "CONFIG GET maxmemory",
    "MODULE.COMMAND k",
];

fn words(command: &str) -> Vec<u8> {
    encode(&command.split(' ').collect::<Vec<_>>())
}

fn closed_for_want(proxy: &Proxy) -> f64 {
    let metrics = proxy.metrics();
    metrics.get("redbouncer_clients_closed_total{reason=\"no_upstream\"}").copied().unwrap_or_default()
}

fn until_the_lanes_are_gone(proxy: &Proxy) {
    until("the lanes are gone", PATIENCE, || {
        let status = proxy.status();
        let open = |row: &&serde_json::Value| row["kind"] == "shared" && row["phase"] == "open";
        status["upstreams"].as_array().is_some_and(|all| !all.iter().any(|row| open(&row)))
    });
}

/// Every kind of command closes its client without a byte, and the operator learns why.
#[track_caller]
fn all_are_closed(proxy: &Proxy, reason: &str) {
    let before = closed_for_want(proxy);
    let mut clients: Vec<(Client, &str)> = Vec::new();
    for command in COMMANDS {
        let mut client = proxy.connect();
        client.start(command);
        clients.push((client, command));
    }
    for (client, command) in &mut clients {
        let (bytes, ended) = client.read_to_end(PATIENCE);
        assert!(bytes.is_empty(), "{command}: {:?}", String::from_utf8_lossy(&bytes));
        assert_ne!(ended, Ended::Late, "{command} is left without an end");
    }
    let closed = closed_for_want(proxy) - before;
    assert!((closed - COMMANDS.len() as f64).abs() < 0.1, "{closed} of {}", COMMANDS.len());
    let status = proxy.status();
    let told = &status["upstream"]["clients_closed"];
    assert!(told["last_reason"].as_str().unwrap().contains(reason), "{status}");
    assert!(told["clients"].as_u64().unwrap() >= COMMANDS.len() as u64, "{status}");
    let log = proxy.log();
    assert!(log.contains("\"reason\":\"no_upstream\"") && log.contains(reason), "{log}");
    let lines = log.lines().filter(|line| line.contains("no server is available")).count();
    assert!(lines < COMMANDS.len(), "{lines} lines");
    // What needs no server is answered.
    let mut client = proxy.connect();
    assert!(client.call("CLIENT ID").int() > 0);
    assert!(client.call("PROXY POOLS").lines().contains("max_connections"));
    assert!(client.call("CLIENT INFO").text().contains("id="));
}

#[test]
fn a_server_that_refuses_connections_closes_whoever_asks_for_it() {
    let server = Server::start();
    let url = server.url();
    drop(server);
    let proxy = Proxy::launch(&url, SETTINGS).unwrap();
    all_are_closed(&proxy, "connection refused");
}

#[test]
fn a_server_that_is_silent_closes_whoever_asks_for_it() {
    let server = Server::start();
    server.signal("STOP");
    let proxy = Proxy::start(&server, &[SETTINGS, &["upstream.connect_timeout=1500ms"]].concat());
    all_are_closed(&proxy, "no upstream connection");
    server.signal("CONT");
    until("it is served again", PATIENCE, || {
        let mut client = proxy.connect();
        client.start("PING");
        client.try_reply(PATIENCE).is_ok()
    });
}

#[test]
fn a_name_that_is_none_closes_whoever_asks_for_it() {
    let proxy = Proxy::launch("redis://no-such-host.invalid:6379", SETTINGS).unwrap();
    all_are_closed(&proxy, "name cannot be resolved");
}

#[test]
fn a_server_without_tls_closes_whoever_asks_for_it() {
    let server = Server::start();
    let url = server.url().replace("redis://", "rediss://");
    let proxy = Proxy::launch(&url, &[SETTINGS, &["upstream.connect_timeout=1s"]].concat()).unwrap();
    all_are_closed(&proxy, "TLS");
}

#[test]
fn a_login_of_the_configuration_that_is_refused_closes_whoever_asks_for_it() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    let url = format!("redis://:wrong@{}", server.address());
    let proxy = Proxy::launch(&url, &[SETTINGS, &["auth.mode=open"]].concat()).unwrap();
    all_are_closed(&proxy, "WRONGPASS");
    assert!(!proxy.log().contains("wrong@"));
}

/// Nobody has given us a password: the client is asked for one, as by the server.
#[test]
fn a_login_that_is_the_clients_to_make_is_an_error() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    let proxy = Proxy::launch(&format!("redis://{}", server.address()), SETTINGS).unwrap();
    let mut client = proxy.connect();
    for command in ["GET k", "SELECT 5", "SUBSCRIBE c", "BLPOP k 0"] {
        assert!(client.call(command).error().starts_with("NOAUTH"), "{command}");
    }
    assert!(client.call("AUTH wrong").error().starts_with("WRONGPASS"));
    assert_eq!(client.call("AUTH sesame").text(), "OK");
    assert_eq!(client.call("SELECT 5").text(), "OK");
}

#[test]
fn a_database_that_is_none_is_an_error_in_the_servers_words() {
    let stage = Stage::proxied_with(SETTINGS);
    let mut client = stage.connect();
    assert_eq!(client.call("SELECT 99").error(), "ERR DB index is out of range");
    assert_eq!(client.call("PING").text(), "PONG");
}

/// SELECT that fails leaves nobody in the old database: what follows is not run there.
#[test]
fn nothing_behind_a_select_that_finds_no_server_runs_in_the_old_database() {
    for on_loss in ["close", "error"] {
        let mut server = Server::start();
        let setting = format!("upstream.on_loss={on_loss}");
        let proxy = Proxy::start(&server, &[SETTINGS, &[setting.as_str()]].concat());
        let mut client = proxy.connect();
        assert_eq!(client.call("PING").text(), "PONG");
        server.kill();
        client.send([words("SELECT 5"), words("SET stray 1")].concat());
        until("the client is closed", PATIENCE, || {
            let (bytes, ended) = client.read_to_end(PATIENCE);
            assert_eq!(
                bytes.is_empty(),
                on_loss == "close",
                "{on_loss}: {:?}",
                String::from_utf8_lossy(&bytes)
            );
            assert!(bytes.iter().filter(|byte| **byte == b'\n').count() <= 1, "one error, and no more");
            ended != Ended::Late
        });
        server.restart();
        let mut client = proxy.connect();
        assert_eq!(client.call("EXISTS stray").int(), 0);
    }
}

/// With `upstream.on_loss = "error"` the client is told; what would have changed the meaning of its next commands still
/// ends the session, and a transaction fails as a whole.
#[test]
fn where_it_is_set_the_client_is_told_in_words() {
    let server = Server::start();
    let url = server.url();
    drop(server);
    let proxy = Proxy::launch(&url, &[SETTINGS, &["upstream.on_loss=error"]].concat()).unwrap();
    let mut client = proxy.connect();
    let refused = "ERR redbouncer: no upstream connection: connection refused";
    for command in ["GET k", "BLPOP k", "WAIT 1 0", "CLIENT LIST", "PUBSUB NUMSUB c"] {
        assert_eq!(client.call(command).error(), refused, "{command}");
    }
    let replies = client.pipeline(&["MULTI", "SET k v", "EXEC", "MULTI", "SELECT 1", "EXEC"]);
    for (at, reply) in replies.iter().enumerate() {
        let aborted = reply.error().starts_with("EXECABORT");
        assert_eq!(aborted, at % 3 == 2, "{replies:?}");
    }
    for command in ["SELECT 5", "SUBSCRIBE c", "HELLO 3", "CLIENT TRACKING ON"] {
        let mut client = proxy.connect();
        assert_eq!(client.call(command).error(), refused, "{command}");
        client.expect_end(PATIENCE);
    }
}

/// What was answered before the outage is delivered before the end.
#[test]
fn replies_from_before_reach_a_client_that_is_closed() {
    let mut server = Server::start();
    let proxy = Proxy::start(&server, SETTINGS);
    let mut client = proxy.connect();
    assert_eq!(client.call("PING").text(), "PONG");
    server.kill();
    until_the_lanes_are_gone(&proxy);
    client.send([words("CLIENT ID").repeat(3), words("GET k"), words("CLIENT ID")].concat());
    for _ in 0..3 {
        assert!(client.reply().int() > 0);
    }
    client.expect_end(PATIENCE);
}

/// The default wait is two seconds; the pauses between dials must leave most of it to a server that comes back.
#[test]
fn a_short_restart_fails_nobody() {
    let mut server = Server::start();
    let proxy = Proxy::start(&server, &["pool.wait_timeout=2s"]);
    let mut judged = 0;
    for away in [500, 900, 1_300, 1_500] {
        let mut clients: Vec<Client> = (0..60).map(|_| proxy.connect()).collect();
        let mut blocked: Vec<Client> = (0..10).map(|_| proxy.connect()).collect();
        for client in &mut clients {
            assert_eq!(client.call("PING").text(), "PONG");
        }
        for (at, client) in blocked.iter_mut().enumerate() {
            client.start(&format!("BLPOP after:{away}:{at} 0"));
        }
        until("they wait", PATIENCE, || {
            proxy.status()["clients"].as_array().is_some_and(|rows| {
                rows.iter().filter(|row| row["place"] == "blocking hub").count() == blocked.len()
            })
        });
        let killed = Instant::now();
        server.kill();
        until_the_lanes_are_gone(&proxy);
        let kinds = ["INCR n", "SELECT 3", "SUBSCRIBE c", "WATCH w", "CLIENT LIST", "MULTI"];
        for (at, client) in clients.iter_mut().enumerate() {
            // Leases are few: their kinds are taken by a few clients only.
            client.start(if at < kinds.len() { kinds[at] } else { kinds[at % 2] });
        }
        let away_for = Duration::from_millis(away).saturating_sub(killed.elapsed());
        throughout("nobody is told anything yet", away_for, || {
            !proxy.log().contains("no server is available")
        });
        server.restart();
        let back = killed.elapsed();
        // The blocked ones have waited since the loss, and a busy machine may have taken long to start the server.
        if back > Duration::from_millis(1_700) {
            continue;
        }
        judged += 1;
        for (at, client) in clients.iter_mut().enumerate() {
            match client.try_reply(PATIENCE) {
                Ok(reply) => assert!(!reply.is_error(), "{away} ms, client {at}: {reply:?}"),
                Err(ended) => panic!("{away} ms (back after {back:?}), client {at}: {ended:?}"),
            }
        }
        for (at, client) in blocked.iter_mut().enumerate() {
            server.call(&format!("RPUSH after:{away}:{at} x"));
            assert_eq!(client.reply().items().len(), 2, "{away} ms");
        }
    }
    assert!(judged >= 2, "the server takes too long to start");
}
