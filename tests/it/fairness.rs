//! Who waits for an upstream connection comes in turn with other users and addresses, however many clients one of them has.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Client, Stage};

/// One lease for everybody.
const ONE_LEASE: &[&str] = &["pool.max_connections=6", "pool.wait_timeout=20s"];

/// The crowd is gone after it, whatever becomes of the test.
const SPAN: Duration = Duration::from_secs(12);

/// Holds the lease for a moment.
fn transaction(client: &mut Client) {
    assert_eq!(client.call("WATCH k").text(), "OK");
    thread::sleep(Duration::from_millis(5));
    assert_eq!(client.call("UNWATCH").text(), "OK");
}

#[test]
fn an_address_with_many_clients_delays_another_by_one_turn() {
    let stage = Stage::proxied_with(ONE_LEASE);
    let (is_over, turns) = (AtomicBool::new(false), AtomicU32::new(0));
    let waited = thread::scope(|scope| {
        let start = Instant::now();
        for _ in 0..30 {
            let mut client = stage.connect();
            let (is_over, turns) = (&is_over, &turns);
            scope.spawn(move || {
                while !is_over.load(SeqCst) && start.elapsed() < SPAN {
                    transaction(&mut client);
                    turns.fetch_add(1, SeqCst);
                }
            });
        }
        let mut lonely = Client::connect_apart(stage.address());
        while turns.load(SeqCst) < 60 && start.elapsed() < SPAN {
            thread::sleep(Duration::from_millis(5));
        }
        let mut waited = Vec::new();
        for _ in 0..10 {
            let before = turns.load(SeqCst);
            transaction(&mut lonely);
            waited.push(turns.load(SeqCst) - before);
        }
        is_over.store(true, SeqCst);
        waited
    });
    // First come, first served, it waits for all thirty.
    assert!(waited.iter().all(|turns| *turns < 10), "turns of others meanwhile: {waited:?}");
}
