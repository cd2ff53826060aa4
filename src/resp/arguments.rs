//! The parts of one whole request.

use super::limits::RequestLimits;
use super::number::header;
use super::request::{Form, RequestFrame, RequestScanner, RequestStep};

#[cfg(test)]
thread_local! {
    /// Arguments walked over by this thread, for tests of how the cost of a command grows.
    pub(crate) static WALKED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// A view of one whole canonical request: its bytes, its name, its arguments.
///
/// The name and the first argument are known by position; the others are found by walking the frame.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    bytes: &'a [u8],
    argc: u32,
    name: (u32, u32),
    first: Option<(u32, u32)>,
}

impl<'a> Request<'a> {
    /// The request that the scanner found (or [`super::normalise`] wrote) at the start of `frame`.
    pub fn new(frame: &'a [u8], shape: &RequestFrame) -> Self {
        debug_assert_eq!(shape.form, Form::Canonical);
        let bytes = frame.get(..shape.len).unwrap_or(frame);
        Self { bytes, argc: shape.argc, name: shape.name, first: shape.first }
    }

    /// The request that `frame` is, if it is exactly one canonical request.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        Self::first(frame).filter(|request| request.bytes.len() == frame.len())
    }

    /// The canonical request that `bytes` begin with.
    pub fn first(bytes: &'a [u8]) -> Option<Self> {
        let limits =
            RequestLimits { max_bulk: u64::MAX, max_request: usize::MAX, ..RequestLimits::default() };
        match RequestScanner::default().step(bytes, &limits) {
            Ok(RequestStep::Request(shape)) if shape.form == Form::Canonical => {
                Some(Self::new(bytes, &shape))
            }
            Ok(RequestStep::Request(_) | RequestStep::Nothing { .. } | RequestStep::Incomplete { .. })
            | Err(_) => None,
        }
    }

    /// The whole request as it goes over the wire.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The command's name as the client wrote it, in any case.
    #[inline]
    pub fn name(&self) -> &'a [u8] {
        self.span(self.name)
    }

    /// Number of arguments, the name included: at least 1.
    #[inline]
    pub fn argc(&self) -> usize {
        self.argc as usize
    }

    /// Argument `i`; 0 is the name. Beyond 1 this walks the frame: iterate [`Request::args`] for all of them.
    pub fn arg(&self, i: usize) -> Option<&'a [u8]> {
        match i {
            0 => Some(self.name()),
            1 => self.first.map(|span| self.span(span)),
            _ => self.args().nth(i),
        }
    }

    /// Whether an argument is longer than `bulk` bytes.
    #[inline]
    pub fn has_bulk_above(&self, bulk: usize) -> bool {
        self.bytes.len() > bulk && self.args().any(|arg| arg.len() > bulk)
    }

    /// All arguments in order, the name first.
    pub fn args(&self) -> Args<'a> {
        // A canonical frame is `*<count>\r\n` and then the bulks; the name's own header precedes the name.
        let count = header(self.bytes, b'*').map_or_else(|| digits_len(self.argc) + 3, |(_, used)| used);
        Args { rest: self.bytes.get(count..).unwrap_or_default(), left: self.argc as usize }
    }

    #[inline]
    fn span(&self, (start, end): (u32, u32)) -> &'a [u8] {
        self.bytes.get(start as usize..end as usize).unwrap_or_default()
    }
}

/// Number of decimal digits of `value`.
fn digits_len(value: u32) -> usize {
    value.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// Iterator over a request's arguments.
#[derive(Clone, Debug)]
pub struct Args<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Args<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        #[cfg(test)]
        WALKED.with(|walked| walked.set(walked.get() + 1));
        let (len, used) = bulk_header(self.rest)?;
        let argument = self.rest.get(used..used + len)?;
        self.rest = self.rest.get(used + len + 2..).unwrap_or_default();
        Some(argument)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Args<'_> {}

/// A bulk's length and the length of its header, of any size.
#[inline]
fn bulk_header(bytes: &[u8]) -> Option<(usize, usize)> {
    if let Some((len, used)) = header(bytes, b'$') {
        return Some((len as usize, used));
    }
    let end = memchr::memchr(b'\r', bytes)?;
    let len = super::number::string2ll(bytes.get(1..end)?)?;
    Some((usize::try_from(len).ok()?, end + 2))
}
