//! The same promises before every server that is at hand: Debian's Redis, an older one, Valkey.

use std::time::Duration;

use crate::harness::{Client, PATIENCE, Proxy, Server, Version, until};

/// Runs a scenario before each server.
fn on_each(scenario: impl Fn(&Version)) {
    for version in Version::all() {
        println!("--- {}", version.name);
        scenario(&version);
    }
}

fn of_kind(server: &Server, kind: &str) -> usize {
    server.rows().iter().filter(|row| row.get("name").ends_with(kind)).count()
}

fn blocked(proxy: &Proxy, count: usize) {
    until("the clients are blocked", PATIENCE, || {
        let list = proxy.connect().call("CLIENT LIST").text();
        list.lines().filter(|line| line.contains(" flags=b ")).count() == count
    });
}

#[test]
fn lanes_leases_and_transactions_work() {
    on_each(|version| {
        let server = Server::start_version(version, &[]);
        let proxy = Proxy::start(&server, &[]);
        for protocol in [2, 3] {
            let mut client = proxy.connect();
            if protocol == 3 {
                assert!(!client.call("HELLO 3").is_error());
            }
            assert_eq!(client.call("SET k v").text(), "OK");
            assert_eq!(client.pipeline(&["MULTI", "GET k", "EXEC"])[2].items()[0].text(), "v");
            assert_eq!(client.call("WATCH k").text(), "OK");
            server.call("SET k w");
            assert!(client.pipeline(&["MULTI", "GET k", "EXEC"])[2].is_nil());
            assert!(!client.call("CLIENT LIST").text().contains("redbouncer:"));
        }
        assert!(server.clients() <= 8);
    });
}

#[test]
fn blocked_clients_are_served_and_share_a_connection_where_there_can_be_a_hub() {
    const CALLS: [(&str, &str); 10] = [
        ("BLPOP l 0", "RPUSH l x"),
        ("BRPOP l2 0", "RPUSH l2 x"),
        ("BLMOVE l3 d LEFT RIGHT 0", "RPUSH l3 x"),
        ("BRPOPLPUSH l4 d 0", "RPUSH l4 x"),
        ("BZPOPMIN z 0", "ZADD z 1.5 x"),
        ("BZPOPMAX z2 0", "ZADD z2 1.5 x"),
        ("XREAD BLOCK 0 STREAMS s $", "XADD s 1-1 f x"),
        ("XREADGROUP GROUP g c BLOCK 0 STREAMS gs >", "XADD gs 1-1 f x"),
        ("BLMPOP 0 1 l5 LEFT", "RPUSH l5 x"),
        ("BZMPOP 0 1 z3 MIN", "ZADD z3 1.5 x"),
    ];
    on_each(|version| {
        let server = Server::start_version(version, &[]);
        let proxy = Proxy::start(&server, &[]);
        server.call("XGROUP CREATE gs g $ MKSTREAM");
        // 6.2 has no BLMPOP and BZMPOP.
        let calls = if version.has_hub() { &CALLS[..] } else { &CALLS[..8] };
        let mut expected = Vec::new();
        for (call, push) in calls {
            let mut direct = Client::connect(server.address());
            direct.start(call);
            until("it is blocked", PATIENCE, || server.info("blocked_clients") == "1");
            server.call(push);
            expected.push(direct.reply().raw);
        }
        server.call("FLUSHALL");
        server.call("XGROUP CREATE gs g $ MKSTREAM");
        let mut clients: Vec<Client> = calls.iter().map(|_| proxy.connect()).collect();
        for (client, (call, _)) in clients.iter_mut().zip(calls) {
            client.start(call);
        }
        blocked(&proxy, calls.len());
        if version.has_hub() {
            assert_eq!((of_kind(&server, ":blocking"), of_kind(&server, ":leased")), (1, 0));
        }
        for (client, (_, push)) in clients.iter_mut().zip(calls) {
            server.call(push);
            client.expect_silence(Duration::ZERO);
        }
        for (i, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.reply().raw, expected[i], "{}: {}", version.name, calls[i].0);
        }
        assert!(server.clients() <= 8);
    });
}

#[test]
fn a_burst_on_one_key_reaches_one_waiter_each() {
    on_each(|version| {
        let server = Server::start_version(version, &[]);
        let proxy = Proxy::start(&server, &[]);
        let mut clients: Vec<Client> = (0..30).map(|_| proxy.connect()).collect();
        for client in &mut clients {
            client.start("BLPOP burst 0");
        }
        blocked(&proxy, 30);
        let values: Vec<String> = (0..30).map(|i| i.to_string()).collect();
        server.call(&format!("RPUSH burst {}", values.join(" ")));
        let mut got: Vec<i64> = clients
            .iter_mut()
            .map(|client| client.reply_within(Duration::from_secs(30)).items()[1].text().parse().unwrap())
            .collect();
        got.sort_unstable();
        assert_eq!(got, (0..30).collect::<Vec<_>>(), "{}", version.name);
    });
}

#[test]
fn a_paused_server_survives_and_answers_nobody_twice() {
    on_each(|version| {
        let server = Server::start_version(version, &[]);
        let proxy = Proxy::start(&server, &[]);
        let mut client = proxy.connect();
        client.start("BLPOP k 0.3");
        blocked(&proxy, 1);
        server.call("CLIENT PAUSE 600");
        assert!(client.reply().is_nil(), "{}", version.name);
        let mut pusher = Client::connect(server.address());
        pusher.call("RPUSH k a");
        client.expect_silence(Duration::from_millis(50));
        assert_eq!(client.call("BLPOP k 3").items()[1].text(), "a", "{}", version.name);
    });
}

#[test]
fn subscribers_hear_messages_and_are_counted() {
    on_each(|version| {
        let server = Server::start_version(version, &[]);
        let proxy = Proxy::start(&server, &[]);
        let mut clients: Vec<Client> = (0..5).map(|_| proxy.connect()).collect();
        clients[4].call("HELLO 3");
        for client in &mut clients {
            client.call("SUBSCRIBE c");
            client.call("UNSUBSCRIBE never");
        }
        assert_eq!(proxy.connect().call("PUBLISH c x").int(), 5, "{}", version.name);
        for client in &mut clients {
            assert_eq!(client.reply().items()[2].text(), "x");
        }
        assert_eq!(of_kind(&server, ":pubsub"), 1);
    });
}
