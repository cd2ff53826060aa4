//! Peers that have not logged in: whatever they do, those that can log in get in.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use crate::harness::{Client, Ended, PATIENCE, Server, Stage, until};

/// Places of clients, as many as there are strangers.
const PLACES: usize = 60;
const LOGINS: usize = 200;

/// A server that wants a password, and a proxy that lets it judge.
fn stage(settings: &[&str]) -> Stage {
    let all = [&["auth.mode=passthrough", "client.login_timeout=60s"], settings].concat();
    Stage::before(Server::start_with(&["--requirepass", "sesame"]), &all)
}

/// Connects from a loopback address of its own.
fn from(host: u8, to: SocketAddr) -> Option<Client> {
    Client::try_connect_from(SocketAddr::from(([127, 0, 0, host], 0)), to).ok()
}

/// Clients closed for `reason`.
fn closed(stage: &Stage, reason: &str) -> f64 {
    let series = format!("redbouncer_clients_closed_total{{reason=\"{reason}\"}}");
    stage.proxy().metrics().get(&series).copied().unwrap_or(0.0)
}

fn unauthenticated(stage: &Stage) -> f64 {
    stage.proxy().metrics()["redbouncer_clients_unauthenticated"]
}

/// Good logins, one after the other; how many were not answered as they should be.
fn refused_logins(stage: &Stage) -> usize {
    let good = || {
        let mut client = Client::try_connect(stage.address()).ok()?;
        client.try_send("AUTH sesame\r\nECHO inside\r\n").ok()?;
        let accepted = client.try_reply(PATIENCE).ok()?;
        let answer = client.try_reply(PATIENCE).ok()?;
        (!accepted.is_error() && !answer.is_error() && answer.text() == "inside").then_some(())
    };
    (0..LOGINS).filter(|_| good().is_none()).count()
}

#[test]
fn silent_strangers_take_no_place_from_good_logins() {
    let max = format!("client.max={PLACES}");
    let stage = stage(&[&max]);
    let strangers: Vec<_> = (0..PLACES).map(|_| stage.connect()).collect();
    assert_eq!(refused_logins(&stage), 0);
    drop(strangers);
}

#[test]
fn good_logins_get_in_where_the_strangers_fill_their_room() {
    let stage = stage(&[&format!("client.max={PLACES}"), "client.max_unauthenticated=20"]);
    let mut strangers: Vec<_> = (0..PLACES).map(|_| stage.connect()).collect();
    until("the oldest have given way", PATIENCE, || closed(&stage, "gave_way") >= 40.0);
    assert_eq!(refused_logins(&stage), 0);
    assert!(unauthenticated(&stage) <= 20.0);
    assert_ne!(strangers[0].read_to_end(PATIENCE).1, Ended::Late);
}

/// Strangers from other addresses that come back at once whenever they are closed, and send without an end.
#[test]
fn busy_strangers_take_no_place_from_good_logins() {
    let stage = stage(&[&format!("client.max={PLACES}")]);
    assert_eq!(stage.connect().call("AUTH sesame").text(), "OK");
    let (over, address) = (AtomicBool::new(false), stage.address());
    let busy = |number: u8| {
        let mut crowd: Vec<Option<Client>> = (0..10).map(|_| None).collect();
        while !over.load(SeqCst) {
            for stranger in &mut crowd {
                let client = stranger.take().or_else(|| from(10 + number, address));
                *stranger = client.and_then(|mut client| {
                    client.try_send("PING\r\n").ok()?;
                    // NOAUTH, or that there is no place.
                    client.try_reply(Duration::from_secs(1)).ok().map(|_| client)
                });
            }
            thread::sleep(Duration::from_millis(1));
        }
    };
    thread::scope(|scope| {
        for number in 0..6 {
            let busy = &busy;
            scope.spawn(move || busy(number));
        }
        until("all of them are there", PATIENCE, || unauthenticated(&stage) >= 50.0);
        assert_eq!(refused_logins(&stage), 0);
        over.store(true, SeqCst);
    });
}

#[test]
fn the_address_with_the_most_strangers_gives_way() {
    let stage = stage(&["client.max_unauthenticated=10"]);
    let mut quiet = stage.connect();
    let mut crowd: Vec<_> = (0..30).map(|_| from(99, stage.address()).unwrap()).collect();
    until("twenty-one have given way", PATIENCE, || closed(&stage, "gave_way") >= 21.0);
    for stranger in &mut crowd[..21] {
        assert_ne!(stranger.read_to_end(PATIENCE).1, Ended::Late);
    }
    assert!(crowd[29].call("PING").error().starts_with("NOAUTH"));
    assert_eq!(quiet.call("AUTH sesame").text(), "OK");
    assert_eq!(stage.proxy().status()["unauthenticated"], 9);
    assert_eq!(closed(&stage, "gave_way"), 21.0);
}

#[test]
fn the_limit_counts_those_who_have_logged_in() {
    let stage = stage(&["client.max=2"]);
    let mut clients: Vec<_> = (0..3).map(|_| stage.connect()).collect();
    until("all three are there", PATIENCE, || unauthenticated(&stage) >= 3.0);
    for client in &mut clients[..2] {
        assert_eq!(client.call("AUTH sesame").text(), "OK");
    }
    // It was let in when there were places yet.
    assert_eq!(clients[2].call("AUTH sesame").error(), "ERR max number of clients reached");
    clients[2].expect_end(PATIENCE);
    let (words, _) = stage.connect().read_to_end(PATIENCE);
    assert_eq!(&words[..], b"-ERR max number of clients reached\r\n");
    assert_eq!(closed(&stage, "too_many"), 2.0);
    clients.remove(0);
    until("a place is free again", PATIENCE, || {
        let mut next = stage.connect();
        next.start("AUTH sesame");
        next.try_reply(PATIENCE).is_ok_and(|reply| !reply.is_error())
    });
}

#[test]
fn a_stranger_may_leave_little_unread() {
    let stage = stage(&[]);
    let before = stage.proxy().resident();
    let mut stranger = stage.connect();
    stranger.write_patiently(Duration::from_secs(2));
    // A refusal each.
    let _ = stranger.try_send("PING\r\n".repeat(2_000_000));
    until("it is closed", PATIENCE, || closed(&stage, "output_limit") == 1.0);
    let grown = stage.proxy().peak().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes");
}
