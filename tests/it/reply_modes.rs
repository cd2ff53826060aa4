//! CLIENT REPLY: what is not answered, what is answered all the same, and that it costs nothing.

use std::time::{Duration, Instant};

use crate::harness::{PATIENCE, PairedServers, Proxy, Relay, Server, Stage, encode, until};

on_both!(replies_are_swallowed_while_they_are_off, a_monitor_shows_nothing_while_replies_are_off);

#[test]
fn reply_modes_leave_the_same_replies_as_the_server() {
    let twins = PairedServers::start();
    twins.agree(&[
        "CLIENT REPLY SKIP => 0",
        "PING => 0",
        "PING",
        "CLIENT REPLY SKIP => 0",
        "CLIENT ID => 0",
        "CLIENT GETNAME",
        "CLIENT REPLY OFF => 0",
        "PING => 0",
        "SET muted 1 => 0",
        "NOSUCH => 0",
        "SELECT 3 => 0",
        "CLIENT REPLY ON",
        "GET muted",
        "SELECT 0",
        "GET muted",
        "CLIENT REPLY SKIP => 0",
        "CLIENT REPLY SKIP => 0",
        "PING => 0",
        "PING",
    ]);
}

#[test]
fn reply_modes_meet_errors_resets_and_transactions_as_on_the_server() {
    let twins = PairedServers::start();
    for script in [
        // RESET ends OFF before it answers, and SKIP after.
        &["CLIENT REPLY OFF => 0", "RESET", "PING"][..],
        &["CLIENT REPLY SKIP => 0", "RESET => 0", "PING"],
        &["WATCH w", "CLIENT REPLY OFF => 0", "RESET", "PING"],
        &["WATCH w", "CLIENT REPLY SKIP => 0", "RESET => 0", "PING"],
        // An error in CLIENT REPLY itself is kept back like any other.
        &["CLIENT REPLY SKIP => 0", "CLIENT REPLY foo => 0", "PING", "CLIENT REPLY foo"],
        &["CLIENT REPLY SKIP => 0", "CLIENT REPLY => 0", "PING"],
        &["CLIENT REPLY OFF => 0", "CLIENT REPLY foo => 0", "PING => 0", "CLIENT REPLY ON", "PING"],
        &["CLIENT REPLY OFF => 0", "CLIENT REPLY SKIP => 0", "PING => 0", "CLIENT REPLY ON", "PING"],
        &["CLIENT REPLY SKIP => 0", "CLIENT REPLY ON", "PING"],
        &["CLIENT REPLY SKIP => 0", "CLIENT REPLY OFF => 0", "PING => 0", "CLIENT REPLY ON", "PING"],
        // So is one that speaks of the number of its words, also on a connection of its own.
        &["CLIENT REPLY OFF => 0", "CLIENT REPLY => 0", "RESET x => 0", "CLIENT REPLY ON", "PING"],
        &["WATCH w", "CLIENT REPLY OFF => 0", "CLIENT REPLY => 0", "RESET x => 0", "CLIENT REPLY ON", "PING"],
        &["WATCH w", "CLIENT REPLY SKIP => 0", "CLIENT REPLY => 0", "CLIENT REPLY", "PING"],
        // A transaction, whole and held open by a watch.
        &["CLIENT REPLY SKIP => 0", "MULTI => 0", "INCR n", "EXEC", "PING"],
        &["CLIENT REPLY OFF => 0", "MULTI => 0", "INCR n => 0", "EXEC => 0", "CLIENT REPLY ON", "GET n"],
        &[
            "WATCH w",
            "CLIENT REPLY OFF => 0",
            "MULTI => 0",
            "INCR n => 0",
            "EXEC => 0",
            "INCR n => 0",
            "CLIENT REPLY ON",
            "GET n",
        ],
        &[
            "WATCH w",
            "CLIENT REPLY SKIP => 0",
            "MULTI => 0",
            "INCR n",
            "CLIENT REPLY SKIP => 0",
            "INCR n => 0",
        ],
        &["WATCH w", "INCR n", "CLIENT REPLY SKIP => 0", "INCR n => 0", "INCR n", "UNWATCH", "GET n"],
        // What pushes is not kept back, and what a subscriber is refused is no mode.
        &["CLIENT REPLY OFF => 0", "SUBSCRIBE c", "PING => 0", "UNSUBSCRIBE", "CLIENT REPLY ON", "PING"],
        &["CLIENT REPLY SKIP => 0", "SUBSCRIBE c d => 2", "PING", "UNSUBSCRIBE c d => 2", "PING"],
        &["SUBSCRIBE c", "CLIENT REPLY OFF", "PING", "UNSUBSCRIBE", "PING"],
        &["CLIENT REPLY OFF => 0", "UNSUBSCRIBE", "UNSUBSCRIBE x", "CLIENT REPLY ON", "PING"],
        &["CLIENT REPLY OFF => 0", "NOSUCH => 0", "GET => 0", "CLIENT REPLY ON", "PING"],
        &["CLIENT REPLY OFF => 0", "HELLO 3 => 0", "CLIENT REPLY ON", "HGETALL none"],
        &["CLIENT REPLY OFF => 0", "RPUSH l x => 0", "BLPOP l 1 => 0", "CLIENT REPLY ON", "LLEN l"],
        &["CLIENT REPLY SKIP => 0", "BLPOP none 0.01 => 0", "PING"],
    ] {
        twins.agree(script);
    }
}

