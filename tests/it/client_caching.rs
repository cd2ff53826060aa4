//! Client-side caching: a thousand tracking clients cost a connection or two, and none of them ever keeps an old value.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{
    Client, Ended, PATIENCE, Proxy, Relay, Reply, Row, Server, Stage, Value, Version, encode, until,
};

/// A proxied stage before every server that tracks for lanes.
fn on_each(settings: &[&str], scenario: impl Fn(&Stage)) {
    for version in Version::all().into_iter().filter(Version::has_hub) {
        println!("--- {}", version.name);
        scenario(&Stage::before(Server::start_version(&version, &[]), settings));
    }
}

/// Our connections for which the server tracks.
fn tracked_connections(stage: &Stage) -> usize {
    stage.server.rows().iter().filter(|row| row.get("flags").contains('t')).count()
}

/// What a push names: its keys, or `None` for all of them.
#[track_caller]
fn invalidated(push: &Reply) -> Option<Vec<String>> {
    let Value::Push(parts) = &push.value else { panic!("no push: {push:?}") };
    assert_eq!(parts[0].text(), "invalidate", "{push:?}");
    match &parts[1] {
        Value::Nil => None,
        Value::List(keys) => Some(keys.iter().map(Value::text).collect()),
        other => panic!("no keys: {other:?}"),
    }
}

/// The next frame is the news of these keys.
#[track_caller]
fn expect_news(client: &mut Client, keys: &[&str]) {
    let push = client.reply();
    assert_eq!(invalidated(&push), Some(keys.iter().map(|key| (*key).to_owned()).collect()), "{push:?}");
}

/// All keys are to be forgotten. Those that were read last may be named before, in one push.
#[track_caller]
fn expect_all_news(client: &mut Client) {
    let mut push = client.reply();
    if invalidated(&push).is_some_and(|keys| !keys.is_empty()) {
        push = client.reply();
    }
    assert_eq!(invalidated(&push), None, "{push:?}");
}

#[track_caller]
fn tracking(stage: &Stage, options: &str) -> Client {
    let mut client = stage.connect_resp3();
    assert_eq!(client.call(format!("CLIENT TRACKING ON {options}").trim_end()).text(), "OK");
    client
}

#[test]
fn two_hundred_tracking_clients_cost_two_connections_at_the_most() {
    on_each(&["pool.max_connections=8"], |stage| {
        let mut clients: Vec<_> = (0..200).map(|_| tracking(stage, "")).collect();
        for (at, client) in clients.iter_mut().enumerate() {
            client.call("GET shared");
            client.call(&format!("GET own:{at}"));
        }
        let connections = tracked_connections(stage);
        assert!((1..=2).contains(&connections), "{connections}");
        stage.server.call("SET shared 1");
        for client in &mut clients {
            expect_news(client, &["shared"]);
        }
        for at in (0..200).step_by(7) {
            stage.server.call(&format!("SET own:{at} 1"));
            expect_news(&mut clients[at], &[&format!("own:{at}")]);
        }
        for client in &mut clients {
            assert_eq!(client.call("PING").text(), "PONG", "nothing else came");
        }
        let connections = tracked_connections(stage);
        assert!((1..=2).contains(&connections), "{connections}");
        let (_, status) = stage.proxy().http("/status");
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let sessions = |tracked: bool| -> u64 {
            let lanes = status["lanes"].as_array().unwrap().iter();
            let of_kind = lanes.filter(|lane| lane["tracked"] == tracked);
            of_kind.map(|lane| lane["sessions"].as_u64().unwrap()).sum()
        };
        assert_eq!((sessions(true), sessions(false)), (200, 0));
    });
}

