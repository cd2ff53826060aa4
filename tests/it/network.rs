//! Hosts that vanish: no FIN, no RST, just silence. Needs root, network namespaces and iptables; says so otherwise.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use redbouncer::upstream::Keepalive;

use crate::harness::{
    Client, ClientFleet, Namespace, PATIENCE, Proxy, Server, Stage, State, encode, is_root, long, throughout,
    until,
};

/// The design's promise for a client whose host is gone.
const KNOWN: Duration = Duration::from_secs(30);

/// What is measured, whatever the state.
const SOON: Duration = Duration::from_secs(25);

/// For how long a peer does nothing before its host vanishes: longer than a vanished host is waited for, and shorter than a
/// silent server is (`upstream.stall_timeout`).
fn shut() -> Duration {
    Duration::from_secs(if long() { 50 } else { 20 })
}

/// A proxy that the other host can reach.
fn proxy_on_the_link(namespace: &Namespace, server: &Server, settings: &[&str]) -> Proxy {
    let address = format!("listen.addresses=[\"{}:0\"]", namespace.near_address());
    let open = [&address, "auth.mode=open", "listen.protected_mode=false"];
    Proxy::start(server, &[&open, settings].concat())
}

/// Every state that a client can be in when its host vanishes, and what else must be set for it.
const STATES: [(State, &[&str]); 9] = [
    (State::Idle, &[]),
    (State::HalfCommand, &[]),
    (State::InFlight, &[]),
    (State::NotReading, &[]),
    (State::InMulti, &[]),
    (State::InWatch, &[]),
    (State::InBlpop, &[]),
    (State::InBlpop, &["blocking.hub=false"]),
    (State::Subscribed, &[]),
];

#[test]
fn clients_whose_host_vanished_are_known_in_30_seconds_in_every_state() {
    if !is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    thread::scope(|scope| {
        for (state, settings) in STATES {
            scope.spawn(move || clients_whose_host_vanishes(state, settings));
        }
    });
}

/// A client that does not read is there, however long; when its host vanishes behind its shut window, that is known as soon
/// as in any other state.
#[test]
fn a_host_that_vanishes_behind_a_window_shut_for_long_is_known_in_25_seconds() {
    if !is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let namespace = Namespace::create();
    let server = Server::start();
    server.call(&format!("SET big {}", "x".repeat(3 << 20)));
    let proxy = proxy_on_the_link(&namespace, &server, &[]);
    let crowd = ClientFleet::start_in(&namespace, proxy.address(), 3, State::NotReading);
    throughout("they do not read, and stay", shut(), || {
        thread::sleep(Duration::from_millis(100));
        connected(&proxy) == 3.0
    });
    namespace.vanish();
    let start = Instant::now();
    until("every client is known to be gone", SOON, || connected(&proxy) == 0.0);
    eprintln!("known {:?} after the host vanished", start.elapsed());
    drop(crowd);
}

/// The same on the other side: a server that stands still with megabytes on their way to it, and then its host vanishes.
#[test]
fn a_server_whose_host_vanishes_behind_a_window_shut_for_long_is_known_in_25_seconds() {
    if !is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let namespace = Namespace::create();
    let server = Server::start_in(&namespace);
    let proxy = Proxy::start(&server, &[]);
    let value = "x".repeat(3 << 20);
    let mut on_lane = proxy.connect();
    let mut on_lease = proxy.connect();
    assert_eq!(on_lane.call("PING").text(), "PONG");
    assert_eq!(on_lease.call("WATCH k").text(), "OK");
    server.signal("STOP");
    for client in [&mut on_lane, &mut on_lease] {
        client.write_patiently(shut());
        // What it does not get rid of stays in the kernel.
        let _ = client.try_send(encode(&["SET", "big", &value]));
    }
    throughout("the server stands still, and nobody is closed", shut(), || {
        thread::sleep(Duration::from_millis(100));
        connected(&proxy) == 2.0
    });
    namespace.vanish();
    let start = Instant::now();
    for client in [&mut on_lane, &mut on_lease] {
        client.expect_end(SOON.saturating_sub(start.elapsed()));
        eprintln!("known {:?} after the host vanished", start.elapsed());
    }
}

