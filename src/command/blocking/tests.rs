//! Calls taken apart and put together: by example, and for any call that can be written.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::command::{Blocking, Class, classify};
use crate::resp::{Protocol, Request, encode};
use crate::resp::{RequestLimits, RequestScanner, RequestStep};

fn frame(words: &[impl AsRef<[u8]>]) -> BytesMut {
    let words: Vec<&[u8]> = words.iter().map(AsRef::as_ref).collect();
    let mut out = BytesMut::new();
    encode::command(&mut out, &words);
    out
}

fn line(text: &str) -> BytesMut {
    frame(&text.split(' ').collect::<Vec<_>>())
}

fn words(frame: &[u8]) -> Vec<Vec<u8>> {
    Request::parse(frame).expect("one canonical request").args().map(<[u8]>::to_vec).collect()
}

fn text(frame: &[u8]) -> String {
    words(frame).iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>().join(" ")
}

/// The command that the first word names, whether or not the rest makes sense.
fn command_of(name: &str) -> Blocking {
    match crate::command::find(name).unwrap().class {
        Class::Blocking(command) => command,
        other => panic!("{name} is {other:?}"),
    }
}

fn parsed(text: &str) -> Option<Call> {
    let frame = line(text);
    parse(&Request::parse(&frame).unwrap(), command_of(text.split(' ').next().unwrap()))
}

fn timeout_of(text: &str) -> Option<Timeout> {
    parsed(text).map(|call| call.timeout)
}

fn millis(count: u64) -> Timeout {
    Timeout::After(Duration::from_millis(count))
}

#[test]
fn the_timeout_stands_last_or_first_or_behind_block() {
    let shape = |text| parsed(text).map(|call| (call.timeout_arg, call.keys)).unwrap();
    assert_eq!(shape("BLPOP a b c 5"), (4, vec![1, 2, 3]));
    assert_eq!(shape("brpop a 5"), (2, vec![1]));
    assert_eq!(shape("BZPOPMIN a b 5"), (3, vec![1, 2]));
    assert_eq!(shape("BZPOPMAX a 5"), (2, vec![1]));
    assert_eq!(shape("BLMOVE a b LEFT right 5"), (5, vec![1]));
    assert_eq!(shape("BRPOPLPUSH a b 5"), (3, vec![1]));
    assert_eq!(shape("BLMPOP 5 2 a b left"), (1, vec![3, 4]));
    assert_eq!(shape("BLMPOP 5 1 a RIGHT COUNT 3"), (1, vec![3]));
    assert_eq!(shape("BZMPOP 5 1 a MIN count 3"), (1, vec![3]));
    assert_eq!(shape("XREAD BLOCK 5 STREAMS a b 0 0"), (2, vec![4, 5]));
    assert_eq!(shape("xread count 2 block 5 streams a 0"), (4, vec![6]));
    assert_eq!(shape("XREAD BLOCK 1 BLOCK 5 STREAMS a 0"), (4, vec![6]));
    assert_eq!(shape("XREADGROUP GROUP g c NOACK BLOCK 5 COUNT 1 STREAMS a >"), (6, vec![10]));
    assert_eq!(shape("XREADGROUP BLOCK 5 NOACK GROUP block streams STREAMS a >"), (2, vec![8]));
}

#[test]
fn malformed_calls_are_left_to_the_server() {
    for text in [
        "BLPOP a",
        "BLPOP",
        "BLPOP a -1",
        "BLPOP a -0.5",
        "BLMOVE a b LEFT 5",
        "BLMOVE a b UP LEFT 5",
        "BLMOVE a b LEFT RIGHT 5 6",
        "BRPOPLPUSH a 5",
        "BRPOPLPUSH a b c 5",
        "BLMPOP 5 0 LEFT",
        "BLMPOP 5 x a LEFT",
        "BLMPOP 5 01 a LEFT",
        "BLMPOP 5 2 a LEFT",
        "BLMPOP 5 1 a MIN",
        "BLMPOP 5 1 a LEFT COUNT",
        "BLMPOP 5 1 a LEFT COUNT 0",
        "BLMPOP 5 1 a LEFT COUNT 1 COUNT 1",
        "BLMPOP 5 18446744073709551615 a LEFT",
        "BZMPOP 5 1 a LEFT",
        "XREAD STREAMS a 0",
        "XREAD BLOCK 5 STREAMS a",
        "XREAD BLOCK 5 STREAMS a b 0",
        "XREAD BLOCK 5 STREAMS",
        "XREAD BLOCK STREAMS a 0",
        "XREAD BLOCK 5 a 0",
        "XREAD BLOCK -5 STREAMS a 0",
        "XREAD GROUP g c BLOCK 5 STREAMS a 0",
        "XREAD NOACK BLOCK 5 STREAMS a 0",
        "XREADGROUP BLOCK 5 STREAMS a >",
    ] {
        assert_eq!(parsed(text), None, "{text}");
    }
}

