//! A session with an upstream connection of its own.
//!
//! While it lasts, all the session's commands go over this connection, pipelined where their meaning does not depend on
//! replies that are still to come. What they mean for the connection is [`LeaseState`]'s business; this file moves bytes.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::client::Client;
use super::drive::Taken;
use super::unserved::aftermath_of;
use super::wire::Hangup;
use crate::command::{Aftermath, Asked, Blocking, Class, classify};
use crate::pool::{Holder, Lease};
use crate::resp::{
    self, Form, Protocol, ReplyKind, ReplyScanner, Request, RequestError, RequestStep, encode, normalise,
};
use crate::session::answers::ends_the_session;
use crate::session::{
    ALWAYS_TAKEN, Expect, Failed, LeaseState, Pin, Placement, Plan, Received, Route, UNGUARDED,
};
use crate::telemetry::{ClientClose, UpstreamClose};
use crate::upstream::{Lacking, UpstreamStream};

/// Commands of one client waiting to be written to its own connection, in bytes; beyond it nothing more is read.
const WRITE_AHEAD: usize = 1 << 20;
/// What a client may send ahead while its commands wait for replies.
const READ_AHEAD: usize = 64 << 10;
/// A call that blocks has had its first look at its keys by then, and waits: where nobody could look in time for a client
/// that closes its side, nobody does.
pub(super) const FIRST_LOOK: Duration = Duration::from_secs(1);

/// How long a command with a long argument waits for a connection of its own, before it takes a lane like any other: its
/// server has probably not lowered its limit since it was last asked.
const FOR_A_LONG_ONE: Duration = Duration::from_millis(250);
/// How the server tells of an argument that is longer than it takes.
const PROTOCOL_ERROR: &[u8] = b"-ERR Protocol error";
/// A server that has told of a protocol error has closed the connection by then.
const CLOSES_WITHIN: Duration = Duration::from_millis(100);

/// A client and the connection it holds.
struct Held {
    client: Rc<Client>,
    lease: Lease,
    state: LeaseState,
    scanner: ReplyScanner,
    written: BytesMut,
    /// Something was written since the last flush that succeeded.
    unflushed: bool,
    /// A write has found the connection closed. What the server has said before, for instance of an argument that is too
    /// long, is still read.
    severed: bool,
    /// A reply that must be whole before it can be judged.
    partial: BytesMut,
    /// A member of the transaction that is to be answered before anything else is delivered.
    member: Option<Waiting>,
    /// The client has killed itself: it hears nothing more.
    is_cut: bool,
    /// When the last reply came, or the first command after it was sent.
    since: Instant,
    /// What lies next in the input is no command; its error must wait for earlier replies.
    garbled: bool,
    /// Watches for the client's leaving while nothing is read from it.
    hangup: Option<Pinned<dyn Future<Output = Hangup>>>,
    /// How long a client that has closed its side may wait for the next reply.
    last_wait: Option<Pinned<tokio::time::Sleep>>,
    /// A command was sent with an argument that the server may not take.
    has_sent_long: bool,
    /// The server has answered with a protocol error, or a script has invented one.
    stumbled_there: bool,
    /// The last command that the server was asked about.
    just_asked: Option<(Bytes, Placement)>,
}

type Pinned<T> = std::pin::Pin<Box<T>>;

/// A member of a transaction that is answered beside the connection.
struct Waiting {
    request: Bytes,
    /// What the server has answered its stand-in.
    verdict: Bytes,
    /// What has arrived behind it.
    behind: Bytes,
}

/// Why the loop over a held connection stops.
enum Event {
    /// Nothing holds the connection any more.
    Over,
    /// Something to be answered beside it.
    Aside(Route, Bytes, bool),
    /// A command that the server is to be asked about first; it stays in the input.
    Unknown(Bytes),
    /// The client has announced more than the server took when it was last asked.
    AskForLimit,
    /// A call that blocks beside the connection.
    Wait(Blocking, Bytes, bool),
    /// A member of the transaction to be answered beside the connection.
    Member,
    /// RESET or QUIT, and whether its reply is not wanted.
    End(Class, Bytes, bool),
    /// The client has left.
    Gone(ClientClose),
    /// The connection is lost, or cannot be trusted.
    Lost(UpstreamClose),
}

