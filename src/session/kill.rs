//! The filters of CLIENT KILL and CLIENT LIST (`clientKillCommand`, `clientListCommand` in redis `networking.c`, and the
//! wider set of Valkey 9).
//!
//! A filter is judged here, against parsed rows, and carried out by id: a forwarded `KILL TYPE normal` would kill every
//! lane of ours. Whether its words are right is for the server to say, which knows what its version takes
//! ([`Filter::harmless`]); so what is read here is what any version takes.

use std::collections::HashSet;

use bytes::Bytes;

use super::Listed;
use crate::resp::{Request, encode};

/// An id that no client of any server ever has.
pub(super) const NOBODY: &[u8] = b"9223372036854775807";

/// Which clients a CLIENT KILL or CLIENT LIST means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The old form of CLIENT KILL, by address: exactly one, answered by +OK.
    pub old_form: bool,
    /// Not the asking client itself.
    skip_me: bool,
    conditions: Vec<Condition>,
}

/// One option and its value; `negated` where it was written `NOT-…`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    negated: bool,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    /// One of these ids.
    Id(HashSet<u64>),
    /// The peer's address.
    Addr(String),
    /// The peer's address without its port.
    Ip(String),
    /// The address it came to.
    LocalAddr(String),
    /// The type, as in [`Listed::kind`].
    Kind(String),
    User(String),
    Name(String),
    LibName(String),
    LibVer(String),
    /// Every one of these letters.
    Flags(String),
    Database(String),
    /// Connected for so many seconds at least.
    MaxAge(u64),
    /// Silent for so many seconds at least.
    Idle(u64),
    /// A capability of CLIENT CAPA, which no client of redbouncer has.
    Capability,
}

impl Filter {
    /// Parses the arguments of CLIENT KILL; `None` if no version accepts them.
    #[must_use]
    pub fn of_kill(request: &Request<'_>) -> Option<Self> {
        match (request.argc(), request.arg(2)) {
            (3, Some(address)) => {
                let test = Test::Addr(String::from_utf8_lossy(address).into_owned());
                let conditions = vec![Condition { negated: false, test }];
                Some(Self { old_form: true, skip_me: false, conditions })
            }
            _ => Self::read(request, true),
        }
    }

    /// Reads the arguments of PROXY KILL, which has filters of its own: `CONNECTION` is the id of an upstream connection on the
    /// server, `holders` the clients that hold it alone. `None` for what is none, and without any filter.
    #[must_use]
    pub fn of_proxy_kill(request: &Request<'_>, holders: impl Fn(u64) -> HashSet<u64>) -> Option<Self> {
        let mut filter = Self { old_form: false, skip_me: true, conditions: Vec::new() };
        let mut words = request.args().skip(2).map(|word| String::from_utf8_lossy(word).into_owned());
        while let Some(option) = words.next() {
            let value = words.next()?;
            let test = match option.to_ascii_lowercase().as_str() {
                "skipme" => {
                    filter.skip_me = value.eq_ignore_ascii_case("yes");
                    continue;
                }
                "id" => Test::Id(HashSet::from([value.parse().ok()?])),
                "connection" => Test::Id(holders(value.parse().ok()?)),
                "addr" => Test::Addr(value),
                "user" => Test::User(value),
                "name" => Test::Name(value),
                "idle" => Test::Idle(value.parse().ok()?),
                _ => return None,
            };
            filter.conditions.push(Condition { negated: false, test });
        }
        (!filter.conditions.is_empty()).then_some(filter)
    }

    /// Parses the arguments of CLIENT LIST; `None` if no version accepts them.
    #[must_use]
    pub fn of_list(request: &Request<'_>) -> Option<Self> {
        Self::read(request, false)
    }

    fn read(request: &Request<'_>, skip_me: bool) -> Option<Self> {
        let mut filter = Self { old_form: false, skip_me, conditions: Vec::new() };
        let mut words =
            request.args().skip(2).map(|word| String::from_utf8_lossy(word).into_owned()).peekable();
        while let Some(option) = words.next() {
            let option = option.to_ascii_lowercase();
            let value = words.next()?;
            let (negated, name) =
                option.strip_prefix("not-").map_or((false, option.as_str()), |name| (true, name));
            let test = match name {
                "skipme" if !negated => {
                    filter.skip_me = value.eq_ignore_ascii_case("yes");
                    continue;
                }
                "id" => {
                    let mut ids = HashSet::from([value.parse().ok()?]);
                    while let Some(id) = words.peek().and_then(|word| word.parse().ok()) {
                        ids.insert(id);
                        words.next();
                    }
                    Test::Id(ids)
                }
                "addr" => Test::Addr(value),
                "ip" => Test::Ip(value),
                "laddr" => Test::LocalAddr(value),
                "type" => Test::Kind(kind(&value).to_owned()),
                "user" => Test::User(value),
                "name" => Test::Name(value),
                "lib-name" => Test::LibName(value),
                "lib-ver" => Test::LibVer(value),
                "flags" => Test::Flags(value),
                "db" => Test::Database(value),
                "maxage" => Test::MaxAge(value.parse().ok()?),
                "idle" => Test::Idle(value.parse().ok()?),
                "capa" => Test::Capability,
                _ => return None,
            };
            // The same option again replaces the earlier one.
            filter.conditions.retain(|earlier| {
                earlier.negated != negated
                    || std::mem::discriminant(&earlier.test) != std::mem::discriminant(&test)
            });
            filter.conditions.push(Condition { negated, test });
        }
        Some(filter)
    }

