//! How a client's leaving is noticed while something is awaited for it.
//!
//! A FIN says that the client has nothing more to say, not that it is gone: what arrived before is run to its end and
//! answered, as Redis runs all it has read. So a wait goes on after it, within its own deadline, unless nobody but the
//! client could want what it waits for: a call that blocks. A reset without a FIN before it, or a host that has vanished,
//! ends everything at once. A reset behind a FIN is the answer of a host whose program has closed to our replies: nobody
//! hears them any more, and what the program had sent still runs.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::client::Client;
use super::wire::Hangup;
use crate::telemetry::ClientClose;

/// What a waiting client may send ahead; beyond it, only its leaving is watched for.
const READ_AHEAD: usize = 64 << 10;

/// A program that sends a blocking call and closes its side at once wants what is there. One that closes later was
/// waiting, or has died: what would be written to it then is lost to everybody.
const AT_ONCE: Duration = Duration::from_millis(20);

/// Whether a blocking call and its client's FIN came together.
#[derive(Debug)]
pub(super) struct LastCall {
    since: Instant,
    together: Cell<bool>,
}

impl LastCall {
    /// For a call whose turn is now.
    pub(super) fn new(client: &Client) -> Self {
        Self { since: Instant::now(), together: Cell::new(client.has_said_all()) }
    }

    /// The FIN is known now: whether the call is still to look once.
    pub(super) fn looks(&self) -> bool {
        if self.since.elapsed() < AT_ONCE {
            self.together.set(true);
        }
        self.together.get()
    }

    /// Whether an element may be written to the client although it has closed its side.
    pub(super) fn may_deliver(&self) -> bool {
        self.together.get() || self.since.elapsed() < AT_ONCE
    }
}

impl Client {
    /// Runs `work` until it is done or the client is gone, whichever is first. A client that has only closed its sending
    /// side is not gone: `work` may ask [`Self::has_said_all`], and is woken by `unblocked` when that becomes true.
    pub(super) async fn patiently<T>(&self, work: impl Future<Output = T>) -> Result<T, ClientClose> {
        tokio::pin!(work);
        if !self.has_said_all() {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                reason = self.departure() => if reason != ClientClose::ClientEof {
                    return Err(self.departs(reason));
                },
            }
            self.note_farewell();
        }
        tokio::select! {
            biased;
            done = work => Ok(done),
            reason = poll_fn(|cx| self.poll_doomed(cx)) => Err(self.departs(reason)),
        }
    }

    /// Returns when the client leaves or closes its side. Reads ahead meanwhile, within bounds.
    async fn departure(&self) -> ClientClose {
        if let Some(reason) = poll_fn(|cx| self.poll_departure(cx, READ_AHEAD)).await {
            return reason;
        }
        // Full: nothing more is read, so end of file cannot be read either. The kernel still tells.
        tokio::select! {
            biased;
            hangup = self.socket.hangup() => match hangup {
                Hangup::Farewell => ClientClose::ClientEof,
                Hangup::Reset => ClientClose::ClientLost,
            },
            reason = poll_fn(|cx| self.poll_doomed(cx)) => reason,
        }
    }

    /// Ready when the client is to be closed; sends what waits for it meanwhile.
    pub(super) fn poll_doomed(&self, cx: &mut Context<'_>) -> Poll<ClientClose> {
        self.remember_waker(cx);
        let _ = self.poll_flush(cx);
        self.doomed.get().map_or(Poll::Pending, Poll::Ready)
    }

    /// Whether its FIN is known to have come: what it has sent is all there will be.
    pub(super) fn has_said_all(&self) -> bool {
        self.farewell.get() || self.input.borrow().eof
    }

    pub(super) fn note_farewell(&self) {
        if !self.farewell.replace(true) {
            self.unblocked.notify_one();
        }
    }

    /// The socket takes no more. Behind a FIN only nobody listens any more; else the client is lost.
    pub(super) fn write_failed(&self, error: &std::io::Error) {
        // Linux says EPIPE where the peer had closed its side before it reset (`tcp_reset` in `tcp_input.c`).
        if self.has_said_all() || error.kind() == std::io::ErrorKind::BrokenPipe {
            self.deaf.set(true);
            self.wake();
        } else {
            self.doom(ClientClose::ClientLost);
        }
    }

    /// Its FIN has ended a wait: like the server, nothing of what it sent behind that call is run.
    pub(super) fn hears_no_more(&self) {
        let mut input = self.input.borrow_mut();
        input.buffer.clear();
        input.scanner = crate::resp::RequestScanner::default();
        input.eof = true;
    }
}
