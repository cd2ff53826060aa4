//! The cap: whatever the clients do, the server never sees more connections than `pool.max_connections`.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Client, Ended, PATIENCE, Reply, Sampler, Server, Stage, encode, until};

/// The only error the pool may give a client that asks for too much.
fn is_full_pool(reply: &Reply) -> bool {
    reply.is_error() && reply.error().starts_with("ERR redbouncer: ")
}

/// One round of one of the things that clients do; each uses the pool in another way.
fn one_round(address: std::net::SocketAddr, random: &mut fastrand::Rng, mark: &str) {
    let mut client = Client::connect(address);
    if random.bool() {
        client.call("HELLO 3");
    }
    let database = random.u8(0..16);
    let selected = client.call(&format!("SELECT {database}"));
    if is_full_pool(&selected) {
        // Its client is closed: what follows would be in the old database.
        return;
    }
    assert_eq!(selected.text(), "OK");
    match random.u8(0..7) {
        0 => {
            let replies = client.pipeline(&["INCR n", "GET n", &format!("ECHO {mark}")]);
            assert!(replies[2].text() == mark || is_full_pool(&replies[2]), "{replies:?}");
        }
        1 => {
            let watched = client.call("WATCH w");
            if is_full_pool(&watched) {
                return;
            }
            let replies = client.pipeline(&["GET w", "MULTI", "INCR w", "EXEC"]);
            assert!(!replies[3].is_error(), "{replies:?}");
        }
        2 => {
            let reply = client.call("BLPOP jobs 0.03");
            assert!(reply.is_nil() || is_full_pool(&reply), "{reply:?}");
        }
        3 => {
            // Leaves in the middle of a wait.
            client.start("BLPOP jobs 0");
            client.reset();
        }
        4 => {
            let confirmed = client.call("SUBSCRIBE c");
            assert!(!confirmed.is_error() || is_full_pool(&confirmed), "{confirmed:?}");
        }
        5 => {
            let replies = client.pipeline(&["MULTI", "INCR m", "EXEC"]);
            assert!(
                !replies[2].is_error() || is_full_pool(&replies[0]) || is_full_pool(&replies[2]),
                "{replies:?}"
            );
        }
        _ => {
            // Leaves with a pipeline unread.
            client.send(encode(&["ECHO", mark]).repeat(200));
            client.reset();
        }
    }
}

