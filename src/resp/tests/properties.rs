//! Random frames, cut anywhere: the scanners against `redis-protocol`, and against garbage.
//!
//! Left out is what the crate is known to refuse: attributes on a null or on another attribute, aggregates as map
//! keys or in sets, RESP2 nulls in RESP3, verbatim formats other than txt and mkd.

use proptest::collection::vec;
use proptest::prelude::*;
use redis_protocol::resp2::decode::decode_range as decode_resp2;
use redis_protocol::resp2::types::RangeFrame as Resp2Frame;
use redis_protocol::resp3::decode::complete::decode_range as decode_resp3;
use redis_protocol::resp3::types::FrameKind;

use super::super::{
    Form, ReplyKind, ReplyScanner, Request, RequestFrame, RequestLimits, RequestScanner, RequestStep,
    elements, encode, normalise,
};

fn framed(marker: char, payload: &[u8]) -> Vec<u8> {
    [format!("{marker}{}\r\n", payload.len()).as_bytes(), payload, b"\r\n"].concat()
}

fn aggregate(marker: char, count: usize, parts: &[Vec<u8>]) -> Vec<u8> {
    [format!("{marker}{count}\r\n").into_bytes(), parts.concat()].concat()
}

/// Frames without parts that both protocols have.
fn resp2_leaf() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[ -~]{0,20}".prop_map(|text| format!("+{text}\r\n").into_bytes()),
        "[ -~]{0,20}".prop_map(|text| format!("-{text}\r\n").into_bytes()),
        any::<i64>().prop_map(|value| format!(":{value}\r\n").into_bytes()),
        vec(any::<u8>(), 0..40).prop_map(|bytes| framed('$', &bytes)),
        "(\r\n|\\$3\r\n|\\*2\r\n|x){0,6}".prop_map(|text| framed('$', text.as_bytes())),
    ]
}

fn resp3_leaf() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => resp2_leaf(),
        1 => any::<f64>().prop_map(|value| format!(",{value}\r\n").into_bytes()),
        1 => any::<bool>().prop_map(|value| if value { b"#t\r\n".to_vec() } else { b"#f\r\n".to_vec() }),
        1 => "-?[1-9][0-9]{0,40}".prop_map(|digits| format!("({digits}\r\n").into_bytes()),
        1 => "[ -~]{0,20}".prop_map(|text| framed('!', text.as_bytes())),
        1 => ("(txt|mkd)", "[ -~\r\n]{0,20}").prop_map(|(format, text)| framed('=', format!("{format}:{text}").as_bytes())),
    ]
}

fn with_attribute(parts: &[Vec<u8>], frame: &[u8]) -> Vec<u8> {
    [aggregate('|', parts.len() / 2, parts), frame.to_vec()].concat()
}

/// Keys and values one after the other.
fn pairs(
    key: impl Strategy<Value = Vec<u8>>,
    value: impl Strategy<Value = Vec<u8>>,
) -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec((key, value), 0..4)
        .prop_map(|pairs| pairs.into_iter().flat_map(|(key, value)| [key, value]).collect())
}

fn resp2_frame() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![8 => resp2_leaf(), 1 => Just(b"$-1\r\n".to_vec()), 1 => Just(b"*-1\r\n".to_vec())];
    leaf.prop_recursive(5, 40, 6, |inner| {
        vec(inner, 0..6).prop_map(|parts| aggregate('*', parts.len(), &parts))
    })
}

