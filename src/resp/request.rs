//! Finding requests in a client's byte stream.
//!
//! The scanner follows `processMultibulkBuffer` and `processInlineBuffer` of Redis's `networking.c`, oddities
//! included: a header line ends at the first `\r`, whatever byte follows; the two bytes behind a bulk are not
//! looked at; a NUL in a line hides everything behind it. A request that leans on an oddity works, but is
//! [`Form::Loose`]: it is written anew before it may share a connection with others.
//!
//! What is complete is remembered by position, so a large request that arrives in many pieces costs work in
//! proportion to its size. Two rules differ from Redis, which applies them as its reads happen to fall: a line
//! is too long at its 65,537th byte, and a bulk that would exceed the request limit is refused when announced.

use memchr::memchr2;

use super::error::RequestError;
use super::limits::{
    MAX_ARGUMENTS_UNAUTHENTICATED, MAX_BULK_UNAUTHENTICATED, MAX_LINE, MAX_REQUEST, RequestLimits,
};
use super::number::{header, string2ll};

/// How a TLS client begins: a handshake record of some version 3 (RFC 8446, 5.1). No command has such a name.
const TLS_HANDSHAKE: [u8; 2] = [0x16, 3];

/// How a request is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A multibulk with exact line ends: may be forwarded as it is.
    Canonical,
    /// A multibulk that Redis accepts although a line end is not `\r\n`: needs [`super::normalise`].
    Loose,
    /// A line of words: needs [`super::normalise`].
    Inline,
}

/// One whole request, by positions in the bytes it was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFrame {
    /// Length in bytes, the last line end included.
    pub len: usize,
    /// Number of arguments, the name included; 0 for [`Form::Inline`], whose words are not taken apart yet.
    pub argc: u32,
    /// Start and end of the command's name; empty for [`Form::Inline`].
    pub name: (u32, u32),
    /// Start and end of the first argument behind the name.
    pub first: Option<(u32, u32)>,
    /// How it is written.
    pub form: Form,
}

/// The result of one scan of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestStep {
    /// The request is not whole yet.
    Incomplete {
        /// Bytes missing at the least, from 1 up; as large as the client announced, so not to be reserved blindly.
        need: usize,
    },
    /// Bytes that ask for nothing and are answered by nothing: `*0`, `*-1`, a blank line.
    Nothing {
        /// Their length in bytes.
        len: usize,
    },
    /// One whole request.
    Request(RequestFrame),
}

/// Where in a request the scanner stands.
#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    #[default]
    Start,
    Count,
    Inline,
    Header,
    Body,
}

/// Finds the end of a client's next request; keeps its place while the request is incomplete.
#[derive(Clone, Debug, Default)]
pub struct RequestScanner {
    /// First byte not dealt with yet: the start of a line, or of a bulk's payload.
    pos: u32,
    /// In a line: no end of line before this position.
    seen: u32,
    argc: u32,
    /// Arguments not yet read to their end.
    left: u32,
    /// Length of the bulk whose payload starts at `pos`.
    bulk: u32,
    name: (u32, u32),
    first: (u32, u32),
    stage: Stage,
    loose: bool,
}

const _: () = assert!(size_of::<RequestScanner>() <= 40);

/// A line's end as found in the buffer.
struct LineEnd {
    /// Position of the `\r` (or `\n`, inline).
    at: usize,
    /// Position of the first byte behind the line.
    next: usize,
}

