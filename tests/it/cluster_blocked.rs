//! Blocking calls in front of a cluster: they wait in a hub of each node, and go where their keys go.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Client, Cluster, PATIENCE, Proxy, Value, Version, until};

/// A failover: the node timeout, the vote, and what a busy machine adds.
const FAILOVER: Duration = Duration::from_secs(40);
/// A key whose slot belongs to each of the three masters.
const KEYS: [&str; 3] = ["b", "c", "a"];

fn start(url: &str, settings: &[&str]) -> Proxy {
    let settings: Vec<&str> = settings.iter().copied().chain(["upstream.failover_wait=40s"]).collect();
    Proxy::launch(url, &settings).unwrap_or_else(|exit| panic!("the proxy ended: {exit:#?}"))
}

/// A client that has sent `command`.
fn blocked(proxy: &Proxy, command: &str) -> Client {
    let mut client = proxy.connect();
    client.start(command);
    client
}

/// Until so many calls wait in hubs that are connected, and nothing is in flight for them: `$` is an id by then.
fn until_waiting(proxy: &Proxy, count: usize) {
    let mut client = proxy.connect();
    until("the calls wait in hubs", PATIENCE, || {
        let hubs = client.call("PROXY HUBS");
        let field = |line: &str, name: &str| -> usize {
            let value = line.split(' ').find_map(|field| field.strip_prefix(name));
            value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{line}"))
        };
        let lines: Vec<String> = hubs.items().iter().map(Value::text).collect();
        let calls = lines.iter().filter(|line| line.contains(" kind=blocking "));
        if calls.clone().any(|line| !line.contains(" state=open ")) {
            return false;
        }
        let (waiting, in_flight) = calls.fold((0, 0), |(waiting, in_flight), line| {
            (waiting + field(line, "waiting="), in_flight + field(line, "in_flight="))
        });
        waiting == count && in_flight == 0
    });
}

fn slot_of(cluster: &Cluster, key: &str) -> u16 {
    u16::try_from(cluster.masters[0].call(&format!("CLUSTER KEYSLOT {key}")).int()).unwrap()
}

/// Another master than the one that owns `slot`.
fn another(cluster: &Cluster, slot: u16) -> usize {
    cluster.masters.iter().position(|node| node.address() != cluster.owner(slot)).unwrap()
}

#[test]
fn blocked_clients_share_one_connection_to_each_node() {
    let cluster = Cluster::start();
    let proxy = start(&cluster.url(), &["pool.max_connections=4"]);
    let mut waiting: Vec<(String, Client)> = (0..60)
        .map(|at| {
            let key = format!("queue:{}", at % 20);
            (key.clone(), blocked(&proxy, &format!("BLPOP {key} 0")))
        })
        .collect();
    until_waiting(&proxy, 60);
    assert!(cluster.connections().iter().all(|count| (1..=4).contains(count)), "{:?}", cluster.connections());
    let mut producer = proxy.connect();
    for (at, (key, client)) in waiting.iter_mut().enumerate() {
        producer.call(&format!("RPUSH {key} {at}"));
        let reply = client.reply();
        assert_eq!((reply.items()[0].text(), reply.items()[1].text()), (key.clone(), at.to_string()));
    }
    assert!(cluster.connections().iter().all(|count| *count <= 4), "{:?}", cluster.connections());
}

