//! Everybody at once: a thousand clients that connect, a server that restarts, a proxy that restarts. Dials stay few,
//! clients wait instead of failing, the cap holds throughout.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::{Client, PATIENCE, Proxy, Sampler, Server, free_port, until};

const CROWD: usize = 1_000;

fn connections_received(server: &Server) -> u64 {
    server.info("total_connections_received").parse().expect("a number")
}

/// A thousand clients, connected; each has been served once.
fn crowd(proxy: &Proxy) -> Vec<Client> {
    let mut clients: Vec<_> = (0..CROWD).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.start("PING");
    }
    for client in &mut clients {
        assert_eq!(client.reply().text(), "PONG");
    }
    clients
}

/// Kills the server, and waits until the proxy knows: what is written before is lost with the connection.
fn lose(server: &mut Server, proxy: &Proxy) {
    server.kill();
    let lost = "redbouncer_upstream_closed_total{reason=\"lost\",kind=\"shared\"}";
    until("the lane is lost", PATIENCE, || proxy.counted().contains_key(lost));
}

#[test]
fn a_thousand_clients_at_once_are_a_handful_of_dials() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &[]);
    let sampler = Sampler::start(&server);
    let before = connections_received(&server);
    let mut clients = crowd(&proxy);
    let dialled = connections_received(&server) - before;
    assert!(dialled <= 4, "{dialled} connections were opened for {CROWD} clients");
    // A second storm, of commands that cannot share a lane: as many as the rate allows, one behind the other.
    let before = (connections_received(&server), Instant::now());
    for client in clients.iter_mut().take(60) {
        client.send("*2\r\n$5\r\nWATCH\r\n$1\r\nk\r\n*1\r\n$7\r\nUNWATCH\r\n");
    }
    for client in clients.iter_mut().take(60) {
        assert_eq!((client.reply().text(), client.reply().text()), ("OK".to_owned(), "OK".to_owned()));
    }
    let (dialled, took) = (connections_received(&server) - before.0, before.1.elapsed());
    let allowed = 20.0 + 20.0 * took.as_secs_f64() + 2.0;
    assert!((dialled as f64) <= allowed, "{dialled} dials in {took:?}");
    let sampled = sampler.finish();
    assert!(sampled.peak <= 8, "{sampled:?}");
}

#[test]
fn when_the_server_restarts_clients_wait_and_notice_nothing() {
    let mut server = Server::start();
    let proxy = Proxy::start(&server, &["pool.wait_timeout=4s"]);
    let mut clients = crowd(&proxy);
    lose(&mut server, &proxy);
    // Half of them ask while the server is away.
    for client in clients.iter_mut().take(CROWD / 2) {
        client.start("SET k v");
    }
    std::thread::sleep(Duration::from_millis(700));
    server.restart();
    for client in clients.iter_mut().take(CROWD / 2) {
        assert_eq!(client.reply_within(PATIENCE).text(), "OK");
    }
    let dialled = connections_received(&server);
    assert!(dialled <= 8, "{dialled} connections to a server that has just come back");
    for client in clients.iter_mut().skip(CROWD / 2) {
        assert_eq!(client.call("GET k").text(), "v", "the idle ones stayed, too");
    }
}

#[test]
fn when_the_server_stays_away_every_client_is_closed_in_time() {
    let mut server = Server::start();
    // The server has to be tried again before those who wait for it give up.
    let proxy = Proxy::start(&server, &["pool.wait_timeout=1s", "upstream.backoff_max=250ms"]);
    let mut clients = crowd(&proxy);
    lose(&mut server, &proxy);
    let begun = Instant::now();
    for client in &mut clients {
        client.start("PING");
    }
    for client in &mut clients {
        client.expect_end(PATIENCE);
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(4), "the last one was closed after {took:?}");
    server.restart();
    // Each of them is answered.
    drop(crowd(&proxy));
}

#[test]
fn when_the_proxy_restarts_everybody_comes_back_to_a_few_connections() {
    let server = Server::start();
    let port = free_port();
    let listen = format!("listen.addresses=127.0.0.1:{port}");
    let proxy = Proxy::start(&server, &[&listen]);
    let sampler = Sampler::start(&server);
    let clients = crowd(&proxy);
    assert_eq!(proxy.stop().code, Some(0));
    drop(clients);
    let proxy = Proxy::start(&server, &[&listen]);
    let begun = Instant::now();
    let _clients = crowd(&proxy);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "all are served again after {took:?}");
    let sampled = sampler.finish();
    assert!(sampled.peak <= 8, "{sampled:?}");
}

