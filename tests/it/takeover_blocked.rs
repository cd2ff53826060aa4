//! Blocked clients when the proxy is replaced: their calls go on in the new process with the time that they have left and in
//! their order; no element is lost or given twice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Client, PATIENCE, Sampler, Server, long, until};
use crate::takeover::{Scene, TAKEOVER};

/// Has the call of a client wait.
fn blocked(scene: &Scene, client: Client, command: &str) -> Client {
    blocked_at("blocking hub", scene, client, command)
}

/// The same at another place.
fn blocked_at(place: &str, scene: &Scene, mut client: Client, command: &str) -> Client {
    let own = client.call("CLIENT ID").int();
    client.start(command);
    until("its call waits", PATIENCE, || {
        let status = scene.proxy.status();
        let clients = status["clients"].as_array().unwrap().clone();
        clients.iter().any(|row| row["id"] == own && row["place"] == place)
    });
    client
}

/// Calls that block on connections of their own on the server.
fn blocked_on_server(server: &Server) -> usize {
    let list = server.call("CLIENT LIST").text();
    list.lines().filter(|row| row.contains(" flags=b")).count()
}

#[test]
fn blocked_clients_go_on_waiting_in_their_order_and_for_the_time_they_have_left() {
    let mut scene = Scene::new(&[]);
    scene.server.call("XADD stream 1-1 f old");
    scene.server.call("XGROUP CREATE stream group $");
    // They move in the order of their numbers, which is not that of their calls.
    let mut clients: Vec<Client> = (0..7).map(|_| scene.proxy.connect()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.call("PING").text(), "PONG"));
    let mut blocked = |command: &str| blocked(&scene, clients.pop().unwrap(), command);
    let begun = Instant::now();
    let mut brief = blocked("BLPOP none 10");
    let mut reader = blocked("XREAD BLOCK 0 STREAMS stream $");
    let mut grouped = blocked("XREADGROUP GROUP group me BLOCK 0 STREAMS stream >");
    let mut sorted = blocked("BZPOPMIN zset 0");
    let mut first = blocked("BLPOP list 0");
    let mut second = blocked("BRPOP other list 0");
    let mut third = blocked("BLMOVE list to LEFT RIGHT 0");
    for _ in 0..2 {
        let exit = scene.replace().wait(TAKEOVER);
        assert_eq!(exit.code, Some(0), "{}", exit.stderr);
        // Until then what is pushed may go to one who is there already.
        until("all wait in the hub of the new process", PATIENCE, || {
            let clients = scene.proxy.status()["clients"].as_array().unwrap().clone();
            clients.iter().filter(|row| row["place"] == "blocking hub").count() == 7
        });
    }
    scene.server.call("XADD stream 2-1 f new");
    for client in [&mut reader, &mut grouped] {
        let text = format!("{:?}", client.reply());
        assert!(text.contains("2-1") && !text.contains("1-1"), "{text}");
    }
    scene.server.call("ZADD zset 1 member");
    assert_eq!(sorted.reply().items()[1].text(), "member");
    scene.server.call("RPUSH list a");
    assert_eq!(first.reply().items()[1].text(), "a");
    scene.server.call("RPUSH list b");
    assert_eq!(second.reply().items()[1].text(), "b");
    scene.server.call("RPUSH list c");
    assert_eq!(third.reply().text(), "c");
    assert!(brief.reply_within(TAKEOVER).is_nil());
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_secs(10), "{waited:?}");
    // They are as they were.
    for client in [&mut brief, &mut first, &mut sorted] {
        assert_eq!(client.call("PING").text(), "PONG");
    }
}

/// Calls wait on leases, as far as there are leases, and are tried.
const WITHOUT_HUBS: [&str; 1] = ["blocking.hub=false"];

#[test]
fn every_element_is_taken_once_while_processes_are_replaced() {
    takes_every_element_once(&[]);
}

#[test]
fn every_element_is_taken_once_without_hubs_while_processes_are_replaced() {
    takes_every_element_once(&WITHOUT_HUBS);
}

