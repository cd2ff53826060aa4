//! A master that becomes a replica: what it refuses to write waits for the next master of the same name.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Client, PATIENCE, Proxy, Relay, Server, until};

const ANSWERED: &str = "redbouncer_held_commands_total{outcome=\"answered\"}";
const REFUSED: &str = "redbouncer_held_commands_total{outcome=\"refused\"}";
/// A master that never answers.
const DEMOTED: &str = "REPLICAOF 127.0.0.1 1";

fn counted(proxy: &Proxy, metric: &str) -> f64 {
    proxy.metrics().get(metric).copied().unwrap_or(0.0)
}

/// The old master gives its office to the new one, which has all its data by then; the name follows a moment later. Writes come
/// all the time, with others behind them that nobody has waited for.
#[test]
fn unawaited_writes_reach_the_next_master_once_and_nobody_sees_an_error() {
    let old = Server::start();
    let new = Server::start_with(&["--replicaof", "127.0.0.1", &old.address().port().to_string()]);
    until("the replica follows", Duration::from_secs(30), || new.info("master_link_status").trim() == "up");
    let relay = Relay::to(old.address());
    let settings = ["upstream.failover_wait=60s", "listen.workers=2", "pool.max_connections=16"];
    let proxy = Proxy::launch(&format!("redis://{}", relay.address()), &settings).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|threads| {
        let clients: Vec<_> = (0..8)
            .map(|number| {
                let (proxy, over) = (&proxy, &over);
                threads.spawn(move || {
                    let mut client = proxy.connect();
                    let key = format!("n:{number}");
                    let mut written = 0;
                    while !over.load(Ordering::Relaxed) {
                        let (increment, look) = (format!("INCR {key}"), format!("GET {key}"));
                        let set = format!("SET s:{number} {written}");
                        let commands = [&increment[..], &set, &look, &increment];
                        commands.iter().for_each(|command| client.start(command));
                        let mut reply = || client.reply_within(Duration::from_secs(60));
                        written += 1;
                        assert_eq!(reply().int(), written);
                        assert_eq!(reply().text(), "OK");
                        assert_eq!(reply().text(), written.to_string());
                        written += 1;
                        assert_eq!(reply().int(), written);
                    }
                    written
                })
            })
            .collect();
        until("all write", PATIENCE, || (0..8).all(|number| !old.call(&format!("GET s:{number}")).is_nil()));
        let target = new.address();
        assert_eq!(old.call(&format!("FAILOVER TO 127.0.0.1 {}", target.port())).text(), "OK");
        until("there is another master", Duration::from_secs(30), || new.info("role").trim() == "master");
        until("the proxy has noticed it", PATIENCE, || proxy.log().contains("has become a replica"));
        relay.point_to(target);
        let before = new.calls_of("incr");
        until("writes reach it", Duration::from_secs(30), || new.calls_of("incr") > before + 100);
        over.store(true, Ordering::Relaxed);
        for (number, client) in clients.into_iter().enumerate() {
            let written = client.join().unwrap();
            assert_eq!(new.call(&format!("GET n:{number}")).text(), written.to_string());
        }
    });
    assert!(counted(&proxy, ANSWERED) > 0.0, "{}", proxy.log());
    assert!(proxy.log().contains("a master is reached again"));
    assert_eq!(counted(&proxy, REFUSED), 0.0);
}

#[test]
fn what_is_held_is_run_in_order_when_there_is_a_master_again() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["upstream.failover_wait=60s"]);
    let (mut writer, mut other) = (proxy.connect(), proxy.connect());
    assert_eq!(writer.call("SET k old").text(), "OK");
    assert_eq!(other.call("GET k").text(), "old");
    server.call(DEMOTED);
    for command in ["SET k new", "GET k", "SET k", "APPEND k er", "GET k"] {
        writer.start(command);
    }
    until("it is noticed", PATIENCE, || proxy.log().contains("has become a replica"));
    other.start("GET k");
    writer.expect_silence(Duration::from_millis(300));
    other.expect_silence(Duration::from_millis(1));
    server.call("REPLICAOF NO ONE");
    assert_eq!(writer.reply_within(PATIENCE).text(), "OK");
    assert_eq!(writer.reply().text(), "new");
    assert!(writer.reply().error().contains("wrong number of arguments"));
    assert_eq!(writer.reply().int(), 5);
    assert_eq!(writer.reply().text(), "newer");
    assert!(["new", "newer"].contains(&&other.reply_within(PATIENCE).text()[..]));
    assert_eq!(writer.call("APPEND k !").int(), 6);
}

#[test]
fn a_server_that_stays_a_replica_answers_itself_after_the_wait() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["upstream.failover_wait=1s"]);
    let mut client = proxy.connect();
    assert_eq!(client.call("SET k v").text(), "OK");
    let topology = |client: &mut Client| client.call("PROXY TOPOLOGY").lines();
    let node = format!("node={} role=", server.address());
    let told = topology(&mut proxy.connect());
    assert!(told.starts_with(&format!("{node}master connections=")), "{told}");
    server.call(DEMOTED);
    let start = Instant::now();
    let replies = client.pipeline(&["INCR n", "GET k", "SET k w"]);
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(replies[0].error().starts_with("READONLY "), "{replies:?}");
    assert_eq!(replies[1].text(), "v");
    assert!(replies[2].error().starts_with("READONLY "), "{replies:?}");
    assert!(counted(&proxy, REFUSED) >= 2.0);
    // What a transaction or a script is refused is its own business.
    let replies = client.pipeline(&["MULTI", "SET k w", "EXEC"]);
    assert!(replies[1].error().starts_with("READONLY "), "{replies:?}");
    assert!(replies[2].error().starts_with("EXECABORT "), "{replies:?}");
    assert!(client.ask(&["EVAL", "return redis.call('SET','k','w')", "0"]).error().contains("READONLY"));
    let told = topology(&mut proxy.connect());
    assert!(told.starts_with(&format!("{node}replica connections=")) && told.contains(" demoted="), "{told}");
    // From now on at once, and reads are served.
    let held = counted(&proxy, REFUSED);
    assert!(client.call("SET k w").error().starts_with("READONLY "));
    assert_eq!(client.call("GET k").text(), "v");
    assert_eq!(counted(&proxy, REFUSED), held);
    server.call("REPLICAOF NO ONE");
    assert_eq!(client.call("INCR n").int(), 1);
}
