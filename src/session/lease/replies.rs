//! What the replies on a lease do to it, and who gets them.

use bytes::{Bytes, BytesMut};

use super::LeaseState;
use super::expected::{Beside, Expect, Received};
use crate::resp::{self, ErrorCode, Protocol, ReplyKind, Request, encode};
use crate::session::queued::Member;
use crate::session::transaction::Transaction;
use crate::session::{Listen, Session, answers};

impl LeaseState {
    /// Whether the frame now arriving, of kind `kind`, must be whole before [`Self::received`] can judge it.
    #[must_use]
    pub fn wants_whole(&self, kind: ReplyKind, protocol: Protocol) -> bool {
        let head = self.fifo.front().map(|(expect, _)| expect);
        match head {
            _ if kind == ReplyKind::Push => true,
            Some(Expect::Confirm(..)) => true,
            _ if self.is_subscribed() && protocol == Protocol::Resp2 => true,
            Some(Expect::Exec) if self.is_executing() => {
                self.multi.as_ref().is_some_and(Transaction::awaits_member)
            }
            Some(Expect::Exec) => kind == ReplyKind::Error,
            Some(
                Expect::WaitPublish
                | Expect::Wait
                | Expect::Hello(_)
                | Expect::Instead(_)
                | Expect::Queued(_)
                | Expect::Counted(_),
            ) => true,
            Some(_) | None => false,
        }
    }

    /// Whether an array that begins now is EXEC's, to be read reply by reply.
    #[must_use]
    pub fn opens_array(&self) -> bool {
        matches!(self.fifo.front(), Some((Expect::Exec, _)))
            && self.multi.as_ref().is_some_and(|multi| multi.has_members() && !multi.is_executing())
    }

    /// The header of that array has arrived: so many replies follow, each of them for [`Self::received`].
    pub fn array_begins(&mut self, len: u64) {
        if let Some(multi) = &mut self.multi {
            multi.array_begins(len);
        }
        self.end_array();
    }

    /// Whether such an array has begun and not ended.
    #[must_use]
    pub fn is_executing(&self) -> bool {
        self.multi.as_ref().is_some_and(Transaction::is_executing)
    }

    /// The reply that [`Received::Beside`] asked for has been made.
    pub fn has_answered(&mut self) {
        self.end_array();
    }

    /// Ends the transaction with the last reply of EXEC's array.
    fn end_array(&mut self) {
        if self.multi.as_ref().is_some_and(Transaction::is_executed) {
            let _ = self.next_expected();
            self.multi = None;
            self.watching = false;
        }
    }

    /// A whole frame has arrived. `frame` holds its bytes where [`Self::wants_whole`] asked for them, else it may be
    /// empty.
    pub fn received(
        &mut self,
        kind: ReplyKind,
        frame: &[u8],
        session: &mut Session,
        beside: &dyn Beside,
    ) -> Received {
        let may_be_message = kind == ReplyKind::Push
            || (kind == ReplyKind::Array
                && !self.is_executing()
                && session.protocol == Protocol::Resp2
                && (self.is_subscribed() || matches!(self.fifo.front(), Some((Expect::Confirm(..), _)))));
        if may_be_message && let Some(handled) = self.received_message(frame) {
            return handled;
        }
        if kind == ReplyKind::Push {
            return Received::Forward;
        }
        if self.is_executing() {
            return self.executed_one(frame, session, beside);
        }
        let Some(expect) = self.next_expected() else {
            return if self.monitor { Received::Forward } else { Received::Desync };
        };
        let failed = matches!(kind, ReplyKind::Error | ReplyKind::BlobError);
        self.answered(expect, kind, failed, frame, session, beside)
    }

    fn next_expected(&mut self) -> Option<Expect> {
        let (expect, _) = self.fifo.pop_front()?;
        self.unsettling -= usize::from(expect.is_unsettling());
        self.kept -= expect.kept();
        Some(expect)
    }

    fn answered(
        &mut self,
        expect: Expect,
        kind: ReplyKind,
        failed: bool,
        frame: &[u8],
        session: &mut Session,
        beside: &dyn Beside,
    ) -> Received {
        if let Some(multi) = &mut self.multi
            && !failed
            && !matches!(expect, Expect::Exec | Expect::Discard)
        {
            multi.queue(match expect {
                Expect::Queued(member) => Some(member),
                Expect::Counted(request) => Some(Member::Counted(request)),
                _ => None, // the server's reply stands, and changes nothing here
            });
            return Received::Forward;
        }
        match expect {
            // With an array to be read reply by reply it does not come to this.
            Expect::Exec => self.executed(kind, frame),
            Expect::Queued(Member::Unknown(name)) => return Received::Instead(Member::named(&name, frame)),
            Expect::Counted(request) => {
                if let Some(reply) = beside.counted(&request, frame) {
                    return Received::Instead(reply);
                }
            }
            Expect::Instead(reply) => return Received::Instead(reply),
            Expect::WaitPublish => {
                self.failed_publish = failed.then(|| Bytes::copy_from_slice(frame));
                return Received::Swallow;
            }
            Expect::Wait => {
                if self.failed_publish.take().is_some() {
                    let mut out = BytesMut::new();
                    encode::error(
                        &mut out,
                        "ERR redbouncer: WAIT needs PUBLISH, which the server refused; see docs/reference/compatibility.md",
                    );
                    return Received::Instead(out.freeze());
                }
            }
            _ if failed => {}
            Expect::State => self.for_good = true,
            Expect::Multi => self.multi = Some(Transaction::default()),
            Expect::Discard => {
                self.multi = None;
                self.watching = false;
            }
            Expect::Watch => self.watching = true,
            Expect::Unwatch => self.watching = false,
            Expect::Select(index) => session.database = index,
            Expect::Tracking(on) => self.tracking = on,
            Expect::NoTouch(on) => self.no_touch = on,
            Expect::Monitor => self.monitor = true,
            Expect::Hello(hello) => {
                hello.apply(session);
                let mut out = BytesMut::new();
                answers::hello(session, &beside.facts(), &mut out);
                return Received::Instead(out.freeze());
            }
            Expect::Reply | Expect::Queued(_) | Expect::Blocking | Expect::Confirm(..) => {}
        }
        Received::Forward
    }

