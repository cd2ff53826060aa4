//! Finding replies in a server's byte stream.
//!
//! A lane forwards what has arrived of a reply at once, so the scanner is fed chunk by chunk and needs no byte of
//! an earlier chunk. Nesting is flattened to one number, the frames still to come: an aggregate of n adds n to it, so
//! any depth costs no memory and no recursion. An attribute (`|`) belongs to the frame behind it.
//!
//! Whatever does not fit the protocol means that the connection is out of step, and that the next bytes could be
//! taken for another client's reply: every such thing is an error, even where a lenient reader could go on.

use memchr::memchr;

use super::error::ReplyError;
use super::number::header;

/// The type of a complete reply, by its outermost frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplyKind {
    /// `+`
    Simple,
    /// `-`
    Error,
    /// `:`
    Integer,
    /// `$`
    Bulk,
    /// `*`
    Array,
    /// `_`, and RESP2's `$-1` and `*-1`
    Null,
    /// `,`
    Double,
    /// `#`
    Boolean,
    /// `(`
    BigNumber,
    /// `!`
    BlobError,
    /// `=`
    Verbatim,
    /// `%`
    Map,
    /// `~`
    Set,
    /// `>`: out of band, the reply to no command
    Push,
}

/// The result of scanning one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyStep {
    /// Bytes of the chunk that were used: up to the end of a whole reply, or all of them.
    pub consumed: usize,
    /// The reply that ends there.
    pub complete: Option<ReplyKind>,
}

/// Longest line in bytes that is looked through byte by byte, which for a few bytes is faster than `memchr`; a
/// number that short needs no check for overflow.
const LONGEST_PLAIN_LINE: usize = 16;

/// Where in a frame the scanner stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// At a frame's first byte.
    #[default]
    Marker,
    /// In a number: a length, a count, an integer.
    Number,
    /// Behind the `\r` of a number.
    NumberLf,
    /// In a text that runs to `\r\n`.
    Line,
    /// Behind a `\r` in such a text.
    LineLf,
    /// At the one letter of a boolean.
    Boolean,
    /// In a payload of known length.
    Body,
    /// Behind a payload.
    Cr,
    /// Behind a payload and its `\r`.
    Lf,
}

/// Finds the end of a server's next reply, in chunks.
#[derive(Debug, Default)]
pub struct ReplyScanner {
    /// Frames still to be completed, the one being read included; 0 between replies.
    left: u64,
    /// The number read so far, or the bytes of payload still to come.
    value: u64,
    state: State,
    marker: u8,
    digits: u8,
    negative: bool,
    /// The frame being read is the reply's outermost.
    top: bool,
    kind: Option<ReplyKind>,
    /// An array ends with its header: what it holds comes as replies of their own.
    opens_arrays: bool,
    /// How many elements the array has whose header has just ended.
    opened: Option<u64>,
}

impl ReplyScanner {
    /// Reads on in `chunk`: up to the end of one whole reply, or all of it.
    ///
    /// A reply's leading attributes are part of it. The next call goes on behind `consumed`.
    ///
    /// # Errors
    /// The connection is out of step and has to be closed; the scanner is of no further use.
    pub fn step(&mut self, chunk: &[u8]) -> Result<ReplyStep, ReplyError> {
        let mut at = 0;
        while let Some(&byte) = chunk.get(at) {
            let ended = match self.state {
                State::Marker => {
                    if let Some((kind, len)) = plain(chunk.get(at..).unwrap_or_default()) {
                        at += len;
                        if self.left == 0 {
                            return Ok(ReplyStep { consumed: at, complete: Some(kind) });
                        }
                        self.note_kind(kind);
                        self.end_frame()
                    } else {
                        at += 1;
                        self.begin(byte)?;
                        false
                    }
                }
                State::Number => {
                    at = self.number(chunk, at)?;
                    false
                }
                State::NumberLf => {
                    at += 1;
                    expect(byte, b'\n')?;
                    self.end_number()?
                }
                State::Line => {
                    at = self.line(chunk, at);
                    false
                }
                State::LineLf => {
                    at += 1;
                    self.end_line(byte)
                }
                State::Boolean => {
                    at += 1;
                    if !matches!(byte, b't' | b'f') {
                        return Err(ReplyError::BadValue);
                    }
                    self.state = State::Cr;
                    false
                }
                State::Body => {
                    at = self.body(chunk, at);
                    false
                }
                State::Cr => {
                    at += 1;
                    expect(byte, b'\r')?;
                    self.state = State::Lf;
                    false
                }
                State::Lf => {
                    at += 1;
                    expect(byte, b'\n')?;
                    self.end_frame()
                }
            };
            if ended {
                return Ok(ReplyStep { consumed: at, complete: self.kind.take() });
            }
        }
        Ok(ReplyStep { consumed: at, complete: None })
    }

