//! Bugs of blocking calls, in the hub and without it, that were found once, each named after what it did.

use std::time::{Duration, Instant};

use crate::harness::{Client, PATIENCE, Proxy, Relay, Server, Stage, throughout, until};
use crate::hub::{of_kind, quiet, wait_for_blocked};

/// Waits until this many calls wait in the hub; without asking the server, which may be stopped.
fn wait_in_the_hub(proxy: &Proxy, count: usize) {
    until("the calls wait in the hub", PATIENCE, || {
        proxy.metrics().get("redbouncer_blocking_waiters").is_some_and(|waiters| *waiters == count as f64)
    });
}

/// The hub was about to close because nobody waited, and had stopped asking while its PING was under way. A call that
/// arrived then kept it open, but it did not begin to ask again.
#[test]
fn a_call_that_arrives_while_an_idle_hub_is_about_to_close_is_served() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["pool.idle_timeout=1s", "hygiene.heartbeat=1s"]);
    let mut client = proxy.connect();
    assert!(client.call("BLPOP none 0.01").is_nil());
    let mut pusher = server.probe();
    server.signal("STOP");
    let start = Instant::now();
    until("the hub would close", PATIENCE, || start.elapsed() > Duration::from_millis(1_400));
    client.start("BLPOP k 0");
    wait_in_the_hub(&proxy, 1);
    server.signal("CONT");
    pusher.call("RPUSH k x");
    assert_eq!(client.reply().items()[1].text(), "x");
}

/// Calls that were closed because their try was in flight when the connection was lost stayed in the hub: with each its
/// client's socket, and because of them the hub, for ever.
#[test]
fn calls_closed_with_the_connection_of_their_hub_are_forgotten() {
    let mut server = Server::start();
    let proxy = Proxy::start(&server, &["pool.linger=100ms"]);
    let mut clients: Vec<_> = (0..3).map(|_| proxy.connect()).collect();
    assert!(clients[0].call("BLPOP none 0.01").is_nil());
    server.signal("STOP");
    for client in &mut clients {
        client.start("BLPOP k 0");
    }
    wait_in_the_hub(&proxy, 3);
    server.kill();
    for client in &mut clients {
        client.expect_end(PATIENCE);
    }
    server.restart();
    wait_in_the_hub(&proxy, 0);
    drop(clients);
    until("the hub has left", PATIENCE, || of_kind(&server, "blocking") == 0 && server.clients() == 0);
}

/// Without a hub: a call that had found its element on a lane dropped the lease that was handed to it meanwhile, instead of
/// passing it on. Its connection ended without a farewell, and its place under the cap was free before the server knew.
#[test]
fn a_lease_that_comes_too_late_for_a_blocking_call_is_not_dropped() {
    let settings = [
        "pool.max_connections=4",
        "blocking.hub=false",
        "pubsub.hub=false",
        "blocking.retry_min=300ms",
        "blocking.retry_max=300ms",
        "hygiene.reap=false",
        "pool.linger=100ms",
    ];
    let server = Server::start();
    let proxy = Proxy::start(&server, &settings);
    // All leases there are under this cap.
    let mut holders: Vec<_> = (0..2).map(|_| proxy.connect()).collect();
    for holder in &mut holders {
        assert_eq!(holder.call("WATCH a").text(), "OK");
    }
    let mut blocked = proxy.connect();
    blocked.start("BLPOP k 0");
    until("it waits for the lease", PATIENCE, || proxy.status()["waits"]["blocking"] == 1);
    let mut probe = server.probe();
    for command in ["MULTI", "RPUSH k x", "CLIENT PAUSE 20000 WRITE"] {
        probe.call(command);
    }
    probe.call("EXEC");
    until("a try is held up", PATIENCE, || server.rows().iter().any(|row| row.get("flags").contains('b')));
    // The lease is handed over in the turn of the event loop that brings this reply.
    assert_eq!(holders[0].call("UNWATCH").text(), "OK");
    probe.call("CLIENT UNPAUSE");
    assert_eq!(blocked.reply().items()[1].text(), "x");
    drop((holders, blocked));
    until("all is closed", PATIENCE, || server.clients() == 0);
    let closed: Vec<_> =
        proxy.counted().into_keys().filter(|series| series.contains("upstream_closed")).collect();
    assert!(closed.iter().any(|series| series.contains("leased")), "{closed:?}");
    assert!(!closed.iter().any(|series| series.contains("cut")), "{closed:?}");
}

