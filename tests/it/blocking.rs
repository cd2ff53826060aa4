//! Blocking commands: every one of them, more waiters than connections, timeouts to the moment, nothing lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::harness::{Client, Ended, PATIENCE, PairedServers, Row, Stage, Value, encode, throughout, until};

on_both!(
    an_element_that_is_there_is_popped_at_once,
    an_element_that_comes_is_handed_over,
    a_timeout_is_a_nil_in_time_in_resp2,
    a_timeout_is_a_nil_in_time_in_resp3,
    fractions_of_a_second_count,
    the_first_key_in_the_call_is_served_first,
    the_longest_waiter_is_served_first,
    what_stands_behind_a_blocking_call_waits_for_it,
    what_stands_before_a_blocking_call_does_not_wait_for_it,
    a_client_that_resets_while_blocked_takes_nothing,
    a_client_that_closes_while_blocked_takes_nothing,
    a_client_that_half_closes_while_blocked_takes_nothing,
    a_blocked_client_can_be_unblocked,
    a_blocked_client_can_be_killed,
    blocked_clients_in_many_databases_get_their_own,
    many_waiters_on_keys_of_their_own_are_all_served,
    many_waiters_on_one_key_get_one_element_each,
    many_timeouts_are_all_in_time,
    many_stream_readers_see_what_is_added_after_they_asked,
    consumers_of_a_group_share_its_entries,
    a_blocked_client_keeps_its_database_and_protocol,
    nothing_is_doubled_and_next_to_nothing_lost_when_clients_leave_in_the_middle,
);

#[test]
fn errors_and_arguments_are_judged_in_the_servers_words() {
    let twins = PairedServers::start();
    let script = [
        "SET str x",
        "BLPOP str 1",
        "BZPOPMIN str 1",
        "BLMOVE str b LEFT LEFT 1",
        "BLMPOP 1 1 str LEFT",
        "XREAD BLOCK 50 STREAMS str $",
        "BLPOP a",
        "BLPOP a x",
        "BLPOP a -1",
        "BLPOP a inf",
        "BLPOP a 9999999999999999",
        "BLMOVE a b FOO RIGHT 0.05",
        "BLMPOP 0.05 0 a LEFT",
        "BLMPOP 0.05 1 a FOO",
        "BZMPOP 0.05 1 z FOO",
        "XREAD BLOCK -1 STREAMS s $",
        "XREAD BLOCK 1.5 STREAMS s $",
        "XREAD BLOCK",
        "XREAD BLOCK 50 STREAMS s",
        "XREADGROUP GROUP g c BLOCK 50 STREAMS s >",
        "BLPOP a 0.01",
        "BRPOP a b 0.01",
        "BLMOVE a b LEFT RIGHT 0.01",
        "BRPOPLPUSH a b 0.01",
        "BLMPOP 0.01 1 a LEFT",
        "BZPOPMIN a 0.01",
        "BZPOPMAX a 0.01",
        "BZMPOP 0.01 1 z MIN",
        "XREAD BLOCK 10 STREAMS s $",
        "RPUSH l a b c d",
        "BLPOP none l 1",
        "BRPOP l 1",
        "BLMOVE l m LEFT RIGHT 1",
        "BRPOPLPUSH l m 1",
        "LRANGE m 0 -1",
        "RPUSH l a b c",
        "BLMPOP 1 2 none l LEFT COUNT 2",
        "BLMPOP 1 1 l RIGHT",
        "ZADD z 1.5 a 2 b 3 c 4 d",
        "BZPOPMIN z 1",
        "BZPOPMAX none z 1",
        "BZMPOP 1 1 z MIN COUNT 5",
        "XADD s 1-1 f v",
        "XREAD COUNT 1 BLOCK 50 STREAMS s 0",
        "XGROUP CREATE s g 0",
        "XREADGROUP GROUP g c BLOCK 50 STREAMS s >",
        "XREADGROUP GROUP g c BLOCK 10 STREAMS s >",
        "XREADGROUP GROUP g c BLOCK 10 STREAMS s 0",
        "FLUSHALL",
    ];
    twins.agree(&script);
    let in_resp3: Vec<&str> = std::iter::once("HELLO 3").chain(script).collect();
    twins.agree(&in_resp3);
}

