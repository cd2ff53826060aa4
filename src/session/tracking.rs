//! Client-side caching as a client has asked for it: `CLIENT TRACKING`, `CACHING`, `TRACKINGINFO`, `GETREDIR`.
//!
//! Options and errors are those of `clientCommand` in redis `networking.c` and of `tracking.c`. What follows from them is
//! carried out elsewhere: the server tracks for a lane, and our table says who read what over it.

use std::collections::BTreeSet;
use std::ops::Bound;

use bytes::Bytes;

use super::text::decimal;
use crate::command::{Asked, Class, keys};
use crate::resp::Request;

/// Which reads are tracked without CLIENT CACHING.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Caching {
    /// All.
    #[default]
    All,
    /// Those behind CLIENT CACHING YES.
    OptIn,
    /// Those not behind CLIENT CACHING NO.
    OptOut,
}

/// CLIENT TRACKING ON, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tracking {
    /// Which reads are remembered.
    pub caching: Caching,
    /// CLIENT CACHING applies to the next command.
    pub is_next_marked: bool,
    /// The client gets no invalidation for its own writes (NOLOOP).
    pub no_loop: bool,
    /// BCAST: the prefixes of keys that it gets invalidations for. Never empty: the empty prefix matches all keys.
    pub prefixes: Option<BTreeSet<Bytes>>,
    /// REDIRECT: who is told instead.
    pub redirect: Option<Redirect>,
}

/// The client that is told of what another one has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Its id, as CLIENT ID gives it.
    pub id: u64,
    /// It was not there any more when it was to be told.
    pub is_broken: bool,
}

impl Redirect {
    /// It is not there any more.
    #[must_use]
    pub fn broken(self) -> Self {
        Self { is_broken: true, ..self }
    }
}

/// Reads of a client that the server does not track for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reads {
    /// These keys.
    Keys(Vec<Bytes>),
    /// Unknown keys, read by a script or a module.
    Unknown,
}

pub(super) const SYNTAX: &str = "ERR syntax error";
const NOBODY: &str = "ERR The client ID you want redirect to does not exist";

impl Tracking {
    /// What CLIENT TRACKING makes of `now`; `Err`: the server's error (no leading `-`). `is_there` says whether the client is
    /// there that [`redirect_of`] names.
    ///
    /// # Errors
    /// The options are wrong, or do not fit to one another or to what is on.
    pub fn after(now: Option<&Self>, request: &Request<'_>, is_there: bool) -> Result<Option<Self>, String> {
        let mut asked = Asking::default();
        let words: Vec<&[u8]> = request.args().collect();
        let mut rest = words.get(3..).unwrap_or_default().iter();
        while let Some(word) = rest.next() {
            let is = |other: &[u8]| word.eq_ignore_ascii_case(other);
            if is(b"redirect") && rest.len() > 0 {
                if asked.redirect.is_some() {
                    return Err("ERR A client can only redirect to a single other client".to_owned());
                }
                let id = rest.next().and_then(|id| decimal(id));
                let id = id.ok_or_else(|| "ERR value is not an integer or out of range".to_owned())?;
                match u64::try_from(id) {
                    Ok(id) if is_there => asked.redirect = Some(Redirect { id, is_broken: false }),
                    Ok(_) | Err(_) => return Err(NOBODY.to_owned()),
                }
            } else if is(b"bcast") {
                asked.broadcast = true;
            } else if is(b"optin") {
                asked.opt_in = true;
            } else if is(b"optout") {
                asked.opt_out = true;
            } else if is(b"noloop") {
                asked.no_loop = true;
            } else if is(b"prefix") && rest.len() > 0 {
                asked.prefixes.extend(rest.next().copied());
            } else {
                return Err(SYNTAX.to_owned());
            }
        }
        match words.get(2) {
            Some(word) if word.eq_ignore_ascii_case(b"on") => asked.turned_on(now).map(Some),
            Some(word) if word.eq_ignore_ascii_case(b"off") => Ok(None),
            Some(_) | None => Err(SYNTAX.to_owned()),
        }
    }

    /// Whether reads are tracked by key rather than by prefix.
    pub(super) fn remembers_next(&self) -> bool {
        self.prefixes.is_none()
            && match self.caching {
                Caching::All => true,
                Caching::OptIn => self.is_next_marked,
                Caching::OptOut => !self.is_next_marked,
            }
    }
}

