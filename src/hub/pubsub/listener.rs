//! How a subscriber is reached, and what it is sent.

use std::cell::OnceCell;

use bytes::{BufMut, Bytes, BytesMut};

use crate::pool::Unavailable;
use crate::resp::Protocol;
use crate::session::Listen;

/// How the channels begin on which two processes divide what a subscriber hears from them. No pattern hears them.
pub const DIVIDER: &str = "redbouncer:takeover:";

/// One published message: parsed once, shared by all who get it.
#[derive(Debug)]
pub struct Message {
    push: Bytes,
    array: OnceCell<Bytes>,
}

impl Message {
    /// The message in `frame`, which is a push, or the array that a RESP2 server sends instead.
    pub(super) fn new(frame: &[u8]) -> Self {
        Self { push: with_marker(b'>', frame), array: OnceCell::new() }
    }

    /// The frame that a client of `protocol` gets: a push, or an array in RESP2.
    pub fn frame(&self, protocol: Protocol) -> &Bytes {
        match protocol {
            Protocol::Resp3 => &self.push,
            Protocol::Resp2 => self.array.get_or_init(|| with_marker(b'*', &self.push)),
        }
    }
}

/// Pushes and arrays differ in their first byte.
fn with_marker(marker: u8, frame: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(frame.len());
    out.put_u8(marker);
    out.extend_from_slice(frame.get(1..).unwrap_or_default());
    out.freeze()
}

/// A subscriber. Called from the hub's task; must not call back into the hub.
pub trait Listener {
    /// Something was published that it is subscribed to.
    fn message(&self, message: &Message);
    /// It is subscribed to these, from now on, and must say so to its client before the next message. `are_all`: its request
    /// is done with them; very many names come in several steps.
    fn confirmed(&self, listen: Listen, names: &[Bytes], are_all: bool);
    /// The server has refused its request, with this whole error reply.
    fn refused(&self, words: &Bytes);
    /// There is no connection for its request, and no use in waiting.
    fn unserved(&self, why: &Unavailable);
    /// Its subscriptions are lost: messages may be missing from here on.
    fn lost(&self);
    /// All that was published before it asked (`Station::mark`) has been given to it, or will not come.
    fn caught_up(&self);
}