fn clients_whose_host_vanishes(state: State, settings: &[&str]) {
    let namespace = Namespace::create();
    let server = Server::start();
    server.call(&format!("SET big {}", "x".repeat(3 << 20)));
    let proxy = proxy_on_the_link(&namespace, &server, settings);
    let crowd = ClientFleet::start_in(&namespace, proxy.address(), 3, state);
    until("the clients hold something", Duration::from_secs(5), || server.clients() > 0);
    namespace.vanish();
    let start = Instant::now();
    let lost = "redbouncer_clients_closed_total{reason=\"client_lost\"}";
    until(&format!("{state:?}: every client is known to be gone"), KNOWN, || {
        proxy.metrics().get(lost) == Some(&3.0)
    });
    let known = start.elapsed();
    let held = || server.rows().iter().filter(|row| !row.get("name").ends_with(":control")).count();
    // A lane lingers for a second after its last client.
    until("everything is released", Duration::from_secs(3), || held() == 0);
    eprintln!("{state:?} {settings:?}: known {known:?} after the host vanished");
    server.call("RPUSH blocked later");
    throughout("the element stays", Duration::from_millis(200), || server.call("LLEN blocked").int() == 1);
    drop(crowd);
}

/// Blocks three clients, lets their host vanish, and writes to each of them `after` that.
fn written_to_after_their_host_vanished(after: Duration) -> (Namespace, Server, Proxy, ClientFleet) {
    let namespace = Namespace::create();
    let server = Server::start();
    let proxy = proxy_on_the_link(&namespace, &server, &[]);
    let crowd = ClientFleet::start_in(&namespace, proxy.address(), 3, State::InBlpop);
    until("the clients hold something", Duration::from_secs(5), || server.clients() > 0);
    namespace.vanish();
    if !after.is_zero() {
        throughout("they count as connected", after, || connected(&proxy) == 3.0);
    }
    for _ in 0..3 {
        server.call("RPUSH blocked into-the-void");
    }
    (namespace, server, proxy, crowd)
}

fn connected(proxy: &Proxy) -> f64 {
    proxy.metrics()["redbouncer_clients{worker=\"0\"}"]
}

#[test]
fn a_blocked_client_whose_host_vanished_with_a_reply_on_its_way_is_known_in_30_seconds() {
    if !is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    // Unacknowledged data turns keepalive off; left to the kernel this would take a quarter of an hour.
    let (_namespace, server, _proxy, _crowd) = written_to_after_their_host_vanished(Duration::ZERO);
    until("everything is released", KNOWN + Duration::from_secs(2), || {
        server.rows().iter().all(|row| row.get("name").ends_with(":control"))
    });
}

/// What is written just before the probes have found out puts them off.
#[test]
fn a_blocked_client_whose_host_vanished_long_before_its_reply_is_known_in_30_seconds() {
    if !is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let probes = Keepalive::default().total().saturating_sub(Duration::from_secs(1));
    let (_namespace, _server, proxy, _crowd) = written_to_after_their_host_vanished(probes);
    let start = Instant::now();
    until("every client is known to be gone", KNOWN - probes, || connected(&proxy) == 0.0);
    eprintln!("known {:?} after the host vanished", probes + start.elapsed());
}

#[test]
fn a_server_whose_host_vanished_does_not_hold_its_clients_for_minutes() {
    if !is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let namespace = Namespace::create();
    let server = Server::start_in(&namespace);
    let proxy = Proxy::start(&server, &[]);
    let mut asking = proxy.connect();
    let mut blocked = proxy.connect();
    asking.call("PING");
    blocked.start("BLPOP none 5");
    let start = Instant::now();
    blocked.expect_silence(Duration::from_millis(200));
    namespace.vanish();
    asking.start("INCR n");
    // Nothing of the blocked client's was in flight: its time passes here as it would have there.
    assert!(blocked.reply().is_nil());
    assert!(start.elapsed() < Duration::from_millis(5_300), "{:?}", start.elapsed());
    asking.expect_end(KNOWN.saturating_sub(start.elapsed()));
}