/// Waits until `count` clients are seen to be in the middle of `command`, and everybody's request has been read.
fn wait_for_blocked(stage: &Stage, count: usize, command: &str) {
    let mut looker = stage.connect();
    until(&format!("{count} clients are in {command}"), PATIENCE, || {
        let text = looker.call("CLIENT LIST").text();
        let rows = text.lines().map(Row::parse);
        rows.filter(|row| row.get("cmd") == command && row.get("flags").contains('b')).count() == count
    });
    for _ in 0..5 {
        assert_eq!(looker.call("PING").text(), "PONG");
    }
}

/// What makes a key ready, a call that takes it, and the replies in RESP2 and RESP3.
const CALLS: [(&str, &str, &str, &str); 10] = [
    ("RPUSH k v", "BLPOP k 5", "*2\r\n$1\r\nk\r\n$1\r\nv\r\n", "*2\r\n$1\r\nk\r\n$1\r\nv\r\n"),
    ("RPUSH k v w", "BRPOP k 5", "*2\r\n$1\r\nk\r\n$1\r\nw\r\n", "*2\r\n$1\r\nk\r\n$1\r\nw\r\n"),
    ("RPUSH k v", "BLMOVE k to LEFT RIGHT 5", "$1\r\nv\r\n", "$1\r\nv\r\n"),
    ("RPUSH k v", "BRPOPLPUSH k to 5", "$1\r\nv\r\n", "$1\r\nv\r\n"),
    (
        "RPUSH k v w",
        "BLMPOP 5 1 k LEFT COUNT 2",
        "*2\r\n$1\r\nk\r\n*2\r\n$1\r\nv\r\n$1\r\nw\r\n",
        "*2\r\n$1\r\nk\r\n*2\r\n$1\r\nv\r\n$1\r\nw\r\n",
    ),
    (
        "ZADD k 1.5 v",
        "BZPOPMIN k 5",
        "*3\r\n$1\r\nk\r\n$1\r\nv\r\n$3\r\n1.5\r\n",
        "*3\r\n$1\r\nk\r\n$1\r\nv\r\n,1.5\r\n",
    ),
    (
        "ZADD k 1.5 v",
        "BZPOPMAX k 5",
        "*3\r\n$1\r\nk\r\n$1\r\nv\r\n$3\r\n1.5\r\n",
        "*3\r\n$1\r\nk\r\n$1\r\nv\r\n,1.5\r\n",
    ),
    (
        "ZADD k 1.5 v",
        "BZMPOP 5 1 k MIN",
        "*2\r\n$1\r\nk\r\n*1\r\n*2\r\n$1\r\nv\r\n$3\r\n1.5\r\n",
        "*2\r\n$1\r\nk\r\n*1\r\n*2\r\n$1\r\nv\r\n,1.5\r\n",
    ),
    (
        "XADD k 1-1 f v",
        "XREAD BLOCK 5000 STREAMS k 0",
        "*1\r\n*2\r\n$1\r\nk\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n",
        "%1\r\n$1\r\nk\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n",
    ),
    (
        "XADD k 1-1 f v",
        "XREADGROUP GROUP g c BLOCK 5000 STREAMS k >",
        "*1\r\n*2\r\n$1\r\nk\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n",
        "%1\r\n$1\r\nk\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n",
    ),
];

/// Clears the server and makes the group that XREADGROUP needs.
fn prepare(pusher: &mut Client, call: &str) {
    pusher.call("FLUSHALL");
    if call.starts_with("XREADGROUP") {
        pusher.call("XGROUP CREATE k g 0 MKSTREAM");
    }
}

#[track_caller]
fn expect_raw(client: &mut Client, expected: &str, call: &str) {
    let reply = client.try_reply(PATIENCE).unwrap_or_else(|ended| panic!("no reply to {call}: {ended:?}"));
    assert_eq!(
        reply.raw.escape_ascii().to_string(),
        expected.as_bytes().escape_ascii().to_string(),
        "{call}"
    );
}

