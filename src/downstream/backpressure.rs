//! What a client may leave unread: when it is read no further, and when it is closed.
//!
//! Above `client.output_soft_limit` nothing more of its commands is run, so that a client which reads slowly takes
//! little memory here. But some clients write all their commands before they read the first reply, as every
//! pipeline of a blocking library does: held back, they would never read, and neither would go on. A server buffers for
//! them. So the bound is raised for a client that takes nothing at all, step by step up to `client.output_hard_limit`,
//! and falls back when it has read.

use std::cell::Cell;

use super::Worker;
use super::client::Client;
use crate::telemetry::ClientClose;

/// So many ticks of the worker without a byte taken raise the bound.
const STALLED: u32 = 3;
/// By how much the bound is raised at a time: few steps from the soft limit to the hard one.
const STEP: usize = 8;

/// Where a client stands that is above its soft limit.
#[derive(Debug, Default)]
pub(super) struct Backpressure {
    /// Nothing more is run for it.
    holds: Cell<bool>,
    /// Its bound, while it is above the soft limit.
    bound: Cell<Option<usize>>,
    /// For how many ticks its socket has taken nothing.
    stalled: Cell<u32>,
}

impl Backpressure {
    /// Whether the client is above its soft limit.
    pub(super) fn is_on(&self) -> bool {
        self.bound.get().is_some()
    }
}

impl Client {
    /// More is unsent than it may leave unread now: nothing more is read from it or run for it.
    pub(super) fn is_backpressured(&self) -> bool {
        self.backpressure.holds.get()
    }

    /// Judges how much is unsent, whenever that may have crossed a limit.
    pub(super) fn check_limits(&self, unsent: usize) {
        let options = &self.worker.options;
        if unsent > options.output_hard_limit {
            self.doom(ClientClose::OutputLimit);
        }
        self.check_subscriber_limits(unsent);
        let pressure = &self.backpressure;
        if unsent <= options.output_soft_limit {
            pressure.holds.set(false);
            pressure.bound.set(None);
            return;
        }
        let bound = pressure.bound.get().unwrap_or_else(|| {
            pressure.bound.set(Some(options.output_soft_limit));
            pressure.stalled.set(0);
            self.worker.slow_readers.borrow_mut().insert(self.id);
            options.output_soft_limit
        });
        pressure.holds.set(unsent > bound);
    }

    /// Every tick while the client is above its soft limit (`false`: no longer). One that takes nothing may leave more
    /// unread from now on.
    fn tend_slow_reader(&self) -> bool {
        let pressure = &self.backpressure;
        if !pressure.is_on() {
            return false;
        }
        let mut out = self.out.borrow_mut();
        let taken = out.write_by(|bytes| self.socket.write_now(bytes));
        let unsent = out.len();
        drop(out);
        self.holds_output(unsent);
        let taken = match taken {
            Ok(taken) => taken,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                self.write_failed(&error);
                return false;
            }
        };
        self.worker.metrics.bytes_out.add(taken as u64);
        let stalled = if taken > 0 || !pressure.holds.get() { 0 } else { pressure.stalled.get() + 1 };
        pressure.stalled.set(stalled % STALLED);
        if taken > 0 || stalled == STALLED {
            if stalled == STALLED
                && let Some(bound) = pressure.bound.get()
            {
                let raised = bound.saturating_mul(STEP).min(self.worker.options.output_hard_limit);
                pressure.bound.set(Some(raised));
            }
            self.check_limits(unsent);
            // It may be read and run again.
            self.wake();
        }
        true
    }
}

impl Worker {
    /// Every tick: those who are above their soft limit.
    pub(super) fn tend_slow_readers(&self) {
        let slow = std::mem::take(&mut *self.slow_readers.borrow_mut());
        let clients = self.clients.borrow();
        let still: Vec<u64> = slow
            .into_iter()
            .filter(|id| clients.get(id).is_some_and(|client| client.tend_slow_reader()))
            .collect();
        self.slow_readers.borrow_mut().extend(still);
    }
}
