//! Blocking calls of clients that hold a connection: they wait beside it, can be unblocked, and the connection keeps
//! what it holds. Each scenario plays directly, in the hub, without a hub, and where only tries are left.

use crate::harness::{Client, PATIENCE, Reply, Row, Server, Stage, Value, Version, until};

/// The server itself, and every way in which a call may wait.
fn stages() -> Vec<Stage> {
    let mut all = vec![Stage::direct(), Stage::proxied(), Stage::proxied_with(&["blocking.hub=false"])];
    // Two leases: the scenario's client holds one, the first case of each takes the other.
    all.push(Stage::proxied_with(&["blocking.hub=false", "pool.max_connections=4"]));
    all
}

fn row(asking: &mut Client, id: i64) -> Row {
    Row::parse(asking.call(&format!("CLIENT LIST ID {id}")).text().trim_start_matches("txt:").trim())
}

/// Starts a call, and returns when it waits.
fn blocks(client: &mut Client, id: i64, asking: &mut Client, call: &str) {
    client.start(call);
    until("it waits", PATIENCE, || row(asking, id).get("flags").contains('b'));
}

/// The next reply that is no push, and the pushes before it.
fn answer(client: &mut Client) -> (Reply, Vec<String>) {
    let mut pushes = Vec::new();
    loop {
        let reply = client.reply();
        match &reply.value {
            Value::Push(items) => pushes.push(format!("{items:?}")),
            _ => return (reply, pushes),
        }
    }
}

fn asked(client: &mut Client, command: &str) -> Reply {
    client.start(command);
    answer(client).0
}

const CALLS: [&str; 6] = [
    "BLPOP jobs 0",
    "BLMOVE jobs done LEFT RIGHT 0",
    "BZPOPMIN ranks 0",
    "BLMPOP 0 2 jobs more LEFT",
    "XREAD BLOCK 0 STREAMS log $",
    "XREADGROUP GROUP g c BLOCK 0 STREAMS groups >",
];

#[test]
fn a_call_beside_a_held_connection_can_be_unblocked_and_loses_nothing() {
    let situations: [&[&str]; 4] =
        [&[], &["WATCH k"], &["CLIENT TRACKING ON"], &["WATCH k", "CLIENT TRACKING ON BCAST"]];
    for (way, stage) in stages().iter().enumerate() {
        let mut other = stage.connect();
        other.call("XGROUP CREATE groups g $ MKSTREAM");
        for held in situations {
            let mut client = stage.connect_resp3();
            let id = client.call("CLIENT ID").int();
            for command in held {
                assert_eq!(client.call(command).text(), "OK");
            }
            for call in CALLS {
                for (how, error) in [("", false), (" TIMEOUT", false), (" ERROR", true)] {
                    let what = format!("{way} {held:?} {call}{how}");
                    blocks(&mut client, id, &mut other, call);
                    assert_eq!(other.call(&format!("CLIENT UNBLOCK {id}{how}")).int(), 1, "{what}");
                    let (reply, _) = answer(&mut client);
                    match error {
                        true => {
                            assert_eq!(
                                reply.error(),
                                "UNBLOCKED client unblocked via CLIENT UNBLOCK",
                                "{what}"
                            );
                        }
                        false => assert_eq!(reply.raw, &b"_\r\n"[..], "{what}"),
                    }
                    assert_eq!(
                        other.call(&format!("CLIENT UNBLOCK {id}")).int(),
                        0,
                        "{what}: not blocked now"
                    );
                }
            }
            // Nobody waits any more: what comes now stays.
            other.call("RPUSH jobs a");
            assert_eq!(asked(&mut client, "LPOP jobs").text(), "a");
            // And a call that is answered is answered as ever.
            blocks(&mut client, id, &mut other, "BLPOP jobs 0");
            other.call("RPUSH jobs b");
            assert_eq!(answer(&mut client).0.items()[1].text(), "b");
            assert_eq!(asked(&mut client, "BLPOP jobs 0.05").raw, &b"_\r\n"[..]);
        }
    }
}

#[test]
fn a_watch_outlives_the_calls_that_block_meanwhile() {
    for stage in stages() {
        let mut other = stage.connect();
        let mut client = stage.connect();
        let id = client.call("CLIENT ID").int();
        // Nobody touches the key.
        client.call("WATCH k");
        blocks(&mut client, id, &mut other, "BLPOP jobs 0");
        assert_eq!(row(&mut other, id).get("flags"), "b");
        other.call(&format!("CLIENT UNBLOCK {id}"));
        assert!(client.reply().is_nil());
        assert_eq!(transaction(&mut client), "List([Simple(\"OK\")])");
        // Another touches it while the call waits.
        client.call("WATCH k");
        blocks(&mut client, id, &mut other, "BLPOP jobs 0");
        other.call("SET k 1");
        other.call(&format!("CLIENT UNBLOCK {id} ERROR"));
        assert!(client.reply().is_error());
        assert_eq!(transaction(&mut client), "Nil");
        // The call itself takes from the key that is watched.
        client.call("WATCH jobs");
        blocks(&mut client, id, &mut other, "BLPOP jobs 0");
        other.call("RPUSH jobs a");
        assert_eq!(client.reply().items()[1].text(), "a");
        assert_eq!(transaction(&mut client), "Nil");
        // There is an element already, and the key is another one.
        client.call("RPUSH jobs b");
        client.call("WATCH k");
        assert_eq!(client.call("BLPOP jobs 0").items()[1].text(), "b");
        assert_eq!(transaction(&mut client), "List([Simple(\"OK\")])");
        // It waits for what it has written itself, over the connection that it holds.
        client.call("WATCH k");
        assert_eq!(client.call("BLPOP jobs 0.05").raw, &b"*-1\r\n"[..]);
        client.call("RPUSH jobs c");
        assert_eq!(client.call("BLPOP jobs 0.01").items()[1].text(), "c");
        client.call("UNWATCH");
    }
}