fn an_element_that_is_there_is_popped_at_once(stage: &Stage) {
    let mut pusher = stage.connect();
    let mut clients = [stage.connect(), stage.connect_resp3()];
    for (push, call, resp2, resp3) in CALLS {
        for (client, expected) in clients.iter_mut().zip([resp2, resp3]) {
            prepare(&mut pusher, call);
            pusher.call(push);
            client.start(call);
            expect_raw(client, expected, call);
        }
    }
}

fn an_element_that_comes_is_handed_over(stage: &Stage) {
    let mut pusher = stage.connect();
    let mut clients = [stage.connect(), stage.connect_resp3()];
    for (push, call, resp2, resp3) in CALLS {
        // A waiter is woken by the first element: what comes in one push with it may not be there yet for older servers.
        if call.contains("COUNT") {
            continue;
        }
        for (client, expected) in clients.iter_mut().zip([resp2, resp3]) {
            prepare(&mut pusher, call);
            client.start(call);
            let command = call.split(' ').next().unwrap().to_lowercase();
            wait_for_blocked(stage, 1, &command);
            pusher.call(push);
            expect_raw(client, expected, call);
        }
    }
}

const TIMEOUTS: [&str; 10] = [
    "BLPOP k 0.3",
    "BRPOP k j 0.3",
    "BLMOVE k to LEFT RIGHT 0.3",
    "BRPOPLPUSH k to 0.3",
    "BLMPOP 0.3 2 k j LEFT",
    "BZPOPMIN k 0.3",
    "BZPOPMAX k 0.3",
    "BZMPOP 0.3 1 k MIN",
    "XREAD BLOCK 300 STREAMS k $",
    "XREADGROUP GROUP g c BLOCK 300 STREAMS s >",
];

fn timeouts_are_nils(stage: &Stage, mut client: Client, nil: &str) {
    stage.server.call("XGROUP CREATE s g 0 MKSTREAM");
    for call in TIMEOUTS {
        let start = Instant::now();
        client.start(call);
        expect_raw(&mut client, nil, call);
        in_time(start.elapsed(), Duration::from_millis(300), call);
    }
}

/// A nil must not come early, nor later than 200 ms after its time (and what a busy machine adds to the measuring).
#[track_caller]
fn in_time(took: Duration, timeout: Duration, call: &str) {
    // The server's clock has milliseconds and is read before the command waits.
    assert!(took + Duration::from_millis(3) >= timeout, "{call}: nil after {took:?} already");
    assert!(took < timeout + Duration::from_millis(200 + 100), "{call}: nil only after {took:?}");
}

fn a_timeout_is_a_nil_in_time_in_resp2(stage: &Stage) {
    timeouts_are_nils(stage, stage.connect(), "*-1\r\n");
}

fn a_timeout_is_a_nil_in_time_in_resp3(stage: &Stage) {
    timeouts_are_nils(stage, stage.connect_resp3(), "_\r\n");
}

fn fractions_of_a_second_count(stage: &Stage) {
    let mut client = stage.connect();
    for milliseconds in [1, 10, 50, 99, 100, 101, 250, 499, 750] {
        let call = format!("BLPOP none 0.{milliseconds:03}");
        let start = Instant::now();
        assert!(client.call(&call).is_nil());
        in_time(start.elapsed(), Duration::from_millis(milliseconds), &call);
    }
}

fn the_first_key_in_the_call_is_served_first(stage: &Stage) {
    let mut client = stage.connect();
    client.call("RPUSH second 2");
    client.call("RPUSH first 1");
    assert_eq!(client.call("BLPOP none first second 1").items(), [Value::bulk("first"), Value::bulk("1")]);
    assert_eq!(client.call("BLPOP none first second 1").items(), [Value::bulk("second"), Value::bulk("2")]);
}

fn the_longest_waiter_is_served_first(stage: &Stage) {
    let mut waiters: Vec<Client> = (0..3).map(|_| stage.connect()).collect();
    for (number, waiter) in waiters.iter_mut().enumerate() {
        waiter.start("BLPOP queue 0");
        wait_for_blocked(stage, number + 1, "blpop");
    }
    let mut pusher = stage.connect();
    for (number, waiter) in waiters.iter_mut().enumerate() {
        pusher.call(&format!("RPUSH queue {number}"));
        assert_eq!(waiter.reply().items()[1], Value::bulk(&number.to_string()));
    }
}

