//! Replies: kinds, ends, and what counts as out of step.

use super::super::{ReplyError, ReplyKind, ReplyScanner, ReplyStep};

/// Kinds of all frames in `bytes`, which are fed in pieces of `size`; panics on what is left unfinished.
fn kinds(bytes: &[u8], size: usize) -> Result<Vec<ReplyKind>, ReplyError> {
    let mut scanner = ReplyScanner::default();
    let mut found = Vec::new();
    for mut piece in bytes.chunks(size) {
        while !piece.is_empty() {
            let step = scanner.step(piece)?;
            assert!(step.consumed > 0 && step.consumed <= piece.len());
            assert!(step.complete.is_some() || step.consumed == piece.len());
            assert_eq!(scanner.in_frame(), step.complete.is_none());
            piece = &piece[step.consumed..];
            found.extend(step.complete);
        }
    }
    assert!(!scanner.in_frame(), "{:?} unfinished", String::from_utf8_lossy(bytes));
    Ok(found)
}

#[test]
fn every_type_of_frame_is_found_however_it_is_cut() {
    for (bytes, kind) in [
        ("+OK\r\n", ReplyKind::Simple),
        ("+\r\n", ReplyKind::Simple),
        ("+a\rb\nc\r\r\n", ReplyKind::Simple),
        ("-ERR x\r\n", ReplyKind::Error),
        (":1\r\n", ReplyKind::Integer),
        (":-9223372036854775808\r\n", ReplyKind::Integer),
        ("$0\r\n\r\n", ReplyKind::Bulk),
        ("$3\r\nf\r\n\r\n", ReplyKind::Bulk),
        ("$-1\r\n", ReplyKind::Null),
        ("*-1\r\n", ReplyKind::Null),
        ("_\r\n", ReplyKind::Null),
        ("*0\r\n", ReplyKind::Array),
        ("*2\r\n$-1\r\n*-1\r\n", ReplyKind::Array),
        ("*2\r\n*1\r\n*0\r\n$1\r\na\r\n", ReplyKind::Array),
        (",1.5\r\n", ReplyKind::Double),
        (",-inf\r\n", ReplyKind::Double),
        ("#t\r\n", ReplyKind::Boolean),
        ("#f\r\n", ReplyKind::Boolean),
        ("(12345678901234567890123\r\n", ReplyKind::BigNumber),
        ("!5\r\nERR x\r\n", ReplyKind::BlobError),
        ("=5\r\ntxt:x\r\n", ReplyKind::Verbatim),
        ("%2\r\n+a\r\n:1\r\n+b\r\n%1\r\n_\r\n*0\r\n", ReplyKind::Map),
        ("%0\r\n", ReplyKind::Map),
        ("~2\r\n:1\r\n*1\r\n:2\r\n", ReplyKind::Set),
        (">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n", ReplyKind::Push),
        // An attribute belongs to what follows: before the reply, twice, around a null, inside an aggregate.
        ("|1\r\n+k\r\n*2\r\n:1\r\n:2\r\n+OK\r\n", ReplyKind::Simple),
        ("|1\r\n+k\r\n+v\r\n|1\r\n+k\r\n+v\r\n$-1\r\n", ReplyKind::Null),
        ("|0\r\n>1\r\n+x\r\n", ReplyKind::Push),
        ("*2\r\n|1\r\n+k\r\n%1\r\n+a\r\n+b\r\n:1\r\n:2\r\n", ReplyKind::Array),
        ("|1\r\n+k\r\n|1\r\n+k\r\n+v\r\n+v\r\n:7\r\n", ReplyKind::Integer),
    ] {
        let twice = [bytes.as_bytes(), bytes.as_bytes()].concat();
        for size in 1..=twice.len() {
            assert_eq!(kinds(&twice, size).as_deref(), Ok(&[kind, kind][..]), "{bytes:?} by {size}");
        }
    }
}

#[test]
fn whatever_does_not_fit_the_protocol_is_out_of_step() {
    for (bytes, error) in [
        ("X", ReplyError::UnknownType(b'X')),
        ("\r\n", ReplyError::UnknownType(b'\r')),
        ("*1\r\nHTTP", ReplyError::UnknownType(b'H')),
        ("$-2\r\n", ReplyError::BadLength),
        ("*-2\r\n", ReplyError::BadLength),
        ("$-\r\n", ReplyError::BadLength),
        ("$\r\n", ReplyError::BadLength),
        ("$+1\r\n", ReplyError::BadLength),
        ("$01\r\n", ReplyError::BadLength),
        ("$00\r\n", ReplyError::BadLength),
        ("$1x\r\n", ReplyError::BadLength),
        ("$ 1\r\n", ReplyError::BadLength),
        ("%-1\r\n", ReplyError::BadLength),
        ("~-1\r\n", ReplyError::BadLength),
        (">-1\r\n", ReplyError::BadLength),
        ("!-1\r\n", ReplyError::BadLength),
        ("|-1\r\n", ReplyError::BadLength),
        ("=3\r\nabc\r\n", ReplyError::BadLength),
        ("$9223372036854775808\r\n", ReplyError::BadLength),
        ("$99999999999999999999\r\n", ReplyError::BadLength),
        ("*18446744073709551616\r\n", ReplyError::BadLength),
        (
            "*9223372036854775807\r\n*9223372036854775807\r\n*9223372036854775807\r\n",
            ReplyError::TooManyElements,
        ),
        ("*2\r\n%9223372036854775807\r\n%9223372036854775807\r\n", ReplyError::TooManyElements),
        ("$1\rX", ReplyError::MissingLineEnd),
        ("$3\r\nfooXX", ReplyError::MissingLineEnd),
        ("$3\r\nfoo\rX", ReplyError::MissingLineEnd),
        ("_x\r\n", ReplyError::MissingLineEnd),
        ("#tt\r\n", ReplyError::MissingLineEnd),
        ("#x\r\n", ReplyError::BadValue),
        (":\r\n", ReplyError::BadValue),
        (":-\r\n", ReplyError::BadValue),
        (":1a\r\n", ReplyError::BadValue),
        (":9223372036854775808\r\n", ReplyError::BadValue),
        ("$?\r\n", ReplyError::Streamed),
        ("*?\r\n", ReplyError::Streamed),
        (";1\r\n", ReplyError::Streamed),
        (".\r\n", ReplyError::Streamed),
    ] {
        for size in 1..=bytes.len() {
            assert_eq!(kinds(bytes.as_bytes(), size), Err(error), "{bytes:?} by {size}");
        }
    }
    assert_eq!(kinds(b":-9223372036854775808\r\n", 1), Ok(vec![ReplyKind::Integer]));
}

