//! The way back for an element that was popped and cannot be delivered.

use bytes::BytesMut;

use super::super::Blocking;
use crate::resp::{Request, bulk, elements, encode};

/// The command that undoes `reply`, the whole reply of `request`.
pub(super) fn command(command: Blocking, request: &Request<'_>, reply: &[u8]) -> Option<BytesMut> {
    match command {
        Blocking::BLPop => push(b"LPUSH", reply),
        Blocking::BRPop => push(b"RPUSH", reply),
        Blocking::BLMPop => push_many(request, reply),
        Blocking::BZPopMin | Blocking::BZPopMax => add(reply),
        Blocking::BZMPop => add_many(reply),
        Blocking::BLMove | Blocking::BRPopLPush | Blocking::XRead | Blocking::XReadGroup => None,
    }
}

/// `[key, element]`
fn push(name: &[u8], reply: &[u8]) -> Option<BytesMut> {
    let mut parts = elements(reply)?;
    let (key, element) = (bulk(parts.next()?)?, bulk(parts.next()?)?);
    Some(encoded(&[name, key, element]))
}

/// `[key, [element, …]]`, in the order they were popped: the last one popped goes back first.
fn push_many(request: &Request<'_>, reply: &[u8]) -> Option<BytesMut> {
    let numkeys: usize = std::str::from_utf8(request.arg(2)?).ok()?.parse().ok()?;
    let side = request.arg(numkeys.checked_add(3)?)?;
    let name: &[u8] = if side.eq_ignore_ascii_case(b"left") { b"LPUSH" } else { b"RPUSH" };
    let mut parts = elements(reply)?;
    let key = bulk(parts.next()?)?;
    let mut popped: Vec<&[u8]> = elements(parts.next()?)?.map(bulk).collect::<Option<_>>()?;
    popped.reverse();
    with_values(&[name, key], &popped)
}

/// `[key, member, score]`
fn add(reply: &[u8]) -> Option<BytesMut> {
    let mut parts = elements(reply)?;
    let key = bulk(parts.next()?)?;
    let (member, score) = (bulk(parts.next()?)?, bulk(parts.next()?)?);
    with_values(&[b"ZADD", key, b"NX"], &[score, member])
}

/// `[key, [[member, score], …]]`
fn add_many(reply: &[u8]) -> Option<BytesMut> {
    let mut parts = elements(reply)?;
    let key = bulk(parts.next()?)?;
    let mut values = Vec::new();
    for pair in elements(parts.next()?)? {
        let mut pair = elements(pair)?;
        let (member, score) = (bulk(pair.next()?)?, bulk(pair.next()?)?);
        values.extend([score, member]);
    }
    with_values(&[b"ZADD", key, b"NX"], &values)
}

/// None when there are no values: the server would refuse the command.
fn with_values(head: &[&[u8]], values: &[&[u8]]) -> Option<BytesMut> {
    let words: Vec<&[u8]> = head.iter().chain(values).copied().collect();
    (!values.is_empty()).then(|| encoded(&words))
}

fn encoded(words: &[&[u8]]) -> BytesMut {
    let mut out = BytesMut::new();
    encode::command(&mut out, words);
    out
}