fn what_stands_behind_a_blocking_call_waits_for_it(stage: &Stage) {
    let mut client = stage.connect();
    let mut pusher = stage.connect();
    for command in ["BLPOP k 0", "ECHO behind", "BLPOP k 0.05", "SELECT 1", "CLIENT GETNAME", "ECHO last"] {
        client.start(command);
    }
    client.expect_silence(Duration::from_millis(150));
    pusher.call("RPUSH k v");
    assert_eq!(client.reply().items()[1], Value::bulk("v"));
    assert_eq!(client.reply().text(), "behind");
    assert!(client.reply().is_nil());
    assert_eq!(client.reply().text(), "OK");
    assert!(client.reply().is_nil());
    assert_eq!(client.reply().text(), "last");
}

fn what_stands_before_a_blocking_call_does_not_wait_for_it(stage: &Stage) {
    let mut client = stage.connect();
    client.send([encode(&["INCR", "n"]), encode(&["PING"]), encode(&["BLPOP", "k", "0"])].concat());
    assert_eq!(client.reply().int(), 1);
    assert_eq!(client.reply().text(), "PONG");
}

/// A blocked client ends by `end`; an element pushed when that is known must stay.
fn leaves_while_blocked(stage: &Stage, end: impl Fn(Client)) {
    let mut pusher = stage.connect();
    for call in ["BLPOP k 0", "BRPOP k 0", "BLMOVE k to LEFT LEFT 0", "BLMPOP 0 1 k LEFT"] {
        let command = call.split(' ').next().unwrap().to_lowercase();
        let mut leaver = stage.connect();
        leaver.start(call);
        wait_for_blocked(stage, 1, &command);
        end(leaver);
        wait_for_blocked(stage, 0, &command);
        pusher.call("RPUSH k v");
        throughout("the element stays", Duration::from_millis(120), || pusher.call("LLEN k").int() == 1);
        assert_eq!(pusher.call("EXISTS to").int(), 0);
        pusher.call("DEL k");
    }
}

fn a_client_that_resets_while_blocked_takes_nothing(stage: &Stage) {
    leaves_while_blocked(stage, Client::reset);
}

fn a_client_that_closes_while_blocked_takes_nothing(stage: &Stage) {
    leaves_while_blocked(stage, drop);
}

fn a_client_that_half_closes_while_blocked_takes_nothing(stage: &Stage) {
    leaves_while_blocked(stage, |mut client| {
        client.half_close();
        client.expect_end(PATIENCE);
    });
}

fn a_blocked_client_can_be_unblocked(stage: &Stage) {
    let mut client = stage.connect();
    let mut other = stage.connect();
    let id = client.call("CLIENT ID").int();
    client.start("BLPOP k 0");
    wait_for_blocked(stage, 1, "blpop");
    assert_eq!(other.call(&format!("CLIENT UNBLOCK {id}")).int(), 1);
    assert_eq!(client.reply().raw, &b"*-1\r\n"[..]);
    client.start("BLPOP k 0");
    wait_for_blocked(stage, 1, "blpop");
    assert_eq!(other.call(&format!("CLIENT UNBLOCK {id} ERROR")).int(), 1);
    assert_eq!(client.reply().error(), "UNBLOCKED client unblocked via CLIENT UNBLOCK");
    assert_eq!(other.call(&format!("CLIENT UNBLOCK {id}")).int(), 0);
    other.call("RPUSH k v");
    assert_eq!(client.call("LPOP k").text(), "v");
}

fn a_blocked_client_can_be_killed(stage: &Stage) {
    let mut client = stage.connect();
    let mut other = stage.connect();
    let id = client.call("CLIENT ID").int();
    client.start("BLPOP k 0");
    wait_for_blocked(stage, 1, "blpop");
    assert_eq!(other.call(&format!("CLIENT KILL ID {id}")).int(), 1);
    client.expect_end(PATIENCE);
    wait_for_blocked(stage, 0, "blpop");
    other.call("RPUSH k v");
    throughout("the element stays", Duration::from_millis(120), || other.call("LLEN k").int() == 1);
}