#[test]
fn unwanted_replies_cost_no_round_trips() {
    let server = Server::start();
    let relay = Relay::to(server.address());
    let proxy = Proxy::launch(&format!("redis://{}", relay.address()), &[]).unwrap();
    let mut client = proxy.connect();
    client.call("PING");
    relay.delay(Duration::from_millis(5));
    let incr = encode(&["INCR", "n"]);
    let skip = [encode(&["CLIENT", "REPLY", "SKIP"]), incr.clone()].concat();
    let publish = encode(&["PUBLISH", "c", "x"]);
    let cases = [("OFF", incr, 2_000), ("SKIP", skip, 4_000), ("OFF", publish, 4_000)];
    for held in [false, true] {
        for (mode, command, total) in &cases {
            if held {
                assert_eq!(client.call("WATCH w").text(), "OK");
            }
            let started = Instant::now();
            let mut bytes = if *mode == "OFF" { encode(&["CLIENT", "REPLY", "OFF"]) } else { Vec::new() };
            for _ in 0..2_000 {
                bytes.extend_from_slice(command);
            }
            bytes.extend_from_slice(&encode(&["CLIENT", "REPLY", "ON"]));
            bytes.extend_from_slice(&encode(&["GET", "n"]));
            client.send(bytes);
            assert_eq!(client.reply().text(), "OK", "{mode}");
            let expected = if held { 4_000 + total } else { *total };
            assert_eq!(client.reply().text(), expected.to_string(), "{mode}");
            // A round trip each would take 20 s.
            let took = started.elapsed();
            assert!(took < Duration::from_secs(5), "{mode}, on a lease {held}: {took:?}");
            if held {
                assert_eq!(client.call("UNWATCH").text(), "OK");
            }
        }
    }
}

fn replies_are_swallowed_while_they_are_off(stage: &Stage) {
    let mut client = stage.connect();
    client.start("CLIENT REPLY OFF");
    for number in 0..50 {
        client.start(&format!("RPUSH quiet {number}"));
    }
    client.start("CLIENT REPLY ON");
    assert_eq!(client.reply().text(), "OK");
    assert_eq!(client.call("LLEN quiet").int(), 50);
}

fn a_monitor_shows_nothing_while_replies_are_off(stage: &Stage) {
    let mut other = stage.connect();
    for script in [&["CLIENT REPLY OFF", "MONITOR"], &["MONITOR", "CLIENT REPLY OFF"]] {
        let mut client = stage.connect();
        client.call("PING");
        client.start(script[0]);
        client.start(script[1]);
        if script[0] == "MONITOR" {
            assert_eq!(client.reply().text(), "OK");
        }
        until("it is a monitor", PATIENCE, || stage.server.rows().iter().any(|row| row.get("flags") == "O"));
        other.call("SET shown 1");
        client.expect_silence(Duration::from_millis(200));
        client.reset();
        until("it is gone", PATIENCE, || !stage.server.rows().iter().any(|row| row.get("flags") == "O"));
    }
}

/// What is wrong with a request is a reply too. Redis keeps it back, and then leaves the connection there, deaf for good;
/// here it ends.
#[test]
fn the_error_of_a_broken_request_is_kept_back_like_any_reply() {
    let stage = Stage::proxied();
    for mute in ["CLIENT REPLY OFF", "CLIENT REPLY SKIP"] {
        for before in ["PING", "WATCH w"] {
            for broken in ["*x\r\n", "*1\r\nX4\r\nPING\r\n", "ECHO \"a\r\n"] {
                let mut client = stage.connect();
                client.call(before);
                client.start(mute);
                client.send(broken);
                client.expect_end(PATIENCE);
            }
        }
    }
}
