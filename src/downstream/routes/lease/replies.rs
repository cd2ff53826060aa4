//! The server's side of a lease: what is written to it, and what becomes of each reply.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use super::{KEEP, LeaseSession, PROTOCOL_ERROR, Waiting};
use crate::resp::{self, ErrorCode, ReplyKind};
use crate::session::Received;
use crate::telemetry::{Origin, UpstreamClose};
use crate::upstream::Capability;

impl LeaseSession {
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let has_written = !self.written.is_empty();
        ready!(self.lease.stream.poll_write_all(cx, &mut self.written))?;
        if has_written {
            self.written.shrink(KEEP);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once from the server and delivers.
    pub(super) fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamClose>> {
        let client = Rc::clone(&self.client);
        let mut scratch = client.context.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        let read = ready!(std::pin::Pin::new(&mut self.lease.stream).poll_read(cx, &mut buffer));
        if read.is_err() || buffer.filled().is_empty() {
            return Poll::Ready(Err(UpstreamClose::Lost));
        }
        Poll::Ready(self.deliver(buffer.filled()))
    }

    pub(super) fn give(&self, bytes: &[u8]) {
        if !self.is_cut {
            self.client.send(bytes);
        }
    }

    fn give_whole(&self, reply: Bytes) {
        if !self.is_cut {
            self.client.send_shared(reply);
        }
    }

    /// Gives replies to the client: contiguous ones in one write. Stops at a member of the transaction that is to be
    /// answered first.
    pub(super) fn deliver(&mut self, data: &[u8]) -> Result<(), UpstreamClose> {
        let mut at = 0;
        let mut forward = 0;
        while at < data.len() && self.member.is_none() {
            if !self.scanner.in_frame() {
                self.scanner.open_arrays(self.state.opens_array());
            }
            let step = self.scanner.step(&data[at..]).map_err(|_| UpstreamClose::Desync)?;
            let part = &data[at..at + step.consumed];
            let kind = step.complete.or_else(|| self.scanner.kind());
            let protocol = self.client.protocol();
            let is_judged = kind == Some(ReplyKind::Error) && self.client.routing().is_some();
            let whole = is_judged
                || !self.partial.is_empty()
                || kind.is_none_or(|kind| self.state.wants_whole(kind, protocol));
            let muted =
                self.state.mutes_next(self.client.session.borrow().replies) && kind != Some(ReplyKind::Push);
            if whole || muted {
                self.give(&data[forward..at]);
                if whole {
                    resp::append(&mut self.partial, part);
                }
            }
            at += step.consumed;
            if let Some(kind) = step.complete {
                let frame = std::mem::take(&mut self.partial).freeze();
                self.note_time(kind);
                if kind == ReplyKind::Error {
                    // Of one that came in pieces the beginning may be gone.
                    self.note_error(if frame.is_empty() { part } else { &frame });
                }
                let was_in_multi = self.state.is_in_multi();
                let verdict = match self.scanner.opened() {
                    Some(len) => {
                        self.state.array_begins(len);
                        Received::Forward
                    }
                    None => self.judge(kind, &frame),
                };
                match verdict {
                    Received::Desync => return Err(UpstreamClose::Desync),
                    // Always whole here: pushes are, and so is all that may be one in RESP2.
                    Received::Message => self.give_whole(frame),
                    Received::Beside(request) => {
                        let behind = Bytes::copy_from_slice(&data[at..]);
                        self.member = Some(Waiting { request, verdict: frame, behind });
                    }
                    _ if muted => {}
                    Received::Swallow => {}
                    Received::Instead(reply) => self.give_whole(reply),
                    Received::Forward if is_judged => {
                        let is_exec = was_in_multi && !self.state.is_in_multi();
                        self.give_whole(self.client.without_redirect(frame, is_exec));
                    }
                    Received::Forward if whole => self.give_whole(frame),
                    Received::Forward => continue,
                }
            }
            if whole || muted {
                forward = at;
            }
        }
        self.give(&data[forward..at]);
        self.client.set_mid_reply(forward < at && self.scanner.in_frame() || self.state.is_executing());
        self.disown_reads();
        Ok(())
    }

    /// A reply has ended.
    fn note_time(&mut self, kind: ReplyKind) {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.since);
        if self.client.context.slow_command.get().is_some_and(|limit| took >= limit)
            && kind != ReplyKind::Push
            && !self.state.is_blocked()
        {
            self.client.was_slow_on_lease(self.listed.command(), took);
        }
        self.since = now;
    }

    /// What an error, or the last piece of one, says besides what it says to the client.
    fn note_error(&mut self, error: &[u8]) {
        if !self.state.is_executing() {
            let code = ErrorCode::of(error).unwrap_or(ErrorCode::Other);
            self.client.context.pool.measures().error(Origin::Server, code);
        }
        if self.has_sent_long {
            // One that came in pieces may be such an error as well.
            self.stumbled_there |= !error.starts_with(b"-") || error.starts_with(PROTOCOL_ERROR);
        }
    }

    /// Tells the client, which tracks, to forget what has been answered here.
    fn disown_reads(&mut self) {
        let is_in_multi = self.state.is_in_multi();
        if std::mem::replace(&mut self.was_in_multi, is_in_multi) && !is_in_multi {
            // CLIENT CACHING was about the next command, and EXEC was that.
            self.client.session.borrow_mut().ends_mark();
        }
        if is_in_multi {
            return;
        }
        let answered = self.state.ever_answered();
        while self.reads.front().is_some_and(|(place, _)| *place < answered) {
            if let Some((_, reads)) = self.reads.pop_front() {
                self.client.invalidate_reads(reads);
            }
        }
        // HELLO 3 on this connection: what was read in RESP2 was not told.
        let hears = self.client.session.borrow().hears_invalidations();
        let heard = std::mem::replace(&mut self.heard, hears);
        if hears && !heard {
            self.client.leave_group();
            self.client.begins_to_hear();
        }
        if std::mem::take(&mut self.tracks_by_exec) {
            self.client.begins_to_hear();
        }
    }

    fn judge(&mut self, kind: ReplyKind, frame: &[u8]) -> Received {
        let context = &self.client.context;
        let mut session = self.client.session.borrow_mut();
        let verdict = self.state.received(kind, frame, &mut session, &**context);
        if let Some(text) = self.state.refused_publish().and_then(resp::error_text) {
            let identity = self.client.identity();
            let user = identity.as_ref().map_or("", |identity| identity.name());
            context.server.missing_capabilities().record_refusal(
                Capability::WaitChannel,
                user,
                &String::from_utf8_lossy(text),
            );
        }
        verdict
    }
}
