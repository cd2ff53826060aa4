//! Histograms of times that are measured often.
//!
//! The exporter's own histograms keep every sample until they are rendered. These are plain cells of one thread; their totals
//! over all threads are rendered at a scrape.

use std::cell::Cell;
use std::fmt::Write as _;
use std::time::Duration;

use super::metrics::METRICS;

/// The upper bound of a bucket in microseconds, and its label in seconds.
type Bound = (u64, &'static str);

const BUCKETS: usize = 13;

/// For replies: from 0.1 ms to 5 s.
const SHORT: [Bound; BUCKETS] = [
    (100, "0.0001"),
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (1_000_000, "1"),
    (5_000_000, "5"),
];

/// For times that clients determine: from 1 ms to an hour.
const LONG: [Bound; BUCKETS] = [
    (1_000, "0.001"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_000_000, "2"),
    (5_000_000, "5"),
    (30_000_000, "30"),
    (60_000_000, "60"),
    (600_000_000, "600"),
    (3_600_000_000, "3600"),
];

/// How long something took, each time.
#[derive(Clone, Debug)]
pub struct Seconds {
    bounds: &'static [Bound; BUCKETS],
    buckets: [Cell<u64>; BUCKETS],
    count: Cell<u64>,
    micros: Cell<u64>,
}

impl Seconds {
    /// A histogram with buckets from 0.1 ms to 5 s.
    #[must_use]
    pub fn short() -> Self {
        Self::with(&SHORT)
    }

    /// A histogram with buckets from 1 ms to an hour.
    #[must_use]
    pub fn long() -> Self {
        Self::with(&LONG)
    }

    fn with(bounds: &'static [Bound; BUCKETS]) -> Self {
        Self { bounds, buckets: Default::default(), count: Cell::default(), micros: Cell::default() }
    }

    /// Adds one sample.
    pub fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.count.set(self.count.get() + 1);
        self.micros.set(self.micros.get().saturating_add(micros));
        let at = self.bounds.partition_point(|(bound, _)| *bound < micros);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.set(bucket.get() + 1);
        }
    }

    /// How many samples there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.get()
    }

    /// Adds the samples of another one, which has the same buckets.
    pub fn merge(&self, other: &Self) {
        self.count.set(self.count.get() + other.count.get());
        self.micros.set(self.micros.get().saturating_add(other.micros.get()));
        for (bucket, more) in self.buckets.iter().zip(&other.buckets) {
            bucket.set(bucket.get() + more.get());
        }
    }

    /// The metric `name` in Prometheus' text format, one histogram for each value of its `label`. Without a label there is one
    /// row.
    #[must_use]
    pub fn render(name: &str, label: Option<&str>, rows: &[(&str, Self)]) -> String {
        let help = METRICS.iter().find(|(known, ..)| *known == name).map_or("", |(.., help)| *help);
        let mut text = format!("# HELP {name} {help}\n# TYPE {name} histogram\n");
        for (value, seconds) in rows {
            let label = label.map(|label| format!("{label}=\"{value}\""));
            seconds.render_one(&mut text, name, label.as_deref());
        }
        text
    }

    #[allow(
        clippy::cast_precision_loss,
        reason = "a sum of seconds needs no more than 52 bits of microseconds"
    )]
    fn render_one(&self, text: &mut String, name: &str, label: Option<&str>) {
        let (alone, before) = match label {
            Some(label) => (format!("{{{label}}}"), format!("{label},")),
            None => (String::new(), String::new()),
        };
        let mut below = 0;
        for ((_, bound), bucket) in self.bounds.iter().zip(&self.buckets) {
            below += bucket.get();
            let _ = writeln!(text, "{name}_bucket{{{before}le=\"{bound}\"}} {below}");
        }
        let count = self.count.get();
        let _ = writeln!(text, "{name}_bucket{{{before}le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_sum{alone} {}", self.micros.get() as f64 / 1e6);
        let _ = writeln!(text, "{name}_count{alone} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_in_its_bucket_and_in_all_above() {
        let seconds = Seconds::short();
        for micros in [100, 101, 7_000_000] {
            seconds.record(Duration::from_micros(micros));
        }
        let more = Seconds::short();
        more.record(Duration::from_secs(1));
        seconds.merge(&more);
        let text = Seconds::render("redbouncer_upstream_reply_seconds", None, &[("", seconds)]);
        for line in [
            "_bucket{le=\"0.0001\"} 1",
            "_bucket{le=\"0.00025\"} 2",
            "_bucket{le=\"0.25\"} 2",
            "_bucket{le=\"1\"} 3",
            "_bucket{le=\"5\"} 3",
            "_bucket{le=\"+Inf\"} 4",
            "_sum 8.000201",
            "_count 4",
        ] {
            assert!(text.contains(&format!("redbouncer_upstream_reply_seconds{line}\n")), "{line} in {text}");
        }
    }

    #[test]
    fn rows_are_told_apart_by_their_label() {
        let rows = [("lane", Seconds::long()), ("lease", Seconds::long())];
        rows[1].1.record(Duration::from_secs(7200));
        let text = Seconds::render("redbouncer_pool_wait_seconds", Some("claim"), &rows);
        for line in [
            "_bucket{claim=\"lane\",le=\"3600\"} 0",
            "_bucket{claim=\"lease\",le=\"3600\"} 0",
            "_bucket{claim=\"lease\",le=\"+Inf\"} 1",
            "_sum{claim=\"lease\"} 7200",
            "_count{claim=\"lane\"} 0",
        ] {
            assert!(text.contains(&format!("redbouncer_pool_wait_seconds{line}\n")), "{line} in {text}");
        }
        assert_eq!(text.matches("# TYPE").count(), 1);
    }
}
