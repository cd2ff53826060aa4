//! Where a user's sessions use more databases and protocols than there are lanes, the lanes change their database and protocol.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Client, PATIENCE, Proxy, Relay, Server, Stage, encode};

/// Two lanes and no more: one control connection, two lanes, one hub each.
const TWO_LANES: &[&str] = &["pool.max_connections=5", "listen.workers=1"];
const PAIRS: usize = 30;

/// A client of a pair: databases 0 to 14, RESP2 and RESP3.
fn member(stage: &Stage, pair: usize) -> Client {
    try_member(stage, pair).unwrap()
}

fn try_member(stage: &Stage, pair: usize) -> Option<Client> {
    let mut client = stage.connect();
    if pair % 2 == 1 {
        client.start("HELLO 3");
        client.try_reply(PATIENCE).ok()?;
    }
    client.start(&format!("SELECT {}", pair / 2));
    let reply = client.try_reply(PATIENCE).ok()?;
    (reply.raw == "+OK\r\n").then_some(client)
}

/// Rounds of one command and 20 ms of thought for `span`: how many, and the longest wait for a reply.
fn rounds(client: &mut Client, pair: usize, span: Duration) -> (u32, Duration) {
    let (start, mut count, mut longest) = (Instant::now(), 0, Duration::ZERO);
    while start.elapsed() < span {
        let asked = Instant::now();
        client.call(&format!("INCR pair:{pair}"));
        longest = longest.max(asked.elapsed());
        count += 1;
        thread::sleep(Duration::from_millis(20));
    }
    (count, longest)
}

/// How many connections the server has accepted so far.
fn accepted(stage: &Stage) -> u64 {
    let info = stage.server.call("INFO stats").text();
    let line = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    line.unwrap().trim().parse().unwrap()
}

/// Each of these databases has the keys of its own two pairs.
fn assert_own_keys(stage: &Stage, databases: usize) {
    let mut server = Client::connect(stage.server.address());
    for database in 0..databases {
        server.call(&format!("SELECT {database}"));
        let mut keys: Vec<_> = server.call("KEYS *").items().iter().map(|key| key.text()).collect();
        keys.sort();
        let mut own = vec![format!("pair:{}", 2 * database), format!("pair:{}", 2 * database + 1)];
        own.sort();
        assert_eq!(keys, own);
    }
}

#[test]
fn thirty_pairs_share_two_lanes_evenly_without_a_dial() {
    let stage = Stage::proxied_with(TWO_LANES);
    let span = Duration::from_secs(3);
    let (alone, _) = rounds(&mut member(&stage, 0), 0, span);
    let clients: Vec<_> = (0..PAIRS).map(|pair| member(&stage, pair)).collect();
    let before = accepted(&stage);
    let barrier = Barrier::new(PAIRS);
    let results: Vec<_> = thread::scope(|scope| {
        let play = |(pair, mut client)| {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                rounds(&mut client, pair, span)
            })
        };
        let threads: Vec<_> = clients.into_iter().enumerate().map(play).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    println!("alone: {alone}; together: {results:?}");
    for (pair, (count, longest)) in results.iter().enumerate() {
        assert!(*count * 2 >= alone, "pair {pair}: {count} rounds, {alone} alone");
        assert!(*longest <= Duration::from_millis(300), "pair {pair}: {longest:?}");
    }
    assert_eq!(accepted(&stage), before, "a turn is no dial");
    assert_own_keys(&stage, PAIRS / 2);
}

/// A lane that never runs empty ends its turn, too.
#[test]
fn a_busy_database_leaves_others_their_turns() {
    let stage = Stage::proxied_with(TWO_LANES);
    let span = Duration::from_secs(2);
    let others: Vec<_> = (2..6).map(|pair| member(&stage, pair)).collect();
    let before = accepted(&stage);
    let longest = thread::scope(|scope| {
        for _ in 0..8 {
            let mut busy = stage.connect();
            scope.spawn(move || {
                let start = Instant::now();
                let command = encode(&["INCR", "busy"]);
                // Always two pipelines on their way.
                busy.send(command.repeat(50));
                while start.elapsed() < span {
                    busy.send(command.repeat(50));
                    (0..50).for_each(|_| drop(busy.reply()));
                }
                (0..50).for_each(|_| drop(busy.reply()));
            });
        }
        let play = |(number, mut client)| scope.spawn(move || rounds(&mut client, number, span).1);
        let threads: Vec<_> = others.into_iter().enumerate().map(play).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).max().unwrap()
    });
    assert!(longest <= Duration::from_millis(300), "{longest:?}");
    assert_eq!(accepted(&stage), before, "a turn is no dial");
}

