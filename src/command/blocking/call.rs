//! Parses what a blocking call waits for and its timeout, and rewrites the call.

use std::time::Duration;

use bytes::BytesMut;

use super::give_back;
use crate::command::Blocking;
use crate::resp::{Protocol, Request, encode};

/// The keys and the timeout of a blocking call: indices into its request's words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// Which command it is.
    pub command: Blocking,
    /// How long it waits, counted from its arrival.
    pub timeout: Timeout,
    /// The word that says so; for XREAD and XREADGROUP the last one if there are several, as in Redis.
    pub timeout_arg: usize,
    /// The keys waited for. The destination of BLMOVE and BRPOPLPUSH is not among them.
    pub keys: Vec<usize>,
    /// XREAD: the ids that are `$`.
    pub dollars: Vec<usize>,
}

/// How long a call waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timeout {
    /// 0: until an element comes.
    Forever,
    /// At least one millisecond; fractions of one are rounded up, as in Redis 7.
    After(Duration),
    /// Not plainly a number in the common range (`0x10`, `1e3`, 0.0001, a million years): versions differ in what they
    /// make of it, so the server must judge. A try tells whether it takes the call at all; if it does and there is
    /// nothing to pop, only the server knows how long to wait.
    Unclear,
}

impl Call {
    /// Key `i` of those waited for; empty beyond the last.
    pub fn key<'a>(&self, request: &Request<'a>, i: usize) -> &'a [u8] {
        self.keys.get(i).and_then(|&at| request.arg(at)).unwrap_or_default()
    }

    /// Appends the same call with the time that is left.
    ///
    /// Never less than a millisecond, because 0 would wait for ever; seconds with three decimals, milliseconds for
    /// XREAD and XREADGROUP, both rounded up.
    pub fn with_timeout(&self, request: &Request<'_>, remaining: Duration, out: &mut BytesMut) {
        let millis = remaining.as_nanos().div_ceil(1_000_000).max(1);
        let text = match self.command {
            Blocking::XRead | Blocking::XReadGroup => millis.to_string(),
            Blocking::BLPop
            | Blocking::BRPop
            | Blocking::BLMove
            | Blocking::BRPopLPush
            | Blocking::BLMPop
            | Blocking::BZPopMin
            | Blocking::BZPopMax
            | Blocking::BZMPop => format!("{}.{:03}", millis / 1000, millis % 1000),
        };
        let words = request.args().enumerate();
        let words: Vec<&[u8]> =
            words.map(|(i, word)| if i == self.timeout_arg { text.as_bytes() } else { word }).collect();
        encode::command(out, &words);
    }

    /// Appends the call as a try that cannot block: MULTI, the command's bytes as they are, EXEC, in one piece.
    ///
    /// Three replies: `+OK`, `+QUEUED` or an error, and an array of one or the error EXECABORT. The member's nil is
    /// not the call's (`$-1` for BLMOVE in RESP2): it is made by [`Call::timeout_reply`] instead.
    pub fn try_form(request_bytes: &[u8], out: &mut BytesMut) {
        out.reserve(request_bytes.len() + 32);
        encode::command(out, &[b"MULTI"]);
        out.extend_from_slice(request_bytes);
        encode::command(out, &[b"EXEC"]);
    }

    /// Appends the reply of every blocking command after its timeout: `*-1`, or `_` in RESP3.
    pub fn timeout_reply(protocol: Protocol, out: &mut BytesMut) {
        encode::null_array(out, protocol);
    }

    /// The command that puts back what `element`, the call's whole reply, says was popped.
    ///
    /// LPUSH or RPUSH so that the list is exactly as before, ZADD NX so that a newer score is not overwritten, scores
    /// with the digits they came with. None where there is nothing to put back: nil, errors, and the commands that
    /// move (the element is in its destination) or only read.
    pub fn give_back(&self, request: &Request<'_>, element: &[u8]) -> Option<BytesMut> {
        give_back::command(self.command, request, element)
    }

    /// Whether the element has reached its destination, or the group's pending list, before the reply is read: then
    /// the reply decides, however late it comes.
    pub fn moves_before_answering(command: Blocking) -> bool {
        match command {
            Blocking::BLMove | Blocking::BRPopLPush | Blocking::XReadGroup => true,
            Blocking::BLPop
            | Blocking::BRPop
            | Blocking::BLMPop
            | Blocking::BZPopMin
            | Blocking::BZPopMax
            | Blocking::BZMPop
            | Blocking::XRead => false,
        }
    }
}
