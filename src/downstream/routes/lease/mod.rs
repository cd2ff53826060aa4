//! A session with an upstream connection of its own.
//!
//! While it lasts, all the session's commands go over this connection, pipelined where their meaning does not depend on
//! replies that are still to come. What they mean for the connection is [`LeaseState`]'s business; this file moves bytes.

mod replies;
mod requests;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::pending::PendingCommand;
use crate::command::{Aftermath, Blocking, Class, classify};
use crate::downstream::client::{Attachment, Client, FIRST_LOOK, LeasedState, READ_AHEAD, sleep_until};
use crate::downstream::routes::unserved::aftermath_of;
use crate::downstream::socket::Hangup;
use crate::pool::{Charge, Holder, HoldingClient, Lease, Pool, Slice, Who, go_on_later};
use crate::resp::Unsent;
use crate::resp::{ReplyScanner, Request};
use crate::session::{ALWAYS_TAKEN, Failed, LeaseState, Pin, Placement, Reads, Route, UNGUARDED};
use crate::telemetry::{ClientClose, UpstreamClose};
use crate::upstream::UpstreamStream;

/// Commands of one client waiting to be written to its own connection, in bytes; beyond it nothing more is read.
const WRITE_AHEAD: usize = 1 << 20;
/// A drained write buffer larger than this is given back.
const KEEP: usize = 64 << 10;
/// How long a command with a long argument waits for a connection of its own, before it takes a lane like any other: its
/// server has probably not lowered its limit since it was last asked.
const FOR_A_LONG_ONE: Duration = Duration::from_millis(250);
/// How the server tells of an argument that is longer than it takes.
const PROTOCOL_ERROR: &[u8] = b"-ERR Protocol error";
/// A server that has told of a protocol error has closed the connection by then.
const CLOSES_WITHIN: Duration = Duration::from_millis(100);

/// A client and the connection it holds.
struct LeaseSession {
    client: Rc<Client>,
    /// What others see of it.
    shown: Rc<LeasedState>,
    /// The same where connections are listed.
    listed: Arc<HoldingClient>,
    /// What is on its way here, or queued, counts.
    charge: Charge,
    lease: Lease,
    /// Of the server that it is at.
    pool: Rc<Pool>,
    state: LeaseState,
    /// It is counted among the leases that stand.
    stands: bool,
    scanner: ReplyScanner,
    written: Unsent,
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
    /// What its client, which tracks, reads here, where nobody tracks for it, by the place of the reply.
    reads: VecDeque<(u64, Reads)>,
    /// CLIENT TRACKING is in the open transaction.
    tracks_by_exec: bool,
    /// The client was told of invalidations when the last reply came.
    heard: bool,
    /// A transaction was open when the last reply came.
    was_in_multi: bool,
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
    pub(in crate::downstream) async fn leased(
        self: &Rc<Self>,
        taken: PendingCommand,
        pin: Pin,
    ) -> Result<(), ClientClose> {
        let class = Request::parse(&taken.request).map_or(Class::Unknown, |request| classify(&request).class);
        if !self.session.borrow().may_lease(class) {
            self.error(UNGUARDED, taken.muted);
            return Err(ClientClose::StateRefused);
        }
        if let Err(why) = self.find_node_for_lease().await? {
            return self.unserved(&why, aftermath_of(&taken.request), taken.replies, taken.muted);
        }
        let pool = self.pool();
        let Some((key, identity)) = self.lane_key() else { return Err(ClientClose::Denied) };
        let key = key.untracked();
        let holding = self.holding(pin);
        let holder = Holder { user: key.user, address: self.peer.host(), who: Who::Client(&holding) };
        let is_of_a_lane =
            taken.route == Route::Lane || matches!(class, Class::Pass | Class::Publish | Class::Ping);
        let is_long = pin == Pin::Own
            && is_of_a_lane
            && Request::parse(&taken.request).is_some_and(|request| request.has_bulk_above(ALWAYS_TAKEN));
        let patience = Instant::now() + FOR_A_LONG_ONE;
        let deadline = self.lease_deadline();
        let deadline = Some(if is_long { deadline.min(patience) } else { deadline });
        let waits = self.attachment.enter(Attachment::AwaitingLease);
        let found = self.unless_gone(pool.lease(key, &identity, Self::claim(pin), holder, deadline)).await;
        drop(waits);
        let lease = match found? {
            Ok(lease) => lease,
            Err(_) if is_long => {
                let counts = class == Class::Publish && !self.context.pubsub.audience().is_empty();
                let aftermath = aftermath_of(&taken.request);
                return self
                    .over_a_lane(PendingCommand { route: Route::Lane, counts, ..taken }, aftermath)
                    .await;
            }
            Err(why) => {
                // All that a client which has closed its side has sent waits once for a full pool.
                if self.has_ended_input() {
                    self.inbound().note_wait(true);
                }
                // A command of no table that leaves nothing behind has changed nothing by its refusal.
                let aftermath =
                    if pin == Pin::Own { Aftermath::Nothing } else { aftermath_of(&taken.request) };
                return self.unserved(&why, aftermath, taken.replies, taken.muted);
            }
        };
        if let Err(reason) = self.may_go_on() {
            pool.end_lease(lease, true, UpstreamClose::LeaseEnded, None);
            return Err(reason);
        }
        if !self.context.server.policy().tracked_lanes {
            // The first login may just have been made.
            self.context.server.learn_from_login();
        }
        // A new WATCH after one that was refused.
        self.session.borrow_mut().failed = Failed::Nothing;
        let counted = self.context.metrics.lease(pin, Instant::now());
        self.note_written();
        let shown = LeasedState::new(pin);
        let leased = self.attachment.enter(Attachment::Leased(Rc::clone(&shown)));
        let held = LeaseSession::new(self, (lease, pool), (shown, holding), pin);
        let outcome = held.run(taken).await;
        drop((leased, counted));
        self.has_sent();
        // SELECT or HELLO on the lease may have changed the key.
        self.leave_group();
        outcome
    }
}

