//! The pub/sub hub: many subscribers on one connection, and what happens when that connection, a right or a reader fails.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use redbouncer::resp::{self, ReplyScanner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, LocalOptions};

use crate::harness::{Client, PATIENCE, Proxy, Relay, Server, Stage, Value, encode, long, until};

fn of_kind(server: &Server, kind: &str) -> usize {
    server.rows().iter().filter(|row| row.get("name").ends_with(kind)).count()
}

fn receivers(server: &Server, channel: &str) -> i64 {
    match &server.call(&format!("PUBSUB NUMSUB {channel}")).items()[1] {
        Value::Int(count) => *count,
        other => panic!("{other:?}"),
    }
}

/// Subscribes and reads the confirmation.
fn subscribed(stage: &Stage, channel: &str) -> Client {
    let mut client = stage.connect();
    client.start(&format!("SUBSCRIBE {channel}"));
    assert_eq!(client.reply().items()[0].text(), "subscribe");
    client
}

#[test]
fn subscribers_hold_one_connection_together_and_each_name_is_subscribed_once() {
    let stage = Stage::proxied();
    let mut clients: Vec<Client> = (0..50).map(|i| subscribed(&stage, &format!("c{}", i % 5))).collect();
    assert_eq!((of_kind(&stage.server, ":pubsub"), of_kind(&stage.server, ":leased")), (1, 0));
    assert_eq!(receivers(&stage.server, "c0"), 1);
    let mut publisher = stage.connect();
    assert_eq!(publisher.call("PUBLISH c0 hello").int(), 10);
    assert_eq!(publisher.call("PUBLISH nobody hello").int(), 0);
    for client in clients.iter_mut().step_by(5) {
        assert_eq!(client.reply().items()[2].text(), "hello");
    }
    let list = publisher.call("CLIENT LIST").text();
    assert_eq!(
        list.lines().filter(|line| line.contains(" flags=P ") && line.contains(" sub=1 ")).count(),
        50
    );
    drop(clients);
    until("the hub closes with its last subscriber", Duration::from_secs(4), || {
        of_kind(&stage.server, ":pubsub") == 0
    });
}

#[test]
fn the_count_of_publish_is_of_clients_whatever_they_are_subscribed_by() {
    let direct = Stage::direct();
    let proxied = Stage::proxied();
    let mut counts = Vec::new();
    for stage in [&direct, &proxied] {
        let mut clients: Vec<Client> = (0..6).map(|_| stage.connect()).collect();
        for (i, client) in clients.iter_mut().enumerate() {
            let commands: &[&str] = match i {
                0 | 1 => &["SUBSCRIBE news.art"],
                2 => &["PSUBSCRIBE news.*", "PSUBSCRIBE *.art"],
                3 => &["PSUBSCRIBE n?ws.[a-c]rt"],
                4 => &["SSUBSCRIBE news.art"],
                _ => &["SUBSCRIBE other"],
            };
            for command in commands {
                client.call(command);
            }
        }
        // One that the proxy knows nothing of.
        let mut foreign = Client::connect(stage.server.address());
        foreign.call("SUBSCRIBE news.art");
        let mut publisher = stage.connect();
        publisher.start("PING");
        for command in ["PUBLISH news.art x", "SPUBLISH news.art x", "PUBLISH news.x y", "PUBLISH other z"] {
            publisher.start(command);
        }
        assert_eq!(publisher.reply().text(), "PONG");
        counts.push((0..4).map(|_| publisher.reply().int()).collect::<Vec<_>>());
    }
    assert_eq!(counts[0], counts[1]);
}

#[test]
fn a_name_left_and_taken_again_at_once_misses_nothing_after_its_confirmation() {
    let server = Server::start();
    let relay = Relay::to(server.address());
    let proxy = Proxy::launch(&format!("redis://{}", relay.address()), &[]).unwrap();
    relay.delay(Duration::from_millis(3));
    // The hub stays open for this one.
    let mut steady = proxy.connect();
    steady.call("SUBSCRIBE steady");
    let stop = Arc::new(AtomicBool::new(false));
    let publisher = {
        let (stop, address) = (Arc::clone(&stop), server.address());
        thread::spawn(move || {
            let mut client = Client::connect(address);
            let mut number = 0;
            while !stop.load(SeqCst) {
                number += 1;
                client.call(&format!("PUBLISH c {number}"));
            }
        })
    };
    let mut client = proxy.connect();
    for _ in 0..60 {
        client.start("SUBSCRIBE c");
        assert_eq!(client.reply().items()[0].text(), "subscribe");
        let mut last: Option<i64> = None;
        for _ in 0..5 {
            let number: i64 = client.reply().items()[2].text().parse().unwrap();
            assert!(last.is_none_or(|last| number == last + 1), "{number} after {last:?}");
            last = Some(number);
        }
        client.start("UNSUBSCRIBE c");
        while client.reply().items()[0].text() != "unsubscribe" {}
    }
    stop.store(true, SeqCst);
    publisher.join().unwrap();
}

