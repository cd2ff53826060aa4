//! Blocking calls, taken apart and put back together, against a real server.
//!
//! `command::blocking` writes commands that the server must understand exactly: tries, calls with another timeout,
//! explicit ids, and the give-back of an element. Here each is run, in both protocols, and the keys are compared.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use redbouncer::command::blocking::{Call, Timeout, last_generated_id, parse, stream_position};
use redbouncer::command::{Blocking, Class, classify};
use redbouncer::resp::{Protocol, Request, encode as write, is_error, is_null};

use crate::harness::{Client, PATIENCE, Reply, Server, Value, encode};

const PROTOCOLS: [Protocol; 2] = [Protocol::Resp2, Protocol::Resp3];

fn connect(server: &Server, protocol: Protocol) -> Client {
    let mut client = server.probe();
    let hello = client.call(&format!("HELLO {}", protocol.number()));
    assert!(!hello.is_error(), "{hello:?}");
    client
}

fn call_of(bytes: &[u8]) -> (Request<'_>, Call) {
    let request = Request::parse(bytes).unwrap();
    let Class::Blocking(command) = classify(&request).class else { panic!("not blocking") };
    (request, parse(&request, command).unwrap())
}

fn line(text: &str) -> Vec<u8> {
    encode(&text.split(' ').collect::<Vec<_>>())
}

/// Sends a call's try and reads the member's own reply out of EXEC's array.
fn try_once(client: &mut Client, call: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    Call::try_form(call, &mut out);
    client.send(&out);
    assert_eq!(client.reply().text(), "OK");
    assert_eq!(client.reply().text(), "QUEUED");
    let exec = client.reply();
    let mut members = redbouncer::resp::elements(&exec.raw).unwrap();
    let member = exec.raw.slice_ref(members.next().unwrap());
    assert!(members.next().is_none());
    member
}

/// Everything about a key that a give-back must restore.
fn contents(client: &mut Client, key: &str) -> Reply {
    match client.call(&format!("TYPE {key}")).text().as_str() {
        "zset" => client.call(&format!("ZRANGE {key} 0 -1 WITHSCORES")),
        _ => client.call(&format!("LRANGE {key} 0 -1")),
    }
}

/// Fills `key`, pops by `call` (blocking and as a try), gives back, and compares.
fn restores(server: &Server, fill: &str, key: &str, call: &str, pops: usize) {
    for protocol in PROTOCOLS {
        let mut client = connect(server, protocol);
        for as_a_try in [false, true] {
            client.call("FLUSHALL");
            assert!(!client.call(fill).is_error());
            let before = contents(&mut client, key);
            let bytes = line(call);
            let (request, parsed) = call_of(&bytes);
            let element = if as_a_try {
                try_once(&mut client, &bytes)
            } else {
                client.send(&bytes);
                client.reply().raw
            };
            assert_ne!(contents(&mut client, key), before, "{call} popped nothing: {element:?}");
            let back = parsed.give_back(&request, &element).unwrap_or_else(|| panic!("{call}: {element:?}"));
            client.send(&back);
            let given = client.reply().int();
            assert!(given >= pops as i64, "{call}: {given}");
            assert_eq!(contents(&mut client, key), before, "{call} in {protocol:?}");
        }
    }
}

#[test]
fn lists_are_as_before_when_their_elements_have_been_given_back() {
    let server = Server::start();
    let fill = "RPUSH b 1 2 3 4 5";
    restores(&server, fill, "b", "BLPOP a b 0", 1);
    restores(&server, fill, "b", "BRPOP a b 0", 1);
    restores(&server, fill, "b", "BLMPOP 0 2 a b LEFT", 1);
    restores(&server, fill, "b", "BLMPOP 0 2 a b left COUNT 3", 3);
    restores(&server, fill, "b", "BLMPOP 0 2 a b RIGHT COUNT 3", 3);
    restores(&server, fill, "b", "blmpop 1.5 1 b right count 99", 5);
    restores(&server, "RPUSH b only", "b", "BLPOP b 0", 1);
}

