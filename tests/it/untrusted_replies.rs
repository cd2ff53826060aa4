//! What a reply may say about the server: nothing, where a script could have made it up, and the same thing only once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Client, PATIENCE, Proxy, Relay, Server, until};

/// Connections that the server has accepted since its start.
fn accepted(server: &Server) -> u64 {
    server.info("total_connections_received").trim().parse().unwrap()
}

#[test]
fn a_text_that_a_script_makes_up_ends_nobodys_connection() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &[]);
    let (mut forger, mut bystander) = (proxy.connect(), proxy.connect());
    assert_eq!(bystander.call("SET k v").text(), "OK");
    let before = accepted(&server);
    for text in [
        "ERR unknown command 'exec'",
        "ERR unknown command `EXEC`, with args beginning with: ",
        "READONLY You can't write against a read only replica.",
        "MOVED 1 127.0.0.1:1",
        "LOADING Redis is loading the dataset in memory",
        "NOAUTH Authentication required.",
        "MASTERDOWN Link with MASTER is down",
        "CLUSTERDOWN The cluster is down",
    ] {
        // Alone, behind others of the same client, and inside a transaction.
        bystander.send(crate::harness::encode(&["EVAL", "for i = 1, 100000 do end return 1", "0"]));
        forger.send(crate::harness::encode(&["GET", "k"]));
        forger.send(crate::harness::encode(&["EVAL", &format!("return redis.error_reply([[{text}]])"), "0"]));
        bystander.start("GET k");
        assert_eq!(forger.reply().text(), "v");
        assert_eq!(forger.reply().error(), text);
        assert_eq!(bystander.reply().int(), 1);
        assert_eq!(bystander.reply().text(), "v");
        forger.send(
            [
                crate::harness::encode(&["MULTI"]),
                crate::harness::encode(&["EVAL", &format!("return redis.error_reply([[{text}]])"), "0"]),
                crate::harness::encode(&["EXEC"]),
            ]
            .concat(),
        );
        for _ in 0..3 {
            let _ = forger.reply();
        }
        assert_eq!(bystander.call("GET k").text(), "v");
    }
    // The tick that looks after lanes has had its time.
    until("lanes were looked after", PATIENCE, {
        let start = Instant::now();
        move || start.elapsed() > Duration::from_millis(500)
    });
    assert_eq!(bystander.call("GET k").text(), "v");
    assert!(
        accepted(&server) <= before + 1,
        "a second lane at the most: {} after {before}",
        accepted(&server)
    );
    assert!(!proxy.log().contains("MOVED"), "{}", proxy.log());
}

#[test]
fn before_a_replica_writers_cost_readers_nothing() {
    let master = Server::start();
    let replica = Server::start_with(&["--replicaof", "127.0.0.1", &master.address().port().to_string()]);
    until("the replica follows", Duration::from_secs(20), || {
        replica.info("master_link_status").trim() == "up"
    });
    let proxy = Proxy::start(&replica, &[]);
    let mut reader = proxy.connect();
    assert!(reader.call("GET k").is_nil());
    let before = accepted(&replica);
    let over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                let mut writer = proxy.connect();
                while !over.load(Ordering::Relaxed) {
                    assert!(writer.call("SET k v").error().starts_with("READONLY "));
                }
            });
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            assert!(reader.call("GET k").is_nil());
        }
        over.store(true, Ordering::Relaxed);
    });
    let more = accepted(&replica) - before;
    assert!(more <= 2, "{more} connections: further lanes at the most");
}

#[test]
fn lanes_to_a_master_that_has_become_a_replica_are_made_anew_once() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["upstream.failover_wait=0"]);
    let (mut writer, mut reader) = (proxy.connect(), proxy.connect());
    assert_eq!(writer.call("SET k v").text(), "OK");
    let before = accepted(&server);
    // To a master that never answers: no connection of clients is lost.
    server.call("REPLICAOF 127.0.0.1 1");
    let mut refusals = 0;
    until("the lanes are made anew", PATIENCE, || {
        refusals += usize::from(writer.call("SET k v").error().starts_with("READONLY "));
        assert_eq!(reader.call("GET k").text(), "v");
        accepted(&server) > before
    });
    assert!(refusals > 0);
    let after = accepted(&server);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        assert!(writer.call("SET k v").error().starts_with("READONLY "));
        assert_eq!(reader.call("GET k").text(), "v");
    }
    assert!(accepted(&server) <= after + 2, "{} connections after {after}", accepted(&server));
    server.call("REPLICAOF NO ONE");
    assert_eq!(writer.call("SET k v").text(), "OK");
    let lines = proxy.log().lines().filter(|line| line.contains("the server has become a replica")).count();
    assert_eq!(lines, 1, "{}", proxy.log());
    drop(Client::connect(proxy.address()));
}

/// A failover behind an address that stays, as a balancer has it: it points to the new master only after a while, and
/// nobody closes the connections to the old one.
#[test]
fn while_a_demoted_server_refuses_writes_its_name_is_looked_up_again() {
    let (old, new) = (Server::start(), Server::start());
    let relay = Relay::to(old.address());
    let proxy =
        Proxy::launch(&format!("redis://{}", relay.address()), &["upstream.failover_wait=0"]).unwrap();
    let (mut writer, mut reader) = (proxy.connect(), proxy.connect());
    assert_eq!(writer.call("SET k v").text(), "OK");
    old.call("REPLICAOF 127.0.0.1 1");
    until("the lanes are made anew", PATIENCE, || {
        assert!(writer.call("SET k v").error().starts_with("READONLY "));
        assert_eq!(reader.call("GET k").text(), "v");
        proxy.log().contains("the server has become a replica")
    });
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(writer.call("SET k v").error().starts_with("READONLY "));
    relay.point_to(new.address());
    until("writes reach the new master", Duration::from_secs(10), || {
        std::thread::sleep(Duration::from_millis(10));
        let _ = reader.call("GET k");
        !writer.call("SET k w").is_error()
    });
    assert_eq!(new.call("GET k").text(), "w");
    let before = accepted(&new);
    for _ in 0..200 {
        assert_eq!(writer.call("SET k x").text(), "OK");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(accepted(&new), before, "the new master is not left");
}

#[test]
fn an_exec_that_the_server_does_not_know_ends_its_lane_and_reaches_nobody_else() {
    let server = Server::start_with(&["--rename-command", "EXEC", "XEXEC"]);
    let proxy = Proxy::start(&server, &[]);
    let (mut sender, mut subscriber) = (proxy.connect(), proxy.connect());
    for members in ["SET a 1", "PUBLISH c x"] {
        let words: Vec<&str> = members.split(' ').collect();
        sender.send(
            [
                crate::harness::encode(&["MULTI"]),
                crate::harness::encode(&words),
                crate::harness::encode(&["EXEC"]),
            ]
            .concat(),
        );
        assert_eq!(sender.reply().text(), "OK");
        assert_eq!(sender.reply().text(), "QUEUED");
        assert!(sender.reply().error().starts_with("ERR unknown command"), "{members}");
        let mut other = proxy.connect();
        assert_eq!(other.call("SET b 1").text(), "OK", "{members}");
        sender = proxy.connect();
        // From now on counts are corrected, so that the transaction takes the other way.
        assert_eq!(subscriber.call("SUBSCRIBE c").items().len(), 3);
        subscriber = proxy.connect();
        assert_eq!(subscriber.call("SUBSCRIBE c").items().len(), 3);
    }
}