fn blocked_clients_in_many_databases_get_their_own(stage: &Stage) {
    let mut waiters: Vec<Client> = (0..16).map(|_| stage.connect()).collect();
    for (database, waiter) in waiters.iter_mut().enumerate() {
        assert_eq!(waiter.call(&format!("SELECT {database}")).text(), "OK");
        waiter.start("BLPOP k 0");
    }
    wait_for_blocked(stage, 16, "blpop");
    let mut pusher = stage.connect();
    for database in 0..16 {
        pusher.call(&format!("SELECT {database}"));
        pusher.call(&format!("RPUSH k for:{database}"));
    }
    for (database, waiter) in waiters.iter_mut().enumerate() {
        assert_eq!(waiter.reply().items()[1], Value::bulk(&format!("for:{database}")));
    }
}

fn many_waiters_on_keys_of_their_own_are_all_served(stage: &Stage) {
    let mut waiters: Vec<Client> = (0..30).map(|_| stage.connect()).collect();
    let mut pusher = stage.connect();
    for round in 0..3 {
        for (number, waiter) in waiters.iter_mut().enumerate() {
            waiter.start(&format!("BLPOP own:{number} 0"));
        }
        wait_for_blocked(stage, 30, "blpop");
        // Meanwhile nobody else is held up.
        let start = Instant::now();
        assert_eq!(pusher.call("PING").text(), "PONG");
        assert!(start.elapsed() < Duration::from_millis(300), "a PING took {:?}", start.elapsed());
        for number in (0..30).rev() {
            pusher.call(&format!("RPUSH own:{number} {number}:{round}"));
        }
        for (number, waiter) in waiters.iter_mut().enumerate() {
            let reply = waiter.reply();
            assert_eq!(reply.items()[1], Value::bulk(&format!("{number}:{round}")));
        }
    }
}

fn many_waiters_on_one_key_get_one_element_each(stage: &Stage) {
    let mut waiters: Vec<Client> = (0..30).map(|_| stage.connect()).collect();
    let mut pusher = stage.connect();
    for waiter in &mut waiters {
        waiter.start("BLPOP common 0");
    }
    wait_for_blocked(stage, 30, "blpop");
    for number in 0..30 {
        pusher.call(&format!("RPUSH common {number}"));
    }
    let got: BTreeSet<String> = waiters.iter_mut().map(|waiter| waiter.reply().items()[1].text()).collect();
    assert_eq!(got.len(), 30, "each element exactly once: {got:?}");
    assert_eq!(pusher.call("LLEN common").int(), 0);
}

fn many_timeouts_are_all_in_time(stage: &Stage) {
    let address = stage.address();
    let threads: Vec<_> = (0..30_u64)
        .map(|number| {
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                let timeout = Duration::from_millis(400 + 40 * number);
                let call = format!("BLPOP none:{number} {}", timeout.as_secs_f64());
                let start = Instant::now();
                let reply = client.call(&call);
                (call, reply, start.elapsed(), timeout)
            })
        })
        .collect();
    for thread in threads {
        let (call, reply, took, timeout) = thread.join().unwrap();
        assert!(reply.is_nil(), "{call}: {reply:?}");
        in_time(took, timeout, &call);
    }
}

fn many_stream_readers_see_what_is_added_after_they_asked(stage: &Stage) {
    let mut pusher = stage.connect();
    pusher.call("XADD s 1-1 f old");
    let mut readers: Vec<Client> = (0..20).map(|_| stage.connect()).collect();
    for reader in &mut readers {
        reader.start("XREAD BLOCK 8000 STREAMS s $");
    }
    wait_for_blocked(stage, 20, "xread");
    pusher.call("XADD s 2-1 f new");
    for reader in &mut readers {
        let reply = reader.reply();
        let text = reply.raw.escape_ascii().to_string();
        assert!(text.contains("2-1") && !text.contains("1-1"), "{text}");
    }
}

