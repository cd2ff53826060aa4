//! Long work in slices: a worker serves everybody else between two of them.

use std::future::Future;
use std::pin::pin;
use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

/// How long one client's work may keep its worker from others.
pub const SLICE: Duration = Duration::from_millis(1);

/// Work that began at this moment, or went on after others were served.
#[derive(Debug)]
pub struct Slice(Instant);

impl Slice {
    /// It begins now.
    #[must_use]
    pub fn begin() -> Self {
        Self(Instant::now())
    }

    /// Whether others are to be served.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.elapsed() > SLICE
    }

    /// Lets others be served where this slice is over.
    pub async fn breathe(&mut self) {
        if self.is_over() {
            tokio::task::yield_now().await;
            self.0 = Instant::now();
        }
    }
}

/// Has the current task polled again when others have been served, sockets included. A task that wakes itself would go on
/// before any socket is looked at.
pub fn go_on_later(cx: &mut Context<'_>) {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}