    /// Whether it matches every client.
    #[must_use]
    pub fn takes_all(&self) -> bool {
        self.conditions.is_empty() && !self.skip_me
    }

    /// The only ids that it can mean; `None`: any.
    #[must_use]
    pub fn ids(&self) -> Option<impl Iterator<Item = u64>> {
        let ids = self.conditions.iter().filter(|condition| !condition.negated).find_map(|condition| {
            match &condition.test {
                Test::Id(ids) => Some(ids),
                _ => None,
            }
        });
        ids.map(|ids| ids.iter().copied())
    }

    /// The same CLIENT KILL changed to match no client, for the server's validation of its arguments.
    #[must_use]
    pub fn harmless(request: &Request<'_>) -> Bytes {
        let mut words: Vec<&[u8]> = request.args().collect();
        if words.len() == 3 {
            // The old form has no arguments to validate, only rights.
            return killing_nobody();
        }
        let mut in_ids = false;
        for word in words.iter_mut().skip(2) {
            let positive = std::str::from_utf8(word).ok().and_then(|word| word.parse::<i64>().ok());
            if in_ids && positive.is_some_and(|id| id > 0) {
                *word = NOBODY;
            } else {
                in_ids = word.eq_ignore_ascii_case(b"id");
            }
        }
        // With an odd word at the end the two that follow would turn into its value.
        if words.len().is_multiple_of(2) && !words.contains(&NOBODY) {
            words.extend([&b"ID"[..], NOBODY]);
        }
        encode::one_command(&words)
    }

    /// The same for all clients except the sender.
    #[must_use]
    pub fn sparing_me(&self) -> Self {
        Self { skip_me: true, ..self.clone() }
    }

    /// Whether it names ids, all of which are such.
    pub fn means_only(&self, such: impl Fn(u64) -> bool) -> bool {
        self.conditions.iter().any(|condition| match &condition.test {
            Test::Id(ids) => !condition.negated && ids.iter().all(|id| such(*id)),
            _ => false, // any other test may be met by anybody
        })
    }

    /// Whether `row` is meant; `me` is the asking client's id.
    #[must_use]
    pub fn matches(&self, row: &Listed, me: u64) -> bool {
        !(self.skip_me && row.id == me)
            && self.conditions.iter().all(|condition| condition.test.is_met(row) != condition.negated)
    }
}

/// A CLIENT LIST of at most one client: tests whether the user may list.
#[must_use]
pub fn listing_somebody() -> Bytes {
    encode::one_command(&[b"CLIENT", b"LIST", b"ID", b"1"])
}

/// A CLIENT KILL that matches no client: tests whether the user may kill.
#[must_use]
pub fn killing_nobody() -> Bytes {
    encode::one_command(&[b"CLIENT", b"KILL", b"ID", NOBODY])
}

/// The same CLIENT UNBLOCK for a client that does not exist, for the server's validation of its arguments.
#[must_use]
pub fn unblocking_nobody(request: &Request<'_>) -> Bytes {
    let mut words: Vec<&[u8]> = request.args().collect();
    if let Some(id) = words.get_mut(2).filter(|id| id.iter().all(u8::is_ascii_digit) && !id.is_empty()) {
        *id = NOBODY;
    }
    encode::one_command(&words)
}

impl Test {
    fn is_met(&self, row: &Listed) -> bool {
        match self {
            Self::Id(ids) => ids.contains(&row.id),
            Self::Addr(address) => *address == row.addr,
            Self::Ip(ip) => row.addr.rsplit_once(':').is_some_and(|(host, _)| host == ip),
            Self::LocalAddr(address) => *address == row.laddr,
            Self::Kind(kind) => kind == row.kind(),
            Self::User(user) => *user == row.user,
            Self::Name(name) => *name == row.name,
            Self::LibName(name) => *name == row.lib_name,
            Self::LibVer(version) => *version == row.lib_ver,
            Self::Flags(letters) => letters.chars().all(|letter| row.flags.contains(letter)),
            Self::Database(database) => *database == row.database.to_string(),
            Self::MaxAge(seconds) => row.age.as_secs() >= *seconds,
            Self::Idle(seconds) => row.idle.as_secs() >= *seconds,
            Self::Capability => false,
        }
    }
}

