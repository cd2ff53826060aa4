//! A transaction that has wholly arrived.
//!
//! `MULTI … EXEC` with plain members only makes no state that outlives it, provided that nothing else
//! comes between. So it goes over a lane, as one contiguous write, and needs no connection of its own. An EXEC that the
//! server refuses ends the transaction all the same (`rejectCommand` in redis `server.c`); a refused DISCARD does not,
//! so a block that ends with one takes a lease.

use super::{ALWAYS_TAKEN, Policy};
use crate::command::{Class, classify};
use crate::resp::{Form, Request, RequestLimits, RequestScanner, RequestStep};

/// A whole block at the start of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its length in bytes, MULTI and EXEC included.
    pub len: usize,
    /// Its commands, MULTI and EXEC included: as many replies will come.
    pub commands: u32,
    /// Whether a member's reply counts subscribers, which the server sees otherwise than clients do.
    pub counts: bool,
    /// Whether a member uses scripts.
    pub scripts: bool,
}

/// Parses `input`, which begins with MULTI, as a complete block of plain commands. `None`: not complete yet, or not
/// plain. Commands that `policy` refuses are not plain, because each must be refused separately.
#[must_use]
pub fn find_block(input: &[u8], limits: &RequestLimits, policy: Policy) -> Option<Block> {
    let mut scanner = RequestScanner::default();
    let mut block = Block { len: 0, commands: 0, counts: false, scripts: false };
    loop {
        let rest = input.get(block.len..)?;
        let RequestStep::Request(shape) = scanner.step(rest, limits).ok()? else { return None };
        if shape.form != Form::Canonical {
            return None;
        }
        let request = Request::new(&rest[..shape.len], &shape);
        if request.has_bulk_above(ALWAYS_TAKEN) {
            return None;
        }
        let asked = classify(&request);
        block.len += shape.len;
        block.commands += 1;
        let first = block.commands == 1;
        if !policy.allows(&asked) {
            return None;
        }
        block.scripts |= asked.row.is_some_and(|row| row.uses_scripts);
        match asked.class {
            // With a wrong number of arguments MULTI or EXEC fails, and the block would stay open.
            Class::Multi | Class::Exec if shape.argc != 1 => return None,
            Class::Multi if first => {}
            Class::Pass | Class::Ping if !first => {}
            Class::Publish | Class::PubSub if !first => block.counts = true,
            Class::Exec if !first => return Some(block),
            _ => return None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::resp::MAX_ARGUMENTS_OLD;

    const LIMITS: RequestLimits = RequestLimits {
        max_bulk: 1 << 20,
        max_request: 1 << 20,
        max_arguments: MAX_ARGUMENTS_OLD,
        authenticated: true,
    };

    fn pipeline(commands: &[&[&[u8]]]) -> bytes::BytesMut {
        let mut out = bytes::BytesMut::new();
        for words in commands {
            crate::resp::encode::command(&mut out, words);
        }
        out
    }

    #[test]
    fn a_whole_transaction_is_found() {
        let input = pipeline(&[&[b"MULTI"], &[b"SET", b"k", b"v"], &[b"EXEC"], &[b"PING"]]);
        let block = find_block(&input, &LIMITS, Policy::default()).unwrap();
        assert_eq!(block.commands, 3);
        assert_eq!(&input[block.len..], b"*1\r\n$4\r\nPING\r\n");
    }

    #[test]
    fn a_discard_never_goes_over_a_lane_because_a_refused_one_leaves_it_inside_multi() {
        for discard in [&[&b"DISCARD"[..]][..], &[b"DISCARD", b"x"]] {
            let input = pipeline(&[&[b"MULTI"], &[b"SET", b"k", b"v"], discard, &[b"EXEC"]]);
            assert_eq!(find_block(&input, &LIMITS, Policy::default()), None);
        }
    }
}