#[test]
fn sorted_sets_are_as_before_when_their_members_have_been_given_back() {
    let server = Server::start();
    // Scores that a careless hand would round, and the two infinities.
    for fill in [
        "ZADD z 1 a 2 b 3 c",
        "ZADD z 0.1 a 0.30000000000000004 b 1e300 c",
        "ZADD z -inf a 0 b inf c",
        "ZADD z 1e-320 a 3.0000000000000004 b 17179869184.000004 c",
        "ZADD z -0.1 a 9007199254740993 b 1.7976931348623157e308 c",
    ] {
        restores(&server, fill, "z", "BZPOPMIN a z 0", 1);
        restores(&server, fill, "z", "BZPOPMAX a z 0", 1);
        restores(&server, fill, "z", "BZMPOP 0 2 a z MIN", 1);
        restores(&server, fill, "z", "BZMPOP 0 2 a z MAX COUNT 2", 2);
        restores(&server, fill, "z", "bzmpop 0 1 z min count 99", 3);
    }
}

#[test]
fn a_newer_score_survives_a_give_back() {
    let server = Server::start();
    let mut client = connect(&server, Protocol::Resp2);
    client.call("ZADD z 1 m");
    let bytes = line("BZPOPMIN z 0");
    let (request, call) = call_of(&bytes);
    let element = try_once(&mut client, &bytes);
    client.call("ZADD z 7 m");
    client.send(call.give_back(&request, &element).unwrap());
    assert_eq!(client.reply().int(), 0);
    assert_eq!(client.call("ZSCORE z m").text(), "7");
}

#[test]
fn a_try_with_nothing_to_pop_is_nil_and_gives_nothing_back() {
    let server = Server::start();
    for protocol in PROTOCOLS {
        let mut client = connect(&server, protocol);
        client.call("XGROUP CREATE s g $ MKSTREAM");
        for call in [
            "BLPOP a b 0",
            "BRPOP a 0",
            "BLMOVE a b LEFT RIGHT 0",
            "BRPOPLPUSH a b 0",
            "BLMPOP 0 2 a b LEFT COUNT 2",
            "BZPOPMIN a 0",
            "BZPOPMAX a 0",
            "BZMPOP 0 1 a MIN",
            "XREAD BLOCK 0 STREAMS s $",
            "XREADGROUP GROUP g c BLOCK 0 STREAMS s >",
        ] {
            let bytes = line(call);
            let (request, parsed) = call_of(&bytes);
            let member = try_once(&mut client, &bytes);
            assert!(is_null(&member), "{call}: {member:?}");
            assert_eq!(parsed.give_back(&request, &member), None);
        }
    }
}

#[test]
fn a_timeout_answers_with_the_nil_that_the_server_sends() {
    let server = Server::start();
    for protocol in PROTOCOLS {
        let mut client = connect(&server, protocol);
        client.call("XGROUP CREATE s g $ MKSTREAM");
        let mut ours = BytesMut::new();
        Call::timeout_reply(protocol, &mut ours);
        for call in [
            "BLPOP a 0",
            "BRPOP a 0",
            "BLMOVE a b LEFT RIGHT 0",
            "BRPOPLPUSH a b 0",
            "BLMPOP 0 1 a LEFT",
            "BZPOPMIN a 0",
            "BZPOPMAX a 0",
            "BZMPOP 0 1 a MIN",
            "XREAD BLOCK 0 STREAMS s $",
            "XREADGROUP GROUP g c BLOCK 0 STREAMS s >",
        ] {
            // The timeout is ours: 0 would wait for ever, so an answer shows that it was put where it belongs.
            let bytes = line(call);
            let (request, parsed) = call_of(&bytes);
            assert_eq!(parsed.timeout, Timeout::Forever);
            let mut out = BytesMut::new();
            parsed.with_timeout(&request, Duration::from_millis(20), &mut out);
            let start = Instant::now();
            client.send(&out);
            let reply = client.reply();
            assert_eq!(&reply.raw[..], &ours[..], "{call} in {protocol:?}");
            assert!(start.elapsed() >= Duration::from_millis(19), "{call} after {:?}", start.elapsed());
            assert!(start.elapsed() < PATIENCE);
        }
    }
}

