//! A client that sends and closes its side: what had arrived runs and is answered, as on the server; its FIN ends a wait
//! that it alone could want, and nothing else.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Ended, PATIENCE, Server, Stage, encode, until};

/// What is sent in one write and followed by a FIN. Only what really blocks leaves the rest undone.
const PIPELINES: [&[&str]; 38] = [
    &["SET a 1", "GET a"],
    &["NOSUCH x", "SET b 2"],
    &["FOO.BAR", "SET b 2", "FOO.BAR", "SET a 1"],
    &["BLPOP full 0", "SET b 2"],
    &["BLPOP full 1", "BLPOP full 1", "SET b 2"],
    &["BLPOP empty 0", "SET b 2"],
    &["BLPOP empty 0.05", "SET b 2"],
    &["SET a 1", "BLPOP empty full 0", "SET b 2"],
    &["BLPOP full nonsense", "SET b 2"],
    &["XREAD BLOCK x STREAMS s 0", "SET b 2"],
    &["BLPOP s 0", "SET b 2"],
    &["BLMOVE full to LEFT RIGHT 0", "SET b 2"],
    &["BZPOPMIN zset 0", "SET b 2"],
    &["XREAD BLOCK 0 STREAMS s 0", "SET b 2"],
    &["XREAD BLOCK 0 STREAMS s $", "SET b 2"],
    &["XREADGROUP GROUP g c BLOCK 0 STREAMS s >", "SET b 2"],
    &["RPUSH q x", "BLPOP q 0", "SET b 2"],
    &["SUBSCRIBE c", "PING"],
    &["SUBSCRIBE c", "UNSUBSCRIBE c", "SET b 2"],
    &["HELLO 3", "SUBSCRIBE c", "SET b 2"],
    &["WATCH a", "MULTI", "SET a 1", "EXEC", "SET b 2"],
    &["WATCH a"],
    &["MULTI", "SET a 1"],
    &["MULTI", "SET a 1", "EXEC", "SET b 2"],
    &["MULTI", "BLPOP full 0", "EXEC", "SET b 2"],
    &["MULTI", "SELECT 1", "SET b 2", "EXEC", "SET b 3"],
    &["DEBUG SLEEP 0.1", "SET b 2"],
    &["HELLO 3", "CLIENT TRACKING ON", "GET a", "CLIENT GETNAME", "SET b 2"],
    &["WATCH a", "GET a", "CLIENT GETNAME", "SELECT 1", "SET b 2"],
    &["WATCH a", "SET b 2", "HELLO 3", "RESET", "SET a 1"],
    &["WATCH a", "BLPOP full 0", "CLIENT GETNAME", "SET b 2"],
    &["WATCH a", "BLPOP empty 0", "CLIENT GETNAME", "SET b 2"],
    &["WATCH a", "SUBSCRIBE c", "UNSUBSCRIBE c", "SET b 2"],
    &["WAIT 0 0", "SET b 2"],
    &["SELECT 1", "SET b 2", "SELECT 0", "SET b 3"],
    &["CONFIG GET maxclients", "SET b 2"],
    &["SET b 2", "MONITOR"],
    &["CLIENT REPLY OFF", "SET a 1", "WATCH a", "MULTI", "SET b 2", "EXEC"],
];

/// What the pipelines may have changed.
const EFFECTS: [&str; 9] = [
    "GET a",
    "GET b",
    "LRANGE full 0 -1",
    "LRANGE to 0 -1",
    "LRANGE q 0 -1",
    "ZRANGE zset 0 -1",
    "XPENDING s g",
    "XLEN s",
    "DBSIZE",
];

fn server() -> Server {
    Server::start_with(&["--enable-debug-command", "yes"])
}

fn prepare(stage: &Stage) {
    for command in
        ["FLUSHALL", "RPUSH full one two", "ZADD zset 1 m", "XADD s 1-1 f v", "XGROUP CREATE s g 0"]
    {
        assert!(!stage.server.call(command).is_error());
    }
}

fn effects(stage: &Stage) -> Vec<String> {
    EFFECTS.iter().map(|command| stage.server.call(command).raw.escape_ascii().to_string()).collect()
}

fn bytes_of(pipeline: &[&str], inline: bool) -> Vec<u8> {
    let canonical = |line: &&str| encode(&line.split(' ').collect::<Vec<_>>());
    let as_typed = |line: &&str| format!("{line}\r\n").into_bytes();
    pipeline.iter().flat_map(|line| if inline { as_typed(line) } else { canonical(line) }).collect()
}

/// The replies, with the client id in HELLO's taken out.
fn masked(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    match text.split_once("$2\\r\\nid\\r\\n:") {
        Some((before, after)) => {
            format!("{before}id:{}", after.trim_start_matches(|symbol: char| symbol.is_ascii_digit()))
        }
        None => text,
    }
}

fn said_and_done(stage: &Stage, bytes: &[u8]) -> (String, Ended, Vec<String>) {
    prepare(stage);
    let mut client = stage.connect();
    client.send(bytes);
    client.half_close();
    let (replies, ended) = client.read_to_end(PATIENCE);
    (masked(&replies), ended, effects(stage))
}

#[track_caller]
fn half_closed_as_directly(settings: &[&str]) {
    let direct = Stage::before_none(server());
    let proxied = Stage::before(server(), settings);
    let mut differences = Vec::new();
    for pipeline in PIPELINES {
        for inline in [false, true] {
            let bytes = bytes_of(pipeline, inline);
            let (expected, got) = (said_and_done(&direct, &bytes), said_and_done(&proxied, &bytes));
            if expected != got {
                differences
                    .push(format!("{pipeline:?} inline {inline}\n  server {expected:?}\n   proxy {got:?}"));
            }
        }
    }
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
}

