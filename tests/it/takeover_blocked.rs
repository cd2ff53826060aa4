//! Blocked clients when the proxy is replaced: their calls go on in the new process with the time that they have left and in
//! their order; no element is lost or given twice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Client, PATIENCE, Sampler, long, until};
use crate::takeover::{Scene, TAKEOVER};

/// Has the call of a client wait.
fn blocked(scene: &Scene, mut client: Client, command: &str) -> Client {
    let own = client.call("CLIENT ID").int();
    client.start(command);
    until("its call waits in the hub", PATIENCE, || {
        let status = scene.proxy.status();
        let clients = status["clients"].as_array().unwrap().clone();
        clients.iter().any(|row| row["id"] == own && row["place"] == "blocking hub")
    });
    client
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

#[test]
fn every_element_is_taken_once_while_processes_are_replaced() {
    let mut scene = Scene::new(&[]);
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
