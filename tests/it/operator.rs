//! What an operator sees of who holds the connections, and what can be done about it while the proxy runs.

use serde_json::Value as Json;

use crate::harness::{Client, PATIENCE, Row, Stage, until};

/// The connection of ours on the server that has last run `command` for one client alone.
fn leased(stage: &Stage, command: &str) -> Row {
    let mut found = None;
    until("the server lists the lease", PATIENCE, || {
        let rows = stage.server.rows();
        let mut rows = rows.into_iter().filter(|row| row.get("name").ends_with(":leased"));
        found = rows.find(|row| row.get("cmd") == command);
        found.is_some()
    });
    found.unwrap()
}

/// Opens watches until there is no lease left. Returns the clients, and what the last one was told.
fn fill(stage: &Stage) -> (Vec<Client>, String) {
    let mut holders = Vec::new();
    for _ in 0..20 {
        let mut client = stage.connect();
        let reply = client.call("WATCH w");
        if reply.is_error() {
            return (holders, reply.error().to_owned());
        }
        holders.push(client);
    }
    panic!("20 watches at once");
}

#[test]
fn the_holder_of_a_connection_is_shown_by_fields_everywhere() {
    let stage = Stage::proxied_with(&["pool.wait_timeout=300ms"]);
    let mut holder = stage.connect();
    let id = holder.call("CLIENT ID").int();
    holder.call("CLIENT SETNAME web");
    holder.call("WATCH w");
    holder.call("GET w");
    let row = leased(&stage, "get");
    let port = row.get("addr").rsplit(':').next().unwrap().to_owned();
    let [server_id, local_port] =
        [row.get("id"), &port].map(|number| Json::from(number.parse::<u64>().unwrap()));
    let address = holder.local_address();
    let (before, after) = (
        format!("client={id} name=web addr={address} user=default pin=WATCH held="),
        format!(" cmd=get server_id={} local_port={port}", row.get("id")),
    );
    // The error.
    let (_others, told) = fill(&stage);
    let longest = told.split("; longest: ").nth(1).unwrap_or_else(|| panic!("{told}"));
    assert!(longest.starts_with(&before) && longest.ends_with(&format!("{after})")), "{told}");
    // PROXY.
    let listing = stage.connect().call("PROXY UPSTREAMS").lines();
    let line = listing.lines().find(|line| line.contains(&before)).unwrap_or_else(|| panic!("{listing}"));
    assert!(line.starts_with("kind=leased phase=open ") && line.contains(&after), "{line}");
    // The log.
    until("the log names the holder", PATIENCE, || {
        let log = stage.proxy().log();
        log.lines().filter_map(|line| serde_json::from_str::<Json>(line).ok()).any(|line| {
            line["reason"] == "pool_full"
                && line["client"] == id
                && line["name"] == "web"
                && line["address"] == address.to_string()
                && line["user"] == "default"
                && line["pin"] == "WATCH"
                && line["held_seconds"].is_u64()
                && line["command"] == "get"
                && line["server_id"] == server_id
                && line["local_port"] == local_port
        })
    });
    // /status, twice.
    let status = stage.proxy().status();
    let is_it = |shown: &Json| {
        shown["client"]["id"] == id
            && shown["client"]["name"] == "web"
            && shown["client"]["address"] == address.to_string()
            && shown["client"]["user"] == "default"
            && shown["client"]["pin"] == "WATCH"
            && shown["client"]["command"] == "get"
            && shown["server_id"] == server_id
            && shown["local_port"] == local_port
    };
    assert!(is_it(&status["longest_lease"]), "{status:#}");
    assert_eq!(
        status["upstreams"].as_array().unwrap().iter().filter(|row| is_it(row)).count(),
        1,
        "{status:#}"
    );
}

#[test]
fn what_is_full_and_what_is_reserved_is_said() {
    let stage = Stage::proxied_with(&["pool.wait_timeout=300ms"]);
    let (holders, told) = fill(&stage);
    // Of 8: the control connection, two lanes and two hubs are kept from leases.
    assert_eq!(holders.len(), 3);
    let held = stage.server.clients();
    assert!(told.contains(&format!("(leases 3 of 3; {held} of 8 connections held: ")), "{told}");
    assert!(
        told.contains("; reserved: 1 control, ") && told.contains("1 blocking hub, 1 pub/sub hub"),
        "{told}"
    );
    let status = stage.proxy().status();
    let permits = status["permits"].as_array().unwrap();
    let of = |kind: &str| permits.iter().find(|row| row["kind"] == kind).unwrap();
    assert_eq!((&of("leased")["held"], &of("leased")["max"]), (&Json::from(3), &Json::from(3)));
    assert_eq!((&of("leased")["full"], &of("blocking")["full"]), (&Json::from(true), &Json::from(false)));
    assert_eq!(of("blocking")["reserved"], 1);
    let pools = stage.connect().call("PROXY POOLS").lines();
    assert!(pools.contains("kind=leased held=3 max=3 reserved=0 full=yes\n"), "{pools}");
    let metrics = stage.proxy().metrics();
    assert_eq!(metrics["redbouncer_permits_max{kind=\"leased\"}"], 3.0);
    assert_eq!(metrics["redbouncer_permits_reserved{kind=\"pubsub\"}"], 1.0);
}

