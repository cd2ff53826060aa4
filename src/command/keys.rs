//! Where the keys of a request are.
//!
//! Most commands say it by position. The others (`movablekeys` in `COMMAND`) count them, or put them behind a word
//! among the options; those rules are written here once, and a test compares them with `COMMAND GETKEYS`.

use super::blocking::options_end;
use super::{Keys, Row};
use crate::resp::Request;

/// The indices of the keys in a request; empty for malformed arguments, which the server will complain about.
///
/// As with the server's own `COMMAND GETKEYS`, patterns (SORT … BY and GET) are not keys.
pub fn key_positions(row: &Row, request: &Request<'_>) -> Vec<usize> {
    match row.keys {
        _ if !row.accepts(request.argc()) => Vec::new(),
        Keys::None => Vec::new(),
        Keys::Range { first, last, step } => in_range(request.argc(), first, last, step),
        Keys::Special => special(row.name, request).unwrap_or_default(),
    }
}

/// The keys in a request, in the order of [`key_positions`]. The request is walked once, however many there are.
pub fn keys<'a>(row: &Row, request: &Request<'a>) -> Vec<&'a [u8]> {
    let positions = key_positions(row, request);
    match &positions[..] {
        [] => Vec::new(),
        [at] => request.arg(*at).into_iter().collect(),
        many => {
            let args: Vec<&[u8]> = request.args().collect();
            many.iter().filter_map(|at| args.get(*at).copied()).collect()
        }
    }
}

fn in_range(argc: usize, first: i8, last: i8, step: i8) -> Vec<usize> {
    let end = match usize::try_from(last) {
        Ok(last) => last,
        Err(_) => argc.saturating_sub(usize::from(last.unsigned_abs())),
    };
    let first = usize::from(first.unsigned_abs());
    (first..=end.min(argc.saturating_sub(1))).step_by(usize::from(step.unsigned_abs()).max(1)).collect()
}

fn special(name: &str, request: &Request<'_>) -> Option<Vec<usize>> {
    let args: Vec<&[u8]> = request.args().collect();
    match name {
        "eval" | "eval_ro" | "evalsha" | "evalsha_ro" | "fcall" | "fcall_ro" | "blmpop" | "bzmpop" => {
            counted(&args, 2, 1)
        }
        "lmpop" | "zmpop" | "sintercard" | "sdiffcard" | "sunioncard" | "zdiff" | "zinter" | "zintercard"
        | "zunion" => counted(&args, 1, 1),
        "msetex" => counted(&args, 1, 2),
        "zdiffstore" | "zinterstore" | "zunionstore" => {
            let mut keys = vec![1];
            keys.extend(counted(&args, 2, 1)?);
            Some(keys)
        }
        "xread" | "xreadgroup" => {
            let first = options_end(&args)? + 1;
            Some((first..first + args.len().checked_sub(first)? / 2).collect())
        }
        "sort" => Some(with_destination(&args, &[b"store"], 2)),
        "sort_ro" => Some(vec![1]),
        "georadius" => Some(with_destination(&args, &[b"store", b"storedist"], 6)),
        "georadiusbymember" => Some(with_destination(&args, &[b"store", b"storedist"], 5)),
        "migrate" => migrated(&args),
        _ => None,
    }
}

/// Keys (each the first of `step` words) behind their number at `numkeys`.
fn counted(args: &[&[u8]], numkeys: usize, step: usize) -> Option<Vec<usize>> {
    let count: usize = std::str::from_utf8(args.get(numkeys)?).ok()?.parse().ok()?;
    let first = numkeys + 1;
    let end = first.checked_add(count.checked_mul(step)?)?;
    (end <= args.len()).then(|| (first..end).step_by(step).collect())
}

/// The key at 1, and the one behind the last of `words` found from index `from` on.
fn with_destination(args: &[&[u8]], words: &[&[u8]], from: usize) -> Vec<usize> {
    let mut keys = vec![1];
    let destination = (from..args.len().saturating_sub(1))
        .rev()
        .find(|&i| args.get(i).is_some_and(|arg| words.iter().any(|word| arg.eq_ignore_ascii_case(word))));
    keys.extend(destination.map(|i| i + 1));
    keys
}