#[test]
fn seconds_are_read_where_every_server_reads_them_alike() {
    assert_eq!(timeout_of("BLPOP a 0"), Some(Timeout::Forever));
    assert_eq!(timeout_of("BLPOP a 0.0"), Some(Timeout::Forever));
    assert_eq!(timeout_of("BLPOP a 000"), Some(Timeout::Forever));
    assert_eq!(timeout_of("BLPOP a 5"), Some(millis(5000)));
    assert_eq!(timeout_of("BLPOP a 0.001"), Some(millis(1)));
    assert_eq!(timeout_of("BLPOP a 0.25"), Some(millis(250)));
    assert_eq!(timeout_of("BLPOP a 1.0005"), Some(millis(1001)));
    assert_eq!(timeout_of("BLPOP a 1.00000000000000000001"), Some(millis(1001)));
    assert_eq!(timeout_of("BLPOP a 0.99999999999"), Some(millis(1000)));
    assert_eq!(timeout_of("BLPOP a 2147483646"), Some(millis(2_147_483_646_000)));
    for unclear in [
        "0.0001", "0x10", "1e3", "inf", "nan", "+5", " 5", "5 ", ".5", "5.", "1.2.3", "", "-", "-0", "-x",
        "abc",
    ] {
        let frame = frame(&["BLPOP", "a", unclear]);
        let call = parse(&Request::parse(&frame).unwrap(), Blocking::BLPop).unwrap();
        assert_eq!(call.timeout, Timeout::Unclear, "{unclear:?}");
    }
    for huge in ["2147483647", "9223372036854775", "99999999999999999999999"] {
        assert_eq!(timeout_of(&format!("BLPOP a {huge}")), Some(Timeout::Unclear));
    }
}

#[test]
fn milliseconds_are_whole_numbers() {
    assert_eq!(timeout_of("XREAD BLOCK 0 STREAMS a $"), Some(Timeout::Forever));
    assert_eq!(timeout_of("XREAD BLOCK 1500 STREAMS a $"), Some(millis(1500)));
    for unclear in ["1.5", "00", "01", "0x1", "+1", "9223372036854775807"] {
        assert_eq!(
            timeout_of(&format!("XREAD BLOCK {unclear} STREAMS a $")),
            Some(Timeout::Unclear),
            "{unclear}"
        );
    }
}

#[test]
fn keys_and_dollars_belong_together() {
    let frame = line("XREAD BLOCK 0 STREAMS a b c $ 5-0 $");
    let request = Request::parse(&frame).unwrap();
    let call = parse(&request, Blocking::XRead).unwrap();
    assert_eq!(
        (call.key(&request, 0), call.key(&request, 2), call.key(&request, 3)),
        (&b"a"[..], &b"c"[..], &b""[..])
    );
    assert_eq!(call.dollars, [7, 9]);
    assert_eq!(call.floating(&request), [(4, 7), (6, 9)]);
    let out = call.with_positions(&request, &[Bytes::from_static(b"1-1"), Bytes::from_static(b"2-2")], false);
    assert_eq!(text(&out), "XREAD BLOCK 0 STREAMS a b c 1-1 5-0 2-2");
    // For a group `$` has no meaning: the server's error stands.
    assert!(parsed("XREADGROUP GROUP g c BLOCK 0 STREAMS a $").unwrap().dollars.is_empty());
}

#[test]
fn the_time_that_is_left_is_written_in_the_command_s_unit() {
    let rest = |call: &str, nanos| {
        let frame = line(call);
        let request = Request::parse(&frame).unwrap();
        let mut out = BytesMut::new();
        parsed(call).unwrap().with_timeout(&request, Duration::from_nanos(nanos), &mut out);
        text(&out)
    };
    assert_eq!(rest("BLPOP a 9", 1_250_000_000), "BLPOP a 1.250");
    assert_eq!(rest("BLPOP a 9", 1_250_000_001), "BLPOP a 1.251");
    assert_eq!(rest("BLPOP a 9", 0), "BLPOP a 0.001");
    assert_eq!(rest("BLMPOP 9 1 a LEFT COUNT 2", 60_000_000_000), "BLMPOP 60.000 1 a LEFT COUNT 2");
    assert_eq!(rest("XREAD BLOCK 9 COUNT 1 STREAMS a $", 0), "XREAD BLOCK 1 COUNT 1 STREAMS a $");
    assert_eq!(rest("XREAD BLOCK 9 STREAMS a $", 1_250_000_000), "XREAD BLOCK 1250 STREAMS a $");
}