#[test]
fn a_lost_connection_closes_subscribers_as_a_restart_would() {
    let (mut server, proxy) = Stage::proxied().into_parts();
    let mut subscriber = proxy.connect();
    subscriber.call("SUBSCRIBE c");
    let mut other = proxy.connect();
    other.call("PING");
    let rows = server.rows();
    let hub = rows.iter().find(|row| row.get("name").ends_with(":pubsub")).unwrap();
    server.call(&format!("CLIENT KILL ID {}", hub.get("id")));
    subscriber.expect_end(PATIENCE);
    assert_eq!(other.call("PING").text(), "PONG");
    server.restart();
    let mut subscriber = proxy.connect();
    subscriber.start("SUBSCRIBE c");
    assert_eq!(subscriber.reply_within(Duration::from_secs(5)).items()[0].text(), "subscribe");
}

#[test]
fn with_silent_resubscription_they_stay_and_hear_what_comes_after() {
    let (mut server, proxy) = Stage::proxied_with(&["pubsub.resubscribe=silent"]).into_parts();
    let mut subscribers: Vec<Client> = (0..250).map(|_| proxy.connect()).collect();
    for (i, subscriber) in subscribers.iter_mut().enumerate() {
        subscriber.call(&format!("SUBSCRIBE c{i}"));
    }
    subscribers[0].call("PSUBSCRIBE p*");
    server.restart();
    until("it is subscribed anew", Duration::from_secs(10), || receivers(&server, "c249") == 1);
    until("patterns too", PATIENCE, || server.call("PUBSUB NUMPAT").int() == 1);
    for i in [0, 100, 249] {
        server.call(&format!("PUBLISH c{i} again"));
        assert_eq!(subscribers[i].reply().items()[2].text(), "again");
    }
    server.call("PUBLISH p1 pattern");
    assert_eq!(subscribers[0].reply().items()[3].text(), "pattern");
}

#[test]
fn a_slow_subscriber_is_closed_and_slows_nobody() {
    let stage = Stage::proxied_with(&["client.output_buffer_limit=4MiB 1MiB 30s"]);
    let slow = {
        let client = subscribed(&stage, "c");
        client.shrink_receive_buffer();
        client
    };
    let mut quick = subscribed(&stage, "c");
    let mut publisher = stage.connect();
    let value = "x".repeat(64 << 10);
    for number in 0..300 {
        publisher.ask(&["PUBLISH", "c", &format!("{number}:{value}")]);
        let message = quick.reply().items()[2].text();
        assert!(message.starts_with(&format!("{number}:")));
    }
    let closed = || {
        let label = "redbouncer_clients_closed_total{reason=\"output_limit\"}";
        stage.proxy().metrics().get(label).copied().unwrap_or_default()
    };
    until("it is closed", PATIENCE, || closed() > 0.5);
    drop(slow);
}

#[test]
fn a_subscriber_above_the_soft_limit_is_closed_after_its_time() {
    let stage = Stage::proxied_with(&["client.output_buffer_limit=64MiB 256KiB 1s"]);
    let slow = subscribed(&stage, "c");
    slow.shrink_receive_buffer();
    let mut publisher = stage.connect();
    let value = "x".repeat(64 << 10);
    let start = Instant::now();
    for _ in 0..200 {
        publisher.ask(&["PUBLISH", "c", &value]);
    }
    let closed = || {
        let label = "redbouncer_clients_closed_total{reason=\"output_limit\"}";
        stage.proxy().metrics().get(label).copied().unwrap_or_default()
    };
    until("it is closed without a further message", PATIENCE, || closed() > 0.5);
    assert!(start.elapsed() > Duration::from_millis(900), "{:?}", start.elapsed());
}