#[track_caller]
fn closed_as_directly(settings: &[&str]) {
    let direct = Stage::before_none(server());
    let proxied = Stage::before(server(), settings);
    for pipeline in PIPELINES {
        let bytes = bytes_of(pipeline, false);
        let (.., mut expected) = said_and_done(&direct, &bytes);
        prepare(&proxied);
        let mut client = proxied.connect();
        client.send(bytes);
        drop(client);
        // Behind an earlier reply the proxy knows that nobody hears the next one: what was popped for it goes back, where
        // the server loses it.
        let pops_later = pipeline.iter().skip(1).any(|line| line.starts_with("BLPOP"));
        let known = if pops_later { 2 } else { expected.len() };
        expected.truncate(known);
        let mut got = Vec::new();
        let as_expected = || {
            got = effects(&proxied);
            got.truncate(known);
            got == expected
        };
        if !holds_within(PATIENCE, as_expected) {
            panic!("{pipeline:?}\n  server {expected:?}\n   proxy {got:?}");
        }
        until("it is gone", PATIENCE, || proxied.proxy().status()["clients"] == json!([]));
        got = effects(&proxied);
        got.truncate(known);
        assert_eq!(got, expected, "{pipeline:?}, at the end");
    }
}

fn holds_within(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !condition() {
        if started.elapsed() > patience {
            return false;
        }
        thread::sleep(Duration::from_millis(3));
    }
    true
}

const WITHOUT_HUBS: [&str; 2] = ["blocking.hub=false", "pubsub.hub=false"];

#[test]
fn what_came_before_a_fin_is_answered_as_directly() {
    half_closed_as_directly(&[]);
}

#[test]
fn what_came_before_a_fin_is_answered_as_directly_without_hubs() {
    half_closed_as_directly(&WITHOUT_HUBS);
}

#[test]
fn what_came_before_a_close_is_done_as_directly() {
    closed_as_directly(&[]);
}

#[test]
fn what_came_before_a_close_is_done_as_directly_without_hubs() {
    closed_as_directly(&WITHOUT_HUBS);
}

#[test]
fn a_half_closed_client_gets_the_last_byte_however_slowly_it_reads() {
    for settings in [&[][..], &["client.output_soft_limit=64KiB"]] {
        let stage = Stage::proxied_with(settings);
        stage.server.call(&format!("SET big {}", "x".repeat(1 << 20)));
        for first in ["PING", "WATCH w"] {
            let mut client = stage.connect();
            client.shrink_receive_buffer();
            let mut lines = vec![first];
            lines.extend(std::iter::repeat_n("GET big", 24));
            lines.push("SET b 2");
            client.send(bytes_of(&lines, false));
            client.half_close();
            let mut got = 0;
            // Longer than the last words of a client that is closed for another reason.
            for _ in 0..24 {
                got += client.read_bytes(1 << 20, PATIENCE).len();
                thread::sleep(Duration::from_millis(70));
            }
            let (rest, ended) = client.read_to_end(PATIENCE);
            assert_eq!(ended, Ended::Closed, "{first}");
            assert!(rest.ends_with(b"x\r\n+OK\r\n"), "{first}: {} bytes", got + rest.len());
        }
    }
}

/// As above, but the client is gone when its commands are at last carried out.
#[test]
fn what_came_before_a_close_is_done_when_its_connection_is_there() {
    let stage = Stage::proxied_with(&["pool.max_connections=4", "pool.wait_timeout=8s"]);
    let mut holder = stage.connect();
    let mut second = stage.connect();
    let mut held = 0;
    for client in [&mut holder, &mut second] {
        client.start("WATCH w");
        held += usize::from(client.try_reply(Duration::from_millis(300)).is_ok());
    }
    assert_eq!(held, 1, "one lease, and one who waits for it");
    let bytes = bytes_of(&["SET a 1", "WATCH w", "MULTI", "SET b 2", "EXEC", "NOSUCH", "SET c 3"], false);
    let mut leaving = stage.connect();
    leaving.send(bytes);
    until("the first is run", PATIENCE, || !stage.server.call("GET a").is_nil());
    // A FIN, then a RST, since a reply lies unread.
    leaving.half_close();
    drop(leaving);
    assert!(stage.server.call("GET b").is_nil());
    drop(holder);
    drop(second);
    until("the last is run", PATIENCE, || !stage.server.call("GET c").is_nil());
    assert_eq!(stage.server.call("GET b").text(), "2");
    until("nothing is held", PATIENCE, || stage.proxy().status()["clients"] == json!([]));
}

/// A reset without a FIN before it: the client may have died in the middle of anything.
#[test]
fn a_reset_ends_every_wait_at_once() {
    let stage = Stage::proxied_with(&["pool.max_connections=4", "pool.wait_timeout=30s"]);
    let mut holder = stage.connect();
    holder.call("WATCH w");
    let mut leaving = stage.connect();
    leaving.send(bytes_of(&["WATCH w", "SET b 2"], false));
    until("it waits", PATIENCE, || stage.proxy().status()["waits"]["leases"] == 1);
    leaving.reset();
    until("its place is given up", Duration::from_secs(2), || stage.proxy().status()["waits"]["leases"] == 0);
    drop(holder);
    assert!(stage.server.call("GET b").is_nil());
}
