//! Parts and values of whole replies, and writing.

use bytes::BytesMut;
use redis_protocol::resp3::types::BytesFrame;

use super::super::{
    DecodeError, MAX_DEPTH, Protocol, Request, bulk, decode, elements, encode, error_text, integer, is_error,
    is_null,
};

/// What `write` appends.
fn written(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    write(&mut out);
    out.to_vec()
}

fn texts(frame: &[u8]) -> Option<Vec<&str>> {
    elements(frame).map(|parts| parts.map(|part| std::str::from_utf8(part).unwrap()).collect())
}

#[test]
fn elements_are_whole_frames_of_the_first_level() {
    assert_eq!(
        texts(b"*3\r\n$1\r\na\r\n*1\r\n:1\r\n$-1\r\n"),
        Some(vec!["$1\r\na\r\n", "*1\r\n:1\r\n", "$-1\r\n"])
    );
    assert_eq!(texts(b"%1\r\n+k\r\n~1\r\n:1\r\n"), Some(vec!["+k\r\n", "~1\r\n:1\r\n"]));
    assert_eq!(texts(b">1\r\n|1\r\n+a\r\n+b\r\n:1\r\n"), Some(vec!["|1\r\n+a\r\n+b\r\n:1\r\n"]));
    assert_eq!(texts(b"|1\r\n+a\r\n+b\r\n*1\r\n:1\r\n"), Some(vec![":1\r\n"]));
    assert_eq!(texts(b"*0\r\n"), Some(vec![]));
    for other in [&b"*-1\r\n"[..], b"_\r\n", b"$1\r\na\r\n", b"+a\r\n", b"", b"*"] {
        assert_eq!(texts(other), None);
    }
    // Fewer elements than announced end early, whatever was announced.
    assert_eq!(elements(b"*9223372036854775807\r\n:1\r\n").unwrap().count(), 1);
    assert_eq!(elements(b"*9223372036854775807\r\n:1\r\n").unwrap().size_hint(), (0, Some(1)));
}

#[test]
fn values_are_read_where_they_lie() {
    for (frame, text) in [
        (&b"$3\r\nf\r\n\r\n"[..], Some(&b"f\r\n"[..])),
        (b"$0\r\n\r\n", Some(b"")),
        (b"+OK\r\n", Some(b"OK")),
        (b"=8\r\ntxt:some\r\n", Some(b"some")),
        (b",1.50\r\n", Some(b"1.50")),
        (b"(123\r\n", Some(b"123")),
        (b"|1\r\n+a\r\n+b\r\n+OK\r\n", Some(b"OK")),
        (b"$-1\r\n", None),
        (b"-ERR\r\n", None),
        (b":1\r\n", None),
        (b"*0\r\n", None),
        (b"_\r\n", None),
        (b"", None),
    ] {
        assert_eq!(bulk(frame), text, "{frame:?}");
    }
    assert_eq!(integer(b":-42\r\n"), Some(-42));
    assert_eq!(integer(b"|1\r\n+a\r\n+b\r\n:9223372036854775807\r\n"), Some(i64::MAX));
    assert_eq!(integer(b"$1\r\n1\r\n"), None);
    for null in [&b"$-1\r\n"[..], b"*-1\r\n", b"_\r\n", b"|0\r\n_\r\n"] {
        assert!(is_null(null));
    }
    assert!(!is_null(b"*0\r\n") && !is_null(b"$0\r\n\r\n") && !is_null(b""));
    assert_eq!(error_text(b"-ERR a b\r\n"), Some(&b"ERR a b"[..]));
    assert_eq!(error_text(b"!3\r\nERR\r\n"), Some(&b"ERR"[..]));
    assert_eq!(error_text(b"+OK\r\n"), None);
    assert!(is_error(b"-ERR\r\n") && is_error(b"!3\r\nERR\r\n") && is_error(b"|0\r\n-E\r\n"));
    assert!(!is_error(b"+OK\r\n") && !is_error(b""));
}

