//! WAIT and WAITAOF: never answered before the replicas have what the session wrote, on whatever connection it was
//! written. A replica frozen by SIGSTOP is the judge, before every server at hand.

use std::time::{Duration, Instant};

use crate::harness::{Client, PATIENCE, Proxy, Server, Version, until};

/// A master with one replica that is online.
fn with_replica(version: &Version, options: &[&str]) -> (Server, Server) {
    let fast = ["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"];
    let master = Server::start_version(version, &[&fast[..], options].concat());
    let port = master.address().port().to_string();
    let replica = Server::start_version(version, &["--replicaof", "127.0.0.1", &port]);
    until("the replica is online", Duration::from_secs(15), || {
        master.call("INFO replication").text().contains("state=online")
    });
    until("the replica has caught up", PATIENCE, || master.call("WAIT 1 100").int() == 1);
    (master, replica)
}

#[test]
fn with_a_frozen_replica_no_answer_is_early() {
    for version in Version::all() {
        let (master, replica) = with_replica(&version, &[]);
        let proxy = Proxy::start(&master, &[]);
        for protocol in [2, 3] {
            let mut client = proxy.connect();
            client.call(&format!("HELLO {protocol}"));
            client.call("SET k before");
            assert_eq!(client.call("WAIT 1 2000").int(), 1, "{}", version.name);
            replica.signal("STOP");
            client.call(&format!("SET k {protocol}"));
            let start = Instant::now();
            assert_eq!(client.call("WAIT 1 300").int(), 0, "{}: answered early", version.name);
            assert!(start.elapsed() >= Duration::from_millis(290), "{:?}", start.elapsed());
            // In one write with what it waits for.
            client.start("SET k pipelined");
            client.start("WAIT 1 300");
            assert_eq!(client.reply().text(), "OK");
            assert_eq!(client.reply().int(), 0, "{}: answered early", version.name);
            client.start("WAIT 1 0");
            client.expect_silence(Duration::from_millis(200));
            replica.signal("CONT");
            assert_eq!(client.reply().int(), 1, "{}", version.name);
        }
        assert!(master.clients() <= 8 + 1);
    }
}

/// Why WAIT may not simply be forwarded: another connection's WAIT knows nothing of this session's writes. Without this
/// the test above could not fail.
#[test]
fn on_another_connection_the_server_itself_answers_early() {
    let mut early = 0;
    for version in Version::all() {
        let (master, replica) = with_replica(&version, &[]);
        let (mut writer, mut other) = (Client::connect(master.address()), Client::connect(master.address()));
        other.call("PING");
        replica.signal("STOP");
        writer.call("SET k v");
        early += other.call("WAIT 1 300").int();
        replica.signal("CONT");
    }
    assert!(early > 0);
}

#[test]
fn on_a_connection_that_is_held_already_it_waits_for_writes_on_the_lane() {
    let (master, replica) = with_replica(&Version::usual(), &[]);
    let proxy = Proxy::start(&master, &[]);
    let mut client = proxy.connect();
    client.call("SET k 1");
    client.call("WATCH w");
    replica.signal("STOP");
    client.call("SET k 2");
    assert_eq!(client.call("WAIT 1 300").int(), 0);
    replica.signal("CONT");
    assert_eq!(client.call("WAIT 1 3000").int(), 1);
}

#[test]
fn without_replicas_in_multi_and_with_bad_arguments_it_answers_as_the_server() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["upstream.command_timeout=200ms"]);
    let mut answers = Vec::new();
    for address in [server.address(), proxy.address()] {
        let mut client = Client::connect(address);
        let commands = [
            "WAIT 0 0",
            "WAIT 1 50",
            "WAIT x 1",
            "WAIT 1",
            "WAIT 1 -1",
            "MULTI",
            "SET k v",
            "WAIT 1 0",
            "EXEC",
            "PING",
        ];
        answers.push(commands.map(|command| client.call(command).raw));
        // Longer than the command timeout: it is no command that hangs.
        let start = Instant::now();
        assert_eq!(client.call("WAIT 1 600").int(), 0);
        assert!(start.elapsed() >= Duration::from_millis(590));
    }
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn a_client_that_leaves_in_wait_releases_its_connection_at_once() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &[]);
    let mut steady = proxy.connect();
    steady.call("PING");
    let mut client = proxy.connect();
    client.start("WAIT 1 0");
    until("it waits", PATIENCE, || server.rows().iter().any(|row| row.get("cmd") == "wait"));
    let row = proxy.connect().call("CLIENT LIST").text();
    assert!(row.lines().any(|line| line.contains("cmd=wait") && line.contains("flags=b")), "{row}");
    client.reset();
    until("it is gone", Duration::from_secs(1), || !server.rows().iter().any(|row| row.get("cmd") == "wait"));
}

#[test]
fn a_user_who_may_not_publish_is_told_so() {
    let server = Server::start();
    server.call("ACL SETUSER writer on >secret ~* resetchannels +@all");
    let proxy = Proxy::start(&server, &["auth.mode=passthrough"]);
    let mut client = proxy.connect();
    client.call("AUTH writer secret");
    client.call("SET k v");
    assert!(client.call("WAIT 1 50").error().contains("PUBLISH"));
    assert_eq!(client.call("PING").text(), "PONG");
}

#[test]
fn waitaof_waits_for_the_disk_where_the_server_knows_it() {
    for version in Version::all() {
        let server = Server::start_version(&version, &["--appendonly", "yes", "--appendfsync", "everysec"]);
        let proxy = Proxy::start(&server, &[]);
        let mut direct = Client::connect(server.address());
        direct.call("SET k 1");
        let expected = direct.call("WAITAOF 1 0 3000");
        let mut client = proxy.connect();
        client.call("SET k 2");
        let reply = client.call("WAITAOF 1 0 3000");
        assert_eq!(reply.raw, expected.raw, "{}", version.name);
    }
}
