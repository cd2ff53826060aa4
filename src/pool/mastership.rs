//! Whether the server that clients write to is still a master.
//!
//! A server that has been a master for this process and becomes a replica has been demoted, and another one takes its place
//! under the same name in a moment. Until then, at most for `upstream.failover_wait`, connections to replicas are not used.
//! One state for all workers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What logins and refused writes have told of the server's role.
#[derive(Debug, Default)]
pub struct Mastership {
    state: Mutex<State>,
    demotions: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Some server of this name was a master.
    was_master: bool,
    /// Since when it is one no more.
    demoted: Option<Instant>,
}

impl Mastership {
    /// How many demotions there have been. A connection remembers it: what its server says later is news only if no other
    /// demotion has been noticed since its login.
    #[must_use]
    pub fn demotions(&self) -> u64 {
        self.demotions.load(Ordering::Relaxed)
    }

    /// A connection has logged in to a master. Returns for how long there was none, if there was none.
    pub(super) fn met_a_master(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        state.was_master = true;
        state.demoted.take().map(|since| since.elapsed())
    }

    /// The server of a connection that logged in to a master after `demotions` is a master no more. Returns whether that is
    /// news.
    pub(super) fn is_lost(&self, demotions: u64) -> bool {
        let mut state = self.state.lock();
        if demotions != self.demotions() {
            return false;
        }
        state.was_master = true;
        state.demoted = Some(Instant::now());
        self.demotions.store(demotions + 1, Ordering::Relaxed);
        true
    }

    /// Whether a replica is not used, because there will be a master within `wait` of the demotion.
    #[must_use]
    pub(super) fn is_awaited(&self, wait: Duration) -> bool {
        self.state.lock().demoted.is_some_and(|since| since.elapsed() < wait)
    }

    /// Since when there is no master, where there was one.
    #[must_use]
    pub fn demoted_for(&self) -> Option<Duration> {
        self.state.lock().demoted.map(|since| since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_master_is_awaited_from_its_demotion_on_and_not_for_ever() {
        let mastership = Mastership::default();
        assert!(!mastership.is_awaited(WAIT), "there was none yet");
        assert_eq!(mastership.met_a_master(), None);
        assert!(mastership.is_lost(0) && mastership.is_awaited(WAIT));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(!mastership.is_lost(0), "a connection from before the demotion has no news");
        assert!(mastership.is_awaited(WAIT));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!mastership.is_awaited(WAIT));
        assert_eq!(mastership.met_a_master(), Some(WAIT));
        assert!(!mastership.is_lost(0) && mastership.is_lost(1) && mastership.is_awaited(WAIT));
    }
}