fn takes_every_element_once(settings: &[&str]) {
    let mut scene = Scene::new(settings);
    let (stop, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let workers: Vec<_> = (0..16)
        .map(|number| {
            let mut client = scene.proxy.connect();
            let (stop, taken) = (Arc::clone(&stop), Arc::clone(&taken));
            thread::spawn(move || {
                let mut elements = Vec::new();
                let command = if number % 2 == 0 { "BLPOP jobs 1" } else { "BRPOP jobs 1" };
                while !stop.load(SeqCst) {
                    let reply = client.call(command);
                    if !reply.is_nil() {
                        elements.push(reply.items()[1].text());
                        taken.fetch_add(1, SeqCst);
                    }
                }
                elements
            })
        })
        .collect();
    let sampler = Sampler::start(&scene.server);
    let mut pushed = 0;
    // Few at a time, so that workers wait in between.
    let mut push = |scene: &Scene, count: usize| {
        for _ in 0..count {
            scene.server.call(&format!("RPUSH jobs {pushed}"));
            pushed += 1;
        }
        until("they are taken", PATIENCE, || taken.load(SeqCst) == pushed);
        pushed
    };
    for _ in 0..if long() { 100 } else { 3 } {
        push(&scene, 40);
        let old = scene.replace();
        push(&scene, 40);
        let exit = old.wait(TAKEOVER);
        assert_eq!(exit.code, Some(0), "{}", exit.stderr);
    }
    let pushed = push(&scene, 40);
    stop.store(true, SeqCst);
    let elements: Vec<String> =
        workers.into_iter().flat_map(|worker| worker.join().expect("no worker is closed")).collect();
    assert_eq!(elements.len(), pushed);
    assert_eq!(elements.iter().collect::<BTreeSet<_>>().len(), pushed, "each once");
    assert_eq!(scene.server.call("LLEN jobs").int(), 0);
    let seen = sampler.finish();
    assert!(seen.peak <= 8, "{} of 8: {:#?}", seen.peak, seen.rows);
}

#[test]
fn calls_that_block_on_leases_go_on_in_the_new_process() {
    let mut scene = Scene::new(&WITHOUT_HUBS);
    scene.server.call("XADD stream 1-1 f old");
    scene.server.call("XGROUP CREATE stream group $");
    // Three leases: the others are tried on lanes.
    let blocked = |command| blocked_at("blocking call", &scene, scene.proxy.connect(), command);
    let begun = Instant::now();
    let mut moving = blocked("BLMOVE list to LEFT RIGHT 0");
    let mut grouped = blocked("XREADGROUP GROUP group me BLOCK 0 STREAMS stream >");
    let mut brief = blocked("BLPOP none 10");
    let mut reader = blocked("XREAD BLOCK 0 STREAMS stream $");
    let mut sorted = blocked("BZPOPMIN zset 0");
    until("three of them hold leases", PATIENCE, || blocked_on_server(&scene.server) == 3);
    let sampler = Sampler::start(&scene.server);
    for _ in 0..2 {
        let exit = scene.replace().wait(TAKEOVER);
        assert_eq!(exit.code, Some(0), "{}", exit.stderr);
        assert_eq!(scene.proxy.status()["clients"].as_array().unwrap().len(), 5);
        until("they hold leases again", PATIENCE, || blocked_on_server(&scene.server) == 3);
    }
    scene.server.call("XADD stream 2-1 f new");
    for client in [&mut reader, &mut grouped] {
        let text = format!("{:?}", client.reply());
        assert!(text.contains("2-1") && !text.contains("1-1"), "{text}");
    }
    scene.server.call("RPUSH list a");
    assert_eq!(moving.reply().text(), "a");
    scene.server.call("ZADD zset 1 member");
    assert_eq!(sorted.reply().items()[1].text(), "member");
    assert!(brief.reply_within(TAKEOVER).is_nil());
    assert!(begun.elapsed() >= Duration::from_secs(10), "{:?}", begun.elapsed());
    for client in [&mut moving, &mut grouped, &mut brief, &mut reader, &mut sorted] {
        assert_eq!(client.call("PING").text(), "PONG");
    }
    assert_eq!(scene.server.call("LRANGE to 0 -1").items().len(), 1);
    let seen = sampler.finish();
    assert!(seen.peak <= 8, "{} of 8: {:#?}", seen.peak, seen.rows);
}

#[test]
fn a_call_on_a_lease_that_the_server_may_not_be_asked_to_end_stays_until_it_is_answered() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    assert_eq!(server.call("ACL SETUSER ann on >secret ~* &* +@all -client|unblock").text(), "OK");
    let mut scene = Scene::before(server, &["auth.mode=passthrough", "blocking.hub=false"]);
    let mut ann = scene.proxy.connect();
    assert_eq!(ann.call("AUTH ann secret").text(), "OK");
    let mut ann = blocked_at("blocking call", &scene, ann, "BLPOP list 0");
    until("it holds a lease", PATIENCE, || blocked_on_server(&scene.server) == 1);
    // Strangers stay, too: the old process keeps a connection for each, so it need not take the lease back.
    let strangers: Vec<Client> = (0..4).map(|_| scene.proxy.connect()).collect();
    until("all have come", PATIENCE, || scene.proxy.status()["clients"].as_array().unwrap().len() == 5);
    let old = scene.replace();
    until("the server has refused", PATIENCE, || {
        let log = scene.server.call("ACL LOG");
        format!("{log:?}").contains("client|unblock")
    });
    assert_eq!(scene.proxy.status()["clients"].as_array().unwrap().len(), 0, "it stays");
    scene.server.call("RPUSH list a");
    assert_eq!(ann.reply().items()[1].text(), "a");
    drop(strangers);
    assert_eq!(old.wait(TAKEOVER).code, Some(0));
    assert_eq!(ann.call("ACL WHOAMI").text(), "ann");
}