/// A type, as listings name it.
fn kind(value: &str) -> &'static str {
    match value.to_ascii_lowercase().as_str() {
        "normal" => "normal",
        "slave" | "replica" => "replica",
        "master" | "primary" => "master",
        "pubsub" => "pubsub",
        _ => "unknown",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Vec<u8> {
        encode::one_command(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>()).to_vec()
    }

    fn row() -> Listed {
        let line =
            "id=7 addr=10.0.0.1:5000 laddr=10.0.0.2:6379 name=web age=9 idle=4 flags=PN db=2 sub=1 user=app";
        Listed::parse(line).unwrap()
    }

    fn kills(options: &str) -> Option<bool> {
        let bytes = asked(&format!("CLIENT KILL {options}"));
        Filter::of_kill(&Request::parse(&bytes).unwrap()).map(|filter| filter.matches(&row(), 8))
    }

    #[test]
    fn every_filter_takes_what_it_names_and_not_what_it_does_not() {
        for meets in [
            "10.0.0.1:5000",
            "ID 7",
            "ID 1 7 9",
            "ADDR 10.0.0.1:5000",
            "IP 10.0.0.1",
            "LADDR 10.0.0.2:6379",
            "TYPE PubSub",
            "USER app",
            "NAME web",
            "FLAGS P",
            "FLAGS NP",
            "DB 2",
            "MAXAGE 9",
            "IDLE 4",
            "NOT-ID 1 2",
            "NOT-TYPE normal",
            "NOT-CAPA r",
            "ID 7 USER app SKIPME yes",
            "ADDR 1.1.1.1:1 ADDR 10.0.0.1:5000",
        ] {
            assert_eq!(kills(meets), Some(true), "{meets}");
        }
        for misses in [
            "10.0.0.1:5001",
            "ID 8",
            "IP 10.0.0",
            "LADDR 10.0.0.1:5000",
            "TYPE normal",
            "USER default",
            "NAME we",
            "FLAGS PM",
            "DB 0",
            "MAXAGE 10",
            "IDLE 5",
            "NOT-ID 1 7",
            "NOT-TYPE pubsub",
            "CAPA r",
            "ID 7 USER other",
            "LIB-NAME x",
        ] {
            assert_eq!(kills(misses), Some(false), "{misses}");
        }
        for senseless in ["ID x", "FOO 1", "ID 7 USER", "MAXAGE -1", "NOT-SKIPME yes"] {
            assert_eq!(kills(senseless), None, "{senseless}");
        }
    }

    #[test]
    fn proxy_kill_takes_filters_that_all_must_be_met_and_never_none() {
        let kills = |options: &str| {
            let bytes = asked(&format!("PROXY KILL {options}"));
            let holders = |connection| if connection == 17 { HashSet::from([7]) } else { HashSet::new() };
            Filter::of_proxy_kill(&Request::parse(&bytes).unwrap(), holders)
                .map(|filter| filter.matches(&row(), 8))
        };
        for meets in ["ID 7", "name web", "ADDR 10.0.0.1:5000", "USER app IDLE 4", "CONNECTION 17 NAME web"] {
            assert_eq!(kills(meets), Some(true), "{meets}");
        }
        for misses in
            ["ID 8", "NAME we", "USER app IDLE 5", "CONNECTION 18", "CONNECTION 17 ID 8", "ID 8 ID 7"]
        {
            assert_eq!(kills(misses), Some(false), "{misses}");
        }
        for senseless in ["ID x", "ID", "TYPE normal", "CONNECTION", "IDLE -1", "SKIPME no", "7"] {
            assert_eq!(kills(senseless), None, "{senseless}");
        }
        let none = encode::one_command(&[b"PROXY", b"KILL"]);
        assert_eq!(Filter::of_proxy_kill(&Request::parse(&none).unwrap(), |_| HashSet::new()), None);
    }

    #[test]
    fn the_asking_client_is_spared_by_kills_and_shown_by_lists() {
        let kill = asked("CLIENT KILL TYPE pubsub");
        assert!(!Filter::of_kill(&Request::parse(&kill).unwrap()).unwrap().matches(&row(), 7));
        let list = asked("CLIENT LIST TYPE pubsub");
        assert!(Filter::of_list(&Request::parse(&list).unwrap()).unwrap().matches(&row(), 7));
        let list = asked("CLIENT LIST SKIPME yes");
        assert!(!Filter::of_list(&Request::parse(&list).unwrap()).unwrap().matches(&row(), 7));
    }

    #[test]
    fn the_question_to_the_server_kills_nobody() {
        let nobody = String::from_utf8_lossy(NOBODY);
        for (kill, question) in [
            ("CLIENT KILL ID 5", "CLIENT KILL ID @"),
            ("CLIENT KILL ID 5 6 TYPE normal", "CLIENT KILL ID @ @ TYPE normal"),
            ("CLIENT KILL TYPE normal", "CLIENT KILL TYPE normal ID @"),
            ("CLIENT KILL ID x", "CLIENT KILL ID x ID @"),
            ("CLIENT KILL ID -5 USER a", "CLIENT KILL ID -5 USER a ID @"),
            ("CLIENT KILL TYPE normal USER", "CLIENT KILL TYPE normal USER"),
            ("CLIENT KILL 10.0.0.1:5000", "CLIENT KILL ID @"),
        ] {
            let asked = asked(kill);
            let question = super::tests::asked(&question.replace('@', &nobody));
            assert_eq!(Filter::harmless(&Request::parse(&asked).unwrap()), question, "{kill}");
        }
    }
}
