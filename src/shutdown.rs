//! Stopping: the signals, and how long a stop may take.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long a stop may take (`[shutdown]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownOptions {
    /// How long clients are served after the signal, while `/ready` reports that others should not connect.
    pub delay: Duration,
    /// How long commands in flight may take to finish; docker kills after 10 s, so the default is below that.
    pub drain_timeout: Duration,
}

impl Default for ShutdownOptions {
    fn default() -> Self {
        Self { delay: Duration::ZERO, drain_timeout: Duration::from_secs(8) }
    }
}

/// The signals that end the proxy: SIGTERM from an orchestrator, SIGINT from a terminal.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Takes the signals over from the default, which would end the process in the middle.
    ///
    /// # Errors
    /// When the operating system refuses a handler.
    pub fn install() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for `delay`, or for a second signal, which ends it.
    pub async fn delay(&mut self, delay: Duration) {
        if delay.is_zero() {
            return;
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(delay) => {}
            second = async { self.settle().await; self.next().await } => {
                tracing::info!(signal = second, "shutdown.delay ends early");
            }
        }
    }

    /// Waits a moment and forgets what came meanwhile: a supervisor that signals a process and its group means it once.
    pub async fn settle(&mut self) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let _ = tokio::time::timeout(Duration::ZERO, self.next()).await;
    }

    /// Waits for the next one and names it.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The signals that other programs give a meaning to: reopening logs, pausing. Here they have none, and must not end the
/// process with its clients, as they would by default.
#[derive(Debug)]
pub struct UserSignals {
    first: Signal,
    second: Signal,
}

impl UserSignals {
    /// Takes the signals over from the default.
    ///
    /// # Errors
    /// When the operating system refuses a handler.
    pub fn install() -> io::Result<Self> {
        Ok(Self { first: signal(SignalKind::user_defined1())?, second: signal(SignalKind::user_defined2())? })
    }

    /// Logs that each such signal has no effect. Never returns.
    pub async fn ignore(mut self) {
        loop {
            let signal = tokio::select! {
                _ = self.first.recv() => "SIGUSR1",
                _ = self.second.recv() => "SIGUSR2",
            };
            tracing::info!(signal, "the signal is ignored");
        }
    }
}
