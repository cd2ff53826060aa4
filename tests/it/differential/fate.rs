//! What befell a sequence before the proxy that cannot befall it directly: commands that a full pool refused, and clients
//! that were closed because a connection with their state was killed. The direct world is played again with it, and from
//! there every byte must agree again.
//!
//! A refused command does not run: in its place the direct world is asked for a command that no server knows, whose error
//! stands for the refusal. What comes of it is said here once more, in other words than in the proxy's own table
//! (`Class::aftermath`): a MULTI leaves a transaction that has failed, so directly there is a MULTI too, unheard, before
//! the unknown command, and EXEC answers EXECABORT; behind a WATCH the next MULTI fails like that; what would have changed
//! the meaning of all later commands closes its client; everything else is over with its error. None of this is read
//! from the proxy's replies: they say only which command was refused first.

use std::collections::{BTreeMap, BTreeSet};

use super::sequence::{Request, Sequence, Step, Tail};
use crate::harness::encode;

/// A command that no server knows.
const UNKNOWN: &str = "REFUSED-BY-A-FULL-POOL";
/// What both the refusal and its stand-in are shown as.
pub(crate) const REFUSED: &str = "<refused>";

/// How a client stands after refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// As ever.
    Well,
    /// Its WATCH was refused; whether it had sent nothing behind it, so that it knows.
    Unguarded { knows: bool },
    /// Its transaction is open and has failed.
    Failed,
    /// It is closed.
    Closed,
}

/// What stands in the direct world for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direct {
    Itself,
    /// The error alone.
    Refusal,
    /// A MULTI that is not heard of, and the error.
    FailedMulti,
    /// The error, then the end.
    Farewell,
    /// It is not even read.
    Nothing,
}

impl Standing {
    /// What stands for the client's next request, which is the last of its write or not.
    fn take(&mut self, request: &Request, is_refused: bool, is_last: bool) -> Direct {
        const CLOSING: &[&str] = &[
            "SELECT",
            "HELLO",
            "AUTH",
            "SUBSCRIBE",
            "PSUBSCRIBE",
            "SSUBSCRIBE",
            "MONITOR",
            "CLIENT",
            "READONLY",
            "READWRITE",
            "ASKING",
            "RESET",
            "NOSUCHCOMMAND",
        ];
        // With WATCH, what takes a connection of its own: it would take up MULTI where its failure is not known.
        const LEASING: &[&str] = &["DEBUG", "WAIT"];
        let alone = request.argc() == 1;
        let is = |names: &[&str]| alone && request.is(names);
        let (next, direct) = match (*self, is_refused) {
            (Self::Closed, _) => (Self::Closed, Direct::Nothing),
            (Self::Failed | Self::Unguarded { .. }, _) if is(&["RESET"]) => (Self::Well, Direct::Itself),
            (Self::Failed, _) if is(&["EXEC", "DISCARD"]) => (Self::Well, Direct::Itself),
            (Self::Failed, _) => (Self::Failed, Direct::Refusal),
            (Self::Unguarded { .. }, _) if is(&["MULTI"]) => (Self::Failed, Direct::FailedMulti),
            (Self::Unguarded { .. }, _) if is(&["UNWATCH"]) => (Self::Well, Direct::Itself),
            (Self::Unguarded { knows: false }, _) if request.is(&["WATCH"]) && !alone => {
                (Self::Closed, Direct::Farewell)
            }
            (Self::Unguarded { knows: true }, false) if request.is(&["WATCH"]) && !alone => {
                (Self::Well, Direct::Itself)
            }
            (Self::Unguarded { .. }, true) if request.is(LEASING) => (Self::Closed, Direct::Farewell),
            (standing, false) => (standing, Direct::Itself),
            (_, true) if request.is(&["MULTI"]) => (Self::Failed, Direct::FailedMulti),
            (_, true) if request.is(&["WATCH"]) => (Self::Unguarded { knows: is_last }, Direct::Refusal),
            (_, true) if request.is(CLOSING) => (Self::Closed, Direct::Farewell),
            (standing, true) => (standing, Direct::Refusal),
        };
        *self = next;
        direct
    }
}

/// All that befell one play.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fates {
    /// By step and request: those that the pool refused, where nothing before them says that they must be.
    refused: BTreeSet<(usize, usize)>,
    /// Clients that were closed by the kills of a step.
    lost: BTreeMap<usize, Vec<usize>>,
}

impl Fates {
    /// The clients that the kills of this step closed, if that is known yet.
    pub(crate) fn lost(&self, step: usize) -> Option<&[usize]> {
        self.lost.get(&step).map(Vec::as_slice)
    }

