//! Inline requests, and writing odd requests anew.
//!
//! Redis takes a line of words (`SET k "two words"`) as a request, for people at a telnet prompt and for health
//! checks. The words are split by the rules of `sdssplitargs` in Redis's `sds.c`. Such a line, and a multibulk with
//! odd line ends, never travels further: a connection that others share carries canonical requests only, so that
//! nothing on it can be answered with a protocol error.

use bytes::BytesMut;

use super::encode;
use super::error::RequestError;
use super::limits::RequestLimits;
use super::number::string2ll;
use super::request::{Form, RequestFrame, RequestScanner, RequestStep, is_space};

/// Appends a request to `out` as a canonical multibulk and says where its parts lie, counted from where it begins
/// in `out`; `None`, with nothing appended, when the line holds no word.
///
/// # Errors
/// [`RequestError::UnbalancedQuotes`], and [`RequestError::Http`] for a line that begins with `POST` or `Host:`.
pub fn normalise(
    frame: &[u8],
    shape: &RequestFrame,
    out: &mut BytesMut,
) -> Result<Option<RequestFrame>, RequestError> {
    let frame = frame.get(..shape.len).unwrap_or(frame);
    let start = out.len();
    match shape.form {
        Form::Canonical => out.extend_from_slice(frame),
        Form::Loose => {
            encode::array(out, shape.argc as usize);
            for argument in (LooseArguments { rest: after_line(frame) }) {
                encode::bulk(out, argument);
            }
        }
        Form::Inline => {
            let words = split(line_of(frame)).ok_or(RequestError::UnbalancedQuotes)?;
            if words.is_empty() {
                return Ok(None);
            }
            encode::array(out, words.len());
            for word in &words {
                encode::bulk(out, word);
            }
        }
    }
    // What was written is read back: one place knows how a frame's parts are found.
    let limits = RequestLimits { max_bulk: u64::MAX, max_request: usize::MAX, ..RequestLimits::default() };
    let written = out.get(start..).unwrap_or_default();
    match RequestScanner::default().step(written, &limits) {
        Ok(RequestStep::Request(shape)) => Ok(Some(shape)),
        Ok(RequestStep::Incomplete { .. } | RequestStep::Nothing { .. }) => {
            out.truncate(start);
            Ok(None)
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// The arguments of a multibulk whose line ends may be any two bytes that begin with `\r` (headers) or any two
/// bytes at all (behind a bulk).
struct LooseArguments<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for LooseArguments<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = memchr::memchr(b'\r', self.rest)?;
        let len = usize::try_from(string2ll(self.rest.get(1..end)?)?).ok()?;
        let body = self.rest.get(end + 2..)?;
        let argument = body.get(..len)?;
        self.rest = body.get(len + 2..)?;
        Some(argument)
    }
}

/// What follows the first header line.
fn after_line(frame: &[u8]) -> &[u8] {
    memchr::memchr(b'\r', frame).and_then(|end| frame.get(end + 2..)).unwrap_or_default()
}

/// An inline request without its `\n` or `\r\n`.
fn line_of(frame: &[u8]) -> &[u8] {
    let line = frame.strip_suffix(b"\n").unwrap_or(frame);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Splits a line into words as `sdssplitargs` does; `None` for quotes that do not balance.
fn split(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        let blanks = rest.iter().take_while(|&&byte| is_space(byte)).count();
        rest = rest.get(blanks..).unwrap_or_default();
        if rest.is_empty() {
            return Some(words);
        }
        let mut word = Vec::new();
        rest = take_word(rest, &mut word)?;
        words.push(word);
    }
}

/// Reads one word and returns what follows it. A quote may open in the middle of a word, and closes it.
fn take_word<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        match rest {
            // Vertical tab and form feed separate words, but do not end one: so it is in Redis.
            [] | [b' ' | b'\t' | b'\n' | b'\r', ..] => return Some(rest),
            [b'"', tail @ ..] => return double_quoted(tail, word),
            [b'\'', tail @ ..] => return single_quoted(tail, word),
            [byte, tail @ ..] => {
                word.push(*byte);
                rest = tail;
            }
        }
    }
}

/// Behind a `"`: reads up to the closing one, with the escapes of C and `\xHH`.
fn double_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            [b'\\', b'x', high, low, tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                word.push(hex_digit(*high) << 4 | hex_digit(*low));
                tail
            }
            [b'\\', escaped, tail @ ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => *other,
                });
                tail
            }
            [b'"', tail @ ..] => return closed(tail),
            [byte, tail @ ..] => {
                word.push(*byte);
                tail
            }
            [] => return None,
        }
    }
}

/// Behind a `'`: reads up to the closing one; only `\'` is an escape.
fn single_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        rest = match rest {
            [b'\\', b'\'', tail @ ..] => {
                word.push(b'\'');
                tail
            }
            [b'\'', tail @ ..] => return closed(tail),
            [byte, tail @ ..] => {
                word.push(*byte);
                tail
            }
            [] => return None,
        }
    }
}

/// A closing quote has to be followed by a blank or by the end of the line.
fn closed(rest: &[u8]) -> Option<&[u8]> {
    match rest.first() {
        Some(&byte) if !is_space(byte) => None,
        Some(_) | None => Some(rest),
    }
}

/// The value of a hexadecimal digit.
fn hex_digit(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        b'A'..=b'F' => digit - b'A' + 10,
        _ => 0,
    }
}