#[test]
fn the_nil_of_a_timeout_is_that_of_the_protocol() {
    let reply = |protocol| {
        let mut out = BytesMut::new();
        Call::timeout_reply(protocol, &mut out);
        out
    };
    assert_eq!(&reply(Protocol::Resp2)[..], b"*-1\r\n");
    assert_eq!(&reply(Protocol::Resp3)[..], b"_\r\n");
}

fn given_back(call: &str, element: &[u8]) -> Option<String> {
    let frame = line(call);
    let request = Request::parse(&frame).unwrap();
    parsed(call).unwrap().give_back(&request, element).map(|out| text(&out))
}

#[test]
fn elements_go_back_to_the_end_they_came_from() {
    let element = b"*2\r\n$1\r\nb\r\n$2\r\nx1\r\n";
    assert_eq!(given_back("BLPOP a b 0", element).unwrap(), "LPUSH b x1");
    assert_eq!(given_back("BRPOP a b 0", element).unwrap(), "RPUSH b x1");
    let several = b"*2\r\n$1\r\nb\r\n*3\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\n3\r\n";
    assert_eq!(given_back("BLMPOP 0 2 a b LEFT COUNT 3", several).unwrap(), "LPUSH b 3 2 1");
    assert_eq!(given_back("BLMPOP 0 2 a b right COUNT 3", several).unwrap(), "RPUSH b 3 2 1");
}

#[test]
fn scores_go_back_with_the_digits_they_came_with() {
    let resp2 = b"*3\r\n$1\r\nz\r\n$1\r\nm\r\n$19\r\n0.10000000000000001\r\n";
    assert_eq!(given_back("BZPOPMIN z 0", resp2).unwrap(), "ZADD z NX 0.10000000000000001 m");
    let resp3 = b"*3\r\n$1\r\nz\r\n$1\r\nm\r\n,-inf\r\n";
    assert_eq!(given_back("BZPOPMAX z 0", resp3).unwrap(), "ZADD z NX -inf m");
    let several = b"*2\r\n$1\r\nz\r\n*2\r\n*2\r\n$1\r\nm\r\n,1.5\r\n*2\r\n$1\r\nn\r\n,inf\r\n";
    assert_eq!(given_back("BZMPOP 0 1 z MIN COUNT 2", several).unwrap(), "ZADD z NX 1.5 m inf n");
}

#[test]
fn nothing_goes_back_where_nothing_was_taken_away() {
    for nothing in [&b"*-1\r\n"[..], b"_\r\n", b"$-1\r\n", b"-WRONGTYPE Operation\r\n", b"*0\r\n", b"+OK\r\n"]
    {
        for call in [
            "BLPOP a 0",
            "BRPOP a 0",
            "BLMPOP 0 1 a LEFT",
            "BZPOPMIN a 0",
            "BZPOPMAX a 0",
            "BZMPOP 0 1 a MIN",
        ] {
            assert_eq!(given_back(call, nothing), None, "{call} {nothing:?}");
        }
    }
    assert_eq!(given_back("BLMPOP 0 1 a LEFT", b"*2\r\n$1\r\na\r\n*0\r\n"), None);
    assert_eq!(given_back("BLMOVE a b LEFT LEFT 0", b"$1\r\nx\r\n"), None);
    assert_eq!(given_back("BRPOPLPUSH a b 0", b"$1\r\nx\r\n"), None);
    let read = b"*1\r\n*2\r\n$1\r\ns\r\n*0\r\n";
    assert_eq!(given_back("XREAD BLOCK 0 STREAMS s 0", read), None);
    assert_eq!(given_back("XREADGROUP GROUP g c BLOCK 0 STREAMS s >", read), None);
}

