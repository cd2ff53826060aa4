//! PROXY PAUSE: new commands wait while a server is replaced.
//!
//! What has begun goes on: replies that lanes owe, transactions and other leases, blocking calls, subscriptions. One state for
//! all workers; the path of a command reads a flag.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

/// Since when, and until when commands wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paused {
    /// When PROXY PAUSE came.
    pub since: Instant,
    /// When it ends by itself; `None`: at PROXY RESUME.
    pub until: Option<Instant>,
}

/// Whether new commands wait.
#[derive(Debug)]
pub struct Pause {
    is_on: AtomicBool,
    state: Mutex<Option<Paused>>,
    changed: watch::Sender<()>,
    waiting: AtomicUsize,
}

/// A client that waits, counted until this is dropped.
#[must_use]
#[derive(Debug)]
pub struct Waits<'a>(&'a Pause);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Pause {
    fn default() -> Self {
        Self {
            is_on: AtomicBool::new(false),
            state: Mutex::new(None),
            changed: watch::Sender::new(()),
            waiting: AtomicUsize::new(0),
        }
    }
}

impl Pause {
    /// Whether new commands wait now.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Since when and until when they do.
    #[must_use]
    pub fn paused(&self) -> Option<Paused> {
        *self.state.lock()
    }

    /// How many clients wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// New commands wait from now on, for `time` or until [`Self::end`]. A second one only changes when it ends.
    pub fn begin(&self, time: Option<Duration>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let since = state.map_or(now, |paused| paused.since);
        *state = Some(Paused { since, until: time.map(|time| now + time) });
        self.is_on.store(true, Ordering::Relaxed);
    }

    /// They go on. Returns for how long they have waited; `None`: they did not.
    pub fn end(&self) -> Option<Duration> {
        let paused = self.state.lock().take()?;
        self.is_on.store(false, Ordering::Relaxed);
        self.changed.send_replace(());
        Some(paused.since.elapsed())
    }

    /// The same where its time is over at `now`.
    pub fn expire(&self, now: Instant) -> Option<Duration> {
        let is_over =
            self.is_on() && self.paused().and_then(|paused| paused.until).is_some_and(|until| until <= now);
        if is_over { self.end() } else { None }
    }

    /// Counts a client that waits.
    pub fn count(&self) -> Waits<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waits(self)
    }

    /// Returns when commands may go on.
    pub async fn is_over(&self) {
        let mut changed = self.changed.subscribe();
        // It is looked at behind each change, so none is missed; the sender lives as long as this does.
        while self.is_on() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_on_at_the_end_and_is_counted_until_then() {
        let pause = Arc::new(Pause::default());
        pause.begin(None);
        let waits = {
            let pause = Arc::clone(&pause);
            tokio::spawn(async move {
                let _waits = pause.count();
                pause.is_over().await;
            })
        };
        tokio::task::yield_now().await;
        assert_eq!((pause.is_on(), pause.waiting()), (true, 1));
        assert_eq!(pause.expire(Instant::now() + Duration::from_secs(3600)), None);
        assert!(pause.end().is_some() && pause.end().is_none());
        assert!(waits.await.is_ok());
        assert_eq!((pause.is_on(), pause.waiting()), (false, 0));
        pause.is_over().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_pause_changes_when_it_ends_and_not_since_when() {
        let pause = Pause::default();
        pause.begin(Some(Duration::from_secs(1)));
        let since = pause.paused().map(|paused| paused.since);
        tokio::time::advance(Duration::from_millis(500)).await;
        pause.begin(Some(Duration::from_secs(2)));
        assert_eq!(pause.paused().map(|paused| paused.since), since);
        let now = Instant::now();
        assert_eq!(pause.expire(now + Duration::from_secs(1)), None);
        assert!(pause.expire(now + Duration::from_secs(2)).is_some());
        assert!(!pause.is_on());
    }
}
