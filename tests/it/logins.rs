//! `auth.mode = "passthrough"`: the server judges every login, nobody gets another's connection, and who is no longer
//! let in loses what it has.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{
    Client, Ended, PATIENCE, Relay, Sampler, Server, Stage, Version, long, throughout, until,
};

const PASSTHROUGH: &str = "auth.mode=passthrough";
const WRONG: &str = "WRONGPASS invalid username-password pair or user is disabled.";

/// A server that wants a password, with users of their own.
fn secured(version: &Version) -> Server {
    let server = Server::start_version(version, &["--requirepass", "sesame"]);
    for user in ["alice", "bob"] {
        server.call(&format!("ACL SETUSER {user} on >{user}-secret ~{user}:* ~shared &* +@all"));
    }
    server
}

fn stage(settings: &[&str]) -> Stage {
    Stage::before(secured(&Version::usual()), &[&[PASSTHROUGH], settings].concat())
}

#[track_caller]
fn login(stage: &Stage, user: &str) -> Client {
    let mut client = stage.connect();
    assert_eq!(client.call(&format!("AUTH {user} {user}-secret")).text(), "OK");
    client
}

/// Connections on the server that are logged in as `user`.
fn connections(server: &Server, user: &str) -> usize {
    server.rows().iter().filter(|row| row.get("user") == user).count()
}

#[test]
fn everybody_is_who_they_are_on_every_server() {
    for version in Version::all() {
        let stage = Stage::before(secured(&version), &[PASSTHROUGH]);
        let (mut alice, mut bob) = (login(&stage, "alice"), login(&stage, "bob"));
        for (client, name, other) in [(&mut alice, "alice", "bob"), (&mut bob, "bob", "alice")] {
            assert_eq!(client.call("ACL WHOAMI").text(), name, "{version:?}");
            assert_eq!(client.call(&format!("SET {name}:k v")).text(), "OK");
            assert!(client.call(&format!("SET {other}:k v")).error().starts_with("NOPERM"), "{version:?}");
            assert_eq!(connections(&stage.server, name), 1, "{version:?}");
        }
        // The same client as somebody else, over the other's lane from then on.
        assert_eq!(
            alice.call("HELLO 3 AUTH bob bob-secret").field("proto").map(|v| v.text()),
            Some("3".into())
        );
        assert_eq!(alice.call("ACL WHOAMI").text(), "bob");
        assert!(alice.call("GET alice:k").error().starts_with("NOPERM"));
        assert_eq!(alice.call("AUTH alice wrong").error(), WRONG);
        assert_eq!(alice.call("ACL WHOAMI").text(), "bob", "a failed login changes nothing");
        assert_eq!(alice.call("RESET").text(), "RESET");
        assert_eq!(alice.call("GET shared").error(), "NOAUTH Authentication required.");
    }
}

#[test]
fn listings_show_who_is_who() {
    let stage = stage(&[]);
    let (_alice, mut bob) = (login(&stage, "alice"), login(&stage, "bob"));
    let list = bob.call("CLIENT LIST").text();
    assert!(list.contains("user=alice") && list.contains("user=bob"), "{list}");
    let status = stage.proxy().status();
    let users = status["users"].as_array().unwrap();
    for name in ["alice", "bob"] {
        let row = users.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("{name}: {users:?}"));
        assert_eq!(row["clients"], 1, "{row}");
        assert!(row["connections"].as_u64().unwrap() >= 1, "{row}");
    }
    until("the metrics show it too", PATIENCE, || {
        let metrics = stage.proxy().metrics();
        metrics.get("redbouncer_user_clients{user=\"alice\"}") == Some(&1.0)
            && metrics.get("redbouncer_logins_total{outcome=\"verified\"}") == Some(&2.0)
    });
}

#[test]
fn a_thousand_clients_of_one_user_cost_the_server_one_login() {
    let stage = stage(&[]);
    let _warm = stage.connect();
    let before: u64 = stage.server.info("total_connections_received").parse().unwrap();
    let count = if long() { 1_000 } else { 200 };
    let barrier = Barrier::new(8);
    let address = stage.address();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut clients: Vec<Client> = (0..count / 8).map(|_| Client::connect(address)).collect();
                barrier.wait();
                for client in &mut clients {
                    client.start("AUTH alice alice-secret");
                }
                for client in &mut clients {
                    assert_eq!(client.reply().text(), "OK");
                    assert_eq!(client.call("ACL WHOAMI").text(), "alice");
                }
            });
        }
    });
    let after: u64 = stage.server.info("total_connections_received").parse().unwrap();
    // One lane, perhaps a second one because the first was slow.
    assert!(after - before <= 2, "{} connections for one user's logins", after - before);
}