#[test]
fn timeouts_that_we_read_are_read_alike_by_the_server() {
    let server = Server::start();
    let mut client = connect(&server, Protocol::Resp2);
    for text in ["0", "0.0", "000", "0.001", "0.25", "1.0005", "5", "2147483646", "00.5"] {
        let bytes = encode(&["BLPOP", "a", text]);
        let (_, call) = call_of(&bytes);
        assert_ne!(call.timeout, Timeout::Unclear, "{text}");
        assert!(is_null(&try_once(&mut client, &bytes)), "{text}");
    }
    for text in ["-1", "-0.5", "-2147483647"] {
        let bytes = encode(&["BLPOP", "a", text]);
        assert_eq!(parse(&Request::parse(&bytes).unwrap(), Blocking::BLPop), None, "{text}");
        assert!(is_error(&try_once(&mut client, &bytes)), "{text}");
    }
    // What is unclear is not guessed: some of these the server takes, some it refuses.
    for (text, refused) in [
        ("0.0001", false),
        ("0x10", false),
        ("1e3", false),
        ("+5", false),
        (".5", false),
        (" 5", true),
        ("abc", true),
        ("", true),
    ] {
        let bytes = encode(&["BLPOP", "a", text]);
        let (_, call) = call_of(&bytes);
        assert_eq!(call.timeout, Timeout::Unclear, "{text:?}");
        assert_eq!(is_error(&try_once(&mut client, &bytes)), refused, "{text:?}");
    }
    for text in ["1.5", "01", "+1", "99999999999999999999"] {
        let bytes = encode(&["XREAD", "BLOCK", text, "STREAMS", "s", "0"]);
        let (_, call) = call_of(&bytes);
        assert_eq!(call.timeout, Timeout::Unclear, "{text:?}");
        assert!(is_error(&try_once(&mut client, &bytes)), "{text:?}");
    }
}

#[test]
fn calls_that_we_find_malformed_are_errors_of_the_server_at_once() {
    let server = Server::start();
    let mut client = connect(&server, Protocol::Resp2);
    client.call("XGROUP CREATE s g $ MKSTREAM");
    for text in [
        "BLMOVE a b UP LEFT 5",
        "BLMPOP 5 0 LEFT",
        "BLMPOP 5 x a LEFT",
        "BLMPOP 5 01 a LEFT",
        "BLMPOP 5 2 a LEFT",
        "BLMPOP 5 1 a MIN",
        "BLMPOP 5 1 a LEFT COUNT",
        "BLMPOP 5 1 a LEFT COUNT 0",
        "BLMPOP 5 1 a LEFT COUNT 1 COUNT 1",
        "BZMPOP 5 1 a LEFT",
        "XREAD BLOCK 5 STREAMS a",
        "XREAD BLOCK 5 STREAMS a b 0",
        "XREAD BLOCK STREAMS a 0",
        "XREAD BLOCK -5 STREAMS s 0",
        "XREAD GROUP g c BLOCK 5 STREAMS s 0",
        "XREAD NOACK BLOCK 5 STREAMS s 0",
        "XREADGROUP BLOCK 5 COUNT 1 STREAMS s >",
    ] {
        let bytes = line(text);
        let request = Request::parse(&bytes).unwrap();
        let class = classify(&request).class;
        let malformed = match class {
            Class::Blocking(command) => parse(&request, command).is_none(),
            _ => false,
        };
        assert!(malformed, "{text} is {class:?}");
        let reply = client.call(text);
        assert!(reply.is_error(), "{text}: {reply:?}");
    }
}

