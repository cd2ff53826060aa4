//! The client's side of a lease: its next commands, what each may do now, and its leaving.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::time::Instant;

use super::{Event, FIRST_LOOK, LeaseSession, READ_AHEAD, WRITE_AHEAD};
use crate::command::{Asked, Class, classify};
use crate::downstream::client::Begun;
use crate::downstream::routes::pending::PendingCommand;
use crate::downstream::routes::unserved::aftermath_of;
use crate::downstream::socket::Hangup;
use crate::pool::Unavailable;
use crate::resp::{Form, Protocol, Request, RequestError, RequestScanner, RequestStep, encode, normalise};
use crate::session::answers::ends_the_session;
use crate::session::{ALWAYS_TAKEN, Expect, Placement, Plan, Reads, tracking};
use crate::telemetry::ClientClose;

impl LeaseSession {
    /// Takes the client's next commands, and notices when it leaves.
    pub(super) fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            let (limit, run_again) = match self.run_input() {
                Input::Event(event) => return Poll::Ready(Some(event)),
                Input::Progress => return Poll::Ready(None),
                _ if self.is_paused() => (0, false),
                // A command has begun: one more read, however long it is.
                Input::Hungry => (self.client.inbound().len() + 1, true),
                Input::Waiting => (READ_AHEAD, false),
            };
            if self.client.inbound().is_at_end() {
                let none_left = run_again || self.client.inbound().is_empty();
                return self.poll_end(cx, none_left);
            }
            match self.client.poll_departure(cx, limit) {
                // What was read before is carried out first.
                Poll::Ready(Some(ClientClose::ClientEof)) => {}
                Poll::Ready(Some(reason)) => return Poll::Ready(Some(Event::Gone(reason))),
                Poll::Ready(None) if run_again => {}
                Poll::Ready(None) if self.client.has_ended_input() => return self.poll_end(cx, false),
                Poll::Ready(None) => match ready!(self.poll_hangup(cx)) {
                    Hangup::Fin => self.client.input_has_ended(),
                    Hangup::Reset => return Poll::Ready(Some(Event::Gone(ClientClose::ClientLost))),
                },
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn is_paused(&self) -> bool {
        self.written.len() > WRITE_AHEAD || self.client.is_held_back()
    }

    /// Nothing more is read now, so end of file cannot be read either: the kernel still tells.
    fn poll_hangup(&mut self, cx: &mut Context<'_>) -> Poll<Hangup> {
        let client = Rc::clone(&self.client);
        let hangup = self.hangup.get_or_insert_with(|| Box::pin(async move { client.hangup().await }));
        hangup.as_mut().poll(cx)
    }

    /// The client has closed its side. Its lease ends when all it has sent is carried out and answered (`none_left`: there
    /// is nothing more to send), or at a call that blocks.
    fn poll_end(&mut self, cx: &mut Context<'_>, none_left: bool) -> Poll<Option<Event>> {
        if let Poll::Ready(reason) = self.client.poll_close_requested(cx) {
            return Poll::Ready(Some(Event::Gone(reason)));
        }
        let blocked = self.state.is_blocked();
        if none_left && (blocked || !self.state.is_waiting()) {
            return Poll::Ready(Some(Event::Gone(ClientClose::ClientEof)));
        }
        // What stands behind the call cannot be sent before its reply; or the server has fallen silent.
        let patience =
            if blocked { FIRST_LOOK } else { self.client.context.pool.shared.upstream.get().stall_timeout };
        let at = self.since + patience;
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
            if self.state.is_ending()
                || self.state.outstanding() >= self.client.context.options.get().pipeline_limit
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
            match self.carry_out_or_wait(frame) {
                Some(Some(event)) => return Input::Event(event),
                Some(None) => progress = true,
                None => return if progress { Input::Progress } else { Input::Waiting },
            }
        }
    }

    /// The length of the next whole frame, which is left in the buffer until it is carried out.
    fn next_frame(&mut self) -> Option<Result<usize, Event>> {
        let limits = self.client.limits();
        self.garbled = false;
        let found = self.client.inbound().with(|Begun { buffer, scanner, .. }| {
            loop {
                match scanner.step(buffer, &limits) {
                    Ok(RequestStep::Incomplete { .. }) => return None,
                    Ok(RequestStep::Nothing { len }) => buffer.advance(len),
                    Ok(RequestStep::Request(shape)) if shape.form == Form::Canonical => {
                        return Some(Ok(shape.len));
                    }
                    Ok(RequestStep::Request(shape)) => {
                        // Written anew in its place.
                        let mut canonical = BytesMut::new();
                        if let Err(error) = normalise(&buffer[..shape.len], &shape, &mut canonical) {
                            return Some(Err(error));
                        }
                        buffer.advance(shape.len);
                        canonical.extend_from_slice(buffer);
                        *buffer = canonical;
                    }
                    Err(error) => {
                        *scanner = RequestScanner::default();
                        return Some(Err(error));
                    }
                }
            }
        })??;
        match found {
            Ok(len) => Some(Ok(len)),
            Err(error) => self.stumbled(&error),
        }
    }