#[test]
fn a_lease_that_is_held_for_long_is_named_once() {
    let stage = Stage::proxied_with(&["log.long_lease=1s"]);
    let mut holder = stage.connect();
    let id = holder.call("CLIENT ID").int();
    holder.call("WATCH w");
    let warnings = || {
        let log = stage.proxy().log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Json>(line).ok());
        lines
            .filter(|line| line["message"] == "a lease is held for longer than log.long_lease")
            .collect::<Vec<_>>()
    };
    until("the log names it", PATIENCE, || !warnings().is_empty());
    until("the metric shows its age", PATIENCE, || {
        stage.proxy().metrics()["redbouncer_lease_oldest_seconds{pin=\"WATCH\"}"] >= 3.0
    });
    let warnings = warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!((&warnings[0]["level"], &warnings[0]["client"]), (&Json::from("WARN"), &Json::from(id)));
    assert_eq!((&warnings[0]["pin"], &warnings[0]["command"]), (&Json::from("WATCH"), &Json::from("watch")));
    assert_eq!(holder.call("UNWATCH").text(), "OK");
    until("nothing is held", PATIENCE, || {
        stage.proxy().metrics()["redbouncer_lease_oldest_seconds{pin=\"WATCH\"}"] == 0.0
    });
}

/// `redis-cli` escapes a bulk string with line breaks, and shows a verbatim string and the elements of an array as they are.
#[test]
fn listings_have_the_form_that_redis_cli_shows_line_by_line() {
    let stage = Stage::proxied();
    for command in ["PROXY HELP", "PROXY POOLS", "PROXY CLIENTS", "PROXY UPSTREAMS"] {
        let (mut plain, mut modern) = (stage.connect(), stage.connect_resp3());
        plain.call("PING");
        let lines = plain.call(command);
        assert!(!lines.items().is_empty(), "{command}: {lines:?}");
        assert!(lines.items().iter().all(|line| !line.text().contains('\n')), "{command}: {lines:?}");
        let text = modern.call(command);
        assert!(text.raw.starts_with(b"=") && text.text().contains('\n'), "{command}: {text:?}");
    }
    let port = stage.address().port().to_string();
    let shown = |protocol: &[&str]| {
        let mut arguments = vec!["-p", &port];
        arguments.extend(protocol);
        let output = std::process::Command::new("redis-cli")
            .args(arguments)
            .args(["PROXY", "POOLS"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for text in [shown(&["-2"]), shown(&["-3"])] {
        assert!(text.lines().any(|line| line.starts_with("kind=leased held=0 max=3 ")), "{text}");
    }
}

/// How many clients the listing shows at `place`.
fn placed(stage: &Stage, place: &str) -> usize {
    let listing = stage.connect().call("PROXY CLIENTS").lines();
    listing.lines().filter(|line| line.ends_with(&format!("place={place}"))).count()
}

/// The acts that the log tells of.
fn acts(stage: &Stage) -> Vec<Json> {
    let log = stage.proxy().log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Json>(line).ok());
    lines.filter(|line| line["message"] == "PROXY command").collect()
}

#[test]
fn a_client_is_killed_by_what_the_listings_show_of_it() {
    let stage = Stage::proxied();
    let mut operator = stage.connect();
    operator.call("CLIENT SETNAME operator");
    let named = |name: &str| {
        let mut client = Client::connect_apart(stage.address());
        client.call(&format!("CLIENT SETNAME {name}"));
        client
    };
    // By id, name, address and user with a name.
    for (name, filter) in [("a", "ID"), ("b", "NAME b"), ("c", "ADDR"), ("d", "USER default NAME d")] {
        let (mut client, mut other) = (named(name), named("other"));
        let filter = match filter {
            "ID" => format!("ID {}", client.call("CLIENT ID").int()),
            "ADDR" => format!("ADDR {}", client.local_address()),
            filter => filter.to_owned(),
        };
        assert_eq!(operator.call(&format!("PROXY KILL {filter}")).int(), 1, "{filter}");
        client.expect_end(PATIENCE);
        assert_eq!(other.call("PING").text(), "PONG", "{filter}");
        assert_eq!(operator.call(&format!("PROXY KILL {filter}")).int(), 0, "{filter}");
    }
    // By how long it has been idle: nobody for a day.
    let mut idle = named("idle");
    assert_eq!(operator.call("PROXY KILL NAME idle IDLE 86400").int(), 0);
    until("it is idle", PATIENCE, || operator.call("PROXY KILL NAME idle IDLE 1").int() == 1);
    idle.expect_end(PATIENCE);
    // Never the one who asks, unless it says so; never everybody.
    assert_eq!(operator.call("PROXY KILL NAME operator").int(), 0);
    for senseless in
        ["PROXY KILL", "PROXY KILL ID", "PROXY KILL ID x", "PROXY KILL TYPE normal", "PROXY KILL 1.2.3.4:5"]
    {
        let reply = operator.call(senseless);
        assert!(
            reply.error().starts_with("ERR redbouncer: PROXY KILL needs filters"),
            "{senseless}: {reply:?}"
        );
    }
    assert_eq!(operator.call("PROXY KILL NAME operator SKIPME no").int(), 1);
    operator.expect_end(PATIENCE);
}

#[test]
fn the_holder_of_a_connection_is_killed_by_the_id_on_the_server() {
    let stage = Stage::proxied();
    let mut operator = stage.connect();
    let (mut holder, mut other) = (stage.connect(), stage.connect());
    for client in [&mut holder, &mut other] {
        assert_eq!(client.call("WATCH w").text(), "OK");
    }
    holder.call("TYPE w");
    let id = leased(&stage, "type").get("id").to_owned();
    // Another connection of ours: nobody holds it alone.
    let lane = stage.server.rows().into_iter().find(|row| row.get("name").ends_with(":shared"));
    let lane = lane.map_or("1".to_owned(), |row| row.get("id").to_owned());
    assert_eq!(operator.call(&format!("PROXY KILL CONNECTION {lane}")).int(), 0);
    assert_eq!(operator.call(&format!("PROXY KILL CONNECTION {id}")).int(), 1);
    holder.expect_end(PATIENCE);
    until("the server has the connection back", PATIENCE, || {
        stage.server.rows().iter().all(|row| row.get("id") != id)
    });
    assert_eq!(other.call("UNWATCH").text(), "OK");
    let mut act = Json::Null;
    until("the log tells of it", PATIENCE, || {
        act = acts(&stage).pop().unwrap_or_default();
        act["outcome"] == format!("CONNECTION {id}: 1 closed")
    });
    assert_eq!(
        (&act["level"], &act["act"], &act["user"]),
        (&"INFO".into(), &"KILL".into(), &"default".into())
    );
    assert_eq!(act["address"], operator.local_address().to_string());
}

#[test]
fn new_commands_wait_while_the_proxy_is_paused_and_what_has_begun_goes_on() {
    let stage = Stage::proxied();
    let mut operator = stage.connect();
    let (mut waiting, mut pipelining) = (stage.connect(), stage.connect());
    let (mut blocked, mut listening, mut holder) = (stage.connect(), stage.connect(), stage.connect());
    for client in [&mut waiting, &mut pipelining] {
        client.call("PING");
    }
    blocked.start("BLPOP jobs 0");
    listening.call("SUBSCRIBE news");
    holder.call("WATCH w");
    until("one is blocked", PATIENCE, || placed(&stage, "blocking-hub") == 1);
    assert_eq!(operator.call("PROXY PAUSE").text(), "OK");
    let calls = stage.server.calls_of("get");
    waiting.start("GET none");
    pipelining.start("GET k");
    pipelining.start("SET k v");
    let mut late = stage.connect();
    late.start("SUBSCRIBE other");
    until("three wait", PATIENCE, || placed(&stage, "paused") == 3);
    // What has begun goes on: the transaction, the blocked call, the subscription.
    assert!(holder.call("GET w").is_nil());
    assert_eq!(holder.call("MULTI").text(), "OK");
    assert_eq!(holder.call("PING").text(), "QUEUED");
    assert_eq!(holder.call("EXEC").items().len(), 1);
    stage.server.call("RPUSH jobs one");
    assert_eq!(blocked.reply().items()[1].text(), "one");
    stage.server.call("PUBLISH news hello");
    assert_eq!(listening.reply().items()[2].text(), "hello");
    assert_eq!(stage.server.calls_of("get"), calls + 1, "the transaction's own");
    assert_eq!(
        waiting.try_reply(std::time::Duration::from_millis(50)).unwrap_err(),
        crate::harness::Ended::Late
    );
    // Everybody is told.
    let status = stage.proxy().status();
    assert_eq!((&status["state"], &status["waits"]["paused"]), (&"paused".into(), &3.into()), "{status:#}");
    assert!(status["paused"]["seconds"].is_u64() && status["paused"]["seconds_left"].is_null(), "{status:#}");
    assert_eq!(stage.proxy().metrics()["redbouncer_paused"], 1.0);
    until("the log tells of it", PATIENCE, || acts(&stage).iter().any(|act| act["act"] == "PAUSE"));
    // In the meantime the operator sees and does what is to be done.
    assert!(operator.call("CLIENT LIST").text().contains("cmd=get"));
    assert_eq!(operator.call("PROXY RESUME").text(), "OK");
    assert!(waiting.reply().is_nil());
    assert!(pipelining.reply().is_nil());
    assert_eq!(pipelining.reply().text(), "OK");
    assert_eq!(late.reply().items()[1].text(), "other");
    let status = stage.proxy().status();
    assert_eq!(
        (&status["state"], &status["waits"]["paused"], &status["paused"]),
        (&"serving".into(), &0.into(), &Json::Null)
    );
    assert_eq!(stage.proxy().metrics()["redbouncer_paused"], 0.0);
    assert_eq!(operator.call("PROXY RESUME").text(), "OK", "twice is no error");
}

#[test]
fn a_pause_with_a_time_ends_by_itself() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    client.call("PING");
    let start = std::time::Instant::now();
    assert_eq!(stage.connect().call("PROXY PAUSE 700").text(), "OK");
    assert_eq!(client.call("SET k v").text(), "OK");
    assert!(start.elapsed() >= std::time::Duration::from_millis(695), "{:?}", start.elapsed());
    for senseless in ["PROXY PAUSE 0", "PROXY PAUSE -1", "PROXY PAUSE x", "PROXY PAUSE 86400001"] {
        let reply = stage.connect().call(senseless);
        assert!(reply.error().starts_with("ERR redbouncer: PROXY PAUSE takes"), "{senseless}: {reply:?}");
    }
    assert!(stage.connect().call("PROXY PAUSE 1 2").error().contains("'proxy|pause'"));
    until("the log tells of the end", PATIENCE, || stage.proxy().log().contains("PROXY PAUSE has expired"));
}

/// What PROXY PAUSE is for: nobody notices that the server was another one meanwhile, and PROXY RESUME needs none.
#[test]
fn a_server_is_replaced_during_a_pause_and_no_client_notices() {
    let mut stage = Stage::proxied();
    let mut clients: Vec<_> = (0..20).map(|_| stage.connect()).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.call(&format!("SET before:{at} v")).text(), "OK");
    }
    let mut operator = stage.connect();
    assert_eq!(operator.call("PROXY PAUSE").text(), "OK");
    for (at, client) in clients.iter_mut().enumerate() {
        client.start(&format!("SET after:{at} v"));
    }
    until("all wait", PATIENCE, || stage.proxy().status()["waits"]["paused"] == 20);
    stage.server.kill();
    // While there is no server, too.
    assert_eq!(operator.call("PROXY RESUME").text(), "OK");
    assert_eq!(operator.call("PROXY PAUSE").text(), "OK");
    stage.server.restart();
    assert_eq!(operator.call("PROXY RESUME").text(), "OK");
    for client in &mut clients {
        assert_eq!(client.reply().text(), "OK");
    }
    assert_eq!(stage.server.call("DBSIZE").int(), 20);
}