impl Client {
    /// Runs `taken` and what follows on a connection of the client's own, until nothing holds it any more.
    pub(super) async fn leased(self: &Rc<Self>, taken: Taken, pin: Pin) -> Result<(), ClientClose> {
        let class = Request::parse(&taken.request).map_or(Class::Unknown, |request| classify(&request).class);
        if !self.session.borrow().may_lease(class) {
            self.error(UNGUARDED, taken.muted);
            return Err(ClientClose::StateRefused);
        }
        let Some((key, identity)) = self.lane_key() else { return Err(ClientClose::Denied) };
        let what = format!("{}, {}", self.called(), pin.label());
        let holder = Holder { user: key.user, address: self.peer.host(), what: &what };
        self.place.set("waits for a lease");
        let is_of_a_lane =
            taken.route == Route::Lane || matches!(class, Class::Pass | Class::Publish | Class::Ping);
        let is_long = pin == Pin::Own
            && is_of_a_lane
            && Request::parse(&taken.request).is_some_and(|request| request.has_bulk_above(ALWAYS_TAKEN));
        let patience = Instant::now() + FOR_A_LONG_ONE;
        let deadline = self.lease_deadline();
        let deadline = Some(if is_long { deadline.min(patience) } else { deadline });
        let found =
            self.patiently(self.worker.pool.lease(key, &identity, Self::claim(pin), holder, deadline)).await;
        self.place.set("lane");
        let lease = match found? {
            Ok(lease) => lease,
            Err(_) if is_long => {
                let counts = class == Class::Publish && !self.worker.pubsub.audience().is_empty();
                let aftermath = aftermath_of(&taken.request);
                return self.over_a_lane(Taken { route: Route::Lane, counts, ..taken }, aftermath).await;
            }
            Err(why) => {
                // All that a client which has closed its side has sent waits once for a full pool.
                if self.has_said_all() {
                    self.input.borrow_mut().waited_in_vain = true;
                }
                // A command of no table that leaves nothing behind has changed nothing by its refusal.
                let aftermath =
                    if pin == Pin::Own { Aftermath::Nothing } else { aftermath_of(&taken.request) };
                return self.unserved(&why, aftermath, taken.replies, taken.muted);
            }
        };
        if let Err(reason) = self.may_go_on() {
            self.worker.pool.end_lease(lease, true, UpstreamClose::LeaseEnded, None);
            return Err(reason);
        }
        // A new WATCH after one that was refused.
        self.session.borrow_mut().failed = Failed::Nothing;
        metrics::counter!("redbouncer_leases_total", "pin" => pin.label()).increment(1);
        self.place.set(pin.label());
        self.has_written.set(true);
        let held = Held {
            client: Rc::clone(self),
            lease,
            state: LeaseState::new(),
            scanner: ReplyScanner::default(),
            written: BytesMut::new(),
            unflushed: false,
            severed: false,
            partial: BytesMut::new(),
            member: None,
            is_cut: false,
            since: Instant::now(),
            garbled: false,
            hangup: None,
            last_wait: None,
            has_sent_long: false,
            stumbled_there: false,
            just_asked: None,
        };
        let outcome = held.run(taken).await;
        self.has_sent();
        self.place.set("lane");
        self.flags.set(crate::session::Flags::default());
        // SELECT or HELLO on the lease may have changed the key.
        self.leave_group();
        outcome
    }
}

