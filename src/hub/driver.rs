//! What every hub's connection does: write what is due, read whole frames, keep the time.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::pool::{Charge, LONG, Permit, Pool, Slice, go_on_later};
use crate::resp::{ReplyKind, ReplyScanner, append};
use crate::telemetry::UpstreamClose;
use crate::upstream::UpstreamStream;

/// A drained write buffer larger than this is given back.
const KEEP: usize = 64 << 10;
/// After so many frames it is looked at the clock.
const LOOK: usize = 32;

/// What a connection is carried for: bytes in, bytes out, and deadlines. Knows no socket.
pub(super) trait HubProtocol {
    /// What has to be written; what was is taken away.
    fn out(&mut self) -> &mut BytesMut;
    /// Takes one whole frame.
    ///
    /// # Errors
    /// It is nothing that was asked for.
    fn receive(&mut self, kind: ReplyKind, frame: &[u8], now: Instant) -> Result<(), UpstreamClose>;
    /// Does what is due.
    fn expire(&mut self, now: Instant);
    /// When something is due next.
    fn next_timer(&self) -> Option<Instant>;
}

/// Why a connection is no longer carried.
pub(super) enum ConnectionEnd {
    /// Nobody needs it, or it is wanted elsewhere: closed in order.
    Left(UpstreamClose),
    /// It failed, or cannot be trusted.
    Lost(UpstreamClose),
    /// This user may not use a hub.
    Refused,
}

/// How a hub ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nobody needs it.
    Done,
    /// This user may not use one, or this server has none.
    Refused,
    /// There is no connection for it under the cap.
    NoPermit,
}

/// The task that a hub's owner wakes when there is something to write.
#[derive(Debug, Default)]
pub(super) struct WakerSlot(RefCell<Option<Waker>>);

impl WakerSlot {
    pub(super) fn ring(&self) {
        if let Some(waker) = &*self.0.borrow() {
            waker.wake_by_ref();
        }
    }

    pub(super) fn answer_to(&self, cx: &Context<'_>) {
        let mut waker = self.0.borrow_mut();
        match &mut *waker {
            Some(known) => known.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }
}

/// One open connection and what has been read of the next frame.
pub(super) struct HubDriver {
    pub(super) stream: UpstreamStream,
    scanner: ReplyScanner,
    /// What was read and not yet taken, because others had to be served first.
    behind: Bytes,
    partial: BytesMut,
    /// What a long part counts: nobody knows yet for whom it is, so it counts for nobody by name.
    held: Charge,
    clock: Clock,
    /// A write has found the connection closed; what was sent before, perhaps an element, is still read.
    severed: bool,
}

impl HubDriver {
    pub(super) fn new(stream: UpstreamStream, pool: &Pool) -> Self {
        Self {
            stream,
            scanner: ReplyScanner::default(),
            behind: Bytes::new(),
            partial: BytesMut::new(),
            held: pool.shared.memory.unnamed(),
            clock: Clock::default(),
            severed: false,
        }
    }

    /// Moves bytes both ways until the connection is lost or `leaving` says that it is over.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        pool: &Pool,
        desk: &RefCell<impl HubProtocol>,
        heard: &Cell<Instant>,
        leaving: impl Fn() -> Option<ConnectionEnd>,
    ) -> Poll<ConnectionEnd> {
        let slice = Slice::begin();
        loop {
            if slice.is_over() {
                go_on_later(cx);
                return Poll::Pending;
            }
            self.clock.poll(cx, desk);
            if !self.severed
                && let Poll::Ready(Err(error)) = self.poll_write(cx, desk)
            {
                if !UpstreamStream::is_to_be_read_out(&error) {
                    return Poll::Ready(ConnectionEnd::Lost(UpstreamClose::Lost));
                }
                self.severed = true;
            }
            if let Some(over) = leaving() {
                return Poll::Ready(over);
            }
            let taken = match self.behind.is_empty() {
                true => ready!(self.poll_read(cx, pool, desk, heard, &slice)),
                false => self.take_behind(desk, &slice),
            };
            if let Err(reason) = taken {
                return Poll::Ready(ConnectionEnd::Lost(reason));
            }
        }
    }

    /// Reads once.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        pool: &Pool,
        desk: &RefCell<impl HubProtocol>,
        heard: &Cell<Instant>,
        slice: &Slice,
    ) -> Poll<Result<(), UpstreamClose>> {
        let mut scratch = pool.scratch().borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
        if read.is_err() || buffer.filled().is_empty() {
            return Poll::Ready(Err(UpstreamClose::Lost));
        }
        let now = Instant::now();
        heard.set(now);
        let data = buffer.filled();
        let taken = self.receive(data, desk, now, slice);
        Poll::Ready(taken.map(|taken| self.behind = Bytes::copy_from_slice(&data[taken..])))
    }

    fn take_behind(&mut self, desk: &RefCell<impl HubProtocol>, slice: &Slice) -> Result<(), UpstreamClose> {
        let data = std::mem::take(&mut self.behind);
        let taken = self.receive(&data, desk, Instant::now(), slice)?;
        self.behind = data.slice(taken..);
        Ok(())
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        desk: &RefCell<impl HubProtocol>,
    ) -> Poll<std::io::Result<()>> {
        let mut desk = desk.borrow_mut();
        let out = desk.out();
        ready!(self.stream.poll_write_all(cx, out))?;
        // `advance` leaves the buffer at its end: clearing lets it start again at the front of its memory.
        if out.capacity() > KEEP {
            *out = BytesMut::new();
        } else {
            out.clear();
        }
        Poll::Ready(Ok(()))
    }

    /// Takes frames until there are no more, or others are to be served. Returns how many bytes are done with.
    fn receive(
        &mut self,
        data: &[u8],
        desk: &RefCell<impl HubProtocol>,
        now: Instant,
        slice: &Slice,
    ) -> Result<usize, UpstreamClose> {
        let mut desk = desk.borrow_mut();
        let mut rest = data;
        let mut frames = 0_usize;
        while !rest.is_empty() {
            frames += 1;
            if frames.is_multiple_of(LOOK) && slice.is_over() {
                break;
            }
            let step = self.scanner.step(rest).map_err(|_| UpstreamClose::Desync)?;
            let (part, behind) = rest.split_at(step.consumed);
            rest = behind;
            match step.complete {
                Some(kind) if self.partial.is_empty() => desk.receive(kind, part, now)?,
                Some(kind) => {
                    append(&mut self.partial, part);
                    // Taken with all its memory: a part of it would keep what has been written to the rest.
                    let frame = std::mem::take(&mut self.partial);
                    desk.receive(kind, &frame, now)?;
                }
                None => append(&mut self.partial, part),
            }
            let len = self.partial.len();
            self.held.set(if len < LONG { 0 } else { len });
        }
        Ok(data.len() - rest.len())
    }
}

/// Wakes a hub's task when something is due.
#[derive(Default)]
pub(super) struct Clock {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Clock {
    /// Does what is due, and asks to be woken for the next.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, desk: &RefCell<impl HubProtocol>) {
        loop {
            let mut desk = desk.borrow_mut();
            desk.expire(Instant::now());
            let Some(next) = desk.next_timer() else { return };
            drop(desk);
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next)));
            if sleep.deadline() != next {
                sleep.as_mut().reset(next);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return;
            }
        }
    }
}

/// Counts and logs the loss of a hub's connection.
pub(super) fn lost(permit: &Permit, reason: UpstreamClose) {
    permit.closes(reason);
    tracing::warn!(kind = permit.kind().label(), reason = reason.label(), "the connection of a hub was lost");
}