/// While the hub waited for the server to close its old connection, nobody looked at the clock.
#[test]
fn a_nil_is_in_time_while_the_hub_changes_its_connection() {
    let server = Server::start();
    let proxy = Proxy::start(&server, &["pool.max_lifetime=1s"]);
    let mut client = proxy.connect();
    let start = Instant::now();
    client.start("BLPOP k 2");
    wait_for_blocked(proxy.address(), 1);
    server.signal("STOP");
    assert!(client.reply_within(Duration::from_secs(8)).is_nil());
    assert!(start.elapsed() < Duration::from_millis(2_000 + 250), "{:?}", start.elapsed());
    server.signal("CONT");
}

/// Behind a MULTI that is refused the call blocks the hub's connection. Its reply was awaited all the same: nobody of
/// this user was served until the connection was given up as stalled, after a minute.
#[test]
fn a_user_who_loses_multi_is_served_otherwise_at_once() {
    let server = Server::start();
    server.call("ACL SETUSER worker on >secret ~* &* +@all");
    let proxy = Proxy::start(&server, &["auth.mode=passthrough"]);
    let mut clients: Vec<Client> = (0..2).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.call("AUTH worker secret");
    }
    clients[0].start("BLPOP first 0");
    until("it waits", PATIENCE, || server.calls_of("exec") >= 2);
    quiet(&server);
    server.call("ACL SETUSER worker -multi");
    clients[1].start("BLPOP second 0");
    // Its call may have run, so it is closed, as by the loss of a connection of its own.
    clients[1].expect_end(PATIENCE);
    server.call("RPUSH first x");
    assert_eq!(clients[0].reply().items()[1].text(), "x");
    // The call is not left behind to take what is for others.
    server.call("RPUSH second y");
    throughout("it stays", Duration::from_millis(200), || server.call("LLEN second").int() == 1);
}

/// A key that took another type while a try for a sibling was on its way was taken for sound, so the WRONGTYPE of that
/// try went to the client.
#[test]
fn a_key_that_takes_another_type_during_a_try_for_its_sibling_ends_no_wait() {
    let server = Server::start();
    let relay = Relay::to(server.address());
    let proxy = Proxy::launch(&format!("redis://{}", relay.address()), &[]).unwrap();
    let mut pusher = server.probe();
    for (call, push) in [("BLPOP a b 0", "RPUSH b x"), ("BZPOPMIN a b 0", "ZADD b 1 x")] {
        let mut client = proxy.connect();
        client.start(call);
        wait_for_blocked(proxy.address(), 1);
        quiet(&server);
        relay.delay(Duration::from_millis(100));
        // Before the try arrives, and before the word of it can be heard.
        pusher.call(push);
        pusher.call("SET a string");
        assert_eq!(client.reply().items()[1].text(), "x", "{call}");
        relay.delay(Duration::ZERO);
        pusher.call("FLUSHALL");
    }
}

/// Only the first of several calls looked at a key, and the others took over what it found, but for the error: they
/// waited for a key of another type.
#[test]
fn every_call_that_finds_a_key_of_another_type_is_told() {
    let stage = Stage::proxied();
    let mut clients: Vec<Client> = (0..3).map(|_| stage.connect()).collect();
    assert!(clients[0].call("BLPOP none 0.01").is_nil());
    stage.server.call("SET k string");
    // All arrive before the first answer.
    stage.server.signal("STOP");
    for client in &mut clients {
        client.start("BLPOP k 0");
    }
    wait_in_the_hub(stage.proxy(), 3);
    stage.server.signal("CONT");
    for client in &mut clients {
        assert!(client.reply().error().starts_with("WRONGTYPE"));
    }
}

/// A call that had only taken over what an older one found was not counted as waiting: an error that came later went
/// to it.
#[test]
fn a_call_behind_another_waits_like_it_when_a_key_takes_another_type() {
    let stage = Stage::proxied();
    let mut clients: Vec<Client> = (0..2).map(|_| stage.connect()).collect();
    assert!(clients[0].call("BLPOP none 0.01").is_nil());
    stage.server.signal("STOP");
    for (i, client) in clients.iter_mut().enumerate() {
        client.start("BLPOP a b 0");
        wait_in_the_hub(stage.proxy(), i + 1);
    }
    stage.server.signal("CONT");
    quiet(&stage.server);
    stage.server.call("SET a string");
    quiet(&stage.server);
    stage.server.call("RPUSH b 1 2");
    for (i, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.reply().items()[1].text(), (i + 1).to_string());
    }
}

