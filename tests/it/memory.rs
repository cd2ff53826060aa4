//! The memory of all clients: bounded as a whole, whatever they do with it, and taken from those that hold most.
//!
//! What the process takes is read from `/proc/PID/status`: its peak must stay within 1.5 times `client.memory_max` above
//! what it had before.

use std::thread;
use std::time::Duration;

use crate::harness::{Client, Ended, PATIENCE, Stage, encode, until};

const BOUND: u64 = 64 << 20;
const MIB: usize = 1 << 20;

/// How many attackers there are of a kind; each would take the whole bound by itself, or nearly.
const CROWD: usize = 6;

fn stage(settings: &[&str]) -> Stage {
    Stage::proxied_with(&[&["client.memory_max=64MiB"], settings].concat())
}

fn value(bytes: usize) -> String {
    "v".repeat(bytes)
}

/// Clients closed for `reason`.
fn closed(stage: &Stage, reason: &str) -> f64 {
    let series = format!("redbouncer_clients_closed_total{{reason=\"{reason}\"}}");
    stage.proxy().metrics().get(&series).copied().unwrap_or(0.0)
}

/// Sends all of it, or as much as is taken within `patience`: an attacker is closed in the middle, or read no further.
fn push(client: &mut Client, bytes: &[u8], patience: Duration) {
    client.write_patiently(patience);
    let _ = client.try_send(bytes);
}

/// Lets `attacks` run all at once and checks what the process has taken at the most; somebody who holds little is served
/// before, meanwhile and afterwards.
#[track_caller]
fn withstands(stage: &Stage, attacks: &[fn(&Stage) -> Vec<Client>]) {
    let mut neighbour = stage.connect();
    assert_eq!(neighbour.call("PING").text(), "PONG");
    let base = stage.proxy().resident();
    let attackers: Vec<Client> = thread::scope(|scope| {
        let running: Vec<_> = attacks.iter().map(|attack| scope.spawn(move || attack(stage))).collect();
        while !running.iter().all(thread::ScopedJoinHandle::is_finished) {
            neighbour.start("PING");
            // What the attacks ask for is a minute's work for a debug build: this is about memory.
            assert_eq!(neighbour.reply_within(Duration::from_secs(30)).text(), "PONG");
            thread::sleep(Duration::from_millis(20));
        }
        running.into_iter().flat_map(|attack| attack.join().unwrap()).collect()
    });
    assert_eq!(neighbour.call("ECHO still").text(), "still");
    let (peak, bound) = (stage.proxy().peak(), base + BOUND * 3 / 2);
    eprintln!("base {} KiB, peak {} KiB, allowed {} KiB", base >> 10, peak >> 10, bound >> 10);
    assert!(peak <= bound, "{peak} bytes at the most, {bound} allowed; {base} before");
    drop(attackers);
    until("nothing is held for anybody", PATIENCE, || {
        stage.proxy().metrics()["redbouncer_client_memory_bytes"] < 1e6
    });
}

/// Clients that ask for much and read nothing.
fn slow_readers(stage: &Stage) -> Vec<Client> {
    stage.server.probe().ask(&["SET", "v", &value(8 * MIB)]);
    let mut clients: Vec<_> =
        (0..CROWD).map(|_| Client::connect_with_receive_buffer(stage.address(), 64 << 10)).collect();
    for client in &mut clients {
        push(client, &encode(&["GET", "v"]).repeat(10), Duration::from_secs(1));
    }
    // The replies come when the requests have been taken.
    settle(stage);
    clients
}

/// The same on connections of their own.
fn slow_readers_on_leases(stage: &Stage) -> Vec<Client> {
    stage.server.probe().ask(&["SET", "w", &value(8 * MIB)]);
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect_with_receive_buffer(stage.address(), 64 << 10);
        client.start("WATCH k");
        if client.try_reply(PATIENCE).is_ok() {
            push(&mut client, &encode(&["GET", "w"]).repeat(10), Duration::from_secs(1));
            clients.push(client);
        }
    }
    settle(stage);
    clients
}

