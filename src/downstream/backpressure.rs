//! What a client may leave unread: when it is read no further, and when it is closed.
//!
//! Above `client.output_soft_limit` nothing more of its commands is run, so that a client which reads slowly takes
//! little memory here. But some clients write all their commands before they read the first reply, as every
//! pipeline of a blocking library does: held back, they would never read, and neither would go on. A server buffers for
//! them. So a client that takes nothing at all is held back no longer, up to `client.output_hard_limit` and within the
//! memory that all clients may hold, until it reads again.

use std::cell::Cell;

use super::Worker;
use super::client::Client;
use crate::telemetry::ClientClose;

/// What a peer that has not logged in may leave unread: refusals and greetings.
const BEFORE_LOGIN: usize = 64 << 10;
/// A client that has taken no byte for so many ticks of the worker is not reading.
const STALLED: u32 = 3;

/// Where a client stands that is above its soft limit.
#[derive(Debug, Default)]
pub(super) struct Backpressure {
    /// It is above its soft limit.
    above: Cell<bool>,
    /// Bytes that its socket has taken since the last tick.
    took: Cell<usize>,
    /// Bytes that its host had acknowledged at the last tick.
    acknowledged: Cell<Option<u64>>,
    /// For how many ticks, up to [`STALLED`], it has taken nothing.
    stalled: Cell<u32>,
}

impl Backpressure {
    /// Its socket has taken so many bytes.
    pub(super) fn took(&self, bytes: usize) {
        self.took.set(self.took.get() + bytes);
    }

    pub(super) fn is_above(&self) -> bool {
        self.above.get()
    }

    /// Whether nothing more is run for the client: it is above its soft limit and reads.
    fn holds(&self) -> bool {
        self.above.get() && self.stalled.get() < STALLED
    }

    /// Judges whether it has taken anything since the last tick.
    fn judge(&self, acknowledged: Option<u64>) {
        let (took, before) = (self.took.take(), self.acknowledged.replace(acknowledged));
        let reads = if acknowledged.is_some() { acknowledged != before } else { took > 0 };
        self.stalled.set(if reads { 0 } else { STALLED.min(self.stalled.get() + 1) });
    }
}

impl Client {
    /// More is unsent than it may leave unread now: nothing more is read from it or run for it.
    pub(super) fn is_backpressured(&self) -> bool {
        self.backpressure.holds()
    }

    /// Judges how much is unsent, whenever that may have crossed a limit.
    pub(super) fn check_limits(&self, unsent: usize) {
        let options = &self.worker.options;
        let is_strange = unsent > BEFORE_LOGIN && self.session.borrow().user.is_none();
        if unsent > options.output_hard_limit || is_strange {
            self.doom(ClientClose::OutputLimit);
        }
        self.check_subscriber_limits(unsent);
        let pressure = &self.backpressure;
        let above = unsent > options.output_soft_limit;
        if above && !pressure.above.get() {
            pressure.stalled.set(0);
            self.worker.slow_readers.borrow_mut().insert(self.id);
        }
        pressure.above.set(above);
    }

    /// Every tick while the client is above its soft limit (`false`: no longer): whether it reads.
    fn tend_slow_reader(&self) -> bool {
        let pressure = &self.backpressure;
        if !pressure.is_above() {
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
        pressure.took(taken);
        let was_held = pressure.holds();
        pressure.judge(self.socket.acknowledged());
        self.check_limits(unsent);
        if was_held && (taken > 0 || !pressure.holds()) {
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
