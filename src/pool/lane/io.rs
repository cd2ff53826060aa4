//! The task of a lane: it owns the socket, writes what sessions have appended, and hands out the replies, first in, first
//! out.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use super::super::LONG;
use super::refusal::{is_begun_refusal, refusal};
use super::{FULL, KEEP, Lane, Lost, Slot, Then};
use crate::resp::{self, ErrorCode, ReplyKind, ReplyScanner};
use crate::telemetry::{CommandOutcome, Origin, UpstreamClose, printable};
use crate::upstream::UpstreamStream;

/// The part of a lane that only its task touches.
pub(super) struct LaneIo {
    lane: Rc<Lane>,
    stream: UpstreamStream,
    scanner: ReplyScanner,
    /// The beginning of an error that is not whole yet.
    begun_error: Vec<u8>,
    /// A client's MULTI was not ended by its EXEC.
    in_multi: bool,
    /// What was read last and may be the beginning of our own echo in another command's place, or of a refusal to be held
    /// back. Nobody has got it.
    begun_echo: Vec<u8>,
    /// The next reply is a refusal, and what is on the lane is not arranged for it yet.
    refused: bool,
    /// What has arrived of a push that is not whole.
    push: BytesMut,
    in_push: bool,
}

impl Lane {
    /// Carries commands and replies until the lane leaves or is lost; calls `idle` when all that was read has left no reply
    /// outstanding. Returns why, with the stream where it is still fit to be closed in order.
    pub(in crate::pool) async fn carry(
        self: &Rc<Self>,
        stream: UpstreamStream,
        scratch: &RefCell<Vec<u8>>,
        idle: impl Fn(),
    ) -> (UpstreamClose, Option<UpstreamStream>) {
        let mut io = LaneIo::new(Rc::clone(self), stream);
        let reason = poll_fn(|cx| io.poll(cx, scratch, &idle)).await;
        self.closed.set(true);
        self.waker.borrow_mut().take();
        self.written.borrow_mut().clear();
        self.lose_the_rest(io.is_mid_reply());
        self.forget_readers();
        self.end_redirections();
        let orderly = self.leaving.get() == Some(reason);
        (reason, orderly.then(|| io.into_stream()))
    }

    pub(super) fn lose_the_rest(&self, mut partial: bool) {
        let slots = std::mem::take(&mut *self.fifo.borrow_mut());
        for slot in slots {
            match slot {
                Slot::Replies { to, count, muted, sample, .. } => {
                    if let Some(sample) = sample {
                        sample.fails(CommandOutcome::Lost);
                    }
                    to.lost(count, muted, std::mem::take(&mut partial) && !muted);
                }
                Slot::Changed { to, change, .. } => {
                    partial = false;
                    to.gathers(0);
                    to.lost(1, change.is_none(), false);
                }
                Slot::Whole { owner, then, .. } => {
                    partial = false;
                    if let Some(owner) = owner {
                        owner.gathers(0);
                    }
                    if let Some(then) = then {
                        then(Err(Lost));
                    }
                }
            }
        }
        self.outstanding.set(0);
        self.resume_the_blocked();
    }

    fn resume_the_blocked(&self) {
        for receiver in std::mem::take(&mut *self.blocked.borrow_mut()) {
            receiver.resume();
        }
    }
}

/// Whether `frame` may be the answer to PING with `nonce`. A refusal, and the answer to a PING without a word, which some
/// proxies give to all, prove nothing either way.
fn may_echo(frame: &[u8], nonce: &[u8]) -> bool {
    resp::error_text(frame).is_some() || frame == b"+PONG\r\n" || resp::bulk(frame) == Some(nonce)
}

/// Longer news than this is not waited for: the lane is lost, and with it everything that was read there.
const LONGEST_PUSH: usize = 64 << 20;
/// What of an error tells what it means for the lane.
const TELLING: usize = 64;

/// Whether the server does not know EXEC (`rename-command`). A refusal by rights ends the transaction, this does not.
fn is_unknown_exec(error: &[u8]) -> bool {
    const UNKNOWN: &[u8] = b"-ERR unknown command ";
    // Quoted by 'these' or by `those`, depending on the version.
    let name = error.strip_prefix(UNKNOWN).and_then(|rest| rest.get(1..5));
    name.is_some_and(|name| name.eq_ignore_ascii_case(b"exec"))
}

impl LaneIo {
    pub(super) fn new(lane: Rc<Lane>, stream: UpstreamStream) -> Self {
        Self {
            lane,
            stream,
            scanner: ReplyScanner::default(),
            begun_error: Vec::new(),
            in_multi: false,
            begun_echo: Vec::new(),
            refused: false,
            push: BytesMut::new(),
            in_push: false,
        }
    }