impl LeaseSession {
    fn new(
        client: &Rc<Client>,
        (lease, pool): (Lease, Rc<Pool>),
        (shown, listed): (Rc<LeasedState>, Arc<HoldingClient>),
        pin: Pin,
    ) -> Self {
        Self {
            client: Rc::clone(client),
            shown,
            listed,
            charge: client.charge(),
            lease,
            pool,
            state: LeaseState::new(),
            stands: Client::claim(pin).stands(),
            scanner: ReplyScanner::default(),
            written: Unsent::default(),
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
            reads: VecDeque::new(),
            tracks_by_exec: false,
            heard: client.session.borrow().hears_invalidations(),
            was_in_multi: false,
            just_asked: None,
        }
    }

    async fn run(mut self, first: PendingCommand) -> Result<(), ClientClose> {
        self.note_first_reads(&first);
        let event = self.carry_out(&first.request, first.muted);
        // It may be long, and a lease last.
        drop(first);
        if let Some(event) = event {
            return self.leave(event).await;
        }
        loop {
            let limit = self.client.context.pool.shared.upstream.get().command_timeout;
            // Commands come and are answered while this sleeps, so it is judged anew when it wakes.
            let look =
                limit.map(|limit| if self.can_time_out() { self.since } else { Instant::now() } + limit);
            let forgotten =
                self.idle_limit().map(|limit| self.silent_since().unwrap_or_else(Instant::now) + limit);
            let event = tokio::select! {
                biased;
                event = poll_fn(|cx| self.poll(cx)) => event,
                () = sleep_until(forgotten), if forgotten.is_some() => {
                    if !self.is_forgotten() {
                        continue;
                    }
                    Event::Gone(ClientClose::LeaseIdle)
                }
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
                    client.answer_off_lane(route, &request, muted).await.map_err(Event::Gone)
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
            self.shown.note_flags(self.state.flags());
            let answer = client.answer_queued(&request, verdict);
            let reply = match self.is_cut {
                false => client.unless_gone(answer).await.map_err(Event::Gone)?,
                true => answer.await,
            };
            let doomed = client.close_reason();
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
                let patience = client.context.pool.shared.upstream.get().stall_timeout;
                let next = poll_fn(|cx| self.poll_upstream(cx));
                match tokio::time::timeout(patience, next).await {
                    Ok(next) => next.map_err(Event::Lost)?,
                    Err(_) => return Err(Event::Gone(ClientClose::Killed)),
                }
            }
        }
        if self.is_cut { Err(Event::Gone(ClientClose::Killed)) } else { Ok(()) }
    }

    fn idle_limit(&self) -> Option<Duration> {
        self.client.context.pool.shared.options.get().lease_idle_timeout
    }

