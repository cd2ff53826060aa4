//! Several workers under a small cap: each database is served by as many workers as there are lanes for, and clients go there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use crate::harness::{Client, Stage, encode, until};

const DATABASES: usize = 3;
const CLIENTS: usize = 24;
/// A machine that is shared may be slow.
const SETTLED: Duration = Duration::from_secs(30);

/// Of the default cap two workers have three lanes: control takes one connection, and hubs four.
fn workers(count: usize) -> Stage {
    Stage::proxied_with(&[&format!("listen.workers={count}"), "pool.max_connections=8"])
}

/// A client of database `number` modulo three, with a name.
fn member(stage: &Stage, number: usize) -> Client {
    let mut client = stage.connect();
    client.call(&format!("CLIENT SETNAME member-{number}"));
    client.call(&format!("SELECT {}", number % DATABASES));
    client
}

fn moves(stage: &Stage) -> f64 {
    stage.proxy().metrics()["redbouncer_client_moves_total"]
}

fn counted(stage: &Stage, field: &str) -> u64 {
    stage.server.info(field).parse().unwrap()
}

/// What the proxy lists of its clients: by id, without what changes with time.
fn listed(operator: &mut Client) -> BTreeMap<String, String> {
    let list = operator.call("CLIENT LIST").text();
    let mut rows = BTreeMap::new();
    for line in list.lines().filter(|line| line.contains("name=member-")) {
        let lasting = ["id=", "addr=", "name=", "db=", "user=", "resp=", "lib-name=", "lib-ver="];
        let fields: Vec<_> =
            line.split(' ').filter(|field| lasting.iter().any(|name| field.starts_with(name))).collect();
        let id = fields[0].to_owned();
        assert!(rows.insert(id, fields.join(" ")).is_none(), "listed twice: {line}");
    }
    rows
}

/// `SELECT` commands and new connections on the server during 4,000 commands of clients that have found their workers.
fn selects_and_dials_of_4000_commands(stage: &Stage) -> (u64, u64) {
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (mut client, end) = (member(stage, number), &end);
            scope.spawn(move || {
                let key = format!("INCR count:{number}");
                for expected in 1.. {
                    assert_eq!(client.call(&key).int(), expected, "member {number}");
                    if end.load(SeqCst) {
                        break;
                    }
                }
                assert_eq!(client.call("CLIENT GETNAME").text(), format!("member-{number}"));
            });
        }
        let mut operator = stage.connect();
        let mut span = |commands: u64| {
            let now = || {
                [
                    counted(stage, "total_commands_processed"),
                    stage.server.calls_of("select"),
                    counted(stage, "total_connections_received"),
                ]
            };
            let before = now();
            until("commands are run", SETTLED, || now()[0] >= before[0] + commands);
            let after = now();
            assert_eq!(listed(&mut operator).len(), CLIENTS, "each is listed once, wherever it is");
            (after[1] - before[1], after[2] - before[2])
        };
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // On a busy machine the last client goes late.
            let mut last = span(1000);
            until("lanes change their databases no more", SETTLED, || {
                last = span(4000);
                last == (0, 0)
            });
            last
        }));
        end.store(true, SeqCst);
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn two_workers_change_databases_of_lanes_no_more_often_than_one() {
    let two = workers(2);
    assert_eq!(selects_and_dials_of_4000_commands(&two), (0, 0));
    assert!(moves(&two) > 0.0, "clients went where the lanes are");
    assert!(
        two.proxy()
            .log()
            .contains("too small for every worker to have a lane for each user, database and RESP version")
    );
    let one = workers(1);
    assert_eq!(selects_and_dials_of_4000_commands(&one), (0, 0));
    assert!(moves(&one) == 0.0);
}

