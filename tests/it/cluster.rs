//! In front of a Redis Cluster, for clients that know of none.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{
    Authority, Client, Cluster, PATIENCE, Proxy, Reply, Server, Value, Version, encode, rows_of, until,
};

/// A failover: the node timeout, the vote, and what a busy machine adds.
const FAILOVER: Duration = Duration::from_secs(40);
/// While a command waits for a master.
const WAITS: &str = "upstream.failover_wait=40s";

fn start(cluster: &Cluster, settings: &[&str]) -> Proxy {
    let settings: Vec<&str> = settings.iter().copied().chain([WAITS]).collect();
    Proxy::launch(&cluster.url(), &settings).unwrap_or_else(|exit| panic!("the proxy ended: {exit:#?}"))
}

/// A key whose slot belongs to each of the three masters.
const KEYS: [&str; 3] = ["b", "c", "a"];

/// The slot of `key`, by a node's word.
fn slot_of(cluster: &Cluster, key: &str) -> u16 {
    u16::try_from(cluster.masters[0].call(&format!("CLUSTER KEYSLOT {key}")).int()).unwrap()
}

#[test]
fn keys_of_all_slots_are_served_as_by_one_server() {
    for version in Version::all().into_iter().filter(Version::has_hub) {
        println!("--- {}", version.name);
        keys_of_all_slots(&Cluster::start_version(&version, 3, false));
    }
}

fn keys_of_all_slots(cluster: &Cluster) {
    let proxy = start(cluster, &["pool.max_connections=4"]);
    let mut client = proxy.connect();
    let sets: Vec<String> = (0..300).map(|at| format!("SET key:{at} {at}")).collect();
    let gets: Vec<String> = (0..300).map(|at| format!("GET key:{at}")).collect();
    let all: Vec<&str> = sets.iter().chain(&gets).map(String::as_str).collect();
    let replies = client.pipeline(&all);
    assert!(replies[..300].iter().all(|reply| reply.text() == "OK"));
    assert!(replies[300..].iter().zip(0..).all(|(reply, at)| reply.text() == at.to_string()));
    let kept: i64 = cluster.masters.iter().map(|node| node.call("DBSIZE").int()).sum();
    assert_eq!(kept, 300);
    assert!(cluster.masters.iter().all(|node| node.call("DBSIZE").int() > 50), "all nodes have some");
    // Nothing tells of a cluster.
    assert_eq!(client.call("HELLO 3").field("mode").unwrap().text(), "standalone");
    let info = client.call("INFO").text();
    assert!(info.contains("_mode:standalone\r\n") && info.contains("cluster_enabled:0\r\n"), "{info}");
    assert!(client.call("CLUSTER SLOTS").error().contains("cluster support disabled"));
    assert!(client.call("READONLY").error().contains("cluster support disabled"));
    assert!(client.call("SELECT 1").is_error());
    assert!(cluster.connections().iter().all(|count| *count <= 4), "{:?}", cluster.connections());
    assert!(proxy.http("/ready").0 == 200);
    let status = proxy.status();
    let masters = status["upstream"]["cluster"]["masters"].as_array().unwrap();
    let sum = |field: &str| masters.iter().map(|row| row[field].as_u64().unwrap()).sum::<u64>();
    assert_eq!((masters.len(), sum("slots")), (3, 16_384), "{status}");
    assert_eq!(masters.iter().filter(|row| row["home"] == true).count(), 1);
    assert!(sum("connections") >= 3, "{status}");
}

