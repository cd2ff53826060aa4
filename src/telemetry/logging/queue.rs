//! The way of a log line out of the process: a bounded queue to a thread of its own.
//!
//! A disk that is full, a pipe that nobody reads or a terminal that is stopped must not stop the service, so the thread
//! that logs an event never writes it. Lines that do not fit into the queue are dropped; lines that the sink refuses are
//! dropped, too. Both are counted, and [`Queue::report`] says so in one line when it is over.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metrics::counter;
use parking_lot::Mutex;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;

use crate::telemetry::LineLoss;

/// Maximum number of queued lines, about 2 MiB. Further lines are dropped.
const LINES: usize = 8 << 10;
/// How long the end of the process waits for lines that are not written yet. By the clock of the machine, not by that of a
/// runtime: a thread writes the lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The sink of the queue. It never returns an error, because the writing thread cannot report it.
struct Sink<W> {
    inner: W,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Lines that were given to the queue.
    accepted: AtomicU64,
    /// Lines that the sink has taken or refused.
    handled: AtomicU64,
    /// Lines that the sink has refused.
    refused: AtomicU64,
}

impl<W: Write> Write for Sink<W> {
    /// One call is one line: that is how the queue hands them over.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.inner.write_all(line).and_then(|()| self.inner.flush()).is_err() {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
        }
        self.counts.handled.fetch_add(1, Ordering::Release);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The writer of logging threads, which appends to the queue.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    queue: NonBlocking,
    counts: Arc<Counts>,
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.counts.accepted.fetch_add(1, Ordering::Relaxed);
        self.queue.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Lines {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

/// The reported numbers of dropped lines.
#[derive(Debug, Default)]
struct Told {
    /// Dropped lines at the last check.
    seen: u64,
    /// Dropped lines that a written line has reported.
    said: u64,
    /// The count in the last report, which may itself be dropped.
    telling: Option<u64>,
    /// The counts in the metric, by cause.
    published: (u64, u64),
}

/// The queue between logging threads and the writing thread. Lives as long as the process.
#[derive(Debug)]
pub(super) struct Queue {
    counts: Arc<Counts>,
    overflow: ErrorCounter,
    told: Mutex<Told>,
    /// Never dropped: its end waits for a sink that may be stuck, and speaks on stdout.
    _thread: std::mem::ManuallyDrop<WorkerGuard>,
}

impl Queue {
    /// A queue to `sink`, and its writer.
    pub(super) fn new<W: Write + Send + 'static>(sink: W) -> (Self, Lines) {
        Self::with_room_for(LINES, sink)
    }

    fn with_room_for<W: Write + Send + 'static>(lines: usize, sink: W) -> (Self, Lines) {
        let counts = Arc::<Counts>::default();
        let sink = Sink { inner: sink, counts: Arc::clone(&counts) };
        let (queue, thread) = NonBlockingBuilder::default()
            .buffered_lines_limit(lines)
            .lossy(true)
            .thread_name("log")
            .finish(sink);
        let this = Self {
            counts: Arc::clone(&counts),
            overflow: queue.error_counter(),
            told: Mutex::default(),
            _thread: std::mem::ManuallyDrop::new(thread),
        };
        (this, Lines { queue, counts })
    }

    /// Dropped lines: those that did not fit into the queue, and those that the sink refused.
    fn dropped(&self) -> (u64, u64) {
        (self.overflow.dropped_lines() as u64, self.counts.refused.load(Ordering::Relaxed))
    }

    /// Publishes the counts of dropped lines, and logs one line when dropping has ended. To be called once a second.
    pub(super) fn report(&self) {
        let (overflow, refused) = self.dropped();
        let all = overflow + refused;
        let mut told = self.told.lock();
        let (overflow_before, refused_before) = std::mem::replace(&mut told.published, (overflow, refused));
        counter!("redbouncer_log_lines_dropped_total", "reason" => LineLoss::QueueFull.label())
            .increment(overflow - overflow_before);
        counter!("redbouncer_log_lines_dropped_total", "reason" => LineLoss::WriteFailed.label())
            .increment(refused - refused_before);
        let is_over = all == told.seen;
        told.seen = all;
        if let Some(count) = told.telling.take()
            && count == all
        {
            told.said = all;
        }
        if is_over && all > told.said {
            told.telling = Some(all);
            let dropped = all - told.said;
            drop(told);
            tracing::warn!(
                dropped,
                "log lines were dropped, because the log was not read or could not be written"
            );
        }
    }

    /// Waits until all lines are written, at most a second.
    pub(super) fn finish(&self) {
        let deadline = Instant::now() + LAST_LINES;
        while Instant::now() < deadline {
            let (overflow, _) = self.dropped();
            let handled = self.counts.handled.load(Ordering::Acquire);
            if handled + overflow >= self.counts.accepted.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A sink that waits before each line for leave: to take it, or to refuse it.
    struct Gate {
        leave: Receiver<bool>,
        taken: Sender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            match self.leave.recv() {
                Ok(false) => Err(io::ErrorKind::StorageFull.into()),
                Ok(true) | Err(_) => {
                    self.taken.send(line.to_vec()).unwrap();
                    Ok(line.len())
                }
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated(room: usize) -> (Queue, Lines, Sender<bool>, Receiver<Vec<u8>>) {
        let ((leave, gate), (taken, lines)) = (channel(), channel());
        let (queue, writer) = Queue::with_room_for(room, Gate { leave: gate, taken });
        (queue, writer, leave, lines)
    }

    #[test]
    fn a_sink_that_is_stuck_holds_nobody_up_and_what_does_not_fit_is_counted() {
        let (queue, mut writer, leave, lines) = gated(4);
        let start = Instant::now();
        for _ in 0..100 {
            writer.write_all(b"line\n").unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(5));
        let (overflow, refused) = queue.dropped();
        // Four wait in the queue, one may be in the hands of the sink.
        assert!((95..=96).contains(&overflow), "{overflow}");
        assert_eq!(refused, 0);
        drop(leave);
        queue.finish();
        assert_eq!(lines.try_iter().count() as u64, 100 - overflow);
    }

    #[test]
    fn a_sink_that_refuses_lines_is_an_error_for_nobody() {
        let (queue, mut writer, leave, lines) = gated(4);
        leave.send(false).unwrap();
        leave.send(true).unwrap();
        writer.write_all(b"first\n").unwrap();
        writer.write_all(b"second\n").unwrap();
        queue.finish();
        assert_eq!(queue.dropped(), (0, 1));
        assert_eq!(lines.try_iter().collect::<Vec<_>>(), [b"second\n"]);
    }

    #[test]
    fn the_end_of_the_process_waits_a_second_for_a_stuck_sink_and_no_longer() {
        let (queue, mut writer, leave, _lines) = gated(4);
        writer.write_all(b"line\n").unwrap();
        let start = Instant::now();
        queue.finish();
        assert!(start.elapsed() >= LAST_LINES && start.elapsed() < LAST_LINES * 5);
        drop(leave);
    }

    #[test]
    fn dropped_lines_are_told_once_when_it_is_over_and_again_only_if_that_line_was_dropped() {
        let (queue, mut writer, leave, _lines) = gated(1);
        let told = Arc::new(AtomicU64::new(0));
        let events = Counting(Arc::clone(&told));
        tracing::subscriber::with_default(events, || {
            for _ in 0..10 {
                writer.write_all(b"line\n").unwrap();
            }
            queue.report();
            assert_eq!(told.load(Ordering::Relaxed), 0, "it may go on");
            queue.report();
            assert_eq!(told.load(Ordering::Relaxed), 1);
            // As if that line had been dropped, too.
            writer.write_all(b"line\n").unwrap();
            queue.report();
            queue.report();
            assert_eq!(told.load(Ordering::Relaxed), 2);
            for _ in 0..5 {
                queue.report();
            }
            assert_eq!(told.load(Ordering::Relaxed), 2);
        });
        drop(leave);
    }

    /// Counts events.
    struct Counting(Arc<AtomicU64>);

    impl tracing::Subscriber for Counting {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
}
