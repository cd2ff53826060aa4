//! How many lines strangers may cause.
//!
//! An event that names a peer (field `peer`) is caused by somebody outside, as often as it pleases them. Of each kind of
//! such events, that is the place in the code and the `reason`, the first [`BURST`] in a [`PERIOD`] are logged in full; the
//! rest are counted, and one line at the end of the period says how many there were and from which addresses most of
//! them. Events without a peer are the operator's own, and those of level `debug` and `trace` were asked for: they are
//! never suppressed.

use std::collections::HashMap;
use std::fmt::{Debug, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// The time over which events are counted; by the clock of the machine, because threads outside the runtime log, too.
const PERIOD: Duration = Duration::from_secs(10);
/// Events of one kind that are logged in full in one period.
const BURST: u32 = 10;
/// Addresses that are counted for one kind and period; those of others are counted together.
const ADDRESSES: usize = 1024;
/// Addresses that the line at the end names.
const NAMED: usize = 3;

/// The limiter. One per process, shared by the logger and the task that ends periods.
#[derive(Clone, Debug, Default)]
pub(super) struct Limit(Arc<Mutex<HashMap<(Identifier, Reason), Kind>>>);

type Reason = Option<String>;

/// The count of one kind of event.
#[derive(Debug)]
struct Kind {
    since: Instant,
    metadata: &'static Metadata<'static>,
    /// Of the last one that was suppressed.
    message: String,
    logged: u32,
    suppressed: u64,
    from: HashMap<String, u64>,
}

/// The fields that identify the kind and the cause of an event.
#[derive(Default)]
struct Told {
    reason: Reason,
    address: String,
    message: String,
}

impl Visit for Told {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "reason" {
            self.reason = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else if field.name() == "peer" {
            let _ = write!(self.address, "{value:?}");
            // Every connection has its own port, so peers are identified by host.
            if let Some((host, _port)) = self.address.rsplit_once(':') {
                self.address.truncate(host.len());
            }
        }
    }
}

impl Limit {
    /// Whether an event of this kind may be logged now; if not, it is counted.
    fn admits(&self, metadata: &'static Metadata<'static>, told: Told, now: Instant) -> bool {
        let mut kinds = self.0.lock();
        let kind = kinds.entry((metadata.callsite(), told.reason)).or_insert_with(|| Kind {
            since: now,
            metadata,
            message: String::new(),
            logged: 0,
            suppressed: 0,
            from: HashMap::new(),
        });
        if kind.suppressed == 0 && now.saturating_duration_since(kind.since) >= PERIOD {
            kind.since = now;
            kind.logged = 0;
        }
        if kind.logged < BURST {
            kind.logged += 1;
            return true;
        }
        kind.suppressed += 1;
        kind.message = told.message;
        if kind.from.len() < ADDRESSES || kind.from.contains_key(&told.address) {
            *kind.from.entry(told.address).or_default() += 1;
        }
        false
    }

    /// Ends the periods that are over, with one line for each kind of which events were suppressed. To be called once a
    /// second.
    pub(super) fn report(&self) {
        self.report_at(Instant::now());
    }

    fn report_at(&self, now: Instant) {
        let mut over = Vec::new();
        let mut kinds = self.0.lock();
        let is_over = |kind: &mut Kind| now.saturating_duration_since(kind.since) >= PERIOD;
        for ((_, reason), kind) in kinds.extract_if(|_, kind| is_over(kind)) {
            if kind.suppressed > 0 {
                over.push((reason, kind));
            }
        }
        drop(kinds);
        for (reason, kind) in over {
            kind.say(reason.as_deref());
        }
    }
}

impl Kind {
    fn say(self, reason: Option<&str>) {
        let Self { metadata, message, suppressed, from, .. } = self;
        let addresses = from.len();
        let mut from: Vec<_> = from.into_iter().collect();
        from.sort_by(|(left, few), (right, many)| many.cmp(few).then_with(|| left.cmp(right)));
        let mut most = String::new();
        for (address, count) in from.iter().take(NAMED) {
            let comma = if most.is_empty() { "" } else { ", " };
            let _ = write!(most, "{comma}{address} ({count})");
        }
        let seconds = PERIOD.as_secs();
        // The level is part of a callsite, so there is one for each.
        macro_rules! line {
            ($level:expr) => {
                tracing::event!(
                    $level,
                    reason,
                    suppressed,
                    seconds,
                    addresses,
                    most,
                    "{message}, and more of these"
                )
            };
        }
        match *metadata.level() {
            Level::ERROR => line!(Level::ERROR),
            Level::WARN => line!(Level::WARN),
            _ => line!(Level::INFO),
        }
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO || metadata.fields().field("peer").is_none() {
            return true;
        }
        let mut told = Told::default();
        event.record(&mut told);
        self.admits(metadata, told, Instant::now())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::super::tests::Lines;
    use super::*;

    /// Logs with `events` through a limiter; gives the lines, and those at the end of the period.
    fn limited(events: impl Fn()) -> (Vec<String>, Vec<String>) {
        let (lines, limit) = (Lines::default(), Limit::default());
        let sink = lines.clone();
        let logger = tracing_subscriber::fmt()
            .with_max_level(Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || sink.clone())
            .finish()
            .with(limit.clone());
        tracing::subscriber::with_default(logger, || {
            events();
            let logged = lines.take();
            limit.report_at(Instant::now() + PERIOD);
            (logged, lines.take())
        })
    }

    fn refused(host: u8, reason: &str) {
        tracing::warn!(peer = %format_args!("10.0.0.{host}:4711"), reason, "client refused");
    }

    #[test]
    fn of_ten_thousand_strangers_ten_are_logged_and_one_line_tells_of_the_rest() {
        let (logged, at_the_end) = limited(|| {
            for at in 0..10_000_u32 {
                refused(if at % 10 == 0 { 2 } else { 1 }, "too_many");
            }
        });
        assert_eq!(logged.len(), 10);
        assert_eq!(at_the_end.len(), 1, "{at_the_end:?}");
        let line = &at_the_end[0];
        for part in [
            "WARN",
            "client refused, and more of these",
            "suppressed=9990",
            "addresses=2",
            "reason=\"too_many\"",
            "10.0.0.1 (8991), 10.0.0.2 (999)",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }

    #[test]
    fn kinds_are_counted_apart() {
        let (logged, at_the_end) = limited(|| {
            for _ in 0..20 {
                refused(1, "too_many");
                refused(1, "denied");
                tracing::info!(peer = "10.0.0.1:4711", reason = "denied", "client closed");
            }
        });
        assert_eq!((logged.len(), at_the_end.len()), (30, 3));
    }

    #[test]
    fn what_names_no_peer_or_was_asked_for_is_never_suppressed() {
        let (logged, at_the_end) = limited(|| {
            for _ in 0..1000 {
                tracing::error!(reason = "connection refused", "upstream connection failed");
                tracing::debug!(peer = "10.0.0.1:4711", "client connected");
            }
        });
        assert_eq!((logged.len(), at_the_end.len()), (2000, 0));
    }

    #[test]
    fn a_new_period_begins_with_full_lines_and_what_is_counted_is_bounded() {
        let limit = Limit::default();
        let metadata = {
            // A callsite of its own.
            struct Own;
            impl tracing::callsite::Callsite for Own {
                fn set_interest(&self, _: tracing::subscriber::Interest) {}
                fn metadata(&self) -> &Metadata<'_> {
                    &METADATA
                }
            }
            static CALLSITE: Own = Own;
            static METADATA: Metadata<'static> = tracing::metadata! {
                name: "event",
                target: "test",
                level: Level::INFO,
                fields: &["peer"],
                callsite: &CALLSITE,
                kind: tracing::metadata::Kind::EVENT
            };
            &METADATA
        };
        let told = |at: usize| Told { address: at.to_string(), ..Told::default() };
        let start = Instant::now();
        let admitted = |from: Instant| (0..5000).filter(|at| limit.admits(metadata, told(*at), from)).count();
        assert_eq!(admitted(start), 10);
        assert!(limit.0.lock().values().all(|kind| kind.from.len() <= ADDRESSES));
        assert_eq!(admitted(start + PERIOD / 2), 0);
        limit.report_at(start + PERIOD);
        assert_eq!(admitted(start + PERIOD), 10);
    }
}
