//! CLIENT TRACKING ON BCAST: clients share a lane, for which the server is asked for the prefixes of all of them.

use std::time::Duration;

use crate::harness::{Client, PATIENCE, Reply, Server, Stage, Version, until};

/// The keys that pushes name, until a PING is answered, each push by itself.
fn news(client: &mut Client) -> Vec<String> {
    client.start("PING");
    let mut found = Vec::new();
    loop {
        let reply = client.reply();
        if reply.raw == "+PONG\r\n" {
            return found;
        }
        found.push(words(&reply));
    }
}

/// `invalidate` and the keys of one push; `*` for all of them.
fn words(push: &Reply) -> String {
    let text = String::from_utf8_lossy(&push.raw).into_owned();
    assert!(text.starts_with(">2\r\n$10\r\ninvalidate\r\n"), "{text:?}");
    if text.ends_with("_\r\n") {
        return "*".to_owned();
    }
    let keys: Vec<_> =
        text.split("\r\n").skip(4).filter(|word| !word.starts_with('$') && !word.is_empty()).collect();
    keys.join(" ")
}

fn tracking(stage: &Stage, options: &str) -> Client {
    let mut client = stage.connect_resp3();
    assert_eq!(client.call(format!("CLIENT TRACKING ON BCAST {options}").trim_end()).text(), "OK");
    client
}

fn lanes(stage: &Stage) -> Vec<String> {
    let rows = stage.server.rows();
    rows.iter().filter(|row| row.get("flags").contains('B')).map(|row| row.get("id").to_owned()).collect()
}

/// Prefixes that a client asks for, from the first to the last.
const OPTIONS: [&str; 5] = [
    "PREFIX user:1",
    "PREFIX job: PREFIX user:12",
    "PREFIX user: PREFIX session:",
    "",
    "PREFIX nobody NOLOOP",
];

#[test]
fn forty_clients_cost_one_connection_and_hear_what_they_would_hear_directly() {
    for version in Version::all().into_iter().filter(Version::has_hub) {
        println!("--- {}", version.name);
        let start = || Server::start_version(&version, &[]);
        let stages = [Stage::before_none(start()), Stage::before(start(), &["pool.max_connections=6"])];
        let [direct, proxied] = stages.each_ref().map(|stage| {
            let mut clients: Vec<_> = (0..40).map(|at| tracking(stage, OPTIONS[at % 5])).collect();
            // The prefixes of some are asked for in the place of longer ones; those who had them forget what they know.
            clients.iter_mut().for_each(|client| drop(news(client)));
            let mut heard = Vec::new();
            for write in
                ["SET user:1 a", "SET user:12 a", "MSET job:1 a user:3 a other a", "DEL nothing", "FLUSHALL"]
            {
                stage.server.call(write);
                // What a write tells comes behind it, over one connection.
                until("the last is told", PATIENCE, || {
                    write.starts_with("DEL") || {
                        heard.push((write, news(&mut clients[3])));
                        heard.last().is_some_and(|(_, news)| !news.is_empty())
                    }
                });
                heard.retain(|(_, news)| !news.is_empty());
                for (at, client) in clients.iter_mut().enumerate().filter(|(at, _)| *at != 3) {
                    heard.push((OPTIONS[at % 5], news(client)));
                }
            }
            if stage.is_proxied() {
                assert_eq!(lanes(stage).len(), 1);
            }
            heard
        });
        assert_eq!(proxied, direct);
    }
}

#[test]
fn who_only_listens_goes_on_when_the_lane_is_lost() {
    let stage = Stage::proxied();
    let mut clients = [tracking(&stage, "PREFIX a PREFIX b"), tracking(&stage, "")];
    let first = lanes(&stage);
    stage.server.call(&format!("CLIENT KILL ID {}", first[0]));
    for client in &mut clients {
        assert_eq!(words(&client.reply_within(PATIENCE)), "*");
    }
    until("there is another lane", PATIENCE, || lanes(&stage).first().is_some_and(|lane| *lane != first[0]));
    // What has changed until both are told again they learn with everything else.
    for client in &mut clients {
        until("it is told", PATIENCE, || {
            stage.server.call("SET a1 x");
            words(&client.reply_within(PATIENCE)) == "a1"
        });
    }
}

#[test]
fn who_only_listens_is_closed_where_there_is_no_server_any_more() {
    let stage = Stage::proxied_with(&["pool.wait_timeout=300ms"]);
    let mut client = tracking(&stage, "");
    let (server, _proxy) = stage.into_parts();
    drop(server);
    assert_eq!(words(&client.reply_within(PATIENCE)), "*");
    client.expect_end(PATIENCE);
}

#[test]
fn what_has_ended_is_told_no_more() {
    let stage = Stage::proxied();
    let mut other = tracking(&stage, "");
    for end in ["CLIENT TRACKING OFF", "RESET"] {
        let mut client = tracking(&stage, "PREFIX a");
        client.call(end);
        client.call("HELLO 3");
        assert_eq!(client.call("CLIENT TRACKING ON").text(), "OK");
        news(&mut client);
        stage.server.call("SET a1 x");
        assert_eq!(words(&other.reply_within(PATIENCE)), "a1");
        assert_eq!(news(&mut client), Vec::<String>::new(), "{end}");
        client.call("GET b");
        stage.server.call("SET b x");
        assert_eq!(words(&other.reply_within(PATIENCE)), "b");
        assert_eq!(news(&mut client), ["b"], "{end}");
    }
}

#[test]
fn more_prefixes_may_be_asked_for_and_a_refusal_is_the_servers() {
    let stage = Stage::proxied_secured();
    stage.server.call("ACL SETUSER alice on >secret ~* &* +@all -client|tracking");
    let mut refused = stage.connect();
    assert!(!refused.call("HELLO 3 AUTH alice secret").is_error());
    assert!(refused.call("CLIENT TRACKING ON BCAST PREFIX a").error().starts_with("NOPERM"));
    assert_eq!(refused.call("PING").text(), "PONG");
    let mut client = stage.connect();
    assert!(!client.call("HELLO 3 AUTH default sesame").is_error());
    for (prefix, reply) in [
        ("a", "+OK\r\n"),
        ("b", "+OK\r\n"),
        (
            "ab",
            "-ERR Prefix 'ab' overlaps with an existing prefix 'a'. Prefixes for a single client must not overlap.\r\n",
        ),
    ] {
        assert_eq!(client.call(&format!("CLIENT TRACKING ON BCAST PREFIX {prefix}")).raw, reply);
    }
    for key in ["a1", "b1"] {
        stage.server.call(&format!("SET {key} x"));
        assert_eq!(words(&client.reply_within(PATIENCE)), key);
    }
    client.expect_silence(Duration::from_millis(30));
}

#[test]
fn what_is_read_on_a_lease_is_not_kept() {
    let stage = Stage::proxied();
    let mut client = tracking(&stage, "PREFIX a");
    client.call("WATCH w");
    client.call("MGET a1 b1");
    assert_eq!(words(&client.reply_within(PATIENCE)), "a1");
    assert_eq!(client.call("UNWATCH").text(), "OK");
}