impl RequestScanner {
    /// Looks at the bytes that arrived since the last call.
    ///
    /// `buf` begins with the request's first byte and only grows while the answer is
    /// [`RequestStep::Incomplete`]; after any other answer the scanner stands at a new request, which begins `len`
    /// bytes further on. After an error the stream is lost: nothing behind it has a meaning.
    ///
    /// # Errors
    /// In the order and under the conditions of Redis; the client is to be told [`RequestError::reply`] and closed.
    pub fn step(&mut self, buf: &[u8], limits: &RequestLimits) -> Result<RequestStep, RequestError> {
        loop {
            match self.stage {
                Stage::Start => match buf.first() {
                    None => return Ok(RequestStep::Incomplete { need: 1 }),
                    Some(b'*') => self.stage = Stage::Count,
                    Some(_) if buf.starts_with(&TLS_HANDSHAKE) => return Err(RequestError::Tls),
                    // The second byte tells, whenever it comes.
                    Some(_) if TLS_HANDSHAKE.starts_with(buf) => {
                        return Ok(RequestStep::Incomplete { need: 1 });
                    }
                    Some(_) => self.stage = Stage::Inline,
                },
                Stage::Count => {
                    if let Some(step) = self.count(buf, limits)? {
                        return Ok(step);
                    }
                }
                Stage::Inline => return self.inline(buf, limits),
                Stage::Header | Stage::Body => return self.arguments(buf, limits),
            }
        }
    }

    /// Reads `*<count>`; `None` when arguments follow.
    fn count(&mut self, buf: &[u8], limits: &RequestLimits) -> Result<Option<RequestStep>, RequestError> {
        let (count, next) = match header(buf, b'*') {
            Some((count, used)) => (i64::from(count), used),
            None => {
                let Some(end) = self.header_line(buf, RequestError::TooBigMultibulkCount)? else {
                    return Ok(Some(RequestStep::Incomplete { need: 1 }));
                };
                let text = buf.get(1..end.at).unwrap_or_default();
                (string2ll(text).ok_or(RequestError::InvalidMultibulkLength)?, end.next)
            }
        };
        if count > i64::from(limits.max_arguments) {
            return Err(RequestError::InvalidMultibulkLength);
        }
        if count > MAX_ARGUMENTS_UNAUTHENTICATED && !limits.authenticated {
            return Err(RequestError::UnauthenticatedMultibulk);
        }
        let next = position(next, limits)?;
        match u32::try_from(count) {
            Err(_) | Ok(0) => {
                *self = Self::default();
                Ok(Some(RequestStep::Nothing { len: next as usize }))
            }
            Ok(count) => {
                self.argc = count;
                self.left = count;
                self.pos = next;
                self.stage = Stage::Header;
                Ok(None)
            }
        }
    }

    /// Reads the arguments that are still missing.
    fn arguments(&mut self, buf: &[u8], limits: &RequestLimits) -> Result<RequestStep, RequestError> {
        while self.left > 0 {
            if matches!(self.stage, Stage::Header) {
                let start = self.pos as usize;
                let rest = buf.get(start..).unwrap_or_default();
                let (bulk, next) = match header(rest, b'$') {
                    Some((bulk, used)) => (u64::from(bulk), start + used),
                    None => match self.bulk_header(buf)? {
                        Some(read) => read,
                        None => return Ok(RequestStep::Incomplete { need: 1 }),
                    },
                };
                self.begin_bulk(bulk, next, limits)?;
            }
            let start = self.pos as usize;
            let end = start + self.bulk as usize;
            let Some(terminator) = buf.get(end..end + 2) else {
                return Ok(RequestStep::Incomplete { need: end + 2 - buf.len() });
            };
            self.loose |= terminator != b"\r\n";
            self.end_bulk();
        }
        self.finish(buf)
    }

    /// Checks a bulk's announced length and stands at its payload, which begins at `next`.
    #[inline]
    fn begin_bulk(&mut self, bulk: u64, next: usize, limits: &RequestLimits) -> Result<(), RequestError> {
        if bulk > limits.max_bulk {
            return Err(RequestError::BulkAboveLimit);
        }
        if bulk > MAX_BULK_UNAUTHENTICATED && !limits.authenticated {
            return Err(RequestError::UnauthenticatedBulk);
        }
        let bulk_len = usize::try_from(bulk).map_err(|_| RequestError::TooLarge)?;
        // The end of the bulk fits 32 bits, so its start and length do.
        position(next.saturating_add(bulk_len).saturating_add(2), limits)?;
        self.pos = next as u32;
        self.bulk = bulk_len as u32;
        self.stage = Stage::Body;
        Ok(())
    }

