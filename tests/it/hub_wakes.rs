//! Wakes that bring nothing, and what they must not do to those that do.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Client, PATIENCE, Stage, until};
use crate::hub::wait_for_blocked;

/// Writes that leave nothing behind, each heard of by itself: so many in a row that further ones are followed up late.
fn empty_wakes(pusher: &mut Client, key: &str, stream: bool) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(150) {
        if stream {
            pusher.call(&format!("PEXPIRE {key} 100000000"));
        } else {
            for command in ["MULTI", &format!("RPUSH {key} taken"), &format!("LPOP {key}"), "EXEC"] {
                pusher.call(command);
            }
        }
    }
}

/// They slept until the next sweep, or got nil at their timeout, when another call arrived within the delay.
#[test]
fn readers_are_served_at_once_when_another_call_arrives_behind_empty_wakes() {
    let stage = Stage::proxied();
    let mut pusher = Client::connect(stage.server.address());
    for round in 0..20 {
        let key = format!("s{round}");
        for group in ["g", "other"] {
            pusher.call(&format!("XGROUP CREATE {key} {group} $ MKSTREAM"));
        }
        let mut readers: Vec<Client> = (0..3).map(|_| stage.connect()).collect();
        readers[0].start(&format!("XREAD BLOCK 0 STREAMS {key} $"));
        readers[1].start(&format!("XREADGROUP GROUP g c BLOCK 0 STREAMS {key} >"));
        wait_for_blocked(stage.address(), 2);
        empty_wakes(&mut pusher, &key, true);
        pusher.call(&format!("XADD {key} 7-0 f v"));
        let start = Instant::now();
        let call = if round % 2 == 0 { "XREAD" } else { "XREADGROUP GROUP other c" };
        let id = if round % 2 == 0 { "8" } else { ">" };
        readers[2].start(&format!("{call} BLOCK 50 STREAMS {key} {id}"));
        for reader in &mut readers[..2] {
            assert!(
                reader.reply_within(PATIENCE).items()[0].items()[1].items()[0].items()[0].text() == "7-0"
            );
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        readers[2].reply();
    }
}

/// It got nil with five elements in the list.
#[test]
fn a_call_with_a_short_time_finds_what_is_there_behind_empty_wakes() {
    let stage = Stage::proxied();
    let mut pusher = Client::connect(stage.server.address());
    let mut older = stage.connect();
    let mut late = stage.connect();
    for round in 0..20 {
        older.start("BLPOP k 0");
        wait_for_blocked(stage.address(), 1);
        empty_wakes(&mut pusher, "k", false);
        pusher.call("RPUSH k a b");
        let reply = late.call("BLPOP k 0.005");
        assert!(!reply.is_nil(), "round {round}: {}", pusher.call("LLEN k").int());
        assert_eq!(older.reply().items()[1].text(), "a");
    }
}

/// Tracking does not name the database, so the writes to a key of this name in another one wake us, too.
#[test]
fn a_busy_key_in_another_database_delays_by_a_millisecond() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    let mut pusher = Client::connect(stage.server.address());
    let stop = AtomicBool::new(false);
    let mut times = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut busy = Client::connect(stage.server.address());
            busy.call("SELECT 1");
            let start = Instant::now();
            while !stop.load(SeqCst) && start.elapsed() < Duration::from_secs(30) {
                busy.call("RPUSH k x");
                busy.call("DEL k");
            }
        });
        for round in 0..40 {
            let before = stage.server.calls_of("exec");
            client.start("BLPOP k 0");
            until("it has been woken for nothing", PATIENCE, || stage.server.calls_of("exec") >= before + 15);
            let start = Instant::now();
            pusher.call(&format!("RPUSH k {round}"));
            assert_eq!(client.reply().items()[1].text(), round.to_string());
            times.push(start.elapsed());
        }
        stop.store(true, SeqCst);
    });
    times.sort_unstable();
    println!("p50 {:?}, p90 {:?}, max {:?}", times[20], times[36], times[39]);
    // It was 6.6 ms, and up to 100.
    assert!(times[20] < Duration::from_millis(4), "{times:?}");
}

/// What the pace is for.
#[test]
fn a_key_that_brings_nothing_is_not_asked_about_all_the_time() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    client.start("BLPOP k 0");
    wait_for_blocked(stage.address(), 1);
    let mut pusher = Client::connect(stage.server.address());
    let (start, before) = (Instant::now(), stage.server.calls_of("exec"));
    while start.elapsed() < Duration::from_secs(2) {
        pusher.call("RPUSH k x");
        pusher.call("DEL k");
    }
    let tries = u128::from(stage.server.calls_of("exec") - before);
    assert!(tries <= start.elapsed().as_millis() + 60, "{tries} tries in {:?}", start.elapsed());
}