#[test]
fn every_kind_of_call_is_answered_as_by_one_server() {
    let cluster = Cluster::start();
    let proxy = start(&cluster.url(), &[]);
    let mut producer = proxy.connect();
    for key in KEYS {
        let tag = format!("{{{key}}}");
        let mut popped = blocked(&proxy, &format!("BZPOPMIN {tag}z 0"));
        let mut moved = blocked(&proxy, &format!("BLMOVE {tag}from {tag}to LEFT RIGHT 0"));
        let mut any = blocked(&proxy, &format!("BLMPOP 0 2 {tag}one {tag}two LEFT"));
        let mut read = blocked(&proxy, &format!("XREAD BLOCK 0 STREAMS {tag}s $"));
        producer.call(&format!("XGROUP CREATE {tag}g workers $ MKSTREAM"));
        let mut group = blocked(&proxy, &format!("XREADGROUP GROUP workers me BLOCK 0 STREAMS {tag}g >"));
        until_waiting(&proxy, 5);
        producer.call(&format!("ZADD {tag}z 3 third"));
        assert_eq!(popped.reply().items()[1].text(), "third");
        producer.call(&format!("RPUSH {tag}from job"));
        assert_eq!(moved.reply().text(), "job");
        assert_eq!(producer.call(&format!("LRANGE {tag}to 0 -1")).items()[0].text(), "job");
        producer.call(&format!("RPUSH {tag}two second"));
        assert_eq!(any.reply().items()[1].items()[0].text(), "second");
        let id = producer.call(&format!("XADD {tag}s * field value")).text();
        assert!(format!("{:?}", read.reply()).contains(&id));
        let id = producer.call(&format!("XADD {tag}g * field value")).text();
        assert!(format!("{:?}", group.reply()).contains(&id));
        // What is there already, and what does not come.
        producer.call(&format!("RPUSH {tag}full x"));
        assert_eq!(producer.call(&format!("BRPOP {tag}full 0")).items()[1].text(), "x");
        let began = Instant::now();
        assert!(producer.call(&format!("BLPOP {tag}none 0.2")).is_nil());
        assert!(began.elapsed() >= Duration::from_millis(200));
        producer.call(&format!("SET {tag}text x"));
        assert!(producer.call(&format!("BLPOP {tag}text 0")).error().starts_with("WRONGTYPE"));
        assert!(producer.call(&format!("BLPOP {tag}none never")).error().contains("timeout is not a float"));
        assert!(producer.call(&format!("BLPOP {tag}none 1e0")).error().contains("needs a plain timeout"));
    }
    assert!(producer.call("BLPOP a b 0").error().starts_with("CROSSSLOT"));
    assert!(producer.call("BLMOVE a b LEFT LEFT 0").error().starts_with("CROSSSLOT"));
    // CLIENT UNBLOCK reaches it on whichever node it waits.
    let mut client = proxy.connect();
    let id = client.call("CLIENT ID").int();
    client.start("BLPOP c 0");
    until_waiting(&proxy, 1);
    assert_eq!(producer.call(&format!("CLIENT UNBLOCK {id} ERROR")).int(), 1);
    assert!(client.reply().error().starts_with("UNBLOCKED"));
}

#[test]
fn without_the_hub_they_are_refused() {
    let cluster = Cluster::start();
    let proxy = start(&cluster.url(), &["blocking.hub=false"]);
    let mut client = proxy.connect();
    assert!(client.call("BLPOP a 0").error().contains("needs the blocking hub"));
    assert_eq!(client.call("PING").text(), "PONG");
}

/// A list's and a stream's waiter follow their slot, within `patience`, with nothing else going on.
fn follow(url: &str, cluster: &Cluster, settings: &[&str], patience: Duration) {
    let proxy = start(url, settings);
    for key in KEYS {
        let (list, stream) = (format!("{{{key}}}list"), format!("{{{key}}}stream"));
        let mut popped = blocked(&proxy, &format!("BLPOP {list} 0"));
        let mut read = blocked(&proxy, &format!("XREAD BLOCK 0 STREAMS {stream} $"));
        until_waiting(&proxy, 2);
        let slot = slot_of(cluster, key);
        cluster.move_slot(slot, another(cluster, slot), || {});
        // Directly on the node that owns it now: nothing tells the proxy.
        let owner = cluster.at(cluster.owner(slot));
        let began = Instant::now();
        owner.call(&format!("RPUSH {list} job"));
        let id = owner.call(&format!("XADD {stream} * field value")).text();
        assert_eq!(popped.reply_within(patience).items()[1].text(), "job");
        assert!(format!("{:?}", read.reply_within(patience)).contains(&id));
        println!("{key}: {:?}", began.elapsed());
    }
}

#[test]
fn a_blocked_call_follows_its_slot() {
    for version in Version::all().into_iter().filter(Version::has_hub) {
        println!("--- {}", version.name);
        let cluster = Cluster::start_version(&version, 3, false);
        follow(&cluster.url(), &cluster, &["listen.workers=2", "pool.max_connections=12"], PATIENCE);
    }
}

