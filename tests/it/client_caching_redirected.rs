//! CLIENT TRACKING ON REDIRECT: what one client has read, another one is told of, on shared lanes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Client, Ended, PATIENCE, Reply, Server, Stage, Value, Version, encode, until};

const CHANNEL: &str = "__redis__:invalidate";

fn on_each(settings: &[&str], scenario: impl Fn(&Stage)) {
    for version in Version::all() {
        println!("--- {}", version.name);
        scenario(&Stage::before(Server::start_version(&version, &[]), settings));
    }
}

fn id(client: &mut Client) -> i64 {
    client.call("CLIENT ID").int()
}

/// A client that is told for others, and its id: in RESP2 it is subscribed.
fn told(stage: &Stage, protocol: u32) -> (Client, i64) {
    let mut client = stage.connect();
    assert!(!client.call(&format!("HELLO {protocol}")).is_error());
    let id = id(&mut client);
    if protocol == 2 {
        client.call(&format!("SUBSCRIBE {CHANNEL}"));
    }
    (client, id)
}

/// A client whose news go to the client with this id.
fn redirecting(stage: &Stage, protocol: u32, to: i64, options: &str) -> Client {
    let mut client = stage.connect();
    assert!(!client.call(&format!("HELLO {protocol}")).is_error());
    let on = client.call(format!("CLIENT TRACKING ON REDIRECT {to} {options}").trim_end());
    assert_eq!(on.text(), "OK");
    client
}

/// What a message or a push names: its keys, or `None` for all of them.
#[track_caller]
fn invalidated(reply: &Reply) -> Option<Vec<String>> {
    let named = match &reply.value {
        Value::Push(parts) if parts[0].text() == "invalidate" => &parts[1],
        Value::List(parts) if parts[0].text() == "message" && parts[1].text() == CHANNEL => &parts[2],
        _ => panic!("no news: {reply:?}"),
    };
    match named {
        Value::Nil => None,
        Value::List(keys) => Some(keys.iter().map(Value::text).collect()),
        other => panic!("no keys: {other:?}"),
    }
}

#[track_caller]
fn expect_news(client: &mut Client, keys: &[&str]) {
    let reply = client.reply();
    assert_eq!(invalidated(&reply), Some(keys.iter().map(|key| (*key).to_owned()).collect()), "{reply:?}");
}

/// `key` is to be forgotten, by name or with all keys.
#[track_caller]
fn expect_forgotten(client: &mut Client, key: &str) {
    let names = |reply: &Reply| invalidated(reply).is_none_or(|keys| keys.iter().any(|named| named == key));
    while !names(&client.reply()) {}
}

#[test]
fn a_pair_of_clients_hears_what_it_would_hear_directly() {
    for version in Version::all() {
        for (protocol, options) in [(2, ""), (3, ""), (2, "OPTIN"), (2, "BCAST PREFIX k"), (3, "BCAST")] {
            let start = || Server::start_version(&version, &[]);
            let stages = [Stage::before_none(start()), Stage::before(start(), &[])];
            let heard = stages.each_ref().map(|stage| {
                let (mut told, id) = told(stage, protocol);
                let mut reader = redirecting(stage, protocol, id, options);
                let mut writer = stage.connect();
                let mut heard = Vec::new();
                let mark = |reader: &mut Client| {
                    if options == "OPTIN" {
                        assert_eq!(reader.call("CLIENT CACHING YES").text(), "OK");
                    }
                };
                for write in ["SET k 1", "DEL k", "SET k 2", "APPEND k 3"] {
                    mark(&mut reader);
                    reader.call("GET k");
                    writer.call(write);
                    heard.push(told.reply().raw);
                }
                mark(&mut reader);
                reader.call("MGET k1 k2");
                for key in ["k1", "k2"] {
                    writer.call(&format!("SET {key} 1"));
                    heard.push(told.reply().raw);
                }
                mark(&mut reader);
                reader.call("GET k");
                assert_eq!(reader.call("SET k 4").text(), "OK", "its own write");
                heard.push(told.reply().raw);
                assert_eq!(reader.pipeline(&["MULTI", "GET k", "EXEC"])[2].items()[0].text(), "4");
                writer.call("FLUSHALL");
                heard.push(told.reply().raw);
                for line in ["CLIENT TRACKINGINFO", "CLIENT GETREDIR"] {
                    let raw = String::from_utf8_lossy(&reader.call(line).raw).into_owned();
                    heard.push(raw.replace(&format!(":{id}\r\n"), ":ID\r\n").into());
                }
                told.expect_silence(Duration::from_millis(20));
                assert_eq!(reader.call("CLIENT TRACKING OFF").text(), "OK");
                assert_eq!(reader.call("CLIENT GETREDIR").int(), -1);
                heard
            });
            assert_eq!(heard[0], heard[1], "RESP{protocol} {options} on {}", version.name);
        }
    }
}