/// A frame of RESP3, pushes included: the crate takes them at any depth, as the scanner does.
fn resp3_frame() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![8 => resp3_leaf(), 1 => Just(b"_\r\n".to_vec())];
    leaf.prop_recursive(5, 40, 6, |inner| {
        let array = vec(inner.clone(), 0..6).prop_map(|parts| aggregate('*', parts.len(), &parts));
        prop_oneof![
            3 => array.clone(),
            1 => vec(inner.clone(), 1..4).prop_map(|parts| aggregate('>', parts.len(), &parts)),
            2 => pairs(resp3_leaf(), inner.clone()).prop_map(|parts| aggregate('%', parts.len() / 2, &parts)),
            1 => vec(resp3_leaf(), 0..6).prop_map(|parts| aggregate('~', parts.len(), &parts)),
            1 => (pairs(resp3_leaf(), inner), prop_oneof![resp3_leaf(), array])
                .prop_map(|(parts, frame)| with_attribute(&parts, &frame)),
        ]
    })
}

/// Ends and kinds as the scanner finds them when `bytes` come in pieces that end at `cuts`.
fn scanned(bytes: &[u8], cuts: &[usize]) -> Vec<(usize, ReplyKind)> {
    let mut scanner = ReplyScanner::default();
    let mut found = Vec::new();
    let mut at = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        while at < cut {
            let step = scanner.step(&bytes[at..cut]).unwrap();
            at += step.consumed;
            found.extend(step.complete.map(|kind| (at, kind)));
        }
    }
    assert!(!scanner.in_frame());
    found
}

/// The crate's name for a frame of that kind.
fn same_kind(ours: ReplyKind, theirs: FrameKind) -> bool {
    let expected = match ours {
        ReplyKind::Simple => FrameKind::SimpleString,
        ReplyKind::Error => FrameKind::SimpleError,
        ReplyKind::Integer => FrameKind::Number,
        ReplyKind::Bulk => FrameKind::BlobString,
        ReplyKind::Array => FrameKind::Array,
        ReplyKind::Null => FrameKind::Null,
        ReplyKind::Double => FrameKind::Double,
        ReplyKind::Boolean => FrameKind::Boolean,
        ReplyKind::BigNumber => FrameKind::BigNumber,
        ReplyKind::BlobError => FrameKind::BlobError,
        ReplyKind::Verbatim => FrameKind::VerbatimString,
        ReplyKind::Map => FrameKind::Map,
        ReplyKind::Set => FrameKind::Set,
        ReplyKind::Push => FrameKind::Push,
    };
    expected == theirs
}

fn widened(frame: &Resp2Frame) -> FrameKind {
    match frame {
        Resp2Frame::SimpleString(_) => FrameKind::SimpleString,
        Resp2Frame::Error(_) => FrameKind::SimpleError,
        Resp2Frame::Integer(_) => FrameKind::Number,
        Resp2Frame::BulkString(_) => FrameKind::BlobString,
        Resp2Frame::Array(_) => FrameKind::Array,
        Resp2Frame::Null => FrameKind::Null,
    }
}

/// Random places to cut `len` bytes, in order.
fn cuts(len: usize, seeds: &[prop::sample::Index]) -> Vec<usize> {
    let mut cuts: Vec<_> = seeds.iter().map(|seed| seed.index(len + 1)).collect();
    cuts.sort_unstable();
    cuts
}