    /// Whether part of a reply has been read, and not all of it.
    pub(super) fn is_mid_reply(&self) -> bool {
        self.scanner.in_frame()
    }

    pub(super) fn into_stream(self) -> UpstreamStream {
        self.stream
    }

    /// Ready when the lane has ended, with the reason.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &RefCell<Vec<u8>>,
        idle: &impl Fn(),
    ) -> Poll<UpstreamClose> {
        self.remember_waker(cx);
        loop {
            if self.lane.closed.get() {
                let is_deposed = self.lane.leaving.get() == Some(UpstreamClose::Deposed);
                let reason = if is_deposed { UpstreamClose::Deposed } else { UpstreamClose::Stalled };
                return Poll::Ready(reason);
            }
            if !self.lane.severed.get()
                && let Poll::Ready(Err(error)) = self.poll_write(cx)
            {
                if !UpstreamStream::is_to_be_read_out(&error) {
                    return Poll::Ready(UpstreamClose::Lost);
                }
                self.lane.severed.set(true);
            }
            let nothing_left = self.lane.outstanding.get() == 0 && self.lane.written.borrow().is_empty();
            if let Some(reason) = self.lane.leaving.get()
                && nothing_left
            {
                return Poll::Ready(reason);
            }
            if let Err(reason) = ready!(self.poll_read(cx, scratch)) {
                return Poll::Ready(reason);
            }
            self.release();
            if self.lane.outstanding.get() == 0 {
                idle();
            }
        }
    }

    /// Keeps no longer what has been answered.
    fn release(&self) {
        let lane = &self.lane;
        let mut written = lane.written.borrow_mut();
        if lane.outstanding.get() == 0 {
            written.settle(lane.carried.get(), KEEP);
        } else {
            written.are_answered(lane.answered());
        }
    }

    fn remember_waker(&self, cx: &Context<'_>) {
        let mut waker = self.lane.waker.borrow_mut();
        match &mut *waker {
            Some(known) => known.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }

    /// Writes what has been gathered. Pending also means: nothing to write.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let mut written = self.lane.written.borrow_mut();
        let was_full = written.len() > FULL;
        let sent = self.stream.poll_write_all(cx, &mut *written);
        if let Poll::Ready(Err(error)) = sent {
            return Poll::Ready(Err(error));
        }
        let has_room = written.len() <= FULL / 2;
        drop(written);
        if has_room && (was_full || !self.lane.blocked.borrow().is_empty()) {
            self.lane.resume_the_blocked();
        }
        Poll::Pending
    }

    /// Reads once and gives every reply to whom it belongs.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &RefCell<Vec<u8>>,
    ) -> Poll<Result<(), UpstreamClose>> {
        let mut finished = Vec::new();
        let result = {
            let mut scratch = scratch.borrow_mut();
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Err(_) => Err(UpstreamClose::Lost),
                Ok(()) if buffer.filled().is_empty() => Err(UpstreamClose::Lost),
                Ok(()) => {
                    let now = Instant::now();
                    self.lane.progress.set(now);
                    self.distribute(buffer.filled(), now, &mut finished)
                }
            }
        };
        for (then, frames) in finished {
            then(Ok(frames));
        }
        Poll::Ready(result)
    }

    pub(super) fn distribute(
        &mut self,
        data: &[u8],
        now: Instant,
        finished: &mut Vec<(Then, Vec<Bytes>)>,
    ) -> Result<(), UpstreamClose> {
        let lane = Rc::clone(&self.lane);
        let mut fifo = lane.fifo.borrow_mut();
        let joined: Vec<u8>;
        let mut rest = data;
        if !self.begun_echo.is_empty() {
            joined = [&std::mem::take(&mut self.begun_echo), data].concat();
            rest = &joined;
        }
        while !rest.is_empty() {
            if self.in_push || fifo.is_empty() {
                let taken = self.take_push(rest)?;
                rest = &rest[taken..];
                continue;
            }
            let Some(slot) = fifo.front_mut() else { return Err(UpstreamClose::Desync) };
            let (taken, ended) = self.fill(slot, rest)?;
            rest = &rest[taken..];
            lane.outstanding.set(lane.outstanding.get() - ended as usize);
            if std::mem::take(&mut self.refused) {
                lane.hold_back(&mut fifo);
                continue;
            }
            self.end_push()?;
            if self.in_multi {
                return Err(UpstreamClose::Unfit);
            }
            if slot.left() == 0 {
                let took = now.saturating_duration_since(slot.since());
                lane.measures.replies.record(took);
                match fifo.pop_front() {
                    Some(Slot::Replies { sample: Some(sample), abandoned: false, .. }) => sample.ends(),
                    Some(Slot::Whole { nonce: Some(_), .. }) => lane.measures.round_trips.record(took),
                    Some(Slot::Whole { then: Some(then), frames, .. }) => finished.push((then, frames)),
                    Some(Slot::Replies { .. } | Slot::Changed { .. } | Slot::Whole { .. }) | None => {}
                }
            }
        }
        lane.mid_reply.set(self.scanner.in_frame() && !self.in_push);
        Ok(())
    }

    /// Reads on in a push, or in what comes while no reply is owed. Returns the bytes taken.
    fn take_push(&mut self, data: &[u8]) -> Result<usize, UpstreamClose> {
        let step = self.scanner.step(data).map_err(|_| UpstreamClose::Desync)?;
        let kind = step.complete.or_else(|| self.scanner.kind());
        if kind.is_some_and(|kind| kind != ReplyKind::Push) || step.consumed == 0 {
            return Err(UpstreamClose::Desync);
        }
        self.begin_push(&data[..step.consumed], step.complete.is_some())?;
        self.end_push()?;
        Ok(step.consumed)
    }

    /// Part of a push has arrived, or all of it.
    fn begin_push(&mut self, part: &[u8], is_whole: bool) -> Result<(), UpstreamClose> {
        // A push belongs to one client's subscription or tracking, and neither is ever on a lane that is not tracked.
        if !self.lane.may_be_told() || self.push.len() + part.len() > LONGEST_PUSH {
            return Err(UpstreamClose::Desync);
        }
        self.push.extend_from_slice(part);
        self.in_push = !is_whole;
        Ok(())
    }

    /// Tells of the push that has arrived, if one has, in its place behind the replies before it.
    fn end_push(&mut self) -> Result<(), UpstreamClose> {
        if self.in_push || self.push.is_empty() {
            return Ok(());
        }
        let push = std::mem::take(&mut self.push);
        if let Some(is_known) = self.lane.tell_others(&push) {
            return if is_known { Ok(()) } else { Err(UpstreamClose::Desync) };
        }
        let tracker = self.lane.tracker().ok_or(UpstreamClose::Desync)?;
        if tracker.receive(&push, self.lane.answered()) { Ok(()) } else { Err(UpstreamClose::Desync) }
    }

    /// What an error says about the server, besides being the client's; `left` replies of its slot were owed with it.
    /// `true`: the lane is of no further use. A text that a script could have made up says nothing.
    fn heed(&mut self, error: &[u8], slot: &mut Slot, left: u32) -> bool {
        let (may_invent, is_exec, is_of_client) = match slot {
            Slot::Replies { may_invent, is_block, .. } => (*may_invent, *is_block && left == 1, true),
            Slot::Changed { is_exec, .. } => (false, *is_exec, true),
            Slot::Whole { is_block, .. } => (false, *is_block && left == 1, false),
        };
        // It may have begun only, but its first word is there.
        let text = error.strip_prefix(b"-").unwrap_or_default();
        let code = ErrorCode::of_text(text);
        if is_of_client {
            self.lane.measures.error(Origin::Server, code);
        }
        if let Slot::Replies { sample: Some(sample), .. } = slot {
            sample.note_error(code, left);
        }
        if !may_invent {
            match code {
                ErrorCode::ReadOnly => self.lane.was_refused_a_write.set(true),
                ErrorCode::Moved => {
                    self.lane.moved.replace(Some(printable(text.trim_ascii_end())));
                }
                _ => {} // says nothing of the server that outlives the reply
            }
        }
        // Without EXEC the transaction that came this way stays open, and what follows would be queued in it.
        self.in_multi = is_exec && is_unknown_exec(error);
        self.in_multi
    }

    /// Whether `begun`, the beginning of a reply, is to be looked at again when more of it is there, before anybody gets it.
    fn is_kept_back(&self, begun: &[u8], slot: &Slot) -> bool {
        self.lane.is_begun_echo(begun, slot) || self.lane.holds(slot) && is_begun_refusal(begun)
    }

    /// Feeds one slot from `data`: as many of its replies as are there. Returns the bytes taken and the replies ended.
    fn fill(&mut self, slot: &mut Slot, data: &[u8]) -> Result<(usize, u32), UpstreamClose> {
        let (mut at, mut ended, mut behind) = (0, 0, 0);
        let mut is_at_start = !self.scanner.in_frame();
        while at < data.len() && slot.left() > ended {
            let step = self.scanner.step(&data[at..]).map_err(|_| UpstreamClose::Desync)?;
            if step.complete.is_none() && is_at_start && self.is_kept_back(&data[at..], slot) {
                self.scanner = ReplyScanner::default();
                self.begun_echo.extend_from_slice(&data[at..]);
                break;
            }
            is_at_start = step.complete.is_some();
            let kind = step.complete.or_else(|| self.scanner.kind());
            if kind == Some(ReplyKind::Push) {
                self.begin_push(&data[at..at + step.consumed], step.complete.is_some())?;
                behind = step.consumed;
                break;
            }
            if step.consumed == 0 && step.complete.is_none() {
                return Err(UpstreamClose::Desync);
            }
            self.gather(slot, &data[at..at + step.consumed], step.complete.is_some())?;
            let is_error = step.complete == Some(ReplyKind::Error);
            let reply = &data[at..at + step.consumed];
            if is_error && self.lane.holds(slot) && refusal(reply).is_some() {
                self.refused = true;
                break;
            }
            // Our own echo in a client's place: a reply is missing before it.
            if kind == Some(ReplyKind::Bulk) && self.lane.is_echo(reply, slot) {
                return Err(UpstreamClose::Desync);
            }
            at += step.consumed;
            ended += u32::from(step.complete.is_some());
            if kind == Some(ReplyKind::Error) {
                let left = slot.left() - (ended - u32::from(is_error));
                if self.hear_error(reply, is_error, slot, left) {
                    break;
                }
            }
        }
        self.give(slot, &data[..at], ended);
        Ok((at + behind + self.begun_echo.len(), ended))
    }

    /// Keeps a part of a reply where `slot` wants it whole. Another reply than that slot's is an error.
    #[inline]
    fn gather(&self, slot: &mut Slot, part: &[u8], is_last: bool) -> Result<(), UpstreamClose> {
        match slot {
            Slot::Replies { .. } => {}
            Slot::Whole { owner, frames, partial, gathered, nonce, .. } => {
                resp::append(partial, part);
                if let Some(owner) = owner
                    && let Some(bytes) = gathered.due(partial.len())
                {
                    // An element may be in it: it is read to its end even if nobody waits for it any more.
                    owner.gathers(bytes);
                }
                if is_last {
                    let frame = std::mem::take(partial).freeze();
                    gathered.is_whole(frame.len());
                    // Some other command's reply: nobody knows any more whose is whose.
                    if nonce.as_ref().is_some_and(|nonce| !may_echo(&frame, nonce)) {
                        return Err(UpstreamClose::Desync);
                    }
                    self.lane.echo.borrow_mut().take_if(|echo| nonce.as_ref() == Some(echo));
                    frames.push(frame);
                }
            }
            Slot::Changed { to, partial, change, .. } => {
                resp::append(partial, part);
                if partial.len() >= LONG && !to.gathers(partial.len()) {
                    *partial = BytesMut::new();
                    *change = None;
                }
            }
        }
        Ok(())
    }

    /// A part of an error, or all of it. `true`: the lane is of no further use.
    #[cold]
    fn hear_error(&mut self, part: &[u8], is_last: bool, slot: &mut Slot, left: u32) -> bool {
        if is_last && self.begun_error.is_empty() {
            return self.heed(part, slot, left);
        }
        if is_last || self.begun_error.len() < TELLING {
            self.begun_error.extend_from_slice(&part[..part.len().min(TELLING)]);
        }
        if !is_last {
            return false;
        }
        let whole = std::mem::take(&mut self.begun_error);
        self.heed(&whole, slot, left)
    }

    /// Hands `ended` replies of `slot` on; `replies` are their bytes, and what has begun.
    #[inline]
    fn give(&self, slot: &mut Slot, replies: &[u8], ended: u32) {
        match slot {
            Slot::Replies { to, count, muted, .. } => {
                *count -= ended;
                let begun = !*muted && self.scanner.in_frame() && !self.in_push;
                to.replies(if *muted { &[] } else { replies }, ended, begun);
            }
            Slot::Changed { to, left, partial, change, .. } => {
                *left -= ended;
                if ended > 0 {
                    let reply = std::mem::take(partial).freeze();
                    let reply = change.take().map(|change| change(reply)).unwrap_or_default();
                    to.gathers(0);
                    to.whole(reply, ended);
                }
            }
            Slot::Whole { owner, left, .. } => {
                *left -= ended;
                if *left == 0
                    && let Some(owner) = owner
                {
                    owner.gathers(0);
                }
            }
        }
    }
}