impl Held {
    async fn run(mut self, first: Taken) -> Result<(), ClientClose> {
        if let Some(event) = self.carry_out(&first.request, first.muted) {
            return self.leave(event).await;
        }
        loop {
            let limit = self.client.worker.pool.shared.upstream.command_timeout;
            // Commands come and are answered while this sleeps, so it is judged anew when it wakes.
            let look =
                limit.map(|limit| if self.can_time_out() { self.since } else { Instant::now() } + limit);
            let event = tokio::select! {
                biased;
                event = poll_fn(|cx| self.poll(cx)) => event,
                () = sleep_until(look) => {
                    if !limit.is_some_and(|limit| self.can_time_out() && self.since.elapsed() >= limit) {
                        continue;
                    }
                    Event::Gone(ClientClose::CommandTimeout)
                }
            };
            let client = Rc::clone(&self.client);
            let ended = match event {
                Event::Aside(route, request, muted) => {
                    client.aside(route, &request, muted).await.map_err(Event::Gone)
                }
                Event::Unknown(name) => self.ask_about(name).await.map_err(Event::Gone),
                Event::AskForLimit => client.ask_for_limit().await.map_err(Event::Gone),
                Event::Wait(command, request, muted) => self.wait_beside((request, command), muted).await,
                Event::Member => self.answer_members().await,
                ended @ (Event::Over | Event::End(..) | Event::Gone(_) | Event::Lost(_)) => Err(ended),
            };
            if let Err(event) = ended {
                return self.leave(event).await;
            }
        }
    }

    /// A blocking call beside the connection; what the server sends unasked over it goes on to the client.
    async fn wait_beside(&mut self, call: (Bytes, Blocking), muted: bool) -> Result<(), Event> {
        let client = Rc::clone(&self.client);
        let done = Box::pin(client.blocking_beside(call, muted, self.state.is_tracking()));
        tokio::select! {
            biased;
            done = done => done.map_err(Event::Gone),
            lost = poll_fn(|cx| self.poll_unasked(cx)) => Err(Event::Lost(lost)),
        }
    }

    /// Answers members of the transaction beside the connection, and delivers what has arrived behind each.
    async fn answer_members(&mut self) -> Result<(), Event> {
        let client = Rc::clone(&self.client);
        while let Some(Waiting { request, verdict, behind }) = self.member.take() {
            client.flags.set(self.state.flags());
            let answer = client.answer_queued(&request, verdict);
            let reply = match self.is_cut {
                false => client.patiently(answer).await.map_err(Event::Gone)?,
                true => answer.await,
            };
            let doomed = client.doomed.get();
            // Whoever is closed for want of an answer gets none.
            if let Some(reason) = doomed.filter(|reason| *reason != ClientClose::Killed) {
                return Err(Event::Gone(reason));
            }
            if !self.state.mutes_next(client.session.borrow().replies) {
                self.give(&reply);
            }
            // The server answers CLIENT KILL of oneself, runs what is queued behind it, and drops those replies
            // (`CLIENT_CLOSE_AFTER_REPLY` in redis `networking.c`).
            self.is_cut = doomed.is_some();
            self.state.has_answered();
            self.since = Instant::now();
            self.deliver(&behind).map_err(Event::Lost)?;
            while self.is_cut && self.member.is_none() && self.state.is_executing() {
                let patience = client.worker.pool.shared.upstream.stall_timeout;
                let next = poll_fn(|cx| self.poll_upstream(cx));
                match tokio::time::timeout(patience, next).await {
                    Ok(next) => next.map_err(Event::Lost)?,
                    Err(_) => return Err(Event::Gone(ClientClose::Killed)),
                }
            }
        }
        if self.is_cut { Err(Event::Gone(ClientClose::Killed)) } else { Ok(()) }
    }

    fn can_time_out(&self) -> bool {
        self.state.is_waiting() && !self.state.is_blocked()
    }

