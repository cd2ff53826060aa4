//! The fast path: read, find frames, append to the lane. No await, no allocation, no task switch per command.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::accept::Framed;
use super::batch::{Batch, Source};
use super::progress::{Next, Progress};
use crate::downstream::client::{Begun, Client, Routing};
use crate::downstream::context::Stage;
use crate::pool::{LONG, SLICE, go_on_later};
use crate::resp::{Form, RequestLimits, RequestScanner, RequestStep, give_buffer};
use crate::telemetry::ClientClose;

impl Client {
    /// Runs the client until it needs the slow path or closes.
    pub(in crate::downstream) fn poll_fast(self: &Rc<Self>, cx: &mut Context<'_>) -> Poll<Next> {
        self.is_polled(cx);
        self.context.slice.set(None);
        loop {
            let flushed = self.poll_flush(cx).is_ready();
            if let Some(reason) = self.close_reason() {
                return Poll::Ready(Next::Close(reason));
            }
            if self.has_to_mend() {
                return Poll::Ready(Next::Mend);
            }
            let mut need = 0;
            if !self.is_backpressured() {
                match self.run_buffered() {
                    Progress::Stop(step) => return Poll::Ready(step),
                    Progress::Waiting => return Poll::Pending,
                    Progress::Later => {
                        go_on_later(cx);
                        return Poll::Pending;
                    }
                    Progress::Hungry(missing) => need = missing,
                }
            }
            if self.is_untold.get() && self.outstanding() == 0 {
                return Poll::Ready(Next::AskForPrefixes);
            }
            if self.inbound().is_at_end() {
                if self.outstanding() == 0 && flushed {
                    if self.may_hear_more() {
                        return Poll::Ready(Next::CatchUp);
                    }
                    return Poll::Ready(Next::Close(self.mark_departed(ClientClose::ClientEof)));
                }
                return Poll::Pending;
            }
            if self.is_held_back() {
                return Poll::Pending;
            }
            if self.context.moves_clients.get()
                && self.outstanding() == 0
                && flushed
                && let Some(next) = self.moves_on()
            {
                return Poll::Ready(next);
            }
            if self.context.is_stopping() {
                // What had arrived before is still read once and answered; a client that pipelines without a pause
                // would never be done otherwise. The drain wakes us.
                if self.outstanding() > 0 || !flushed {
                    return Poll::Pending;
                }
                if self.inbound().was_last_read() {
                    return Poll::Ready(Next::Close(ClientClose::Shutdown));
                }
            }
            match self.poll_read_and_run(cx, need) {
                Poll::Pending => {
                    self.shrink();
                    return Poll::Pending;
                }
                Poll::Ready(Progress::Stop(step)) => return Poll::Ready(step),
                Poll::Ready(Progress::Hungry(_) | Progress::Waiting) if !self.has_read_for_long() => {}
                Poll::Ready(Progress::Hungry(_) | Progress::Waiting | Progress::Later) => {
                    go_on_later(cx);
                    return Poll::Pending;
                }
            }
        }
    }

    /// It waits for nothing: it may go to another process or another worker.
    #[cold]
    fn moves_on(self: &Rc<Self>) -> Option<Next> {
        if self.routing().is_some_and(Routing::has_multi) {
            return None;
        }
        if self.moves() {
            return Some(Next::Close(ClientClose::TakenOver));
        }
        if self.context.stage.get() == Stage::Leaving && self.is_to_be_announced() {
            return Some(Next::Depart);
        }
        self.changes_worker().then_some(Next::Moved)
    }

    /// Whether it has been served for long without a pause. Known from the times of its reads, so that one that sends a
    /// command now and then costs no look at the clock.
    fn has_read_for_long(&self) -> bool {
        let (now, slice) = (self.inbound().last_input(), &self.context.slice);
        match slice.get() {
            Some(begun) => now.saturating_duration_since(begun) > SLICE,
            None => {
                slice.set(Some(now));
                false
            }
        }
    }

    /// Whether commands that are answered here, each with a write of its own, have taken long.
    pub(super) fn has_answered_for_long(&self) -> bool {
        let slice = &self.context.slice;
        match slice.get() {
            Some(begun) => begun.elapsed() > SLICE,
            None => {
                slice.set(Some(Instant::now()));
                false
            }
        }
    }

