//! How long a neighbour waits while another client asks for very much at once: keys, names, queued commands, ids, rows.
//!
//! Each scenario plays before the server itself and through a proxy with one worker before the same server. A neighbour
//! sends GETs all the while, and the longest of them is what the scenario costs others. The short form is smaller;
//! `REDBOUNCER_LONG=1 cargo test --release --test it neighbours -- --nocapture --test-threads 1` is the measurement.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Client, Server, Stage, encode, long, until};

/// What a neighbour may wait, or three times as long as without a proxy.
const ENOUGH: Duration = Duration::from_millis(100);
/// Of so many the best counts: other programs run on the same machine.
const REPEATS: usize = 5;
const END: &[u8] = b"the-end\r\n";
const ONE_WORKER: &[&str] = &["listen.workers=1", "client.output_buffer_limit=1GiB 1GiB 60s"];

/// As many keys, names or commands. The short form is for a debug build, which takes ten times as long for each.
fn count() -> usize {
    if long() { 100_000 } else { 5_000 }
}

/// Where a scenario plays: at the server itself, or at the proxy before it.
struct Place<'a> {
    address: SocketAddr,
    server: &'a Server,
}

impl Place<'_> {
    fn connect(&self) -> Client {
        Client::connect(self.address)
    }
}

/// A client that sends very much and reads what it is answered at the same time.
struct Loud(TcpStream);

impl Loud {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(80))).unwrap();
        Self(stream)
    }

    /// Sends `commands` and reads until all are answered.
    fn run(&mut self, commands: &[u8]) {
        let mut writer = self.0.try_clone().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                writer.write_all(commands).unwrap();
                writer.write_all(&words(&["PING", "the-end"])).unwrap();
            });
            let mut chunk = vec![0; 1 << 16];
            let mut tail = Vec::new();
            while !tail.ends_with(END) {
                let came = self.0.read(&mut chunk).unwrap();
                assert_ne!(came, 0, "closed");
                tail.extend_from_slice(&chunk[..came]);
                let behind = tail.len().saturating_sub(END.len());
                tail.drain(..behind);
            }
        });
    }
}

fn words<S: AsRef<[u8]>>(words: &[S]) -> Vec<u8> {
    encode(words)
}

/// `command`, then `count` names of the form `{prefix}{number}`, then `last`.
fn with_names(command: &[&str], prefix: &str, count: usize, last: &[&str]) -> Vec<u8> {
    let mut all: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
    all.extend((0..count).map(|number| format!("{prefix}{number}")));
    all.extend(last.iter().map(|word| (*word).to_owned()));
    words(&all)
}

/// As many commands, each made of its number.
fn pipeline(count: usize, command: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(command).collect()
}

/// Tells the neighbour that it is over.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// The longest of a neighbour's GETs while `scenario` plays.
fn longest_wait(place: &Place<'_>, scenario: impl FnOnce(&Place<'_>, &AtomicU64)) -> Duration {
    let (is_over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut neighbour = place.connect();
    assert!(neighbour.call("GET n").is_nil());
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !is_over.load(SeqCst) {
                let start = Instant::now();
                neighbour.start("GET n");
                assert!(neighbour.reply_within(Duration::from_secs(60)).is_nil());
                longest = longest.max(start.elapsed());
                rounds.fetch_add(1, SeqCst);
            }
            longest
        });
        // Also when the scenario fails.
        let _ends = Ends(&is_over);
        scenario(place, &rounds);
        // What is left to be done for it afterwards counts as well.
        let so_far = rounds.load(SeqCst);
        until("the neighbour goes on", Duration::from_secs(60), || rounds.load(SeqCst) > so_far + 20);
        is_over.store(true, SeqCst);
        watch.join().unwrap()
    })
}

/// Holds the proxy to its goal for `scenario`.
#[track_caller]
fn judge(what: &str, scenario: impl Fn(&Place<'_>, &AtomicU64)) {
    let stage = Stage::proxied_with(ONE_WORKER);
    let directly = Place { address: stage.server.address(), server: &stage.server };
    let proxied = Place { address: stage.address(), server: &stage.server };
    let mut best: Option<(Duration, Duration)> = None;
    for _ in 0..REPEATS {
        let apart = longest_wait(&directly, &scenario);
        let through = longest_wait(&proxied, &scenario);
        println!("{what}: directly {apart:.1?}, through the proxy {through:.1?}");
        if best.is_none_or(|(_, so_far)| through < so_far) {
            best = Some((apart, through));
        }
        if through <= ENOUGH.max(3 * apart) {
            return;
        }
    }
    panic!("{what}: a neighbour waits too long (directly, through the proxy): {best:.1?}");
}

#[test]
fn a_blocking_call_with_very_many_keys_that_times_out_or_is_served() {
    judge("BLPOP with many keys", |place, _| {
        let mut loud = Loud::connect(place.address);
        loud.run(&with_names(&["BLPOP"], "k", count(), &["0.2"]));
        let is_served = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut pusher = Client::connect(place.server.address());
                while !is_served.load(SeqCst) {
                    thread::sleep(Duration::from_millis(200));
                    pusher.call(&format!("RPUSH k{} x", count() - 1));
                }
                pusher.call(&format!("DEL k{}", count() - 1));
            });
            loud.run(&with_names(&["BLPOP"], "k", count(), &["0"]));
            is_served.store(true, SeqCst);
        });
    });
}