    /// Ends the lease for `event`.
    async fn leave(mut self, event: Event) -> Result<(), ClientClose> {
        let client = Rc::clone(&self.client);
        let pool = &client.worker.pool;
        match event {
            Event::Over
            | Event::Aside(..)
            | Event::Unknown(_)
            | Event::AskForLimit
            | Event::Wait(..)
            | Event::Member => {
                let clean = self.state.is_clean() && !self.stumbled_there;
                let ended = self.stumbled_there && self.ends_there().await;
                pool.end_lease(self.lease, clean, UpstreamClose::LeaseEnded, None);
                if ended { Err(client.departs(ClientClose::ProtocolError)) } else { Ok(()) }
            }
            Event::End(class, request, muted) => {
                pool.end_lease(self.lease, false, UpstreamClose::LeaseEnded, None);
                let Some(request) = Request::parse(&request) else { return Err(ClientClose::ProtocolError) };
                match client.answer(class, &request, muted) {
                    crate::session::answers::After::Continue => Ok(()),
                    crate::session::answers::After::Close => Err(ClientClose::Quit),
                }
            }
            Event::Gone(ClientClose::ClientEof) => {
                client.departs(ClientClose::ClientEof);
                let (mut end, mut gone) = (None, client.gone.get());
                if self.state.is_waiting() {
                    end = self.answer_what_was_sent().await;
                    // Closed here already for writing; the permit returns when the server has closed too.
                    gone = None;
                }
                pool.end_lease(self.lease, false, UpstreamClose::ClientGone, gone);
                client.hears_no_more();
                end.map_or(Ok(()), Err)
            }
            Event::Gone(reason) => {
                client.departs(reason);
                pool.end_lease(self.lease, false, UpstreamClose::ClientGone, client.gone.get());
                Err(reason)
            }
            Event::Lost(reason) => {
                tracing::warn!(client = client.id, reason = reason.label(), "a leased connection was lost");
                self.lease.permit.closes(reason);
                Err(ClientClose::LeaseLost)
            }
        }
    }

    /// Whether the server closes the connection behind a protocol error, as it does behind its own
    /// (`setProtocolError` in redis `networking.c`).
    async fn ends_there(&mut self) -> bool {
        let end = poll_fn(|cx| self.poll_upstream(cx));
        tokio::time::timeout(CLOSES_WITHIN, end).await.is_ok()
    }

    /// The client has closed its side and its call blocks, as far as can be known. Our FIN goes upstream, so the server
    /// decides: it answers what it has for the call and what stands behind it, or frees its client. Returns why ours is
    /// to be closed at once, if it is.
    async fn answer_what_was_sent(&mut self) -> Option<ClientClose> {
        let client = Rc::clone(&self.client);
        let patience = client.worker.pool.shared.upstream.stall_timeout;
        let answered = async {
            poll_fn(|cx| self.poll_write(cx)).await?;
            tokio::io::AsyncWriteExt::shutdown(&mut self.lease.stream).await?;
            crate::telemetry::release_seconds(
                client.gone.get().map_or(Duration::ZERO, |gone| gone.elapsed()),
            );
            // A server that says nothing for so long is not going to.
            while self.state.is_waiting() {
                let next = poll_fn(|cx| self.poll_upstream(cx));
                if !matches!(tokio::time::timeout(patience, next).await, Ok(Ok(())))
                    || self.answer_members().await.is_err()
                {
                    break;
                }
            }
            std::io::Result::Ok(())
        };
        client.patiently(answered).await.err()
    }