#[test]
fn a_server_whose_host_vanished_is_known_on_every_kind_of_connection_in_30_seconds() {
    if !is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let namespace = Namespace::create();
    let server = Server::start_in(&namespace);
    let proxy = Proxy::start(&server, &[]);
    let mut clients: Vec<_> = (0..4).map(|_| proxy.connect()).collect();
    clients[0].call("INCR n");
    clients[1].call("WATCH k");
    clients[2].call("SUBSCRIBE news");
    clients[3].start("BLPOP nothing 0");
    let open = |kind: &str| {
        let series = format!("redbouncer_upstream_connections{{kind=\"{kind}\",phase=\"open\"}}");
        proxy.metrics().get(&series) == Some(&1.0)
    };
    let kinds = ["shared", "leased", "pubsub", "blocking"];
    until("all kinds are open", KNOWN, || kinds.iter().all(|kind| open(kind)));
    namespace.vanish();
    let start = Instant::now();
    for kind in kinds {
        let lost = format!("redbouncer_upstream_closed_total{{reason=\"lost\",kind=\"{kind}\"}}");
        let left = (KNOWN + Duration::from_secs(1)).saturating_sub(start.elapsed());
        until(&format!("{kind} is lost"), left, || proxy.counted().contains_key(&lost));
        eprintln!("{kind}: lost {:?} after the host vanished", start.elapsed());
    }
    clients[1].expect_end(Duration::from_secs(1));
    clients[2].expect_end(Duration::from_secs(1));
    clients[0].expect_silence(Duration::from_millis(100));
}

#[test]
fn stopped_clients_that_never_read_stay_bounded_and_stop_nobody() {
    let stage = Stage::proxied();
    stage.server.call(&format!("SET big {}", "x".repeat(1 << 20)));
    let mut steady = stage.connect();
    steady.call("PING");
    let before = stage.proxy().resident();
    let crowd = ClientFleet::start(stage.address(), 40, State::Idle);
    crowd.freeze();
    // Clients of this process that never read either, beside the stopped process that holds its connections.
    let mut deaf: Vec<Client> = (0..40).map(|_| stage.connect()).collect();
    for client in &mut deaf {
        client.shrink_receive_buffer();
        for _ in 0..4 {
            client.start("GET big");
        }
    }
    for number in 0..200 {
        let start = Instant::now();
        assert_eq!(steady.call(&format!("ECHO {number}")).text(), number.to_string());
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
    let grown = stage.proxy().resident().saturating_sub(before);
    // 1 MiB soft limit and at the most the replies of the commands already taken: four of 1 MiB for each of 40.
    assert!(grown < 40 * (5 << 20), "{grown} bytes");
    let address: SocketAddr = stage.address();
    assert_eq!(Client::connect(address).call("PING").text(), "PONG");
}

/// While a hub waits for a server that is away, the server's name comes to mean another address: the connection that it then
/// makes is to the right one, and stays.
#[test]
fn a_hub_that_reconnects_behind_a_new_address_connects_once() {
    if !is_root() {
        return println!("skipped: network namespaces need root");
    }
    let host = Namespace::create();
    let (old, new) = (host.near_address(), host.second_near_address());
    let addresses = [old, new].map(|address| address.to_string());
    let options = ["--protected-mode", "no", "--bind", "127.0.0.1", &addresses[0], &addresses[1]];
    for (call, kind) in [("SUBSCRIBE c", "pubsub"), ("BLPOP l 0", "blocking")] {
        host.resolves("redis.test", old);
        let mut server = Server::start_with(&options);
        let settings = ["upstream.resolve_interval=1s", "pool.wait_timeout=30s", "upstream.on_loss=error"];
        let proxy = Proxy::start_in_before(&host, "redis.test", &server, &settings);
        let mut client = proxy.connect();
        assert_eq!(client.call("PING").text(), "PONG");
        server.kill();
        let mut waiting = proxy.connect();
        waiting.start(call);
        thread::sleep(Duration::from_millis(300));
        host.resolves("redis.test", new);
        until("the new address is known", PATIENCE, || proxy.log().contains("address has changed"));
        server.restart();
        let publish = || server.call("PUBLISH c hello").int() + server.call("RPUSH l hello").int() > 1;
        if kind == "pubsub" {
            assert!(waiting.reply_within(Duration::from_secs(20)).raw.starts_with(b"*3"), "{call}");
            throughout("it stays subscribed", Duration::from_secs(1), &publish);
        } else {
            until("it waits on the server", Duration::from_secs(20), || server.calls_of("llen") > 0);
            thread::sleep(Duration::from_secs(1));
            publish();
        }
        assert!(String::from_utf8_lossy(&waiting.reply().raw).contains("hello"), "{call}");
        let metrics = proxy.counted();
        let mut closed = metrics.keys().filter(|name| name.starts_with("redbouncer_upstream_closed_total"));
        assert!(closed.clone().any(|name| name.contains("lost")), "{metrics:?}");
        let kind = format!("kind=\"{kind}\"");
        assert_eq!(closed.find(|name| name.contains(&kind)), None, "{call}");
    }
}
