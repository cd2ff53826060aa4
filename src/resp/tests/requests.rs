//! Requests: every case was sent to redis-server 7.0.15 and is expected to be taken as it was there.

use bytes::BytesMut;

use super::super::{Form, Request, RequestError, RequestLimits, RequestScanner, RequestStep, normalise};
use super::{scan, unauthenticated};

/// The reply text of an error, `None` for a silent close; panics when the bytes are not an error.
fn refusal(bytes: &[u8], limits: &RequestLimits) -> Option<String> {
    match RequestScanner::default().step(bytes, limits) {
        Err(error) => error.reply(),
        // Quotes and the name of an inline request are looked at when it is written anew.
        Ok(RequestStep::Request(shape)) => {
            normalise(bytes, &shape, &mut BytesMut::new()).unwrap_err().reply()
        }
        Ok(other) => panic!("{:?}: {other:?}", String::from_utf8_lossy(bytes)),
    }
}

/// The arguments Redis would see.
fn arguments(bytes: &[u8]) -> Vec<Vec<u8>> {
    let RequestStep::Request(shape) = scan(bytes).unwrap() else { panic!("{bytes:?}") };
    assert_eq!(shape.len, bytes.len());
    let mut out = BytesMut::from("before");
    let shape = normalise(bytes, &shape, &mut out).unwrap().unwrap();
    let request = Request::new(out.get(6..).unwrap(), &shape);
    assert_eq!(Request::parse(request.bytes()).unwrap().argc(), request.argc());
    request.args().map(<[u8]>::to_vec).collect()
}

#[test]
fn protocol_errors_are_told_in_the_words_of_redis() {
    let long = "1".repeat(65_537);
    let (count, bulk, text) = (format!("*{long}"), format!("*1\r\n${long}"), "A".repeat(65_537));
    for (bytes, words) in [
        ("*00\r\n", "invalid multibulk length"),
        ("*+1\r\n", "invalid multibulk length"),
        ("*-\r\n", "invalid multibulk length"),
        ("*\r\n", "invalid multibulk length"),
        ("*1 \r\n", "invalid multibulk length"),
        ("*1\n$4\r\nPING\r\n", "invalid multibulk length"),
        ("*2147483648\r\n", "invalid multibulk length"),
        ("*99999999999999999999\r\n", "invalid multibulk length"),
        ("*1\r\nFOO\r\n", "expected '$', got 'F'"),
        ("*1\r\n\r\n", "expected '$', got ' '"),
        ("*1\r\n\n\r\n", "expected '$', got ' '"),
        ("*1\r\n\t\r\n", "expected '$', got '\t'"),
        ("*3\r\n$3\r\nfoo\r\n*1\r\n", "expected '$', got '*'"),
        ("*1\r\n$-1\r\n", "invalid bulk length"),
        ("*1\r\n$01\r\n", "invalid bulk length"),
        ("*1\r\n$+1\r\n", "invalid bulk length"),
        ("*1\r\n$-\r\n", "invalid bulk length"),
        ("*1\r\n$\r\n", "invalid bulk length"),
        ("*1\r\n$536870913\r\n", "invalid bulk length"),
        ("*1\r\n$9223372036854775808\r\n", "invalid bulk length"),
        ("ECHO \"abc\r\n", "unbalanced quotes in request"),
        ("ECHO \"abc\"d\r\n", "unbalanced quotes in request"),
        ("ECHO 'abc\n", "unbalanced quotes in request"),
        ("ECHO 'a'b\n", "unbalanced quotes in request"),
        (&count, "too big mbulk count string"),
        (&bulk, "too big bulk count string"),
        (&text, "too big inline request"),
    ] {
        let reply = refusal(bytes.as_bytes(), &RequestLimits::default());
        assert_eq!(reply.unwrap(), format!("-ERR Protocol error: {words}\r\n"), "{bytes:.40?}");
    }
    let beyond_ascii = refusal(b"*1\r\n\xff\r\n", &RequestLimits::default()).unwrap();
    assert_eq!(beyond_ascii, "-ERR Protocol error: expected '$', got '?'\r\n");
}