#[test]
fn a_drain_does_not_wait_for_clients_that_are_paused() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    client.call("PING");
    stage.connect().call("PROXY PAUSE");
    client.start("GET k");
    until("it waits", PATIENCE, || stage.proxy().status()["waits"]["paused"] == 1);
    let (_server, proxy) = stage.into_parts();
    let exit = proxy.stop();
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(exit.took < std::time::Duration::from_secs(5), "{exit:?}");
    client.expect_end(PATIENCE);
}

/// The ids on the server of our connections.
fn ids(stage: &Stage) -> std::collections::BTreeSet<String> {
    let rows = stage.server.rows();
    rows.iter()
        .filter(|row| row.get("name").starts_with("redbouncer:"))
        .map(|row| row.get("id").to_owned())
        .collect()
}

#[test]
fn every_connection_is_renewed_when_it_is_free_and_nobody_is_lost() {
    let stage = Stage::proxied_with(&["pubsub.resubscribe=silent"]);
    let (mut plain, mut parking, mut holder) = (stage.connect(), stage.connect(), stage.connect());
    let (mut blocked, mut listening, mut operator) = (stage.connect(), stage.connect(), stage.connect());
    plain.call("SET k v");
    blocked.start("BLPOP jobs 0");
    listening.call("SUBSCRIBE news");
    parking.call("WATCH w");
    holder.call("WATCH w");
    parking.call("UNWATCH");
    operator.call("CLIENT LIST");
    until("one is blocked", PATIENCE, || placed(&stage, "blocking-hub") == 1);
    let before = ids(&stage);
    assert!(before.len() >= 5, "{before:?}");
    let held = holder.call("TYPE k").text();
    assert_eq!(held, "string");
    let kept = leased(&stage, "type").get("id").to_owned();
    let told = operator.call("PROXY RECONNECT").int();
    assert!(told >= i64::try_from(before.len()).unwrap() - 1, "{told} of {before:?}");
    until("all but the held one are others", PATIENCE, || {
        let now = ids(&stage);
        now.intersection(&before).all(|id| *id == kept)
    });
    // The transaction has lost nothing.
    holder.call("MULTI");
    holder.call("SET k w");
    assert_eq!(holder.call("EXEC").items().len(), 1);
    until("the held one is another, too", PATIENCE, || !ids(&stage).contains(&kept));
    // Nor have those who wait and listen.
    until("the subscription is made anew", PATIENCE, || stage.server.call("PUBLISH news hello").int() == 1);
    assert_eq!(listening.reply().items()[2].text(), "hello");
    stage.server.call("RPUSH jobs one");
    assert_eq!(blocked.reply().items()[1].text(), "one");
    assert_eq!(plain.call("GET k").text(), "w");
    let metrics = stage.proxy().metrics();
    let renewed: f64 = metrics
        .iter()
        .filter(|(name, _)| {
            name.starts_with("redbouncer_upstream_closed_total") && name.contains("\"reconnect\"")
        })
        .map(|(_, count)| count)
        .sum();
    assert!(renewed >= 5.0, "{renewed}");
    assert!(stage.server.clients() <= 8);
}