#[test]
fn who_is_no_longer_let_in_loses_what_it_has() {
    for change in [
        "ACL DELUSER alice",
        "ACL SETUSER alice off",
        "ACL SETUSER alice resetpass",
        "ACL SETUSER alice resetpass >new",
    ] {
        let stage = stage(&["auth.cache_ttl=1s"]);
        let mut bob = login(&stage, "bob");
        let mut plain = login(&stage, "alice");
        assert!(!plain.call("GET alice:k").is_error());
        let mut watching = login(&stage, "alice");
        assert_eq!(watching.call("WATCH alice:k").text(), "OK");
        let mut listening = login(&stage, "alice");
        listening.call("SUBSCRIBE news");
        let mut blocked = login(&stage, "alice");
        blocked.start("BLPOP alice:list 0");
        until("alice has a lane, a lease and hubs", PATIENCE, || connections(&stage.server, "alice") >= 4);
        stage.server.call(change);
        let begin = Instant::now();
        for client in [&mut plain, &mut watching, &mut listening, &mut blocked] {
            let (_, ended) = client.read_to_end(Duration::from_secs(6));
            assert_ne!(ended, Ended::Late, "{change}: still connected");
        }
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(4), "{change}: {took:?}");
        until("nothing of hers is on the server", PATIENCE, || connections(&stage.server, "alice") == 0);
        assert_eq!(stage.connect().call("AUTH alice alice-secret").error(), WRONG, "{change}");
        assert_eq!(bob.call("ACL WHOAMI").text(), "bob");
        until("it is told", PATIENCE, || stage.proxy().log().contains("a user is no longer accepted"));
        let metrics = stage.proxy().counted();
        assert!(metrics.keys().any(|series| series.contains("login_revoked")), "{change}: {metrics:?}");
    }
}

#[test]
fn a_user_whose_password_still_works_stays() {
    // `nopass` lets in whoever comes, so the one who has a password too.
    let stage = stage(&["auth.cache_ttl=1s"]);
    let mut alice = login(&stage, "alice");
    stage.server.call("ACL SETUSER alice nopass");
    throughout("alice stays", Duration::from_secs(4), || {
        thread::sleep(Duration::from_millis(50));
        alice.call("ACL WHOAMI").text() == "alice"
    });
    until("she was looked at again", PATIENCE, || {
        stage.proxy().counted().keys().any(|series| series.contains("login_checked"))
    });
    assert!(stage.server.clients() <= 8);
}

#[test]
fn a_live_user_costs_one_login_in_the_ttl() {
    let stage = stage(&["auth.cache_ttl=2s", "hygiene.reap=false"]);
    let mut clients: Vec<Client> = (0..20).map(|_| login(&stage, "alice")).collect();
    clients[0].call("GET alice:k");
    let before: u64 = stage.server.info("total_connections_received").parse().unwrap();
    let begin = Instant::now();
    throughout("nobody is disturbed", Duration::from_secs(6), || {
        thread::sleep(Duration::from_millis(100));
        clients.iter_mut().all(|client| client.call("PING").text() == "PONG")
    });
    let after: u64 = stage.server.info("total_connections_received").parse().unwrap();
    let due = begin.elapsed().as_millis() / 1_500 + 1;
    assert!((2..=due).contains(&u128::from(after - before)), "{} logins", after - before);
}

#[test]
fn a_network_that_fails_throws_nobody_out() {
    let server = secured(&Version::usual());
    let relay = Relay::to(server.address());
    let settings = ["auth.cache_ttl=1s", PASSTHROUGH, "upstream.connect_timeout=500ms"];
    let proxy = crate::harness::Proxy::launch(&format!("redis://{}", relay.address()), &settings).unwrap();
    let mut alice = proxy.connect();
    assert_eq!(alice.call("AUTH alice alice-secret").text(), "OK");
    relay.refuse();
    relay.cut();
    alice.expect_silence(Duration::from_secs(3));
    relay.freeze();
    alice.expect_silence(Duration::from_secs(3));
    relay.pass();
    until("the server is there again", PATIENCE, || alice.call("ACL WHOAMI").text() == "alice");
    assert!(!proxy.log().contains("login_revoked"));
}

#[test]
fn a_password_is_not_kept_for_those_who_have_left() {
    let stage = stage(&["auth.cache_ttl=1s"]);
    drop(login(&stage, "alice"));
    until("her lane is closed", PATIENCE, || connections(&stage.server, "alice") == 0);
    let logins = || stage.server.info("total_connections_received").parse::<u64>().unwrap();
    let before = logins();
    // Nobody can be logged in as who is not there: she is not looked at again.
    thread::sleep(Duration::from_secs(3));
    assert!(logins() - before <= 1, "{} logins for nobody", logins() - before);
    // What is remembered is no secret, and too old by now: the next login is asked for.
    stage.server.call("ACL SETUSER alice resetpass >other");
    assert_eq!(stage.connect().call("AUTH alice alice-secret").error(), WRONG);
}