/// On a key known to hold nothing a call was not sent at all, so the server could not say what is wrong with it: it
/// waited.
#[test]
fn a_call_that_the_server_refuses_is_refused_on_a_key_known_to_be_empty_too() {
    let server = Server::start();
    server.call("ACL SETUSER worker on >secret ~list ~stream ~allowed &* +@all -blpop");
    server.call("XADD stream 1-1 f v");
    let proxy = Proxy::start(&server, &["auth.mode=passthrough"]);
    for (known, refused, words) in [
        ("BRPOP list 0.05", "BLPOP list 0", "NOPERM"),
        ("BLMOVE list allowed LEFT LEFT 0.05", "BLMOVE list forbidden LEFT LEFT 0", "NOPERM"),
        ("XREAD BLOCK 50 STREAMS stream 1-1", "XREAD COUNT x BLOCK 0 STREAMS stream 1-1", "ERR value"),
        ("XREAD BLOCK 50 STREAMS stream $", "XREAD OTHER BLOCK 0 STREAMS stream $", "ERR syntax"),
    ] {
        let mut clients: Vec<Client> = (0..2).map(|_| proxy.connect()).collect();
        for client in &mut clients {
            client.call("AUTH worker secret");
        }
        assert!(clients[0].call(known).is_nil(), "{known}");
        // Behind one that waits, and alone.
        clients[0].start(&known.replace("0.05", "0").replace("BLOCK 50", "BLOCK 0"));
        wait_in_the_hub(&proxy, 1);
        let reply = clients[1].call(refused);
        assert!(reply.error().starts_with(words), "{refused}: {reply:?}");
        drop(clients.remove(0));
        wait_in_the_hub(&proxy, 0);
        let reply = clients[0].call(refused);
        assert!(reply.error().starts_with(words), "{refused}: {reply:?}");
    }
}

/// Keys of the past filled the hub's share of a small tracking table: who came later took a lease or was tried.
#[test]
fn keys_that_nobody_waits_for_any_more_leave_room_in_a_small_tracking_table() {
    let stage = Stage::proxied();
    stage.server.call("CONFIG SET tracking-table-max-keys 100");
    let mut clients: Vec<Client> = (0..10).map(|_| stage.connect()).collect();
    for i in 0..60 {
        assert!(clients[0].call(&format!("BLPOP past:{i} 0.001")).is_nil());
    }
    for (i, client) in clients.iter_mut().enumerate() {
        client.start(&format!("BLPOP now:{i} 0"));
    }
    wait_in_the_hub(stage.proxy(), 10);
    assert_eq!(of_kind(&stage.server, ":leased"), 0);
}

/// A call that is served by tries was told of every error that a try met, however long it had waited.
#[test]
fn a_call_served_by_tries_waits_while_its_key_is_of_another_type() {
    let server = Server::start();
    // No lease is left for it.
    let settings = ["blocking.hub=false", "pool.max_connections=4", "blocking.retry_max=100ms"];
    let proxy = Proxy::start(&server, &settings);
    let mut watchers: Vec<Client> = Vec::new();
    loop {
        let mut watcher = proxy.connect();
        watcher.start("WATCH w");
        let full = watcher.try_reply(Duration::from_millis(500)).is_err();
        watchers.push(watcher);
        if full {
            break;
        }
    }
    for (call, push) in [("BLPOP a b 0", "RPUSH b x"), ("BZMPOP 0 2 a b MIN", "ZADD b 1 x")] {
        let mut client = proxy.connect();
        client.start(call);
        let tries = || server.calls_of("exec");
        let before = tries();
        until("it has been tried", PATIENCE, || tries() >= before + 3);
        server.call("SET a string");
        let before = tries();
        until("it has been tried again", PATIENCE, || tries() >= before + 4);
        server.call(push);
        let reply = client.reply();
        assert_eq!(reply.items()[0].text(), "b", "{call}: {reply:?}");
        assert_eq!(server.call("EXISTS b").int(), 0);
        server.call("FLUSHALL");
        // To a call that comes it is the answer.
        server.call("SET a string");
        assert!(client.call(call).error().starts_with("WRONGTYPE"));
        server.call("FLUSHALL");
    }
}

/// Where the connections had been lost, a short timeout passed during the dial and gave nil, though an element was there.
#[test]
fn a_call_with_a_short_timeout_looks_once_after_its_connection_was_lost() {
    for settings in [&["blocking.grace=20s"][..], &["blocking.grace=20s", "blocking.hub=false"]] {
        let server = Server::start();
        let relay = Relay::to(server.address());
        let proxy = Proxy::launch(&format!("redis://{}", relay.address()), settings).unwrap();
        let mut client = proxy.connect();
        // What is asked once of every server is asked now.
        assert!(client.call("BLPOP jobs 0.001").is_nil());
        server.call("RPUSH jobs first second");
        server.call("CLIENT KILL TYPE normal SKIPME yes");
        // What is sent on a connection that is gone closes the client.
        until("the lane is known to be lost", PATIENCE, || proxy.log().contains("a lane was lost"));
        relay.delay(Duration::from_millis(25));
        assert_eq!(client.call("BLPOP jobs 0.02").items()[1].text(), "first", "{settings:?}");
        // An empty list gives nil, and not at the end of the grace.
        let start = Instant::now();
        assert!(client.call("BLPOP none 0.02").is_nil());
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
}