#[test]
fn a_push_waits_for_the_end_of_a_reply_that_has_begun() {
    let server = Server::start();
    let relay = Relay::to(server.address());
    let proxy = Proxy::launch(&format!("redis://{}", relay.address()), &[]).unwrap();
    let big = "b".repeat(8 << 20);
    Client::connect(server.address()).ask(&["SET", "big", &big]);
    let mut client = proxy.connect();
    client.call("HELLO 3");
    client.call("SUBSCRIBE c");
    // A reply of many chunks, each late, while messages come.
    relay.delay(Duration::from_millis(2));
    client.start("GET big");
    let publisher = thread::spawn(move || {
        for number in 0..50 {
            server.call(&format!("PUBLISH c {number}"));
        }
        server
    });
    let (mut pushes, mut replies) = (0, 0);
    while pushes < 50 || replies < 1 {
        let reply = client.reply();
        if reply.is_push() {
            assert_eq!(reply.items()[2].text(), pushes.to_string());
            pushes += 1;
        } else {
            assert_eq!(reply.text().len(), big.len());
            replies += 1;
        }
    }
    drop(publisher.join().unwrap());
}

#[test]
fn a_refused_channel_fails_the_whole_command_and_nobody_elses() {
    let server = Server::start();
    server.call("ACL SETUSER listener on >secret ~* resetchannels &ok* +@all");
    let proxy = Proxy::start(&server, &["auth.mode=passthrough"]);
    let mut clients: Vec<Client> = (0..3).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.call("AUTH listener secret");
    }
    clients[0].start("SUBSCRIBE ok1 forbidden ok2");
    clients[1].start("SUBSCRIBE ok1");
    clients[2].start("SUBSCRIBE forbidden");
    assert!(clients[0].reply().error().starts_with("NOPERM"));
    assert_eq!(clients[1].reply().items()[1].text(), "ok1");
    assert!(clients[2].reply().error().starts_with("NOPERM"));
    clients[0].expect_silence(Duration::from_millis(50));
    assert_eq!(clients[0].call("PING").text(), "PONG");
    server.call("PUBLISH ok1 x");
    assert_eq!(clients[1].reply().items()[2].text(), "x");
    assert_eq!(receivers(&server, "ok2"), 0);
}

#[test]
fn subscriptions_beside_watch_transactions_and_blocking_calls() {
    let stage = Stage::proxied();
    let mut client = stage.connect_resp3();
    assert_eq!(client.call("WATCH w").text(), "OK");
    client.start("SUBSCRIBE c");
    assert!(client.reply().is_push());
    assert_eq!(client.call("MULTI").text(), "OK");
    stage.server.call("PUBLISH c in-multi");
    assert_eq!(client.reply().items()[2].text(), "in-multi");
    client.call("SET w 1");
    assert_eq!(client.call("EXEC").items().len(), 1);
    client.start("BLPOP k 5");
    stage.server.call("PUBLISH c blocked");
    assert_eq!(client.reply().items()[2].text(), "blocked");
    stage.server.call("RPUSH k x");
    assert_eq!(client.reply().items()[1].text(), "x");
    assert!(stage.server.clients() <= 8);
}

#[test]
fn keyspace_notifications_are_heard() {
    let stage = Stage::proxied();
    stage.server.call("CONFIG SET notify-keyspace-events KEA");
    let mut client = stage.connect();
    client.call("PSUBSCRIBE __keyevent@0__:*");
    stage.server.call("SET watched 1");
    assert_eq!(client.reply().items()[3].text(), "watched");
}

#[test]
fn subscribers_of_several_workers_are_all_counted_and_told() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["listen.workers=2"]);
    let mut clients: Vec<Client> = (0..10).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.call("SUBSCRIBE c");
    }
    let mut publisher = proxy.connect();
    assert_eq!(publisher.call("PUBLISH c x").int(), 10);
    for client in &mut clients {
        assert_eq!(client.reply().items()[2].text(), "x");
    }
}

#[test]
fn without_the_hub_each_subscriber_takes_a_lease() {
    let stage = Stage::proxied_with(&["pubsub.hub=false"]);
    let mut client = subscribed(&stage, "c");
    assert_eq!((of_kind(&stage.server, ":pubsub"), of_kind(&stage.server, ":leased")), (0, 1));
    stage.server.call("PUBLISH c x");
    assert_eq!(client.reply().items()[2].text(), "x");
}