#[test]
fn only_the_timeout_may_differ_between_heirs() {
    let same = |a: &str, b: &str| {
        let (a, b) = (line(a), line(b));
        Call::same_shape(&Request::parse(&a).unwrap(), &Request::parse(&b).unwrap())
    };
    assert!(same("BLPOP a b 0", "blpop a b 5.5"));
    assert!(same("BLMPOP 1 1 a LEFT", "BLMPOP 2 1 a LEFT"));
    assert!(same("XREAD BLOCK 0 STREAMS s 1-0", "xread BLOCK 9 STREAMS s 1-0"));
    assert!(!same("BLPOP a b 0", "BLPOP b a 0"));
    assert!(!same("BLPOP a 0", "BRPOP a 0"));
    assert!(!same("BLPOP a 0", "BLPOP a b 0"));
    assert!(!same("BLMPOP 1 1 a LEFT", "BLMPOP 1 1 a RIGHT"));
    assert!(!same("BLMPOP 1 1 a LEFT", "BLMPOP 1 1 a LEFT COUNT 2"));
    assert!(!same("XREAD BLOCK 0 STREAMS s 1-0", "XREAD BLOCK 0 STREAMS s 2-0"));
    assert!(!same("LPOP a", "LPOP a"));
    assert!(!same("BLPOP a -1", "BLPOP a -1"));
}

#[test]
fn moving_commands_have_moved_before_they_answer() {
    assert!(Call::moves_before_answering(Blocking::BLMove));
    assert!(Call::moves_before_answering(Blocking::BRPopLPush));
    assert!(Call::moves_before_answering(Blocking::XReadGroup));
    assert!(!Call::moves_before_answering(Blocking::BLPop));
    assert!(!Call::moves_before_answering(Blocking::XRead));
}

#[test]
fn the_end_of_a_stream_is_read_from_either_protocol() {
    let resp2 = b"*4\r\n$6\r\nlength\r\n:2\r\n$17\r\nlast-generated-id\r\n$3\r\n5-1\r\n";
    let resp3 = b"%2\r\n$6\r\nlength\r\n:2\r\n$17\r\nlast-generated-id\r\n$3\r\n5-1\r\n";
    assert_eq!(last_generated_id(resp2).unwrap(), "5-1");
    assert_eq!(last_generated_id(resp3).unwrap(), "5-1");
    assert_eq!(last_generated_id(b"-ERR no such key\r\n").unwrap(), "0-0");
    assert_eq!(last_generated_id(b"-NOPERM this user has no permissions\r\n"), None);
    assert_eq!(last_generated_id(b"-WRONGTYPE Operation against a key\r\n"), None);
    assert_eq!(last_generated_id(b"+OK\r\n"), None);
    let mut out = BytesMut::new();
    stream_position(b"s", &mut out);
    assert_eq!(text(&out), "XINFO STREAM s");
}

/// Any well-formed call: its words, its keys, and where its timeout is.
fn any_call() -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<Vec<u8>>, usize)> {
    let key = proptest::collection::vec(any::<u8>(), 0..6);
    let keys = proptest::collection::vec(key, 1..4);
    (keys, 0..10_usize, any::<bool>(), 0..3_usize).prop_map(|(keys, which, flip, count)| {
        let text =
            |words: &[&str]| -> Vec<Vec<u8>> { words.iter().map(|word| word.as_bytes().to_vec()).collect() };
        let one = keys.first().cloned().unwrap_or_default();
        let number = keys.len().to_string();
        let simple = |name: &str| (text(&[name]), keys.clone(), text(&["7"]));
        let (head, keys, tail) = match which {
            0 => simple("BLPOP"),
            1 => simple("brpop"),
            2 => simple("BZPOPMIN"),
            3 => simple("BZPOPMAX"),
            4 => (
                text(&["BLMOVE"]),
                vec![one],
                text(&["dst", if flip { "LEFT" } else { "right" }, "LEFT", "7"]),
            ),
            5 => (text(&["BRPOPLPUSH"]), vec![one], text(&["dst", "7"])),
            6 => (text(&["BLMPOP", "7", &number]), keys, text(&[if flip { "LEFT" } else { "right" }])),
            7 => (text(&["BZMPOP", "7", &number]), keys, text(&["max", "COUNT", "3"])),
            8 | 9 => {
                let mut head =
                    if which == 8 { text(&["XREAD"]) } else { text(&["xreadgroup", "GROUP", "BLOCK", "c"]) };
                head.extend(if flip { text(&["COUNT", "9", "block", "7"]) } else { text(&["BLOCK", "7"]) });
                head.extend((0..count).flat_map(|_| text(&["COUNT", "1"])));
                head.extend(text(&["STREAMS"]));
                let ids =
                    keys.iter().map(|_| if which == 8 { b"$".to_vec() } else { b">".to_vec() }).collect();
                (head, keys, ids)
            }
            _ => unreachable!(),
        };
        let stated: Vec<Vec<u8>> = [head.clone(), keys.clone(), tail].concat();
        // Keys may spell anything, so the timeout is where the form says, not the first 7.
        let timeout = match which {
            0..=5 => stated.len() - 1,
            6 | 7 => 1,
            _ => head.iter().rposition(|word| word == b"7").unwrap(),
        };
        (stated, keys, timeout)
    })
}