    /// Since when the client has sent nothing, with all that it had sent answered. `None`: nothing is expected of it.
    fn silent_since(&self) -> Option<Instant> {
        let is_idle = !self.state.is_waiting() && !self.state.listens();
        is_idle.then(|| self.since.max(self.client.inbound().last_input()))
    }

    /// Whether the client has been silent for `pool.lease_idle_timeout`.
    fn is_forgotten(&self) -> bool {
        let silent = self.silent_since();
        silent.is_some_and(|since| self.idle_limit().is_some_and(|limit| since.elapsed() >= limit))
    }

    fn can_time_out(&self) -> bool {
        self.state.is_waiting() && !self.state.is_blocked()
    }

    /// Ends the lease for `event`.
    async fn leave(mut self, event: Event) -> Result<(), ClientClose> {
        let client = Rc::clone(&self.client);
        let pool = Rc::clone(&self.pool);
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
                if ended { Err(client.mark_departed(ClientClose::ProtocolError)) } else { Ok(()) }
            }
            Event::End(class, request, muted) => {
                pool.end_lease(self.lease, false, UpstreamClose::LeaseEnded, None);
                client.catch_up().await?;
                let Some(request) = Request::parse(&request) else { return Err(ClientClose::ProtocolError) };
                match client.answer(class, &request, muted) {
                    crate::session::answers::After::Continue => Ok(()),
                    crate::session::answers::After::Close => Err(ClientClose::Quit),
                }
            }
            Event::Gone(ClientClose::ClientEof) => {
                client.mark_departed(ClientClose::ClientEof);
                let (mut end, mut gone) = (None, client.departed());
                if self.state.is_waiting() {
                    end = self.answer_what_was_sent().await;
                    // Closed here already for writing; the permit returns when the server has closed too.
                    gone = None;
                }
                pool.end_lease(self.lease, false, UpstreamClose::ClientGone, gone);
                client.discard_input();
                end.map_or(Ok(()), Err)
            }
            Event::Gone(reason) => {
                client.mark_departed(reason);
                pool.end_lease(self.lease, false, UpstreamClose::ClientGone, client.departed());
                Err(reason)
            }
            Event::Lost(reason) => {
                tracing::warn!(client = client.id(), reason = reason.label(), "a leased connection was lost");
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
        let patience = client.context.pool.shared.upstream.get().stall_timeout;
        let answered = async {
            poll_fn(|cx| self.poll_write(cx)).await?;
            tokio::io::AsyncWriteExt::shutdown(&mut self.lease.stream).await?;
            crate::telemetry::release_seconds(
                client.departed().map_or(Duration::ZERO, |gone| gone.elapsed()),
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
        client.unless_gone(answered).await.err()
    }

    /// Moves bytes both ways until something happens.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let slice = Slice::begin();
        loop {
            if slice.is_over() {
                go_on_later(cx);
                return Poll::Pending;
            }
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
            self.note_standing();
            self.shown.note(self.state.flags(), self.state.is_waiting() && !self.state.is_blocked());
            if self.state.is_over() && self.written.is_empty() {
                return Poll::Ready(Event::Over);
            }
            // A client that does not read is not read for either: the server's own output limit then decides.
            self.count();
            let held_back = self.client.is_held_back();
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
                Poll::Pending if held_back && !self.client.is_held_back() => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Whether the connection stands is known when all replies are in.
    fn note_standing(&mut self) {
        let stands = self.state.stands();
        if self.stands != stands && !self.state.is_waiting() {
            self.stands = stands;
            self.lease.permit.stands(stands);
        }
    }

    /// Counts what is held here.
    fn count(&mut self) {
        let bytes = self.written.copied() + self.partial.len() + self.state.kept();
        if self.charge.set(bytes) {
            self.client.context.keep_within_bound();
        }
        self.client.inbound().count();
    }

    /// Reads what comes while no command is outstanding. Ready when the connection is lost.
    fn poll_unasked(&mut self, cx: &mut Context<'_>) -> Poll<UpstreamClose> {
        loop {
            if let Poll::Ready(Err(_)) = self.poll_write(cx) {
                return Poll::Ready(UpstreamClose::Lost);
            }
            if self.client.is_held_back() {
                return Poll::Pending;
            }
            if let Err(lost) = ready!(self.poll_upstream(cx)) {
                return Poll::Ready(lost);
            }
        }
    }
}
