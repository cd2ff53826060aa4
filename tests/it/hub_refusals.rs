//! What a server comes to have against blocking calls while their keys are empty: its role, rights, its replicas.

use std::time::{Duration, Instant};

use crate::harness::{Client, PATIENCE, Server, Stage, Version, until};
use crate::hub::{quiet, wait_for_blocked};

/// Nobody answers there.
const NOBODY: &str = "REPLICAOF 127.0.0.1 1";

/// A loop like any worker's: what the first error is, and how many calls got nil before it. Older answers are believed
/// for a quarter of a second.
fn works_until_told(client: &mut Client, call: &str) -> (String, usize) {
    let start = Instant::now();
    for nils in 0.. {
        let reply = client.call(call);
        if reply.is_error() {
            return (reply.error().to_owned(), nils);
        }
        assert!(reply.is_nil(), "{reply:?}");
        assert!(start.elapsed() < PATIENCE, "{nils} times nil");
    }
    unreachable!()
}

#[test]
fn a_consumer_of_an_empty_key_is_told_what_the_server_has_against_its_calls() {
    for (against, code) in [
        (NOBODY, "READONLY"),
        ("CONFIG SET min-replicas-to-write 1", "NOREPLICAS"),
        ("ACL SETUSER default -blpop", "NOPERM"),
        ("ACL SETUSER default resetkeys ~other:*", "NOPERM"),
    ] {
        let stage = Stage::proxied();
        let (mut client, mut other) = (stage.connect(), stage.connect());
        assert!(client.call("BLPOP jobs 0.15").is_nil());
        assert!(client.call("BLPOP jobs 0.15").is_nil());
        // Somebody waits there already, and is no reason to believe that all is well.
        other.start("BLPOP jobs 0");
        wait_for_blocked(stage.address(), 1);
        stage.server.call(against);
        let (error, nils) = works_until_told(&mut client, "BLPOP jobs 0.15");
        assert!(error.starts_with(code), "{against}: {error}");
        assert!(nils <= 3, "{against}: {nils}");
        if code == "READONLY" {
            assert!(other.reply().error().starts_with("UNBLOCKED"));
            other.expect_end(PATIENCE);
        } else {
            other.expect_silence(Duration::from_millis(100));
        }
    }
}

/// Nobody but those who wait: the longest one's call is run again with every heartbeat.
#[test]
fn a_demotion_that_nobody_else_meets_ends_a_wait_within_a_heartbeat() {
    let stage = Stage::proxied_with(&["hygiene.heartbeat=1s"]);
    let mut clients: Vec<Client> = (0..2).map(|_| stage.connect()).collect();
    clients[0].start("BLPOP k 0");
    clients[1].start("XREAD BLOCK 0 STREAMS s $");
    wait_for_blocked(stage.address(), 2);
    quiet(&stage.server);
    stage.server.call(NOBODY);
    for client in &mut clients {
        assert!(client.reply().error().starts_with("UNBLOCKED"));
        client.expect_end(PATIENCE);
    }
}

/// It reads, so none of its calls would meet READONLY.
#[test]
fn whoever_only_reads_is_told_of_a_demotion_within_a_heartbeat() {
    let stage = Stage::proxied_with(&["hygiene.heartbeat=1s"]);
    let mut client = stage.connect();
    client.start("XREAD BLOCK 0 STREAMS s $");
    wait_for_blocked(stage.address(), 1);
    let asked = || stage.server.call("INFO commandstats").text().contains("cmdstat_role:");
    until("the hub knows that the server is a master", PATIENCE, asked);
    stage.server.call(NOBODY);
    // One that comes to a replica is served there.
    let mut late = stage.connect();
    late.start("XREAD BLOCK 2500 STREAMS s $");
    assert!(client.reply().error().starts_with("UNBLOCKED force"));
    client.expect_end(PATIENCE);
    assert!(late.reply().is_nil());
}

/// On a lease the server itself ends the call; the others are tried, with growing pauses, on a lane.
#[test]
fn without_a_hub_a_demotion_ends_a_wait_and_its_connection() {
    for version in Version::all() {
        let server = Server::start_version(&version, &[]);
        let stage = Stage::before(server, &["blocking.hub=false", "pool.max_connections=4"]);
        let mut clients: Vec<Client> = (0..8).map(|_| stage.connect()).collect();
        for (i, client) in clients.iter_mut().enumerate() {
            client.start(&format!("BLPOP k{i} 0"));
        }
        wait_for_blocked(stage.address(), 8);
        let on_leases = || stage.server.rows().iter().filter(|row| row.get("cmd") == "blpop").count();
        until("some wait on leases", PATIENCE, || on_leases() > 0);
        assert!(on_leases() < 8);
        stage.server.call(NOBODY);
        for client in &mut clients {
            assert!(client.reply().error().starts_with("UNBLOCKED force"), "{}", version.name);
            client.expect_end(PATIENCE);
        }
    }
}

/// A replica runs what only reads, so no try of it is refused.
#[test]
fn without_a_hub_a_reader_is_told_of_a_demotion_within_a_heartbeat() {
    let stage =
        Stage::proxied_with(&["blocking.hub=false", "pool.max_connections=4", "hygiene.heartbeat=1s"]);
    let mut clients: Vec<Client> = (0..8).map(|_| stage.connect()).collect();
    for client in &mut clients {
        client.start("XREAD BLOCK 0 STREAMS s $");
    }
    wait_for_blocked(stage.address(), 8);
    let on_leases = || stage.server.rows().iter().filter(|row| row.get("cmd") == "xread").count();
    until("some wait on leases", PATIENCE, || on_leases() > 0);
    assert!(on_leases() < 8);
    let asked = || stage.server.call("INFO commandstats").text().contains("cmdstat_role:calls=4");
    until("those that are tried know that the server is a master", PATIENCE, asked);
    stage.server.call(NOBODY);
    // One that comes to a replica waits there.
    let mut late = stage.connect();
    late.start("XREAD BLOCK 0 STREAMS s $");
    for client in &mut clients {
        assert!(client.reply().error().starts_with("UNBLOCKED force"));
        client.expect_end(PATIENCE);
    }
    late.expect_silence(Duration::from_millis(2500));
}

/// Every write that somebody tries on a replica ended the hub's connection.
#[test]
fn writes_to_a_replica_disturb_nobody_who_reads_there() {
    let server = Server::start();
    server.call(NOBODY);
    let stage = Stage::before(server, &[]);
    let mut reader = stage.connect();
    reader.start("XREAD BLOCK 0 STREAMS s 0");
    wait_for_blocked(stage.address(), 1);
    let mut writer = stage.connect();
    for _ in 0..3 {
        assert!(writer.call("BLPOP k 1").error().starts_with("READONLY"));
    }
    let connections = || stage.server.info("total_connections_received").parse::<u64>().unwrap();
    until("the connection is settled", PATIENCE, || {
        stage.server.rows().iter().any(|row| row.get("name").ends_with(":blocking"))
    });
    quiet(&stage.server);
    let before = connections();
    for _ in 0..50 {
        assert!(writer.call("BLPOP k 1").error().starts_with("READONLY"));
    }
    // Our own questions take a connection each at most.
    assert!(connections() - before <= 4, "{}", connections() - before);
    reader.expect_silence(Duration::from_millis(100));
}