/// Each node is known by the certificate for its address, and no connection is made without TLS.
#[test]
fn a_cluster_with_tls_is_served() {
    let authority = Authority::new("cluster");
    let (cluster, url) = Cluster::start_with_tls(&authority);
    let ca = format!("upstream.tls.ca={}", authority.ca().display());
    let proxy = Proxy::launch(&url, &[&ca]).unwrap_or_else(|exit| panic!("the proxy ended: {exit:#?}"));
    let mut client = proxy.connect();
    for key in KEYS {
        assert_eq!(client.call(&format!("SET {key} {key}")).text(), "OK");
        assert_eq!(client.call(&format!("GET {key}")).text(), key);
    }
    let ports: Vec<String> =
        url.split(':').skip(2).map(|rest| rest.split(',').next().unwrap().to_owned()).collect();
    for (node, port) in cluster.masters.iter().zip(&ports) {
        let rows = rows_of(&node.call("CLIENT LIST"));
        let ours: Vec<_> = rows.iter().filter(|row| row.get("name").starts_with("redbouncer:")).collect();
        assert!(
            !ours.is_empty() && ours.iter().all(|row| row.get("laddr").ends_with(&format!(":{port}"))),
            "{rows:?}"
        );
    }
    // A slot without keys: MIGRATE would need the other port.
    let slot = slot_of(&cluster, "d");
    let to = cluster.masters.iter().position(|node| node.address() != cluster.owner(slot)).unwrap();
    client.start("BLPOP {d}list 0");
    cluster.move_slot(slot, to, || {});
    assert_eq!(proxy.connect().call("RPUSH {d}list x").int(), 1);
    assert_eq!(client.reply().items()[1].text(), "x");
}

#[test]
fn only_nodes_that_are_used_are_connected_to() {
    let cluster = Cluster::start();
    let proxy = start(&cluster, &[]);
    let mut client = proxy.connect();
    let home = || cluster.connections().iter().filter(|count| **count > 0).count();
    until("the home node is reached", PATIENCE, || proxy.http("/ready").0 == 200 && home() == 1);
    for key in KEYS {
        assert_eq!(client.call(&format!("SET {key} 1")).text(), "OK");
    }
    assert_eq!(home(), 3);
}

#[test]
fn what_concerns_one_node_is_refused() {
    let cluster = Cluster::start();
    let proxy = start(&cluster, &[]);
    let mut client = proxy.connect();
    for command in ["MSET a 1 b 2", "RENAME a b", "SUNION a b"] {
        assert!(client.call(command).error().starts_with("CROSSSLOT"), "{command}");
    }
    assert_eq!(client.call("MSET {a}1 1 {a}2 2").text(), "OK");
    assert_eq!(client.call("MGET {a}1 {a}2").items().len(), 2);
    for command in [
        "RANDOMKEY",
        "SWAPDB 0 1",
        "SCRIPT KILL",
        "MONITOR",
        "WAIT 1 0",
        "SSUBSCRIBE c",
        "SPUBLISH c m",
        "CLIENT TRACKING on",
        "CLIENT NO-TOUCH on",
        "DEBUG SLEEP 0",
    ] {
        let reply = client.call(command);
        assert!(reply.error().contains("one node of a cluster"), "{command}: {reply:?}");
    }
    assert_eq!(client.call("PING").text(), "PONG");
}

#[test]
fn a_transaction_runs_where_its_keys_are() {
    let cluster = Cluster::start();
    let proxy = start(&cluster, &[]);
    let mut client = proxy.connect();
    for key in KEYS {
        let replies = client.pipeline(&["MULTI", &format!("INCR {key}"), &format!("GET {key}"), "EXEC"]);
        assert_eq!(replies[3].items()[1].text(), "1");
    }
    let crossed = client.pipeline(&["MULTI", "INCR a", "INCR b", "EXEC"]);
    assert!(crossed[2].error().starts_with("CROSSSLOT") && crossed[3].error().starts_with("EXECABORT"));
    assert_eq!(client.call("GET a").text(), "1");
}

#[test]
fn messages_go_by_the_home_node() {
    let cluster = Cluster::start();
    let proxy = start(&cluster, &[]);
    let mut subscriber = proxy.connect();
    subscriber.call("SUBSCRIBE news");
    let mut client = proxy.connect();
    let replies = client.pipeline(&["SET a 1", "PUBLISH news x", "SET b 1", "PUBLISH news y"]);
    assert_eq!((replies[1].int(), replies[3].int()), (1, 1));
    assert_eq!(subscriber.reply().items()[2].text(), "x");
    assert_eq!(subscriber.reply().items()[2].text(), "y");
}