    /// Reads once and runs what came: straight from the worker's scratch buffer, unless a command has begun before.
    fn poll_read_and_run(self: &Rc<Self>, cx: &mut Context<'_>, need: usize) -> Poll<Progress> {
        if !self.inbound().is_empty() {
            return self.poll_read_behind(cx, need).map(|()| Progress::Hungry(0));
        }
        let mut scratch = self.context.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        let Poll::Ready(result) = self.poll_read(cx, &mut buffer) else { return Poll::Pending };
        if let Err(reason) = result {
            return Poll::Ready(Progress::Stop(Next::Close(reason)));
        }
        let data = buffer.filled();
        let mut scanner = RequestScanner::default();
        let (used, ran) = self.consume(data, &mut scanner, None);
        self.keep(&data[used..], scanner);
        Poll::Ready(ran)
    }

    /// Runs what is buffered: whole frames that waited for their turn.
    fn run_buffered(self: &Rc<Self>) -> Progress {
        let Some(mut begun) = self.take_begun() else { return Progress::Hungry(0) };
        let Begun { buffer, scanner, .. } = &mut *begun;
        let ran = if buffer.len() < LONG {
            let (used, ran) = self.consume(buffer, scanner, None);
            buffer.advance(used);
            ran
        } else {
            // What is not whole yet stays where it lies.
            let before = scanner.clone();
            match scanner.step(buffer, &self.limits()) {
                Ok(RequestStep::Incomplete { need }) => Progress::Hungry(need),
                Ok(_) | Err(_) => {
                    *scanner = before;
                    self.consume_long(&mut begun)
                }
            }
        };
        self.put_back(begun);
        ran
    }

    /// Runs the whole frames of a long buffer; long ones among them are not copied.
    fn consume_long(self: &Rc<Self>, begun: &mut Begun) -> Progress {
        let data = std::mem::take(&mut begun.buffer).freeze();
        let charge = std::mem::replace(&mut begun.charge, self.charge());
        let source = Source { bytes: data.clone(), is_charged: false, input: Some(charge) };
        let (used, ran) = self.consume(&data, &mut begun.scanner, Some(source));
        // The rest must not keep all of it, where that is on its way, or long and done with.
        begun.buffer = match data.try_into_mut() {
            Ok(mut data) if used < data.len() / 2 => {
                data.advance(used);
                data
            }
            Ok(data) => {
                let rest = BytesMut::from(&data[used..]);
                give_buffer(data);
                rest
            }
            Err(data) => BytesMut::from(&data[used..]),
        };
        ran
    }

    pub(in crate::downstream) fn limits(&self) -> RequestLimits {
        RequestLimits {
            max_bulk: self.context.pool.shared.max_bulk.load(Ordering::Relaxed),
            max_request: self.context.options.get().request_limit,
            max_arguments: self.context.server.max_arguments(),
            authenticated: self.session.borrow().user.is_some(),
        }
    }

    /// Runs the whole frames of `data`; returns how many bytes are done with.
    fn consume(
        self: &Rc<Self>,
        data: &[u8],
        scanner: &mut RequestScanner,
        source: Option<Source>,
    ) -> (usize, Progress) {
        let mut run = Batch { source, ..Batch::default() };
        let routing = self.routing();
        let mut at = 0;
        let ran = loop {
            if at == data.len() {
                break Progress::Hungry(0);
            }
            if self.outstanding() as usize + run.count as usize >= self.context.options.get().pipeline_limit {
                break Progress::Waiting;
            }
            match scanner.step(&data[at..], &self.limits()) {
                Ok(RequestStep::Incomplete { need }) => break Progress::Hungry(need),
                Ok(RequestStep::Nothing { len }) => {
                    self.push(&mut run, &data[..at]);
                    at += len;
                    run.start = at;
                }
                Ok(RequestStep::Request(shape)) => {
                    let framed = Framed { data, at, shape: &shape };
                    let taken = if shape.form == Form::Canonical {
                        self.accept_canonical(routing, &framed, &mut run)
                    } else {
                        self.accept_noncanonical(&framed, &mut run)
                    };
                    match taken {
                        Ok(len) => at += len,
                        Err((len, ran)) => {
                            at += len;
                            run.start = run.start.max(at);
                            break ran;
                        }
                    }
                }
                Err(error) => {
                    self.push(&mut run, &data[..at]);
                    run.start = at;
                    // It may have to wait for its turn: then the frame is judged again from its beginning.
                    *scanner = RequestScanner::default();
                    break self.broken(&error);
                }
            }
        };
        self.push(&mut run, &data[..at]);
        (at, ran)
    }
}
