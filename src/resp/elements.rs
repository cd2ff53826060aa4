//! The parts of one whole reply, as views into its bytes.
//!
//! These are for frames that the scanner has delimited. Leading attributes are stepped over: they say something
//! about the reply, they are not it.

use super::number::string2ll;
use super::reply::ReplyScanner;

/// Iterator over the first-level elements of an aggregate, each the bytes of a whole frame.
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    rest: &'a [u8],
    left: u64,
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let (element, rest) = split_frame(self.rest)?;
        self.rest = rest;
        Some(element)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // The shortest frame takes three bytes, so a made-up count promises no more than the bytes can hold.
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(self.rest.len() / 3);
        (0, Some(most))
    }
}

/// The elements of a whole array, set, push or map (key, value, key, …); `None` for anything else, nulls included.
pub fn elements(frame: &[u8]) -> Option<Elements<'_>> {
    let frame = without_attributes(frame)?;
    let (number, rest) = header_line(frame)?;
    let count = u64::try_from(number).ok()?;
    let left = match frame.first()? {
        b'*' | b'~' | b'>' => count,
        b'%' => count.checked_mul(2)?,
        _ => return None,
    };
    Some(Elements { rest, left })
}

/// The text of a whole bulk, simple string, verbatim string (without its format), double or big number; `None` for
/// anything else.
pub fn bulk(frame: &[u8]) -> Option<&[u8]> {
    let frame = without_attributes(frame)?;
    match frame.first()? {
        b'$' => payload(frame),
        b'=' => payload(frame)?.get(4..),
        b'+' | b',' | b'(' => line(frame),
        _ => None,
    }
}

/// The value of a whole `:n`.
pub fn integer(frame: &[u8]) -> Option<i64> {
    let frame = without_attributes(frame)?;
    match frame.first()? {
        b':' => std::str::from_utf8(line(frame)?).ok()?.parse().ok(),
        _ => None,
    }
}

/// Whether a whole frame is a null: `_`, `$-1` or `*-1`.
pub fn is_null(frame: &[u8]) -> bool {
    matches!(without_attributes(frame), Some(b"_\r\n" | b"$-1\r\n" | b"*-1\r\n"))
}

/// Whether a whole frame is an error: `-` or `!`.
pub fn is_error(frame: &[u8]) -> bool {
    matches!(without_attributes(frame).and_then(<[u8]>::first), Some(b'-' | b'!'))
}

/// The text of a whole error frame, without its marker (`ERR …`, `NOAUTH …`); `None` for anything else.
pub fn error_text(frame: &[u8]) -> Option<&[u8]> {
    let frame = without_attributes(frame)?;
    match frame.first()? {
        b'-' => line(frame),
        b'!' => payload(frame),
        _ => None,
    }
}

/// The frame behind its leading attributes.
pub(super) fn without_attributes(mut frame: &[u8]) -> Option<&[u8]> {
    while let [b'|', ..] = frame {
        let (number, mut rest) = header_line(frame)?;
        for _ in 0..u64::try_from(number).ok()?.checked_mul(2)? {
            rest = split_frame(rest)?.1;
        }
        frame = rest;
    }
    Some(frame)
}

/// A frame's number and what follows its header line.
pub(super) fn header_line(frame: &[u8]) -> Option<(i64, &[u8])> {
    let end = memchr::memchr(b'\r', frame)?;
    Some((string2ll(frame.get(1..end)?)?, frame.get(end + 2..)?))
}

/// The first whole frame of `bytes`, its attributes included, and what follows it.
pub(super) fn split_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let step = ReplyScanner::default().step(bytes).ok()?;
    step.complete?;
    bytes.split_at_checked(step.consumed)
}

/// The text between the marker and the line end.
fn line(frame: &[u8]) -> Option<&[u8]> {
    frame.get(1..)?.strip_suffix(b"\r\n")
}

/// The bytes of a frame of known length.
fn payload(frame: &[u8]) -> Option<&[u8]> {
    let (len, rest) = header_line(frame)?;
    rest.get(..usize::try_from(len).ok()?)
}
