//! What a reply proves, and in which order commands go on that did not run. Knows no lane.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::command::{Class, classify};
use crate::resp::{self, Request, RequestLimits, RequestScanner, RequestStep};

/// The reply of a replica to a command that writes (`shared.roslaveerr` in redis `server.c`), the same since Redis 6.0.
const READONLY: &[u8] = b"-READONLY You can't write against a read only replica.\r\n";

/// Why a command did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The server is a replica, and the command writes.
    ReadOnly,
}

/// What `reply` proves: that the command did not run, because it is the whole line that a server says then. It proves
/// nothing for a command whose reply may be of a script's making.
#[must_use]
pub fn refusal(reply: &[u8]) -> Option<Refusal> {
    (reply == READONLY).then_some(Refusal::ReadOnly)
}

/// Whether `begun`, which is not a whole reply, may become a refusal.
pub(super) fn is_begun_refusal(begun: &[u8]) -> bool {
    READONLY.starts_with(begun)
}

/// What became of a command, or of a whole transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did not run; the reply that says so.
    Refused(Bytes),
    /// Its replies.
    Answered(Vec<Bytes>),
    /// The connection was lost first: it may have run.
    Lost,
}

/// A command, or a whole transaction, that was on a lane when the server refused another one of the same client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its bytes; `None` if they are not to be sent again, whatever the reply is.
    pub command: Option<Bytes>,
    /// How many replies are owed for it.
    pub replies: u32,
    /// Nothing is to be told of them.
    pub muted: bool,
    /// What became of it.
    pub outcome: Outcome,
}

/// What is to be done for a client whose commands were held, one step after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this again. If it cannot be, `replies` are its replies.
    Again {
        /// The command, or the whole transaction.
        command: Bytes,
        /// As for the others.
        replies: Vec<Bytes>,
        /// As for the others.
        muted: bool,
    },
    /// These are the replies.
    Answer {
        /// One for each that is owed.
        replies: Vec<Bytes>,
        /// Nothing is to be told of them.
        muted: bool,
    },
    /// So many commands are lost, and may have run.
    Lose {
        /// How many replies were owed.
        replies: u32,
        /// Nothing is to be told of them.
        muted: bool,
    },
}

/// In which order what was held goes on.
///
/// Commands that were refused are sent again, and so is what only reads behind them, because it was to see what they wrote. Where
/// something else has run behind them they are not: they would run in another order than they were sent in.
#[must_use]
pub fn steps(held: Vec<Held>) -> VecDeque<Step> {
    let mut steps = VecDeque::new();
    for Held { command, replies: count, muted, outcome } in held {
        let step = match (command, outcome) {
            (Some(command), Outcome::Refused(reply)) => Step::Again { command, replies: vec![reply], muted },
            (None, Outcome::Refused(reply)) => Step::Answer { replies: vec![reply], muted },
            (_, Outcome::Lost) => Step::Lose { replies: count, muted },
            (Some(command), Outcome::Answered(replies)) if only_reads(&command) => {
                Step::Again { command, replies, muted }
            }
            (_, Outcome::Answered(replies)) => {
                if !replies.last().is_some_and(|reply| resp::is_error(reply)) {
                    steps.iter_mut().for_each(give_up);
                }
                Step::Answer { replies, muted }
            }
        };
        steps.push_back(step);
    }
    steps
}

fn give_up(step: &mut Step) {
    if let Step::Again { replies, muted, .. } = step {
        *step = Step::Answer { replies: std::mem::take(replies), muted: *muted };
    }
}

/// Whether `commands` only read: running them twice is running them once.
fn only_reads(commands: &[u8]) -> bool {
    let limits = RequestLimits { max_bulk: u64::MAX, max_request: usize::MAX, ..RequestLimits::default() };
    let mut scanner = RequestScanner::default();
    let mut rest = commands;
    while !rest.is_empty() {
        let Ok(RequestStep::Request(shape)) = scanner.step(rest, &limits) else { return false };
        let asked = classify(&Request::new(&rest[..shape.len], &shape));
        if !asked.only_reads() && !matches!(asked.class, Class::Multi | Class::Exec) {
            return false;
        }
        rest = &rest[shape.len..];
    }
    true
}