/// The client that CLIENT TRACKING wants to redirect to, if it says so well.
#[must_use]
pub fn redirect_of(request: &Request<'_>) -> Option<u64> {
    let mut words = request.args().skip(3);
    words.find(|word| word.eq_ignore_ascii_case(b"redirect"))?;
    u64::try_from(decimal(words.next()?)?).ok()
}

/// The options of CLIENT TRACKING.
#[derive(Default)]
struct Asking<'a> {
    broadcast: bool,
    opt_in: bool,
    opt_out: bool,
    no_loop: bool,
    prefixes: Vec<&'a [u8]>,
    redirect: Option<Redirect>,
}

impl Asking<'_> {
    fn turned_on(&self, now: Option<&Tracking>) -> Result<Tracking, String> {
        let refuse = |text: &str| Err(format!("ERR {text}"));
        if !self.broadcast && !self.prefixes.is_empty() {
            return refuse("PREFIX option requires BCAST mode to be enabled");
        }
        if now.is_some_and(|now| now.prefixes.is_some() != self.broadcast) {
            return refuse(
                "You can't switch BCAST mode on/off before disabling tracking for this client, and then re-enabling it with a different mode.",
            );
        }
        if self.broadcast && (self.opt_in || self.opt_out) {
            return refuse("OPTIN and OPTOUT are not compatible with BCAST");
        }
        if self.opt_in && self.opt_out {
            return refuse("You can't specify both OPTIN mode and OPTOUT mode");
        }
        let had = now.map_or(Caching::All, |now| now.caching);
        if self.opt_in && had == Caching::OptOut || self.opt_out && had == Caching::OptIn {
            return refuse(
                "You can't switch OPTIN/OPTOUT mode before disabling tracking for this client, and then re-enabling it with a different mode.",
            );
        }
        let mut prefixes = now.and_then(|now| now.prefixes.clone());
        if self.broadcast {
            let known = prefixes.get_or_insert_default();
            self.check_prefixes(known)?;
            known.extend(self.prefixes.iter().map(|prefix| Bytes::copy_from_slice(prefix)));
            if self.prefixes.is_empty() {
                known.insert(Bytes::new());
            }
        }
        let caching = match (self.opt_in, self.opt_out) {
            (true, _) => Caching::OptIn,
            (_, true) => Caching::OptOut,
            _ => Caching::All, // neither was said
        };
        let is_next_marked = now.is_some_and(|now| now.is_next_marked);
        Ok(Tracking { caching, is_next_marked, no_loop: self.no_loop, prefixes, redirect: self.redirect })
    }

    /// `checkPrefixCollisionsOrReply` in redis `tracking.c`.
    fn check_prefixes(&self, known: &BTreeSet<Bytes>) -> Result<(), String> {
        let overlap = |a: &[u8], b: &[u8]| a.starts_with(b) || b.starts_with(a);
        let text = |prefix: &[u8], how: &str, other: &[u8]| {
            let (prefix, other) = (String::from_utf8_lossy(prefix), String::from_utf8_lossy(other));
            format!(
                "ERR Prefix '{prefix}' overlaps with {how} prefix '{other}'. Prefixes for a single client must not overlap."
            )
        };
        let others = overlapping(&self.prefixes);
        for (at, prefix) in self.prefixes.iter().enumerate() {
            if overlaps_one_of(prefix, known)
                && let Some(other) = known.iter().find(|other| overlap(prefix, other))
            {
                return Err(text(prefix, "an existing", other));
            }
            if others[at]
                && let Some(other) = self.prefixes[at + 1..].iter().find(|other| overlap(prefix, other))
            {
                return Err(text(prefix, "another provided", other));
            }
        }
        Ok(())
    }
}

/// Whether `prefix` begins with one of `known`, or one of them with it. None of them begins with another one, so one that
/// `prefix` begins with comes directly before it in their order, and those that begin with it directly behind.
fn overlaps_one_of(prefix: &[u8], known: &BTreeSet<Bytes>) -> bool {
    let before = known.range::<[u8], _>((Bound::Unbounded, Bound::Included(prefix))).next_back();
    let behind = known.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded)).next();
    before.is_some_and(|before| prefix.starts_with(before))
        || behind.is_some_and(|behind| behind.starts_with(prefix))
}