fn consumers_of_a_group_share_its_entries(stage: &Stage) {
    let mut pusher = stage.connect();
    pusher.call("XGROUP CREATE s g $ MKSTREAM");
    let mut consumers: Vec<Client> = (0..20).map(|_| stage.connect()).collect();
    for (number, consumer) in consumers.iter_mut().enumerate() {
        consumer.start(&format!("XREADGROUP GROUP g c{number} COUNT 1 BLOCK 8000 STREAMS s >"));
    }
    wait_for_blocked(stage, 20, "xreadgroup");
    for number in 0..20 {
        pusher.call(&format!("XADD s * n {number}"));
    }
    let mut seen = BTreeSet::new();
    for consumer in &mut consumers {
        let reply = consumer.reply();
        let entry = reply.items()[0].items()[1].items()[0].items()[1].items()[1].text();
        assert!(seen.insert(entry.clone()), "{entry} was handed out twice");
    }
    assert_eq!(pusher.call("XPENDING s g").items()[0], Value::Int(20));
}

fn a_blocked_client_keeps_its_database_and_protocol(stage: &Stage) {
    let mut client = stage.connect_resp3();
    client.call("SELECT 5");
    client.call("CLIENT SETNAME keeper");
    assert!(client.call("BLPOP none 0.05").is_nil());
    client.call("SET k v");
    assert_eq!(client.call("GET none").raw, &b"_\r\n"[..]);
    assert_eq!(client.call("CLIENT GETNAME").text(), "keeper");
    assert_eq!(stage.connect().call("EXISTS k").int(), 0);
}

#[test]
fn a_hundred_waiters_need_no_more_connections_than_the_cap() {
    let stage = Stage::proxied();
    let mut waiters: Vec<Client> = (0..100).map(|_| stage.connect()).collect();
    for (number, waiter) in waiters.iter_mut().enumerate() {
        waiter.start(&format!("BLPOP many:{number} 0"));
    }
    wait_for_blocked(&stage, 100, "blpop");
    assert!(stage.server.clients() <= 8);
    let mut pusher = stage.connect();
    for number in 0..100 {
        pusher.call(&format!("RPUSH many:{number} {number}"));
    }
    for (number, waiter) in waiters.iter_mut().enumerate() {
        assert_eq!(waiter.reply().items()[1], Value::bulk(&number.to_string()));
    }
    assert!(stage.server.clients() <= 8);
}

fn nothing_is_doubled_and_next_to_nothing_lost_when_clients_leave_in_the_middle(stage: &Stage) {
    let address = stage.address();
    // Half of the waiters vanish at random moments while elements arrive; what they did not get must still be there.
    let threads: Vec<_> = (0..20)
        .map(|number| {
            std::thread::spawn(move || {
                let mut got = Vec::new();
                let mut random = fastrand::Rng::with_seed(number);
                let deadline = Instant::now() + Duration::from_secs(4);
                while Instant::now() < deadline {
                    let mut client = Client::connect(address);
                    client.start("BLPOP jobs 1");
                    let patience = Duration::from_millis(random.u64(1..400));
                    match client.try_reply(patience) {
                        Ok(reply) if !reply.is_nil() => got.push(reply.items()[1].text()),
                        Ok(_) => {}
                        Err(Ended::Late) => {
                            // Shut down in order: what still arrives after the FIN was delivered and counts.
                            client.half_close();
                            if let Ok(reply) = client.try_reply(Duration::from_secs(2))
                                && !reply.is_nil()
                            {
                                got.push(reply.items()[1].text());
                            }
                        }
                        Err(ended) => panic!("BLPOP ended: {ended:?}"),
                    }
                }
                got
            })
        })
        .collect();
    let mut pusher = stage.connect();
    for number in 0..600 {
        pusher.call(&format!("RPUSH jobs {number}"));
        // A pace at which waiters and elements miss each other often.
        pusher.expect_silence(Duration::from_millis(3));
    }
    let mut got: Vec<String> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    wait_for_blocked(stage, 0, "blpop");
    got.extend(stage.server.call("LRANGE jobs 0 -1").items().iter().map(Value::text));
    let distinct: BTreeSet<&String> = got.iter().collect();
    assert_eq!(distinct.len(), got.len(), "an element was handed out twice");
    // A server that serves a waiter and finds its FIN in the same turn of its loop drops the reply with the client: 6 of
    // 600 in a run against redis 7.0.15 alone. A proxy that closes a lease cannot see that, so it cannot be zero.
    assert!(distinct.len() >= 600 - 30, "{} elements were lost", 600 - distinct.len());
}