    /// Reads on in a line, as far as its end or that of `chunk`. Returns where it is then.
    #[inline]
    fn line(&mut self, chunk: &[u8], at: usize) -> usize {
        match memchr(b'\r', chunk.get(at..).unwrap_or_default()) {
            Some(offset) => {
                self.state = State::LineLf;
                at + offset + 1
            }
            None => chunk.len(),
        }
    }

    /// A CR was read in a line, which ends only if `byte` is the LF. Whether the reply has ended with it.
    #[inline]
    fn end_line(&mut self, byte: u8) -> bool {
        match byte {
            b'\n' => self.end_frame(),
            b'\r' => false,
            _ => {
                self.state = State::Line;
                false
            }
        }
    }

    /// Reads on in a body whose length is known, as far as its end or that of `chunk`. Returns where it is then.
    #[inline]
    fn body(&mut self, chunk: &[u8], at: usize) -> usize {
        let here = (chunk.len() - at).min(usize::try_from(self.value).unwrap_or(usize::MAX));
        self.value -= here as u64;
        if self.value == 0 {
            self.state = State::Cr;
        }
        at + here
    }

    /// What the reply in progress is, as soon as known; a RESP2 null first shows as what it is the null of.
    pub fn kind(&self) -> Option<ReplyKind> {
        self.kind
    }

    /// From the next reply on, an array that is a whole reply ends with its header, so that its elements come as replies
    /// of their own: [`Self::opened`] then says how many there are. Between replies only.
    pub fn open_arrays(&mut self, open: bool) {
        self.opens_arrays = open;
    }

    /// The number of elements behind the header that was the last reply, if it was one. Told once.
    pub fn opened(&mut self) -> Option<u64> {
        self.opened.take()
    }

    /// Whether a reply has begun and not ended.
    pub fn in_frame(&self) -> bool {
        self.left > 0
    }

    /// Notes what the frame that begins here is, if it is the outermost one.
    #[inline]
    fn note_kind(&mut self, kind: ReplyKind) {
        if self.left == 0 {
            self.left = 1;
        }
        self.top = self.left == 1 && self.kind.is_none();
        if self.top {
            self.kind = Some(kind);
        }
    }

    /// Reads a frame's first byte.
    fn begin(&mut self, marker: u8) -> Result<(), ReplyError> {
        let (kind, state) = match marker {
            b'+' => (ReplyKind::Simple, State::Line),
            b'-' => (ReplyKind::Error, State::Line),
            b':' => (ReplyKind::Integer, State::Number),
            b'$' => (ReplyKind::Bulk, State::Number),
            b'*' => (ReplyKind::Array, State::Number),
            b'_' => (ReplyKind::Null, State::Cr),
            b',' => (ReplyKind::Double, State::Line),
            b'#' => (ReplyKind::Boolean, State::Boolean),
            b'(' => (ReplyKind::BigNumber, State::Line),
            b'!' => (ReplyKind::BlobError, State::Number),
            b'=' => (ReplyKind::Verbatim, State::Number),
            b'%' => (ReplyKind::Map, State::Number),
            b'~' => (ReplyKind::Set, State::Number),
            b'>' => (ReplyKind::Push, State::Number),
            b'|' => {
                // Not the reply yet: the frame behind it says what it is.
                self.left = self.left.max(1);
                self.begin_number(marker);
                return Ok(());
            }
            b';' | b'.' => return Err(ReplyError::Streamed),
            other => return Err(ReplyError::UnknownType(other)),
        };
        self.note_kind(kind);
        self.state = state;
        if state == State::Number {
            self.begin_number(marker);
        }
        Ok(())
    }

    fn begin_number(&mut self, marker: u8) {
        self.state = State::Number;
        self.marker = marker;
        self.value = 0;
        self.digits = 0;
        self.negative = false;
    }