#[test]
fn two_hundred_pairs_cost_two_connections() {
    on_each(&["pool.max_connections=12"], |stage| {
        let mut plain = stage.connect();
        plain.call("GET k");
        let (mut first, _) = told(stage, 2);
        let ours =
            || stage.server.rows().iter().filter(|row| row.get("name").starts_with("redbouncer:")).count();
        let before = ours();
        let mut told: Vec<_> = (0..20).map(|_| told(stage, 2)).collect();
        let mut readers: Vec<_> = (0..200).map(|at| redirecting(stage, 2, told[at % 20].1, "")).collect();
        for (at, reader) in readers.iter_mut().enumerate() {
            reader.call(&format!("MGET shared own:{at}"));
        }
        let after = ours();
        assert!(after <= before + 2, "{before} and {after}");
        for at in (0..200).step_by(7) {
            stage.server.call(&format!("SET own:{at} 1"));
            expect_news(&mut told[at % 20].0, &[&format!("own:{at}")]);
        }
        stage.server.call("SET shared 1");
        for (client, _) in &mut told {
            // One for each of its ten readers.
            (0..10).for_each(|_| expect_news(client, &["shared"]));
        }
        first.expect_silence(Duration::from_millis(20));
    });
}

#[test]
fn the_client_that_is_told_may_be_on_another_worker() {
    let stage = Stage::proxied_with(&["listen.workers=2", "pool.max_connections=20"]);
    let mut told: Vec<_> = (0..4).map(|at| told(&stage, 2 + at % 2)).collect();
    for (at, (client, id)) in told.iter_mut().enumerate() {
        for protocol in [2, 3, 2, 3] {
            let mut reader = redirecting(&stage, protocol, *id, "");
            reader.call(&format!("GET k{at}"));
            stage.server.call(&format!("SET k{at} 1"));
            expect_news(client, &[&format!("k{at}")]);
        }
    }
}

#[test]
fn who_is_gone_breaks_the_redirection_as_directly() {
    for version in Version::all() {
        let start = || Server::start_version(&version, &[]);
        let stages = [Stage::before_none(start()), Stage::before(start(), &[])];
        for protocol in [2, 3] {
            let seen = stages.each_ref().map(|stage| {
                let (told, to) = told(stage, 2);
                let mut reader = redirecting(stage, protocol, to, "");
                let own = id(&mut reader);
                reader.call("GET k");
                drop(told);
                let mut others = stage.connect();
                until("it is gone", PATIENCE, || {
                    let text = others.call("CLIENT LIST").text();
                    !text.contains(&format!("id={to} "))
                });
                others.call("SET k 1");
                let mut seen = Vec::new();
                if protocol == 3 {
                    seen.push(reader.reply().raw);
                }
                until("the row says so", PATIENCE, || {
                    let text = others.call("CLIENT LIST").text();
                    let row =
                        text.lines().find(|row| row.contains(&format!("id={own} "))).unwrap().to_owned();
                    row.contains(&format!(" redir={to}")) && row.contains(" flags=tR ")
                });
                for line in
                    ["CLIENT TRACKINGINFO", "CLIENT GETREDIR", "CLIENT TRACKING ON", "CLIENT TRACKINGINFO"]
                {
                    reader.start(line);
                    // On another lane, what was read over the former one is to be forgotten.
                    let mut replies = std::iter::repeat_with(|| reader.reply().raw);
                    seen.extend(replies.find(|raw| !raw.starts_with(b">")));
                }
                let shown = |raw| String::from_utf8_lossy(raw).replace(&format!(":{to}\r\n"), ":ID\r\n");
                seen.iter().map(|raw| shown(raw)).collect::<Vec<_>>()
            });
            assert_eq!(seen[0], seen[1], "RESP{protocol} on {}", version.name);
        }
    }
}

