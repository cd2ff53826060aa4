//! The tests' own tools are tested first: a relay that does not cut or a sampler that sees nothing would prove anything.

use std::time::Duration;

use crate::harness::{
    Client, ClientFleet, Ended, Namespace, PATIENCE, Relay, Sampler, Server, State, encode, is_root, until,
};

#[test]
fn a_relay_passes_delays_freezes_and_thaws() {
    let server = Server::start();
    let relay = Relay::to(server.address());
    let mut client = Client::connect(relay.address());
    assert_eq!(client.call("PING").text(), "PONG");
    relay.delay(Duration::from_millis(50));
    let start = std::time::Instant::now();
    assert_eq!(client.call("PING").text(), "PONG");
    assert!(start.elapsed() >= Duration::from_millis(100));
    relay.freeze();
    client.start("ECHO frozen");
    client.expect_silence(Duration::from_millis(150));
    relay.pass();
    assert_eq!(client.reply().text(), "frozen");
}

#[test]
fn a_relay_swallows() {
    let server = Server::start();
    let relay = Relay::to(server.address());
    let mut client = Client::connect(relay.address());
    client.call("PING");
    relay.swallow();
    client.start("INCR swallowed");
    client.expect_silence(Duration::from_millis(100));
    relay.pass();
    assert_eq!(client.call("EXISTS swallowed").int(), 0);
}

#[test]
fn a_relay_cuts_both_sides_now_and_in_mid_reply() {
    let server = Server::start();
    let relay = Relay::to(server.address());
    let mut client = Client::connect(relay.address());
    client.call("PING");
    assert_eq!((server.clients(), relay.open()), (1, 1));
    relay.cut();
    assert_eq!(client.read_to_end(PATIENCE).1, Ended::Reset);
    until("the server's side is cut too", PATIENCE, || server.clients() == 0 && relay.open() == 0);
    let mut client = Client::connect(relay.address());
    client.ask(&["SET", "big", &"x".repeat(100_000)]);
    relay.cut_after(50_000);
    client.start("GET big");
    let (bytes, ended) = client.read_to_end(PATIENCE);
    assert_eq!((bytes.len(), ended), (50_000, Ended::Reset));
    assert!(!relay.cut_is_pending());
    assert_eq!(Client::connect(relay.address()).call("PING").text(), "PONG");
    relay.refuse();
    let mut refused = Client::connect(relay.address());
    assert_ne!(refused.read_to_end(PATIENCE).1, Ended::Late);
    assert_eq!(relay.accepted(), 4);
}

#[test]
fn a_sampler_sees_a_short_peak() {
    let server = Server::start();
    let sampler = Sampler::start(&server);
    for _ in 0..20 {
        let mut clients: Vec<Client> = (0..9).map(|_| Client::connect(server.address())).collect();
        for client in &mut clients {
            client.call("PING");
        }
        until("they are gone", PATIENCE, || {
            clients.clear();
            server.clients() == 0
        });
    }
    let sampled = sampler.finish();
    assert_eq!(sampled.peak, 9, "{:?}", sampled.rows);
}

#[test]
fn a_server_restarts_on_its_port_and_may_remember() {
    let mut server = Server::start_with(&["--appendonly", "yes", "--appendfsync", "no"]);
    let address = server.address();
    server.call("SET k v");
    let mut client = Client::connect(address);
    client.call("PING");
    server.kill();
    client.expect_end(PATIENCE);
    assert!(Client::try_connect(address).is_err());
    server.restart();
    assert_eq!(server.address(), address);
    // It may be loading for a moment.
    until("it remembers", PATIENCE, || {
        let reply = server.call("GET k");
        !reply.is_error() && reply.text() == "v"
    });
    assert_eq!(server.clients(), 0);
}

#[test]
fn a_crowd_is_in_its_state_until_it_is_killed() {
    let server = Server::start();
    let crowd = ClientFleet::start(server.address(), 30, State::InBlpop);
    until("30 clients are blocked", PATIENCE, || server.info("blocked_clients") == "30");
    crowd.freeze();
    assert_eq!(server.clients(), 30);
    crowd.kill();
    until("they are gone", PATIENCE, || server.clients() == 0);
}

#[test]
fn a_vanished_host_leaves_its_connections_behind() {
    if !is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let namespace = Namespace::create();
    let server = Server::start_in(&namespace);
    let mut client = Client::connect(server.address());
    client.call("PING");
    namespace.vanish();
    client.send(encode(&["PING"]));
    client.expect_silence(Duration::from_secs(1));
    assert!(Client::try_connect_within(server.address(), Duration::from_millis(300)).is_err());
}

#[test]
fn ends_are_told_apart() {
    let server = Server::start();
    let mut quits = Client::connect(server.address());
    assert_eq!(quits.call("QUIT").text(), "OK");
    assert_eq!(quits.try_reply(PATIENCE), Err(Ended::Closed));
    let mut waits = Client::connect(server.address());
    assert_eq!(waits.try_reply(Duration::from_millis(20)), Err(Ended::Late));
}