#[test]
fn every_way_in_which_a_key_changes_is_told_once() {
    on_each(&[], |stage| {
        let (mut reader, mut other) = (tracking(stage, ""), tracking(stage, ""));
        let mut writer = stage.connect();
        let mut outside = Client::connect(stage.server.address());
        for (before, read, write) in [
            ("PING", "GET k", "SET k 1"),
            ("SET k 1", "MGET k j", "APPEND k 2"),
            ("SET k 1", "STRLEN k", "DEL k"),
            ("SET k 1", "EXISTS k", "SETEX k 100 1"),
            ("SET k 1", "TTL k", "RENAME k l"),
            ("SET l 1", "GET k", "COPY l k REPLACE"),
            ("DEL k", "PFCOUNT k", "PFADD k a"),
            ("DEL k", "HGETALL k", "HSET k f v"),
            ("SET k 1", "TYPE k", "EVAL redis.call('del',KEYS[1]) 1 k"),
            ("DEL k", "LRANGE k 0 -1", "RPUSH k a"),
            ("DEL k", "XRANGE k - +", "XADD k * f v"),
            ("SET k 1", "GETRANGE k 0 1", "EXPIRE k 100"),
        ] {
            for by in [&mut writer, &mut outside] {
                by.call(before);
                reader.call(read);
                by.call(write);
                expect_news(&mut reader, &["k"]);
                assert_eq!(reader.call("PING").text(), "PONG", "once for {write}");
                assert_eq!(other.call("PING").text(), "PONG");
            }
        }
        // Expiry, noticed by whoever asks next.
        writer.call("DEL k");
        writer.call("SET k v PX 30");
        reader.call("GET k");
        until("k has expired", PATIENCE, || outside.call("GET k").is_nil());
        expect_news(&mut reader, &["k"]);
        // A key that nobody has read since is told of no more.
        writer.call("SET k 1");
        assert_eq!(reader.call("PING").text(), "PONG");
        // Its own write, behind the reply.
        reader.call("GET k");
        assert_eq!(reader.call("SET k 2").text(), "OK");
        expect_news(&mut reader, &["k"]);
        assert_eq!(other.call("PING").text(), "PONG");
    });
}

/// CLIENT CACHING is about one command, or about a whole transaction: also where that has to wait for a lane.
#[test]
fn a_transaction_that_waits_for_a_lane_is_what_client_caching_was_about() {
    on_each(&[], |stage| {
        let mut client = tracking(stage, "OPTOUT");
        client.call("GET a");
        for row in stage.server.rows().iter().filter(|row| row.get("flags").contains('t')) {
            stage.server.call(&format!("CLIENT KILL ID {}", row.get("id")));
        }
        expect_news(&mut client, &["a"]);
        assert_eq!(tracked_connections(stage), 0);
        let block = ["CLIENT CACHING NO", "MULTI", "GET a", "EXEC"];
        let words: Vec<Vec<&str>> = block.iter().map(|line| line.split(' ').collect()).collect();
        client.send(words.iter().flat_map(|words| encode(words)).collect::<Vec<_>>());
        for text in ["OK", "OK", "QUEUED"] {
            assert_eq!(client.reply().text(), text);
        }
        assert_eq!(client.reply().items().len(), 1);
        client.call("GET b");
        for key in ["a", "b"] {
            stage.server.call(&format!("SET {key} 1"));
        }
        expect_news(&mut client, &["b"]);
        assert_eq!(client.call("PING").text(), "PONG", "nothing else came");
    });
}

#[test]
fn flushes_are_told_to_all_who_track() {
    on_each(&[], |stage| {
        for flush in ["FLUSHALL", "FLUSHDB", "FLUSHALL ASYNC"] {
            let mut readers = [tracking(stage, ""), tracking(stage, "OPTIN"), tracking(stage, "NOLOOP")];
            readers[0].call("GET k");
            stage.server.call("SET k 1");
            expect_news(&mut readers[0], &["k"]);
            readers.iter_mut().for_each(|reader| drop(reader.call("GET k")));
            stage.server.call(flush);
            readers.iter_mut().for_each(expect_all_news);
            let mut none = stage.connect_resp3();
            assert_eq!(none.call("PING").text(), "PONG");
        }
    });
}