    pub(crate) fn lose(&mut self, step: usize, clients: Vec<usize>) {
        self.lost.insert(step, clients);
    }

    /// What is written for a step in the direct world, and what follows it.
    pub(crate) fn write(
        &self,
        sequence: &Sequence,
        number: usize,
        own: &dyn Fn(&str, usize) -> String,
    ) -> (Vec<u8>, Tail) {
        let Step::Write { client, tail, .. } = &sequence.steps[number] else {
            return (Vec::new(), Tail::Stays);
        };
        let (mut standing, mut written) = (Standing::Well, (Vec::new(), *tail));
        for (at, step) in sequence.steps.iter().enumerate().take(number + 1) {
            let Step::Write { client: writer, requests, .. } = step else { continue };
            if writer != client {
                continue;
            }
            written = (Vec::new(), *tail);
            for (place, request) in requests.iter().enumerate() {
                let is_refused = self.refused.contains(&(at, place));
                match standing.take(request, is_refused, place + 1 == requests.len()) {
                    Direct::Itself => written.0.extend(request.bytes(own)),
                    Direct::Refusal => written.0.extend(encode(&[UNKNOWN])),
                    Direct::FailedMulti => {
                        written.0.extend(encode(&["CLIENT", "REPLY", "SKIP"]));
                        written.0.extend([encode(&["MULTI"]), encode(&[UNKNOWN])].concat());
                    }
                    Direct::Farewell => {
                        written.0.extend(encode(&[UNKNOWN]));
                        written.1 = Tail::HalfCloses;
                    }
                    Direct::Nothing => {}
                }
            }
        }
        written
    }

    /// Notes that the reply at this place, of all that a client has got, is a refusal. Every request of such a sequence has
    /// one reply. False when it is none of its requests, or known.
    pub(crate) fn refuse(&mut self, sequence: &Sequence, client: usize, mut place: usize) -> bool {
        for (number, step) in sequence.steps.iter().enumerate() {
            let Step::Write { client: writer, requests, .. } = step else { continue };
            if *writer != client {
                continue;
            }
            if place < requests.len() {
                return self.refused.insert((number, place));
            }
            place -= requests.len();
        }
        false
    }
}

/// Whether this reply is a refusal, or stands for one.
pub(crate) fn is_refusal(frame: &[u8]) -> bool {
    let text = String::from_utf8_lossy(frame);
    let ours = [
        "no upstream connection within",
        "no upstream connection for this",
        "not queued, because",
        "not possible, because",
    ];
    ours.iter()
        .any(|words| text.strip_prefix("-ERR redbouncer: ").is_some_and(|text| text.starts_with(words)))
        || text.starts_with("-ERR unknown command") && text.contains(UNKNOWN)
}

#[test]
fn a_refused_command_leaves_nothing_behind_that_it_would_not_have_left() {
    let written = |line: &str, refused: &[usize]| {
        let text = format!("clients 2 with refusals\n0: {line}\n");
        let sequence: Sequence = text.parse().unwrap();
        let refused = refused.iter().map(|place| (0, *place)).collect();
        let fates = Fates { refused, ..Fates::default() };
        let (bytes, tail) = fates.write(&sequence, 0, &|_, _| String::new());
        let text = String::from_utf8(bytes).unwrap();
        let words = text.split("\r\n").filter(|word| !word.starts_with(['*', '$']) && !word.is_empty());
        let words =
            words.collect::<Vec<_>>().join(" ").replace(UNKNOWN, "-").replace("CLIENT REPLY SKIP", "~");
        (words, tail)
    };
    for (line, refused, expected, tail) in [
        ("GET a | SET b 1", &[0][..], "- SET b 1", Tail::Stays),
        ("MULTI | SET a 1 | EXEC | GET a", &[0], "~ MULTI - - EXEC GET a", Tail::Stays),
        ("WATCH a | GET a | MULTI | SET a 1 | EXEC", &[0], "- GET a ~ MULTI - - EXEC", Tail::Stays),
        ("WATCH a | UNWATCH | MULTI", &[0], "- UNWATCH MULTI", Tail::Stays),
        ("WATCH a | WATCH b | GET a", &[0], "- -", Tail::HalfCloses),
        ("GET a | SELECT 1 | SET a 1", &[1], "GET a -", Tail::HalfCloses),
    ] {
        assert_eq!(written(line, refused), (expected.to_owned(), tail), "{line}");
    }
}