/// MIGRATE host port key db timeout …: several keys stand behind KEYS, and the single one is empty then.
fn migrated(args: &[&[u8]]) -> Option<Vec<usize>> {
    if !args.get(3)?.is_empty() {
        return Some(vec![3]);
    }
    let keys = args.iter().skip(6).position(|arg| arg.eq_ignore_ascii_case(b"keys"))? + 7;
    Some((keys..args.len()).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::command::classify;
    use crate::resp::encode;

    /// The keys of a line of words; `''` is an empty word.
    fn found(line: &str) -> Vec<String> {
        let words: Vec<&[u8]> =
            line.split(' ').map(|word| if word == "''" { "" } else { word }.as_bytes()).collect();
        let mut bytes = BytesMut::new();
        encode::command(&mut bytes, &words);
        let request = Request::parse(&bytes).unwrap();
        let row = classify(&request).row.unwrap();
        keys(row, &request).iter().map(|key| String::from_utf8(key.to_vec()).unwrap()).collect()
    }

    #[test]
    fn keys_stand_at_fixed_places() {
        assert_eq!(found("GET a"), ["a"]);
        assert_eq!(found("MSET a 1 b 2"), ["a", "b"]);
        assert_eq!(found("BLPOP a b 0"), ["a", "b"]);
        assert_eq!(found("BITOP AND d a b"), ["d", "a", "b"]);
        assert_eq!(found("XINFO STREAM s"), ["s"]);
        assert!(found("PING").is_empty());
        assert!(found("GET").is_empty());
    }

    #[test]
    fn keys_are_found_from_the_arguments() {
        assert_eq!(found("EVAL return 2 a b c"), ["a", "b"]);
        assert_eq!(found("BLMPOP 0 2 a b LEFT"), ["a", "b"]);
        assert_eq!(found("ZUNIONSTORE d 2 a b WEIGHTS 1 2"), ["d", "a", "b"]);
        assert_eq!(found("XREADGROUP GROUP g c STREAMS a b > >"), ["a", "b"]);
        assert_eq!(found("XREAD COUNT 2 BLOCK 0 STREAMS a 0"), ["a"]);
        assert_eq!(found("SORT a BY w_* STORE d"), ["a", "d"]);
        assert_eq!(found("SORT store"), ["store"]);
        assert_eq!(found("GEORADIUS g 1 1 1 km STOREDIST d"), ["g", "d"]);
        assert_eq!(found("MIGRATE h 1 '' 0 10 KEYS a b"), ["a", "b"]);
        assert_eq!(found("MIGRATE h 1 a 0 10"), ["a"]);
        assert_eq!(found("MSETEX 2 a 1 b 2 EX 5"), ["a", "b"]);
    }

    #[test]
    fn malformed_arguments_have_no_keys() {
        assert!(found("EVAL return x a").is_empty());
        assert!(found("ZUNION 9999999999999999999999 a").is_empty());
        assert!(found("ZUNION 3 a").is_empty());
        assert!(found("XREAD COUNT 2").is_empty());
        assert!(found("MIGRATE h").is_empty());
        for line in ["SORT", "SORT_RO", "ZUNIONSTORE d", "GEORADIUS"] {
            assert!(found(line).is_empty(), "{line}");
        }
    }

    #[test]
    fn ten_times_the_keys_cost_ten_times_the_words_walked_over() {
        let walked = |command: &str, count: usize| {
            let words: Vec<String> = (0..count).map(|at| format!("k{at}")).collect();
            let words = std::iter::once(command).chain(words.iter().map(String::as_str)).map(str::as_bytes);
            let mut bytes = BytesMut::new();
            encode::command(&mut bytes, &words.collect::<Vec<_>>());
            let request = Request::parse(&bytes).unwrap();
            let before = crate::resp::WALKED.get();
            assert_eq!(keys(classify(&request).row.unwrap(), &request).len(), count);
            crate::resp::WALKED.get() - before
        };
        for command in ["MGET", "DEL"] {
            let (few, many) = (walked(command, 100), walked(command, 1_000));
            assert!(many <= few * 11, "{command}: {few} words for 100 keys, {many} for 1,000");
        }
    }
}
