//! What one worker measures of its upstream connections: times and errors, in plain cells.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use metrics::counter;
use tokio::time::Instant;

use crate::resp::{ErrorCode, error_text};
use crate::telemetry::{CommandOutcome, Counted, Origin, Seconds};

/// What is measured. Shared by the pool and its lanes.
#[derive(Debug)]
pub struct Measures {
    /// From the first command of a batch to its last reply.
    pub replies: Seconds,
    /// PINGs on lanes, each heartbeat.
    pub round_trips: Seconds,
    /// By origin and code.
    errors: Vec<Counted>,
}

impl Default for Measures {
    fn default() -> Self {
        let counted = |origin: Origin, code: ErrorCode| {
            let (origin, kind) = (origin.label(), code.label());
            Counted::new(counter!("redbouncer_command_errors_total", "origin" => origin, "kind" => kind))
        };
        let codes = |origin| ErrorCode::ALL.into_iter().map(move |code| counted(origin, code));
        Self {
            replies: Seconds::short(),
            round_trips: Seconds::short(),
            errors: Origin::ALL.iter().flat_map(|origin| codes(*origin)).collect(),
        }
    }
}

impl Measures {
    /// Counts an error that a client gets.
    pub fn error(&self, origin: Origin, code: ErrorCode) {
        if let Some(counted) = self.errors.get(origin as usize * ErrorCode::ALL.len() + code as usize) {
            counted.add(1);
        }
    }

    /// The same for a whole reply, if it is an error.
    pub fn reply(&self, origin: Origin, reply: &[u8]) {
        if let Some(text) = error_text(reply) {
            self.error(origin, ErrorCode::of_text(text));
        }
    }

    /// Publishes the counts since the last call.
    pub fn publish(&self) {
        self.errors.iter().for_each(Counted::publish);
    }
}

/// A batch whose time is measured at the client's edge, until its last reply is on its way to the client.
pub struct Sample {
    /// When the client's bytes were read.
    pub since: Instant,
    /// When they were given to the lane.
    pub sent: Instant,
    /// Where the time goes to.
    pub to: Rc<Seconds>,
    /// Its commands; others of the same client may stand before them in its slot.
    pub commands: u32,
    /// The first error among its replies.
    pub error: Option<ErrorCode>,
    /// Is told of it. Must not call back into the lane.
    pub then: Option<Box<dyn FnOnce(Took)>>,
}

impl fmt::Debug for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sample").field("since", &self.since).field("sent", &self.sent).finish_non_exhaustive()
    }
}

/// Where the time of a batch went, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Took {
    /// What its client got.
    pub outcome: CommandOutcome,
    /// Until there was a connection for it.
    pub waiting: Duration,
    /// In the queue of the connection, on the network, and at the server.
    pub at_server: Duration,
}

impl Sample {
    /// `left` replies of its slot are owed still, and the next of them is this error.
    pub(super) fn note_error(&mut self, code: ErrorCode, left: u32) {
        if left <= self.commands {
            self.error.get_or_insert(code);
        }
    }

    /// All replies have come.
    pub(super) fn ends(self) {
        let now = Instant::now();
        self.to.record(now.saturating_duration_since(self.since));
        let error = self.error.map(|code| CommandOutcome::Error(code.label()));
        self.tell(error.unwrap_or(CommandOutcome::Answered), now);
    }

    /// They will not come, or not in time: no time of a reply to record.
    pub(super) fn fails(self, outcome: CommandOutcome) {
        self.tell(outcome, Instant::now());
    }

    fn tell(self, outcome: CommandOutcome, now: Instant) {
        if let Some(then) = self.then {
            then(Took {
                outcome,
                waiting: self.sent.saturating_duration_since(self.since),
                at_server: now.saturating_duration_since(self.sent),
            });
        }
    }
}
