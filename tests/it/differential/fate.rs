//! What befell a sequence before the proxy that cannot befall it directly: commands that a full pool refused, and clients
//! that were closed because a connection with their state was killed. The direct world is played again with it, and from
//! there every byte must agree again.
//!
//! A refused command does not run: in its place the direct world is asked for a command that no server knows, whose error
//! stands for the refusal. What comes of it is in one table ([`Fate::of`]): a MULTI leaves its transaction failed, so
//! directly there is a MULTI too, unheard, before the unknown command, and EXEC answers EXECABORT; what would have changed
//! the meaning of all later commands closes its client; everything else is over with its error.

use std::collections::BTreeMap;

use super::sequence::{Request, Sequence, Step, Tail};
use crate::harness::encode;

/// A command that no server knows.
const UNKNOWN: &str = "REFUSED-BY-A-FULL-POOL";
/// What both the refusal and its stand-in are shown as.
pub(crate) const REFUSED: &str = "<refused>";

/// What comes of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing more: the next command is as if it had not been sent.
    Alone,
    /// The transaction it would have begun is failed: EXEC answers EXECABORT.
    Aborts,
    /// The client is closed.
    Closes,
}

impl Fate {
    fn of(request: &Request) -> Self {
        const LASTING: &[&str] = &[
            "WATCH",
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
        ];
        match () {
            () if request.is(&["MULTI"]) => Self::Aborts,
            () if request.is(LASTING) => Self::Closes,
            () => Self::Alone,
        }
    }
}

/// All that befell one play.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fates {
    /// By step and request.
    refused: BTreeMap<(usize, usize), Fate>,
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

    /// The bytes of a step in the direct world, and what follows them.
    pub(crate) fn bytes(
        &self,
        step: usize,
        requests: &[Request],
        tail: Tail,
        own: &dyn Fn(&str, usize) -> String,
    ) -> (Vec<u8>, Tail) {
        let mut bytes = Vec::new();
        for (number, request) in requests.iter().enumerate() {
            match self.refused.get(&(step, number)) {
                None => bytes.extend(request.bytes(own)),
                Some(Fate::Alone) => bytes.extend(encode(&[UNKNOWN])),
                Some(Fate::Aborts) => {
                    bytes.extend(encode(&["CLIENT", "REPLY", "SKIP"]));
                    bytes.extend([encode(&["MULTI"]), encode(&[UNKNOWN])].concat());
                }
                Some(Fate::Closes) => {
                    bytes.extend(encode(&[UNKNOWN]));
                    return (bytes, Tail::HalfCloses);
                }
            }
        }
        (bytes, tail)
    }

    /// Notes that the reply at this place, of all that a client has got, is a refusal. Every request of such a sequence has
    /// one reply. False when it is none of its requests, or known.
    pub(crate) fn refuse(&mut self, sequence: &Sequence, client: usize, mut place: usize) -> bool {
        for (number, step) in sequence.steps.iter().enumerate() {
            let Step::Write { client: writer, requests, .. } = step else { continue };
            if *writer != client {
                continue;
            }
            if let Some(request) = requests.get(place) {
                return self.refused.insert((number, place), Fate::of(request)).is_none();
            }
            place -= requests.len();
        }
        false
    }
}

/// Whether this reply is a refusal, or stands for one.
pub(crate) fn is_refusal(frame: &[u8]) -> bool {
    let text = String::from_utf8_lossy(frame);
    text.starts_with("-ERR redbouncer: no upstream connection within")
        || text.starts_with("-ERR unknown command") && text.contains(UNKNOWN)
}
