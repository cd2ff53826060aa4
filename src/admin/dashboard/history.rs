//! The last 15 minutes in numbers: one sample a second, in a ring.

use std::collections::VecDeque;

use serde_json::{Value, json};

/// So many samples are kept: 15 minutes.
const SAMPLES: usize = 900;

/// What is counted at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Connected clients.
    pub clients: usize,
    /// Upstream connections that hold a permit.
    pub upstream: usize,
    /// Waiting for a permit.
    pub waiting: usize,
}

/// The samples of the last seconds, oldest first, each with the second it is of.
#[derive(Debug, Default)]
pub(super) struct History {
    samples: VecDeque<(u64, Sample)>,
}

impl History {
    /// Adds the sample of `second`, counted from the start. The oldest one gives way.
    pub(super) fn add(&mut self, second: u64, sample: Sample) {
        if self.samples.len() >= SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((second, sample));
    }

    /// The samples after `second` as rows of numbers: second, clients, upstream connections, waiting.
    pub(super) fn after(&self, second: Option<u64>) -> Value {
        let rows = self.samples.iter().filter(|(at, _)| second.is_none_or(|second| *at > second));
        rows.map(|(at, sample)| json!([at, sample.clients, sample.upstream, sample.waiting])).collect()
    }

    /// The second of the newest sample.
    pub(super) fn newest(&self) -> Option<u64> {
        self.samples.back().map(|(second, _)| *second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_fifteen_minutes() {
        let mut history = History::default();
        assert_eq!((history.newest(), history.after(None)), (None, json!([])));
        for second in 0..2000 {
            history.add(second, Sample { clients: 2, upstream: 1, waiting: 0 });
        }
        assert_eq!(history.after(None).as_array().map(Vec::len), Some(900));
        assert_eq!(history.after(Some(1998)), json!([[1999, 2, 1, 0]]));
        assert_eq!(history.newest(), Some(1999));
    }
}
