//! When a lane of this instance last showed others that we live.
//!
//! Others read our life from `idle=` in the server's CLIENT LIST, and a server resets that when it writes, too: published
//! messages keep a dead subscriber young. So only lanes and the control connection count, to which a server writes
//! nothing but replies. While lanes are silent the control connection speaks, and no lane leaves before it is there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// The newest activity on any lane of any worker.
#[derive(Debug)]
pub struct Liveness {
    start: Instant,
    /// Milliseconds after `start`.
    last: AtomicU64,
    relief: Notify,
}

impl Liveness {
    /// A lane wants to leave, and the control connection has to be there before it does.
    pub fn request_control(&self) {
        self.relief.notify_one();
    }

    /// Waits until a lane wants to leave; at once when one has called since the last time.
    pub async fn control_requested(&self) {
        self.relief.notified().await;
    }

    /// There was activity at `at`.
    pub fn record_activity(&self, at: Instant) {
        let millis = at.saturating_duration_since(self.start).as_millis();
        self.last.fetch_max(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long ago the newest activity was, at `now`.
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        now.saturating_duration_since(self.start).saturating_sub(last)
    }
}

impl Default for Liveness {
    fn default() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0), relief: Notify::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_beat_counts_whatever_the_order() {
        let liveness = Liveness::default();
        let at = |seconds| liveness.start + Duration::from_secs(seconds);
        assert_eq!(liveness.age(at(7)), Duration::from_secs(7));
        liveness.record_activity(at(5));
        liveness.record_activity(at(2));
        assert_eq!(liveness.age(at(7)), Duration::from_secs(2));
        assert_eq!(liveness.age(at(4)), Duration::ZERO);
    }
}
