//! How a client's leaving is noticed while something is awaited for it.
//!
//! A FIN says that the client has nothing more to say, not that it is gone: what arrived before is run to its end and
//! answered, as Redis runs all it has read. So a wait goes on after it, within its own deadline, unless nobody but the
//! client could want what it waits for: a call that blocks. A reset without a FIN before it, or a host that has vanished,
//! ends everything at once. A reset behind a FIN is the answer of a host whose program has closed to our replies: nobody
//! hears them any more, and what the program had sent still runs.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::Client;
use super::inbound::Begun;
use crate::downstream::socket::Hangup;
use crate::resp::RequestScanner;
use crate::telemetry::ClientClose;

/// How many bytes a waiting client may send ahead; beyond it, only its departure is watched.
pub(in crate::downstream) const READ_AHEAD: usize = 64 << 10;

/// A program that sends a blocking call and closes its side at once wants what is there. One that closes later was
/// waiting, or has died: what would be written to it then is lost to everybody.
const AT_ONCE: Duration = Duration::from_millis(20);
/// A call that blocks has had its first look at its keys by then, and waits: where nobody could look in time for a client
/// that closes its side, nobody does.
pub(in crate::downstream) const FIRST_LOOK: Duration = Duration::from_secs(1);

/// Whether a blocking call and its client's FIN came together.
#[derive(Debug)]
pub(in crate::downstream) struct FinTiming {
    since: Instant,
    together: Cell<bool>,
}

impl FinTiming {
    /// For a call whose turn is now.
    pub(in crate::downstream) fn new(client: &Client) -> Self {
        Self { since: Instant::now(), together: Cell::new(client.has_ended_input()) }
    }

    /// The FIN is known now: whether the call is still to look once.
    pub(in crate::downstream) fn looks(&self) -> bool {
        if self.since.elapsed() < AT_ONCE {
            self.together.set(true);
        }
        self.together.get()
    }

    /// Whether an element may be written to the client although it has closed its side.
    pub(in crate::downstream) fn may_deliver(&self) -> bool {
        self.together.get() || self.since.elapsed() < AT_ONCE
    }
}