#[test]
fn our_table_says_what_optin_optout_and_noloop_mean() {
    on_each(&[], |stage| {
        let mut writer = stage.connect();
        let mut in_ = tracking(stage, "OPTIN");
        in_.call("GET a");
        in_.pipeline(&["CLIENT CACHING YES", "GET b", "GET c"]);
        in_.pipeline(&["CLIENT CACHING YES", "CLIENT GETNAME", "GET d"]);
        in_.pipeline(&["CLIENT CACHING YES", "MULTI", "GET e", "GET f", "EXEC", "GET g"]);
        for key in ["a", "b", "c", "d", "e", "f", "g"] {
            writer.call(&format!("SET {key} 1"));
        }
        for key in ["b", "d", "e", "f"] {
            expect_news(&mut in_, &[key]);
        }
        assert_eq!(in_.call("PING").text(), "PONG");

        let mut out = tracking(stage, "OPTOUT");
        out.pipeline(&["GET a", "CLIENT CACHING NO", "GET b", "GET c"]);
        for key in ["a", "b", "c"] {
            writer.call(&format!("SET {key} 2"));
        }
        expect_news(&mut out, &["a"]);
        expect_news(&mut out, &["c"]);
        assert_eq!(out.call("PING").text(), "PONG");

        let (mut quiet, mut other) = (tracking(stage, "NOLOOP"), tracking(stage, ""));
        quiet.call("GET a");
        other.call("GET a");
        assert_eq!(quiet.call("SET a 3").text(), "OK");
        expect_news(&mut other, &["a"]);
        assert_eq!(quiet.call("PING").text(), "PONG", "its own write");
        quiet.call("GET a");
        writer.call("SET a 4");
        expect_news(&mut quiet, &["a"]);
        // A write that failed is none: the news behind its reply is of another's.
        quiet.call("GET a");
        assert!(quiet.call("SET a 5 NX").is_nil());
        writer.call("SET a 6");
        expect_news(&mut quiet, &["a"]);
    });
}

#[test]
fn a_lane_that_ends_has_its_readers_forget_what_they_have_read() {
    on_each(&[], |stage| {
        let (mut reader, mut plain) = (tracking(stage, ""), stage.connect_resp3());
        let mut of_scripts = tracking(stage, "");
        reader.call("GET k");
        plain.call("GET k");
        of_scripts.call("EVAL return{redis.call('get','k')} 0");
        let lane = stage.server.rows().into_iter().find(|row| row.get("flags").contains('t')).unwrap();
        stage.server.call(&format!("CLIENT KILL ID {}", lane.get("id")));
        expect_news(&mut reader, &["k"]);
        expect_all_news(&mut of_scripts);
        // It goes on as before, and was not told to forget everything.
        assert!(reader.call("GET k").is_nil());
        stage.server.call("SET k 1");
        expect_news(&mut reader, &["k"]);
        assert_eq!(plain.call("GET k").text(), "1");
    });
}

#[test]
fn a_server_that_restarts_has_all_readers_forget_what_they_have_read() {
    let (mut server, proxy) = Stage::proxied_with(&["pool.wait_timeout=5s"]).into_parts();
    let mut reader = Client::connect(proxy.address());
    reader.call("HELLO 3");
    reader.call("CLIENT TRACKING ON");
    reader.call("GET k");
    server.restart();
    expect_news(&mut reader, &["k"]);
    let mut writer = Client::connect(proxy.address());
    reader.call("GET k");
    writer.call("SET k 1");
    expect_news(&mut reader, &["k"]);
}

/// Reads on a lease are not tracked there, so they are disowned.
#[test]
fn what_is_read_on_a_lease_is_not_kept() {
    on_each(&[], |stage| {
        let mut reader = tracking(stage, "");
        reader.call("WATCH w");
        assert!(reader.call("GET k").is_nil());
        expect_news(&mut reader, &["k"]);
        assert_eq!(reader.call("UNWATCH").text(), "OK");
        for command in ["MULTI", "GET k", "MGET i j"] {
            reader.call(command);
        }
        reader.call("EXEC");
        expect_news(&mut reader, &["k"]);
        expect_news(&mut reader, &["i", "j"]);
        reader.call("GET k");
        stage.server.call("SET k 1");
        expect_news(&mut reader, &["k"]);
        assert_eq!(reader.call("PING").text(), "PONG");
    });
}

