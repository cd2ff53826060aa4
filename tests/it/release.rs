//! A client that leaves releases what it held upstream, whatever it was doing. The server's own list is the judge.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::harness::{
    Client, ClientFleet, PATIENCE, Proxy, Server, Stage, State, enter_state, throughout, until,
};

/// `pool.linger` plus one second, plus what a debug build needs on a machine that runs six tests at a time: what stays held stays
/// for minutes.
const RELEASED: Duration = Duration::from_millis(1_000 + 1_000 + 3_000);

macro_rules! in_every_state {
    ($($name:ident: $state:expr),* $(,)?) => {
        /// A process with 200 clients gets SIGKILL.
        mod killed {
            use super::{State, killed_with_their_process, stage_with_values};
            $(#[test] fn $name() { killed_with_their_process(&stage_with_values(), $state); })*
        }
        /// The same without a proxy between: what the server does by itself when it sees the connections end.
        mod killed_directly {
            use super::{State, killed_with_their_process, server_with_values};
            $(#[test] fn $name() { killed_with_their_process(&server_with_values(), $state); })*
        }
        /// Clients end their connections, half of them with a FIN, half with a RST, while others work.
        mod closed {
            use super::{State, closed_while_others_work};
            $(#[test] fn $name() { closed_while_others_work($state); })*
        }
    };
}

in_every_state! {
    idle_clients_hold_nothing_afterwards: State::Idle,
    clients_with_half_a_command_hold_nothing_afterwards: State::HalfCommand,
    clients_with_commands_in_flight_hold_nothing_afterwards: State::InFlight,
    clients_inside_multi_hold_nothing_afterwards: State::InMulti,
    clients_that_watch_hold_nothing_afterwards: State::InWatch,
    blocked_clients_hold_nothing_afterwards: State::InBlpop,
    subscribed_clients_hold_nothing_afterwards: State::Subscribed,
}

/// The connections that clients are the reason for: all but the proxy's own control connection.
fn held(stage: &Stage) -> usize {
    stage.server.rows().iter().filter(|row| !row.get("name").ends_with(":control")).count()
}

fn stage_with_values() -> Stage {
    with_values(Stage::proxied())
}

fn server_with_values() -> Stage {
    with_values(Stage::direct())
}

fn with_values(stage: Stage) -> Stage {
    stage.server.call(&format!("SET big {}", "x".repeat(256 << 10)));
    stage
}

/// What the clients that are gone must not have done, and what is pushed now must stay.
fn nothing_happens_afterwards(stage: &Stage) {
    // A call that came just before its client's FIN looks once, as it would on the server.
    if stage.is_proxied() {
        until("no call waits", RELEASED, || !stage.proxy().status()["clients"].to_string().contains("block"));
    }
    stage.server.call("RPUSH blocked later");
    // A try that was in flight when its client left may pop it, and gives it back: what counts is that it comes to rest.
    until("the element pushed afterwards stays", PATIENCE, || {
        (0..20).all(|_| {
            thread::sleep(Duration::from_millis(10));
            stage.server.call("LLEN blocked").int() == 1
        })
    });
    assert_eq!(stage.server.call("EXISTS never").int(), 0, "an open transaction was executed");
    assert!(stage.server.call("KEYS half:*").items().is_empty(), "half a command was executed");
    assert_eq!(stage.server.call("PUBLISH news x").int(), 0, "the server still has a subscriber");
}

fn killed_with_their_process(stage: &Stage, state: State) {
    let crowd = ClientFleet::start(stage.address(), 200, state);
    let clients = stage.server.clients();
    assert!(if stage.is_proxied() { clients <= 8 } else { clients == 200 }, "{clients} connections");
    crowd.kill();
    until("the server has no client left", RELEASED, || held(stage) == 0);
    nothing_happens_afterwards(stage);
    assert_eq!(stage.connect().call("PING").text(), "PONG");
}

/// A client that works all the time and checks that every answer is its own.
struct Steady {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Steady {
    fn start(stage: &Stage, name: &str) -> Self {
        let mut client = stage.connect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let name = name.to_owned();
        let thread = thread::spawn(move || {
            let mut sequence = 0;
            while !stopping.load(SeqCst) {
                let words = [format!("{name}:{sequence}"), format!("{name}:{}", sequence + 1)];
                client.start(&format!("ECHO {}", words[0]));
                client.start(&format!("ECHO {}", words[1]));
                assert_eq!(client.reply().text(), words[0]);
                assert_eq!(client.reply().text(), words[1]);
                sequence += 2;
            }
            sequence
        });
        Self { stop, thread: Some(thread) }
    }

    /// How many answers were right; panics if one was wrong or missing.
    fn finish(mut self) -> u64 {
        self.stop.store(true, SeqCst);
        self.thread.take().unwrap().join().expect("every reply was the right one")
    }
}

fn closed_while_others_work(state: State) {
    let stage = stage_with_values();
    let steady: Vec<Steady> =
        (0..3).map(|number| Steady::start(&stage, &format!("steady{number}"))).collect();
    let mut clients: Vec<Client> = (0..60).map(|_| stage.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        enter_state(client, state, number).unwrap();
    }
    for (number, client) in clients.into_iter().enumerate() {
        if number % 2 == 0 { client.reset() } else { drop(client) }
    }
    // The working clients keep their lanes, of which there may be two.
    until("only the lanes of those still there are left", RELEASED, || held(&stage) <= 2);
    nothing_happens_afterwards(&stage);
    for one in steady {
        assert!(one.finish() > 0);
    }
    until("after the last client there is nothing", RELEASED, || held(&stage) == 0);
}

#[test]
fn a_leased_connection_is_closed_at_once() {
    let server = Server::start();
    // A second lane, which a busy machine may call for, would be counted as well.
    let alone = ["blocking.hub=false", "pubsub.hub=false", "pool.lanes_per_key=1"];
    let proxy = Proxy::start(&server, &alone);
    let mut lane = proxy.connect();
    lane.call("PING");
    // The control connection comes and goes by itself.
    let held = || server.rows().iter().filter(|row| !row.get("name").ends_with(":control")).count();
    let resting = held();
    for command in ["BLPOP k 0", "WATCH w", "SUBSCRIBE c", "MONITOR"] {
        let mut client = proxy.connect();
        client.start(command);
        // Not before: a connection that is still being dialled when its client leaves may serve another for a second.
        if command.starts_with("BLPOP") {
            until("it blocks on a connection", Duration::from_secs(5), || {
                server
                    .rows()
                    .iter()
                    .any(|row| row.get("name").ends_with(":leased") && row.get("flags") == "b")
            });
        } else {
            assert!(!client.reply().is_error());
        }
        assert!(held() > resting);
        client.reset();
        // Far below every time limit: the end of the client is what ends the lease.
        until("it is gone", Duration::from_millis(500), || held() == resting);
    }
}

#[test]
fn a_client_that_leaves_with_unread_replies_releases_its_lease() {
    let stage = Stage::proxied();
    stage.server.call(&format!("SET big {}", "x".repeat(4 << 20)));
    let mut client = stage.connect();
    client.shrink_receive_buffer();
    client.start("WATCH w");
    assert_eq!(client.reply().text(), "OK");
    // More than every buffer on the way holds: the lease is back-pressured when its client goes.
    for _ in 0..40 {
        client.start("GET big");
    }
    until("replies are on their way", Duration::from_secs(5), || stage.server.calls_of("get") > 0);
    client.reset();
    until("nothing is left", RELEASED, || held(&stage) == 0);
}

#[test]
fn no_descriptor_stays_behind() {
    let stage = Stage::proxied();
    let mut steady = stage.connect();
    steady.call("PING");
    // The hub that the blocked clients below wait in outlives them by `pool.idle_timeout`.
    steady.call("BLPOP none 0.01");
    let before = stage.proxy().descriptors();
    for round in 0..3 {
        for state in State::ALL {
            let mut clients: Vec<Client> = (0..10).map(|_| stage.connect()).collect();
            for (number, client) in clients.iter_mut().enumerate() {
                enter_state(client, state, number).unwrap();
            }
            if round % 2 == 0 {
                clients.into_iter().for_each(Client::reset);
            }
        }
    }
    until("the proxy has no more descriptors than before", Duration::from_secs(5), || {
        // A second lane of the steady client may stay for its idle time.
        stage.proxy().descriptors() <= before + 1
    });
    assert_eq!(steady.call("PING").text(), "PONG");
}

#[test]
fn the_last_client_of_a_lane_takes_it_along() {
    let stage = Stage::proxied();
    let mut one = stage.connect();
    let mut two = stage.connect();
    one.call("PING");
    two.call("PING");
    assert!(held(&stage) >= 1);
    drop(one);
    throughout("the lane stays for the other one", Duration::from_millis(1_500), || held(&stage) >= 1);
    drop(two);
    until("the lane is closed after its linger", RELEASED, || held(&stage) == 0);
}

/// A client that watches a key and forgets about it held its connection for ever, and nobody was told.
#[test]
fn a_lease_whose_client_is_silent_ends_after_its_timeout() {
    let stage =
        Stage::proxied_with(&["pool.lease_idle_timeout=1s", "blocking.hub=false", "pubsub.hub=false"]);
    let leased = || stage.server.rows().iter().filter(|row| row.get("name").ends_with(":leased")).count();
    // These wait for the server, and are not idle however long it says nothing.
    let mut listening = stage.connect();
    listening.call("SUBSCRIBE c");
    let mut blocked = stage.connect();
    blocked.start("BLPOP none 0");
    for forgotten in [&["WATCH k"][..], &["MULTI", "SET k v"]] {
        let mut client = stage.connect();
        assert_eq!(client.call("CLIENT SETNAME forgetful").text(), "OK");
        for command in forgotten {
            assert!(!client.call(command).is_error());
        }
        client.expect_end(PATIENCE);
        until("its connection is closed", PATIENCE, || {
            stage.server.rows().iter().all(|row| row.get("flags") != "x" && row.get("watch") != "1")
        });
    }
    let told = |log: &str| {
        let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let closed =
            lines.filter(|line| line["message"] == "client closed" && line["reason"] == "lease_idle");
        closed.collect::<Vec<_>>()
    };
    until("it is in the log", PATIENCE, || told(&stage.proxy().log()).len() == 2);
    let lines = told(&stage.proxy().log());
    for (line, state) in lines.iter().zip(["WATCH", "MULTI"]) {
        assert_eq!(
            (line["name"].as_str(), line["user"].as_str()),
            (Some("forgetful"), Some("default")),
            "{line}"
        );
        assert_eq!(line["state"].as_str(), Some(state), "{line}");
        let age = line["age_seconds"].as_f64().unwrap();
        assert!((1.0..60.0).contains(&age), "{line}");
    }
    // One that goes on in time goes on.
    let mut working = stage.connect();
    working.call("WATCH k");
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(150));
        assert!(!working.call("GET k").is_error());
    }
    stage.server.call("PUBLISH c m");
    assert_eq!(listening.reply().items().len(), 3);
    stage.server.call("RPUSH none x");
    assert_eq!(blocked.reply().items().len(), 2);
    assert!(leased() >= 1);
}