    /// EXEC: an array or nil ends transaction and watch, EXECABORT too; any other error leaves both on.
    fn executed(&mut self, kind: ReplyKind, frame: &[u8]) {
        // A node that does not own the keys (any more) drops the queue as well (`processCommand` in redis `server.c`).
        let redirected: [&[u8]; 4] = [b"-MOVED ", b"-ASK ", b"-TRYAGAIN ", b"-CLUSTERDOWN "];
        let aborted = ErrorCode::ExecAbort.is(frame) || redirected.iter().any(|code| frame.starts_with(code));
        if !matches!(kind, ReplyKind::Error | ReplyKind::BlobError) || aborted {
            self.watching = false;
            self.multi = None;
        }
    }

    /// The next reply of EXEC's array.
    fn executed_one(&mut self, frame: &[u8], session: &mut Session, beside: &dyn Beside) -> Received {
        let member = self.multi.as_mut().and_then(Transaction::next_member);
        let received = member.map_or(Received::Forward, |member| self.done(member, frame, session, beside));
        if !matches!(received, Received::Beside(_)) {
            self.end_array();
        }
        received
    }

    /// A member has run, and the server has answered it, or its stand-in, with `frame`.
    fn done(&mut self, member: Member, frame: &[u8], session: &mut Session, beside: &dyn Beside) -> Received {
        if member.is_refused_by(frame) {
            return Received::Forward;
        }
        let instead = |out: BytesMut| Received::Instead(out.freeze());
        match member {
            Member::Select(database) => session.database = database,
            Member::State => self.for_good = true,
            Member::Tracking(on) => {
                self.tracking = on;
                session.tracking = None;
            }
            Member::NoTouch(on) => self.no_touch = on,
            Member::Monitor => self.monitor = true,
            Member::ReadOnly(on) => session.readonly = on,
            Member::Counted(request) => {
                return beside.counted(&request, frame).map_or(Received::Forward, Received::Instead);
            }
            Member::Hello(hello) => {
                hello.apply(session);
                let mut out = BytesMut::new();
                answers::hello(session, &beside.facts(), &mut out);
                return instead(out);
            }
            Member::Local(class, request) => {
                let mut out = BytesMut::new();
                if let Some(request) = Request::parse(&request) {
                    let _ = session.answer(class, &request, &mut out);
                }
                return instead(out);
            }
            Member::Beside(request) => return Received::Beside(request),
            Member::Fixed(reply) => return Received::Instead(reply),
            Member::Unknown(name) => return Received::Instead(Member::named(&name, frame)),
        }
        Received::Forward
    }

    /// A published message (`None` where it is an ordinary reply after all), or a confirmation.
    fn received_message(&mut self, frame: &[u8]) -> Option<Received> {
        let mut parts = resp::elements(frame)?;
        let word = resp::bulk(parts.next()?)?;
        let channel = parts.next().and_then(resp::bulk).map(Bytes::copy_from_slice);
        let (listen, add) = match word {
            b"message" | b"pmessage" | b"smessage" => return Some(Received::Message),
            b"subscribe" => (Listen::Channels, true),
            b"psubscribe" => (Listen::Patterns, true),
            b"ssubscribe" => (Listen::Shards, true),
            b"unsubscribe" => (Listen::Channels, false),
            b"punsubscribe" => (Listen::Patterns, false),
            b"sunsubscribe" => (Listen::Shards, false),
            _ => return None,
        };
        let set = match listen {
            Listen::Channels => &mut self.channels,
            Listen::Patterns => &mut self.patterns,
            Listen::Shards => &mut self.shards,
        };
        let before = set.len();
        if let Some(channel) = channel {
            if add {
                set.insert(channel);
            } else {
                set.remove(&channel);
            }
        }
        if let Some((Expect::Confirm(expected, left), _)) = self.fifo.front_mut()
            && *expected == listen
        {
            let remaining = left.unwrap_or(before.max(1)).saturating_sub(1);
            *left = Some(remaining);
            if remaining == 0 {
                let _ = self.next_expected();
            }
        }
        Some(Received::Message)
    }
}
