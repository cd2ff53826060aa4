//! Bugs that were found once, each named after what it did.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{PATIENCE, Proxy, Server, Stage, encode, until};

/// A flush inside the client's side ended the back-pressure after the server's side had been passed over: nobody was
/// left to wake the connection.
#[test]
fn a_reply_on_a_lease_that_is_longer_than_the_soft_limit_arrives_whole() {
    let stage = Stage::proxied();
    let value = "v".repeat(8 << 20);
    stage.server.call(&format!("SET big {value}"));
    let mut client = stage.connect();
    assert_eq!(client.call("WATCH w").text(), "OK");
    for _ in 0..5 {
        client.start("GET big");
        let head = client.read_bytes("$8388608\r\n".len(), PATIENCE);
        assert_eq!(&head[..], b"$8388608\r\n");
        // Slower than the server: some at a time.
        let mut left = value.len() + 2;
        while left > 0 {
            let step = left.min(700_000);
            client.read_bytes(step, PATIENCE);
            left -= step;
        }
    }
    assert_eq!(client.call("UNWATCH").text(), "OK");
}

/// The bound on reading ahead was taken for the bound on a command that has begun.
#[test]
fn a_command_on_a_lease_that_is_as_long_as_the_read_ahead_is_run() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    assert_eq!(client.call("WATCH w").text(), "OK");
    for length in [65_534, 65_535, 65_536, 65_537] {
        let bytes = encode(&["SET", "k", &"x".repeat(length)]);
        for cut in [65_534, 65_535, 65_536, 65_537] {
            let (first, rest) = bytes.split_at(cut);
            client.send(first);
            // Time for the first part to be read alone.
            client.expect_silence(Duration::from_millis(20));
            client.send(rest);
            assert_eq!(client.reply().text(), "OK", "{length} bytes, cut at {cut}");
        }
    }
}

/// A DISCARD that the server refuses for its arguments leaves MULTI open; it was taken for the end of a whole block.
#[test]
fn a_refused_discard_in_one_write_puts_nobody_else_into_multi() {
    let stage = Stage::proxied();
    let mut other = stage.connect();
    other.call("PING");
    let mut client = stage.connect();
    client.send([encode(&["MULTI"]), encode(&["SET", "k", "v"]), encode(&["DISCARD", "x"])].concat());
    assert_eq!(client.reply().text(), "OK");
    assert_eq!(client.reply().text(), "QUEUED");
    assert!(client.reply().is_error());
    for _ in 0..20 {
        assert_eq!(other.call("ECHO mine").text(), "mine");
    }
}

/// Dials that were given up kept their place in the rate limit.
#[test]
fn clients_that_watch_and_leave_do_not_hold_up_the_next_dial() {
    let stage = Stage::proxied();
    for _ in 0..600 {
        let mut client = stage.connect();
        client.start("WATCH w");
        client.reset();
    }
    let mut client = stage.connect();
    let start = Instant::now();
    assert_eq!(client.call("WATCH w").text(), "OK");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// Lanes beyond their floor were never asked to make room for a lease.
#[test]
fn seven_busy_databases_leave_room_for_a_lease() {
    let stage = Stage::proxied();
    let stop = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = (0..7)
        .map(|database| {
            let mut client = stage.connect();
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                assert_eq!(client.call(&format!("SELECT {database}")).text(), "OK");
                while !stop.load(SeqCst) {
                    assert_eq!(client.call("ECHO x").text(), "x");
                }
            })
        })
        .collect();
    let mut client = stage.connect();
    for _ in 0..5 {
        assert_eq!(client.call("WATCH w").text(), "OK");
        assert_eq!(client.call("UNWATCH").text(), "OK");
    }
    stop.store(true, SeqCst);
    for thread in busy {
        thread.join().unwrap();
    }
}

/// Dials whose clients had left gave their permits back while the server still counted them.
#[test]
fn dials_that_were_given_up_are_counted_until_they_are_closed() {
    let server = Server::start_with(&["--maxclients", "11"]);
    let proxy = Proxy::start(&server, &[]);
    let mut stall = proxy.connect();
    stall.call("PING");
    let script = "local t = redis.call('TIME')[1] while redis.call('TIME')[1] - t < 3 do end return 1";
    stall.send(encode(&["EVAL", script, "0"]));
    for _ in 0..200 {
        let mut client = proxy.connect();
        client.start("WATCH w");
        client.reset();
    }
    assert_eq!(stall.reply().int(), 1);
    until("the server has answered", PATIENCE, || proxy.connect().call("WATCH w").text() == "OK");
    // The probe of the test and eight of the proxy's are all there may be.
    assert_eq!(server.info("rejected_connections"), "0");
}

/// A confirmation was kept back with the replies that CLIENT REPLY OFF keeps back.
#[test]
fn subscriptions_are_confirmed_and_messages_delivered_while_replies_are_off() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    client.start("CLIENT REPLY OFF");
    client.start("SUBSCRIBE news");
    let confirmed = client.reply();
    assert_eq!(confirmed.items()[0].text(), "subscribe");
    until("it is heard", PATIENCE, || stage.server.call("PUBLISH news x").int() == 1);
    assert_eq!(client.reply().items()[0].text(), "message");
}

/// Times counted from the arrival of the bytes, not from a command's turn.
#[test]
fn commands_behind_a_blocking_call_have_their_own_time() {
    let stage = Stage::proxied_with(&["pool.wait_timeout=500ms"]);
    let mut client = stage.connect();
    client.call("PING");
    let start = Instant::now();
    let replies = client.pipeline(&["BLPOP none 1", "BLPOP none 1", "SET a b", "WATCH w", "GET a"]);
    assert!(replies[0].is_nil() && replies[1].is_nil());
    assert!(start.elapsed() >= Duration::from_millis(1_900), "{:?}", start.elapsed());
    assert_eq!([replies[2].text(), replies[3].text(), replies[4].text()], ["OK", "OK", "b"]);
}

/// A drain waited for the blocking call of a client that held a connection for something else.
#[test]
fn a_drain_does_not_wait_for_a_call_that_blocks_on_a_held_connection() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    client.call("HELLO 3");
    assert_eq!(client.call("CLIENT TRACKING ON").text(), "OK");
    client.start("BLPOP none 0");
    let mut other = stage.connect();
    until("it blocks", PATIENCE, || other.call("CLIENT LIST").text().contains(" flags=bt "));
    drop(other);
    let (_server, proxy) = stage.into_parts();
    let start = Instant::now();
    let exit = proxy.stop();
    assert_eq!(exit.code, Some(0), "{exit:#?}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

/// A client whose replies never ran dry was never at a boundary.
#[test]
fn a_drain_ends_although_clients_pipeline_without_a_pause() {
    let stage = Stage::proxied();
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let mut client = stage.connect();
            thread::spawn(move || {
                let batch = encode(&["ECHO", "x"]).repeat(50);
                let one = b"$1\r\nx\r\n".len();
                client.send(&batch);
                // Always at least one batch ahead of its replies.
                while client.try_send(&batch).is_ok() {
                    for _ in 0..50 {
                        match client.try_reply(PATIENCE) {
                            Ok(reply) => assert_eq!(reply.text(), "x"),
                            Err(_) => return one,
                        }
                    }
                }
                one
            })
        })
        .collect();
    until("they are at work", PATIENCE, || stage.server.calls_of("echo") > 1_000);
    let (_server, proxy) = stage.into_parts();
    let start = Instant::now();
    let exit = proxy.stop();
    assert_eq!(exit.code, Some(0), "{exit:#?}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    for thread in threads {
        thread.join().unwrap();
    }
}