/// How long each of a steady client's commands takes until `stop`.
fn latencies(mut client: Client, stop: &AtomicBool) -> Vec<Duration> {
    let mut all = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        assert_eq!(client.call("PING").text(), "PONG");
        all.push(begin.elapsed());
        thread::sleep(Duration::from_millis(1));
    }
    all.sort();
    all
}

#[test]
fn a_thousand_failing_logins_a_second_disturb_nobody() {
    let stage = stage(&[]);
    let span = Duration::from_secs(if long() { 20 } else { 3 });
    let (address, stop, sent) = (stage.address(), AtomicBool::new(false), AtomicUsize::new(0));
    let answers = Mutex::new(std::collections::BTreeMap::<String, usize>::new());
    let steady = login(&stage, "bob");
    let quiet = {
        let (client, stop) = (login(&stage, "bob"), Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&stop);
        let measured = thread::spawn(move || latencies(client, &flag));
        thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        measured.join().unwrap()
    };
    let before: u64 = stage.server.info("total_connections_received").parse().unwrap();
    let sampler = Sampler::start(&stage.server);
    let begin = Instant::now();
    let disturbed = thread::scope(|scope| {
        let measured = scope.spawn(|| latencies(steady, &stop));
        for worker in 0..4 {
            let (stop, sent, answers) = (&stop, &sent, &answers);
            scope.spawn(move || {
                let mut client = Client::connect(address);
                while !stop.load(Ordering::Relaxed) {
                    let number = sent.fetch_add(1, Ordering::Relaxed);
                    // Every third from a connection of its own, each with a secret of its own.
                    if number % 3 == 0 {
                        client = Client::connect(address);
                    }
                    let user = if number % 2 == 0 { "alice" } else { "nobody" };
                    let text =
                        client.call(&format!("AUTH {user} guess-{worker}-{number}")).error().to_owned();
                    let text = text.split(", try again").next().unwrap().to_owned();
                    *answers.lock().unwrap().entry(text).or_default() += 1;
                    // 250 a second for each of four.
                    let due = begin + Duration::from_millis(4) * u32::try_from(number / 4).unwrap();
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            });
        }
        thread::sleep(span);
        // Who is known is let in meanwhile, from the very address.
        assert_eq!(login(&stage, "bob").call("ACL WHOAMI").text(), "bob");
        stop.store(true, Ordering::Relaxed);
        measured.join().unwrap()
    });
    let (took, sent) = (begin.elapsed(), sent.into_inner());
    let sampled = sampler.finish();
    let asked = stage.server.info("total_connections_received").parse::<u64>().unwrap() - before;
    let answers = answers.into_inner().unwrap();
    let at = |all: &[Duration], share: usize| all[(all.len() * share / 100).min(all.len() - 1)];
    println!(
        "{sent} failing logins in {took:?}: {asked} connections on the server, at most {} at once; {answers:?}; \
         PING of another: p50 {:?} → {:?}, p99 {:?} → {:?}",
        sampled.peak,
        at(&quiet, 50),
        at(&disturbed, 50),
        at(&quiet, 99),
        at(&disturbed, 99)
    );
    assert!(sampled.peak <= 8, "{} connections", sampled.peak);
    assert!(asked < 40 + 10 * took.as_secs(), "{asked} logins reached the server");
    for text in answers.keys() {
        let limited = text == "ERR redbouncer: too many failed logins from this address";
        assert!(text == WRONG || limited, "{text}");
    }
    assert!(at(&disturbed, 50) < Duration::from_millis(20), "{:?}", at(&disturbed, 50));
    until("it is told", PATIENCE, || stage.proxy().log().contains("logins from this address are refused"));
}

#[test]
fn a_stale_password_tried_again_and_again_keeps_nobody_from_logging_in() {
    let stage = stage(&[]);
    for _ in 0..300 {
        assert_eq!(stage.connect().call("AUTH alice stale").error(), WRONG);
    }
    let mut bob = login(&stage, "bob");
    assert_eq!(bob.call("ACL WHOAMI").text(), "bob");
    // Mended on the server, it is taken a moment later.
    stage.server.call("ACL SETUSER alice >stale");
    until("the password is right now", PATIENCE, || !stage.connect().call("AUTH alice stale").is_error());
}

#[test]
fn a_login_is_bounded_while_the_server_is_silent() {
    let server = secured(&Version::usual());
    let relay = Relay::to(server.address());
    let url = format!("redis://{}", relay.address());
    let proxy = crate::harness::Proxy::launch(&url, &[PASSTHROUGH, "pool.wait_timeout=500ms"]).unwrap();
    relay.freeze();
    let mut clients: Vec<Client> = (0..20).map(|_| proxy.connect()).collect();
    let begin = Instant::now();
    for (number, client) in clients.iter_mut().enumerate() {
        client.start(&format!("AUTH alice {number}"));
    }
    for client in &mut clients {
        client.expect_end(PATIENCE);
    }
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    relay.pass();
    until("the server is there again", PATIENCE, || {
        let mut client = proxy.connect();
        client.start("AUTH alice alice-secret");
        client.try_reply(PATIENCE).is_ok_and(|reply| !reply.is_error())
    });
}

#[test]
fn what_the_servers_acl_forbids_is_not_answered_here_either() {
    let stage = stage(&["auth.cache_ttl=30s"]);
    stage.server.call("ACL SETUSER alice -client|list -client|kill -client|unblock");
    let (mut alice, mut bob) = (login(&stage, "alice"), login(&stage, "bob"));
    let id = bob.call("CLIENT ID").int();
    for _ in 0..5 {
        for command in
            ["CLIENT LIST", &format!("CLIENT KILL ID {id}"), &format!("CLIENT UNBLOCK {id}"), "PROXY CLIENTS"]
        {
            let reply = alice.call(command);
            assert!(reply.error().starts_with("NOPERM"), "{command}: {reply:?}");
        }
    }
    assert_eq!(bob.call("CLIENT ID").int(), id, "bob is still there");
    assert_eq!(bob.call(&format!("CLIENT KILL ID {}", alice.call("CLIENT ID").int())).int(), 1);
}

/// What the server's ACL says of CLIENT LIST decides about PROXY CLIENTS, so without its word nobody sees others.
#[test]
fn nobody_is_shown_while_the_server_cannot_be_asked() {
    let server = secured(&Version::usual());
    server.call("ACL SETUSER alice -client|list");
    let relay = Relay::to(server.address());
    let url = format!("redis://{}", relay.address());
    let settings =
        [PASSTHROUGH, "auth.cache_ttl=1s", "upstream.connect_timeout=500ms", "pool.wait_timeout=500ms"];
    let proxy = crate::harness::Proxy::launch(&url, &settings).unwrap();
    let [mut alice, mut bob] = ["alice", "bob"].map(|user| {
        let mut client = proxy.connect();
        assert_eq!(client.call(&format!("AUTH {user} {user}-secret")).text(), "OK");
        client
    });
    assert!(alice.call("PROXY CLIENTS").error().starts_with("NOPERM"));
    assert!(bob.call("PROXY CLIENTS").lines().contains("user=alice"));
    relay.refuse();
    relay.cut();
    for command in ["PROXY CLIENTS", "PROXY UPSTREAMS"] {
        for (client, name) in [(&mut alice, "alice"), (&mut bob, "bob")] {
            until("what was said before is too old", PATIENCE, || client.call(command).is_error());
            let told = client.call(command).error().to_owned();
            assert!(told.starts_with("NOPERM") || told.starts_with("ERR redbouncer: no "), "{name}: {told}");
        }
    }
    assert!(!alice.call("PROXY POOLS").is_error(), "it names nobody");
    relay.pass();
    until("the server is there again", PATIENCE, || !bob.call("PROXY CLIENTS").is_error());
    assert!(alice.call("PROXY CLIENTS").error().starts_with("NOPERM"));
}

#[test]
fn a_wrong_upstream_password_is_not_believed_because_a_client_offers_it_too() {
    let server = secured(&Version::usual());
    let url = format!("redis://:stale@{}", server.address());
    let proxy = crate::harness::Proxy::launch(&url, &[PASSTHROUGH]).unwrap();
    assert_eq!(proxy.connect().call("AUTH stale").error(), WRONG);
    assert_eq!(proxy.connect().call("AUTH sesame").text(), "OK");
}

/// Cause: a key's sessions were counted by two calls around a wait, and the wait ended with the client. The lanes of the key
/// were kept as if it were still in use, and the key itself for good.
#[test]
fn a_client_that_resets_during_its_login_holds_no_lanes() {
    let server = secured(&Version::usual());
    let relay = Relay::to(server.address());
    let url = format!("redis://{}", relay.address());
    let proxy = crate::harness::Proxy::launch(&url, &[PASSTHROUGH]).unwrap();
    let sessions = || {
        let status = proxy.status();
        let lanes = status["lanes"].as_array().unwrap().iter();
        lanes
            .filter(|lane| lane["user"] == "alice")
            .map(|lane| lane["sessions"].as_u64().unwrap())
            .sum::<u64>()
    };
    relay.freeze();
    let mut client = proxy.connect();
    client.start("AUTH alice alice-secret");
    until("the login waits for the server", PATIENCE, || sessions() == 1);
    client.reset();
    until("nobody uses the lanes any more", PATIENCE, || sessions() == 0);
    relay.pass();
    until("the lane that was dialled for it leaves", PATIENCE, || connections(&server, "alice") == 0);
}
