//! From a request's words to its row: the lookup.
//!
//! It runs for every command of every client, so it allocates nothing and hashes the name as it comes, in any case:
//! an open-addressing index over the rows is laid out at compile time. A container (CLIENT, SCRIPT, XINFO, …) sends
//! the lookup on to its subcommand.

use super::table::{ROWS, rows};
use super::{Class, Row, blocking, reads};
use crate::resp::Request;

/// A classified request.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Its class, including its arguments.
    pub class: Class,
    /// Reaches beyond the own connection.
    pub policy: bool,
    /// Its row; for an unlisted subcommand the row of its container. None: a command we do not know.
    pub row: Option<&'static Row>,
}

impl Asked {
    /// Whether a script, a function or a module may have written the text of its reply, rather than the server. Such a
    /// text does not describe the server.
    #[must_use]
    pub fn may_invent(&self) -> bool {
        self.row.is_none_or(|row| row.script) || self.class == Class::Unknown
    }

    /// Whether it only reads. A look into a list: for when it matters.
    #[must_use]
    pub fn only_reads(&self) -> bool {
        self.row.is_some_and(|row| reads::only_reads(row.name))
    }
}

/// Looks a request up: its name in any case, its subcommand, and the arguments where they decide.
///
/// XREAD and XREADGROUP are [`Class::Blocking`] only with BLOCK among their options. A container without a
/// subcommand passes (the server can only complain about the arity), CLIENT excepted, which we answer ourselves.
pub fn classify(request: &Request<'_>) -> Asked {
    let name = request.name();
    let Some(position) = lookup(name, None) else {
        return Asked { class: Class::Unknown, policy: false, row: None };
    };
    let row = match KINDS[position] {
        Kind::Plain => &rows()[position],
        Kind::Container => match request.arg(1) {
            Some(subcommand) => match lookup(name, Some(subcommand)) {
                Some(inner) => &rows()[inner],
                None => &rows()[position],
            },
            None => return bare_container(&rows()[position]),
        },
        // The client wrote the bar itself: no command has such a name.
        Kind::Subcommand => return Asked { class: Class::Unknown, policy: false, row: None },
    };
    let class = match row.class {
        Class::Blocking(command) if !blocking::blocks(request, command) => Class::Pass,
        class => class,
    };
    Asked { class, policy: row.policy, row: Some(row) }
}

/// The row of a name as the table has it (`client|kill`), in any case.
pub fn find(name: &str) -> Option<&'static Row> {
    lookup(name.as_bytes(), None).map(|position| &rows()[position])
}

fn bare_container(row: &'static Row) -> Asked {
    match row.class {
        Class::Unknown => Asked { class: Class::Pass, policy: false, row: Some(row) },
        class => Asked { class, policy: row.policy, row: Some(row) },
    }
}

/// Twice the rows and more, so that nearly every name is found at its first slot.
const SLOTS: usize = 2048;

/// Row number plus one, 0 for an empty slot.
static INDEX: [u16; SLOTS] = index();

/// What the place of a row among its neighbours says about it.
#[derive(Clone, Copy)]
enum Kind {
    Plain,
    /// Its subcommands stand behind it.
    Container,
    Subcommand,
}

static KINDS: [Kind; ROWS.len()] = kinds();

