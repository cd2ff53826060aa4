//! Who waits comes in turn with other users and addresses, however many clients one of them has; and clients that hold a
//! connection for as long as they please leave some to others.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Client, PATIENCE, Server, Stage, long, until};

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

/// The time that all but one of a hundred transactions take at most.
fn p99_of_transactions(client: &mut Client) -> Duration {
    let mut took: Vec<Duration> = (0..100)
        .map(|_| {
            let start = Instant::now();
            assert_eq!(client.call("WATCH k").text(), "OK");
            let replies = client.pipeline(&["MULTI", "INCR k", "EXEC"]);
            assert!(replies[2].items().len() == 1, "{replies:?}");
            start.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[98]
}

#[test]
fn transactions_have_leases_that_standing_ones_cannot_take() {
    let stage = Stage::proxied_with(&["pool.wait_timeout=2s"]);
    let mut client = stage.connect();
    let empty = p99_of_transactions(&mut client);
    let mut monitors: Vec<Client> = (0..60).map(|_| stage.connect()).collect();
    for monitor in &mut monitors {
        monitor.start("MONITOR");
    }
    let replies: Vec<_> = monitors.iter_mut().map(Client::reply).collect();
    assert_eq!(client.call("WATCH k").text(), "OK", "beside clients that hold what they may");
    assert_eq!(client.call("UNWATCH").text(), "OK");
    let standing = || stage.proxy().status()["standing_leases"].clone();
    assert_eq!((standing()["held"].as_u64(), standing()["max"].as_u64()), (Some(2), Some(2)));
    let refused: Vec<_> = replies.iter().filter(|reply| reply.is_error()).collect();
    assert_eq!(refused.len(), 58);
    let text = "ERR redbouncer: no upstream connection for this command: 2 of 2 leases for MONITOR, CLIENT TRACKING and blocking calls are in use; the others are reserved for transactions";
    assert!(refused.iter().all(|reply| reply.error() == text), "{:?}", refused[0]);
    let full = (0..3).map(|_| p99_of_transactions(&mut client)).min().unwrap();
    println!("99 of 100 transactions: {empty:.1?} in an empty pool, {full:.1?} beside standing leases");
    assert!(full <= 5 * empty + Duration::from_millis(20), "{full:?}, in an empty pool {empty:?}");
    // Nor by way of a lease that was taken for a transaction.
    assert_eq!(client.call("WATCH k").text(), "OK");
    assert_eq!(client.call("MONITOR").error(), text);
    assert_eq!(standing()["held"], 2);
    // What one gives up, another may have.
    let at = replies.iter().position(|reply| !reply.is_error()).unwrap();
    drop(monitors.swap_remove(at));
    until("its place is free", PATIENCE, || standing()["held"] == 1);
    let mut next = stage.connect();
    assert_eq!(next.call("MONITOR").text(), "OK");
    assert_eq!(standing()["held"], 2);
    assert_eq!(next.call("RESET").text(), "RESET");
    until("and its place too", PATIENCE, || standing()["held"] == 1);
}

/// Clients of one user list all clients without a pause; what others ask is answered between two of their listings.
#[test]
fn listings_of_one_user_delay_neither_an_operator_nor_a_neighbour() {
    let stage = Stage::proxied_secured();
    let (idle, listing) = if long() { (2_000, 50) } else { (300, 30) };
    let mut operator = stage.connect();
    assert_eq!(operator.call("AUTH sesame").text(), "OK");
    assert_eq!(operator.call("ACL SETUSER low on >low ~* +@all").text(), "OK");
    assert_eq!(operator.call("ACL SETUSER other on >other ~* +@all").text(), "OK");
    let of = |user: &str| {
        let mut client = stage.connect();
        assert_eq!(client.call(&format!("AUTH {user} {user}")).text(), "OK");
        client
    };
    let crowd: Vec<Client> = (0..idle).map(|_| of("low")).collect();
    let mut neighbour = of("other");
    let (is_over, listings) = (AtomicBool::new(false), AtomicU32::new(0));
    // So many listings end while each of these is answered.
    let meanwhile = thread::scope(|scope| {
        for _ in 0..listing {
            let mut client = of("low");
            let (is_over, listings, start) = (&is_over, &listings, Instant::now());
            scope.spawn(move || {
                while !is_over.load(SeqCst) && start.elapsed() < 4 * SPAN {
                    client.start("CLIENT LIST");
                    let reply = client.reply_within(4 * SPAN);
                    assert!(!reply.is_error(), "{reply:?}");
                    listings.fetch_add(1, SeqCst);
                }
            });
        }
        until("they list", 2 * SPAN, || listings.load(SeqCst) > 2 * listing);
        let ask = |what: &str, question: &mut dyn FnMut()| {
            let mut counts: Vec<(u32, Duration)> = (0..7)
                .map(|_| {
                    let (before, start) = (listings.load(SeqCst), Instant::now());
                    question();
                    (listings.load(SeqCst) - before, start.elapsed())
                })
                .collect();
            counts.sort_unstable();
            println!("{what}: listings of others and time meanwhile {counts:.1?}");
            (what.to_owned(), counts[3].0)
        };
        let meanwhile = [
            ask("PROXY CLIENTS", &mut || assert!(!operator.call("PROXY CLIENTS").is_error())),
            ask("CLIENT LIST", &mut || assert!(!neighbour.call("CLIENT LIST").is_error())),
            ask("/status", &mut || assert_eq!(stage.proxy().http("/status").0, 200)),
            ask("GET", &mut || assert!(neighbour.call("GET k").is_nil())),
        ];
        is_over.store(true, SeqCst);
        meanwhile
    });
    drop(crowd);
    // First come, first served, each waits for all of them.
    let late: Vec<_> = meanwhile.iter().filter(|(_, count)| *count > listing / 3).collect();
    assert!(late.is_empty(), "listings of others meanwhile: {meanwhile:?}");
}

/// Each login of theirs is another user's, which the server has to be asked about.
#[test]
fn an_address_with_many_logins_delays_another_by_one() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    let users = 40;
    for number in 0..=users {
        server.call(&format!("ACL SETUSER u{number} on >secret ~* +@all"));
    }
    let settings = ["auth.mode=passthrough", "pool.max_connections=64", "pool.wait_timeout=20s"];
    let stage = Stage::before(server, &settings);
    let verified = AtomicU32::new(0);
    let meanwhile = thread::scope(|scope| {
        for number in 0..users {
            let (mut client, verified) = (stage.connect(), &verified);
            scope.spawn(move || {
                client.start(&format!("AUTH u{number} secret"));
                assert_eq!(client.reply_within(2 * SPAN).text(), "OK");
                verified.fetch_add(1, SeqCst);
            });
        }
        let mut lonely = Client::connect_apart(stage.address());
        until("some are let in", SPAN, || verified.load(SeqCst) > 3);
        let before = verified.load(SeqCst);
        assert_eq!(lonely.call(&format!("AUTH u{users} secret")).text(), "OK");
        verified.load(SeqCst) - before
    });
    assert!(meanwhile < 12, "logins of others meanwhile: {meanwhile}");
}