/// The server tells of a write right behind its reply, also a client whose last command it was. Here the two come in two
/// pieces.
#[test]
fn who_ends_behind_a_write_is_told_of_it() {
    on_each(&[], |stage| {
        let relay = Relay::to(stage.server.address());
        let proxy = Proxy::launch(&format!("redis://{}", relay.address()), &[]).unwrap();
        for (write, last) in [("SET k 1", None), ("SET k 2", Some("QUIT")), ("SET k 3", Some("RESET"))] {
            let mut client = proxy.connect();
            client.call("HELLO 3");
            assert_eq!(client.call("CLIENT TRACKING ON").text(), "OK");
            client.call("GET k");
            relay.split("+OK\r\n".len(), Duration::from_millis(200));
            client.start(write);
            match last {
                Some(command) => client.start(command),
                None => client.half_close(),
            }
            assert_eq!(client.reply().text(), "OK");
            expect_news(&mut client, &["k"]);
            relay.pass();
            match last {
                Some("RESET") => assert_eq!(client.reply().text(), "RESET"),
                Some(_) => assert_eq!(client.read_to_end(PATIENCE).0, "+OK\r\n"),
                None => client.expect_end(PATIENCE),
            }
        }
    });
}

/// Between two lanes there is no order: what the former one has still to tell would come behind newer replies.
#[test]
fn who_takes_another_lane_forgets_what_the_former_one_told() {
    on_each(&[], |stage| {
        let mut client = tracking(stage, "");
        client.call("GET k");
        assert_eq!(client.call("SELECT 1").text(), "OK");
        client.start("GET other");
        expect_news(&mut client, &["k"]);
        assert!(client.reply().is_nil());
        // The former lane tells it nothing any more, the new one does.
        stage.server.call("SET k 1");
        client.call("GET k");
        let mut other = stage.connect();
        other.call("SELECT 1");
        other.call("SET k 2");
        expect_news(&mut client, &["k"]);
        assert_eq!(client.call("PING").text(), "PONG");
    });
}

#[test]
fn who_has_run_a_script_is_told_of_everything() {
    on_each(&[], |stage| {
        let (mut reader, mut other) = (tracking(stage, ""), tracking(stage, ""));
        reader.call("EVAL return{redis.call('get',KEYS[1])} 1 k");
        stage.server.call("SET k 2");
        expect_news(&mut reader, &["k"]);
        other.call("GET j");
        stage.server.call("SET j 1");
        expect_news(&mut other, &["j"]);
        expect_news(&mut reader, &["j"]);
        assert_eq!(reader.call("PING").text(), "PONG");
    });
}

#[test]
fn what_was_not_told_in_resp2_is_made_up_for() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    assert_eq!(client.call("CLIENT TRACKING ON").text(), "OK");
    assert!(client.call("GET k").is_nil());
    stage.server.call("SET k 1");
    assert!(!client.call("HELLO 3").is_error());
    // Without a command of its own: it may answer from its cache for long.
    expect_all_news(&mut client);
    assert_eq!(client.call("GET k").text(), "1");
    stage.server.call("SET k 2");
    expect_news(&mut client, &["k"]);
}

/// The same where HELLO goes over a lease, which does not end with it.
#[test]
fn what_was_not_told_in_resp2_is_made_up_for_on_a_lease() {
    for lines in [&["MULTI", "HELLO 3", "EXEC"][..], &["WATCH other", "HELLO 3"]] {
        let stage = Stage::proxied();
        let mut client = stage.connect();
        assert_eq!(client.call("CLIENT TRACKING ON").text(), "OK");
        assert!(client.call("GET k").is_nil());
        for line in lines {
            assert!(!client.call(line).is_error(), "{line}");
        }
        expect_all_news(&mut client);
    }
}