/// FNV-1a over the bytes with the case bit set. It must only agree for names that differ in case alone.
const fn hash(mut state: u32, bytes: &[u8]) -> u32 {
    let mut i = 0;
    while i < bytes.len() {
        state = (state ^ (bytes[i] | 0x20) as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    state
}

const SEED: u32 = 0x811c_9dc5;

const fn slot(hash: u32) -> usize {
    ((hash ^ (hash >> 15)) as usize) % SLOTS
}

const fn index() -> [u16; SLOTS] {
    let mut index = [0u16; SLOTS];
    let mut row = 0;
    while row < ROWS.len() {
        let mut at = slot(hash(SEED, ROWS[row].name.as_bytes()));
        while index[at] != 0 {
            at = (at + 1) % SLOTS;
        }
        index[at] = row as u16 + 1;
        row += 1;
    }
    index
}

const fn kinds() -> [Kind; ROWS.len()] {
    let mut kinds = [Kind::Plain; ROWS.len()];
    let mut outer = 0;
    let mut row = 1;
    while row < ROWS.len() {
        if is_inside(ROWS[row].name.as_bytes(), ROWS[outer].name.as_bytes()) {
            kinds[outer] = Kind::Container;
            kinds[row] = Kind::Subcommand;
        } else {
            outer = row;
        }
        row += 1;
    }
    kinds
}

/// Whether `name` is `outer`, a bar, and more.
const fn is_inside(name: &[u8], outer: &[u8]) -> bool {
    if name.len() <= outer.len() || name[outer.len()] != b'|' {
        return false;
    }
    let mut i = 0;
    while i < outer.len() {
        if name[i] != outer[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// No name in the table is longer: what is, is unknown without being hashed.
const LONGEST_WORD: usize = 32;

fn lookup(name: &[u8], subcommand: Option<&[u8]>) -> Option<usize> {
    if name.len() > LONGEST_WORD || subcommand.is_some_and(|word| word.len() > LONGEST_WORD) {
        return None;
    }
    let mut state = hash(SEED, name);
    if let Some(subcommand) = subcommand {
        state = hash(hash(state, b"|"), subcommand);
    }
    let mut at = slot(state);
    loop {
        let row = usize::from(INDEX[at]).checked_sub(1)?;
        if is_named(ROWS[row].name.as_bytes(), name, subcommand) {
            return Some(row);
        }
        at = (at + 1) % SLOTS;
    }
}

fn is_named(row: &[u8], name: &[u8], subcommand: Option<&[u8]>) -> bool {
    match subcommand {
        None => row.eq_ignore_ascii_case(name),
        Some(subcommand) => match row.split_at_checked(name.len()) {
            Some((outer, [b'|', inner @ ..])) => {
                outer.eq_ignore_ascii_case(name) && inner.eq_ignore_ascii_case(subcommand)
            }
            Some(_) | None => false,
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;
    use crate::command::{Blocking, Keys, ROUTES, Refusal, rows};
    use crate::resp::encode;

    fn asked(line: &str) -> Asked {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        asked_of(&words)
    }

    fn asked_of(words: &[&[u8]]) -> Asked {
        let mut bytes = BytesMut::new();
        encode::command(&mut bytes, words);
        classify(&Request::parse(&bytes).unwrap())
    }

    fn class(line: &str) -> Class {
        asked(line).class
    }

    #[test]
    fn the_row_of_a_command_lies_in_the_one_table() {
        let range = rows().as_ptr_range();
        for row in rows() {
            let found = find(row.name).unwrap();
            assert!(range.contains(&std::ptr::from_ref(found)) && std::ptr::eq(found, row), "{}", row.name);
        }
    }

    #[test]
    fn every_row_is_found_by_its_name_in_any_case() {
        for row in rows() {
            for name in [row.name.to_owned(), row.name.to_ascii_uppercase()] {
                assert_eq!(find(&name).unwrap().name, row.name);
                let mut words: Vec<&[u8]> = name.split('|').map(str::as_bytes).collect();
                words.push(b"x");
                let asked = asked_of(&words);
                // A container takes the further word for a subcommand and falls back on its own row.
                assert_eq!(asked.row.unwrap().name, row.name);
                assert_eq!(asked.policy, row.policy);
            }
        }
    }

    #[test]
    fn every_row_is_well_formed() {
        let mut names: Vec<&str> = rows().iter().map(|row| row.name).collect();
        for row in rows() {
            assert_eq!(row.name, row.name.to_ascii_lowercase());
            assert!(row.name.split('|').all(|word| !word.is_empty() && word.len() <= LONGEST_WORD));
            assert!(!row.why.is_empty() && row.why.len() <= 110, "{}", row.name);
            assert_ne!(row.arity, 0);
            assert!(ROUTES.iter().any(|(route, _)| *route == row.class.route()), "{}", row.name);
            if let Some((outer, _)) = row.name.split_once('|') {
                assert!(find(outer).is_some(), "{} has no container", row.name);
            }
        }
        names.sort_unstable();
        names.windows(2).for_each(|pair| assert_ne!(pair[0], pair[1]));
        assert!(rows().len() * 2 < SLOTS);
    }

    #[test]
    fn a_route_without_a_row_is_not_explained() {
        for (route, _) in ROUTES {
            assert!(rows().iter().any(|row| row.class.route() == *route), "{route}");
        }
    }

    #[test]
    fn a_container_looks_at_its_first_argument() {
        assert_eq!(class("CLIENT kill 1.2.3.4:5"), Class::ClientKill);
        assert_eq!(class("client ID"), Class::ClientId);
        assert_eq!(class("SCRIPT LOAD x"), Class::Pass);
        assert_eq!(class("SCRIPT kill"), Class::Control);
        assert_eq!(class("script debug yes"), Class::Refused(Refusal::Debugger));
        assert_eq!(class("FUNCTION STATS"), Class::Control);
        assert_eq!(class("HIMPORT PREPARE f a"), Class::Lease);
        assert!(asked("CONFIG SET a b").policy);
        assert!(!asked("CONFIG HELP").policy);
    }

    #[test]
    fn an_unlisted_subcommand_falls_to_the_rule_of_its_container() {
        assert_eq!(class("CLIENT MAINT_NOTIFICATIONS ON"), Class::ClientUnknown);
        assert_eq!(class("CLIENT"), Class::ClientUnknown);
        assert_eq!(class("XINFO SOMETHING s"), Class::Unknown);
        assert_eq!(asked("XINFO SOMETHING s").row.unwrap().name, "xinfo");
        assert!(asked("CONFIG SOMETHING").policy);
        assert_eq!(class("PROXY SOMETHING"), Class::Proxy);
        assert_eq!(class("HIMPORT SOMETHING"), Class::Lease);
        assert_eq!(class("COMMAND"), Class::Pass);
    }

    #[test]
    fn a_container_alone_gets_its_arity_error_from_the_server() {
        assert_eq!(class("CONFIG"), Class::Pass);
        assert!(!asked("CONFIG").policy);
    }

    #[test]
    fn a_bar_written_by_the_client_is_no_way_into_the_table() {
        assert_eq!(class("client|kill x"), Class::Unknown);
        assert_eq!(class("client| kill"), Class::Unknown);
        assert_eq!(class("config get|x y"), Class::Unknown);
    }

    #[test]
    fn what_is_not_in_the_table_is_unknown() {
        for line in ["JSON.GET k", "nosuch", "", "GETT k", "GE"] {
            let asked = asked(line);
            assert_eq!(asked.class, Class::Unknown, "{line:?}");
            assert!(asked.row.is_none() && !asked.policy);
        }
        let long = [b'x'; 70_000];
        assert_eq!(asked_of(&[&long]).class, Class::Unknown);
        assert_eq!(asked_of(&[b"CLIENT", &long]).class, Class::ClientUnknown);
    }

    #[test]
    fn stream_reads_block_only_with_block_before_streams() {
        let read = Class::Blocking(Blocking::XRead);
        let group = Class::Blocking(Blocking::XReadGroup);
        assert_eq!(class("XREAD STREAMS s 0"), Class::Pass);
        assert_eq!(class("XREAD COUNT 5 STREAMS block 0"), Class::Pass);
        assert_eq!(class("XREAD COUNT 5 streams s BLOCK"), Class::Pass);
        assert_eq!(class("xread bLoCk 0 STREAMS s $"), read);
        assert_eq!(class("XREAD COUNT 5 BLOCK 100 STREAMS s $"), read);
        assert_eq!(class("XREAD MAXCOUNT 5 BLOCK 100 STREAMS s $"), read);
        assert_eq!(class("XREAD SOMETHING-NEW BLOCK 100 STREAMS s $"), read);
        assert_eq!(class("XREADGROUP GROUP block block STREAMS s >"), Class::Pass);
        assert_eq!(class("XREADGROUP GROUP g c NOACK STREAMS s >"), Class::Pass);
        assert_eq!(class("XREADGROUP GROUP g c NOACK BLOCK 1 STREAMS s >"), group);
        assert_eq!(class("XREADGROUP GROUP streams c CLAIM 10 BLOCK 1 STREAMS s >"), group);
        assert_eq!(class("BLPOP k 0"), Class::Blocking(Blocking::BLPop));
    }

    #[test]
    fn arity_counts_the_name() {
        let get = find("get").unwrap();
        assert!(get.accepts(2) && !get.accepts(1) && !get.accepts(3));
        let set = find("set").unwrap();
        assert!(set.accepts(3) && set.accepts(5) && !set.accepts(2));
        assert_eq!(set.keys, Keys::Range { first: 1, last: 1, step: 1 });
    }

    proptest! {
        #[test]
        fn any_words_are_classified_and_only_by_their_case_folded_text(
            words in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 1..5)
        ) {
            let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            let found = asked_of(&words);
            let folded: Vec<Vec<u8>> = words.iter().map(|word| word.to_ascii_uppercase()).collect();
            let folded: Vec<&[u8]> = folded.iter().map(Vec::as_slice).collect();
            let again = asked_of(&folded);
            prop_assert_eq!(found.class, again.class);
            if let Some(row) = found.row {
                prop_assert!(row.name.split('|').next().unwrap().as_bytes().eq_ignore_ascii_case(words[0]));
            }
        }
    }

    #[test]
    fn what_uses_scripts_is_marked() {
        let marked: Vec<&str> =
            crate::command::rows().iter().filter(|row| row.uses_scripts).map(|row| row.name).collect();
        for name in [
            "eval",
            "evalsha_ro",
            "fcall",
            "script|load",
            "script|exists",
            "function|load",
            "script",
            "function",
        ] {
            assert!(marked.contains(&name), "{name}: {marked:?}");
        }
        let families = ["eval", "fcall", "script", "function"];
        assert!(
            marked.iter().all(|name| families.iter().any(|family| name.starts_with(family))),
            "{marked:?}"
        );
    }
}
