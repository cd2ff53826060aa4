//! Properties of a call for a hub: the type of its keys, how they are watched, and the same call for some of its keys.

use bytes::{Bytes, BytesMut};

use super::Call;
use crate::command::Blocking;
use crate::resp::{Request, encode};

/// The type of key that a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Waited {
    /// Elements of a list.
    List,
    /// Members of a sorted set.
    SortedSet,
    /// Entries of a stream.
    Stream,
}

impl Waited {
    /// The command that returns the number of elements. It reads the key, so it also enables CLIENT TRACKING for it.
    #[must_use]
    pub fn cardinality(self) -> &'static [u8] {
        match self {
            Self::List => b"LLEN",
            Self::SortedSet => b"ZCARD",
            Self::Stream => b"XLEN",
        }
    }
}

impl Blocking {
    /// The type of key that the command waits for.
    #[must_use]
    pub fn waits_for(self) -> Waited {
        match self {
            Self::BLPop | Self::BRPop | Self::BLMove | Self::BRPopLPush | Self::BLMPop => Waited::List,
            Self::BZPopMin | Self::BZPopMax | Self::BZMPop => Waited::SortedSet,
            Self::XRead | Self::XReadGroup => Waited::Stream,
        }
    }
}

impl Call {
    /// The consumer group an XREADGROUP reads for.
    #[must_use]
    pub fn group<'a>(&self, request: &Request<'a>) -> Option<&'a [u8]> {
        if self.command != Blocking::XReadGroup {
            return None;
        }
        let at = request.args().position(|word| word.eq_ignore_ascii_case(b"group"))?;
        request.arg(at + 1)
    }

    /// XREAD: where the ids stand that mean a position of the moment, each with its stream's key: `$`, the end, and `+`,
    /// the last entry or the first that comes (since Redis 7.4).
    #[must_use]
    pub fn floating(&self, request: &Request<'_>) -> Vec<(usize, usize)> {
        if self.command != Blocking::XRead {
            return Vec::new();
        }
        // The ids stand behind the keys, in their order; an argument is found by walking the request, so it is walked once.
        let first = self.keys.first().map_or(usize::MAX, |key| key + self.keys.len());
        let ids = self.keys.iter().zip(request.args().skip(first));
        ids.filter(|(_, id)| matches!(*id, b"$" | b"+"))
            .map(|(key, _)| (*key, key + self.keys.len()))
            .collect()
    }

    /// The same XREAD with these ids in the places that [`Call::floating`] names; with `all` unset, `+` stays.
    #[must_use]
    pub fn with_positions(&self, request: &Request<'_>, ids: &[Bytes], all: bool) -> Bytes {
        let mut words: Vec<&[u8]> = request.args().collect();
        for ((_, at), id) in self.floating(request).into_iter().zip(ids) {
            if let Some(word) = words.get_mut(at)
                && (all || *word == b"$")
            {
                *word = id;
            }
        }
        encode::one_command(&words)
    }

    /// Which of the keys the argument at `at` is. They stand in ascending order, and there may be a hundred thousand.
    fn key_at(&self, at: usize) -> Option<usize> {
        self.keys.binary_search(&at).ok()
    }

    /// The key of which the argument at `at` is the id, in a call for streams.
    fn id_at(&self, at: usize) -> Option<usize> {
        self.key_at(at.checked_sub(self.keys.len())?)
    }

    /// Appends the call's name in lower case, its options and its destination: without the keys it waits for, their ids
    /// and the timeout.
    pub fn form(&self, request: &Request<'_>, out: &mut BytesMut) {
        let name = request.name().to_ascii_lowercase();
        let ids = if self.command.waits_for() == Waited::Stream { self.keys.len() } else { 0 };
        let waited = |at: usize| self.key_at(at).is_some() || ids > 0 && self.id_at(at).is_some();
        let words = request.args().enumerate().skip(1);
        let words = words.filter(|(at, _)| *at != self.timeout_arg && !waited(*at)).map(|(_, word)| word);
        encode::command(out, &std::iter::once(&name[..]).chain(words).collect::<Vec<_>>());
    }

    /// Appends the same call for those of its keys that `keep` says (one for each of [`Call::keys`]).
    ///
    /// For calls with several keys; a stream's id goes with it. BLMOVE and BRPOPLPUSH have one key and stay as they are.
    pub fn with_keys(&self, request: &Request<'_>, keep: &[bool], out: &mut BytesMut) {
        let kept = keep.iter().filter(|keep| **keep).count().to_string();
        let mut words: Vec<&[u8]> = Vec::with_capacity(request.argc());
        let stream = self.command.waits_for() == Waited::Stream;
        for (at, word) in request.args().enumerate() {
            let key = self.key_at(at);
            let id = if stream { self.id_at(at) } else { None };
            let dropped = key.or(id).is_some_and(|i| !keep.get(i).copied().unwrap_or(true));
            let counts = matches!(self.command, Blocking::BLMPop | Blocking::BZMPop) && at == 2;
            if !dropped {
                words.push(if counts { kept.as_bytes() } else { word });
            }
        }
        encode::command(out, &words);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::parse;
    use super::*;
    use crate::command::{Class, classify};

    fn with_keys(words: &str, keep: &[bool]) -> String {
        let mut frame = BytesMut::new();
        encode::command(&mut frame, &words.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        let request = Request::parse(&frame).unwrap();
        let Class::Blocking(command) = classify(&request).class else { return String::new() };
        let mut out = BytesMut::new();
        parse(&request, command).unwrap().with_keys(&request, keep, &mut out);
        let words: Vec<_> = Request::parse(&out)
            .unwrap()
            .args()
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        words.join(" ")
    }

    #[test]
    fn the_form_of_a_call_is_what_remains_without_its_keys_and_its_time() {
        for (words, expected) in [
            ("BLPOP a b 5", "blpop"),
            ("BLMOVE a b LEFT right 5", "blmove b LEFT right"),
            ("BZMPOP 5 2 a b MIN COUNT 3", "bzmpop 2 MIN COUNT 3"),
            ("XREAD COUNT 2 BLOCK 5 STREAMS s t $ 2-0", "xread COUNT 2 BLOCK STREAMS"),
        ] {
            let mut frame = BytesMut::new();
            encode::command(&mut frame, &words.split(' ').map(str::as_bytes).collect::<Vec<_>>());
            let request = Request::parse(&frame).unwrap();
            let call = Call::of(&request).unwrap();
            let mut out = BytesMut::new();
            call.form(&request, &mut out);
            let mut again = BytesMut::new();
            encode::command(&mut again, &expected.split(' ').map(str::as_bytes).collect::<Vec<_>>());
            assert_eq!(out, again, "{words}");
        }
    }

    #[test]
    fn a_call_can_be_made_for_some_of_its_keys() {
        assert_eq!(with_keys("BLPOP a b c 5", &[true, false, true]), "BLPOP a c 5");
        assert_eq!(with_keys("BZMPOP 5 2 a b MIN COUNT 3", &[false, true]), "BZMPOP 5 1 b MIN COUNT 3");
        assert_eq!(
            with_keys("XREAD COUNT 2 BLOCK 5 STREAMS s t u 1-0 2-0 3-0", &[true, false, true]),
            "XREAD COUNT 2 BLOCK 5 STREAMS s u 1-0 3-0"
        );
    }
}