    /// What lies next is no command: its error comes after all earlier replies.
    fn stumbled(&mut self, error: &RequestError) -> Option<Result<usize, Event>> {
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
        Event::Gone(self.client.mark_departed(ClientClose::ProtocolError))
    }

    /// What the server has said of a command that is not in our table. `Err`: nobody has asked yet.
    fn placement_of(&self, asked: &Asked, request: &Request<'_>) -> Result<Placement, Bytes> {
        if asked.class != Class::Unknown {
            return Ok(Placement::Lane);
        }
        let name = request.name().to_ascii_lowercase();
        let just_asked = self.just_asked.as_ref().filter(|(asked, _)| **asked == *name);
        let known = just_asked.map(|(_, placement)| *placement);
        known.or_else(|| self.client.context.server.placement_of(&name)).ok_or_else(|| name.into())
    }

    /// Asks the server about a command that is not in our table. Where it cannot be asked, the command may leave state.
    pub(super) async fn ask_about(&mut self, name: Bytes) -> Result<(), ClientClose> {
        let client = Rc::clone(&self.client);
        let placement = client.ask_about(&name).await?.unwrap_or(Placement::Lasting);
        self.just_asked = Some((name, placement));
        Ok(())
    }

    /// `None`: the frame must wait for replies and stays in the buffer.
    fn carry_out_or_wait(&mut self, len: usize) -> Option<Option<Event>> {
        let client = Rc::clone(&self.client);
        let judged = client.inbound().with(|begun| self.judge_request(begun.buffer.get(..len)?))??;
        let (plan, asked, is_kept_out) = match judged {
            Ok(judged) => judged,
            Err(_) if self.state.is_waiting() => return None,
            Err(name) => return Some(Some(Event::Unknown(name))),
        };
        if plan == Plan::AfterReplies {
            return None;
        }
        let frame = client.take_frame(len);
        client.count(&asked);
        if is_kept_out {
            return Some(self.is_kept_out(&frame));
        }
        let muted = plan.is_muted(&mut self.client.session.borrow_mut());
        Some(self.act(plan, &frame, muted))
    }

    /// What `frame` is, what is to be done with it, and whether it would let the connection stand although no more may.
    /// `Err`: a command that nobody has asked the server about.
    fn judge_request(&mut self, frame: &[u8]) -> Option<Result<(Plan, Asked, bool), Bytes>> {
        let request = Request::parse(frame)?;
        let asked = classify(&request);
        let unknown = match self.placement_of(&asked, &request) {
            Ok(placement) => placement,
            Err(name) => return Some(Err(name)),
        };
        let plan = {
            let session = self.client.session.borrow();
            self.state.plan(&session, &asked, &request, self.client.policy(), unknown)
        };
        let plan = match self.client.routing() {
            None => plan,
            Some(_) => self.client.plan_in_cluster(plan, (&asked, &request), &self.state),
        };
        let is_kept_out = matches!(plan, Plan::Forward(_) | Plan::Queue(..))
            && begins_to_stand(&asked, &request)
            && !self.may_stand();
        Some(Ok((plan, asked, is_kept_out)))
    }

    /// Whether the connection may stand from now on.
    fn may_stand(&mut self) -> bool {
        self.stands = self.stands || self.lease.permit.may_stand();
        self.stands
    }

    /// Refuses a command that would let the connection stand: the others are kept for transactions.
    fn is_kept_out(&mut self, frame: &Bytes) -> Option<Event> {
        let budget = &self.pool.shared.budget;
        let text = budget.reserved_text(self.lease.key.user).unwrap_or_default();
        let why = Unavailable::Full(text);
        if self.state.is_queueing() {
            let plan = Plan::RefuseInMulti(why.to_string());
            let muted = plan.is_muted(&mut self.client.session.borrow_mut());
            return self.act(plan, frame, muted);
        }
        let muted = self.client.session.borrow_mut().mutes_this();
        let refused = self.client.unserved(&why, aftermath_of(frame), 1, muted);
        refused.err().map(|reason| Event::Gone(self.client.mark_departed(reason)))
    }