/// Publishes 0, 1, 2 … directly on the server while `disturb` runs. Returns what a subscriber of the proxy has read by the end of
/// its connection, or, where it has none, by the last message.
fn numbers_heard(stage: &Stage, disturb: impl FnOnce()) -> (Vec<u64>, bool) {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

    let mut subscriber = stage.connect();
    subscriber.call("SUBSCRIBE numbers");
    let (is_over, next) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut publisher = Client::connect(stage.server.address());
            while !is_over.load(SeqCst) {
                publisher.call(&format!("PUBLISH numbers {}", next.fetch_add(1, SeqCst)));
            }
        });
        let reader = scope.spawn(move || {
            let mut heard = Vec::new();
            loop {
                let Ok(message) = subscriber.try_reply(PATIENCE) else { return (heard, true) };
                match message.items()[2].text().parse() {
                    Ok(number) => heard.push(number),
                    Err(_) => return (heard, false),
                }
            }
        });
        until("numbers are published", PATIENCE, || next.load(SeqCst) > 100);
        disturb();
        let before = next.load(SeqCst);
        until("more are published", PATIENCE, || next.load(SeqCst) > before + 100);
        is_over.store(true, SeqCst);
        // Who stays hears it when the subscription is there again.
        until("the subscriber has the last message, or its end", PATIENCE, || {
            stage.server.call("PUBLISH numbers end");
            reader.is_finished()
        });
        reader.join().unwrap()
    })
}

