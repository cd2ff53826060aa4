//! Clients that write much before they read: as a server, the proxy reads on and buffers, up to the output limit; who
//! reads slowly is held back; and nobody else on the same connection notices.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Client, Ended, PATIENCE, Server, Stage, encode, until};

const COMMANDS: usize = 300_000;

/// The longest time that one of the neighbour's commands took while `work` ran.
fn longest_wait_beside(stage: &Stage, work: impl FnOnce()) -> Duration {
    let mut neighbour = stage.connect();
    neighbour.call("PING");
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stop = std::sync::Arc::clone(&done);
    let measured = thread::spawn(move || {
        let mut longest = Duration::ZERO;
        while !stop.load(std::sync::atomic::Ordering::SeqCst) {
            let started = Instant::now();
            assert_eq!(neighbour.call("PING").text(), "PONG");
            longest = longest.max(started.elapsed());
        }
        longest
    });
    work();
    done.store(true, std::sync::atomic::Ordering::SeqCst);
    measured.join().unwrap()
}

/// Writes 6.6 MB of requests, and only then begins to read 32 MB of replies.
fn writes_all_then_reads(stage: &Stage, mut client: Client) {
    let value = "v".repeat(100);
    stage.server.call(&format!("SET k {value}"));
    client.send(encode(&["GET", "k"]).repeat(COMMANDS));
    let one = format!("$100\r\n{value}\r\n");
    let replies = client.read_bytes(one.len() * COMMANDS, Duration::from_secs(60));
    assert!(replies.chunks(one.len()).all(|reply| reply == one.as_bytes()), "every reply is the value");
    assert_eq!(client.call("PING").text(), "PONG");
}

#[test]
fn who_writes_everything_before_reading_gets_everything_and_disturbs_nobody() {
    let direct = Stage::direct();
    // One lane, so that the neighbour is on it.
    let proxied = Stage::proxied_with(&["pool.lanes_per_key=1"]);
    let waits = [&direct, &proxied]
        .map(|stage| longest_wait_beside(stage, || writes_all_then_reads(stage, stage.connect())));
    eprintln!("longest wait of a neighbour: {waits:?}");
    assert!(waits[1] < waits[0] * 4 + Duration::from_millis(700), "{waits:?}");
}

#[test]
fn who_writes_everything_before_reading_gets_everything_on_a_connection_of_its_own() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    assert_eq!(client.call("WATCH w").text(), "OK");
    let wait = longest_wait_beside(&stage, || writes_all_then_reads(&stage, client));
    assert!(wait < Duration::from_secs(1), "{wait:?}");
}

/// Unread reply bytes that the proxy holds for its clients.
fn unsent(stage: &Stage) -> u64 {
    let clients = stage.proxy().status()["clients"].clone();
    clients.as_array().unwrap().iter().map(|client| client["unsent"].as_u64().unwrap()).sum()
}

/// The most that the proxy held for a client that sent `first` and reads slowly. `None`: the machine held the reader up for
/// so long that it was rightly taken for one that does not read.
fn most_for_a_slow_reader(stage: &Stage, first: &str) -> Option<u64> {
    let mut client = stage.connect();
    client.shrink_receive_buffer();
    client.call(first);
    client.send(encode(&["GET", "big"]).repeat(2_000));
    let started = Instant::now();
    let (mut most, mut longest, mut last) = (0, Duration::ZERO, started);
    while started.elapsed() < Duration::from_secs(2) {
        client.read_bytes(100_000, PATIENCE);
        longest = longest.max(last.elapsed());
        last = Instant::now();
        thread::sleep(Duration::from_millis(20));
        most = most.max(unsent(stage));
    }
    client.reset();
    until("it is gone", PATIENCE, || unsent(stage) == 0);
    (longest < Duration::from_millis(200)).then_some(most)
}

#[test]
fn who_reads_slowly_is_held_back() {
    let stage = Stage::proxied();
    stage.server.call(&format!("SET big {}", "x".repeat(100_000)));
    for first in ["PING", "WATCH w"] {
        let most = (0..10).find_map(|_| most_for_a_slow_reader(&stage, first));
        // Of 200 MB: what was under way when the soft limit of 1 MiB was reached comes on top of it.
        assert!(most.expect("a reader that is not held up") < 110 << 20, "{first}: {most:?} bytes");
    }
}

/// The bound was raised in steps, each after 0.3 s: what a client sent behind four of them ran 1.2 s late.
#[test]
fn commands_of_a_client_that_reads_nothing_are_run_soon() {
    let stage = Stage::proxied_with(&["client.output_soft_limit=16KiB", "client.pipeline_limit=16"]);
    stage.server.call(&format!("SET big {}", "x".repeat(100_000)));
    let mut other = stage.connect();
    // The machine may be busy: the quickest counts.
    let quickest = ["first", "second", "third"].map(|key| {
        let mut client = stage.connect();
        client.shrink_receive_buffer();
        client.send([encode(&["GET", "big"]).repeat(200), encode(&["SET", key, "v"])].concat());
        let sent = Instant::now();
        until("it is run", PATIENCE, || other.call(&format!("EXISTS {key}")).int() == 1);
        let took = sent.elapsed();
        assert!(unsent(&stage) > 10 << 20);
        client.reset();
        until("it is gone", PATIENCE, || unsent(&stage) == 0);
        took
    });
    assert!(quickest.iter().min().unwrap() < &Duration::from_millis(900), "{quickest:?}");
}

#[test]
fn who_never_reads_is_closed_at_the_output_limit_as_by_the_server() {
    let direct = Server::start_with(&["--client-output-buffer-limit", "normal 16mb 16mb 0"]);
    let stages = [Stage::before_none(direct), Stage::proxied_with(&["client.output_hard_limit=16MiB"])];
    for stage in stages {
        stage.server.call(&format!("SET big {}", "x".repeat(100_000)));
        for first in ["PING", "WATCH w"] {
            let mut client = stage.connect();
            client.shrink_receive_buffer();
            client.call(first);
            let id = client.call("CLIENT ID").int();
            // More than all buffers on the way hold.
            client.send(encode(&["GET", "big"]).repeat(400));
            let mut other = stage.connect();
            until("it is closed", PATIENCE, || {
                !other.call(&format!("CLIENT LIST ID {id}")).text().contains("id=")
            });
            let (_, ended) = client.read_to_end(PATIENCE);
            assert_ne!(ended, Ended::Late, "{first}");
        }
        if stage.is_proxied() {
            let label = "redbouncer_clients_closed_total{reason=\"output_limit\"}";
            assert_eq!(stage.proxy().metrics()[label], 2.0);
        }
    }
}