/// Clients that send half of a long request.
fn half_senders(stage: &Stage) -> Vec<Client> {
    let half = [b"*3\r\n$3\r\nSET\r\n$1\r\nh\r\n$500000000\r\n".to_vec(), vec![b'h'; 60 * MIB]].concat();
    thread::scope(|scope| {
        let one = || {
            let mut client = stage.connect();
            push(&mut client, &half, Duration::from_secs(3));
            client
        };
        let sending: Vec<_> = (0..CROWD).map(|_| scope.spawn(one)).collect();
        sending.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

/// Clients that queue much in a transaction of whose members something has to be remembered.
fn giant_transactions(stage: &Stage) -> Vec<Client> {
    let member = encode(&["PUBLISH", "news", &value(8 << 10)]);
    thread::scope(|scope| {
        let one = || {
            let mut client = stage.connect();
            client.start("MULTI");
            let _ = client.try_reply(PATIENCE);
            // What is queued is answered.
            for _ in 0..80 {
                push(&mut client, &member.repeat(100), Duration::from_secs(1));
                if (0..100).any(|_| client.try_reply(Duration::from_secs(2)).is_err()) {
                    break;
                }
            }
            client
        };
        let sending: Vec<_> = (0..3).map(|_| scope.spawn(one)).collect();
        sending.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

/// Clients whose replies have to be whole before they are passed on: transactions with a PUBLISH among much else.
fn whole_replies(stage: &Stage) -> Vec<Client> {
    stage.server.probe().ask(&["SET", "x", &value(8 * MIB)]);
    let mut clients = Vec::new();
    // Among all the others it may wait in vain for a connection.
    until("somebody is subscribed", PATIENCE, || {
        let mut subscriber = stage.connect();
        subscriber.start("SUBSCRIBE news");
        let subscribed = subscriber.try_reply(PATIENCE).is_ok_and(|reply| !reply.is_error());
        clients.push(subscriber);
        subscribed
    });
    let block = [
        encode(&["MULTI"]),
        encode(&["GET", "x"]).repeat(8),
        encode(&["PUBLISH", "news", "n"]),
        encode(&["EXEC"]),
    ]
    .concat();
    for _ in 0..CROWD {
        let mut client = Client::connect_with_receive_buffer(stage.address(), 64 << 10);
        push(&mut client, &block, Duration::from_secs(1));
        clients.push(client);
    }
    settle(stage);
    clients
}

/// Subscribers that do not read.
fn deaf_subscribers(stage: &Stage) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..CROWD {
        let mut client = Client::connect_with_receive_buffer(stage.address(), 64 << 10);
        client.start("SUBSCRIBE loud");
        let _ = client.try_reply(PATIENCE);
        clients.push(client);
    }
    let mut publisher = stage.server.probe();
    for _ in 0..40 {
        publisher.ask(&["PUBLISH", "loud", &value(MIB)]);
    }
    settle(stage);
    clients
}

/// Pipelines of long writes.
fn pipelines(stage: &Stage) -> Vec<Client> {
    let one = encode(&["SET", "p", &value(700 << 10)]).repeat(60);
    thread::scope(|scope| {
        let run = || {
            let mut client = stage.connect();
            push(&mut client, &one, Duration::from_secs(3));
            client
        };
        let sending: Vec<_> = (0..CROWD).map(|_| scope.spawn(run)).collect();
        sending.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

/// Waits until what is held changes no more, within bounds. The figure is published once a second.
fn settle(stage: &Stage) {
    let mut last = (-1.0, 0);
    until("what is held stays the same", Duration::from_secs(60), || {
        let now = stage.proxy().metrics()["redbouncer_client_memory_bytes"];
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        thread::sleep(Duration::from_millis(50));
        last.1 > 24
    });
}

/// `attacks` take more than the bound, and stay within it because somebody is closed.
#[track_caller]
fn are_kept_within_the_bound(settings: &[&str], attacks: &[fn(&Stage) -> Vec<Client>]) {
    let stage = stage(settings);
    withstands(&stage, attacks);
    assert!(closed(&stage, "memory") > 0.0);
}

const ALL: [fn(&Stage) -> Vec<Client>; 7] = [
    slow_readers,
    slow_readers_on_leases,
    half_senders,
    giant_transactions,
    whole_replies,
    deaf_subscribers,
    pipelines,
];

#[test]
fn slow_readers_stay_within_the_bound() {
    are_kept_within_the_bound(&[], &[slow_readers]);
}

#[test]
fn half_sent_requests_stay_within_the_bound() {
    are_kept_within_the_bound(&[], &[half_senders]);
}

#[test]
fn giant_transactions_stay_within_the_bound() {
    are_kept_within_the_bound(&[], &[giant_transactions]);
}

#[test]
fn replies_that_must_be_whole_stay_within_the_bound() {
    are_kept_within_the_bound(&[], &[whole_replies]);
}

#[test]
fn all_of_them_together_stay_within_the_bound() {
    are_kept_within_the_bound(&["pool.max_connections=12"], &ALL);
}

#[test]
fn all_of_them_together_on_two_workers_stay_within_the_bound() {
    are_kept_within_the_bound(&["listen.workers=2", "pool.max_connections=16"], &ALL);
}

/// A client that has sent the beginning of `SET k` with `len` bytes, all of its value but the last `missing` ones.
fn begun(stage: &Stage, key: &str, len: usize, missing: usize) -> Client {
    let mut client = stage.connect();
    client.write_patiently(PATIENCE);
    client.send(format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${len}\r\n", key.len()));
    client.send(vec![b'b'; len - missing]);
    client
}

fn the_largest_gives_way(settings: &[&str]) {
    let stage = stage(settings);
    let mut small: Vec<_> = (0..4).map(|number| begun(&stage, &format!("s{number}"), 8 * MIB, 1)).collect();
    let mut large = begun(&stage, "large", 40 * MIB, 10 * MIB);
    let series = "redbouncer_client_memory_bytes";
    until("all are held", PATIENCE, || stage.proxy().metrics()[series] > 61.0 * MIB as f64);
    let status = stage.proxy().status();
    let memory = &status["memory"];
    assert_eq!(memory["max"], BOUND, "{memory}");
    assert!(memory["clients"].as_u64().unwrap() > 61 << 20, "{memory}");
    let largest = memory["largest"].as_array().unwrap();
    assert_eq!(largest.len(), 5, "{memory}");
    assert_eq!(largest[0]["peer"], large.local_address().to_string(), "{memory}");
    assert!(largest[0]["memory"].as_u64().unwrap() >= 30 << 20, "{memory}");
    assert_eq!(closed(&stage, "memory"), 0.0);
    push(&mut large, &vec![b'b'; 5 * MIB], PATIENCE);
    assert_ne!(large.read_to_end(PATIENCE).1, Ended::Late);
    until("one is closed", PATIENCE, || closed(&stage, "memory") == 1.0);
    for (number, client) in small.iter_mut().enumerate() {
        client.send("b\r\n");
        assert_eq!(client.reply().text(), "OK");
        assert_eq!(stage.server.call(&format!("STRLEN s{number}")).int(), 8 << 20);
    }
    assert_eq!(closed(&stage, "memory"), 1.0);
    until("nothing is held any more", PATIENCE, || stage.proxy().metrics()[series] == 0.0);
    assert!(stage.proxy().status()["memory"]["largest"].as_array().unwrap().is_empty());
    let log = stage.proxy().log();
    assert!(log.contains("clients use more memory than client.memory_max"), "{log}");
}

#[test]
fn the_client_that_holds_most_is_closed_and_the_others_go_on() {
    the_largest_gives_way(&[]);
}

#[test]
fn the_client_that_holds_most_is_closed_whichever_worker_serves_it() {
    the_largest_gives_way(&["listen.workers=2", "pool.max_connections=8"]);
}

#[test]
fn a_request_above_the_mark_is_only_put_off() {
    let stage = stage(&[]);
    let mut neighbour = stage.connect();
    neighbour.call("PING");
    let base = stage.proxy().resident();
    let mut client = begun(&stage, "k", 56 * MIB, 0);
    client.send("\r\n");
    assert_eq!(client.reply().text(), "OK");
    assert_eq!(neighbour.call("STRLEN k").int(), 56 << 20);
    let peak = stage.proxy().peak();
    assert!(peak <= base + BOUND * 3 / 2, "{peak} bytes at the most; {base} before");
    assert_eq!(closed(&stage, "memory"), 0.0);
}

#[test]
fn without_a_bound_nobody_is_closed_for_memory() {
    let stage = Stage::proxied_with(&["client.memory_max=0"]);
    let mut clients: Vec<_> =
        (0..3).map(|number| begun(&stage, &format!("k{number}"), 40 * MIB, 1)).collect();
    for client in &mut clients {
        client.send("b\r\n");
        assert_eq!(client.reply().text(), "OK");
    }
    assert!(stage.proxy().status()["memory"]["max"].is_null());
    assert_eq!(closed(&stage, "memory"), 0.0);
}
