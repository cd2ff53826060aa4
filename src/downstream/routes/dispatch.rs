//! What the fast path cannot finish: commands that wait for a connection, a login, or another's answer.
//!
//! Every wait here runs inside [`Client::unless_gone`], so a client that leaves is noticed at once.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::blocking::Waited;
use super::pending::PendingCommand;
use super::unserved::aftermath_of;
use crate::command::{Aftermath, Blocking, Class, classify};
use crate::downstream::admission::Refused;
use crate::downstream::client::{Attachment, Client};
use crate::downstream::listen::{TOO_MANY, TOO_MANY_HERE};
use crate::pool::{Choice, Claim, Group, Lane, LaneKey, Nature, Receiver, Unavailable};
use crate::resp::{self, Request, RequestError, encode};
use crate::session::answers::After;
use crate::session::{ALWAYS_TAKEN, Described, Pin, Placement, Route};
use crate::telemetry::ClientClose;
use crate::upstream::Capability;

/// Whether a command that goes there is a new one for the server, which waits while the proxy is paused. What an operator needs
/// meanwhile does not wait, nor does a login: it may be the operator's.
fn waits_for_resume(route: &Route) -> bool {
    match route {
        Route::Lane
        | Route::Transaction
        | Route::Lease(_)
        | Route::Tracking
        | Route::Listen(_, true)
        | Route::Blocking(_)
        | Route::Select(_)
        | Route::PubSub
        | Route::Ask
        | Route::Misplaced => true,
        Route::Local(_)
        | Route::Refuse(_)
        | Route::Listen(_, false)
        | Route::Login(_)
        | Route::Control
        | Route::Clients(_)
        | Route::Proxy => false,
    }
}