#[test]
fn the_state_is_told_in_the_servers_words() {
    for version in Version::all().into_iter().filter(Version::has_hub) {
        let direct = Stage::before_none(Server::start_version(&version, &[]));
        let proxied = Stage::before(Server::start_version(&version, &[]), &[]);
        let lines = [
            "CLIENT TRACKING on OPTIN",
            "CLIENT TRACKING on OPTOUT",
            "CLIENT TRACKING on BCAST",
            "CLIENT CACHING no",
            "CLIENT CACHING x",
            "CLIENT CACHING yes",
            "CLIENT TRACKINGINFO",
            "PING",
            "CLIENT TRACKINGINFO",
            "CLIENT GETREDIR",
            "CLIENT TRACKING on OPTIN NOLOOP",
            "CLIENT TRACKINGINFO",
            "CLIENT TRACKING on FOO",
            "CLIENT TRACKING x",
            "CLIENT TRACKING",
            "CLIENT TRACKING on PREFIX a",
            "CLIENT TRACKING on OPTIN OPTOUT",
            "CLIENT TRACKING on REDIRECT x",
            "CLIENT TRACKING off",
            "CLIENT TRACKINGINFO",
            "CLIENT CACHING yes",
            "CLIENT TRACKING on",
            "CLIENT GETREDIR",
            "MULTI",
            "CLIENT TRACKINGINFO",
            "CLIENT TRACKING on OPTOUT",
            "CLIENT CACHING no",
            "CLIENT TRACKINGINFO",
            "EXEC",
            "CLIENT TRACKINGINFO",
            "HELLO 2",
            "CLIENT TRACKINGINFO",
            "RESET",
            "CLIENT TRACKINGINFO",
        ];
        for protocol in ["HELLO 2", "HELLO 3"] {
            let (mut one, mut two) = (direct.connect(), proxied.connect());
            one.call(protocol);
            two.call(protocol);
            for line in lines {
                let (expected, found) = (one.call(line), two.call(line));
                if !line.starts_with("HELLO") {
                    assert_eq!(found.raw, expected.raw, "{line} after {protocol} on {}", version.name);
                }
            }
        }
        let mut client = tracking(&proxied, "");
        let row = Row::parse(client.call("CLIENT INFO").text().trim_start_matches("txt:").trim());
        assert_eq!((row.get("flags"), row.get("redir")), ("t", "0"));
    }
}

/// A user who may not use CLIENT TRACKING is told so by the server, and a full table tells what it forgets.
#[test]
fn a_refusal_is_the_servers_own() {
    on_each(&[], |stage| {
        stage.server.call("ACL SETUSER default -client|tracking");
        let mut client = stage.connect_resp3();
        for line in ["CLIENT TRACKING on", "CLIENT TRACKING off", "CLIENT TRACKING x"] {
            assert!(client.call(line).error().starts_with("NOPERM "), "{line}");
        }
        assert_eq!(client.call("GET k").raw, &b"_\r\n"[..]);
        stage.server.call("ACL SETUSER default +client|tracking");
        assert_eq!(client.call("CLIENT TRACKING on").text(), "OK");
    });
}

/// A client with a cache, as a library keeps one.
struct Cacher {
    client: Client,
    options: &'static str,
    own: String,
    cache: BTreeMap<String, u64>,
    /// The newest value seen of each key: counters only grow.
    newest: BTreeMap<String, u64>,
    pushes: usize,
}

impl Cacher {
    fn connect(stage: &Stage, options: &'static str, own: String) -> Self {
        let client = tracking(stage, options);
        Self { client, options, own, cache: BTreeMap::new(), newest: BTreeMap::new(), pushes: 0 }
    }

    /// The next reply; the news before it are heeded.
    fn next(&mut self) -> Result<Reply, Ended> {
        loop {
            let reply = self.client.try_reply(PATIENCE)?;
            if !matches!(reply.value, Value::Push(_)) {
                return Ok(reply);
            }
            self.pushes += 1;
            match invalidated(&reply) {
                None => self.cache.clear(),
                Some(keys) => self.cache.retain(|key, _| !keys.contains(key)),
            }
        }
    }

    fn sees(&mut self, key: &str, value: &Value, keep: bool) {
        let value: u64 = if *value == Value::Nil { 0 } else { value.text().parse().unwrap() };
        let newest = self.newest.entry(key.to_owned()).or_default();
        assert!(value >= *newest, "{key} went from {newest} back to {value} ({})", self.options);
        *newest = value;
        if keep {
            self.cache.insert(key.to_owned(), value);
        } else {
            self.cache.remove(key);
        }
    }

