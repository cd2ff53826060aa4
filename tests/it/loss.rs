//! The server goes away and comes back, the network cuts in mid-reply: right answers or a clear end, never a wrong one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::harness::{
    Client, Ended, PATIENCE, Proxy, Relay, Reply, Server, Stage, Value, encode, long, throughout, until,
};

/// What one worker of the load has done; looked at while it runs.
#[derive(Default)]
struct Progress {
    right: AtomicU64,
    ended: AtomicU64,
}

/// Clients that work while the server comes and goes.
struct Load {
    stop: Arc<AtomicBool>,
    progress: Vec<Arc<Progress>>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

/// An error that says that there is no server at the moment; anything else is wrong.
fn is_outage(reply: &Reply) -> bool {
    reply.is_error()
        && ["ERR redbouncer: ", "LOADING "].iter().any(|beginning| reply.error().starts_with(beginning))
}

impl Load {
    /// `work` does one round; it returns the connection's end, if it came to that, and what was acknowledged.
    fn start<W>(address: SocketAddr, workers: usize, work: W) -> Self
    where
        W: Fn(&mut Client, usize, u64, &Progress, &mut Vec<String>) -> Result<(), Ended>
            + Send
            + Clone
            + 'static,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let progress: Vec<Arc<Progress>> = (0..workers).map(|_| Arc::default()).collect();
        let threads = progress
            .iter()
            .enumerate()
            .map(|(worker, progress)| {
                let (stop, progress, work) = (Arc::clone(&stop), Arc::clone(progress), work.clone());
                thread::spawn(move || {
                    let mut acknowledged = Vec::new();
                    let mut client = Client::connect(address);
                    let mut sequence = 0;
                    while !stop.load(SeqCst) {
                        sequence += 1;
                        if let Err(ended) = work(&mut client, worker, sequence, &progress, &mut acknowledged)
                        {
                            assert_ne!(ended, Ended::Late, "worker {worker} was left without answer or end");
                            progress.ended.fetch_add(1, SeqCst);
                            client = Client::connect(address);
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        Self { stop, progress, threads }
    }

    fn right(&self) -> Vec<u64> {
        self.progress.iter().map(|progress| progress.right.load(SeqCst)).collect()
    }

    /// Waits until every worker got `count` more right answers.
    #[track_caller]
    fn goes_on(&self, count: u64) {
        let before = self.right();
        until("every client works again", Duration::from_secs(15), || {
            assert!(self.threads.iter().all(|thread| !thread.is_finished()), "a worker saw something wrong");
            self.right().iter().zip(&before).all(|(now, before)| *now >= before + count)
        });
    }

    fn finish(self) -> Vec<String> {
        self.stop.store(true, SeqCst);
        self.threads.into_iter().flat_map(|thread| thread.join().expect("every reply was right")).collect()
    }
}

/// A pipeline of ECHOs and a value of the worker's own: whatever arrives must be the right thing.
fn verified_round(
    client: &mut Client,
    worker: usize,
    sequence: u64,
    progress: &Progress,
    _: &mut Vec<String>,
) -> Result<(), Ended> {
    let key = format!("own:{worker}");
    let mark = format!("{worker}:{sequence}");
    let commands = [
        encode(&["ECHO", &mark]),
        encode(&["SET", &key, &mark]),
        encode(&["GET", &key]),
        encode(&["ECHO", &format!("{mark}:end")]),
    ];
    if client.try_send(commands.concat()).is_err() {
        return Err(Ended::Reset);
    }
    let expected = [mark.clone(), "OK".into(), mark.clone(), format!("{mark}:end")];
    for expected in expected {
        let reply = client.try_reply(PATIENCE)?;
        assert!(is_outage(&reply) || reply.text() == expected, "{reply:?} instead of {expected}");
        if !reply.is_error() {
            progress.right.fetch_add(1, SeqCst);
        }
    }
    Ok(())
}

/// Pushes an element of its own and never pushes it again, whatever happens.
fn pushed_once(
    client: &mut Client,
    worker: usize,
    sequence: u64,
    progress: &Progress,
    acknowledged: &mut Vec<String>,
) -> Result<(), Ended> {
    let element = format!("{worker}:{sequence}");
    if client.try_send(encode(&["RPUSH", "journal", &element])).is_err() {
        return Err(Ended::Reset);
    }
    let reply = client.try_reply(PATIENCE)?;
    assert!(is_outage(&reply) || matches!(reply.value, Value::Int(_)), "{reply:?}");
    if !reply.is_error() {
        progress.right.fetch_add(1, SeqCst);
        acknowledged.push(element);
    }
    Ok(())
}

/// A blocking client that comes back when its connection ends; elements that it gets are its own.
fn blocked_round(
    client: &mut Client,
    worker: usize,
    _: u64,
    progress: &Progress,
    _: &mut Vec<String>,
) -> Result<(), Ended> {
    if client.try_send(encode(&["BLPOP", &format!("quiet:{worker}"), "0.1"])).is_err() {
        return Err(Ended::Reset);
    }
    let reply = client.try_reply(PATIENCE)?;
    assert!(is_outage(&reply) || reply.is_nil() || reply.error().starts_with("UNBLOCKED"), "{reply:?}");
    if reply.is_nil() {
        progress.right.fetch_add(1, SeqCst);
    }
    Ok(())
}

#[test]
fn a_server_that_is_killed_and_restarted_under_load_confuses_nobody() {
    let restarts = if long() { 20 } else { 5 };
    // The append-only file outlives the process: what was executed is known afterwards, answered or not.
    let server = Server::start_with(&["--appendonly", "yes", "--appendfsync", "no"]);
    let stage = Stage::before(server, &["pool.wait_timeout=500ms", "upstream.backoff_max=300ms"]);
    let address = stage.address();
    let mut idle: Vec<Client> = (0..10).map(|_| stage.connect()).collect();
    for (number, client) in idle.iter_mut().enumerate() {
        client.call(&format!("CLIENT SETNAME idle:{number}"));
        client.call(&format!("SELECT {number}"));
        client.call("PING");
    }
    let ids: Vec<i64> = idle.iter_mut().map(|client| client.call("CLIENT ID").int()).collect();
    let verified = Load::start(address, 4, verified_round);
    let once = Load::start(address, 4, pushed_once);
    let blocked = Load::start(address, 4, blocked_round);
    let (mut server, proxy) = stage.into_parts();
    for _ in 0..restarts {
        verified.goes_on(20);
        once.goes_on(20);
        server.kill();
        server.restart();
        verified.goes_on(1);
        blocked.goes_on(1);
    }
    verified.finish();
    blocked.finish();
    let acknowledged = once.finish();
    let journal: Vec<String> = server.call("LRANGE journal 0 -1").items().iter().map(Value::text).collect();
    let distinct: std::collections::BTreeSet<&String> = journal.iter().collect();
    assert_eq!(distinct.len(), journal.len(), "something was sent twice");
    for element in &acknowledged {
        assert!(distinct.contains(element), "{element} was acknowledged and is not there");
    }
    assert!(acknowledged.len() > 100);
    // Whoever had nothing outstanding never noticed.
    for (number, (client, id)) in idle.iter_mut().zip(ids).enumerate() {
        assert_eq!(client.call("CLIENT ID").int(), id);
        assert_eq!(client.call("CLIENT GETNAME").text(), format!("idle:{number}"));
        assert_eq!(client.call(&format!("SET in {number}")).text(), "OK");
        assert_eq!(client.call("GET in").text(), number.to_string());
    }
    drop(proxy);
}

/// A proxy whose way to the server leads through a relay.
/// Without the reaper, whose connection after a loss would take the fault that is meant for another one.
fn through_a_relay(settings: &[&str]) -> (Server, Relay, Proxy) {
    let server = Server::start();
    let relay = Relay::to(server.address());
    let settings = [settings, &["hygiene.reap=false"]].concat();
    let proxy = Proxy::launch(&format!("redis://{}", relay.address()), &settings).expect("it starts");
    (server, relay, proxy)
}

#[test]
fn a_connection_cut_in_mid_reply_gives_no_client_a_wrong_reply() {
    let (server, relay, proxy) = through_a_relay(&["upstream.backoff_max=200ms"]);
    for worker in 0..6 {
        server.call(&format!("SET big:{worker} {}", format!("{worker}").repeat(20_000)));
    }
    let load = Load::start(proxy.address(), 6, |client, worker, _, progress, _| {
        if client.try_send(encode(&["GET", &format!("big:{worker}")]).repeat(3)).is_err() {
            return Err(Ended::Reset);
        }
        for _ in 0..3 {
            let reply = client.try_reply(PATIENCE)?;
            let expected = worker.to_string().repeat(20_000);
            assert!(is_outage(&reply) || reply.text() == expected, "worker {worker} got {reply:?}");
            progress.right.fetch_add(1, SeqCst);
        }
        Ok(())
    });
    for round in 0..if long() { 100 } else { 20 } {
        load.goes_on(3);
        relay.cut_after(1_000 + round * 3_137);
        until("the connection is cut", PATIENCE, || !relay.cut_is_pending());
    }
    load.goes_on(3);
    assert!(load.progress.iter().any(|progress| progress.ended.load(SeqCst) > 0));
    load.finish();
}

#[test]
fn a_reply_begun_and_not_finished_ends_its_client() {
    for on_loss in ["close", "error"] {
        let (server, relay, proxy) = through_a_relay(&[&format!("upstream.on_loss={on_loss}")]);
        server.call(&format!("SET big {}", "x".repeat(1 << 20)));
        let mut client = proxy.connect();
        client.call("PING");
        relay.cut_after(300_000);
        let mut commands = encode(&["GET", "big"]);
        // A transaction behind it is owed replies by itself.
        commands.extend([encode(&["MULTI"]), encode(&["PING"]), encode(&["EXEC"])].concat());
        client.send(commands);
        let (bytes, ended) = client.read_to_end(PATIENCE);
        assert_ne!(ended, Ended::Late);
        assert!(bytes.len() < 1 << 20);
        assert!(
            !bytes.windows(4).any(|window| window == b"-ERR"),
            "an error inside of a bulk would be taken for data, on_loss={on_loss}"
        );
        assert_eq!(proxy.connect().call("PING").text(), "PONG");
    }
}

#[test]
fn with_on_loss_error_a_client_of_a_lane_is_told_and_stays() {
    let (_server, relay, proxy) = through_a_relay(&["upstream.on_loss=error"]);
    let mut client = proxy.connect();
    client.call("PING");
    relay.swallow();
    client.start("INCR n");
    client.start("INCR n");
    client.expect_silence(Duration::from_millis(100));
    relay.cut();
    relay.pass();
    assert!(client.reply().error().starts_with("ERR redbouncer: "));
    assert!(client.reply().error().starts_with("ERR redbouncer: "));
    assert_eq!(client.call("ECHO still").text(), "still");
}

#[test]
fn a_loss_closes_those_who_wait_and_leaves_those_who_do_not() {
    let (_server, relay, proxy) = through_a_relay(&[]);
    let mut idle = proxy.connect();
    let mut waiting = proxy.connect();
    let mut blocked = proxy.connect();
    let mut watching = proxy.connect();
    idle.call("PING");
    waiting.call("PING");
    blocked.start("BLPOP k 0");
    watching.call("WATCH k");
    blocked.expect_silence(Duration::from_millis(100));
    relay.swallow();
    waiting.start("INCR n");
    waiting.expect_silence(Duration::from_millis(100));
    relay.cut();
    relay.pass();
    waiting.expect_end(PATIENCE);
    // A watch that is lost must never become a succeeding EXEC.
    watching.expect_end(PATIENCE);
    assert_eq!(idle.call("PING").text(), "PONG");
}

/// `command` takes away what `put` has written, the reply comes, and so does the reset; only then does the proxy read
/// either, when it has `next` to write, of the same client or of another one.
fn taken_before_the_end(first: &str, command: &str, put: &str, next: &str, is_of_another: bool) {
    let (server, relay, proxy) = through_a_relay(&[]);
    let (mut client, mut other) = (proxy.connect(), proxy.connect());
    let value = "x".repeat(10_000);
    let put = || server.call(&format!("{put} {value}"));
    client.call(first);
    put();
    assert!(client.call(command).raw.len() > value.len(), "this opens the connection");
    relay.delay(Duration::from_secs(1));
    client.start(command);
    put();
    until("the value is taken", PATIENCE, || server.call("EXISTS key").int() == 0);
    proxy.signal("STOP");
    let before = relay.replied();
    (if is_of_another { &mut other } else { &mut client }).start(next);
    until("the reply is there", PATIENCE, || relay.replied() >= before + value.len());
    relay.pass();
    relay.cut();
    until("the connections are reset", PATIENCE, || relay.open() == 0);
    proxy.signal("CONT");
    let bytes = client.read_bytes(value.len(), PATIENCE);
    assert!(bytes.len() == value.len(), "{bytes:?}");
}

#[test]
fn what_was_answered_before_a_reset_is_delivered_when_a_write_finds_the_lane_gone() {
    taken_before_the_end("PING", "GETDEL key", "SET key", "GET other", false);
}

#[test]
fn what_was_answered_before_a_reset_is_delivered_when_a_write_finds_the_lease_gone() {
    taken_before_the_end("WATCH w", "GETDEL key", "SET key", "GET other", false);
}

#[test]
fn an_element_popped_before_a_reset_is_delivered_when_a_write_finds_the_hub_gone() {
    taken_before_the_end("PING", "BLPOP key 0", "RPUSH key", "BLPOP other 0", true);
}

#[test]
fn nothing_that_was_written_is_written_again() {
    let (server, relay, proxy) = through_a_relay(&["upstream.backoff_max=200ms"]);
    for round in 1..=if long() { 60 } else { 15 } {
        let mut client = proxy.connect();
        client.call("PING");
        // The server executes it; only the answer is lost.
        relay.cut_after(0);
        client.start("INCR written");
        let (bytes, ended) = client.read_to_end(PATIENCE);
        assert!(bytes.is_empty() && ended != Ended::Late, "{bytes:?}");
        until("the server has executed it", PATIENCE, || {
            server.call("GET written").text() == round.to_string()
        });
        throughout("it is not executed again", Duration::from_millis(60), || {
            server.call("GET written").text() == round.to_string()
        });
    }
}

#[test]
fn what_was_not_written_waits_for_the_next_connection() {
    let (server, relay, proxy) = through_a_relay(&["pool.wait_timeout=5s", "upstream.backoff_max=200ms"]);
    let mut client = proxy.connect();
    client.call("PING");
    relay.refuse();
    relay.cut();
    until("the lane is gone", PATIENCE, || relay.open() == 0);
    client.start("INCR later");
    client.expect_silence(Duration::from_millis(200));
    relay.pass();
    assert_eq!(client.reply().int(), 1);
    assert_eq!(server.call("GET later").text(), "1");
}

#[test]
fn a_server_that_is_loading_is_waited_for() {
    // While it loads, the server looks at its connections once in 1,024 commands: about every half second here.
    let options = ["--appendonly", "yes", "--appendfsync", "no", "--key-load-delay", "400"];
    let mut server = Server::start_with(&options);
    let sets: Vec<u8> =
        (0..5_000).flat_map(|number| encode(&["SET", &format!("key:{number}"), "7"])).collect();
    let mut writer = server.probe();
    writer.send(sets);
    for _ in 0..5_000 {
        assert_eq!(writer.reply().text(), "OK");
    }
    let proxy = Proxy::start(&server, &["pool.wait_timeout=8s"]);
    let mut client = proxy.connect();
    assert_eq!(client.call("GET key:7").text(), "7");
    server.restart();
    assert!(
        Client::connect(server.address()).call("GET key:7").error().starts_with("LOADING"),
        "the delay is too short"
    );
    let reply = client.call("GET key:7");
    assert_eq!(reply.text(), "7");
}

#[test]
fn a_server_without_room_closes_who_asks_for_it_until_there_is_some() {
    let server = Server::start_with(&["--maxclients", "12"]);
    // The probe of the test is one of the twelve.
    let mut others: Vec<Client> = (0..11).map(|_| Client::connect(server.address())).collect();
    for other in &mut others {
        assert_eq!(other.call("PING").text(), "PONG");
    }
    let proxy = Proxy::start(&server, &["pool.wait_timeout=400ms", "upstream.backoff_max=200ms"]);
    let mut client = proxy.connect();
    client.start("PING");
    client.expect_end(PATIENCE);
    assert!(proxy.log().contains("max number of clients"), "the reason is logged: {}", proxy.log());
    drop(others);
    until("there is room again", Duration::from_secs(5), || {
        let mut client = proxy.connect();
        client.start("PING");
        client.try_reply(PATIENCE).is_ok_and(|reply| reply.text() == "PONG")
    });
}

#[test]
fn a_stopped_server_stops_only_those_who_ask_it() {
    let stage = Stage::proxied();
    let mut asking = stage.connect();
    let mut local = stage.connect();
    asking.call("PING");
    local.call("CLIENT SETNAME local");
    stage.server.signal("STOP");
    asking.start("INCR n");
    for _ in 0..50 {
        assert_eq!(local.call("CLIENT GETNAME").text(), "local");
    }
    asking.expect_silence(Duration::from_millis(100));
    stage.server.signal("CONT");
    assert_eq!(asking.reply().int(), 1);
}

#[test]
fn a_late_reply_after_a_command_timeout_reaches_nobody() {
    let stage = Stage::proxied_with(&["upstream.command_timeout=300ms"]);
    let mut client = stage.connect();
    let mut other = stage.connect();
    client.call("PING");
    other.call("PING");
    stage.server.signal("STOP");
    let start = Instant::now();
    client.start("ECHO late");
    let reply = client.reply();
    assert!(reply.error().starts_with("ERR redbouncer: "), "{reply:?}");
    assert!(start.elapsed() >= Duration::from_millis(290) && start.elapsed() < Duration::from_secs(2));
    stage.server.signal("CONT");
    for number in 0..20 {
        assert_eq!(client.call(&format!("ECHO mine:{number}")).text(), format!("mine:{number}"));
        assert_eq!(other.call(&format!("ECHO theirs:{number}")).text(), format!("theirs:{number}"));
    }
}

#[test]
fn a_slow_network_only_slows() {
    let (_server, relay, proxy) = through_a_relay(&[]);
    relay.delay(Duration::from_millis(15));
    let load = Load::start(proxy.address(), 6, verified_round);
    load.goes_on(40);
    load.finish();
    relay.freeze();
    let mut client = proxy.connect();
    client.start("ECHO thawed");
    client.expect_silence(Duration::from_millis(150));
    relay.pass();
    assert_eq!(client.reply().text(), "thawed");
}