#[test]
fn without_a_server_a_subscriber_is_closed_in_time() {
    let (mut server, proxy) = Stage::proxied_with(&["pool.wait_timeout=500ms"]).into_parts();
    proxy.connect().call("PING");
    server.kill();
    let mut client = proxy.connect();
    client.start("SUBSCRIBE c");
    client.expect_end(Duration::from_secs(2));
}

/// Every message of every channel reaches each of its subscribers once and in order.
#[test]
fn thousands_of_subscribers_hear_exactly_their_messages_in_order() {
    let (subscribers, messages) = if long() { (5_000, 10_000) } else { (500, 1_000) };
    let server = Server::start();
    let proxy = Proxy::start(&server, &[]);
    let address = proxy.address();
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async {
        let mut tasks = Vec::new();
        let ready = std::rc::Rc::new(std::cell::Cell::new(0));
        for i in 0..subscribers {
            // Of every ten, nine listen to one of 500 channels and one to one of 50 patterns, which covers ten of them.
            let (command, mine): (Vec<u8>, Vec<usize>) = if i % 10 == 9 {
                let pattern = (i / 10) % 50;
                let mine = (0..500).filter(|channel| channel % 50 == pattern).collect();
                (encode(&["PSUBSCRIBE", &format!("p{pattern}.*")]), mine)
            } else {
                let channel = i % 500;
                (encode(&["SUBSCRIBE", &format!("p{}.c{channel}", channel % 50)]), vec![channel])
            };
            let ready = std::rc::Rc::clone(&ready);
            let expected = (0..messages).filter(|message| mine.contains(&(message % 500))).count();
            tasks.push(tokio::task::spawn_local(async move {
                let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
                socket.write_all(&command).await.unwrap();
                let (mut buffer, mut heard, mut last) = (BytesMut::new(), 0, HashMap::new());
                let mut confirmed = false;
                while heard < expected || !confirmed {
                    assert!(socket.read_buf(&mut buffer).await.unwrap() > 0, "closed");
                    while let Ok(step) = ReplyScanner::default().step(&buffer) {
                        if step.complete.is_none() {
                            break;
                        }
                        let frame = buffer.split_to(step.consumed);
                        let parts: Vec<_> = resp::elements(&frame).unwrap().collect();
                        if !confirmed {
                            confirmed = true;
                            ready.set(ready.get() + 1);
                            continue;
                        }
                        let channel =
                            String::from_utf8(resp::bulk(parts[parts.len() - 2]).unwrap().to_vec()).unwrap();
                        let number: usize = std::str::from_utf8(resp::bulk(parts[parts.len() - 1]).unwrap())
                            .unwrap()
                            .parse()
                            .unwrap();
                        let before = last.insert(channel, number);
                        assert!(before.is_none_or(|before| number > before), "{number} after {before:?}");
                        heard += 1;
                    }
                }
                (heard, expected)
            }));
        }
        let start = Instant::now();
        while ready.get() < subscribers {
            assert!(start.elapsed() < Duration::from_secs(30), "{} of {subscribers}", ready.get());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(of_kind(&server, ":pubsub"), 1);
        assert!(server.clients() <= 8, "{}", server.clients());
        let mut publisher = tokio::net::TcpStream::connect(server.address()).await.unwrap();
        let mut sink = vec![0; 64 << 10];
        for message in 0..messages {
            let channel = message % 500;
            let name = format!("p{}.c{channel}", channel % 50);
            publisher.write_all(&encode(&["PUBLISH", &name, &message.to_string()])).await.unwrap();
            if message % 100 == 99 {
                let _ = publisher.read(&mut sink).await.unwrap();
            }
        }
        for task in tasks {
            let (heard, expected) =
                tokio::time::timeout(Duration::from_secs(60), task).await.unwrap().unwrap();
            assert_eq!(heard, expected);
        }
        println!("{subscribers} subscribers, {messages} messages: {:?}", start.elapsed());
    });
}

#[test]
fn the_corrected_count_keeps_its_place_among_other_replies() {
    let stage = Stage::proxied();
    let _subscribers: Vec<Client> = (0..7).map(|_| subscribed(&stage, "c")).collect();
    let mut client = stage.connect();
    client.call("SET k v");
    let commands = ["PUBLISH c 1", "GET k", "PUBLISH c 2", "ECHO x", "PUBLISH none 3", "PUBLISH", "GET k"];
    for _ in 0..50 {
        let replies = client.pipeline(&commands);
        let shown: Vec<String> =
            replies.iter().map(|reply| String::from_utf8_lossy(&reply.raw).into_owned()).collect();
        assert_eq!(shown[..5], [":7\r\n", "$1\r\nv\r\n", ":7\r\n", "$1\r\nx\r\n", ":0\r\n"]);
        assert!(shown[5].starts_with("-ERR wrong number") && shown[6] == "$1\r\nv\r\n", "{shown:?}");
    }
}