    /// Reads some keys in one of the ways that clients do.
    fn read(&mut self, keys: &[String], way: u32) -> Result<(), Ended> {
        let get = |key: &String| format!("GET {key}");
        let mark = match self.options {
            "OPTIN" => Some("CLIENT CACHING YES"),
            "OPTOUT" if way.is_multiple_of(3) => Some("CLIENT CACHING NO"),
            _ => None,
        };
        let keep = self.options != "OPTOUT" || mark.is_none();
        let mut lines: Vec<String> = Vec::new();
        let one_by_one = way % 8 < 4;
        if one_by_one {
            for key in keys {
                lines.extend(mark.map(str::to_owned));
                lines.push(get(key));
            }
        } else {
            lines.extend(mark.map(str::to_owned));
            match way % 8 {
                4 => lines.push(format!("MGET {}", keys.join(" "))),
                5 | 6 => {
                    lines.push("MULTI".to_owned());
                    lines.extend(keys.iter().map(get));
                    lines.push("EXEC".to_owned());
                }
                _ => lines.push(format!(
                    "EVAL return{{redis.call('mget',unpack(KEYS))}} {} {}",
                    keys.len(),
                    keys.join(" ")
                )),
            }
        }
        if way % 8 == 6 {
            // Command by command: on a lease.
            for line in &lines {
                self.client.start(line);
                let reply = self.next()?;
                if line == "EXEC" {
                    for (key, value) in keys.iter().zip(reply.items()) {
                        self.sees(key, value, keep);
                    }
                }
            }
            // What comes behind the reply belongs to it.
            return self.settle();
        }
        let bytes: Vec<u8> =
            lines.iter().flat_map(|line| encode(&line.split(' ').collect::<Vec<_>>())).collect();
        self.client.try_send(bytes).map_err(|_| Ended::Reset)?;
        let mut next_key = keys.iter();
        for line in &lines {
            let reply = self.next()?;
            if line.starts_with("GET ") && one_by_one {
                if let Some(key) = next_key.next() {
                    self.sees(key, &reply.value, keep);
                }
            } else if line.starts_with("MGET") || line == "EXEC" || line.starts_with("EVAL") {
                let items = match reply.items() {
                    [Value::List(inner)] if line.starts_with("EVAL") => inner.clone(),
                    items => items.to_vec(),
                };
                for (key, value) in keys.iter().zip(&items) {
                    self.sees(key, value, keep);
                }
            }
        }
        Ok(())
    }

    /// Writes the key that nobody else writes, so that it grows; NOLOOP has it not told of this.
    fn write_own(&mut self, writes: &AtomicU64) -> Result<(), Ended> {
        let (key, value) = (self.own.clone(), writes.fetch_add(1, Ordering::Relaxed));
        self.client.start(&format!("SET {key} {value}"));
        assert_eq!(self.next()?.text(), "OK");
        self.sees(&key, &Value::Bulk(value.to_string().into_bytes()), false);
        Ok(())
    }

    fn write(&mut self, key: &str) -> Result<(), Ended> {
        self.client.start(&format!("INCR {key}"));
        let reply = self.next()?;
        self.sees(key, &Value::Bulk(reply.int().to_string().into_bytes()), false);
        Ok(())
    }

    /// All that was sent to it before this is heeded.
    fn settle(&mut self) -> Result<(), Ended> {
        self.client.start("PING");
        self.next().map(drop)
    }
}