fn transaction(client: &mut Client) -> String {
    for command in ["MULTI", "SET own 1"] {
        client.call(command);
    }
    format!("{:?}", client.call("EXEC").value)
}

#[test]
fn invalidations_come_while_a_call_waits_and_after_it() {
    for stage in stages() {
        let mut other = stage.connect();
        let mut client = stage.connect_resp3();
        let id = client.call("CLIENT ID").int();
        client.call("CLIENT TRACKING ON");
        client.call("GET k");
        blocks(&mut client, id, &mut other, "BLPOP jobs 0");
        other.call("SET k 1");
        // At once: the call still waits. It is told of all keys where its lane had to be given to others.
        let push = client.reply();
        let what = format!("{:?}", push.items());
        assert!(push.is_push() && (what.contains("List") || what.contains("Nil")), "{push:?}");
        other.call("RPUSH jobs a");
        assert_eq!(answer(&mut client).0.items()[1].text(), "a");
        assert_eq!(asked(&mut client, "GET k").text(), "1");
        other.call("SET k 2");
        until("it is told again", PATIENCE, || client.reply().is_push());
        // What it may have kept of a stream is stale with the next entry.
        blocks(&mut client, id, &mut other, "XREAD BLOCK 0 STREAMS log 0");
        other.call("XADD log 1-1 f v");
        let (entries, mut pushes) = answer(&mut client);
        assert!(format!("{entries:?}").contains("1-1"));
        other.call("XADD log 2-1 f v");
        client.start("PING");
        until("it is told of the stream", PATIENCE, || {
            let reply = client.reply();
            pushes.extend(reply.is_push().then(|| format!("{:?}", reply.items())));
            pushes.iter().any(|push| push.contains(&format!("{:?}", Value::Bulk(b"log".to_vec()))))
        });
    }
}

#[test]
fn caching_is_still_about_the_next_command() {
    for version in Version::all() {
        let direct = Stage::before_none(Server::start_version(&version, &[]));
        let proxied = Stage::before(Server::start_version(&version, &[]), &[]);
        for stage in [direct, proxied] {
            let mut other = stage.connect();
            let mut client = stage.connect_resp3();
            client.call("CLIENT TRACKING ON OPTIN");
            assert_eq!(client.call("CLIENT CACHING YES").text(), "OK");
            assert_eq!(client.call("BLPOP jobs 0.05").raw, &b"_\r\n"[..]);
            // Not marked for caching, so nobody is told.
            client.call("GET k");
            other.call("SET k 1");
            client.call("CLIENT CACHING YES");
            client.call("GET k");
            other.call("SET k 2");
            let (told, pushes) = (client.reply(), asked(&mut client, "PING"));
            assert!(told.is_push() && pushes.text() == "PONG", "{}: {told:?} {pushes:?}", version.name);
        }
    }
}

#[test]
fn who_is_gone_while_a_call_waits_beside_its_connection_takes_nothing() {
    for stage in stages() {
        for leave in [Client::reset, |client: Client| drop(client)] {
            let mut other = stage.connect();
            let mut client = stage.connect();
            let id = client.call("CLIENT ID").int();
            client.call("WATCH k");
            blocks(&mut client, id, &mut other, "BLPOP jobs 0");
            leave(client);
            until("it is gone", PATIENCE, || other.call(&format!("CLIENT LIST ID {id}")).text().is_empty());
            other.call("RPUSH jobs a");
            assert_eq!(other.call("LPOP jobs").text(), "a");
            until("its connection is closed", PATIENCE, || {
                stage.server.rows().iter().all(|row| row.get("flags") != "x" && row.get("watch") != "1")
            });
        }
    }
}

#[test]
fn a_lost_connection_closes_the_client_whose_call_waits_beside_it() {
    let stage = Stage::proxied();
    let mut other = stage.connect();
    let mut client = stage.connect();
    let id = client.call("CLIENT ID").int();
    client.call("WATCH k");
    blocks(&mut client, id, &mut other, "BLPOP jobs 0");
    let leased = stage.server.rows().into_iter().find(|row| row.get("name").ends_with(":leased")).unwrap();
    stage.server.call(&format!("CLIENT KILL ID {}", leased.get("id")));
    client.expect_end(PATIENCE);
    other.call("RPUSH jobs a");
    assert_eq!(other.call("LPOP jobs").text(), "a", "nobody waits for it");
}