#[test]
fn with_lanes_enough_for_every_worker_no_client_goes_elsewhere() {
    let stage = Stage::proxied_with(&["listen.workers=2", "pool.max_connections=14"]);
    assert_eq!(selects_and_dials_of_4000_commands(&stage), (0, 0));
    assert!(moves(&stage) == 0.0);
    assert!(!stage.proxy().log().contains("for every worker to have a lane"));
}

/// Its id, name, library, database and protocol, and the part of a command that it has sent.
#[test]
fn a_client_that_goes_to_another_worker_keeps_all_that_it_has_set() {
    let stage = workers(2);
    let mut operator = stage.connect();
    let mut clients: Vec<_> = (0..12).map(|number| member(&stage, number)).collect();
    let mut before = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for (number, client) in clients.iter_mut().enumerate() {
        // Clients come to the workers in turn: number and number + 3 are on different ones, and have the same key.
        if number >= 6 {
            client.call("HELLO 3");
        }
        client.call("CLIENT SETINFO LIB-NAME workers");
        ids.insert(client.call("CLIENT ID").int());
        // The key of its lane is in use from here on, and the next command has begun.
        assert_eq!(client.call(&format!("INCR own:{number}")).int(), 1);
        let (first, _) = halves(number);
        client.send(first);
        before = listed(&mut operator);
    }
    until("clients have moved", SETTLED, || moves(&stage) > 0.0);
    // All that can go have gone when nobody has for a while.
    let mut last = -1.0;
    until("clients are where they belong", SETTLED, || {
        let span = counted(&stage, "total_commands_processed");
        until("some time passes", SETTLED, || {
            stage.server.call("PING");
            counted(&stage, "total_commands_processed") > span + 500
        });
        std::mem::replace(&mut last, moves(&stage)) == last
    });
    assert_eq!(listed(&mut operator), before);
    for (number, client) in clients.iter_mut().enumerate() {
        let (_, rest) = halves(number);
        client.send(rest);
        assert_eq!(client.reply().int(), 2, "member {number}");
        assert!(ids.remove(&client.call("CLIENT ID").int()));
        assert_eq!(client.call(&format!("INCR own:{number}")).int(), 3);
    }
    let mut server = Client::connect(stage.server.address());
    for database in 0..DATABASES {
        server.call(&format!("SELECT {database}"));
        let mut keys: Vec<_> = server.call("KEYS own:*").items().iter().map(|key| key.text()).collect();
        keys.sort();
        let mut own: Vec<_> = (0..12)
            .filter(|number| number % DATABASES == database)
            .map(|number| format!("own:{number}"))
            .collect();
        own.sort();
        assert_eq!(keys, own, "in database {database}");
    }
}

/// The second command of a member, cut in the middle.
fn halves(number: usize) -> (Vec<u8>, Vec<u8>) {
    let mut command = encode(&["INCR", &format!("own:{number}")]);
    let rest = command.split_off(command.len() / 2);
    (command, rest)
}

/// Kills by id find a client wherever it is, while clients change their workers.
#[test]
fn a_kill_meets_a_client_that_changes_its_worker() {
    let stage = workers(2);
    let mut operator = stage.connect();
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        // Databases come and go, so that the others' homes change.
        let (stage, end) = (&stage, &end);
        scope.spawn(move || {
            for round in 0.. {
                if end.load(SeqCst) {
                    break;
                }
                let mut passing: Vec<_> = (0..4).map(|number| member(stage, number + round)).collect();
                passing.iter_mut().for_each(|client| drop(client.call("INCR passing")));
            }
        });
        for round in 0..60 {
            let mut clients: Vec<_> = (0..6).map(|number| member(stage, number)).collect();
            clients.iter_mut().for_each(|client| drop(client.call("INCR staying")));
            let ids: Vec<_> = clients.iter_mut().map(|client| client.call("CLIENT ID").int()).collect();
            for id in ids {
                assert_eq!(operator.call(&format!("CLIENT KILL ID {id}")).int(), 1, "round {round}");
            }
        }
        end.store(true, SeqCst);
    });
}