/// All frames of a stream of requests that comes in pieces; a read buffer keeps what is not consumed.
fn requests(bytes: &[u8], cuts: &[usize]) -> Vec<(usize, RequestFrame)> {
    let limits = RequestLimits::default();
    let mut scanner = RequestScanner::default();
    let mut found = Vec::new();
    let mut start = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        loop {
            match scanner.step(&bytes[start..cut], &limits).unwrap() {
                RequestStep::Incomplete { need } => {
                    assert!(need >= 1 && (cut == bytes.len() || need <= bytes.len() - cut));
                    break;
                }
                RequestStep::Nothing { len } => start += len,
                RequestStep::Request(shape) => {
                    found.push((start, shape));
                    start += shape.len;
                }
            }
        }
    }
    assert_eq!(start, bytes.len());
    found
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn resp3_replies_end_where_the_crate_says_however_they_are_cut(
        frames in vec(resp3_frame(), 1..4),
        seeds in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let bytes = frames.concat();
        let whole = scanned(&bytes, &[]);
        let mut at = 0;
        for &(end, kind) in &whole {
            let (frame, len) = decode_resp3(&bytes[at..]).unwrap().unwrap();
            prop_assert_eq!(end, at + len);
            prop_assert!(same_kind(kind, frame.kind()), "{:?} {:?}", kind, frame.kind());
            at = end;
        }
        prop_assert_eq!(at, bytes.len());
        prop_assert_eq!(whole.len(), frames.len());
        prop_assert_eq!(&scanned(&bytes, &cuts(bytes.len(), &seeds)), &whole);
        for cut in 0..=bytes.len() {
            prop_assert_eq!(&scanned(&bytes, &[cut]), &whole);
        }
        let every_byte: Vec<_> = (0..bytes.len()).collect();
        prop_assert_eq!(&scanned(&bytes, &every_byte), &whole);
    }

    #[test]
    fn resp2_replies_end_where_the_crate_says_however_they_are_cut(
        frames in vec(resp2_frame(), 1..4),
        seeds in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let bytes = frames.concat();
        let whole = scanned(&bytes, &[]);
        let mut at = 0;
        for &(end, kind) in &whole {
            let (frame, len) = decode_resp2(&bytes[at..]).unwrap().unwrap();
            prop_assert_eq!(end, at + len);
            prop_assert!(same_kind(kind, widened(&frame)), "{:?} {:?}", kind, frame);
            at = end;
        }
        prop_assert_eq!(at, bytes.len());
        prop_assert_eq!(&scanned(&bytes, &cuts(bytes.len(), &seeds)), &whole);
        for cut in 0..=bytes.len() {
            prop_assert_eq!(&scanned(&bytes, &[cut]), &whole);
        }
    }

    #[test]
    fn elements_put_together_are_the_aggregate(parts in vec(resp3_frame(), 0..6)) {
        for (marker, count) in [('*', parts.len()), ('>', parts.len()), ('~', parts.len()), ('%', parts.len() / 2)] {
            let used = if marker == '%' { count * 2 } else { count };
            let frame = aggregate(marker, count, &parts[..used]);
            let found: Vec<_> = elements(&frame).unwrap().map(<[u8]>::to_vec).collect();
            prop_assert_eq!(&found, &parts[..used]);
        }
    }

    #[test]
    fn requests_end_where_the_crate_says_however_they_are_cut(
        commands in vec(vec(vec(any::<u8>(), 0..40), 1..6), 1..5),
        seeds in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut out = bytes::BytesMut::new();
        for command in &commands {
            encode::command(&mut out, &command.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }
        let whole = requests(&out, &[]);
        prop_assert_eq!(whole.len(), commands.len());
        for ((start, shape), command) in whole.iter().zip(&commands) {
            let (_, len) = decode_resp2(&out[*start..]).unwrap().unwrap();
            prop_assert_eq!((shape.len, shape.form), (len, Form::Canonical));
            let request = Request::new(&out[*start..], shape);
            prop_assert_eq!(&request.args().collect::<Vec<_>>(), command);
            prop_assert_eq!(request.name(), &command[0][..]);
            prop_assert_eq!(request.arg(1), command.get(1).map(Vec::as_slice));
        }
        prop_assert_eq!(&requests(&out, &cuts(out.len(), &seeds)), &whole);
        for cut in 0..=out.len() {
            prop_assert_eq!(&requests(&out, &[cut]), &whole);
        }
    }

    #[test]
    fn loose_and_inline_requests_become_the_canonical_ones(
        words in vec(vec(any::<u8>(), 0..20), 1..6),
        ends in vec((any::<u8>(), any::<[u8; 2]>()), 7),
    ) {
        prop_assume!(!matches!(words[0].first(), None | Some(b'p' | b'P' | b'h' | b'H')));
        let mut canonical = bytes::BytesMut::new();
        encode::command(&mut canonical, &words.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let mut loose = [format!("*{}\r", words.len()).as_bytes(), &[ends[0].0]].concat();
        let mut inline = Vec::new();
        for (word, (end, behind)) in words.iter().zip(&ends[1..]) {
            loose.extend([format!("${}\r", word.len()).as_bytes(), &[*end], word, behind].concat());
            let quoted: String = word.iter().map(|byte| format!("\\x{byte:02x}")).collect();
            inline.extend_from_slice(format!(" \"{quoted}\"").as_bytes());
        }
        inline.extend_from_slice(b"\r\n");
        for bytes in [loose, inline] {
            let found = requests(&bytes, &[]);
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].1.len, bytes.len());
            let mut out = bytes::BytesMut::new();
            let shape = normalise(&bytes, &found[0].1, &mut out).unwrap().unwrap();
            prop_assert_eq!(&out, &canonical);
            prop_assert_eq!(shape.len, canonical.len());
        }
    }

    #[test]
    fn garbage_neither_panics_nor_loops_nor_ends_beyond_the_buffer(
        bytes in prop_oneof![
            vec(any::<u8>(), 0..200),
            vec(prop::sample::select(b"*$+-:_,#(!=%~>|;.?0123\r\n\r\nab\"'\\x \0".to_vec()), 0..200),
        ],
        authenticated in any::<bool>(),
    ) {
        let mut replies = ReplyScanner::default();
        let mut at = 0;
        while at < bytes.len() {
            let Ok(step) = replies.step(&bytes[at..]) else { break };
            prop_assert!(step.consumed > 0 && at + step.consumed <= bytes.len());
            at += step.consumed;
        }
        let limits = RequestLimits { authenticated, ..RequestLimits::default() };
        let mut scanner = RequestScanner::default();
        let mut at = 0;
        loop {
            match scanner.step(&bytes[at..], &limits) {
                Ok(RequestStep::Nothing { len }) => {
                    prop_assert!(len > 0 && at + len <= bytes.len());
                    at += len;
                }
                Ok(RequestStep::Request(shape)) => {
                    prop_assert!(shape.len > 0 && at + shape.len <= bytes.len());
                    prop_assert!(shape.name.1 as usize <= shape.len);
                    let _ = normalise(&bytes[at..], &shape, &mut bytes::BytesMut::new());
                    at += shape.len;
                }
                Ok(RequestStep::Incomplete { need }) => {
                    prop_assert!(need > 0);
                    break;
                }
                Err(_) => break,
            }
        }
        let _ = super::super::decode(&bytes, super::super::Protocol::Resp3);
        let _ = elements(&bytes).map(Iterator::count);
        let _ = super::super::bulk(&bytes);
        let _ = super::super::integer(&bytes);
    }

    #[test]
    fn a_stream_of_anything_means_the_same_whole_and_cut(
        bytes in vec(prop::sample::select(b"**$$1123\r\r\n\n\r\nab\"' ".to_vec()), 0..60),
        seeds in vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let outcome = |cuts: &[usize]| {
            let mut scanner = RequestScanner::default();
            let mut start = 0;
            let mut seen = Vec::new();
            for &cut in cuts.iter().chain([&bytes.len()]) {
                loop {
                    match scanner.step(&bytes[start..cut], &RequestLimits::default()) {
                        Ok(RequestStep::Incomplete { .. }) => break,
                        Ok(step) => {
                            start += match step {
                                RequestStep::Request(shape) => shape.len,
                                RequestStep::Nothing { len } => len,
                                RequestStep::Incomplete { .. } => 0,
                            };
                            seen.push(Ok(step));
                        }
                        Err(error) => {
                            seen.push(Err(error));
                            return seen;
                        }
                    }
                }
            }
            seen
        };
        prop_assert_eq!(outcome(&cuts(bytes.len(), &seeds)), outcome(&[]));
        let every_byte: Vec<_> = (0..bytes.len()).collect();
        prop_assert_eq!(outcome(&every_byte), outcome(&[]));
    }
}
