//! Reading a reply's value, by the `redis-protocol` crate.
//!
//! The crate recurses into nested frames without a limit (40 KB of `*1\r\n` overflow the stack and abort the
//! process), so it only ever sees a frame that was found whole and no deeper than [`MAX_DEPTH`]. Its maps and sets
//! lose their order: a decoded reply is for reading, never for sending on.

use bytes::Bytes;
use redis_protocol::resp2::types::BytesFrame as Resp2Frame;
use redis_protocol::resp3::types::BytesFrame;
use redis_protocol::{resp2, resp3};

use super::Protocol;
use super::elements::{header_line, is_null, split_frame};
use super::error::DecodeError;

/// Deepest nesting that is decoded; the deepest reply of a Redis command known to us has 6 levels.
pub const MAX_DEPTH: usize = 32;

/// The value of one whole reply; RESP2 frames come as their RESP3 counterparts.
///
/// # Errors
/// [`DecodeError`]; the frame may still be forwarded, only its value cannot be had.
pub fn decode(frame: &[u8], protocol: Protocol) -> Result<BytesFrame, DecodeError> {
    match split_frame(frame) {
        Some((_, [])) => {}
        Some(_) | None => return Err(DecodeError::NotWhole),
    }
    if !is_shallow(frame) {
        return Err(DecodeError::TooDeep);
    }
    // Servers that translate for RESP3 sometimes keep RESP2's null, which the RESP3 decoder refuses.
    if is_null(frame) {
        return Ok(BytesFrame::Null);
    }
    let bytes = Bytes::copy_from_slice(frame);
    let decoded = match protocol {
        Protocol::Resp2 => {
            resp2::decode::decode_bytes(&bytes).map(|read| read.map(|(f, len)| (widen(f), len)))
        }
        Protocol::Resp3 => resp3::decode::complete::decode_bytes(&bytes),
    };
    match decoded {
        Ok(Some((value, len))) if len == frame.len() => Ok(value),
        Ok(_) | Err(_) => Err(DecodeError::Malformed),
    }
}

/// A RESP2 value in RESP3's types. (The crate's own conversion turns published messages into pushes with an
/// element of its own making in front.)
fn widen(frame: Resp2Frame) -> BytesFrame {
    let attributes = None;
    match frame {
        Resp2Frame::SimpleString(data) => BytesFrame::SimpleString { data, attributes },
        Resp2Frame::Error(data) => BytesFrame::SimpleError { data, attributes },
        Resp2Frame::Integer(data) => BytesFrame::Number { data, attributes },
        Resp2Frame::BulkString(data) => BytesFrame::BlobString { data, attributes },
        Resp2Frame::Array(items) => {
            BytesFrame::Array { data: items.into_iter().map(widen).collect(), attributes }
        }
        Resp2Frame::Null => BytesFrame::Null,
    }
}

/// Whether a whole frame is nested no deeper than [`MAX_DEPTH`]; a lone value has depth 1.
fn is_shallow(frame: &[u8]) -> bool {
    // Frames still to come on each level that has been entered.
    let mut open = [0u64; MAX_DEPTH];
    let mut depth = 0;
    let mut rest = frame;
    while let Some(&marker) = rest.first() {
        // The levels that this frame completes are left when the next one is met.
        while depth > 0 && open.get(depth - 1) == Some(&0) {
            depth -= 1;
        }
        if depth >= MAX_DEPTH {
            return false;
        }
        if let (Some(level), false) = (depth.checked_sub(1).and_then(|d| open.get_mut(d)), marker == b'|') {
            *level -= 1; // an attribute is no element of its own
        }
        let per_count = match marker {
            b'*' | b'~' | b'>' => 1,
            b'%' | b'|' => 2,
            _ => match split_frame(rest) {
                Some((_, next)) => {
                    rest = next;
                    continue;
                }
                None => return false,
            },
        };
        let Some((count, next)) = header_line(rest) else { return false };
        rest = next;
        let (Ok(count), Some(level)) = (u64::try_from(count), open.get_mut(depth)) else { continue };
        *level = count.saturating_mul(per_count);
        depth += 1;
    }
    true
}