#[test]
fn a_subscriber_misses_no_message_of_a_reconnect_without_being_told() {
    let stage = Stage::proxied();
    let (heard, was_closed) = numbers_heard(&stage, || {
        assert!(!stage.connect().call("PROXY RECONNECT").is_error());
    });
    assert!(was_closed, "pubsub.resubscribe is \"close\"");
    let expected: Vec<u64> = (heard[0]..heard[0] + heard.len() as u64).collect();
    assert_eq!(heard, expected, "nothing is missing or doubled up to the end");
    let closed = stage.proxy().metrics()["redbouncer_clients_closed_total{reason=\"subscription_lost\"}"];
    assert_eq!(closed, 1.0);
    // Who asks for it stays, and hears no number twice.
    let stage = Stage::proxied_with(&["pubsub.resubscribe=silent"]);
    let (heard, was_closed) = numbers_heard(&stage, || {
        assert!(!stage.connect().call("PROXY RECONNECT").is_error());
    });
    assert!(!was_closed);
    assert!(heard.windows(2).all(|pair| pair[0] < pair[1]), "{heard:?}");
}

#[test]
fn a_reconnect_under_load_is_noticed_by_no_client() {
    let stage = Stage::proxied();
    let address = stage.address();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let is_over = &is_over;
        let clients: Vec<_> = (0..6)
            .map(|number| {
                scope.spawn(move || {
                    let mut client = Client::connect(address);
                    let mut rounds = 0;
                    while !is_over.load(std::sync::atomic::Ordering::SeqCst) {
                        rounds += 1;
                        assert_eq!(client.call(&format!("INCR n:{number}")).int(), rounds);
                        if number < 2 {
                            assert_eq!(client.call("WATCH w").text(), "OK");
                            assert_eq!(client.call("UNWATCH").text(), "OK");
                        }
                    }
                    rounds
                })
            })
            .collect();
        let mut operator = Client::connect(address);
        for _ in 0..20 {
            let before = ids(&stage);
            assert!(!operator.call("PROXY RECONNECT").is_error());
            until("they are others", PATIENCE, || ids(&stage).is_disjoint(&before));
        }
        is_over.store(true, std::sync::atomic::Ordering::SeqCst);
        for client in clients {
            assert!(client.join().expect("no error to any client") > 0);
        }
    });
}

#[test]
fn what_is_logged_is_told_and_changed_at_run_time() {
    let stage = Stage::proxied();
    let mut operator = stage.connect();
    assert_eq!(operator.call("PROXY LOG").lines(), "info\n");
    let connected = |stage: &Stage| stage.proxy().log().matches("client connected").count();
    assert_eq!(connected(&stage), 0);
    assert_eq!(operator.call("PROXY LOG warn,redbouncer=debug").text(), "OK");
    assert_eq!(operator.call("PROXY LOG").lines(), "warn,redbouncer=debug\n");
    let _client = stage.connect();
    until("the finer level shows it", PATIENCE, || connected(&stage) > 0);
    for senseless in ["PROXY LOG loud", "PROXY LOG info,redbouncer=loud"] {
        let reply = operator.call(senseless);
        assert!(reply.error().starts_with("ERR redbouncer: PROXY LOG takes"), "{senseless}: {reply:?}");
    }
    assert_eq!(operator.call("PROXY LOG").lines(), "warn,redbouncer=debug\n");
    assert_eq!(operator.call("PROXY LOG error").text(), "OK");
    // By the former level, and by the new one.
    assert_eq!(operator.call("PROXY LOG info").text(), "OK");
    until("both are told of", PATIENCE, || {
        let told: Vec<_> =
            acts(&stage).iter().map(|act| act["outcome"].as_str().unwrap().to_owned()).collect();
        told == ["warn,redbouncer=debug", "error", "info"]
    });
}

#[test]
fn hubs_and_what_waits_there_are_listed() {
    let stage = Stage::proxied();
    let mut blocked: Vec<_> = (0..3).map(|_| stage.connect()).collect();
    for client in &mut blocked {
        client.start("BLPOP jobs other 0");
    }
    let mut listening: Vec<_> = (0..2).map(|_| stage.connect()).collect();
    for client in &mut listening {
        client.call("SUBSCRIBE news");
    }
    let mut operator = stage.connect();
    until("both are listed", PATIENCE, || {
        let listing = operator.call("PROXY HUBS").lines();
        listing.contains("worker=0 kind=blocking user=default state=open ")
            && listing
                .lines()
                .any(|line| line.contains("kind=blocking") && line.contains(" waiting=3 names=2 "))
            && listing
                .lines()
                .any(|line| line.contains("kind=pubsub") && line.contains(" waiting=2 names=1 "))
    });
}

#[test]
fn a_shutdown_by_proxy_drains_as_a_signal_does() {
    let stage = Stage::proxied();
    let (mut idle, mut operator) = (stage.connect(), stage.connect());
    idle.call("PING");
    assert_eq!(operator.call("PROXY SHUTDOWN").text(), "OK");
    let (server, proxy) = stage.into_parts();
    let exit = proxy.wait(PATIENCE);
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(exit.stderr.contains("\"signal\":\"PROXY SHUTDOWN\""), "{exit:?}");
    idle.expect_end(PATIENCE);
    until("nothing of ours is left", PATIENCE, || server.clients() == 0);
}

const ACTS: [&str; 6] =
    ["PROXY KILL ID 1", "PROXY PAUSE 1", "PROXY RESUME", "PROXY RECONNECT", "PROXY LOG", "PROXY SHUTDOWN"];

/// Asserts that `client` may do nothing of it, neither by itself nor inside MULTI.
fn assert_may_not_act(client: &mut Client) {
    for act in ACTS {
        let reply = client.call(act);
        assert!(reply.error().starts_with("NOPERM"), "{act}: {reply:?}");
    }
    let replies = client.pipeline(&["MULTI", "PROXY PAUSE", "EXEC"]);
    let member = &replies[2].items()[0];
    assert!(member.text().starts_with("NOPERM"), "{member:?}");
}