#[test]
fn the_kind_is_known_as_soon_as_the_reply_begins() {
    let mut scanner = ReplyScanner::default();
    assert!(!scanner.in_frame());
    assert_eq!(scanner.step(b"|1\r\n+k\r\n"), Ok(ReplyStep { consumed: 8, complete: None }));
    assert_eq!((scanner.kind(), scanner.in_frame()), (None, true));
    assert_eq!(scanner.step(b"+v\r\n>"), Ok(ReplyStep { consumed: 5, complete: None }));
    assert_eq!(scanner.kind(), Some(ReplyKind::Push));
    assert_eq!(
        scanner.step(b"1\r\n:1\r\n:2"),
        Ok(ReplyStep { consumed: 7, complete: Some(ReplyKind::Push) })
    );
    assert_eq!((scanner.kind(), scanner.in_frame()), (None, false));
    assert_eq!(scanner.step(b""), Ok(ReplyStep { consumed: 0, complete: None }));
    assert!(!scanner.in_frame());
    scanner.step(b"$-").unwrap();
    assert_eq!(scanner.kind(), Some(ReplyKind::Bulk));
    assert_eq!(scanner.step(b"1\r\n").unwrap().complete, Some(ReplyKind::Null));
}

#[test]
fn a_huge_reply_needs_no_memory_and_no_arithmetic_beyond_64_bits() {
    let mut scanner = ReplyScanner::default();
    assert_eq!(scanner.step(b"$9223372036854775807\r\n").unwrap().complete, None);
    let chunk = [0u8; 4096];
    for _ in 0..16 {
        assert_eq!(scanner.step(&chunk), Ok(ReplyStep { consumed: 4096, complete: None }));
    }
    assert!(scanner.in_frame());
}

#[test]
fn nesting_of_any_depth_is_scanned() {
    let mut deep = b"*1\r\n".repeat(10_000);
    deep.extend_from_slice(b":1\r\n");
    assert_eq!(kinds(&deep, 1_460), Ok(vec![ReplyKind::Array]));
    let mut maps = b"%1\r\n+k\r\n".repeat(10_000);
    maps.extend_from_slice(b"|1\r\n+a\r\n+b\r\n_\r\n");
    assert_eq!(kinds(&maps, 7), Ok(vec![ReplyKind::Map]));
}

#[test]
fn an_array_that_is_opened_ends_with_its_header_and_its_elements_follow() {
    let bytes =
        b"|1\r\n+k\r\n*1\r\n:1\r\n*3\r\n*2\r\n:1\r\n:2\r\n|1\r\n+a\r\n+b\r\n$2\r\nab\r\n%1\r\n+k\r\n*0\r\n";
    for size in 1..=bytes.len() {
        let mut scanner = ReplyScanner::default();
        let (mut found, mut opened, mut opens) = (Vec::new(), Vec::new(), true);
        for mut chunk in bytes.chunks(size) {
            while !chunk.is_empty() {
                if !scanner.in_frame() {
                    scanner.open_arrays(opens);
                }
                let step = scanner.step(chunk).unwrap();
                chunk = &chunk[step.consumed..];
                found.extend(step.complete);
                if let Some(len) = scanner.opened() {
                    opened.push(len);
                    // Those among the elements are whole replies.
                    opens = false;
                }
            }
        }
        assert_eq!(opened, [3], "by {size}");
        let expected = [ReplyKind::Array, ReplyKind::Array, ReplyKind::Bulk, ReplyKind::Map];
        assert_eq!(found, expected, "by {size}");
    }
    for (bytes, opened, kind) in [
        (&b"*0\r\n"[..], Some(0), ReplyKind::Array),
        (b"*-1\r\n", None, ReplyKind::Null),
        (b"_\r\n", None, ReplyKind::Null),
        (b">1\r\n:1\r\n", None, ReplyKind::Push),
        (b"-EXECABORT x\r\n", None, ReplyKind::Error),
    ] {
        let mut scanner = ReplyScanner::default();
        scanner.open_arrays(true);
        let step = scanner.step(bytes).unwrap();
        assert_eq!((step.complete, scanner.opened(), scanner.opened()), (Some(kind), opened, None));
    }
}