    /// Moves bytes both ways until something happens.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        loop {
            if !self.severed
                && let Poll::Ready(Err(error)) = self.poll_write(cx)
            {
                if !UpstreamStream::is_to_be_read_out(&error) {
                    return Poll::Ready(Event::Lost(UpstreamClose::Lost));
                }
                self.severed = true;
            }
            if self.severed {
                match ready!(self.poll_upstream(cx)) {
                    Ok(()) => continue,
                    Err(reason) => return Poll::Ready(Event::Lost(reason)),
                }
            }
            self.client.flags.set(self.state.flags());
            self.client.busy.set(self.state.is_waiting() && !self.state.is_blocked());
            if self.state.is_over() && self.written.is_empty() {
                return Poll::Ready(Event::Over);
            }
            // A client that does not read is not read for either: the server's own output limit then decides.
            let held_back = self.client.is_backpressured();
            if !held_back {
                match self.poll_upstream(cx) {
                    Poll::Ready(Ok(())) if self.member.is_some() => return Poll::Ready(Event::Member),
                    Poll::Ready(Ok(())) => continue,
                    Poll::Ready(Err(reason)) => return Poll::Ready(Event::Lost(reason)),
                    Poll::Pending => {}
                }
            } else if self.lease.stream.poll_vanished(cx).is_ready() {
                return Poll::Ready(Event::Lost(UpstreamClose::Lost));
            }
            match self.poll_client(cx) {
                Poll::Ready(Some(event)) => return Poll::Ready(event),
                Poll::Ready(None) => {}
                // The client has just read: nobody has asked the server's socket to wake us.
                Poll::Pending if held_back && !self.client.is_backpressured() => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Reads what comes while no command is outstanding. Ready when the connection is lost.
    fn poll_unasked(&mut self, cx: &mut Context<'_>) -> Poll<UpstreamClose> {
        loop {
            if let Poll::Ready(Err(_)) = self.poll_write(cx) {
                return Poll::Ready(UpstreamClose::Lost);
            }
            if self.client.is_backpressured() {
                return Poll::Pending;
            }
            if let Err(lost) = ready!(self.poll_upstream(cx)) {
                return Poll::Ready(lost);
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let stream = &mut self.lease.stream;
        self.unflushed |= !self.written.is_empty();
        while !self.written.is_empty() {
            match ready!(std::pin::Pin::new(&mut *stream).poll_write(cx, &self.written))? {
                0 => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                sent => self.written.advance(sent),
            }
        }
        if self.unflushed && stream.is_buffered() {
            ready!(std::pin::Pin::new(stream).poll_flush(cx))?;
        }
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Reads once from the server and delivers.
    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamClose>> {
        let client = Rc::clone(&self.client);
        let mut scratch = client.worker.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        let read = ready!(std::pin::Pin::new(&mut self.lease.stream).poll_read(cx, &mut buffer));
        if read.is_err() || buffer.filled().is_empty() {
            return Poll::Ready(Err(UpstreamClose::Lost));
        }
        Poll::Ready(self.deliver(buffer.filled()))
    }

    fn give(&self, bytes: &[u8]) {
        if !self.is_cut {
            self.client.send(bytes);
        }
    }

    /// Gives replies to the client: contiguous ones in one write. Stops at a member of the transaction that is to be
    /// answered first.
    fn deliver(&mut self, data: &[u8]) -> Result<(), UpstreamClose> {
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
            let whole =
                !self.partial.is_empty() || kind.is_none_or(|kind| self.state.wants_whole(kind, protocol));
            let muted =
                self.state.mutes_next(self.client.session.borrow().replies) && kind != Some(ReplyKind::Push);
            if whole || muted {
                self.give(&data[forward..at]);
                if whole {
                    self.partial.extend_from_slice(part);
                }
            }
            at += step.consumed;
            if let Some(kind) = step.complete {
                self.since = Instant::now();
                let frame = self.partial.split().freeze();
                if kind == ReplyKind::Error && self.has_sent_long {
                    // One that came in pieces may be such an error as well.
                    let begins = if frame.is_empty() { part } else { &frame };
                    self.stumbled_there |= !begins.starts_with(b"-") || begins.starts_with(PROTOCOL_ERROR);
                }
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
                    Received::Message => self.give(&frame),
                    Received::Beside(request) => {
                        let behind = Bytes::copy_from_slice(&data[at..]);
                        self.member = Some(Waiting { request, verdict: frame, behind });
                    }
                    _ if muted => {}
                    Received::Swallow => {}
                    Received::Instead(reply) => self.give(&reply),
                    Received::Forward if whole => self.give(&frame),
                    Received::Forward => continue,
                }
            }
            if whole || muted {
                forward = at;
            }
        }
        self.give(&data[forward..at]);
        self.client.set_mid_reply(forward < at && self.scanner.in_frame() || self.state.is_executing());
        Ok(())
    }

    fn judge(&mut self, kind: ReplyKind, frame: &[u8]) -> Received {
        let worker = &self.client.worker;
        let mut session = self.client.session.borrow_mut();
        let verdict = self.state.received(kind, frame, &mut session, &**worker);
        if let Some(text) = self.state.refused_publish().and_then(resp::error_text) {
            let membership = self.client.membership.borrow();
            let user = membership.as_ref().map_or("", |own| own.identity.name());
            worker.lacks().note(Lacking::WaitChannel, user, &String::from_utf8_lossy(text));
        }
        verdict
    }

    /// Takes the client's next commands, and notices when it leaves.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            let (limit, run_again) = match self.run_input() {
                Input::Event(event) => return Poll::Ready(Some(event)),
                Input::Progress => return Poll::Ready(None),
                _ if self.is_paused() => (0, false),
                // A command has begun: one more read, however long it is.
                Input::Hungry => (self.client.read_ahead() + 1, true),
                Input::Waiting => (READ_AHEAD, false),
            };
            if self.client.input.borrow().eof {
                let none_left = run_again || self.client.read_ahead() == 0;
                return self.poll_end(cx, none_left);
            }
            match self.client.poll_departure(cx, limit) {
                // What was read before is carried out first.
                Poll::Ready(Some(ClientClose::ClientEof)) => {}
                Poll::Ready(Some(reason)) => return Poll::Ready(Some(Event::Gone(reason))),
                Poll::Ready(None) if run_again => {}
                Poll::Ready(None) if self.client.has_said_all() => return self.poll_end(cx, false),
                Poll::Ready(None) => match ready!(self.poll_hangup(cx)) {
                    Hangup::Farewell => self.client.note_farewell(),
                    Hangup::Reset => return Poll::Ready(Some(Event::Gone(ClientClose::ClientLost))),
                },
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn is_paused(&self) -> bool {
        self.written.len() > WRITE_AHEAD || self.client.is_backpressured()
    }

    /// Nothing more is read now, so end of file cannot be read either: the kernel still tells.
    fn poll_hangup(&mut self, cx: &mut Context<'_>) -> Poll<Hangup> {
        let client = Rc::clone(&self.client);
        let hangup = self.hangup.get_or_insert_with(|| Box::pin(async move { client.socket.hangup().await }));
        hangup.as_mut().poll(cx)
    }

    /// The client has closed its side. Its lease ends when all it has sent is carried out and answered (`none_left`: there
    /// is nothing more to send), or at a call that blocks.
    fn poll_end(&mut self, cx: &mut Context<'_>, none_left: bool) -> Poll<Option<Event>> {
        if let Poll::Ready(reason) = self.client.poll_doomed(cx) {
            return Poll::Ready(Some(Event::Gone(reason)));
        }
        let blocked = self.state.is_blocked();
        if none_left && (blocked || !self.state.is_waiting()) {
            return Poll::Ready(Some(Event::Gone(ClientClose::ClientEof)));
        }
        // What stands behind the call cannot be sent before its reply; or the server has fallen silent.
        let patience =
            if blocked { FIRST_LOOK } else { self.client.worker.pool.shared.upstream.stall_timeout };
        let at = (self.since + patience).into();
        let timer = self.last_wait.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        timer.as_mut().reset(at);
        timer.as_mut().poll(cx).map(|()| Some(Event::Gone(ClientClose::ClientEof)))
    }

    /// Carries out what is buffered.
    fn run_input(&mut self) -> Input {
        let mut progress = false;
        loop {
            if self.state.is_over() || self.written.len() > WRITE_AHEAD {
                return if progress || self.state.is_over() { Input::Progress } else { Input::Waiting };
            }
            if self.state.is_ending() || self.state.outstanding() >= self.client.worker.options.pipeline_limit
            {
                return if progress { Input::Progress } else { Input::Waiting };
            }
            let Some(next) = self.next_frame() else {
                return match (progress, self.garbled) {
                    (true, _) => Input::Progress,
                    // No more bytes make this a command: the error waits for its turn.
                    (false, true) => Input::Waiting,
                    (false, false) => Input::Hungry,
                };
            };
            let frame = match next {
                Ok(frame) => frame,
                Err(event) => return Input::Event(event),
            };
            match self.carry_out_or_wait(&frame) {
                Some(Some(event)) => return Input::Event(event),
                Some(None) => progress = true,
                None => return if progress { Input::Progress } else { Input::Waiting },
            }
        }
    }

    /// The next whole frame, left in the buffer until it is carried out.
    fn next_frame(&mut self) -> Option<Result<Bytes, Event>> {
        let limits = self.client.limits();
        self.garbled = false;
        loop {
            let mut input = self.client.input.borrow_mut();
            let super::client::Input { buffer, scanner, .. } = &mut *input;
            match scanner.step(buffer, &limits) {
                Ok(RequestStep::Incomplete { .. }) => return None,
                Ok(RequestStep::Nothing { len }) => buffer.advance(len),
                Ok(RequestStep::Request(shape)) if shape.form == Form::Canonical => {
                    return Some(Ok(Bytes::copy_from_slice(&buffer[..shape.len])));
                }
                Ok(RequestStep::Request(shape)) => {
                    // Written anew in its place.
                    let mut canonical = BytesMut::new();
                    match normalise(&buffer[..shape.len], &shape, &mut canonical) {
                        Ok(_) => {
                            buffer.advance(shape.len);
                            canonical.extend_from_slice(buffer);
                            *buffer = canonical;
                        }
                        Err(error) => {
                            drop(input);
                            return self.stumbled(&error);
                        }
                    }
                }
                Err(error) => {
                    *scanner = crate::resp::RequestScanner::default();
                    drop(input);
                    return self.stumbled(&error);
                }
            }
        }
    }

    /// What lies next is no command: its error comes after all earlier replies.
    fn stumbled(&mut self, error: &RequestError) -> Option<Result<Bytes, Event>> {
        self.garbled = self.state.is_waiting();
        if self.garbled {
            return None;
        }
        Some(Err(if self.client.may_have_been_raised(error) {
            Event::AskForLimit
        } else {
            self.broken(error.reply())
        }))
    }

    fn broken(&self, reply: Option<String>) -> Event {
        if let Some(text) = reply.filter(|_| !self.client.session.borrow_mut().mutes_this()) {
            self.client.send(text.as_bytes());
        }
        Event::Gone(self.client.departs(ClientClose::ProtocolError))
    }

    /// What the server has said of a command that is not in our table. `Err`: nobody has asked yet.
    fn placement_of(&self, asked: &Asked, request: &Request<'_>) -> Result<Placement, Bytes> {
        if asked.class != Class::Unknown {
            return Ok(Placement::Lane);
        }
        let name = request.name().to_ascii_lowercase();
        let just_asked = self.just_asked.as_ref().filter(|(asked, _)| **asked == *name);
        let known = just_asked.map(|(_, placement)| *placement);
        known.or_else(|| self.client.worker.placement_of(&name)).ok_or_else(|| name.into())
    }

    /// Asks the server about a command that is not in our table. Where it cannot be asked, the command may leave state.
    async fn ask_about(&mut self, name: Bytes) -> Result<(), ClientClose> {
        let client = Rc::clone(&self.client);
        let placement = client.ask_about(&name).await?.unwrap_or(Placement::Lasting);
        self.just_asked = Some((name, placement));
        Ok(())
    }

    /// `None`: the frame must wait for replies and stays in the buffer.
    fn carry_out_or_wait(&mut self, frame: &Bytes) -> Option<Option<Event>> {
        let request = Request::parse(frame)?;
        let asked = classify(&request);
        let unknown = match self.placement_of(&asked, &request) {
            Ok(placement) => placement,
            Err(_) if self.state.is_waiting() => return None,
            Err(name) => return Some(Some(Event::Unknown(name))),
        };
        let plan = {
            let session = self.client.session.borrow();
            self.state.plan(&session, &asked, &request, self.client.policy(), unknown)
        };
        if plan == Plan::AfterReplies {
            return None;
        }
        self.client.input.borrow_mut().buffer.advance(frame.len());
        self.client.worker.count(&self.client, &asked);
        let muted = {
            let mut session = self.client.session.borrow_mut();
            match &plan {
                Plan::Local(class) | Plan::End(class) => session.mutes_answer(*class),
                Plan::Forward(_)
                | Plan::Blocking(_)
                | Plan::Wait(_)
                | Plan::ForwardWait
                | Plan::Hello(_)
                | Plan::RefuseInMulti(_)
                | Plan::Queue(..)
                | Plan::Refuse(_)
                | Plan::Aside(_)
                | Plan::AfterReplies => session.mutes_this(),
            }
        };
        Some(self.act(plan, frame, muted))
    }

    /// Carries out a command that was taken from the input already.
    fn carry_out(&mut self, frame: &Bytes, muted: bool) -> Option<Event> {
        let Some(request) = Request::parse(frame) else {
            return Some(Event::Gone(ClientClose::ProtocolError));
        };
        let asked = classify(&request);
        // One of those that nobody has heard of: the server was asked before, if it may be.
        let unknown = self.placement_of(&asked, &request).unwrap_or(Placement::MayBlock);
        let plan = {
            let session = self.client.session.borrow();
            self.state.plan(&session, &asked, &request, self.client.policy(), unknown)
        };
        self.act(plan, frame, muted)
    }

    fn act(&mut self, plan: Plan, frame: &Bytes, muted: bool) -> Option<Event> {
        let request = Request::parse(frame)?;
        let asked = classify(&request);
        if !self.state.is_waiting() {
            self.since = Instant::now();
        }
        self.has_sent_long |= request.has_bulk_above(ALWAYS_TAKEN);
        // A blocking call that follows may wait for what this writes.
        if !matches!(plan, Plan::Wait(_)) {
            self.client.has_written.set(true);
        }
        match plan {
            Plan::Forward(expect) => {
                self.written.extend_from_slice(frame);
                self.state.sent(expect, &asked, muted);
            }
            Plan::Blocking(_) => {
                self.written.extend_from_slice(frame);
                self.state.sent(Expect::Blocking, &asked, muted);
            }
            Plan::Wait(command) => return Some(Event::Wait(command, frame.clone(), muted)),
            Plan::ForwardWait => {
                encode::command(&mut self.written, &[b"PUBLISH", b"redbouncer:wait", b""]);
                self.state.sent(Expect::WaitPublish, &asked, true);
                self.written.extend_from_slice(frame);
                self.state.sent(Expect::Wait, &asked, muted);
            }
            Plan::Hello(hello) => {
                let version: &[u8] = match hello.protocol.unwrap_or(self.client.protocol()) {
                    Protocol::Resp2 => b"2",
                    Protocol::Resp3 => b"3",
                };
                encode::command(&mut self.written, &[b"HELLO", version]);
                self.state.sent(Expect::Hello(hello), &asked, muted);
            }
            Plan::RefuseInMulti(text) => {
                // A command that the server refuses while queueing, so that its EXEC fails as it must.
                encode::command(&mut self.written, &[b"CLIENT"]);
                let mut reply = BytesMut::new();
                encode::error(&mut reply, &text);
                self.state.sent(Expect::Instead(reply.freeze()), &asked, muted);
            }
            Plan::Queue(stand_in, member) => {
                self.written.extend_from_slice(&stand_in);
                self.state.sent(Expect::Queued(member), &asked, muted);
            }
            Plan::Refuse(text) => {
                self.client.error(&text, muted);
                if ends_the_session(&text) {
                    return Some(Event::Gone(self.client.departs(ClientClose::StateRefused)));
                }
            }
            Plan::Local(class) => {
                let _ = self.client.answer(class, &request, muted);
            }
            Plan::End(class) => return Some(Event::End(class, frame.clone(), muted)),
            Plan::Aside(route) => return Some(Event::Aside(route, frame.clone(), muted)),
            Plan::AfterReplies => {}
        }
        None
    }
}

enum Input {
    Event(Event),
    Progress,
    Hungry,
    Waiting,
}

/// Sleeps until `deadline`; for ever without one.
pub(super) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