#[test]
fn who_may_act_is_asked_at_every_call() {
    use crate::harness::Server;

    let server = Server::start_with(&["--requirepass", "sesame"]);
    for user in ["operator", "app"] {
        server.call(&format!("ACL SETUSER {user} on >secret ~* &* +@all"));
    }
    let login = |stage: &Stage, user: &str| {
        let mut client = stage.connect();
        assert_eq!(client.call(&format!("AUTH {user} secret")).text(), "OK");
        client
    };
    let stage = Stage::before(server, &["auth.mode=passthrough", "admin.users=operator"]);
    let (mut app, mut operator) = (login(&stage, "app"), login(&stage, "operator"));
    assert_may_not_act(&mut app);
    assert_eq!(operator.call("PROXY LOG").lines(), "info\n");
    assert_eq!(operator.pipeline(&["MULTI", "PROXY KILL ID 1", "EXEC"])[2].items()[0].text(), "0");
    until("the log tells of it", PATIENCE, || {
        acts(&stage).iter().any(|act| act["user"] == "app" && act["outcome"] == "refused")
    });
    // The server's word counts, too, from the next call on.
    stage.server.call("ACL SETUSER operator -client|kill");
    assert_may_not_act(&mut operator);
    stage.server.call("ACL SETUSER operator +client|kill");
    assert_eq!(operator.call("PROXY KILL ID 1").int(), 0);
    // It has done nothing meanwhile.
    assert_eq!(stage.proxy().status()["state"], "serving");
}

#[test]
fn clients_of_other_hosts_may_not_act_unless_their_user_is_named() {
    use crate::harness::{Namespace, Proxy, Server, is_root};

    if !is_root() {
        println!("skipped: needs root for a network namespace");
        return;
    }
    let namespace = Namespace::create();
    let server = Server::start();
    let listen = format!("listen.addresses={}:0", namespace.near_address());
    let open = [listen.as_str(), "auth.mode=open", "listen.protected_mode=false"];
    for (setting, may) in [("admin.users=", false), ("admin.users=default", true)] {
        let settings = [&open[..], &[setting]].concat();
        let proxy = Proxy::launch(&server.url(), &settings).unwrap();
        let mut client = proxy.connect();
        assert!(!client.call("PROXY CLIENTS").is_error(), "listings need no more than before");
        if may {
            assert_eq!(client.call("PROXY KILL ID 1").int(), 0);
        } else {
            assert_may_not_act(&mut client);
        }
    }
}

#[test]
fn an_operator_may_forbid_the_acts_altogether() {
    let stage = Stage::proxied_with(&["auth.admin_commands=refuse"]);
    for act in ACTS {
        assert!(stage.connect().call(act).error().ends_with("is refused by auth.admin_commands"), "{act}");
    }
}

/// Runs a subcommand against the proxy: exit code, stdout and stderr.
fn run(stage: &Stage, arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let url = format!("redis://{}", stage.address());
    let arguments = [arguments, &["--url", &url]].concat();
    let (exit, stdout) = crate::harness::Proxy::run_to_end(&arguments, environment);
    (exit.code, stdout, exit.stderr)
}

#[test]
fn the_subcommands_do_what_proxy_does() {
    let stage = Stage::proxied();
    let mut client = Client::connect_apart(stage.address());
    client.call("CLIENT SETNAME web");
    client.call("WATCH w");
    client.call("TYPE w");
    let connection = leased(&stage, "type").get("id").to_owned();
    assert_eq!(run(&stage, &["kill", "--name", "nobody"], &[]).1, "closed 0 clients\n");
    let killed = run(&stage, &["kill", "--connection", &connection, "--name", "web"], &[]);
    assert_eq!((killed.0, killed.1.as_str()), (Some(0), "closed 1 client\n"), "{killed:?}");
    client.expect_end(PATIENCE);
    let paused = run(&stage, &["pause"], &[]);
    assert_eq!((paused.0, paused.1.as_str()), (Some(0), "paused: new commands wait\n"), "{paused:?}");
    assert_eq!(stage.proxy().status()["state"], "paused");
    assert_eq!(run(&stage, &["pause", "1h"], &[]).0, Some(0));
    let left = stage.proxy().status()["paused"]["seconds_left"].as_f64().unwrap();
    assert!((3_500.0..=3_600.0).contains(&left), "{left}");
    assert_eq!(run(&stage, &["resume"], &[]).1, "resumed\n");
    assert_eq!(stage.proxy().status()["state"], "serving");
    assert_eq!(run(&stage, &["log"], &[]).1, "info\n");
    assert_eq!(run(&stage, &["log", "debug"], &[]).0, Some(0));
    assert_eq!(run(&stage, &["log"], &[]).1, "debug\n");
    let mut blocked = stage.connect();
    blocked.start("BLPOP jobs 0");
    until("the hub is listed", PATIENCE, || {
        run(&stage, &["hubs"], &[]).1.contains("kind=blocking user=default state=open")
    });
    let before = ids(&stage);
    let renewed = run(&stage, &["reconnect"], &[]);
    assert!(renewed.0 == Some(0) && renewed.1.ends_with("renewed as they become free\n"), "{renewed:?}");
    until("they are others", PATIENCE, || ids(&stage).is_disjoint(&before));
    assert_eq!(run(&stage, &["shutdown"], &[]).1, "stopping\n");
    let (_server, proxy) = stage.into_parts();
    assert_eq!(proxy.wait(PATIENCE).code, Some(0));
}