/// The property: whatever clients read, write and lose, no cache holds an old value once the news are in, and no value is
/// older than one seen before.
fn no_cache_holds_an_old_value(stage: &Stage, seed: u64, with_losses: bool) -> usize {
    const SHARED: usize = 12;
    const OPTIONS: [&str; 6] =
        ["", "OPTIN", "OPTOUT", "NOLOOP", "BCAST PREFIX key: PREFIX own:", "BCAST NOLOOP"];
    let over = AtomicBool::new(false);
    let writes = AtomicU64::new(1);
    let keys: Vec<String> = (0..SHARED).map(|at| format!("key:{at}")).collect();
    let worker = |seed: u64| {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut crowd: Vec<_> = (0..OPTIONS.len())
            .map(|at| Cacher::connect(stage, OPTIONS[at], format!("own:{seed}:{at}")))
            .collect();
        let keys: Vec<_> =
            keys.iter().cloned().chain(crowd.iter().map(|client| client.own.clone())).collect();
        let mut pushes = 0;
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            let at = random.usize(..crowd.len());
            let client = &mut crowd[at];
            let done = if random.u32(..100) < 70 {
                let count = random.usize(1..4);
                let some: BTreeSet<_> = (0..count).map(|_| random.usize(..keys.len())).collect();
                let some: Vec<_> = some.into_iter().map(|at| keys[at].clone()).collect();
                client.read(&some, random.u32(..24))
            } else if random.u32(..100) < 50 {
                client.write(&keys[random.usize(..SHARED)])
            } else if random.u32(..100) < 60 {
                client.write_own(&writes)
            } else {
                client.settle()
            };
            if let Err(ended) = done {
                assert!(with_losses && ended != Ended::Late, "{ended:?}");
                pushes += client.pushes;
                *client = Cacher::connect(stage, client.options, client.own.clone());
            }
        }
        over.store(true, Ordering::Relaxed);
        (crowd, pushes)
    };
    let (crowds, _) = std::thread::scope(|scope| {
        let outside = scope.spawn(|| {
            let mut client = Client::connect(stage.server.address());
            let mut random = fastrand::Rng::with_seed(seed);
            while !over.load(Ordering::Relaxed) {
                client.call(&format!("INCR {}", keys[random.usize(..SHARED)]));
                if with_losses && random.u32(..100) == 0 {
                    let lanes: Vec<_> = stage
                        .server
                        .rows()
                        .into_iter()
                        .filter(|row| row.get("flags").contains('t'))
                        .collect();
                    if let Some(lane) = lanes.first() {
                        client.call(&format!("CLIENT KILL ID {}", lane.get("id")));
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let threads: Vec<_> = (0..3).map(|at| scope.spawn(move || worker(seed * 10 + at))).collect();
        let crowds: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        (crowds, outside.join().unwrap())
    });
    let mut held = 0;
    let mut pushes = 0;
    for (crowd, before) in crowds {
        pushes += before;
        for mut client in crowd {
            // What comes over another lane than its last read may come a moment later.
            let mut old = Vec::new();
            let end = Instant::now() + Duration::from_secs(2);
            loop {
                if client.settle().is_err() {
                    client.cache.clear();
                    break;
                }
                old.clear();
                for (key, value) in &client.cache {
                    let now = stage.server.call(&format!("GET {key}"));
                    let now: u64 = if now.is_nil() { 0 } else { now.text().parse().unwrap() };
                    old.extend((*value != now).then(|| format!("{key}: {value}, now {now}")));
                }
                if old.is_empty() || Instant::now() > end {
                    break;
                }
            }
            assert_eq!(
                old,
                Vec::<String>::new(),
                "in the cache of a client with '{}', seed {seed}",
                client.options
            );
            pushes += client.pushes;
            held += client.cache.len();
        }
    }
    println!("{held} values held at the end, {pushes} pushes, seed {seed}");
    assert!(pushes > 0);
    held
}

#[test]
fn no_cache_keeps_an_old_value_whatever_is_read_and_written() {
    let seed = fastrand::u64(..1 << 32);
    on_each(&["pool.max_connections=40"], |stage| {
        no_cache_holds_an_old_value(stage, seed, false);
    });
}

#[test]
fn no_cache_keeps_an_old_value_when_lanes_are_lost() {
    let seed = fastrand::u64(..1 << 32);
    on_each(&["pool.max_connections=40", "listen.workers=2"], |stage| {
        no_cache_holds_an_old_value(stage, seed, true);
    });
}

/// Where lanes serve several keys in turn, a tracked lane that becomes another has its readers forget.
#[test]
fn no_cache_keeps_an_old_value_where_lanes_take_turns() {
    let seed = fastrand::u64(..1 << 32);
    on_each(&["pool.max_connections=6"], |stage| {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut others: Vec<_> = (1..4)
                    .map(|database| {
                        let mut client = stage.connect();
                        client.call(&format!("SELECT {database}"));
                        client
                    })
                    .collect();
                while !over.load(Ordering::Relaxed) {
                    others.iter_mut().for_each(|client| drop(client.call("GET k")));
                }
            });
            no_cache_holds_an_old_value(stage, seed, false);
            over.store(true, Ordering::Relaxed);
        });
    });
}
