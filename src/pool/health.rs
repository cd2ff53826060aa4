//! Whether the server can be reached, said once when it changes.
//!
//! During an outage every waiting session dials again and again; a line for each would bury the one that matters.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Kind, Short};
use crate::upstream::DialError;

/// A failure is a warning again after this long.
const REPEAT: Duration = Duration::from_secs(10);

/// The state of the way to the server.
#[derive(Debug, Default)]
pub struct Health {
    outage: Mutex<Option<Outage>>,
    recovered: Notify,
}

#[derive(Debug)]
struct Outage {
    since: Instant,
    warned: Instant,
    dials: u64,
}

impl Health {
    /// How long the server has not been reached; `None` when the last dial succeeded.
    #[must_use]
    pub fn down_for(&self) -> Option<Duration> {
        self.outage.lock().as_ref().map(|outage| outage.since.elapsed())
    }

    /// Waits until a dial succeeds after one that has failed; at once when that happened since the last time.
    pub async fn recovered(&self) {
        self.recovered.notified().await;
    }

    /// A dial has succeeded.
    pub(super) fn succeeded(&self) {
        metrics::gauge!("redbouncer_upstream_up").set(1.0);
        if let Some(outage) = self.outage.lock().take() {
            self.recovered.notify_one();
            tracing::info!(after = %Short(outage.since.elapsed()), dials = outage.dials, "upstream reached again");
        }
    }

    /// A dial as `user` has failed.
    pub(super) fn failed(&self, kind: Kind, user: &str, error: &DialError) {
        let kind = kind.label();
        match error {
            // An answer: the server is there, and whoever asked is told.
            DialError::SelectRefused { .. } => {
                tracing::debug!(kind, user, %error, "upstream connection refused");
            }
            DialError::Login { .. } => tracing::info!(kind, user, %error, "upstream login refused"),
            _ => {
                metrics::gauge!("redbouncer_upstream_up").set(0.0);
                let now = Instant::now();
                let mut state = self.outage.lock();
                let outage = state.get_or_insert(Outage { since: now, warned: now - REPEAT, dials: 0 });
                outage.dials += 1;
                if now - outage.warned >= REPEAT {
                    outage.warned = now;
                    let down = Short(outage.since.elapsed());
                    tracing::warn!(kind, user, %error, %down, dials = outage.dials, "upstream connection failed");
                } else {
                    tracing::debug!(kind, user, %error, "upstream connection failed");
                }
            }
        }
    }
}