#[test]
fn the_subcommands_find_the_proxy_by_its_configuration_and_say_what_is_wrong() {
    let stage = Stage::proxied();
    let listen = format!("listen.addresses={}", stage.address());
    let by = |arguments: &[&str]| {
        let (exit, stdout) = crate::harness::Proxy::run_to_end(arguments, &[]);
        (exit.code, stdout, exit.stderr)
    };
    assert_eq!(by(&["log", "--set", &listen]).1, "info\n");
    let port = stage.address().port();
    assert_eq!(by(&["log", "--set", &format!("listen.addresses=0.0.0.0:{port}")]).1, "info\n");
    for (arguments, code, said) in [
        (&["kill"][..], 64, "--id"),
        (&["kill", "--id", "x"], 64, "'x'"),
        (&["pause", "soon"], 64, "'soon'"),
        (&["resume", "--url", "http://h"], 64, "redis://"),
        (&["resume", "--set", "listen.addresses=127.0.0.1:0"], 64, "--url"),
        (&["resume", "--set", "pool.lingr=1s"], 64, "pool.lingr"),
        (&["resume", "--url", "redis://127.0.0.1:1"], 1, "connection refused"),
    ] {
        let (exit, stdout, stderr) = by(arguments);
        assert_eq!((exit, stdout.as_str()), (Some(code), ""), "{arguments:?}: {stderr}");
        assert!(stderr.to_lowercase().contains(said), "{arguments:?}: {stderr}");
    }
    let refused = run(&stage, &["log", "loud"], &[]);
    assert!(refused.0 == Some(1) && refused.2.contains("PROXY LOG takes"), "{refused:?}");
}

#[test]
fn the_subcommands_reach_a_proxy_by_its_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", directory.path().join("redbouncer.sock").display());
    let stage = Stage::proxied_with(&[&format!("listen.addresses=127.0.0.1:0,{socket}")]);
    let by = |arguments: &[&str]| {
        let (exit, stdout) = crate::harness::Proxy::run_to_end(arguments, &[]);
        assert_eq!(exit.code, Some(0), "{arguments:?}: {exit:?}");
        stdout
    };
    assert_eq!(by(&["log", "--url", &socket]), "info\n");
    assert_eq!(by(&["log", "--listen", &socket]), "info\n");
    // The port of the first listener is not known, the socket is.
    assert_eq!(
        by(&["reload", "--set", &format!("listen.addresses=127.0.0.1:0,{socket}")]),
        "nothing has changed\n"
    );
    assert!(by(&["hubs", "--url", &socket]).is_empty());
    let mut client = stage.connect();
    let id = client.call("CLIENT ID").int().to_string();
    assert_eq!(by(&["kill", "--id", &id, "--url", &socket]), "closed 1 client\n");
    client.expect_end(PATIENCE);
    let missing = format!("{socket}.not");
    let (exit, _) = crate::harness::Proxy::run_to_end(&["resume", "--url", &missing], &[]);
    assert!(exit.code == Some(1) && exit.stderr.contains("redbouncer.sock.not: No such file"), "{exit:?}");
}