#[test]
fn the_dollar_of_a_stream_is_its_last_id_when_the_call_arrived() {
    let server = Server::start();
    for protocol in PROTOCOLS {
        let mut client = connect(&server, protocol);
        client.call("FLUSHALL");
        client.call("XADD s 5-1 f old");
        let bytes = line("XREAD COUNT 9 BLOCK 0 STREAMS s missing $ $");
        let (request, call) = call_of(&bytes);
        let mut ids = Vec::new();
        for (key, _) in call.floating(&request) {
            let mut question = BytesMut::new();
            stream_position(request.arg(key).unwrap(), &mut question);
            client.send(&question);
            ids.push(last_generated_id(&client.reply().raw).unwrap());
        }
        assert_eq!(ids, ["5-1", "0-0"]);

        let explicit = call.with_positions(&request, &ids, false);
        assert!(is_null(&try_once(&mut client, &explicit)));
        client.call("XADD s 6-1 f new");
        client.call("XADD missing 1-1 f first");
        // A `$` sent only now would miss both.
        assert!(is_null(&try_once(&mut client, &bytes)));
        let found = String::from_utf8_lossy(&try_once(&mut client, &explicit)).into_owned();
        assert!(found.contains("6-1") && found.contains("1-1") && !found.contains("5-1"), "{found:?}");
    }
}

#[test]
fn a_wrong_type_and_a_missing_right_give_no_position_to_guess() {
    let server = Server::start();
    let mut client = connect(&server, Protocol::Resp2);
    client.call("SET text x");
    let mut question = BytesMut::new();
    stream_position(b"text", &mut question);
    client.send(&question);
    assert_eq!(last_generated_id(&client.reply().raw), None);
    client.call("ACL SETUSER reader on nopass ~s +@all -xinfo");
    client.call("AUTH reader x");
    question.clear();
    stream_position(b"s", &mut question);
    client.send(&question);
    let refused = client.reply();
    assert!(refused.error().starts_with("NOPERM"), "{refused:?}");
    assert_eq!(last_generated_id(&refused.raw), None);
}

#[test]
fn what_is_delivered_by_a_try_is_what_the_blocking_call_would_deliver() {
    let server = Server::start();
    for protocol in PROTOCOLS {
        let mut client = connect(&server, protocol);
        for (fill, call) in [
            ("RPUSH k 1 2 3", "BLPOP a k 0"),
            ("RPUSH k 1 2 3", "BRPOP a k 0"),
            ("RPUSH k 1 2 3", "BLMOVE k d LEFT RIGHT 0"),
            ("RPUSH k 1 2 3", "BRPOPLPUSH k d 0"),
            ("RPUSH k 1 2 3", "BLMPOP 0 1 k RIGHT COUNT 2"),
            ("ZADD k 1.5 a 2.5 b", "BZPOPMIN k 0"),
            ("ZADD k 1.5 a 2.5 b", "BZPOPMAX k 0"),
            ("ZADD k 1.5 a 2.5 b", "BZMPOP 0 1 k MAX COUNT 2"),
            ("XADD k 1-1 f v", "XREAD BLOCK 0 STREAMS k 0"),
        ] {
            let bytes = line(call);
            client.call("FLUSHALL");
            client.call(fill);
            let tried = try_once(&mut client, &bytes);
            client.call("FLUSHALL");
            client.call(fill);
            client.send(&bytes);
            assert_eq!(client.reply().raw, tried, "{call} in {protocol:?}");
        }
    }
}

#[test]
fn a_refused_try_says_why_before_exec() {
    let server = Server::start();
    let mut client = connect(&server, Protocol::Resp2);
    client.call("ACL SETUSER weak on nopass ~* +@all -blpop");
    client.call("AUTH weak x");
    let mut out = BytesMut::new();
    Call::try_form(&line("BLPOP a 0"), &mut out);
    write::command(&mut out, &[b"PING"]);
    client.send(&out);
    assert_eq!(client.reply().text(), "OK");
    assert!(client.reply().error().starts_with("NOPERM"));
    assert!(client.reply().error().starts_with("EXECABORT"));
    assert_eq!(client.reply().value, Value::Simple("PONG".to_owned()));
}