/// A round trip takes longer than a lane is kept for sessions that do not use it.
#[test]
fn databases_take_turns_where_the_server_is_far_away() {
    let server = Server::start();
    let relay = Relay::to(server.address());
    let settings = ["pool.max_connections=4", "listen.workers=1", "pool.wait_timeout=5s"];
    let proxy = Proxy::launch(&format!("redis://{}", relay.address()), &settings).unwrap();
    relay.delay(Duration::from_millis(20));
    let barrier = Barrier::new(4);
    let counts: Vec<_> = thread::scope(|scope| {
        let play = |database| {
            let (barrier, mut client) = (&barrier, proxy.connect());
            scope.spawn(move || {
                barrier.wait();
                assert_eq!(client.call(&format!("SELECT {database}")).text(), "OK");
                let (start, mut count) = (Instant::now(), 0);
                while start.elapsed() < Duration::from_secs(3) {
                    count += 1;
                    assert_eq!(client.call("INCR count").int(), count);
                }
                count
            })
        };
        let threads: Vec<_> = (0..4).map(play).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // About a dozen; the bound is for a busy machine.
    assert!(counts.iter().all(|count| *count >= 3), "{counts:?}");
}

/// While a pause holds a write on one lane, the other one serves the reads of all databases in turn.
#[test]
fn beside_a_lane_that_is_held_the_other_serves_every_database() {
    let stage = Stage::proxied_with(TWO_LANES);
    let (pause, bound) = (Duration::from_secs(3), Duration::from_millis(600));
    let (mut writer, mut other) = (stage.connect(), member(&stage, 2));
    writer.call("SET k v");
    let readers: Vec<_> = (0..4).map(|_| stage.connect()).collect();
    stage.server.call(&format!("CLIENT PAUSE {} WRITE", pause.as_millis()));
    let start = Instant::now();
    writer.send(encode(&["SET", "k", "w"]));
    thread::sleep(Duration::from_millis(100));
    thread::scope(|scope| {
        for mut reader in readers {
            scope.spawn(move || {
                let command = encode(&["GET", "k"]);
                while start.elapsed() < pause - bound {
                    let asked = Instant::now();
                    reader.send(command.repeat(50));
                    (0..50).for_each(|_| assert_eq!(reader.reply().text(), "v"));
                    assert!(asked.elapsed() < bound, "database 0: {:?}", asked.elapsed());
                }
            });
        }
        while start.elapsed() < pause - bound {
            let asked = Instant::now();
            assert!(other.call("GET k").is_nil());
            assert!(asked.elapsed() < bound, "database 1: {:?}", asked.elapsed());
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(writer.reply().text(), "OK");
}

/// What a client counts in its own database is there and nowhere else, whatever ends the lanes meanwhile.
#[test]
fn no_key_lands_in_another_database_while_lanes_are_killed() {
    let stage = Stage::proxied_with(TWO_LANES);
    let end = Instant::now() + Duration::from_secs(3);
    thread::scope(|scope| {
        for pair in 0..12 {
            let stage = &stage;
            scope.spawn(move || {
                while Instant::now() < end {
                    let Some(mut client) = try_member(stage, pair) else { continue };
                    for round in 0.. {
                        client.send(encode(&["INCR", &format!("pair:{pair}")]).repeat(1 + round % 3));
                        let replies = (0..=round % 3).map(|_| client.try_reply(PATIENCE));
                        let are_numbers = replies.fold(true, |all, reply| {
                            all & reply.is_ok_and(|reply| reply.raw.starts_with(b":"))
                        });
                        if !are_numbers || Instant::now() > end {
                            break;
                        }
                    }
                }
            });
        }
        while Instant::now() < end {
            stage.server.call("CLIENT KILL TYPE normal SKIPME yes");
            thread::sleep(Duration::from_millis(60));
        }
    });
    assert_own_keys(&stage, 6);
}

/// A SELECT that is refused when a lane comes to change its database: those who wait hear the server's words, and none of
/// their commands runs in the database that the lane has.
#[test]
fn behind_a_refused_select_no_command_runs() {
    let stage = Stage::proxied_with(TWO_LANES);
    stage.server.call("ACL SETUSER limited on >secret ~* +@all");
    let login = |database: &str| {
        let mut client = stage.connect();
        assert_eq!(client.call("AUTH limited secret").text(), "OK");
        assert_eq!(client.call(&format!("SELECT {database}")).text(), "OK");
        assert_eq!(client.call(&format!("SET in {database}")).text(), "OK");
        client
    };
    let mut clients: Vec<_> = ["0", "1", "2", "3"].iter().map(|database| login(database)).collect();
    stage.server.call("ACL SETUSER limited -select");
    let mut refused = 0;
    for (database, client) in clients.iter_mut().enumerate() {
        for _ in 0..3 {
            client.send(encode(&["SET", &format!("from:{database}"), "here"]));
            // A lane that has the database may be left: its clients are served.
            match client.try_reply(PATIENCE) {
                Ok(reply) if reply.is_error() => {
                    assert!(reply.error().contains("NOPERM"), "{reply:?}");
                    refused += 1;
                }
                Ok(reply) => assert_eq!(reply.text(), "OK"),
                Err(_) => break,
            }
        }
    }
    assert!(refused > 0, "two lanes are not in four databases");
    let mut server = Client::connect(stage.server.address());
    for database in 0..4 {
        server.call(&format!("SELECT {database}"));
        for key in server.call("KEYS from:*").items() {
            assert_eq!(key.text(), format!("from:{database}"), "in database {database}");
        }
    }
}