#[test]
fn before_authentication_a_request_has_ten_arguments_of_16_kib() {
    for (bytes, words) in [
        ("*11\r\n", "unauthenticated multibulk length"),
        ("*2147483648\r\n", "invalid multibulk length"),
        ("*1\r\n$16385\r\n", "unauthenticated bulk length"),
        ("*1\r\n$536870913\r\n", "invalid bulk length"),
    ] {
        let reply = refusal(bytes.as_bytes(), &unauthenticated());
        assert_eq!(reply.unwrap(), format!("-ERR Protocol error: {words}\r\n"), "{bytes:?}");
    }
    for bytes in ["*10\r\n", "*1\r\n$16384\r\n"] {
        let step = RequestScanner::default().step(bytes.as_bytes(), &unauthenticated()).unwrap();
        assert!(matches!(step, RequestStep::Incomplete { .. }), "{bytes:?}");
    }
    // A request that began before the login and ends after it is read on by the limits of its end.
    let mut scanner = RequestScanner::default();
    assert!(matches!(scanner.step(b"*2\r\n", &unauthenticated()), Ok(RequestStep::Incomplete { .. })));
    let step = scanner.step(b"*2\r\n$20000\r\n", &RequestLimits::default());
    assert_eq!(step, Ok(RequestStep::Incomplete { need: 20_002 }));
}

#[test]
fn requests_for_nothing_are_answered_by_nothing() {
    for bytes in
        ["*0\r\n", "*-1\r\n", "*-10\r\n", "*-2147483649\r\n", "*0\rX", "\r\n", "\n", "   \r\n", "\x0b\r\n"]
    {
        assert_eq!(scan(bytes.as_bytes()), Ok(RequestStep::Nothing { len: bytes.len() }), "{bytes:?}");
    }
}

#[test]
fn what_is_not_whole_waits() {
    for bytes in [
        "",
        "*",
        "*1048577\r\n",
        "*2147483647\r\n",
        "*1\r\nFOO",
        "*1\r\n\0\r\n",
        "*1\0\r\n",
        "*1\r\n$536870912\r\n",
        "*1\r\n$4\r",
        "*1\r\n$4\r\nPING\r",
        "PING",
        "PI\0NG\r\n",
    ] {
        assert!(matches!(scan(bytes.as_bytes()), Ok(RequestStep::Incomplete { need: 1.. })), "{bytes:?}");
    }
    assert_eq!(scan(b"*1\r\n$10\r\nabc"), Ok(RequestStep::Incomplete { need: 9 }));
    let (line, count) = ("A".repeat(65_536), format!("*{}", "1".repeat(65_535)));
    assert_eq!(scan(line.as_bytes()), Ok(RequestStep::Incomplete { need: 1 }));
    assert_eq!(scan(count.as_bytes()), Ok(RequestStep::Incomplete { need: 1 }));
}

#[test]
fn a_browser_is_closed_on_silently_in_any_framing() {
    for bytes in [
        "POST / HTTP/1.1\r\n",
        "post\r\n",
        "hOst: x\r\n",
        "\"POST\" x\r\n",
        "*1\r\n$4\r\npOSt\r\n",
        "*2\r\n$5\r\nHost:\r\n$1\r\na\r\n",
        "*1\r\n$6\r\npost\0a\r\n",
        "*1\r\n$4\rXPOST\r\n",
    ] {
        assert_eq!(refusal(bytes.as_bytes(), &unauthenticated()), None, "{bytes:?}");
    }
    for bytes in ["*1\r\n$6\r\nhost:a\r\n", "*1\r\n$5\r\nposts\r\n", "*1\r\n$4\r\nhost\r\n", "postal x\r\n"] {
        assert!(matches!(scan(bytes.as_bytes()), Ok(RequestStep::Request(_))), "{bytes:?}");
    }
}

#[test]
fn a_request_beyond_the_limit_is_closed_on_silently_when_it_is_announced() {
    let limits = RequestLimits { max_request: 100, ..RequestLimits::default() };
    assert_eq!(refusal(b"*1\r\n$100\r\n", &limits), None);
    assert_eq!(refusal(format!("{}\r\n", "A".repeat(99)).as_bytes(), &limits), None);
    // 4 + 5 + 89 + 2 bytes are exactly the limit.
    let exact = format!("*1\r\n$89\r\n{}\r\n", "x".repeat(89));
    let step = RequestScanner::default().step(exact.as_bytes(), &limits);
    assert!(matches!(step, Ok(RequestStep::Request(shape)) if shape.len == 100));
    // However large the limits: positions stay within 32 bits.
    let limits = RequestLimits { max_bulk: u64::MAX, max_request: usize::MAX, ..RequestLimits::default() };
    for bytes in ["*1\r\n$9223372036854775807\r\n", "*1\r\n$4294967295\r\n"] {
        let step = RequestScanner::default().step(bytes.as_bytes(), &limits);
        assert_eq!(step, Err(RequestError::TooLarge), "{bytes:?}");
    }
}

