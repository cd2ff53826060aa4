//! RESP: bytes to frames and frames to bytes.
//!
//! A proxy forwards commands and replies as the bytes they arrived as, so on the hot path it needs only to know
//! where a frame ends and, for a request, where its name and arguments lie. [`RequestScanner`] and
//! [`ReplyScanner`] find that out incrementally: no byte is read again when more of the frame arrives, nothing is
//! allocated, and no length is trusted. Frames whose values matter are read by the `redis-protocol` crate, behind
//! [`decode()`], which sees only frames that were found whole and shallow: the crate recurses without a limit.
//!
//! Nothing in here knows a connection. The rules are those of Redis's `networking.c` and of the RESP3
//! specification (<https://github.com/redis/redis-specifications/blob/master/protocol/RESP3.md>).

mod arguments;
mod code;
mod decode;
mod downgrade;
mod elements;
pub mod encode;
mod error;
mod inline;
mod limits;
mod number;
mod outgoing;
mod reply;
mod request;
mod room;
mod spares;
mod unsent;

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use arguments::WALKED;
pub use arguments::{Args, Request};
pub use code::ErrorCode;
pub use decode::{MAX_DEPTH, decode};
pub use downgrade::downgrade;
pub use elements::{Elements, bulk, elements, error_text, integer, is_error, is_null};
pub use error::{DecodeError, ReplyError, RequestError};
pub use inline::normalise;
pub use limits::{MAX_ARGUMENTS, MAX_ARGUMENTS_OLD, MAX_REQUEST, RequestLimits};
pub use outgoing::{Kept, Outgoing};
pub use reply::{ReplyKind, ReplyScanner, ReplyStep};
pub use request::{Form, RequestFrame, RequestScanner, RequestStep};
pub use room::{append, make_room, moves};
pub use spares::{give as give_buffer, give_bytes};
pub use unsent::Unsent;

/// The version of RESP that a connection speaks: what its server answers, never what the client sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// The protocol every connection starts with.
    #[default]
    Resp2,
    /// After `HELLO 3`: maps, sets, doubles, pushes, one null.
    Resp3,
}

impl Protocol {
    /// The number that `HELLO` takes and reports.
    pub fn number(self) -> u8 {
        match self {
            Self::Resp2 => 2,
            Self::Resp3 => 3,
        }
    }
}