impl Client {
    /// Runs `work` until it is done or the client is gone, whichever is first. A client that has only closed its sending
    /// side is not gone: `work` may ask [`Self::has_ended_input`], and a blocking call is woken when that becomes true.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream) async fn unless_gone<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, ClientClose> {
        tokio::pin!(work);
        if !self.has_ended_input() {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                reason = self.departure() => if reason != ClientClose::ClientEof {
                    return Err(self.mark_departed(reason));
                },
            }
            self.input_has_ended();
        }
        tokio::select! {
            biased;
            done = work => Ok(done),
            reason = poll_fn(|cx| self.poll_close_requested(cx)) => Err(self.mark_departed(reason)),
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
            hangup = self.hangup() => match hangup {
                Hangup::Fin => ClientClose::ClientEof,
                Hangup::Reset => ClientClose::ClientLost,
            },
            reason = poll_fn(|cx| self.poll_close_requested(cx)) => reason,
        }
    }

    /// Reads ahead while something is awaited for the client, at most `limit` bytes; ready when it leaves, or closes its side.
    pub(in crate::downstream) fn poll_departure(
        &self,
        cx: &mut Context<'_>,
        limit: usize,
    ) -> Poll<Option<ClientClose>> {
        self.is_polled(cx);
        let _ = self.poll_flush(cx);
        loop {
            if let Some(reason) = self.close_reason() {
                return Poll::Ready(Some(reason));
            }
            if self.inbound.is_at_end() {
                return Poll::Ready(Some(ClientClose::ClientEof));
            }
            if self.inbound.len() >= limit {
                return Poll::Ready(None);
            }
            if self.poll_read_behind(cx, 0).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Reads once behind what is buffered already. A client whose socket fails is marked to be closed.
    pub(in crate::downstream) fn poll_read_behind(&self, cx: &mut Context<'_>, need: usize) -> Poll<()> {
        let (socket, account) = (self.outbound.socket(), self.outbound.account());
        let goes_on = || self.close_reason().is_none();
        match self.inbound.poll_read_behind(cx, socket, need, account, goes_on) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(Some(came))) => self.has_read(came),
            Poll::Ready(Ok(None)) => {}
            Poll::Ready(Err(_)) => self.close(self.mark_departed(ClientClose::ClientLost)),
        }
        Poll::Ready(())
    }

    /// Reads once what comes next; only while nothing has begun.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), ClientClose>> {
        match ready!(self.outbound.socket().poll_read(cx, buffer)) {
            Ok(()) => self.has_read(buffer.filled().len()),
            Err(_) => return Poll::Ready(Err(self.mark_departed(ClientClose::ClientLost))),
        }
        Poll::Ready(Ok(()))
    }

    fn has_read(&self, came: usize) {
        self.inbound.note_input(came);
        if came == 0 {
            self.outbound.note_end_of_input();
        }
        self.is_caught_up.set(false);
    }

    /// Keeps the bytes that were read after complete commands.
    pub(in crate::downstream) fn keep(&self, rest: &[u8], scanner: RequestScanner) {
        if !rest.is_empty() {
            self.inbound.keep(rest, scanner, self.outbound.account());
        }
    }

    /// The bytes that were read and not executed, for execution. They count until [`Self::put_back`].
    pub(in crate::downstream) fn take_begun(&self) -> Option<Box<Begun>> {
        self.inbound.take()
    }

    pub(in crate::downstream) fn put_back(&self, begun: Box<Begun>) {
        self.inbound.put_back(begun);
    }

    /// Sends the client's queue. Pending: the kernel accepts no more now.
    pub(in crate::downstream) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.outbound.poll_flush(cx)
    }

    /// The client's own task runs: it is woken from now on.
    pub(in crate::downstream) fn is_polled(&self, cx: &Context<'_>) {
        self.outbound.remember_waker(cx);
    }

    /// Returns when the peer has closed its side or is lost, without reading.
    pub(in crate::downstream) async fn hangup(&self) -> Hangup {
        self.outbound.socket().hangup().await
    }

    /// Completes when the client must be closed; meanwhile sends its queue.
    pub(in crate::downstream) fn poll_close_requested(&self, cx: &mut Context<'_>) -> Poll<ClientClose> {
        self.is_polled(cx);
        let _ = self.poll_flush(cx);
        self.close_reason().map_or(Poll::Pending, Poll::Ready)
    }

    /// Whether its FIN is known to have arrived, so that no more commands follow.
    pub(in crate::downstream) fn has_ended_input(&self) -> bool {
        self.outbound.has_ended_input()
    }

    pub(in crate::downstream) fn input_has_ended(&self) {
        self.outbound.note_end_of_input();
        self.attachment.wake_blocked();
    }

    /// Whether its FIN, or its end, is known to the kernel.
    pub(in crate::downstream) fn is_gone(&self) -> bool {
        let gone = self.outbound.socket().is_gone();
        if self.outbound.socket().has_read_ahead() {
            self.wake();
        }
        gone
    }

    /// Notes the moment of departure, for the release metric.
    pub(in crate::downstream) fn mark_departed(&self, reason: ClientClose) -> ClientClose {
        self.outbound.mark_departed();
        self.context.note_place(self.id(), self.place_shown());
        reason
    }

    /// When its leaving was noticed.
    pub(in crate::downstream) fn departed(&self) -> Option<Instant> {
        self.outbound.departed()
    }

    /// Its FIN has ended a wait: as on the server, none of its later commands run.
    pub(in crate::downstream) fn discard_input(&self) {
        self.inbound.end();
        self.outbound.note_end_of_input();
    }
}

/// Sleeps until `deadline`; for ever without one.
pub(in crate::downstream) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