#[test]
fn options_are_refused_in_the_servers_words() {
    for version in Version::all() {
        let start = || Server::start_version(&version, &[]);
        let stages = [Stage::before_none(start()), Stage::before(start(), &[])];
        let said = stages.each_ref().map(|stage| {
            let (_told, to) = told(stage, 2);
            let mut client = stage.connect();
            let lines = [
                "CLIENT TRACKING ON REDIRECT 0".to_owned(),
                "CLIENT TRACKING ON REDIRECT -1".to_owned(),
                "CLIENT TRACKING ON REDIRECT x".to_owned(),
                "CLIENT TRACKING ON REDIRECT".to_owned(),
                "CLIENT TRACKING ON REDIRECT 999999 FOO".to_owned(),
                "CLIENT TRACKING OFF REDIRECT 999999".to_owned(),
                format!("CLIENT TRACKING ON REDIRECT {to} FOO"),
                format!("CLIENT TRACKING ON REDIRECT {to} REDIRECT {to}"),
                format!("CLIENT TRACKING ON REDIRECT {to} OPTIN BCAST"),
                "CLIENT GETREDIR".to_owned(),
                format!("CLIENT TRACKING ON REDIRECT {to}"),
                format!("CLIENT TRACKING ON BCAST REDIRECT {to}"),
                format!("CLIENT TRACKING OFF REDIRECT {to}"),
                "CLIENT GETREDIR".to_owned(),
                format!("CLIENT TRACKING ON BCAST REDIRECT {to}"),
                "PING".to_owned(),
            ];
            lines.map(|line| client.call(&line).raw)
        });
        assert_eq!(said[0], said[1], "{}", version.name);
    }
}

/// Else one user could flood another's connection, and close it by its output limit.
#[test]
fn only_a_client_of_the_same_user_is_told() {
    let stage = Stage::proxied_secured();
    stage.server.call("ACL SETUSER alice on >secret ~* &* +@all");
    let login = |words: &str| {
        let mut client = stage.connect();
        assert!(!client.call(&format!("HELLO 3 AUTH {words}")).is_error());
        client
    };
    let (mut alice, mut other) = (login("alice secret"), login("default sesame"));
    let (to, not_to) = (id(&mut alice), id(&mut other));
    let mut reader = login("alice secret");
    assert_eq!(
        reader.call(&format!("CLIENT TRACKING ON REDIRECT {not_to}")).error(),
        "ERR The client ID you want redirect to does not exist"
    );
    let on = format!("CLIENT TRACKING ON REDIRECT {to}");
    assert_eq!(reader.call(&on).text(), "OK");
    reader.call("GET k");
    stage.server.call("SET k 1");
    expect_news(&mut alice, &["k"]);
    // It becomes another user: from then on it is told nothing.
    assert!(!alice.call("HELLO 3 AUTH default sesame").is_error());
    reader.call("GET k");
    stage.server.call("SET k 2");
    assert_eq!(reader.reply().raw, format!(">2\r\n$21\r\ntracking-redir-broken\r\n:{to}\r\n"));
    alice.expect_silence(Duration::from_millis(20));
    assert!(reader.call(&on).is_error());
}

#[test]
fn a_refusal_is_the_servers_own() {
    on_each(&[], |stage| {
        if stage.server.call("ACL SETUSER default +@all -client|tracking").is_error() {
            // Before 7.0 there is no such right.
            return;
        }
        let (_told, to) = told(stage, 2);
        let mut client = stage.connect();
        for options in ["", " BCAST"] {
            let on = format!("CLIENT TRACKING ON REDIRECT {to}{options}");
            assert!(client.call(&on).error().starts_with("NOPERM "));
        }
        assert!(client.call("GET k").is_nil());
    });
}