    /// Notes a bulk that is whole and stands behind it.
    #[inline]
    fn end_bulk(&mut self) {
        let span = (self.pos, self.pos + self.bulk);
        match self.argc - self.left {
            0 => self.name = span,
            1 => self.first = span,
            _ => {}
        }
        self.pos = span.1 + 2;
        self.left -= 1;
        self.stage = Stage::Header;
    }

    /// The careful reading of a bulk's header: its length and where its payload begins; `None` while incomplete.
    #[cold]
    fn bulk_header(&mut self, buf: &[u8]) -> Result<Option<(u64, usize)>, RequestError> {
        let Some(end) = self.header_line(buf, RequestError::TooBigBulkCount)? else { return Ok(None) };
        let line = buf.get(self.pos as usize..end.at).unwrap_or_default();
        let digits = match line {
            [b'$', digits @ ..] => digits,
            [found, ..] => return Err(RequestError::ExpectedBulk { found: *found }),
            [] => return Err(RequestError::ExpectedBulk { found: b'\r' }),
        };
        let bulk = string2ll(digits).and_then(|bulk| u64::try_from(bulk).ok());
        Ok(Some((bulk.ok_or(RequestError::InvalidBulkLength)?, end.next)))
    }

    /// Finds the `\r` that ends the header line at `pos`, and the byte behind it, which may be any.
    fn header_line(&mut self, buf: &[u8], too_long: RequestError) -> Result<Option<LineEnd>, RequestError> {
        let Some(at) = self.line_end(buf, b'\r', too_long)? else { return Ok(None) };
        match buf.get(at + 1) {
            None => Ok(None),
            Some(&byte) => {
                self.loose |= byte != b'\n';
                Ok(Some(LineEnd { at, next: at + 2 }))
            }
        }
    }

    /// Position of the first `end` in the line at `pos`, looking only where no earlier call has looked.
    fn line_end(
        &mut self,
        buf: &[u8],
        end: u8,
        too_long: RequestError,
    ) -> Result<Option<usize>, RequestError> {
        let start = self.pos as usize;
        let longest = start + MAX_LINE + 1;
        let from = start.max(self.seen as usize);
        let unseen = buf.get(from..buf.len().min(longest)).unwrap_or_default();
        // Redis searches with strchr, which a NUL stops: such a line never ends.
        let (seen, found) = match memchr2(end, 0, unseen) {
            Some(offset) => (from + offset, unseen.get(offset) == Some(&end)),
            None => (from + unseen.len(), false),
        };
        if found {
            self.seen = seen as u32;
            return Ok(Some(seen));
        }
        if buf.len() >= longest {
            return Err(too_long);
        }
        self.seen = seen as u32;
        Ok(None)
    }

    /// Finds the end of a line of words; their quotes are read by [`super::normalise`].
    fn inline(&mut self, buf: &[u8], limits: &RequestLimits) -> Result<RequestStep, RequestError> {
        let Some(at) = self.line_end(buf, b'\n', RequestError::TooBigInline)? else {
            return Ok(RequestStep::Incomplete { need: 1 });
        };
        let len = position(at + 1, limits)? as usize;
        let blank = buf.get(..at).unwrap_or_default().iter().all(|&byte| is_space(byte));
        *self = Self::default();
        if blank {
            return Ok(RequestStep::Nothing { len });
        }
        Ok(RequestStep::Request(RequestFrame { len, argc: 0, name: (0, 0), first: None, form: Form::Inline }))
    }

    /// The request is whole: hands it out and stands at the next one.
    fn finish(&mut self, buf: &[u8]) -> Result<RequestStep, RequestError> {
        let frame = RequestFrame {
            len: self.pos as usize,
            argc: self.argc,
            name: self.name,
            first: (self.argc > 1).then_some(self.first),
            form: if self.loose { Form::Loose } else { Form::Canonical },
        };
        *self = Self::default();
        let name = buf.get(frame.name.0 as usize..frame.name.1 as usize).unwrap_or_default();
        if is_http(name) { Err(RequestError::Http) } else { Ok(RequestStep::Request(frame)) }
    }
}