proptest! {
    #[test]
    fn any_call_is_taken_apart((stated, keys, timeout) in any_call()) {
        let bytes = frame(&stated);
        let request = Request::parse(&bytes).unwrap();
        let Class::Blocking(command) = classify(&request).class else { panic!("not blocking") };
        let call = parse(&request, command).unwrap();
        prop_assert_eq!(call.timeout_arg, timeout);
        let found: Vec<Vec<u8>> = (0..call.keys.len()).map(|i| call.key(&request, i).to_vec()).collect();
        prop_assert_eq!(found, keys);
        for &dollar in &call.dollars {
            prop_assert_eq!(request.arg(dollar).unwrap(), b"$");
        }
    }

    #[test]
    fn a_new_timeout_changes_nothing_else((stated, _, timeout) in any_call(), nanos in 0..10_000_000_000_000_u64) {
        let bytes = frame(&stated);
        let request = Request::parse(&bytes).unwrap();
        let call = Call::of(&request).unwrap();
        let remaining = Duration::from_nanos(nanos);
        let mut out = BytesMut::from(&b"before"[..]);
        call.with_timeout(&request, remaining, &mut out);
        let written = out.split_off(6);
        prop_assert_eq!(&out[..], b"before");
        let mut found = words(&written);
        found[timeout].clone_from(&stated[timeout]);
        prop_assert_eq!(found, stated);

        let written = Request::parse(&written).unwrap();
        let again = Call::of(&written).unwrap();
        let Timeout::After(left) = again.timeout else { panic!("{:?}", again.timeout) };
        prop_assert!(left >= remaining && left >= Duration::from_millis(1));
        prop_assert!(left - remaining <= Duration::from_millis(1));
        prop_assert_eq!((again.keys, again.timeout_arg, again.dollars), (call.keys, call.timeout_arg, call.dollars));
        prop_assert!(Call::same_shape(&request, &written));
    }

    #[test]
    fn a_try_is_three_requests_with_the_call_as_it_was_in_the_middle((stated, _, _) in any_call()) {
        let bytes = frame(&stated);
        let mut out = BytesMut::new();
        Call::try_form(&bytes, &mut out);
        let limits = RequestLimits { max_bulk: 1 << 29, max_request: 1 << 30, ..RequestLimits::default() };
        let mut rest = &out[..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let RequestStep::Request(shape) = RequestScanner::default().step(rest, &limits).unwrap() else {
                panic!("not a whole request");
            };
            found.push(&rest[..shape.len]);
            rest = &rest[shape.len..];
        }
        prop_assert_eq!(found.len(), 3);
        prop_assert_eq!(words(found[0]), vec![b"MULTI".to_vec()]);
        prop_assert_eq!(found[1], &bytes[..]);
        prop_assert_eq!(words(found[2]), vec![b"EXEC".to_vec()]);
    }

    #[test]
    fn explicit_ids_replace_the_dollars_and_nothing_else((stated, _, _) in any_call()) {
        let bytes = frame(&stated);
        let request = Request::parse(&bytes).unwrap();
        let call = Call::of(&request).unwrap();
        let floating = call.floating(&request);
        let ids: Vec<Bytes> = (0..floating.len()).map(|i| Bytes::from(format!("{i}-7"))).collect();
        let out = call.with_positions(&request, &ids, false);
        let mut found = words(&out);
        for ((_, at), id) in floating.into_iter().zip(&ids).filter(|((_, at), _)| call.dollars.contains(at)) {
            prop_assert_eq!(&found[at][..], &id[..]);
            found[at] = b"$".to_vec();
        }
        prop_assert_eq!(found, stated);
        let written = Request::parse(&out).unwrap();
        prop_assert!(Call::of(&written).unwrap().dollars.is_empty());
    }

    #[test]
    fn any_words_and_any_reply_are_survived(
        name in 0..10_usize,
        args in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5), 0..8),
        reply in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let names = ["BLPOP", "BRPOP", "BLMOVE", "BRPOPLPUSH", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP", "XREAD", "XREADGROUP"];
        let mut stated = vec![names[name].as_bytes().to_vec()];
        stated.extend(args);
        let bytes = frame(&stated);
        let request = Request::parse(&bytes).unwrap();
        if let Some(call) = parse(&request, command_of(names[name])) {
            prop_assert!(call.keys.iter().all(|&key| key < request.argc()));
            prop_assert!(call.timeout_arg < request.argc());
            let _ = call.give_back(&request, &reply);
        }
        let _ = last_generated_id(&reply);
    }
}
