//! A lane whose oldest command is held: by CLIENT PAUSE, which holds writes and lets reads pass, by a long script, or by a
//! server that stands still. Clients of other commands see what they would see on connections of their own.

use std::time::{Duration, Instant};

use crate::harness::{Client, PATIENCE, Proxy, Server, encode, until};

/// Longer than a lane may be silent before others avoid it, on a busy machine.
const NOTICED: Duration = Duration::from_millis(100);

/// Starts `command` and leaves it time to be noticed as held.
fn start_and_wait(client: &mut Client, command: &str) {
    client.start(command);
    client.expect_silence(NOTICED);
}

#[test]
fn reads_do_not_wait_behind_writes_that_a_pause_holds() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &[]);
    let (mut writer, mut reader) = (proxy.connect(), proxy.connect());
    assert_eq!(writer.call("SET a 1").text(), "OK");
    server.call("CLIENT PAUSE 30000 WRITE");
    start_and_wait(&mut writer, "SET a 2");
    let start = Instant::now();
    assert_eq!(reader.call("GET a").text(), "1");
    // More writers do not take the lane that the readers have.
    let mut more: Vec<_> = (0..5).map(|_| proxy.connect()).collect();
    for (number, client) in more.iter_mut().enumerate() {
        client.start(&format!("RPUSH list {number}"));
    }
    more[0].expect_silence(NOTICED);
    for _ in 0..20 {
        assert_eq!(reader.call("GET a").text(), "1");
        assert_eq!(proxy.connect().call("LLEN list").int(), 0);
    }
    // A client's own order is kept: what it reads before its write comes, what it reads behind it does not.
    let mut mixed = proxy.connect();
    mixed.send([encode(&["GET", "a"]), encode(&["SET", "b", "1"]), encode(&["GET", "b"])].concat());
    assert_eq!(mixed.reply().text(), "1");
    mixed.expect_silence(NOTICED);
    assert_eq!(reader.call("GET a").text(), "1");
    // A transaction, and a script, too.
    let (mut transaction, mut script) = (proxy.connect(), proxy.connect());
    transaction.send([encode(&["MULTI"]), encode(&["INCR", "n"]), encode(&["EXEC"])].concat());
    script.send(encode(&["EVAL", "return redis.call('incr', 'n')", "0"]));
    script.expect_silence(NOTICED);
    for _ in 0..20 {
        assert_eq!(reader.call("GET a").text(), "1");
    }
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    server.call("CLIENT UNPAUSE");
    assert_eq!(writer.reply().text(), "OK");
    for client in &mut more {
        let _ = client.reply().int();
    }
    assert_eq!(mixed.reply().text(), "OK");
    assert_eq!(mixed.reply().text(), "1");
    let ran = [transaction.reply(), transaction.reply(), transaction.reply()];
    assert_eq!(ran[2].items().len(), 1, "{ran:?}");
    assert!((1..=2).contains(&script.reply().int()));
    assert_eq!(reader.call("GET a").text(), "2");
}

/// A write behind reads of its own client went with them to the lane that reads had taken to, and held it, too.
#[test]
fn a_write_behind_reads_in_one_pipeline_leaves_their_lane_to_others() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &[]);
    let (mut writer, mut mixed, mut reader) = (proxy.connect(), proxy.connect(), proxy.connect());
    assert_eq!(writer.call("SET a 1").text(), "OK");
    server.call("CLIENT PAUSE 5000 WRITE");
    writer.start("SET a 2");
    writer.expect_silence(NOTICED);
    let reads_and_a_write = [encode(&["GET", "a"]), encode(&["GET", "a"]), encode(&["APPEND", "b", "x"])];
    mixed.send(reads_and_a_write.concat());
    assert_eq!(mixed.reply().text(), "1");
    assert_eq!(mixed.reply().text(), "1");
    // Long enough for a lane to count as held, and too short for one more to be opened for that.
    mixed.expect_silence(Duration::from_millis(20));
    let start = Instant::now();
    assert_eq!(reader.call("GET a").text(), "1");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    server.call("CLIENT UNPAUSE");
    assert_eq!(writer.reply().text(), "OK");
    assert_eq!(mixed.reply().int(), 1);
}

#[test]
fn behind_a_long_script_others_are_told_that_the_server_is_busy() {
    let server = Server::start_with(&["--busy-reply-threshold", "300"]);
    let proxy = Proxy::start(&server, &[]);
    let mut runner = proxy.connect();
    assert_eq!(runner.call("PING").text(), "PONG");
    runner.send(encode(&["EVAL", "while true do end", "0"]));
    // The first that come within a few milliseconds of it would wait with it; these come later.
    runner.expect_silence(NOTICED);
    let mut others: Vec<_> = (0..6).map(|_| proxy.connect()).collect();
    for (number, client) in others.iter_mut().enumerate() {
        client.start(if number % 2 == 0 { "GET a" } else { "SET a 1" });
    }
    for client in &mut others {
        let reply = client.reply_within(PATIENCE);
        assert!(reply.error().starts_with("BUSY "), "{reply:?}");
    }
    assert_eq!(others[0].call("SCRIPT KILL").text(), "OK");
    assert!(runner.reply().is_error());
    assert_eq!(others[0].call("SET a 1").text(), "OK");
}

#[test]
fn a_server_that_stands_still_longer_than_a_connection_is_waited_for_answers_everybody_afterwards() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["pool.wait_timeout=500ms"]);
    let mut clients: Vec<_> = (0..20).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.call("PING").text(), "PONG");
    }
    server.signal("STOP");
    let start = Instant::now();
    let (early, late) = clients.split_at_mut(10);
    for client in early.iter_mut() {
        client.start("INCR n");
    }
    early[0].expect_silence(NOTICED);
    for (number, client) in late.iter_mut().enumerate() {
        client.start(if number % 2 == 0 { "GET k" } else { "INCR n" });
    }
    until("it has stood still", PATIENCE, || start.elapsed() > Duration::from_secs(2));
    server.signal("CONT");
    for client in early {
        let _ = client.reply().int();
    }
    for (number, client) in late.iter_mut().enumerate() {
        let reply = client.reply();
        assert!(if number % 2 == 0 { reply.is_nil() } else { reply.int() > 0 }, "{reply:?}");
    }
    assert_eq!(proxy.connect().call("GET n").text(), "15");
}

#[test]
fn with_no_place_for_another_lane_commands_wait_their_turn() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["pool.max_connections=4"]);
    let (mut writer, mut reader) = (proxy.connect(), proxy.connect());
    assert_eq!(writer.call("WATCH a").text(), "OK");
    assert_eq!(reader.call("SET a 1").text(), "OK");
    server.call("CLIENT PAUSE 1500 WRITE");
    let mut held = proxy.connect();
    start_and_wait(&mut held, "SET a 2");
    assert!(["1", "2"].contains(&reader.call("GET a").text().as_str()));
    assert_eq!(held.reply().text(), "OK");
}