#[test]
fn replies_are_written_for_the_protocol_of_the_client() {
    use Protocol::{Resp2, Resp3};
    for (bytes, expected) in [
        (written(|out| encode::simple(out, "OK")), "+OK\r\n"),
        (written(|out| encode::error(out, "ERR a\r\nb\n")), "-ERR a  b \r\n"),
        (written(|out| encode::integer(out, 0)), ":0\r\n"),
        (written(|out| encode::integer(out, i64::MIN)), ":-9223372036854775808\r\n"),
        (written(|out| encode::integer(out, i64::MAX)), ":9223372036854775807\r\n"),
        (written(|out| encode::bulk(out, b"a\r\nb")), "$4\r\na\r\nb\r\n"),
        (written(|out| encode::bulk(out, b"")), "$0\r\n\r\n"),
        (written(|out| encode::null(out, Resp2)), "$-1\r\n"),
        (written(|out| encode::null(out, Resp3)), "_\r\n"),
        (written(|out| encode::null_array(out, Resp2)), "*-1\r\n"),
        (written(|out| encode::null_array(out, Resp3)), "_\r\n"),
        (written(|out| encode::array(out, 10)), "*10\r\n"),
        (written(|out| encode::map(out, Resp2, 7)), "*14\r\n"),
        (written(|out| encode::map(out, Resp3, 7)), "%7\r\n"),
        (written(|out| encode::verbatim_txt(out, Resp2, "a b")), "$3\r\na b\r\n"),
        (written(|out| encode::verbatim_txt(out, Resp3, "a b")), "=7\r\ntxt:a b\r\n"),
        (written(|out| encode::command(out, &[b"GET", b"k"])), "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"),
    ] {
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }
    assert_eq!((Resp2.number(), Resp3.number(), Protocol::default()), (2, 3, Resp2));
}

#[test]
fn a_written_command_reads_back_as_it_was() {
    let long = vec![b'x'; 100_000];
    let arguments: [&[u8]; 4] = [b"SET", b"", b"\r\n$3\r\n", &long];
    let bytes = written(|out| encode::command(out, &arguments));
    let request = Request::parse(&bytes).unwrap();
    assert_eq!(request.args().collect::<Vec<_>>(), arguments);
}

#[test]
fn values_are_decoded_in_either_protocol() {
    let frame = decode(b"*2\r\n$1\r\na\r\n$-1\r\n", Protocol::Resp2).unwrap();
    let BytesFrame::Array { data, .. } = frame else { panic!("{frame:?}") };
    assert_eq!(data.len(), 2);
    assert_eq!(data[1], BytesFrame::Null);
    let frame = decode(b"%1\r\n+k\r\n,1.5\r\n", Protocol::Resp3).unwrap();
    assert!(matches!(frame, BytesFrame::Map { data, .. } if data.len() == 1));
    assert_eq!(decode(b"$-1\r\n", Protocol::Resp3), Ok(BytesFrame::Null));
    assert_eq!(decode(b"*-1\r\n", Protocol::Resp2), Ok(BytesFrame::Null));
    // A published message stays the array that it is.
    let message = b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n";
    assert!(
        matches!(decode(message, Protocol::Resp2), Ok(BytesFrame::Array { data, .. }) if data.len() == 3)
    );
    assert_eq!(decode(b"+OK\r\n+OK\r\n", Protocol::Resp2), Err(DecodeError::NotWhole));
    assert_eq!(decode(b"+OK\r", Protocol::Resp2), Err(DecodeError::NotWhole));
    assert_eq!(decode(b"$3\r\nfooXX", Protocol::Resp2), Err(DecodeError::NotWhole));
    assert_eq!(decode(b"=5\r\nabc:x\r\n", Protocol::Resp3), Err(DecodeError::Malformed));
    assert_eq!(decode(b"-\xff\r\n", Protocol::Resp2), Err(DecodeError::Malformed));
}

#[test]
fn a_frame_too_deep_is_not_decoded() {
    let nested = |depth: usize, header: &[u8]| [header.repeat(depth), b":1\r\n".to_vec()].concat();
    assert_eq!(decode(&nested(10_000, b"*1\r\n"), Protocol::Resp2), Err(DecodeError::TooDeep));
    assert_eq!(decode(&nested(10_000, b"%1\r\n+k\r\n"), Protocol::Resp3), Err(DecodeError::TooDeep));
    assert!(decode(&nested(MAX_DEPTH - 1, b"*1\r\n"), Protocol::Resp2).is_ok());
    assert_eq!(decode(&nested(MAX_DEPTH, b"*1\r\n"), Protocol::Resp2), Err(DecodeError::TooDeep));
    // Wide is not deep.
    let wide = [b"*1000\r\n".to_vec(), b"*1\r\n*0\r\n".repeat(1_000)].concat();
    assert!(decode(&wide, Protocol::Resp2).is_ok());
    // Depth inside attributes counts as well: their values are decoded like any other.
    let attributes = [b"|1\r\n+k\r\n".to_vec(), nested(10_000, b"*1\r\n"), b"+OK\r\n".to_vec()].concat();
    assert_eq!(decode(&attributes, Protocol::Resp3), Err(DecodeError::TooDeep));
    // So does a chain of attributes, each of which the decoder enters before the frame behind it.
    let chain = [b"*1\r\n|1\r\n+k\r\n".repeat(10_000), b":1\r\n:1\r\n".repeat(10_000)].concat();
    assert!(decode(&chain, Protocol::Resp3).is_err());
}