fn mixed_load_stays_below(cap: usize, settings: &[&str]) {
    let cap_setting = format!("pool.max_connections={cap}");
    let stage = Stage::proxied_with(&[&[cap_setting.as_str()], settings].concat());
    let sampler = Sampler::start(&stage.server);
    let address = stage.address();
    let threads: Vec<_> = (0..12)
        .map(|number| {
            thread::spawn(move || {
                let mut random = fastrand::Rng::with_seed(number);
                let deadline = Instant::now() + Duration::from_secs(4);
                let mut rounds = 0;
                while Instant::now() < deadline {
                    one_round(address, &mut random, &format!("{number}:{rounds}"));
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    let rounds: usize =
        threads.into_iter().map(|thread| thread.join().expect("every answer was right")).sum();
    let sampled = sampler.finish();
    assert!(sampled.peak <= cap, "{} connections with a cap of {cap}: {:#?}", sampled.peak, sampled.rows);
    assert!(sampled.samples > 100 && rounds > 50, "{} samples, {rounds} rounds", sampled.samples);
    until("afterwards nothing is left", Duration::from_secs(4), || {
        stage.server.rows().iter().all(|row| row.get("name").ends_with(":control"))
    });
}

#[test]
fn mixed_load_never_exceeds_the_default_cap() {
    mixed_load_stays_below(8, &[]);
}

#[test]
fn mixed_load_never_exceeds_the_smallest_cap() {
    mixed_load_stays_below(4, &[]);
}

#[test]
fn mixed_load_on_two_workers_never_exceeds_the_cap() {
    mixed_load_stays_below(8, &["listen.workers=2"]);
}

#[test]
fn mixed_load_with_short_lives_never_exceeds_the_cap() {
    mixed_load_stays_below(6, &["pool.max_lifetime=1s", "pool.idle_timeout=100ms", "pool.linger=0ms"]);
}

#[test]
fn more_lane_keys_than_connections_take_turns() {
    let stage = Stage::proxied_with(&["pool.max_connections=4", "pool.wait_timeout=10s"]);
    let sampler = Sampler::start(&stage.server);
    let address = stage.address();
    let threads: Vec<_> = (0..32)
        .map(|number| {
            thread::spawn(move || {
                let mut client = Client::connect(address);
                client.call(if number % 2 == 0 { "HELLO 2" } else { "HELLO 3" });
                assert_eq!(client.call(&format!("SELECT {}", number / 2)).text(), "OK");
                for round in 1..=20_i64 {
                    assert_eq!(client.call(&format!("INCR turn:{number}")).int(), round);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("every key had its turn");
    }
    let sampled = sampler.finish();
    assert!(sampled.peak <= 4, "{:#?}", sampled.rows);
}

/// Opens watches until the pool is full; what the first one that had to wait was told, after how long, and the holders.
fn fill_with_watches(stage: &Stage) -> (Vec<Client>, Reply, Duration) {
    let mut holders = Vec::new();
    for number in 0..20 {
        let mut client = stage.connect();
        client.call(&format!("CLIENT SETNAME holder:{number}"));
        let start = Instant::now();
        let reply = client.call("WATCH w");
        if reply.is_error() {
            return (holders, reply, start.elapsed());
        }
        holders.push(client);
    }
    panic!("20 watches at once with {} connections", stage.server.clients());
}

#[test]
fn a_full_pool_says_what_holds_it() {
    let stage = Stage::proxied_with(&["pool.wait_timeout=400ms"]);
    let mut lane = stage.connect();
    lane.call("PING");
    let (holders, refused, after) = fill_with_watches(&stage);
    let text = refused.error();
    assert!(text.starts_with("ERR redbouncer: no upstream connection within 400ms ("), "{text}");
    assert!(text.contains("of 8") && text.contains("lease") && text.contains("longest: "), "{text}");
    assert!(text.contains("holder:0") && text.contains("WATCH"), "the longest holder is named: {text}");
    let server = stage.server.address().to_string();
    assert!(!text.contains(&server), "no address of the server: {text}");
    assert!(after >= Duration::from_millis(395) && after < Duration::from_millis(1_200), "{after:?}");
    assert!((2..=8).contains(&holders.len()), "{} holders", holders.len());
    assert!(stage.server.clients() <= 8);
    // What needs no connection of its own goes on.
    assert_eq!(lane.call("ECHO fine").text(), "fine");
    // And the operator is told.
    until("a warning names the holder", PATIENCE, || {
        let log = stage.proxy().log();
        log.lines().any(|line| line.contains("\"WARN\"") && line.contains("holder:0"))
    });
}

#[test]
fn a_waiter_gets_the_next_free_connection() {
    let stage = Stage::proxied_with(&["pool.wait_timeout=5s", "pool.max_connections=6"]);
    let address = stage.address();
    let mut holders: Vec<Client> = Vec::new();
    let mut waiting = None;
    for _ in 0..12 {
        let mut client = Client::connect(address);
        client.start("WATCH w");
        match client.try_reply(Duration::from_millis(300)) {
            Ok(reply) => {
                assert_eq!(reply.text(), "OK");
                holders.push(client);
            }
            Err(ended) => {
                assert_eq!(ended, Ended::Late);
                waiting = Some(client);
                break;
            }
        }
    }
    let mut waiting = waiting.expect("the pool is full at some time");
    holders.remove(0).reset();
    assert_eq!(waiting.reply_within(Duration::from_secs(1)).text(), "OK");
}

#[test]
fn the_proxy_leaves_room_for_others_on_a_small_server() {
    let server = Server::start_with(&["--maxclients", "30"]);
    let stage = Stage::before(server, &[]);
    let mut clients: Vec<Client> = (0..200).map(|_| stage.connect()).collect();
    for client in &mut clients {
        client.start("BLPOP jobs 0");
    }
    for number in 0..200 {
        stage.server.call(&format!("RPUSH jobs {number}"));
    }
    for client in &mut clients {
        assert!(!client.reply_within(PATIENCE).is_error());
    }
    assert_eq!(stage.server.info("rejected_connections"), "0");
}