#[test]
fn without_the_right_to_shard_channels_it_follows_within_some_heartbeats() {
    let cluster = Cluster::start();
    for node in &cluster.masters {
        assert_eq!(node.call("ACL SETUSER app on >secret ~* +@all resetchannels").text(), "OK");
    }
    let url = cluster.url().replace("redis-cluster://", "redis-cluster://app:secret@");
    follow(&url, &cluster, &["hygiene.heartbeat=3s"], Duration::from_secs(30));
}

#[test]
fn an_element_that_is_pushed_while_the_slot_moves_finds_its_waiter() {
    let cluster = Cluster::start();
    let proxy = start(&cluster.url(), &[]);
    let mut producer = proxy.connect();
    let slot = slot_of(&cluster, "a");
    let mut before = blocked(&proxy, "BLPOP {a}one 0");
    until_waiting(&proxy, 1);
    cluster.move_slot(slot, another(&cluster, slot), || {
        // It comes while the slot is on its way: the key is on neither node.
        let mut during = blocked(&proxy, "BLPOP {a}two 0");
        thread::sleep(Duration::from_millis(100));
        producer.call("RPUSH {a}two second");
        assert_eq!(during.reply().items()[1].text(), "second");
        producer.call("RPUSH {a}one first");
    });
    assert_eq!(before.reply().items()[1].text(), "first");
}

#[test]
fn elements_are_popped_once_while_slots_move() {
    const WORKERS: usize = 12;
    const ELEMENTS: usize = 600;
    let cluster = Cluster::start();
    let proxy = start(&cluster.url(), &["pool.max_connections=6"]);
    let (seen, over) = (Mutex::new(BTreeMap::<String, usize>::new()), AtomicBool::new(false));
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (seen, over, proxy) = (&seen, &over, &proxy);
            scope.spawn(move || {
                let mut client = proxy.connect();
                let key = format!("{{{}}}jobs", KEYS[worker % 3]);
                while !over.load(Ordering::Relaxed) {
                    client.start(&format!("BLPOP {key} 0.5"));
                    let reply = client.reply();
                    if !reply.is_nil() {
                        *seen.lock().unwrap().entry(reply.items()[1].text()).or_default() += 1;
                    }
                }
            });
        }
        let (mut producer, mut pushed) = (proxy.connect(), 0);
        for round in 0..6 {
            let slot = slot_of(&cluster, KEYS[round % 3]);
            let mut push = |count: usize| {
                for _ in 0..count {
                    let key = format!("{{{}}}jobs", KEYS[pushed % 3]);
                    assert!(producer.call(&format!("RPUSH {key} element:{pushed}")).int() > 0);
                    pushed += 1;
                }
            };
            push(ELEMENTS / 12);
            cluster.move_slot(slot, another(&cluster, slot), || push(ELEMENTS / 12));
        }
        assert_eq!(pushed, ELEMENTS);
        until("all elements are popped", PATIENCE, || seen.lock().unwrap().len() == ELEMENTS);
        over.store(true, Ordering::Relaxed);
    });
    let seen = seen.into_inner().unwrap();
    assert!(seen.values().all(|count| *count == 1), "popped twice: {seen:?}");
    assert!(cluster.connections().iter().all(|count| *count <= 6), "{:?}", cluster.connections());
}

#[test]
fn a_blocked_call_outlives_the_master_of_its_key() {
    let mut cluster = Cluster::start_with(3, true);
    let proxy = start(&cluster.url(), &[]);
    let slot = slot_of(&cluster, "a");
    let mut popped = blocked(&proxy, "BLPOP {a}list 0");
    let mut read = blocked(&proxy, "XREAD BLOCK 0 STREAMS {a}stream $");
    until_waiting(&proxy, 2);
    let address = cluster.owner(slot);
    let dead = cluster.masters.iter().position(|node| node.address() == address).unwrap();
    cluster.masters.remove(dead).kill();
    let mut producer = proxy.connect();
    // Waits for the next master.
    producer.start("RPUSH {a}list job");
    assert_eq!(producer.reply_within(FAILOVER).int(), 1);
    assert_eq!(popped.reply_within(FAILOVER).items()[1].text(), "job");
    let id = producer.call("XADD {a}stream * field value").text();
    assert!(format!("{:?}", read.reply_within(FAILOVER)).contains(&id));
}