/// What one client writes without waiting is seen in that order.
#[test]
fn a_client_writes_to_several_nodes_in_its_order() {
    let cluster = Cluster::start();
    let proxy = start(&cluster, &[]);
    let (mut writer, mut reader) = (proxy.connect(), proxy.connect());
    let commands: Vec<String> = (0..200)
        .flat_map(|at| [format!("SET a {at}"), format!("SET b {at}"), format!("SET c {at}")])
        .collect();
    for command in &commands {
        writer.start(command);
    }
    let mut seen = 0;
    while seen < 199 {
        // Read against the order of writing: what was written later may not be newer than what was written before.
        let values: Vec<i64> =
            ["c", "b", "a"].map(|key| reader.call(&format!("GET {key}"))).iter().map(number).collect();
        assert!(values[0] <= values[1] && values[1] <= values[2], "{values:?}");
        seen = values[0];
    }
    commands.iter().for_each(|_| assert_eq!(writer.reply().text(), "OK"));
}

fn number(reply: &Reply) -> i64 {
    if reply.is_nil() { -1 } else { reply.text().parse().unwrap() }
}

#[test]
fn slots_move_under_load_and_no_client_notices() {
    let cluster = Cluster::start();
    let proxy = start(&cluster, &[]);
    let keys: Vec<String> = (0..12).map(|at| format!("count:{at}")).collect();
    let slots: Vec<u16> = keys.iter().map(|key| slot_of(&cluster, key)).collect();
    let stop = AtomicBool::new(false);
    let acknowledged: Vec<AtomicU64> = keys.iter().map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        for by in 0..4 {
            let (proxy, keys, stop, acknowledged) = (&proxy, &keys, &stop, &acknowledged);
            scope.spawn(move || {
                let mut client = proxy.connect();
                while !stop.load(Ordering::Relaxed) {
                    for (key, count) in keys.iter().zip(acknowledged) {
                        let commands = match by {
                            0 => vec![format!("INCR {key}"), format!("INCR {key}")],
                            1 => vec![
                                format!("EVAL return+redis.call('incr',KEYS[1]) 1 {key}").replace('+', "\t"),
                            ],
                            2 => ["MULTI", &format!("INCR {key}"), "EXEC"].map(str::to_owned).to_vec(),
                            _ => vec![format!("INCR {key}"), format!("MSET {{{key}}}1 1 {{{key}}}2 2")],
                        };
                        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
                        for reply in client.pipeline(&commands) {
                            assert!(!reply.is_error(), "{commands:?}: {reply:?}");
                        }
                        let counted = if by == 0 { 2 } else { 1 };
                        count.fetch_add(counted, Ordering::Relaxed);
                    }
                }
            });
        }
        for round in 0..2 {
            for (at, slot) in slots.iter().enumerate() {
                cluster.move_slot(*slot, (at + round) % 3, || thread::sleep(Duration::from_millis(20)));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mut client = proxy.connect();
    for (key, count) in keys.iter().zip(&acknowledged) {
        assert_eq!(
            client.call(&format!("GET {key}")).text(),
            count.load(Ordering::Relaxed).to_string(),
            "{key}"
        );
    }
    let counted = proxy.counted();
    let redirects = counted.iter().filter(|(name, _)| name.starts_with("redbouncer_redirects_total"));
    println!("{:?}", redirects.collect::<Vec<_>>());
    assert!(counted["redbouncer_redirects_total{kind=\"moved\"}"] > 0.0, "nothing has moved: {counted:?}");
    assert!(counted["redbouncer_redirects_total{kind=\"ask\"}"] > 0.0, "nothing was asked for: {counted:?}");
}

#[test]
fn a_killed_master_is_replaced_and_who_waits_notices_nothing() {
    let mut cluster = Cluster::start_with(3, true);
    let proxy = start(&cluster, &[]);
    let mut clients: Vec<Client> = KEYS.iter().map(|_| proxy.connect()).collect();
    for (client, key) in clients.iter_mut().zip(KEYS) {
        assert_eq!(client.call(&format!("SET {key} before")).text(), "OK");
    }
    let slot = slot_of(&cluster, "a");
    let lost = cluster.owner(slot);
    let at = cluster.masters.iter().position(|node| node.address() == lost).unwrap();
    until("the replica has it", PATIENCE, || cluster.replicas[at].call("DBSIZE").int() > 0);
    cluster.masters[at].kill();
    let begun = Instant::now();
    let mut client = proxy.connect();
    client.start("SET a after");
    assert_eq!(client.reply_within(FAILOVER).text(), "OK");
    println!("served {:?} after the kill", begun.elapsed());
    assert_eq!(client.call("GET a").text(), "after");
    assert_eq!(cluster.replicas[at].call("GET a").text(), "after");
    // Clients that had nothing on its way there have not noticed.
    for (client, key) in clients.iter_mut().zip(KEYS) {
        client.start(&format!("GET {key}"));
        assert_ne!(client.reply_within(FAILOVER).text(), "", "{key}");
    }
}

/// What a script answers is no redirection, and an address in it is never dialled.
#[test]
fn a_redirection_that_a_script_makes_up_goes_to_its_client() {
    let cluster = Cluster::start();
    let proxy = start(&cluster, &[]);
    let mut client = proxy.connect();
    let trap = TcpListener::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let target = trap.local_addr().unwrap();
    let slot = slot_of(&cluster, "a");
    for (at, text) in [
        format!("MOVED {slot} {target}"),
        format!("ASK {slot} {target}"),
        "TRYAGAIN Multiple keys request during rehashing of slot".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let script = format!("redis.call('incr', KEYS[1]); return redis.error_reply('{text}')");
        let reply = client.ask(&["EVAL", &script, "1", "a"]);
        assert_eq!(reply.error(), text);
        assert_eq!(client.call("GET a").text(), (at + 1).to_string(), "it ran once");
    }
    assert!(trap.accept().is_err(), "somebody has come");
    assert_eq!(client.call("SET b 1").text(), "OK");
}

/// A script whose keys are on two nodes for a moment waits until they are together, as any other command does.
#[test]
fn a_script_waits_for_its_keys_to_be_together() {
    let cluster = Cluster::start();
    let proxy = start(&cluster, &[]);
    let mut client = proxy.connect();
    let slot = slot_of(&cluster, "a");
    let to = cluster.masters.iter().position(|node| node.address() != cluster.owner(slot)).unwrap();
    client.call("SET {a}one 1");
    let add = "return redis.call('INCRBY', KEYS[1], ARGV[1]) + redis.call('INCR', KEYS[2])";
    cluster.move_slot(slot, to, || {
        client.send(encode(&["EVAL", add, "2", "{a}one", "{a}two", "4"]));
        client.expect_silence(Duration::from_millis(300));
    });
    assert_eq!(client.reply().int(), 6);
    assert_eq!(client.call("GET {a}one").text(), "5", "it ran once");
}

#[test]
fn no_node_has_more_connections_than_the_cap() {
    let cluster = Cluster::start();
    let proxy = start(&cluster, &["pool.max_connections=4"]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for by in 0..12 {
            let (proxy, stop) = (&proxy, &stop);
            scope.spawn(move || {
                let mut client = proxy.connect();
                let commands: Vec<String> = (0..30).map(|at| format!("INCR key:{by}:{at}")).collect();
                let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
                while !stop.load(Ordering::Relaxed) {
                    assert!(client.pipeline(&commands).iter().all(|reply| !reply.is_error()));
                }
            });
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            let connections = cluster.connections();
            assert!(connections.iter().all(|count| *count <= 4), "{connections:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// With one hash tag a cluster answers as one server does, byte for byte.
#[test]
fn replies_are_those_of_one_server() {
    let cluster = Cluster::start();
    let alone = Server::start();
    let proxy = start(&cluster, &[]);
    let templates = [
        "SET {t}K V",
        "GET {t}K",
        "INCR {t}K",
        "APPEND {t}K V",
        "DEL {t}K {t}K",
        "EXISTS {t}K {t}K",
        "TYPE {t}K",
        "LPUSH {t}K V V",
        "RPOP {t}K",
        "LRANGE {t}K 0 -1",
        "RPOPLPUSH {t}K {t}K",
        "SADD {t}K V",
        "SCARD {t}K",
        "HSET {t}K V V",
        "HGET {t}K V",
        "HLEN {t}K",
        "ZADD {t}K 1 V",
        "ZSCORE {t}K V",
        "ZRANGE {t}K 0 -1 WITHSCORES",
        "MSET {t}K V {t}K V",
        "MGET {t}K {t}K",
        "RENAME {t}K {t}K",
        "STRLEN {t}K",
        "GETSET {t}K V",
        "EXPIRE {t}K 1000",
        "PERSIST {t}K",
        "BITCOUNT {t}K",
        "SETRANGE {t}K 3 V",
        "NOSUCH {t}K",
        "GET",
        "SET {t}K",
        "PING",
        "ECHO V",
        "LMOVE {t}K {t}K LEFT RIGHT",
        "COPY {t}K {t}K",
        "XADD {t}K 1-1 V V",
        "XLEN {t}K",
        "PFADD {t}K V",
        "PFCOUNT {t}K {t}K",
        "EVAL V 1 {t}K",
        "SINTERCARD 2 {t}K {t}K",
        "OBJECT ENCODING {t}K",
        "GETDEL {t}K",
        "XREAD STREAMS {t}K 0",
    ];
    let (mut through, mut direct) = (proxy.connect(), Client::connect(alone.address()));
    for protocol in ["HELLO 2", "HELLO 3"] {
        through.call(protocol);
        direct.call(protocol);
        for _ in 0..150 {
            let mut commands = Vec::new();
            for _ in 0..fastrand::usize(1..12) {
                let template = templates[fastrand::usize(..templates.len())];
                let words = template
                    .replace('K', ["x", "y", "z"][fastrand::usize(..3)])
                    .replace(" V", [" 1", " v"][fastrand::usize(..2)]);
                commands.push(words);
            }
            // Behind a first command that says nothing of a slot, a transaction goes to the home node.
            let is_known = commands.iter().all(|command| !command.starts_with("NOSUCH"));
            if is_known && fastrand::u8(..4) == 0 {
                commands.insert(0, "MULTI".to_owned());
                commands.push("EXEC".to_owned());
            }
            let bytes: Vec<u8> = commands
                .iter()
                .flat_map(|line| crate::harness::encode(&line.split(' ').collect::<Vec<_>>()))
                .collect();
            through.send(&bytes);
            direct.send(&bytes);
            for command in &commands {
                let (ours, expected) = (through.frame(PATIENCE), direct.frame(PATIENCE));
                assert_eq!(ours, expected, "{command} of {commands:?}");
            }
        }
    }
}

#[test]
fn what_a_cluster_has_not_is_refused_at_the_start() {
    for (url, settings, text) in [
        ("redis-cluster://127.0.0.1:1/1", &[][..], "one database"),
        ("redis-cluster://", &[], "names no node"),
        ("redis-cluster://127.0.0.1:1", &["upstream.command_timeout=1s"], "not supported with a cluster"),
        ("redis-cluster://127.0.0.1:1", &["fleet.total_connections=50"], "not supported with a cluster"),
    ] {
        let Err(exit) = Proxy::launch(url, settings) else { panic!("{url} {settings:?} was accepted") };
        assert_eq!(exit.code, Some(64), "{exit:#?}");
        assert!(format!("{exit:#?}").contains(text), "{exit:#?}");
    }
}

#[test]
fn keys_of_several_slots_are_divided_where_that_changes_nothing() {
    let cluster = Cluster::start();
    let proxy = start(&cluster, &[]);
    let mut client = proxy.connect();
    let keys: Vec<String> = (0..40).map(|at| format!("key:{at}")).collect();
    for key in &keys {
        client.call(&format!("SET {key} {key}"));
    }
    let values = client.call(&format!("MGET {} none key:3", keys.join(" ")));
    let text = |value: &Value| if matches!(value, Value::Nil) { "nil".to_owned() } else { value.text() };
    let values: Vec<_> = values.items().iter().map(text).collect();
    assert_eq!(values[..40], keys[..]);
    assert_eq!(values[40..], ["nil", "key:3"]);
    assert_eq!(client.call(&format!("EXISTS {}", keys.join(" "))).int(), 40);
    assert_eq!(client.call("DBSIZE").int(), 40);
    assert_eq!(client.call("KEYS key:*").items().len(), 40);
    let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
    loop {
        let reply = client.call(&format!("SCAN {cursor} COUNT 3"));
        found.extend(reply.items()[1].items().iter().map(Value::text));
        cursor = reply.items()[0].text();
        if cursor == "0" {
            break;
        }
    }
    found.sort_unstable();
    found.dedup();
    assert_eq!(found.len(), 40);
    let sha = client.ask(&["SCRIPT", "LOAD", "return redis.call('get', KEYS[1])"]).text();
    for key in &keys {
        assert_eq!(client.call(&format!("EVALSHA {sha} 1 {key}")).text(), *key);
    }
    assert_eq!(client.call(&format!("SCRIPT EXISTS {sha}")).items()[0].text(), "1");
    assert_eq!(client.call(&format!("DEL {}", keys[..10].join(" "))).int(), 10);
    assert_eq!(client.call("FLUSHALL").text(), "OK");
    assert_eq!(client.call("DBSIZE").int(), 0);
    assert!(cluster.masters.iter().all(|node| node.call("DBSIZE").int() == 0));
}

#[test]
fn transactions_step_by_step_run_where_their_first_key_is() {
    let cluster = Cluster::start();
    let proxy = start(&cluster, &[]);
    let mut client = proxy.connect();
    for key in KEYS {
        assert_eq!(client.call("MULTI").text(), "OK");
        assert_eq!(client.call(&format!("INCR {key}")).text(), "QUEUED");
        assert_eq!(client.call(&format!("GET {key}")).text(), "QUEUED");
        assert_eq!(client.call("EXEC").items()[1].text(), "1");
        assert_eq!(client.call(&format!("WATCH {key}")).text(), "OK");
        assert_eq!(client.call(&format!("GET {key}")).text(), "1");
        assert_eq!(client.call("MULTI").text(), "OK");
        client.call(&format!("SET {key} 5"));
        proxy.connect().call(&format!("SET {key} 7"));
        assert!(client.call("EXEC").is_nil(), "somebody else has written");
        assert_eq!(client.call(&format!("GET {key}")).text(), "7");
    }
    client.call("MULTI");
    assert_eq!(client.call("INCR a").text(), "QUEUED");
    assert!(client.call("INCR b").error().starts_with("CROSSSLOT"));
    assert!(client.call("DBSIZE").error().contains("one node"));
    assert!(client.call("EXEC").error().starts_with("EXECABORT"));
    for (command, reply) in [("MULTI", "OK"), ("DISCARD", "OK"), ("MULTI", "OK")] {
        assert_eq!(client.call(command).text(), reply);
    }
    assert_eq!(client.call("EXEC").items().len(), 0);
    assert_eq!(client.call("GET a").text(), "7");
    // The slot leaves between two commands.
    let slot = slot_of(&cluster, "a");
    let to = cluster.masters.iter().position(|node| node.address() != cluster.owner(slot)).unwrap();
    client.call("MULTI");
    client.call("INCR a");
    cluster.move_slot(slot, to, || {});
    let reply = client.call("EXEC");
    assert!(reply.error().starts_with("EXECABORT redbouncer: the slot moved"), "{reply:?}");
    until("the map follows", PATIENCE, || {
        client.call("MULTI");
        client.call("INCR a");
        !client.call("EXEC").is_error()
    });
    assert_eq!(client.call("GET a").text(), "8");
}

/// Commands are kept until it is known that they ran: of a node that stands still, all that were sent to it.
#[test]
fn what_is_kept_for_a_node_that_stands_still_counts_as_its_clients_memory() {
    const COMMANDS: usize = 1_500;
    let cluster = Cluster::start();
    let proxy = start(&cluster, &[&format!("client.pipeline_limit={}", 3 * COMMANDS)]);
    let mut client = proxy.connect();
    let value = "v".repeat(100);
    assert_eq!(client.call(&format!("SET {} {value}", KEYS[0])).text(), "OK");
    let held = || proxy.metrics()["redbouncer_client_memory_bytes"];
    assert!(held() < 1e5, "{}", held());
    for node in &cluster.masters {
        assert_eq!(node.call("CLIENT PAUSE 60000 WRITE").text(), "OK");
    }
    // Each transaction is kept by itself; what is 64 KiB or longer counts in any case.
    let words: [&[&str]; 3] = [&["MULTI"], &["SET", KEYS[0], &value], &["EXEC"]];
    let block: Vec<u8> = words.iter().flat_map(|words| encode(words)).collect();
    client.send(block.repeat(COMMANDS));
    until("they count", PATIENCE, || held() > (COMMANDS * value.len()) as f64);
    for node in &cluster.masters {
        assert_eq!(node.call("CLIENT UNPAUSE").text(), "OK");
    }
    for _ in 0..COMMANDS {
        for text in ["OK", "QUEUED"] {
            assert_eq!(client.reply().text(), text);
        }
        assert_eq!(client.reply().items()[0].text(), "OK");
    }
    until("nothing counts any more", PATIENCE, || held() < 1e5);
}