impl Client {
    /// Finishes one command.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream) async fn dispatch(
        self: &Rc<Self>,
        taken: PendingCommand,
    ) -> Result<(), ClientClose> {
        if !matches!(taken.route, Route::Listen(..) | Route::Local(_)) {
            self.is_caught_up.set(false);
        }
        if waits_for_resume(&taken.route) {
            self.until_resumed().await?;
        }
        if !matches!(taken.route, Route::Lane | Route::Transaction | Route::Lease(_)) {
            // In a cluster the home node answers what is no data.
            self.go_home();
        }
        match taken.route.clone() {
            Route::Lane => {
                let aftermath = aftermath_of(&taken.request);
                self.over_a_lane(taken, aftermath).await
            }
            Route::Transaction => self.leased(taken, Pin::Multi).await,
            Route::Lease(pin) => self.leased(taken, pin).await,
            Route::Tracking => self.track(taken).await,
            Route::Blocking(command) => {
                let request = (command == Blocking::XRead).then(|| taken.request.clone());
                self.blocking(taken, command, Waited::NOW).await?;
                self.invalidate_reads_of(request.as_ref());
                Ok(())
            }
            Route::Login(hello) => {
                let _checked = self.is_being_checked();
                let _state = self.attachment.enter(Attachment::LoggingIn);
                self.login(hello, taken.muted).await
            }
            Route::Select(index) => self.select(index, taken.muted).await,
            Route::Ask => self.ask(taken).await,
            route @ (Route::Control
            | Route::Clients(_)
            | Route::Proxy
            | Route::Listen(..)
            | Route::Misplaced
            | Route::PubSub) => self.answer_off_lane(route, &taken.request, taken.muted).await,
            Route::Local(class) => self.answer_caught_up(class, &taken.request).await,
            // Answered on the fast path.
            Route::Refuse(_) => Ok(()),
        }
    }

    /// Waits while the proxy is paused. Returns whether it was.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream) async fn until_resumed(&self) -> Result<bool, ClientClose> {
        let pause = &self.context.pool.shared.pause;
        if !pause.is_on() {
            return Ok(false);
        }
        let (_state, _counted) = (self.attachment.enter(Attachment::Paused), pause.count());
        self.unless_gone(pause.is_over()).await?;
        Ok(true)
    }

    /// What is answered here, behind the messages and invalidations that the server sent before.
    async fn answer_caught_up(self: &Rc<Self>, class: Class, request: &Bytes) -> Result<(), ClientClose> {
        self.catch_up().await?;
        let Some(request) = Request::parse(request) else { return Err(ClientClose::ProtocolError) };
        match self.answer_locally(class, &request) {
            After::Continue => Ok(()),
            After::Close => Err(ClientClose::Quit),
        }
    }

    /// Its login is good: it takes a place among those inside.
    ///
    /// # Errors
    /// There is none; it has been told.
    pub(in crate::downstream) fn take_place(&self, muted: bool) -> Result<(), ClientClose> {
        let (text, reason) = match self.go_inside() {
            Ok(()) => return Ok(()),
            Err(Refused::Full) => (TOO_MANY, ClientClose::TooMany),
            Err(Refused::FullForAddress) => (TOO_MANY_HERE, ClientClose::TooManyFromAddress),
        };
        if !muted {
            self.send(text);
        }
        Err(reason)
    }

    /// Waits for a lane and sends the command over it, or answers that there is none.
    pub(in crate::downstream) async fn over_a_lane(
        self: &Rc<Self>,
        taken: PendingCommand,
        aftermath: Aftermath,
    ) -> Result<(), ClientClose> {
        if self.routing().is_some() {
            return self.over_nodes(taken).await;
        }
        let Some(group) = self.current_group() else { return Err(ClientClose::Denied) };
        let mut deadline = self.lane_deadline();
        loop {
            if self.until_resumed().await? {
                deadline = self.lane_deadline();
            }
            let waits = self.attachment.enter(Attachment::AwaitingLane);
            let ready = self.unless_gone(self.context.pool.lane_ready(&group, deadline)).await?;
            drop(waits);
            self.inbound().note_wait(matches!(ready, Err(Unavailable::Down(_))));
            if let Err(why) = ready {
                return self.unserved(&why, aftermath, taken.replies, taken.muted);
            }
            if let Some(lane) = self.lane_that_is_not_held(&group, &taken).await? {
                self.may_go_on()?;
                self.taken_reads_over(&lane, &taken);
                if taken.counts && !taken.muted {
                    self.counted_on(&lane, &taken.request, taken.replies);
                } else {
                    let PendingCommand { request, muted, may_invent, replies, .. } = taken;
                    let nature = Nature { muted, may_invent, is_block: replies > 1 };
                    self.push_long_on(&lane, request, replies, nature);
                }
                return Ok(());
            }
        }
    }

    /// The lane for `taken`. Where every lane is held, another one is waited for, or until one is held no more; where none
    /// can be had, `taken` waits its turn on one that is held.
    async fn lane_that_is_not_held(
        &self,
        group: &Rc<Group>,
        taken: &PendingCommand,
    ) -> Result<Option<Rc<Lane>>, ClientClose> {
        if let Some(lane) = self.lane_it_hears(group) {
            return Ok(Some(lane));
        }
        let only_reads = || {
            let asked = Request::parse(&taken.request).map(|request| classify(&request));
            taken.replies == 1 && asked.is_some_and(|asked| asked.only_reads())
        };
        let upstream = self.context.pool.shared.upstream.get();
        // The time of a command that must be answered by then begins on its lane.
        let patience = upstream.command_timeout.map_or(upstream.stall_timeout, |limit| limit / 4);
        match self.context.pool.lane(group, only_reads, Instant::now()) {
            Some(Choice::Lane(lane)) => return Ok(Some(lane)),
            Some(Choice::Wait) => {}
            None => return Ok(None),
        }
        let waits = self.attachment.enter(Attachment::AwaitingLane);
        let opened = self.unless_gone(tokio::time::timeout(patience, group.wait())).await?;
        drop(waits);
        Ok(match opened {
            Ok(Ok(Ok(()))) => match self.context.pool.lane(group, only_reads, Instant::now()) {
                Some(Choice::Lane(lane)) => Some(lane),
                Some(Choice::Wait) | None => group.lane(),
            },
            Ok(Ok(Err(_)) | Err(_)) | Err(_) => group.lane(),
        })
    }

    /// SELECT of a database: the first use is verified upstream, so that an error is the server's own.
    async fn select(self: &Rc<Self>, index: u32, muted: bool) -> Result<(), ClientClose> {
        let Some((key, identity)) = self.lane_key() else { return Err(ClientClose::Denied) };
        // Each attempt would cost a connection.
        if index != 0
            && let Some(words) =
                self.context.server.missing_capabilities().refusal_of(Capability::Select, identity.name())
        {
            self.error(&words, muted);
            return Ok(());
        }
        let group = self.context.pool.group(LaneKey { database: index, ..key }, &identity);
        if !group.is_verified() {
            // Counted as a user of the key while it waits, so that the lane is not closed for want of one.
            let session = group.attach();
            let deadline = self.context.pool.wait_deadline();
            let ready = self.unless_gone(self.context.pool.lane_ready(&group, deadline)).await;
            drop(session);
            match ready? {
                Ok(()) => {}
                // Of this very database.
                Err(why @ Unavailable::SelectRefused(_)) => {
                    return self.unserved(&why, Aftermath::Nothing, 1, muted);
                }
                Err(why) => return self.unserved(&why, Aftermath::Closed, 1, muted),
            }
        }
        self.leave_group();
        self.session.borrow_mut().database = index;
        if !muted {
            self.reply(|out| encode::simple(out, "OK"));
        }
        Ok(())
    }

    /// A command that is in no table: the server is asked what it is, once per worker.
    async fn ask(self: &Rc<Self>, mut taken: PendingCommand) -> Result<(), ClientClose> {
        let Some(request) = Request::parse(&taken.request) else { return Err(ClientClose::ProtocolError) };
        let name = request.name().to_ascii_lowercase();
        let placement = match self.context.server.placement_of(&name) {
            Some(placement) => placement,
            None => match self.ask_about(&name).await? {
                Ok(placement) => placement,
                // Nobody knows what it would have changed.
                Err(why) => return self.unserved(&why, aftermath_of(&taken.request), 1, taken.muted),
            },
        };
        match placement {
            Placement::Lane => {
                let is_long = request.has_bulk_above(ALWAYS_TAKEN);
                taken.route = Route::Lane;
                if is_long {
                    self.leased(taken, Pin::Own).await
                } else {
                    self.over_a_lane(taken, Aftermath::Nothing).await
                }
            }
            Placement::Once | Placement::MayBlock => self.leased(taken, Pin::Own).await,
            Placement::Lasting => self.leased(taken, Pin::State).await,
        }
    }

    /// Asks the server where the command `name` may run, and remembers what it says. Where it may not be asked, a
    /// connection that nobody uses afterwards is safe for others.
    pub(in crate::downstream) async fn ask_about(
        self: &Rc<Self>,
        name: &[u8],
    ) -> Result<Result<Placement, Unavailable>, ClientClose> {
        let Some((_, identity)) = self.lane_key() else { return Err(ClientClose::Denied) };
        let (missing, user) = (self.context.server.missing_capabilities(), identity.name());
        if missing.has(Capability::CommandInfo, user) {
            return Ok(Ok(Placement::MayBlock));
        }
        let mut question = BytesMut::new();
        encode::command(&mut question, &[b"COMMAND", b"INFO", name]);
        let frames = match self.exchange(&question, 1).await? {
            Ok(frames) => frames,
            Err(why) => return Ok(Err(why)),
        };
        let answer = frames.first();
        if let Some(text) = answer.and_then(|answer| resp::error_text(answer)) {
            missing.record_refusal(Capability::CommandInfo, user, &String::from_utf8_lossy(text));
            return Ok(Ok(Placement::MayBlock));
        }
        match Described::read(answer.map_or(&b""[..], |answer| answer)) {
            Described::Known(placement) => {
                missing.record_support(Capability::CommandInfo, user);
                self.context.server.remember_placement(name, placement);
                Ok(Ok(placement))
            }
            // The server will say so; a module may bring it later.
            Described::Unknown => {
                missing.record_support(Capability::CommandInfo, user);
                Ok(Ok(Placement::Lane))
            }
            Described::NotAtAll => {
                missing.record_refusal(Capability::CommandInfo, user, "(an answer without a command)");
                Ok(Ok(Placement::MayBlock))
            }
        }
    }

    /// Whether the server may take by now what it did not take when it was last asked.
    pub(in crate::downstream) fn may_have_been_raised(&self, error: &RequestError) -> bool {
        *error == RequestError::BulkAboveLimit && self.is_logged_in() && !self.context.server.is_limit_fresh()
    }

    /// Asks the server anew how long an argument it takes.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream) async fn ask_for_limit(self: &Rc<Self>) -> Result<(), ClientClose> {
        let Some((_, identity)) = self.lane_key() else { return Err(ClientClose::Denied) };
        if let Some(question) = self.context.pool.limit_question(&identity) {
            match self.exchange(&question, 1).await? {
                Ok(answer) => self.context.pool.heed_limit(&identity, &answer),
                Err(why) => self.close_reason_for(&why).map_or(Ok(()), Err)?,
            }
        }
        self.context.server.limit_was_asked();
        Ok(())
    }

    /// An exchange of our own on the client's lane: the reply frames, or why there is no lane.
    pub(in crate::downstream) async fn exchange(
        self: &Rc<Self>,
        commands: &[u8],
        replies: u32,
    ) -> Result<Result<Vec<Bytes>, Unavailable>, ClientClose> {
        let Some(group) = self.current_group() else { return Err(ClientClose::Denied) };
        let lane = match self.ready_lane(&group).await? {
            Ok(lane) => lane,
            Err(why) => return Ok(Err(why)),
        };
        let (sender, receiver) = oneshot::channel();
        let then = Box::new(move |frames| drop(sender.send(frames)));
        let owner = Rc::clone(self) as Rc<dyn Receiver>;
        lane.exchange_for(Some(owner), commands, replies, Instant::now(), then);
        match self.unless_gone(receiver).await? {
            Ok(Ok(frames)) => Ok(Ok(frames)),
            Ok(Err(_)) | Err(_) => Err(ClientClose::UpstreamLost),
        }
    }

    /// A lane of `group`, as soon as there is one.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream) async fn ready_lane(
        &self,
        group: &Rc<Group>,
    ) -> Result<Result<Rc<Lane>, Unavailable>, ClientClose> {
        let deadline = self.context.pool.wait_deadline();
        loop {
            if let Err(why) = self.unless_gone(self.pool().lane_ready(group, deadline)).await? {
                return Ok(Err(why));
            }
            if let Some(lane) = self.lane_it_hears(group).or_else(|| group.lane()) {
                return Ok(Ok(lane));
            }
        }
    }

    /// What is answered beside the client's own connection: listings, kills, the control connection.
    pub(in crate::downstream) async fn answer_off_lane(
        self: &Rc<Self>,
        route: Route,
        request: &Bytes,
        muted: bool,
    ) -> Result<(), ClientClose> {
        let reply = match route {
            Route::Listen(listen, true) => return self.subscribe(listen, request, muted).await,
            Route::Listen(listen, false) => {
                self.catch_up().await?;
                self.unsubscribe(listen, request).await;
                return Ok(());
            }
            Route::Tracking => {
                // SELECT and HELLO on the lease have not looked for other lanes.
                self.leave_group();
                return self.track_on_lanes(request, muted).await.map(drop);
            }
            Route::PubSub => return self.pubsub(request, muted).await,
            Route::Misplaced => return self.misplaced(request, muted).await,
            Route::Clients(Class::ClientInfo) => self.unless_gone(self.client_info()).await?,
            Route::Clients(Class::ClientList) => self.unless_gone(self.client_list(request)).await?,
            Route::Clients(Class::ClientKill) => self.unless_gone(self.client_kill(request)).await?,
            Route::Clients(_) => self.unless_gone(self.client_unblock(request)).await?,
            Route::Proxy => self.unless_gone(self.proxy_command(request)).await?,
            _ => self.unless_gone(self.on_control(request)).await?,
        };
        let doomed = self.close_reason();
        // CLIENT KILL of oneself is answered first (`clientCommand` in redis `networking.c`). Whoever is closed for want of
        // an answer gets none.
        if !muted && doomed.is_none_or(|reason| reason == ClientClose::Killed) {
            self.send(&reply);
        }
        doomed.map_or(Ok(()), Err)
    }

    /// How a wait for a lease is queued for `pin`.
    pub(in crate::downstream) fn claim(pin: Pin) -> Claim {
        match pin {
            Pin::Blocked => Claim::BlockingLease,
            pin if pin.stands() => Claim::StandingLease,
            _ => Claim::Lease,
        }
    }
}