/// The reply to PUBLISH comes over a lane, and its message over the hub's connection, which may be later.
#[test]
fn what_was_published_before_a_subscriber_ends_its_subscription_reaches_it_first() {
    for (stage, rounds) in [(Stage::direct(), 1), (Stage::proxied(), if long() { 300 } else { 40 })] {
        let mut publisher = stage.connect();
        for round in 0..rounds {
            what_was_published_comes_first(&stage, &mut publisher, &format!("m{round}"));
        }
    }
}

fn what_was_published_comes_first(stage: &Stage, publisher: &mut Client, message: &str) {
    let subscriber = |protocol: &str| {
        let mut client = stage.connect();
        client.call(protocol);
        client.start("SUBSCRIBE c");
        assert_eq!(client.reply().items()[0].text(), "subscribe");
        client
    };
    let publish = format!("PUBLISH c {message}");
    // By somebody else, who knows already that it was published.
    for (protocol, command, answer) in [
        ("HELLO 3", "UNSUBSCRIBE c", "unsubscribe"),
        ("HELLO 2", "UNSUBSCRIBE c", "unsubscribe"),
        ("HELLO 2", "PING", "pong"),
        ("HELLO 2", "RESET", "RESET"),
        ("HELLO 3", "RESET", "RESET"),
        ("HELLO 2", "QUIT", "OK"),
    ] {
        let mut client = subscriber(protocol);
        publisher.call(&publish);
        client.start(command);
        for expected in [message, answer] {
            let frame = client.frame(PATIENCE);
            let text = String::from_utf8_lossy(&frame);
            assert!(text.contains(expected), "{expected} is not first, {protocol}, {command}: {text:?}");
        }
    }
    // By itself, in one pipeline, before it closes its side.
    for commands in [&[&publish[..]][..], &[&publish, "RESET"], &[&publish, "QUIT"]] {
        let mut client = subscriber("HELLO 3");
        let words = commands.iter().map(|command| encode(&command.split(' ').collect::<Vec<_>>()));
        client.send(words.collect::<Vec<_>>().concat());
        client.half_close();
        let (bytes, _) = client.read_to_end(PATIENCE);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains(&format!("\r\n{message}\r\n")), "{commands:?}: {text:?}");
    }
}

#[test]
fn what_was_published_before_a_subscription_does_not_come_to_it() {
    let stage = Stage::proxied();
    let (mut other, mut publisher) = (subscribed(&stage, "c"), stage.connect());
    for round in 0..if long() { 2000 } else { 200 } {
        let mut client = stage.connect();
        client.call("PING");
        publisher.call("PUBLISH c before");
        client.start("SUBSCRIBE c");
        assert_eq!(client.reply().items()[0].text(), "subscribe", "round {round}");
        publisher.call("PUBLISH c after");
        assert_eq!(client.reply().items()[2].text(), "after", "round {round}");
        for expected in ["before", "after"] {
            assert_eq!(other.reply().items()[2].text(), expected);
        }
    }
}

#[test]
fn a_pipeline_of_unsubscribes_waits_once() {
    let stage = Stage::proxied();
    let mut client = stage.connect();
    client.call("HELLO 3");
    let names: Vec<String> = (0..1000).map(|i| format!("c{i}")).collect();
    client.start(&format!("SUBSCRIBE {}", names.join(" ")));
    for _ in &names {
        assert_eq!(client.reply().items()[0].text(), "subscribe");
    }
    let pings = || {
        let stats = stage.server.call("INFO commandstats").text();
        let line = stats.lines().find(|line| line.starts_with("cmdstat_ping:")).map(str::to_owned);
        line.map_or(0, |line| {
            line["cmdstat_ping:calls=".len()..].split(',').next().unwrap().parse::<u64>().unwrap()
        })
    };
    let before = pings();
    let all: Vec<u8> = names.iter().flat_map(|name| encode(&["UNSUBSCRIBE", name])).collect();
    client.send(all);
    for _ in &names {
        assert_eq!(client.reply().items()[0].text(), "unsubscribe");
    }
    // Once for what is read at once.
    assert!(pings() - before < 50, "{}", pings() - before);
}