#[test]
fn an_address_gets_no_more_clients_than_it_may_have() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["client.max_per_address=3"]);
    let mut clients: Vec<_> = (0..3).map(|_| proxy.connect()).collect();
    assert!(clients.iter_mut().all(|client| client.call("PING").text() == "PONG"));
    let mut fourth = proxy.connect();
    assert_eq!(fourth.reply().error(), "ERR max number of clients reached for this address");
    fourth.expect_end(PATIENCE);
    let metric = "redbouncer_clients_closed_total{reason=\"too_many_from_address\"}";
    assert_eq!(proxy.metrics()[metric], 1.0);
    clients.pop();
    until("a place is free again", PATIENCE, || {
        let mut next = proxy.connect();
        next.start("PING");
        next.try_reply(PATIENCE).is_ok_and(|reply| !reply.is_error() && reply.text() == "PONG")
    });
}

#[test]
fn without_descriptors_those_connected_are_served_and_the_others_wait() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &[]);
    let mut first = proxy.connect();
    assert_eq!(first.call("PING").text(), "PONG");
    let limit = proxy.descriptors() + 20;
    let limited = Command::new("prlimit")
        .args(["--pid", &proxy.process().to_string(), &format!("--nofile={limit}:{limit}")])
        .status()
        .expect("prlimit runs");
    assert!(limited.success());
    let mut clients: Vec<_> = (0..60).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.start("PING");
    }
    until("it is said", PATIENCE, || proxy.log().contains("cannot accept clients"));
    let (begun, cpu) = (Instant::now(), proxy.cpu());
    while begun.elapsed() < Duration::from_secs(2) {
        assert_eq!(first.call("PING").text(), "PONG");
        std::thread::sleep(Duration::from_millis(50));
    }
    let used = proxy.cpu() - cpu;
    assert!(used < Duration::from_millis(200), "{used:?} of CPU in 2 s");
    let lines = |text: &str| proxy.log().lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines("cannot accept clients"), 1, "said once: {}", proxy.log());
    // Those in the queue move up as the others leave.
    let mut served = 0;
    for mut client in clients {
        assert_eq!(client.reply_within(PATIENCE).text(), "PONG");
        served += 1;
    }
    assert_eq!(served, 60);
    until("it is over", PATIENCE, || lines("clients are accepted again") >= 1);
}

/// A proxy whose process may have `files` open files.
fn with_files(files: usize, server: &Server, settings: &[&str]) -> Proxy {
    let mut wrapped = Command::new("prlimit");
    wrapped.arg(format!("--nofile={files}:{files}")).arg(env!("CARGO_BIN_EXE_redbouncer"));
    Proxy::start_by(wrapped, server, settings)
}

#[test]
fn at_the_limit_of_open_files_new_clients_are_refused_in_words_and_everything_else_goes_on() {
    let server = Server::start();
    let proxy = with_files(200, &server, &["pool.max_connections=8"]);
    assert!(proxy.log().contains("admits fewer clients than client.max"), "{}", proxy.log());
    // 200 less 128, 8 for the worker and 8 for the pool.
    assert!(proxy.log().contains("\"clients\":56"), "{}", proxy.log());
    let mut clients: Vec<_> = (0..56).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.call("PING").text(), "PONG");
    }
    for _ in 0..150 {
        let (words, _) = proxy.connect().read_to_end(PATIENCE);
        assert_eq!(&words[..], b"-ERR max number of clients reached\r\n");
    }
    // New upstream connections and the admin port have files left.
    for client in clients.iter_mut().take(3) {
        assert_eq!(client.call("WATCH k").text(), "OK");
    }
    let waiting: Vec<_> = (0..40).map(|_| std::net::TcpStream::connect(proxy.admin()).unwrap()).collect();
    assert_eq!(proxy.http("/live").0, 200);
    assert_eq!(proxy.http("/metrics").0, 200);
    drop(waiting);
    assert!(!proxy.log().contains("cannot accept clients"), "{}", proxy.log());
}

#[test]
fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let server = Server::start();
    let mut wrapped = Command::new("prlimit");
    wrapped.arg("--nofile=100:400").arg(env!("CARGO_BIN_EXE_redbouncer"));
    let proxy = Proxy::start_by(wrapped, &server, &["client.max=200"]);
    assert!(!proxy.log().contains("admits fewer"), "{}", proxy.log());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", proxy.process())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().nth(3), Some("400"), "{line}");
    let mut clients: Vec<_> = (0..200).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.call("PING").text(), "PONG");
    }
}
