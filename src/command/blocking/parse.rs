//! The grammar of the blocking commands.

use super::call::Call;
use super::timeout;
use crate::command::Blocking;
use crate::resp::Request;

/// Takes a call apart.
///
/// None: the arguments are malformed, or it is an XREAD or XREADGROUP without BLOCK. The server will answer at once,
/// so such a request may go to it as a member of a MULTI that cannot block.
pub fn parse(request: &Request<'_>, command: Blocking) -> Option<Call> {
    let args: Vec<&[u8]> = request.args().collect();
    match command {
        Blocking::BLPop | Blocking::BRPop | Blocking::BZPopMin | Blocking::BZPopMax => {
            let last = args.len().checked_sub(1).filter(|&last| last >= 2)?;
            call(&args, command, last, (1..last).collect())
        }
        Blocking::BLMove => {
            let sides = [args.get(3)?, args.get(4)?];
            let valid = args.len() == 6 && sides.iter().all(|side| is_one_of(side, &[b"left", b"right"]));
            call(&args, command, 5, vec![1]).filter(|_| valid)
        }
        Blocking::BRPopLPush => call(&args, command, 3, vec![1]).filter(|_| args.len() == 4),
        Blocking::BLMPop => multi_pop(&args, command, &[b"left", b"right"]),
        Blocking::BZMPop => multi_pop(&args, command, &[b"min", b"max"]),
        Blocking::XRead | Blocking::XReadGroup => stream_read(&args, command),
    }
}

/// Whether this request can hold its connection: always, but for XREAD and XREADGROUP without BLOCK.
pub(in crate::command) fn blocks(request: &Request<'_>, command: Blocking) -> bool {
    match command {
        Blocking::XRead | Blocking::XReadGroup => Options::read(request.args()).block.is_some(),
        Blocking::BLPop
        | Blocking::BRPop
        | Blocking::BLMove
        | Blocking::BRPopLPush
        | Blocking::BLMPop
        | Blocking::BZPopMin
        | Blocking::BZPopMax
        | Blocking::BZMPop => true,
    }
}

/// The index of STREAMS in an XREAD or XREADGROUP.
pub(in crate::command) fn options_end(args: &[&[u8]]) -> Option<usize> {
    Options::read(args.iter().copied()).streams
}

fn call(args: &[&[u8]], command: Blocking, timeout_arg: usize, keys: Vec<usize>) -> Option<Call> {
    let timeout = timeout::seconds(args.get(timeout_arg)?)?;
    Some(Call { command, timeout, timeout_arg, keys, dollars: Vec::new() })
}

/// `timeout numkeys key [key …] side [COUNT n]`
fn multi_pop(args: &[&[u8]], command: Blocking, sides: &[&[u8]]) -> Option<Call> {
    let numkeys = plain_count(args.get(2)?)?;
    let side = numkeys.checked_add(3)?;
    if !is_one_of(args.get(side)?, sides) {
        return None;
    }
    match args.get(side + 1..)? {
        [] => {}
        [word, count] if word.eq_ignore_ascii_case(b"count") => {
            plain_count(count)?;
        }
        _ => return None,
    }
    call(args, command, 1, (3..side).collect())
}

/// `[GROUP group consumer] [options] STREAMS key [key …] id [id …]`
fn stream_read(args: &[&[u8]], command: Blocking) -> Option<Call> {
    let grouped = command == Blocking::XReadGroup;
    let options = Options::read(args.iter().copied());
    let (streams, block) = (options.streams?, options.block?);
    if options.group != grouped || options.only_grouped && !grouped {
        return None;
    }
    let first = streams + 1;
    let words = args.len().checked_sub(first)?;
    if words == 0 || words % 2 != 0 {
        return None;
    }
    let ids = first + words / 2;
    let dollar = |&at: &usize| !grouped && args.get(at).is_some_and(|id| *id == b"$");
    Some(Call {
        command,
        timeout: timeout::milliseconds(args.get(block)?)?,
        timeout_arg: block,
        keys: (first..ids).collect(),
        dollars: (ids..args.len()).filter(dollar).collect(),
    })
}

/// What stands before STREAMS.
#[derive(Default)]
struct Options {
    /// Index of the word STREAMS.
    streams: Option<usize>,
    /// Index of the value of the last BLOCK.
    block: Option<usize>,
    group: bool,
    /// NOACK or CLAIM, which XREAD does not take.
    only_grouped: bool,
}

impl Options {
    /// Reads words up to STREAMS, in any order and case. A word that is no known option is stepped over: a newer
    /// server may know it, and BLOCK behind it must not be missed.
    fn read<'a>(args: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut options = Self::default();
        let mut args = args.enumerate().skip(1);
        while let Some((i, word)) = args.next() {
            if word.eq_ignore_ascii_case(b"streams") {
                options.streams = Some(i);
                break;
            } else if word.eq_ignore_ascii_case(b"block") {
                options.block = args.next().map(|(i, _)| i);
            } else if is_one_of(word, &[b"count", b"maxcount", b"maxsize"]) {
                args.next();
            } else if word.eq_ignore_ascii_case(b"claim") {
                options.only_grouped = true;
                args.next();
            } else if word.eq_ignore_ascii_case(b"noack") {
                options.only_grouped = true;
            } else if word.eq_ignore_ascii_case(b"group") {
                options.group = true;
                args.next();
                args.next();
            }
        }
        options
    }
}

fn is_one_of(word: &[u8], words: &[&[u8]]) -> bool {
    words.iter().any(|known| word.eq_ignore_ascii_case(known))
}

/// A number above 0 as the server reads integers: digits only, no leading zero.
fn plain_count(text: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(text).ok()?;
    let plain = text.starts_with(|first: char| ('1'..='9').contains(&first));
    plain.then(|| text.parse().ok()).flatten().filter(|&count: &usize| count < 1 << 31)
}
