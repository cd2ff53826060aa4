//! What the service manager is told (`sd_notify(3)`): that the proxy is ready, that its workers live, that it stops.
//!
//! Without `NOTIFY_SOCKET` nothing is told. The watchdog is fed by the answers of the workers: a worker whose thread hangs does
//! not answer, and the service manager ends the process and starts it again.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::downstream::Workers;
use crate::telemetry::seconds;

/// How many questions fall into the time that the service manager waits for.
const QUESTIONS: u32 = 3;
/// What a stop takes beyond the drain and the closing of connections.
const MARGIN: Duration = Duration::from_secs(5);

/// Clients are accepted.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The stop has begun, and takes at most `longest`, which may be more than the service manager would wait by itself.
pub(super) fn stopping(longest: Duration) {
    let microseconds = u32::try_from((longest + MARGIN).as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(microseconds)]);
}

/// Feeds the watchdog, where there is one, as long as every worker answers.
pub(super) async fn watchdog(workers: Workers) {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    let mut next = interval((patience / QUESTIONS).max(Duration::from_millis(1)));
    next.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        next.tick().await;
        let mut answered = std::pin::pin!(workers.answer());
        if timeout(patience, &mut answered).await.is_err() {
            tracing::error!(
                after_seconds = seconds(patience),
                "a worker does not respond; the service manager gets no watchdog message"
            );
            answered.await;
        }
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
