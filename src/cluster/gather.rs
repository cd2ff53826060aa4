//! A command for all nodes, or for keys of several slots: its parts, and the one reply that is made of theirs.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};

use crate::command::{Row, keys};
use crate::resp::{Request, elements, encode, integer, is_error};

use super::slot_of;

/// How replies become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gather {
    /// The values of the keys, in the order of the keys.
    Values,
    /// The sum of numbers.
    Sum,
    /// All elements, one node's behind the other's.
    All,
    /// Number by number the smaller one: 1 where it is 1 everywhere.
    Least,
    /// The first: they are all the same.
    First,
}

/// Commands for keys of any slots, which can be done part by part: no key has to do with another.
const BY_SLOT: [(&str, Gather); 5] = [
    ("del", Gather::Sum),
    ("exists", Gather::Sum),
    ("mget", Gather::Values),
    ("touch", Gather::Sum),
    ("unlink", Gather::Sum),
];
/// Commands without keys that every master runs.
const BY_MASTER: [(&str, Gather); 17] = [
    ("bgrewriteaof", Gather::First),
    ("bgsave", Gather::First),
    ("config|resetstat", Gather::First),
    ("config|rewrite", Gather::First),
    ("config|set", Gather::First),
    ("dbsize", Gather::Sum),
    ("flushall", Gather::First),
    ("flushdb", Gather::First),
    ("function|delete", Gather::First),
    ("function|flush", Gather::First),
    ("function|load", Gather::First),
    ("function|restore", Gather::First),
    ("keys", Gather::All),
    ("save", Gather::First),
    ("script|exists", Gather::Least),
    ("script|flush", Gather::First),
    ("script|load", Gather::First),
];

/// How the replies to a command for keys of several slots become one. `None`: its keys must be in one slot.
pub(super) fn by_slot(row: &Row) -> Option<Gather> {
    BY_SLOT.iter().find(|(name, _)| *name == row.name).map(|(_, gather)| *gather)
}

/// The same for a command that every master runs. `None`: it is none.
pub(super) fn by_master(row: &Row) -> Option<Gather> {
    BY_MASTER.iter().find(|(name, _)| *name == row.name).map(|(_, gather)| *gather)
}

/// The part of a command that concerns one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The slot.
    pub slot: u16,
    /// A command with its keys.
    pub command: Bytes,
    /// Which of all keys these are.
    pub keys: Vec<usize>,
}

/// `request`, of `row`, by the slots of its keys, in the order of their first keys.
#[must_use]
pub fn parts(row: &Row, request: &Request<'_>) -> Vec<Part> {
    let mut slots: Vec<(u16, Vec<usize>)> = Vec::new();
    let keys = keys(row, request);
    let mut places: HashMap<u16, usize> = HashMap::new();
    for (at, key) in keys.iter().enumerate() {
        let slot = slot_of(key);
        let place = *places.entry(slot).or_insert(slots.len());
        match slots.get_mut(place) {
            Some((_, own)) => own.push(at),
            None => slots.push((slot, vec![at])),
        }
    }
    let part = |(slot, own): (u16, Vec<usize>)| {
        let words = own.iter().filter_map(|at| keys.get(*at).copied());
        let words: Vec<&[u8]> = std::iter::once(request.name()).chain(words).collect();
        Part { slot, command: encode::one_command(&words), keys: own }
    };
    slots.into_iter().map(part).collect()
}