    /// Reads a number's bytes up to its `\r`; returns where reading goes on.
    #[inline]
    fn number(&mut self, chunk: &[u8], mut at: usize) -> Result<usize, ReplyError> {
        let is_length = self.marker != b':';
        while let Some(&byte) = chunk.get(at) {
            at += 1;
            let digit = byte.wrapping_sub(b'0');
            if digit <= 9 {
                // One spelling per length, as everywhere in Redis; an integer is only a value to pass on.
                if is_length && self.digits > 0 && self.value == 0 {
                    return Err(ReplyError::BadLength);
                }
                let value = self.value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit)));
                self.value = value.ok_or(self.bad_number())?;
                self.digits = self.digits.saturating_add(1);
            } else if byte == b'\r' && self.digits > 0 {
                self.state = State::NumberLf;
                return Ok(at);
            } else if self.digits == 0 && !self.negative && byte == b'-' {
                self.negative = true;
            } else if self.digits == 0 && byte == b'?' && is_length {
                return Err(ReplyError::Streamed);
            } else {
                return Err(self.bad_number());
            }
        }
        Ok(at)
    }

    fn bad_number(&self) -> ReplyError {
        if self.marker == b':' { ReplyError::BadValue } else { ReplyError::BadLength }
    }

    /// A number's line is whole: acts on it. Says whether the reply has ended.
    fn end_number(&mut self) -> Result<bool, ReplyError> {
        let value = self.value;
        if value > i64::MAX as u64 + u64::from(self.negative) {
            return Err(self.bad_number());
        }
        if self.marker == b':' {
            return Ok(self.end_frame());
        }
        if self.negative {
            // The only negative length is RESP2's null.
            if value != 1 || !matches!(self.marker, b'$' | b'*') {
                return Err(ReplyError::BadLength);
            }
            if self.top {
                self.kind = Some(ReplyKind::Null);
            }
            return Ok(self.end_frame());
        }
        match self.marker {
            b'*' if self.opens_arrays && self.top => {
                self.opened = Some(value);
                Ok(self.end_frame())
            }
            b'*' | b'~' | b'>' => {
                self.expect_more(Some(value))?;
                Ok(self.end_frame())
            }
            b'%' => {
                self.expect_more(value.checked_mul(2))?;
                Ok(self.end_frame())
            }
            b'|' => {
                self.expect_more(value.checked_mul(2))?;
                self.state = State::Marker;
                Ok(false)
            }
            marker => {
                // A verbatim string begins with its format: three letters and a colon.
                if marker == b'=' && value < 4 {
                    return Err(ReplyError::BadLength);
                }
                self.state = if value == 0 { State::Cr } else { State::Body };
                Ok(false)
            }
        }
    }

    /// Adds the elements of an aggregate to the frames still to come.
    fn expect_more(&mut self, frames: Option<u64>) -> Result<(), ReplyError> {
        let left = frames.and_then(|frames| self.left.checked_add(frames));
        self.left = left.ok_or(ReplyError::TooManyElements)?;
        Ok(())
    }

    /// A frame is whole, or an aggregate's header is: says whether the reply is.
    #[inline]
    fn end_frame(&mut self) -> bool {
        self.left -= 1;
        self.state = State::Marker;
        self.left == 0
    }
}

#[inline]
fn expect(byte: u8, expected: u8) -> Result<(), ReplyError> {
    if byte == expected { Ok(()) } else { Err(ReplyError::MissingLineEnd) }
}

/// The common replies, in one go: a status of a few bytes, an integer or a bulk that `rest` begins with and holds
/// whole. `None` says only that the careful path has to look; it sees at most a header's bytes once more, and that
/// once per chunk.
#[inline(always)]
fn plain(rest: &[u8]) -> Option<(ReplyKind, usize)> {
    match rest.first()? {
        b'$' => {
            let (len, used) = header(rest, b'$')?;
            let end = used + len as usize;
            (rest.get(end..end + 2)? == b"\r\n").then_some((ReplyKind::Bulk, end + 2))
        }
        b'+' => {
            let end = rest.iter().take(LONGEST_PLAIN_LINE).position(|&byte| byte == b'\r')?;
            (rest.get(end + 1) == Some(&b'\n')).then_some((ReplyKind::Simple, end + 2))
        }
        b':' => {
            let digits =
                rest.get(1..)?.iter().take(LONGEST_PLAIN_LINE).position(|byte| !byte.is_ascii_digit())?;
            let ends = digits > 0 && rest.get(digits + 1..digits + 3)? == b"\r\n";
            ends.then_some((ReplyKind::Integer, digits + 3))
        }
        _ => None,
    }
}