    /// Carries out a command that was taken from the input already.
    pub(super) fn carry_out(&mut self, frame: &Bytes, muted: bool) -> Option<Event> {
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

    /// Sends a command of our own.
    fn say(&mut self, words: &[&[u8]]) {
        self.written.append(&encode::one_command(words));
    }

    /// The same of the first command, which CLIENT CACHING was about where that was the last.
    pub(super) fn note_first_reads(&mut self, first: &PendingCommand) {
        if first.remembered
            && !self.client.remembers_next()
            && let Some(request) = Request::parse(&first.request)
            && let Some(reads) = tracking::reads(&classify(&request), &request)
        {
            self.reads.push_back((self.state.ever_sent(), reads));
        }
    }

    /// Notes what a client that tracks reads here: nobody tracks for it on this connection.
    fn note_reads(&mut self, plan: &Plan, asked: &Asked, request: &Request<'_>) {
        let is_off = self.client.session.borrow().tracking.is_none();
        if is_off && asked.class != Class::ClientTracking && !self.tracks_by_exec {
            return;
        }
        self.tracks_by_exec |= matches!(plan, Plan::Queue(..)) && asked.class == Class::ClientTracking;
        let is_sent = matches!(plan, Plan::Forward(_) | Plan::Blocking(_));
        // Behind CLIENT TRACKING in a transaction nobody knows yet.
        if is_sent && (self.tracks_by_exec || self.client.caches_next()) {
            // The server tells all that track of an emptied database; this client's lanes will only track after EXEC.
            let is_emptied = self.tracks_by_exec && tracking::empties(asked);
            let reads = if is_emptied { Some(Reads::Unknown) } else { tracking::reads(asked, request) };
            self.reads.extend(reads.map(|reads| (self.state.ever_sent(), reads)));
        }
        if !self.state.may_be_in_multi() || matches!(asked.class, Class::Exec | Class::Discard) {
            self.client.session.borrow_mut().has_taken(asked);
        }
    }

    fn act(&mut self, plan: Plan, frame: &Bytes, muted: bool) -> Option<Event> {
        let request = Request::parse(frame)?;
        let asked = classify(&request);
        self.listed.sends(asked.row);
        if !self.state.is_waiting() {
            self.since = Instant::now();
        }
        self.has_sent_long |= request.has_bulk_above(ALWAYS_TAKEN);
        // A blocking call that follows may wait for what this writes.
        if !matches!(plan, Plan::Wait(_)) {
            self.client.note_written();
        }
        self.note_reads(&plan, &asked, &request);
        match plan {
            Plan::Forward(expect) => {
                self.written.share(frame.clone());
                self.state.sent(expect, &asked, muted);
            }
            Plan::Blocking(_) => {
                self.written.share(frame.clone());
                self.state.sent(Expect::Blocking, &asked, muted);
            }
            Plan::Wait(command) => return Some(Event::Wait(command, frame.clone(), muted)),
            Plan::ForwardWait => {
                self.say(&[b"PUBLISH", b"redbouncer:wait", b""]);
                self.state.sent(Expect::WaitPublish, &asked, true);
                self.written.share(frame.clone());
                self.state.sent(Expect::Wait, &asked, muted);
            }
            Plan::Hello(hello) => {
                let version: &[u8] = match hello.protocol.unwrap_or(self.client.protocol()) {
                    Protocol::Resp2 => b"2",
                    Protocol::Resp3 => b"3",
                };
                self.say(&[b"HELLO", version]);
                self.state.sent(Expect::Hello(hello), &asked, muted);
            }
            Plan::RefuseInMulti(text) => {
                // A command that the server refuses while queueing, so that its EXEC fails as it must.
                self.say(&[b"CLIENT"]);
                let mut reply = BytesMut::new();
                encode::error(&mut reply, &text);
                self.state.sent(Expect::Instead(reply.freeze()), &asked, muted);
            }
            Plan::Queue(stand_in, member) => {
                self.written.share(stand_in);
                self.state.sent(Expect::Queued(member), &asked, muted);
            }
            Plan::Refuse(text) => {
                self.client.error(&text, muted);
                if ends_the_session(&text) {
                    return Some(Event::Gone(self.client.mark_departed(ClientClose::StateRefused)));
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

/// Whether a command makes what lasts for as long as its client pleases. Of those that do so in a way that is not known
/// here the reply tells.
fn begins_to_stand(asked: &Asked, request: &Request<'_>) -> bool {
    match asked.class {
        Class::Monitor | Class::Subscribe | Class::PSubscribe | Class::SSubscribe => true,
        Class::ClientTracking | Class::ClientNoTouch => {
            request.arg(2).is_some_and(|word| word.eq_ignore_ascii_case(b"on"))
        }
        _ => false,
    }
}

enum Input {
    Event(Event),
    Progress,
    Hungry,
    Waiting,
}
