//! Subscribers when the proxy is replaced: they go on in the new process, no message is lost or given twice, and their order
//! stays. Where they cannot go on, they stay with the old process and hear everything there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::json;

use crate::harness::{Client, Ended, PATIENCE, Proxy, Relay, Sampler, Server, Value, encode, long, until};
use crate::takeover::{Newcomer, Scene, TAKEOVER};

/// What a thousand subscribers need on a machine that is busy.
const LONG: Duration = Duration::from_secs(60);

/// Between two rounds: a thousand clients are served meanwhile.
const PACE: Duration = Duration::from_millis(100);

/// How many channels, and as many shard channels.
const CHANNELS: usize = 10;

/// Publishes numbered messages on all channels, each round when a subscriber of the proxy has heard the one before.
struct Publisher {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Publisher {
    fn start(server: &Server, proxy: SocketAddr) -> Self {
        let mut subscriber = Client::connect(proxy);
        subscriber.call("SUBSCRIBE c0");
        let mut publisher = Client::connect(server.address());
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (is_stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = thread::spawn(move || {
            while !is_stopped.load(SeqCst) {
                let round = counted.load(SeqCst) + 1;
                let mut commands = Vec::new();
                for channel in 0..CHANNELS {
                    commands.extend(encode(&["PUBLISH", &format!("c{channel}"), &round.to_string()]));
                    commands.extend(encode(&["SPUBLISH", &format!("s{channel}"), &round.to_string()]));
                }
                publisher.send(commands);
                for _ in 0..2 * CHANNELS {
                    publisher.reply();
                }
                counted.store(round, SeqCst);
                assert_eq!(subscriber.reply_within(LONG).items()[2].text(), round.to_string());
                // The others are read at the end: what they are sent must fit into the buffers of their sockets.
                thread::sleep(PACE);
            }
        });
        Self { stop, rounds, thread }
    }

    fn rounds(&self) -> u64 {
        self.rounds.load(SeqCst)
    }

    /// Ends it; returns the last round.
    fn finish(self) -> u64 {
        self.stop.store(true, SeqCst);
        self.thread.join().expect("the subscriber that sets the pace has heard every message");
        self.rounds.load(SeqCst)
    }
}

/// A subscriber of each kind in turn: RESP2 and RESP3; channels, patterns and shard channels.
fn subscriber(proxy: &Proxy, number: usize) -> Client {
    let mut client = proxy.connect();
    let channel = number / 6 % CHANNELS;
    if number % 2 == 1 {
        client.call("HELLO 3");
    }
    client.call(&match number / 2 % 3 {
        0 => format!("SUBSCRIBE c{channel}"),
        1 => format!("PSUBSCRIBE c[{channel}]"),
        _ => format!("SSUBSCRIBE s{channel}"),
    });
    client
}

#[test]
fn a_thousand_subscribers_hear_every_message_once_and_in_order_while_processes_are_replaced() {
    let mut scene = Scene::new(&[]);
    let mut subscribers: Vec<Client> = (0..1_000).map(|number| subscriber(&scene.proxy, number)).collect();
    let publisher = Publisher::start(&scene.server, scene.proxy.address());
    let sampler = Sampler::start(&scene.server);
    for _ in 0..if long() { 100 } else { 3 } {
        let before = publisher.rounds();
        until("messages are heard", LONG, || publisher.rounds() > before + 3);
        // It waits for nobody: all have moved.
        let exit = scene.replace().wait(LONG);
        assert_eq!(exit.code, Some(0), "{}", exit.stderr);
        assert!(!exit.stderr.contains("takeover.client_timeout"), "{}", exit.stderr);
    }
    let last = publisher.finish();
    for (number, client) in subscribers.iter_mut().enumerate() {
        for round in 1..=last {
            let message = client.reply_within(LONG);
            let text = message.items().last().unwrap().text();
            assert_eq!(text, round.to_string(), "subscriber {number}: {message:?}");
        }
        // Nothing is behind them, and it is still a subscriber.
        let pong = client.call("PING");
        assert!(!pong.is_error() && !pong.is_push(), "subscriber {number}: {pong:?}");
    }
    let seen = sampler.finish();
    assert!(seen.peak <= 8, "{} of 8: {:#?}", seen.peak, seen.rows);
    assert_eq!(scene.proxy.status()["clients"].as_array().unwrap().len(), 1_000);
    // The names go with their clients, and so do the channels that divided the messages.
    drop(subscribers);
    until("nobody is subscribed", PATIENCE, || scene.server.call("PUBSUB CHANNELS").items().is_empty());
}

#[test]
fn a_subscriber_goes_on_with_all_its_names_and_its_session() {
    let mut scene = Scene::new(&[]);
    let mut client = scene.proxy.connect();
    for command in ["CLIENT SETNAME listener", "HELLO 3", "SELECT 2"] {
        assert!(!client.call(command).is_error(), "{command}");
    }
    client.start("SUBSCRIBE a b");
    client.start("PSUBSCRIBE p* *");
    for _ in 0..4 {
        assert!(client.reply().is_push());
    }
    assert_eq!(scene.replace().wait(TAKEOVER).code, Some(0));
    let info = client.call("CLIENT INFO").text();
    for expected in ["name=listener", "db=2", "resp=3", "sub=2", "psub=2"] {
        assert!(info.contains(expected), "{expected}: {info}");
    }
    // No message of the takeover's own has come; the confirmations count all subscriptions.
    let left = client.call("UNSUBSCRIBE a");
    assert_eq!((left.items()[1].text(), &left.items()[2]), ("a".to_owned(), &Value::Int(3)));
    assert!(client.call("PUNSUBSCRIBE *").is_push());
    scene.server.call("PUBLISH a gone");
    scene.server.call("PUBLISH b here");
    scene.server.call("PUBLISH px there");
    assert_eq!(client.reply().items()[2].text(), "here");
    assert_eq!(client.reply().items()[3].text(), "there");
}

#[test]
fn a_subscriber_whose_user_may_not_use_the_dividing_channel_stays_and_hears_everything() {
    let server = Server::start_with(&["--requirepass", "sesame"]);
    assert_eq!(server.call("ACL SETUSER ann on >secret ~* resetchannels &c* +@all").text(), "OK");
    let mut scene = Scene::before(server, &["auth.mode=passthrough"]);
    let mut ann = scene.proxy.connect();
    assert_eq!(ann.call("AUTH ann secret").text(), "OK");
    ann.call("SUBSCRIBE c1");
    let old = scene.replace();
    for number in 0..20 {
        scene.server.call(&format!("PUBLISH c1 {number}"));
        assert_eq!(ann.reply().items()[2].text(), number.to_string());
    }
    assert_eq!(scene.proxy.status()["clients"].as_array().unwrap().len(), 0, "it stays");
    // Without subscriptions it moves.
    assert_eq!(ann.call("UNSUBSCRIBE").items()[0].text(), "unsubscribe");
    assert_eq!(old.wait(TAKEOVER).code, Some(0));
    assert_eq!(ann.call("ACL WHOAMI").text(), "ann");
}

#[test]
fn a_subscriber_that_the_other_process_does_not_take_stays_and_hears_everything() {
    let scene = Scene::new(&[]);
    let mut client = scene.proxy.connect();
    client.call("SUBSCRIBE c");
    let mut hears = |number: u32| {
        scene.server.call(&format!("PUBLISH c {number}"));
        assert_eq!(client.reply().items()[2].text(), number.to_string());
    };
    let mut newcomer = Newcomer::in_charge(&scene.socket(), &["subscribers"]);
    let announced = newcomer.hear("announce");
    let divider = announced["subscribed"]["divider"].as_str().unwrap().to_owned();
    assert_eq!(announced["subscribed"]["channels"], json!([[99]]));
    hears(1);
    newcomer.say(&json!({ "message": "decline", "client": announced["id"] }));
    assert_eq!(newcomer.hear("keep")["client"], announced["id"]);
    hears(2);
    // Too late: nobody is divided any more.
    scene.server.call(&format!("PUBLISH {divider} moved"));
    hears(3);
    // The other process dies.
    drop(newcomer);
    hears(4);
}

/// A subscriber that the old process has given away, while the new one has not heard the dividing message yet.
fn given_before_the_new_process_hears(settings: &[&str]) -> (Scene, Relay, Client) {
    let server = Server::start();
    let relay = Relay::to(server.address());
    let mut scene = Scene::by_way_of(format!("redis://{}", relay.address()), server, settings);
    let mut client = scene.proxy.connect();
    client.call("SUBSCRIBE c");
    relay.hold_on_new(b"\r\nmoved\r\n");
    assert_eq!(scene.replace().wait(TAKEOVER).code, Some(0));
    assert_eq!(relay.held(), 1, "the new process hears nothing yet");
    (scene, relay, client)
}

#[test]
fn a_subscriber_waits_as_long_as_it_takes_until_the_new_process_hears_what_it_is_to_hear() {
    let (scene, relay, mut client) = given_before_the_new_process_hears(&[]);
    scene.server.call("PUBLISH c first");
    // Longer than anything else that a takeover may take.
    assert_eq!(client.try_reply(Duration::from_secs(12)), Err(Ended::Late));
    relay.pass();
    scene.server.call("PUBLISH c second");
    for expected in ["first", "second"] {
        assert_eq!(client.reply().items()[2].text(), expected);
    }
    assert_eq!(client.call("UNSUBSCRIBE").items()[1].text(), "c");
    assert_eq!(client.call("PING").text(), "PONG");
}

#[test]
fn a_subscriber_that_waits_for_the_new_process_is_told_of_a_gap_as_any_other() {
    let (_scene, relay, mut client) = given_before_the_new_process_hears(&[]);
    relay.cut();
    assert_eq!(client.try_reply(PATIENCE), Err(Ended::Closed));

    let (scene, relay, mut client) = given_before_the_new_process_hears(&["pubsub.resubscribe=silent"]);
    relay.cut();
    relay.pass();
    until("it hears again", PATIENCE, || {
        scene.server.call("PUBLISH c again");
        let message = client.try_reply(Duration::from_millis(100));
        message.is_ok_and(|message| message.items()[2].text() == "again")
    });
}