#[test]
fn words_of_a_line_are_split_as_redis_splits_them() {
    for (line, words) in [
        ("PING\r\n", &["PING"][..]),
        ("PING\n", &["PING"]),
        ("ping\r\r\n", &["ping"]),
        ("  PING \t \r\n", &["PING"]),
        ("ECHO \"a\\x41\\n\" \r\n", &["ECHO", "aA\n"]),
        ("ECHO \"\\r\\t\\b\\a\\q\\\"\\\\\"\r\n", &["ECHO", "\r\t\x08\x07q\"\\"]),
        ("ECHO \"\\x4\\xzz\"\r\n", &["ECHO", "x4xzz"]),
        ("ECHO 'it\\'s' '\\n'\r\n", &["ECHO", "it's", "\\n"]),
        ("ECHO a\"b c\"\r\n", &["ECHO", "ab c"]),
        ("ECHO a'b c'\r\n", &["ECHO", "ab c"]),
        ("ECHO a\x0bb\r\n", &["ECHO", "a\x0bb"]),
        ("\x0bECHO\x0ba\r\n", &["ECHO\x0ba"]),
        ("ECHO \"a\"\x0bb\r\n", &["ECHO", "a", "b"]),
        ("ECHO a\rb\r\n", &["ECHO", "a", "b"]),
        ("ECHO \"\"\r\n", &["ECHO", ""]),
        ("\"\"\r\n", &[""]),
        ("\"P\\x4fS\" x\r\n", &["POS", "x"]),
    ] {
        let words: Vec<_> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        assert_eq!(arguments(line.as_bytes()), words, "{line:?}");
    }
}

#[test]
fn odd_line_ends_are_accepted_and_written_anew() {
    for bytes in [
        "*1\rX$4\r\nPING\r\n",
        "*1\r\n$4\rZPING\r\n",
        "*1\r\n$4\r\nPINGXY",
        "*1\r\r$4\r\rPING\r\r",
        "*1\r\n$4\r\nPING\n\r",
    ] {
        let RequestStep::Request(shape) = scan(bytes.as_bytes()).unwrap() else { panic!("{bytes:?}") };
        assert_eq!(shape.form, Form::Loose, "{bytes:?}");
        let mut out = BytesMut::new();
        let written = normalise(bytes.as_bytes(), &shape, &mut out).unwrap().unwrap();
        assert_eq!(&out[..], b"*1\r\n$4\r\nPING\r\n", "{bytes:?}");
        assert_eq!(written.form, Form::Canonical);
    }
    assert_eq!(arguments(b"*2\r\n$4\rXEC\r\nab$0\r\nQQ"), [b"EC\r\n".to_vec(), Vec::new()]);
}

#[test]
fn name_and_first_argument_are_where_the_frame_says() {
    let bytes = b"*3\r\n$3\r\nSET\r\n$5\r\nk\r\ney\r\n$0\r\n\r\nrest";
    let RequestStep::Request(shape) = scan(bytes).unwrap() else { panic!() };
    assert_eq!((shape.len, shape.argc, shape.form), (bytes.len() - 4, 3, Form::Canonical));
    let request = Request::new(bytes, &shape);
    assert_eq!(request.name(), b"SET");
    assert_eq!(request.argc(), 3);
    assert_eq!(request.arg(0), Some(&b"SET"[..]));
    assert_eq!(request.arg(1), Some(&b"k\r\ney"[..]));
    assert_eq!(request.arg(2), Some(&b""[..]));
    assert_eq!(request.arg(3), None);
    assert_eq!(request.args().len(), 3);
    assert_eq!(request.bytes(), &bytes[..shape.len]);
    assert!(Request::parse(bytes).is_none(), "more than one frame");
    assert!(Request::parse(b"PING\r\n").is_none(), "inline");
    assert!(Request::parse(b"*1\r\n$4\r\nPINGXY").is_none(), "loose");
    assert!(Request::parse(b"*1\r\n$4\r\nPI").is_none(), "incomplete");
}