/// Which of `prefixes` begin with another one of them, or are what another one begins with. In their order those that begin with
/// one follow it directly.
fn overlapping(prefixes: &[&[u8]]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..prefixes.len()).collect();
    order.sort_by_key(|at| prefixes[*at]);
    let mut found = vec![false; prefixes.len()];
    // Those that the present one may begin with, each of which begins with the one before.
    let mut open: Vec<usize> = Vec::new();
    for at in order {
        while open.last().is_some_and(|last| !prefixes[at].starts_with(prefixes[*last])) {
            open.pop();
        }
        if let Some(last) = open.last() {
            (found[*last], found[at]) = (true, true);
        }
        open.push(at);
    }
    found
}

/// The keys that `request` reads, as the server tracks them: those of commands with the flag `readonly` (`call` in redis
/// `server.c`), and of what a script or a module reads.
#[must_use]
pub fn reads(asked: &Asked, request: &Request<'_>) -> Option<Reads> {
    let Some(row) = asked.row else { return Some(Reads::Unknown) };
    if row.script || asked.class == Class::Unknown {
        return Some(Reads::Unknown);
    }
    // PFCOUNT is read-only to tracking, though it may write.
    if !asked.only_reads() && row.name != "pfcount" {
        return None;
    }
    let keys: Vec<_> = keys(row, request).into_iter().map(Bytes::copy_from_slice).collect();
    (!keys.is_empty()).then_some(Reads::Keys(keys))
}

/// Whether the command empties a database, of which the server tells every client that tracks
/// (`trackingInvalidateKeysOnFlush` in redis `tracking.c`).
#[must_use]
pub fn empties(asked: &Asked) -> bool {
    asked.row.is_some_and(|row| matches!(row.name, "flushdb" | "flushall"))
}

/// The key that `request` surely writes if it is answered `+OK`: that of SET without a condition.
#[must_use]
pub fn sure_write<'a>(asked: &Asked, request: &Request<'a>) -> Option<&'a [u8]> {
    let is_set = asked.row.is_some_and(|row| row.name == "set");
    let is_plain = |word: &[u8]| {
        word.eq_ignore_ascii_case(b"ex")
            || word.eq_ignore_ascii_case(b"px")
            || word.eq_ignore_ascii_case(b"keepttl")
    };
    let mut options = request.args().skip(3);
    let has_no_condition = match (options.next(), options.next(), options.next()) {
        (None, ..) => true,
        (Some(word), _, None) => is_plain(word),
        (Some(_), _, Some(_)) => false,
    };
    if is_set && has_no_condition { request.arg(1) } else { None }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn turned_on(known: &[&str], prefixes: &[&str]) -> Result<BTreeSet<Bytes>, String> {
        let known = known.iter().map(|prefix| Bytes::copy_from_slice(prefix.as_bytes())).collect();
        let now = Tracking { prefixes: Some(known), ..Tracking::default() };
        let prefixes = prefixes.iter().map(|prefix| prefix.as_bytes()).collect();
        let asking = Asking { broadcast: true, prefixes, ..Asking::default() };
        asking.turned_on(Some(&now)).map(|next| next.prefixes.unwrap())
    }

    /// Against the plain rule, on all choices of a few prefixes.
    #[test]
    fn prefixes_overlap_where_one_begins_with_another() {
        let words = ["a", "ab", "abc", "ac", "b", "bc", ""];
        let overlap = |a: &str, b: &str| a.starts_with(b) || b.starts_with(a);
        for first in words {
            for second in words {
                for third in words {
                    let (known, asked) = ([first], [second, third]);
                    let expected = if overlap(second, first) {
                        Some(("an existing", second, first))
                    } else if overlap(second, third) {
                        Some(("another provided", second, third))
                    } else if overlap(third, first) {
                        Some(("an existing", third, first))
                    } else {
                        None
                    };
                    let expected = expected.map(|(how, prefix, other)| {
                        format!(
                            "ERR Prefix '{prefix}' overlaps with {how} prefix '{other}'. Prefixes for a single client must not overlap."
                        )
                    });
                    assert_eq!(turned_on(&known, &asked).err(), expected, "{known:?} {asked:?}");
                }
            }
        }
    }

    #[test]
    fn those_that_overlap_are_found_wherever_they_stand() {
        let found = overlapping(&[b"c", b"ab", b"ac", b"a", b"b", b"c"]);
        assert_eq!(found, [true, true, true, true, false, true]);
    }
}