#[test]
fn the_subcommands_reach_a_proxy_by_tls() {
    use crate::harness::{Authority, Proxy, Server};

    let authority = Authority::new("ours");
    let own = authority.issue("own", &["localhost", "127.0.0.1"], (2020, 2100));
    let operator = authority.issue("operator", &["operator"], (2020, 2100));
    let [cert, key, ca] = [&own.cert, &own.key, &authority.ca()].map(|path| path.display().to_string());
    let server = Server::start();
    let settings = [
        "listen.addresses=".to_owned(),
        "listen.tls.addresses=127.0.0.1:0".to_owned(),
        format!("listen.tls.cert={cert}"),
        format!("listen.tls.key={key}"),
        "listen.tls.client_auth=required".to_owned(),
        format!("listen.tls.client_ca={ca}"),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let proxy = Proxy::start(&server, &settings);
    let url = format!("rediss://{}", proxy.tls());
    let [shown, secret] = [&operator.cert, &operator.key].map(|path| path.display().to_string());
    let by = |arguments: &[&str]| Proxy::run_to_end(arguments, &[]);
    let (exit, said) = by(&["log", "--url", &url, "--cacert", &ca, "--cert", &shown, "--key", &secret]);
    assert_eq!((exit.code, said.as_str()), (Some(0), "info\n"), "{exit:?}");
    let (exit, _) = by(&["log", "--url", &url, "--cert", &shown, "--key", &secret]);
    assert!(exit.code == Some(1) && exit.stderr.contains("unknown authority"), "{exit:?}");
    let (exit, _) = by(&["log", "--url", &url, "--cacert", &ca]);
    assert_eq!(exit.code, Some(1), "{exit:?}");
    // Found by its configuration, a proxy is known by the certificate that it has.
    let tls = format!("listen.tls.addresses={}", proxy.tls());
    let found: Vec<&str> =
        settings.iter().map(|set| if set.ends_with("127.0.0.1:0") { tls.as_str() } else { *set }).collect();
    let mut arguments = vec!["reload", "--cert", &shown, "--key", &secret];
    found.iter().for_each(|setting| arguments.extend(["--set", setting]));
    let (exit, said) = by(&arguments);
    assert_eq!((exit.code, said.as_str()), (Some(0), "nothing has changed\n"), "{exit:?}");
}

#[test]
fn the_password_of_a_subcommand_comes_from_the_environment_or_a_file() {
    use crate::harness::Server;

    let server = Server::start_with(&["--requirepass", "sesame"]);
    let stage = Stage::before(server, &["auth.mode=passthrough"]);
    let without = run(&stage, &["log"], &[]);
    assert!(without.0 == Some(1) && without.2.contains("NOAUTH"), "{without:?}");
    let by_environment = run(&stage, &["log"], &[("REDISCLI_AUTH", "sesame")]);
    assert_eq!((by_environment.0, by_environment.1.as_str()), (Some(0), "info\n"), "{by_environment:?}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "sesame\n").unwrap();
    let file = file.display().to_string();
    let by_file = run(&stage, &["log", "--user", "default", "--password-file", &file], &[]);
    assert_eq!((by_file.0, by_file.1.as_str()), (Some(0), "info\n"), "{by_file:?}");
    // It works on the command line, and is warned of without being repeated.
    let url = format!("redis://:sesame@{}", stage.address());
    let (exit, stdout) = crate::harness::Proxy::run_to_end(&["log", "--url", &url], &[]);
    assert_eq!((exit.code, stdout.as_str()), (Some(0), "info\n"), "{exit:?}");
    assert!(exit.stderr.contains("process list") && !exit.stderr.contains("sesame"), "{exit:?}");
}

/// What `redbouncer status` with these flags prints.
fn status(stage: &Stage, flags: &[&str]) -> String {
    let admin = stage.proxy().admin().to_string();
    let arguments = [&["status", "--admin", &admin], flags].concat();
    let (exit, stdout) = crate::harness::Proxy::run_to_end(&arguments, &[]);
    assert_eq!(exit.code, Some(0), "{exit:?}");
    stdout
}

#[test]
fn the_status_of_two_thousand_clients_is_one_screen() {
    let stage = Stage::proxied();
    let mut clients: Vec<Client> = (0..2_000).map(|_| stage.connect()).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        client.start(&format!("CLIENT SETNAME {}:{at}", if at < 1_500 { "worker" } else { "web" }));
    }
    for client in &mut clients {
        assert_eq!(client.reply().text(), "OK");
    }
    let id = clients[1_999].call("CLIENT ID").int();
    assert_eq!(clients[1_999].call("WATCH w").text(), "OK");
    let mut text = String::new();
    until("the verdict has the server's count", PATIENCE, || {
        text = status(&stage, &[]);
        text.starts_with(&format!("OK: 2000 clients over {} of 8 connections\n", stage.server.clients()))
    });
    assert!(text.lines().count() <= 24, "{text}");
    let row = |first: &str| {
        text.lines().find(|line| line.split_whitespace().next() == Some(first)).unwrap_or_default()
    };
    assert!(row("1500").ends_with("worker:*  -"), "{text}");
    assert!(row("500").contains("web:*"), "{text}");
    let holder = text.lines().find(|line| line.contains(&id.to_string())).unwrap_or_default();
    assert!(holder.contains("WATCH") && holder.contains("web:1999"), "{text}");
    // All of them, some, and the first of some.
    let rows = |flags: &[&str]| status(&stage, &[&["--clients"], flags].concat()).lines().count();
    // A head and the count.
    assert_eq!(rows(&[]), 2_002);
    assert_eq!(rows(&["--name", "web:*"]), 502);
    assert_eq!(rows(&["--name", "web:*", "--limit", "7"]), 9);
    assert_eq!(rows(&["--place", "WATCH"]), 3);
    assert_eq!(rows(&["--user", "nobody"]), 1);
    assert_eq!(rows(&["--addr", "127.0.0.1:", "--idle", "1d"]), 1);
    assert!(status(&stage, &["--all"]).lines().count() > 2_000);
}

#[test]
fn clients_that_were_refused_are_told_of_in_the_status() {
    let stage = Stage::proxied_with(&["pool.wait_timeout=300ms"]);
    assert!(stage.proxy().status()["refused"].is_null());
    let (mut holders, told) = fill(&stage);
    assert!(told.contains("no upstream connection within 300ms"), "{told}");
    assert_eq!(stage.proxy().status()["refused"]["clients"], 1);
    let text = status(&stage, &[]);
    assert!(text.starts_with("ATTENTION: 1 problem; "), "{text}");
    assert!(text.contains("1 client got the full-pool error, the last one "), "{text}");
    assert!(stage.connect().call("WATCH w").is_error());
    assert!(status(&stage, &[]).contains("2 clients got the full-pool error, the last one "));
    holders.clear();
}

#[test]
fn the_status_says_first_what_is_wrong() {
    let mut stage = Stage::proxied_with(&["pool.wait_timeout=5s"]);
    let mut holders: Vec<Client> = (0..3).map(|_| stage.connect()).collect();
    for holder in &mut holders {
        assert_eq!(holder.call("WATCH w").text(), "OK");
    }
    let mut waiting = stage.connect();
    waiting.start("WATCH w");
    until("one waits", PATIENCE, || stage.proxy().status()["waits"]["leases"] == 1);
    let text = status(&stage, &[]);
    assert!(text.starts_with("ATTENTION: 1 problem; "), "{text}");
    assert!(text.contains("leases 3 of 3 (full)") && text.contains("waiting  1 lease\n"), "{text}");
    assert!(text.contains("1 client waits for a lease: close a holder"), "{text}");
    drop((holders, waiting));
    stage.connect().call("PROXY PAUSE");
    assert!(status(&stage, &[]).starts_with("PAUSED for "), "{}", status(&stage, &[]));
    stage.connect().call("PROXY RESUME");
    stage.server.kill();
    let mut client = stage.connect();
    client.start("GET k");
    until("it is said", PATIENCE, || status(&stage, &[]).starts_with("SERVER AWAY for "));
}
