//! Spans of sampled commands, on their way from the workers to whoever exports them (`[tracing]`).
//!
//! A worker never waits for that: the queue is bounded, and what does not fit is counted and dropped. Without the feature `otlp`
//! a tracer is empty and chooses nothing.

#[cfg(feature = "otlp")]
use std::sync::Arc;
#[cfg(feature = "otlp")]
use std::sync::atomic::{AtomicU32, Ordering};
#[cfg(feature = "otlp")]
use std::time::{Duration, SystemTime};

#[cfg(feature = "otlp")]
use metrics::counter;
#[cfg(feature = "otlp")]
use tokio::sync::mpsc;

#[cfg(feature = "otlp")]
use super::labels::SpanFate;

/// Tracing options (`[tracing]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracingOptions {
    /// The URL that spans are sent to, as OTLP over HTTP; `None`: no command is traced.
    pub otlp_endpoint: Option<String>,
    /// Of so many commands of a lane one chooses the batch that is traced.
    pub sample: u32,
}

impl Default for TracingOptions {
    fn default() -> Self {
        Self { otlp_endpoint: None, sample: 256 }
    }
}

/// The outcome of a batch for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    /// Replies without an error.
    Answered,
    /// At least one error of the server; the code of the first.
    Error(&'static str),
    /// No reply within `upstream.command_timeout`.
    TimedOut,
    /// The connection was lost before the last reply.
    Lost,
}

/// Spans that wait for their export. At one in 256 this is a second of 500,000 commands.
#[cfg(feature = "otlp")]
const QUEUE: usize = 2048;

/// A batch of commands that was traced.
#[cfg(feature = "otlp")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandSpan {
    /// The first command by its name in the command table, `client|kill`.
    pub command: &'static str,
    /// Its family.
    pub family: &'static str,
    /// How many commands were sent together.
    pub commands: u32,
    /// The database they were sent to.
    pub database: u32,
    /// The client's library, and its version, as CLIENT SETINFO has said; empty where it has not.
    pub library: (String, String),
    /// From the client's bytes to a connection.
    pub waiting: Duration,
    /// From there to the last reply.
    pub at_server: Duration,
    /// When that was.
    pub ended: SystemTime,
    /// The outcome for the client.
    pub outcome: CommandOutcome,
}

/// Takes spans of sampled commands. All workers have a copy of the same one.
#[derive(Clone, Debug, Default)]
pub struct Tracer {
    /// `None`: spans are not exported.
    #[cfg(feature = "otlp")]
    traced: Option<Arc<Traced>>,
}

#[cfg(feature = "otlp")]
#[derive(Debug)]
struct Traced {
    sample: AtomicU32,
    queue: mpsc::Sender<CommandSpan>,
}

#[cfg(feature = "otlp")]
impl Tracer {
    /// A tracer that chooses one of `sample` commands, and where its spans come out.
    #[must_use]
    pub fn new(sample: u32) -> (Self, mpsc::Receiver<CommandSpan>) {
        let (queue, spans) = mpsc::channel(QUEUE);
        let traced = Arc::new(Traced { sample: AtomicU32::new(sample), queue });
        (Self { traced: Some(traced) }, spans)
    }

    /// Whether commands are chosen at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.traced.is_some()
    }

    /// Whether a batch of `count` commands is traced with which a lane has carried `carried`.
    #[must_use]
    pub fn chooses(&self, carried: u64, count: u32) -> bool {
        let sample = |traced: &Arc<Traced>| u64::from(traced.sample.load(Ordering::Relaxed).max(1));
        self.traced.as_ref().is_some_and(|traced| carried % sample(traced) < u64::from(count))
    }

    /// From now on one of `sample` commands is chosen.
    pub fn set_sample(&self, sample: u32) {
        if let Some(traced) = &self.traced {
            traced.sample.store(sample, Ordering::Relaxed);
        }
    }

    /// Passes a span on, or counts it as dropped where the queue is full.
    pub fn record(&self, span: CommandSpan) {
        if let Some(traced) = &self.traced
            && traced.queue.try_send(span).is_err()
        {
            spans_ended(SpanFate::QueueFull, 1);
        }
    }
}

/// That has become of so many spans.
#[cfg(feature = "otlp")]
pub fn spans_ended(fate: SpanFate, count: u64) {
    counter!("redbouncer_spans_total", "fate" => fate.label()).increment(count);
}

#[cfg(not(feature = "otlp"))]
impl Tracer {
    /// No command is.
    #[must_use]
    pub fn is_on(&self) -> bool {
        false
    }

    /// No batch is.
    #[must_use]
    pub fn chooses(&self, _carried: u64, _count: u32) -> bool {
        false
    }

    /// Nothing is chosen, however often.
    pub fn set_sample(&self, _sample: u32) {}
}

#[cfg(all(test, feature = "otlp"))]
mod tests {
    use super::*;

    fn span() -> CommandSpan {
        CommandSpan {
            command: "get",
            family: "string",
            commands: 1,
            database: 0,
            library: Default::default(),
            waiting: Duration::ZERO,
            at_server: Duration::ZERO,
            ended: SystemTime::UNIX_EPOCH,
            outcome: CommandOutcome::Answered,
        }
    }

    #[test]
    fn one_of_so_many_commands_is_chosen() {
        let (tracer, _spans) = Tracer::new(10);
        let chosen = (1..=100).filter(|carried| tracer.chooses(*carried, 1)).count();
        assert_eq!(chosen, 10);
        // A batch is chosen when it contains such a command.
        assert!(tracer.chooses(12, 3));
        assert!(!tracer.chooses(12, 2));
        tracer.set_sample(1);
        assert!((1..=100).all(|carried| tracer.chooses(carried, 1)));
        assert!(!Tracer::default().chooses(0, 1));
    }

    #[test]
    fn a_full_queue_takes_no_more_and_does_not_wait() {
        let (tracer, mut spans) = Tracer::new(1);
        (0..QUEUE + 10).for_each(|_| tracer.record(span()));
        let mut taken = 0;
        while spans.try_recv().is_ok() {
            taken += 1;
        }
        assert_eq!(taken, QUEUE);
    }
}
