//! The scanners of requests and replies, and inline words.

use bytes::BytesMut;

use super::Input;
use crate::command::{Class, blocking, classify, key_positions};
use crate::resp::{
    Form, Protocol, ReplyError, ReplyKind, ReplyScanner, Request, RequestError, RequestFrame, RequestLimits,
    RequestScanner, RequestStep, bulk, decode, downgrade, elements, encode, error_text, integer, is_error,
    is_null, normalise,
};

/// Where a stream is cut: the input's first bytes say the lengths of the pieces, in turn.
struct Cuts {
    lens: [usize; 4],
    at: usize,
}

impl Cuts {
    fn new(input: &mut Input<'_>) -> Self {
        Self { lens: std::array::from_fn(|_| 1 + input.below(16)), at: 0 }
    }

    fn next(&mut self) -> usize {
        self.at += 1;
        self.lens[self.at % self.lens.len()]
    }
}

/// A stream of requests means the same whole and in pieces, no step goes beyond what is there, and every request that is
/// found can be taken apart: its words, its class, its keys, its blocking call.
pub fn requests(data: &[u8]) {
    let mut input = Input::new(data);
    let form = input.byte();
    let limits = RequestLimits {
        max_bulk: if form & 1 == 0 { 512 << 20 } else { 64 },
        max_request: if form & 2 == 0 { 1 << 30 } else { 256 },
        max_arguments: if form & 4 == 0 { crate::resp::MAX_ARGUMENTS } else { 16 },
        authenticated: form & 8 == 0,
    };
    let mut cuts = Cuts::new(&mut input);
    let stream = input.rest();
    let whole = scan_requests(stream, &limits, || stream.len());
    let pieces = scan_requests(stream, &limits, || cuts.next());
    assert_eq!(whole, pieces, "cut and whole");
    for (start, shape) in whole.frames {
        look_into(&stream[start..], &shape);
    }
}

/// What a stream of requests is.
#[derive(Debug, PartialEq)]
struct Requests {
    /// Where each begins, and its parts.
    frames: Vec<(usize, RequestFrame)>,
    error: Option<RequestError>,
    /// Where the first one begins that is not whole.
    rest: usize,
}

/// Reads `stream` in pieces of the lengths that `piece` gives.
fn scan_requests(stream: &[u8], limits: &RequestLimits, mut piece: impl FnMut() -> usize) -> Requests {
    let mut scanner = RequestScanner::default();
    let mut found = Requests { frames: Vec::new(), error: None, rest: 0 };
    let mut there = 0;
    loop {
        match scanner.step(&stream[found.rest..there], limits) {
            Ok(RequestStep::Incomplete { need }) => {
                assert!(need > 0, "an incomplete request misses something");
                if there == stream.len() {
                    return found;
                }
                there = (there + piece()).min(stream.len());
            }
            Ok(RequestStep::Nothing { len }) => {
                assert!(len > 0 && found.rest + len <= there, "nothing of {len} bytes");
                found.rest += len;
            }
            Ok(RequestStep::Request(shape)) => {
                assert!(shape.len > 0 && found.rest + shape.len <= there, "{shape:?}");
                found.frames.push((found.rest, shape));
                found.rest += shape.len;
            }
            Err(error) => {
                let _ = error.reply();
                found.error = Some(error);
                return found;
            }
        }
    }
}

/// Takes one request apart; written anew, it is canonical and stays the same.
fn look_into(frame: &[u8], shape: &RequestFrame) {
    let mut canonical = BytesMut::new();
    let Ok(Some(written)) = normalise(frame, shape, &mut canonical) else {
        assert_ne!(shape.form, Form::Canonical);
        assert!(canonical.is_empty(), "a refused request leaves nothing");
        return;
    };
    assert_eq!((written.len, written.form), (canonical.len(), Form::Canonical));
    if shape.form == Form::Canonical {
        assert_eq!(&canonical[..], &frame[..shape.len]);
    }
    let request = Request::parse(&canonical).expect("a canonical request");
    let words: Vec<&[u8]> = request.args().collect();
    assert_eq!((words.len(), words[0]), (request.argc(), request.name()));
    assert_eq!(request.arg(1), words.get(1).copied());
    assert_eq!(encode::one_command(&words), canonical, "words put together are the request");
    let asked = classify(&request);
    if let Some(row) = asked.row {
        assert!(key_positions(row, &request).iter().all(|at| *at < words.len()), "a key is one of the words");
    }
    if let Class::Blocking(command) = asked.class
        && let Some(call) = blocking::parse(&request, command)
    {
        assert!(call.keys.iter().chain([&call.timeout_arg]).all(|at| *at < words.len()));
        let mut out = BytesMut::new();
        call.with_timeout(&request, std::time::Duration::from_millis(1500), &mut out);
        let with_timeout = Request::parse(&out).expect("the call with another timeout is a request");
        assert!(blocking::Call::same_shape(&request, &with_timeout), "it differs in its timeout alone");
        out.clear();
        blocking::Call::try_form(&canonical, &mut out);
        let found = scan_requests(&out, &RequestLimits::default(), || out.len());
        assert_eq!((found.frames.len(), found.rest), (3, out.len()), "MULTI, the call, EXEC");
    }
}

