//! One blocking call, taken apart and put together again.
//!
//! A blocked client must not cost an upstream connection, so its call is tried without blocking (inside MULTI nothing
//! blocks) until an element comes or its own timeout has passed. For that the proxy has to know the keys that are
//! waited for, the timeout, the `$` of XREAD (which must mean "since the call arrived", not "since this try"), and how
//! to put an element back whose client has died. All of it is bytes in, bytes out.
//!
//! The grammar is that of redis `t_list.c`, `t_zset.c` and `t_stream.c`; timeouts as `timeout.c` reads them.

mod answer;
mod give_back;
mod parse;
mod stream;
#[cfg(test)]
mod tests;
mod timeout;
mod waits;

use std::time::Duration;

use bytes::BytesMut;

use super::{Blocking, Class, classify};
use crate::resp::{Protocol, Request, encode};

pub use answer::{DEMOTED, is_code, is_nothing, is_passing};
pub use parse::parse;
pub(super) use parse::{blocks, options_end};
pub use stream::{last_generated_id, stream_position};
pub use waits::Waited;

/// What a blocking call waits for and how long: indices into its request's words.
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

    /// Appends what every blocking command answers when its time has passed: `*-1`, or `_` in RESP3.
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

    /// Whether `b`'s caller may be handed what was popped for `a`: the same command, keys, options and ids, the
    /// timeout aside. Both are compared as written: the same options in another order count as different.
    pub fn same_shape(a: &Request<'_>, b: &Request<'_>) -> bool {
        let (Some(ours), Some(theirs)) = (Self::of(a), Self::of(b)) else { return false };
        ours.command == theirs.command
            && ours.timeout_arg == theirs.timeout_arg
            && a.argc() == b.argc()
            && a.args().zip(b.args()).enumerate().skip(1).all(|(i, (x, y))| i == ours.timeout_arg || x == y)
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

    /// The call that a request is, if it is a blocking one.
    fn of(request: &Request<'_>) -> Option<Self> {
        let Class::Blocking(command) = classify(request).class else { return None };
        parse(request, command)
    }
}