#[test]
fn who_does_not_read_is_closed_and_its_readers_hear_of_it() {
    let stage = Stage::proxied_with(&["client.output_buffer_limit=64KiB 32KiB 1s"]);
    let (deaf, to) = told(&stage, 2);
    deaf.shrink_receive_buffer();
    let mut reader = redirecting(&stage, 3, to, "BCAST");
    let mut writer = stage.connect();
    let long = "k".repeat(4000);
    let mut number = 0;
    let broken = loop {
        let lines: Vec<_> = (0..50).map(|at| format!("SET {long}:{} 1", number * 50 + at)).collect();
        number += 1;
        writer.pipeline(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        if let Ok(reply) = reader.try_reply(Duration::from_millis(10)) {
            break reply.raw;
        }
        assert!(number < 1000, "it is closed at some time");
    };
    assert_eq!(broken, format!(">2\r\n$21\r\ntracking-redir-broken\r\n:{to}\r\n"));
    drop(deaf);
}

#[test]
fn lanes_that_end_have_the_cache_emptied() {
    on_each(&[], |stage| {
        for options in ["", "BCAST"] {
            let (mut told, to) = told(stage, 2);
            let mut reader = redirecting(stage, 2, to, options);
            let lane = || {
                let rows = stage.server.rows();
                let is_ours = |flags: &str| flags.contains('t') && flags.contains('B') != options.is_empty();
                let row = rows.iter().find(|row| is_ours(row.get("flags")));
                row.map(|row| (row.get("id").to_owned(), row.get("redir").to_owned()))
            };
            for kills_the_telling_one in [false, true] {
                reader.call("GET k");
                let (tracked, telling) = lane().unwrap();
                let victim = if kills_the_telling_one { telling } else { tracked };
                stage.server.call(&format!("CLIENT KILL ID {victim}"));
                expect_forgotten(&mut told, "k");
                until("there is another", PATIENCE, || {
                    reader.call("GET k");
                    lane().is_some_and(|(id, telling)| id != victim && telling != victim)
                });
                until("it is told again", PATIENCE, || {
                    reader.call("GET k");
                    stage.server.call("SET k 1");
                    invalidated(&told.reply()).is_some()
                });
            }
        }
    });
}

/// Reads on a lease are not tracked there, so they are disowned.
#[test]
fn what_is_read_on_a_lease_is_not_kept() {
    on_each(&[], |stage| {
        let (mut told, to) = told(stage, 2);
        let mut reader = redirecting(stage, 2, to, "");
        reader.call("WATCH w");
        reader.call("GET k");
        expect_news(&mut told, &["k"]);
        assert_eq!(reader.call("UNWATCH").text(), "OK");
        reader.call("GET j");
        stage.server.call("SET j 1");
        expect_news(&mut told, &["j"]);
    });
}

/// A client with a cache over two connections, as Redis's documentation describes it: what is read is marked before the command
/// is sent, and kept only if the mark is still there when the reply has come.
struct Cacher {
    reads: Client,
    told: Client,
    options: &'static str,
    cache: BTreeMap<String, Option<u64>>,
    news: usize,
}

fn ask(client: &mut Client, command: &str) -> Result<Reply, Ended> {
    client.start(command);
    client.try_reply(PATIENCE)
}

impl Cacher {
    /// Connections of the server may be killed meanwhile, and with them one of the two that is owed a reply: then both connect again.
    fn connect(stage: &Stage, options: &'static str) -> Self {
        loop {
            let mut made: Vec<Client> = (0..2).map(|_| stage.connect()).collect();
            let Ok(id) = ask(&mut made[0], "CLIENT ID") else { continue };
            let to = id.int();
            let track = format!("CLIENT TRACKING ON REDIRECT {to} {options}");
            let asked = ask(&mut made[0], &format!("SUBSCRIBE {CHANNEL}"))
                .and_then(|_| ask(&mut made[1], track.trim_end()));
            // Without the client that is told, its id does not exist.
            if asked.is_ok_and(|reply| !reply.is_error())
                && let [told, reads] = <[Client; 2]>::try_from(made).ok().unwrap()
            {
                return Self { reads, told, options, cache: BTreeMap::new(), news: 0 };
            }
        }
    }

    /// Heeds what it was told before this.
    fn heed(&mut self) -> Result<(), Ended> {
        self.told.start("PING");
        loop {
            let reply = self.told.try_reply(PATIENCE)?;
            if reply.items().first().is_some_and(|word| word.text() == "pong") {
                return Ok(());
            }
            self.news += 1;
            match invalidated(&reply) {
                None => self.cache.clear(),
                Some(keys) => self.cache.retain(|key, _| !keys.contains(key)),
            }
        }
    }

    fn read(&mut self, keys: &[String], way: u32) -> Result<(), Ended> {
        let get = |key: &String| format!("GET {key}");
        let mark = self.options == "OPTIN";
        let mut lines: Vec<String> = Vec::new();
        match way % 4 {
            0 => lines.push(get(&keys[0])),
            1 => lines.push(format!("MGET {}", keys.join(" "))),
            2 => lines.extend(
                ["MULTI".to_owned()].into_iter().chain(keys.iter().map(get)).chain(["EXEC".to_owned()]),
            ),
            _ => lines.push(format!(
                "EVAL return{{redis.call('mget',unpack(KEYS))}} {} {}",
                keys.len(),
                keys.join(" ")
            )),
        }
        if mark {
            lines.insert(0, "CLIENT CACHING YES".to_owned());
        }
        let keys = if way.is_multiple_of(4) { &keys[..1] } else { keys };
        self.cache.extend(keys.iter().map(|key| (key.clone(), None)));
        let bytes: Vec<u8> =
            lines.iter().flat_map(|line| encode(&line.split(' ').collect::<Vec<_>>())).collect();
        self.reads.try_send(bytes).map_err(|_| Ended::Reset)?;
        if way.is_multiple_of(3) {
            self.heed()?;
        }
        let mut last = None;
        for _ in &lines {
            last = Some(self.reads.try_reply(PATIENCE)?);
        }
        if way.is_multiple_of(5) {
            self.heed()?;
        }
        let last = last.unwrap();
        let values: Vec<Value> = match &last.value {
            Value::List(items) => match &items[..] {
                [Value::List(inner)] => inner.clone(),
                items => items.to_vec(),
            },
            one => vec![one.clone()],
        };
        for (key, value) in keys.iter().zip(&values) {
            let number = if *value == Value::Nil { 0 } else { value.text().parse().unwrap() };
            if let Some(place) = self.cache.get_mut(key) {
                *place = Some(number);
            }
        }
        Ok(())
    }
}

/// The property: whatever is read, written and lost, no cache holds an old value once the news are in.
fn no_cache_holds_an_old_value(stage: &Stage, seed: u64, with_losses: bool) {
    const KEYS: usize = 12;
    let keys: Vec<String> = (0..KEYS).map(|at| format!("key:{at}")).collect();
    let over = AtomicBool::new(false);
    let worker = |seed: u64| {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut crowd: Vec<_> = ["", "OPTIN", "NOLOOP", "BCAST PREFIX key:", ""]
            .into_iter()
            .map(|options| Cacher::connect(stage, options))
            .collect();
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            let at = random.usize(..crowd.len());
            let client = &mut crowd[at];
            let done = if random.u32(..100) < 75 {
                let count = random.usize(1..4);
                let some: BTreeSet<_> = (0..count).map(|_| random.usize(..KEYS)).collect();
                let some: Vec<_> = some.into_iter().map(|at| keys[at].clone()).collect();
                client.read(&some, random.u32(..60))
            } else if random.u32(..100) < 50 {
                client.reads.start(&format!("INCR {}", keys[random.usize(..KEYS)]));
                client.reads.try_reply(PATIENCE).map(drop)
            } else {
                client.heed()
            };
            if let Err(ended) = done {
                assert!(with_losses && ended != Ended::Late, "{ended:?}");
                *client = Cacher::connect(stage, client.options);
            }
        }
        over.store(true, Ordering::Relaxed);
        crowd
    };
    let crowds = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Client::connect(stage.server.address());
            let mut random = fastrand::Rng::with_seed(seed);
            while !over.load(Ordering::Relaxed) {
                client.call(&format!("INCR {}", keys[random.usize(..KEYS)]));
                if with_losses && random.u32(..100) == 0 {
                    let rows = stage.server.rows();
                    let lane = rows.iter().find(|row| row.get("flags").contains('t'));
                    let field = if random.bool() { "id" } else { "redir" };
                    lane.iter()
                        .for_each(|row| drop(client.call(&format!("CLIENT KILL ID {}", row.get(field)))));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let threads: Vec<_> = (0..3).map(|at| scope.spawn(move || worker(seed * 10 + at))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let mut server = Client::connect(stage.server.address());
    let mut news = 0;
    for mut client in crowds.into_iter().flatten() {
        until(
            &format!("the cache with '{}' has no old value, seed {seed}", client.options),
            PATIENCE,
            || {
                if client.heed().is_err() {
                    client.cache.clear();
                }
                client.cache.iter().all(|(key, value)| {
                    let now = server.call(&format!("GET {key}"));
                    let now: u64 = if now.is_nil() { 0 } else { now.text().parse().unwrap() };
                    value.is_none_or(|value| value == now)
                })
            },
        );
        news += client.news;
    }
    assert!(news > 0);
}

#[test]
fn no_cache_keeps_an_old_value_whatever_is_read_and_written() {
    let seed = fastrand::u64(..1 << 32);
    on_each(&["pool.max_connections=40"], |stage| no_cache_holds_an_old_value(stage, seed, false));
}

#[test]
fn no_cache_keeps_an_old_value_when_lanes_are_lost() {
    let seed = fastrand::u64(..1 << 32);
    on_each(&["pool.max_connections=40", "listen.workers=2"], |stage| {
        no_cache_holds_an_old_value(stage, seed, true);
    });
}