/// A stream of replies means the same whole and in pieces, is used up exactly, and every reply that is found can be read.
pub fn replies(data: &[u8]) {
    let mut input = Input::new(data);
    let mut cuts = Cuts::new(&mut input);
    let stream = input.rest();
    let whole = scan_replies(stream, || stream.len().max(1));
    let pieces = scan_replies(stream, || cuts.next());
    assert_eq!(whole, pieces, "cut and whole");
    let mut start = 0;
    for (end, kind) in whole.0 {
        read(&stream[start..end], kind);
        start = end;
    }
}

/// Where each reply ends and what it is, and what ended the stream.
fn scan_replies(
    stream: &[u8],
    mut piece: impl FnMut() -> usize,
) -> (Vec<(usize, ReplyKind)>, Option<ReplyError>) {
    let mut scanner = ReplyScanner::default();
    let (mut found, mut at, mut there) = (Vec::new(), 0, 0);
    while there < stream.len() {
        there = (there + piece()).min(stream.len());
        while at < there {
            match scanner.step(&stream[at..there]) {
                Ok(step) => {
                    assert!(step.consumed > 0 && at + step.consumed <= there, "{step:?}");
                    at += step.consumed;
                    match step.complete {
                        Some(kind) => found.push((at, kind)),
                        None => assert_eq!(at, there, "an unfinished reply takes all there is"),
                    }
                }
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

/// Reads one whole reply in every way there is.
fn read(frame: &[u8], kind: ReplyKind) {
    let _ = (bulk(frame), integer(frame), error_text(frame));
    assert_eq!(is_error(frame), matches!(kind, ReplyKind::Error | ReplyKind::BlobError), "{kind:?}");
    assert!(!is_null(frame) || kind == ReplyKind::Null);
    if let Some(parts) = elements(frame) {
        let length: usize = parts.map(<[u8]>::len).sum();
        assert!(length <= frame.len(), "elements are parts of their reply");
    }
    for protocol in [Protocol::Resp2, Protocol::Resp3] {
        let _ = decode(frame, protocol);
    }
    let mut out = BytesMut::new();
    downgrade(frame, &mut out);
    // Every byte of the original at most once, but for the header of each pair of a map, and nulls.
    assert!(out.len() <= 4 * frame.len() + 8, "{} bytes became {}", frame.len(), out.len());
}

/// A line of words is refused or becomes a request; the request's words, quoted, are the same line again.
pub fn inline(data: &[u8]) {
    let mut line = data.split(|byte| *byte == b'\n').next().unwrap_or_default().to_vec();
    line.push(b'\n');
    let Ok(RequestStep::Request(shape)) = RequestScanner::default().step(&line, &RequestLimits::default())
    else {
        return;
    };
    if shape.form != Form::Inline {
        return;
    }
    assert_eq!(shape.len, line.len());
    let mut canonical = BytesMut::new();
    let Ok(Some(_)) = normalise(&line, &shape, &mut canonical) else {
        assert!(canonical.is_empty());
        return;
    };
    let request = Request::parse(&canonical).expect("a canonical request");
    let quoted: String = request
        .args()
        .map(|word| word.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>())
        .map(|word| format!(" \"{word}\""))
        .collect();
    let again = format!("{quoted}\r\n").into_bytes();
    if again.len() > 64 << 10 {
        return;
    }
    let Ok(RequestStep::Request(shape)) = RequestScanner::default().step(&again, &RequestLimits::default())
    else {
        panic!("{quoted} is a request");
    };
    let mut out = BytesMut::new();
    assert!(matches!(normalise(&again, &shape, &mut out), Ok(Some(_))));
    assert_eq!(out, canonical);
}