/// One reply of those to all parts; `keys` says for [`Gather::Values`] which keys each is about. An error of any part is the
/// reply: what the others have done stays done.
#[must_use]
pub fn gathered(gather: Gather, replies: &[Bytes], keys: &[Vec<usize>]) -> Bytes {
    if let Some(error) = replies.iter().find(|reply| is_error(reply)) {
        return error.clone();
    }
    let mut out = BytesMut::new();
    match gather {
        Gather::First => return replies.first().cloned().unwrap_or_default(),
        Gather::Sum => encode::integer(&mut out, replies.iter().filter_map(|reply| integer(reply)).sum()),
        Gather::All => {
            let all: Vec<&[u8]> = replies.iter().filter_map(|reply| elements(reply)).flatten().collect();
            encode::array(&mut out, all.len());
            all.iter().for_each(|element| out.extend_from_slice(element));
        }
        Gather::Least => {
            let numbers = replies
                .iter()
                .map(|reply| elements(reply).into_iter().flatten().filter_map(integer).collect());
            let least = numbers.reduce(|least: Vec<i64>, other: Vec<i64>| {
                least.into_iter().zip(other).map(|(one, other)| one.min(other)).collect()
            });
            let least = least.unwrap_or_default();
            encode::array(&mut out, least.len());
            least.iter().for_each(|number| encode::integer(&mut out, *number));
        }
        Gather::Values => {
            let mut values: Vec<(usize, &[u8])> = Vec::new();
            for (reply, own) in replies.iter().zip(keys) {
                values.extend(own.iter().copied().zip(elements(reply).into_iter().flatten()));
            }
            values.sort_by_key(|(at, _)| *at);
            encode::array(&mut out, values.len());
            values.iter().for_each(|(_, value)| out.extend_from_slice(value));
        }
    }
    out.freeze()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::command::{classify, rows};

    fn split(line: &str) -> Vec<(String, Vec<usize>)> {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let frame = encode::one_command(&words);
        let request = Request::parse(&frame).unwrap();
        let parts = parts(classify(&request).row.unwrap(), &request).into_iter();
        let line = |command: &Bytes| {
            let words = Request::parse(command).unwrap();
            words.args().map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>().join(" ")
        };
        parts.map(|part| (line(&part.command), part.keys)).collect()
    }

    fn replies(texts: &[&str]) -> Vec<Bytes> {
        texts.iter().map(|text| Bytes::copy_from_slice(text.as_bytes())).collect()
    }

    #[test]
    fn keys_are_divided_by_their_slots() {
        let expected = vec![("MGET a {a}2".to_owned(), vec![0, 2]), ("MGET b".to_owned(), vec![1])];
        assert_eq!(split("MGET a b {a}2"), expected);
        assert_eq!(split("DEL a a"), [("DEL a a".to_owned(), vec![0, 1])]);
    }

    #[test]
    fn values_stand_where_their_keys_do() {
        let parts = replies(&["*2\r\n$1\r\nx\r\n$-1\r\n", "*1\r\n$1\r\ny\r\n"]);
        let joined = gathered(Gather::Values, &parts, &[vec![0, 2], vec![1]]);
        assert_eq!(joined, "*3\r\n$1\r\nx\r\n$1\r\ny\r\n$-1\r\n");
    }

    #[test]
    fn replies_are_summed_joined_or_compared() {
        let gather = |gather, texts: &[&str]| gathered(gather, &replies(texts), &[]);
        assert_eq!(gather(Gather::Sum, &[":2\r\n", ":3\r\n"]), ":5\r\n");
        assert_eq!(gather(Gather::First, &["+OK\r\n", "+OK\r\n"]), "+OK\r\n");
        assert_eq!(gather(Gather::All, &["*1\r\n$1\r\na\r\n", "*0\r\n"]), "*1\r\n$1\r\na\r\n");
        assert_eq!(
            gather(Gather::Least, &["*2\r\n:1\r\n:1\r\n", "*2\r\n:1\r\n:0\r\n"]),
            "*2\r\n:1\r\n:0\r\n"
        );
        assert_eq!(gather(Gather::Sum, &[":2\r\n", "-OOM x\r\n"]), "-OOM x\r\n");
    }

    #[test]
    fn names_in_the_lists_are_those_of_the_table() {
        for (name, _) in BY_SLOT.iter().chain(&BY_MASTER) {
            assert!(rows().iter().any(|row| row.name == *name), "{name}");
        }
    }
}
