//! Writing replies and commands.
//!
//! Everything appends to a buffer and cannot fail. Replies differ by protocol only where RESP3 has a type of its own;
//! maps are written header by header, because their order is part of what clients see and a decoded map has lost it.

use bytes::{BufMut, Bytes, BytesMut};

use super::Protocol;

/// `+text`. The text is ours: one line.
pub fn simple(out: &mut BytesMut, text: &str) {
    line(out, b'+', text);
}

/// `-text`, without the `-` in `text`. Line breaks become blanks, as in Redis.
pub fn error(out: &mut BytesMut, text: &str) {
    line(out, b'-', text);
}

/// `:value`
pub fn integer(out: &mut BytesMut, value: i64) {
    if value < 0 {
        out.put_slice(b":-");
    } else {
        out.put_u8(b':');
    }
    digits(out, value.unsigned_abs());
    out.put_slice(b"\r\n");
}

/// `$len` and the bytes.
pub fn bulk(out: &mut BytesMut, value: &[u8]) {
    out.reserve(value.len() + 16);
    header(out, b'$', value.len());
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// The null of a value: `$-1`, or `_`.
pub fn null(out: &mut BytesMut, protocol: Protocol) {
    out.put_slice(match protocol {
        Protocol::Resp2 => b"$-1\r\n",
        Protocol::Resp3 => b"_\r\n",
    });
}

/// The null of an array: `*-1`, or `_`.
pub fn null_array(out: &mut BytesMut, protocol: Protocol) {
    out.put_slice(match protocol {
        Protocol::Resp2 => b"*-1\r\n",
        Protocol::Resp3 => b"_\r\n",
    });
}

/// The header of an array; its `len` elements follow.
pub fn array(out: &mut BytesMut, len: usize) {
    header(out, b'*', len);
}

/// The header of a push, `len` elements follow. RESP2 has none: an array.
pub fn push(out: &mut BytesMut, protocol: Protocol, len: usize) {
    match protocol {
        Protocol::Resp2 => header(out, b'*', len),
        Protocol::Resp3 => header(out, b'>', len),
    }
}

/// The header of a set of RESP3; its `len` elements follow.
pub fn set(out: &mut BytesMut, len: usize) {
    header(out, b'~', len);
}

/// The header of a map; `pairs` keys and values follow. RESP2 has no maps: an array of twice as many.
pub fn map(out: &mut BytesMut, protocol: Protocol, pairs: usize) {
    match protocol {
        Protocol::Resp2 => header(out, b'*', pairs * 2),
        Protocol::Resp3 => header(out, b'%', pairs),
    }
}

/// A text for people: a bulk, or `=txt:`.
pub fn verbatim_txt(out: &mut BytesMut, protocol: Protocol, text: &str) {
    match protocol {
        Protocol::Resp2 => bulk(out, text.as_bytes()),
        Protocol::Resp3 => {
            out.reserve(text.len() + 24);
            header(out, b'=', text.len() + 4);
            out.put_slice(b"txt:");
            out.put_slice(text.as_bytes());
            out.put_slice(b"\r\n");
        }
    }
}

/// Lines of text for people: `=txt:`, and where there is none, an array with a bulk for each line, which `redis-cli` shows line
/// by line too.
pub fn lines(out: &mut BytesMut, protocol: Protocol, text: &str) {
    match protocol {
        Protocol::Resp2 => {
            array(out, text.lines().count());
            text.lines().for_each(|line| bulk(out, line.as_bytes()));
        }
        Protocol::Resp3 => verbatim_txt(out, protocol, text),
    }
}

/// A command: an array of bulks.
pub fn command(out: &mut BytesMut, arguments: &[&[u8]]) {
    array(out, arguments.len());
    for argument in arguments {
        bulk(out, argument);
    }
}

/// A whole command by itself ([`command`]).
#[must_use]
pub fn one_command(arguments: &[&[u8]]) -> Bytes {
    let mut out = BytesMut::new();
    command(&mut out, arguments);
    out.freeze()
}

/// A whole error reply by itself ([`error`]).
#[must_use]
pub fn one_error(text: &str) -> Bytes {
    let mut out = BytesMut::new();
    error(&mut out, text);
    out.freeze()
}

fn header(out: &mut BytesMut, marker: u8, number: usize) {
    out.put_u8(marker);
    digits(out, number as u64);
    out.put_slice(b"\r\n");
}

/// One line; a line break in the text would end the frame early, so it becomes a blank.
fn line(out: &mut BytesMut, marker: u8, text: &str) {
    out.reserve(text.len() + 3);
    out.put_u8(marker);
    for part in text.split_inclusive(['\r', '\n']) {
        match part.strip_suffix(['\r', '\n']) {
            Some(text) => {
                out.put_slice(text.as_bytes());
                out.put_u8(b' ');
            }
            None => out.put_slice(part.as_bytes()),
        }
    }
    out.put_slice(b"\r\n");
}

/// A number in decimal.
fn digits(out: &mut BytesMut, mut value: u64) {
    let mut text = [0u8; 20]; // u64::MAX has 20 digits
    let mut used = 0;
    for slot in text.iter_mut().rev() {
        *slot = b'0' + (value % 10) as u8;
        used += 1;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.put_slice(text.get(text.len() - used..).unwrap_or_default());
}
