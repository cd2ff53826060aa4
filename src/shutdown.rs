//! Stopping: the signals, and how long a stop may take.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long a stop may take (`[shutdown]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutdownOptions {
    /// How long commands in flight may take to finish; docker kills after 10 s, so the default is below that.
    pub drain_timeout: Duration,
}

impl Default for ShutdownOptions {
    fn default() -> Self {
        Self { drain_timeout: Duration::from_secs(8) }
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