/// C's `isspace` in the C locale.
pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// `end` as a 32-bit position, when a request may reach that far.
#[inline]
fn position(end: usize, limits: &RequestLimits) -> Result<u32, RequestError> {
    if end > limits.max_request.min(MAX_REQUEST) {
        return Err(RequestError::TooLarge);
    }
    u32::try_from(end).map_err(|_| RequestError::TooLarge)
}

/// Whether a command's name is one a browser sends; Redis compares up to a NUL (`processCommand` in `server.c`).
#[inline]
fn is_http(name: &[u8]) -> bool {
    let ends_at = |len: usize| matches!(name.get(len), None | Some(0));
    match name.first() {
        Some(b'p' | b'P') => name.get(..4).is_some_and(|n| n.eq_ignore_ascii_case(b"post")) && ends_at(4),
        Some(b'h' | b'H') => name.get(..5).is_some_and(|n| n.eq_ignore_ascii_case(b"host:")) && ends_at(5),
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_large_request_in_small_pieces_costs_linear_work_and_reads_no_byte_again() {
        const ARGUMENTS: usize = 20_000;
        const PIECE: usize = 1_460;
        let mut whole = format!("*{ARGUMENTS}\r\n").into_bytes();
        whole.extend((0..ARGUMENTS).flat_map(|n| format!("$8\r\nv{n:07}\r\n").into_bytes()));
        let mut scanner = RequestScanner::default();
        let mut buffer = Vec::new();
        let mut looked_at = 0;
        let mut calls = 0;
        for piece in whole.chunks(PIECE) {
            buffer.extend_from_slice(piece);
            let done = scanner.pos as usize;
            looked_at += buffer.len() - done.min(buffer.len());
            calls += 1;
            let step = scanner.step(&buffer, &RequestLimits::default()).unwrap();
            if let RequestStep::Request(shape) = step {
                assert_eq!((shape.len, shape.argc as usize), (whole.len(), ARGUMENTS));
                assert_eq!(buffer.len(), whole.len());
            }
            // What is dealt with is not looked at again: spoilt, it changes nothing. (The name is read once more at the
            // end, to see that it is not POST.)
            let done = (scanner.pos as usize).min(buffer.len());
            buffer[..done].fill(b'#');
        }
        // Besides its own bytes a call can see those of one unfinished argument.
        assert!(looked_at <= whole.len() + calls * 16, "{looked_at} bytes looked at for {}", whole.len());
        assert_eq!(calls, whole.len().div_ceil(PIECE));
    }

    /// The first byte alone was taken for the beginning of a line, in which the second one said nothing any more.
    #[test]
    fn tls_is_known_in_single_bytes() {
        let mut scanner = RequestScanner::default();
        let limits = RequestLimits::default();
        assert_eq!(scanner.step(b"\x16", &limits), Ok(RequestStep::Incomplete { need: 1 }));
        assert_eq!(scanner.step(b"\x16\x03\x01", &limits), Err(RequestError::Tls));
        let mut scanner = RequestScanner::default();
        assert_eq!(scanner.step(b"\x16", &limits), Ok(RequestStep::Incomplete { need: 1 }));
        assert!(
            matches!(scanner.step(b"\x16x\n", &limits), Ok(RequestStep::Request(frame)) if frame.len == 3)
        );
    }

    #[test]
    fn a_long_line_in_small_pieces_is_searched_once() {
        let mut scanner = RequestScanner::default();
        let mut buffer = b"ECHO ".to_vec();
        for _ in 0..60 {
            buffer.extend_from_slice(&[b'x'; 1_000]);
            let step = scanner.step(&buffer, &RequestLimits::default());
            assert_eq!(step, Ok(RequestStep::Incomplete { need: 1 }));
            // Nothing before `seen` is searched again: a line end put there is not found.
            assert_eq!(scanner.seen as usize, buffer.len());
            buffer.fill(b'\n');
        }
    }
}