#[test]
fn a_client_that_leaves_while_it_is_blocked_on_very_many_keys() {
    judge("leaving a BLPOP with many keys", |place, rounds| {
        let mut loud = Loud::connect(place.address);
        loud.0.write_all(&with_names(&["BLPOP"], "k", count(), &["0"])).unwrap();
        let so_far = rounds.load(SeqCst);
        let start = Instant::now();
        until("it waits", Duration::from_secs(60), || {
            rounds.load(SeqCst) > so_far + 50 && start.elapsed() > Duration::from_millis(400)
        });
        drop(loud);
    });
}

#[test]
fn very_many_blocking_calls_one_behind_the_other() {
    judge("many BLPOPs", |place, _| {
        let mut loud = Loud::connect(place.address);
        let calls = if long() { count() } else { count() / 4 };
        loud.run(&pipeline(calls, |_| words(&["RPUSH", "full", "x"])));
        loud.run(&pipeline(calls, |_| words(&["BLPOP", "full", "0"])));
    });
}

#[test]
fn a_subscription_to_very_many_names_and_its_end() {
    judge("SUBSCRIBE to many names", |place, _| {
        let mut loud = Loud::connect(place.address);
        loud.run(&with_names(&["SUBSCRIBE"], "c", count(), &[]));
        loud.run(&words(&["UNSUBSCRIBE"]));
    });
}

#[test]
fn very_many_subscriptions_one_behind_the_other_and_the_client_that_leaves() {
    judge("many SUBSCRIBEs", |place, _| {
        let mut loud = Loud::connect(place.address);
        loud.run(&pipeline(count(), |number| words(&["SUBSCRIBE".to_owned(), format!("c{number}")])));
        drop(loud);
        let mut again = Loud::connect(place.address);
        again.run(&with_names(&["SUBSCRIBE"], "c", count(), &[]));
        again.run(&pipeline(count(), |number| words(&["UNSUBSCRIBE".to_owned(), format!("c{number}")])));
    });
}

#[test]
fn very_many_patterns_with_messages_for_them() {
    judge("patterns", |place, _| {
        let mut loud = Loud::connect(place.address);
        // Redis 7.0 looks through a list for each: more would keep the server itself for seconds.
        loud.run(&with_names(&["PSUBSCRIBE"], "p*", count() / 10, &[]));
        let mut publisher = place.connect();
        for _ in 0..20 {
            publisher.call("PUBLISH p1 x");
        }
        loud.run(&words(&["PUNSUBSCRIBE"]));
    });
}

#[test]
fn a_transaction_with_very_many_commands() {
    judge("a transaction in one piece", |place, _| {
        let queued = pipeline(count(), |_| words(&["INCR", "counter"]));
        let mut loud = Loud::connect(place.address);
        loud.run(&[words(&["MULTI"]), queued, words(&["EXEC"])].concat());
    });
}

#[test]
fn a_transaction_with_very_many_commands_on_its_own_connection() {
    judge("a transaction on a lease", |place, _| {
        let mut loud = Loud::connect(place.address);
        loud.run(&words(&["WATCH", "w"]));
        let queued = pipeline(count(), |_| words(&["INCR", "counter"]));
        loud.run(&[words(&["MULTI"]), queued, words(&["EXEC"])].concat());
        let queued = pipeline(count(), |_| words(&["BLPOP", "none", "0"]));
        loud.run(&words(&["WATCH", "w"]));
        loud.run(&[words(&["MULTI"]), queued, words(&["EXEC"])].concat());
    });
}

#[test]
fn a_kill_by_very_many_ids() {
    judge("CLIENT KILL with many ids", |place, _| {
        let mut loud = Loud::connect(place.address);
        let mut all = vec!["CLIENT".to_owned(), "KILL".to_owned()];
        all.extend((0..count()).flat_map(|number| ["ID".to_owned(), (number + 5_000_000).to_string()]));
        loud.run(&words(&all));
        let one = |number: usize| words(&["CLIENT", "KILL", "ID", &(number + 5_000_000).to_string()]);
        loud.run(&pipeline(count() / 10, one));
    });
}

#[test]
fn listings_of_very_many_clients() {
    judge("CLIENT LIST of many clients", |place, _| {
        let crowd: Vec<_> = (0..count() / 20).map(|_| TcpStream::connect(place.address).unwrap()).collect();
        let mut loud = Loud::connect(place.address);
        for _ in 0..5 {
            loud.run(&words(&["CLIENT", "LIST"]));
        }
        loud.run(&words(&["CLIENT", "KILL", "USER", "default", "TYPE", "pubsub"]));
        drop(crowd);
    });
}

#[test]
fn very_many_commands_that_are_answered_without_the_server() {
    judge("many commands without the server", |place, _| {
        let mut loud = Loud::connect(place.address);
        loud.run(&pipeline(count(), |_| words(&["CLIENT", "GETNAME"])));
        loud.run(&pipeline(count(), |_| words(&["GET"])));
        loud.run(&pipeline(count(), |_| words(&["UNSUBSCRIBE", "nothing"])));
        loud.run(&pipeline(count(), |number| words(&["SELECT", if number % 2 == 0 { "1" } else { "0" }])));
    });
}
