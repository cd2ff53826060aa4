//! What a session's own upstream connection holds, and when it holds nothing any more.
//!
//! A lease ends by a reply, never by a request: a WATCH that was sent may be refused, an EXEC may be one without
//! MULTI (which leaves the watch on), an UNSUBSCRIBE may leave other channels. So every command that is sent pushes an
//! [`Expect`], and the reply that answers it changes the state. Commands whose meaning depends on that state wait until
//! all replies are in ([`Plan::AfterReplies`]); the rest is pipelined as it comes.

use std::collections::{HashSet, VecDeque};

use bytes::{Bytes, BytesMut};

use crate::command::{Asked, Blocking, Class};
use crate::resp::{self, Protocol, ReplyKind, Request, encode};

use super::queued::{self, Member, Sent};
use super::transaction::Transaction;
use super::{Flags, Hello, Listen, Pin, Placement, Policy, ReplyMode, Route, Session, answers, tracking};

/// What a command that was sent on the lease is answered by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// One reply that changes nothing.
    Reply,
    /// That of a command which may leave state on the connection that is not modelled here, unless it is an error.
    State,
    /// That of PUBLISH, or of a question about subscribers: this request's, whose count is corrected.
    Counted(Bytes),
    /// A blocking call's: it may take as long as it likes.
    Blocking,
    /// MULTI's.
    Multi,
    /// EXEC's.
    Exec,
    /// DISCARD's.
    Discard,
    /// WATCH's.
    Watch,
    /// UNWATCH's.
    Unwatch,
    /// SELECT's.
    Select(u32),
    /// CLIENT TRACKING ON or OFF.
    Tracking(bool),
    /// CLIENT NO-TOUCH on or off.
    NoTouch(bool),
    /// MONITOR's +OK.
    Monitor,
    /// Confirmations, `left` of them; `None`: one for each subscription, at least one.
    Confirm(Listen, Option<usize>),
    /// The reply to our own PUBLISH before WAIT: kept back unless it is an error, which WAIT's reply then gives way to.
    WaitPublish,
    /// WAIT's or WAITAOF's.
    Wait,
    /// HELLO's: ours is sent instead.
    Hello(Hello),
    /// The server's refusal of a command made to be refused: this is sent instead.
    Instead(Bytes),
    /// +QUEUED, or a refusal, of what this is in the open transaction.
    Queued(Member),
}

impl Expect {
    /// Bytes of requests and replies that are kept for it.
    fn kept(&self) -> usize {
        match self {
            Self::Counted(bytes) | Self::Instead(bytes) => bytes.len(),
            Self::Queued(member) => member.kept(),
            Self::Reply
            | Self::State
            | Self::Blocking
            | Self::Multi
            | Self::Exec
            | Self::Discard
            | Self::Watch
            | Self::Unwatch
            | Self::Select(_)
            | Self::Tracking(_)
            | Self::NoTouch(_)
            | Self::Monitor
            | Self::Confirm(..)
            | Self::WaitPublish
            | Self::Wait
            | Self::Hello(_) => 0,
        }
    }

    /// Whether what follows may mean something else after this reply.
    fn is_unsettling(&self) -> bool {
        matches!(self, Self::Multi | Self::Confirm(..))
    }
}

/// What to do with a frame from upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// It belongs to the client.
    Forward,
    /// A published message or a confirmation: it belongs to the client in any reply mode (`CLIENT_PUSHING` in redis
    /// `pubsub.c`).
    Message,
    /// It stays here.
    Swallow,
    /// The client gets this instead.
    Instead(Bytes),
    /// The client gets the reply to this request instead, which is made beside the connection; then
    /// [`LeaseState::has_answered`] is to be called.
    Beside(Bytes),
    /// Nothing waits for it: the connection cannot be trusted any more.
    Desync,
}

/// What to do with the client's next command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Send it; this answers it.
    Forward(Expect),
    /// Send a PUBLISH nobody reads in front of it, in one write: WAIT speaks of its connection's last write.
    ForwardWait,
    /// Not before all earlier replies are in.
    AfterReplies,
    /// Answered here.
    Local(Class),
    /// Refused here.
    Refuse(String),
    /// Refused here, and the transaction on the server must fail with it.
    RefuseInMulti(String),
    /// Send this in its place; the server queues it.
    Queue(Bytes, Member),
    /// Send HELLO with this protocol.
    Hello(Hello),
    /// A call that may block, on this connection.
    Blocking(Blocking),
    /// A call that may block, beside this connection.
    Wait(Blocking),
    /// RESET or QUIT: the lease ends with what it holds.
    End(Class),
    /// CLIENT LIST, KILL, UNBLOCK, or a command for the control connection.
    Aside(Route),
}

impl Plan {
    /// Whether its reply is dropped, as CLIENT REPLY has it; what counts commands in `session` counts this one.
    pub fn is_muted(&self, session: &mut Session) -> bool {
        match self {
            Self::Local(class) | Self::End(class) => session.mutes_answer(*class),
            Self::Forward(_)
            | Self::ForwardWait
            | Self::AfterReplies
            | Self::Refuse(_)
            | Self::RefuseInMulti(_)
            | Self::Queue(..)
            | Self::Hello(_)
            | Self::Blocking(_)
            | Self::Wait(_)
            | Self::Aside(_) => session.mutes_this(),
        }
    }
}

/// The state of a leased connection.
#[derive(Debug)]
pub struct LeaseState {
    fifo: VecDeque<(Expect, bool)>,
    ever_sent: u64,
    /// Bytes of requests and replies that are kept in it.
    kept: usize,
    /// How many of them may open a transaction or add subscriptions.
    unsettling: usize,
    channels: HashSet<Bytes>,
    patterns: HashSet<Bytes>,
    shards: HashSet<Bytes>,
    multi: Option<Transaction>,
    watching: bool,
    tracking: bool,
    no_touch: bool,
    /// CLIENT CACHING was sent last: it is about the next command.
    caching: bool,
    monitor: bool,
    /// State that is not modelled: until the client leaves or resets.
    for_good: bool,
    clean: bool,
    failed_publish: Option<Bytes>,
}

/// What is asked beside the lease and its session.
pub trait Beside {
    /// What is known of the server.
    fn facts(&self) -> answers::ServerFacts;
    /// The reply to `request` with our hubs taken out of its count and their clients put in; `None`: it stays.
    fn counted(&self, request: &[u8], reply: &[u8]) -> Option<Bytes>;
}

impl Default for LeaseState {
    fn default() -> Self {
        Self::new()
    }
}

impl LeaseState {
    /// A lease on a fresh connection.
    #[must_use]
    pub fn new() -> Self {
        Self {
            fifo: VecDeque::new(),
            ever_sent: 0,
            kept: 0,
            unsettling: 0,
            channels: HashSet::new(),
            patterns: HashSet::new(),
            shards: HashSet::new(),
            multi: None,
            watching: false,
            tracking: false,
            no_touch: false,
            caching: false,
            monitor: false,
            for_good: false,
            clean: true,
            failed_publish: None,
        }
    }

    /// Whether the connection holds nothing any more and all replies are in.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.fifo.is_empty() && !self.holds_state()
    }

    /// Whether what was carried is known to leave nothing behind, so that another session may use the connection.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.clean && self.is_over()
    }

    /// Whether replies are outstanding.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.fifo.is_empty()
    }

    /// Whether nothing but outstanding replies holds the connection, and none of them can bring it new state: what
    /// follows waits for the end of the lease, or a client that pipelines without a pause would keep it for ever.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        let changes_nothing = |(expect, _): &(Expect, bool)| {
            matches!(expect, Expect::Reply | Expect::Counted(_) | Expect::Blocking | Expect::Unwatch)
        };
        !self.fifo.is_empty() && !self.holds_state() && self.fifo.iter().all(changes_nothing)
    }

    /// Whether the oldest reply comes only when its command has waited for something: such a client counts as idle.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        matches!(self.fifo.front(), Some((Expect::Blocking | Expect::Wait, _)))
    }

    /// Whether the server tells this client which keys change that it has read.
    #[must_use]
    pub fn is_tracking(&self) -> bool {
        self.tracking
    }

    /// How many commands were ever sent.
    #[must_use]
    pub fn ever_sent(&self) -> u64 {
        self.ever_sent
    }

    /// How many of them have been answered.
    #[must_use]
    pub fn ever_answered(&self) -> u64 {
        self.ever_sent - self.fifo.len() as u64
    }

    /// Whether a command that is sent now may be queued: what CLIENT CACHING said is about the whole transaction.
    #[must_use]
    pub fn may_be_in_multi(&self) -> bool {
        self.multi.is_some() || self.unsettling > 0
    }

    /// Whether a transaction is open.
    #[must_use]
    pub fn is_in_multi(&self) -> bool {
        self.multi.is_some()
    }

    /// How many commands are outstanding.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.fifo.len()
    }

    /// Bytes of requests and replies that are kept here, for commands under way and for the open transaction.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept + self.multi.as_ref().map_or(0, Transaction::kept)
    }

    /// Whether a command means the same now as when the outstanding replies are in, as far as a transaction and
    /// subscriptions give it another meaning.
    fn is_settled(&self) -> bool {
        self.multi.is_none() && !self.is_subscribed() && self.unsettling == 0
    }

    fn holds_state(&self) -> bool {
        self.multi.is_some() || self.watching || self.stands()
    }

    /// Whether what holds the connection lasts for as long as the client pleases ([`Pin::stands`]).
    #[must_use]
    pub fn stands(&self) -> bool {
        self.tracking || self.no_touch || self.monitor || self.for_good || self.is_subscribed()
    }

    /// Whether commands are being queued.
    #[must_use]
    pub fn is_queueing(&self) -> bool {
        self.multi.is_some()
    }

    fn is_subscribed(&self) -> bool {
        !(self.channels.is_empty() && self.patterns.is_empty() && self.shards.is_empty())
    }

    /// The pin to show while the lease is held; `None` when only outstanding replies hold it.
    #[must_use]
    pub fn pin(&self) -> Option<Pin> {
        if self.monitor {
            Some(Pin::Monitor)
        } else if self.is_subscribed() {
            Some(Pin::Subscribed)
        } else if self.multi.is_some() {
            Some(Pin::Multi)
        } else if self.watching {
            Some(Pin::Watch)
        } else if self.tracking {
            Some(Pin::Tracking)
        } else if self.no_touch {
            Some(Pin::NoTouch)
        } else if self.for_good {
            Some(Pin::State)
        } else {
            None
        }
    }

    /// What CLIENT LIST shows.
    #[must_use]
    pub fn flags(&self) -> Flags {
        Flags {
            blocked: self.is_blocked(),
            multi: self.multi.as_ref().map(Transaction::queued),
            watching: self.watching,
            monitor: self.monitor,
            tracking: self.tracking,
            no_touch: self.no_touch,
            readonly: false,
            no_evict: false,
            channels: self.channels.len(),
            patterns: self.patterns.len(),
            shards: self.shards.len(),
        }
    }

    /// Decides what becomes of the client's next command. `unknown` is what the server has said of it, where our table
    /// does not have it.
    #[must_use]
    pub fn plan(
        &self,
        session: &Session,
        asked: &Asked,
        request: &Request<'_>,
        policy: Policy,
        unknown: Placement,
    ) -> Plan {
        match asked.class {
            // What it may do as a subscriber depends on the protocol, and every answer of ours is written in it.
            _ if self.protocol_is_about_to_change() => return Plan::AfterReplies,
            _ if session.is_restricted() && !self.is_waiting() => {}
            _ if session.is_restricted() => return Plan::AfterReplies,
            _ if !policy.allows(asked) && self.is_waiting() => return Plan::AfterReplies,
            _ if !policy.allows(asked) => {}
            Class::Publish => {
                return Plan::Forward(Expect::Counted(Bytes::copy_from_slice(request.bytes())));
            }
            Class::Pass | Class::Ping => return Plan::Forward(Expect::Reply),
            Class::Multi => return Plan::Forward(Expect::Multi),
            Class::Exec => return Plan::Forward(Expect::Exec),
            Class::Discard => return Plan::Forward(Expect::Discard),
            Class::Watch => return Plan::Forward(Expect::Watch),
            Class::Unwatch => return Plan::Forward(Expect::Unwatch),
            Class::ClientReply if answers::is_silent_mode(request) && self.is_settled() => {
                return Plan::Local(Class::ClientReply);
            }
            _ if self.is_waiting() => return Plan::AfterReplies,
            _ => {}
        }
        if self.multi.is_some() {
            let policy = Policy { tracked_lanes: policy.tracked_lanes && !self.tracking, ..policy };
            return match queued::sent(session, asked, request, policy, unknown) {
                Sent::Itself(member) => Plan::Forward(member.map_or(Expect::Reply, Expect::Queued)),
                Sent::StandIn(frame, member) => Plan::Queue(frame, member),
                Sent::Refused(text) => Plan::RefuseInMulti(text),
                Sent::Nothing => Plan::End(asked.class),
            };
        }
        let route = session.route(asked, request, policy);
        if self.is_subscribed() && session.protocol == Protocol::Resp2 {
            return self.plan_while_subscribed(&route, asked, request, unknown);
        }
        match route {
            Route::Lane | Route::Transaction => Plan::Forward(Expect::Reply),
            Route::Ask => Plan::Forward(unknown.expected()),
            Route::Local(Class::Quit | Class::Reset) => Plan::End(asked.class),
            Route::Local(Class::ClientCaching | Class::ClientTrackingInfo | Class::ClientGetRedir)
                if self.tracking =>
            {
                Plan::Forward(Expect::Reply)
            }
            Route::Local(Class::Select) => Plan::Forward(Expect::Select(session.database)),
            Route::Local(class) => Plan::Local(class),
            Route::Refuse(text) => Plan::Refuse(text),
            Route::Select(index) => Plan::Forward(Expect::Select(index)),
            Route::Login(hello) if hello.credentials.is_some() => {
                Plan::Refuse(answers::AUTH_WHILE_HELD.to_owned())
            }
            Route::Login(hello) => Plan::Hello(hello),
            Route::Blocking(command) if self.must_block_here() => Plan::Blocking(command),
            Route::Blocking(command) => Plan::Wait(command),
            Route::Lease(pin) => self.plan_pin(pin, asked, request),
            Route::Tracking
                if self.tracking || !policy.tracked_lanes || tracking::holds_alone(session, request) =>
            {
                self.plan_pin(Pin::Tracking, asked, request)
            }
            Route::Tracking
            | Route::Control
            | Route::Clients(_)
            | Route::Proxy
            | Route::Listen(..)
            | Route::PubSub
            | Route::Misplaced => Plan::Aside(route),
        }
    }

    /// Whether a HELLO is outstanding, or an EXEC with one in its transaction.
    fn protocol_is_about_to_change(&self) -> bool {
        let is_queueing = |(expect, _): &(Expect, bool)| matches!(expect, Expect::Queued(Member::Hello(_)));
        match self.fifo.back() {
            Some((Expect::Hello(_), _)) => true,
            Some((Expect::Exec, _)) => {
                self.multi.as_ref().is_some_and(Transaction::switches_protocol)
                    || self.fifo.iter().any(is_queueing)
            }
            Some(_) | None => false,
        }
    }

    /// Whether a call that may block belongs on this very connection: to be refused (MONITOR), or because of what was
    /// said there that is not known here. Elsewhere it waits beside the connection, which keeps what it holds: the keys
    /// of WATCH and of tracking are touched by anybody's call alike.
    fn must_block_here(&self) -> bool {
        self.monitor || self.for_good || self.caching
    }

    /// The command that makes (or ends) connection state, for a lease that is there.
    fn plan_pin(&self, pin: Pin, asked: &Asked, request: &Request<'_>) -> Plan {
        let on = |index: usize| request.arg(index).is_some_and(|word| word.eq_ignore_ascii_case(b"on"));
        let given = Some(request.argc() - 1);
        match pin {
            Pin::Wait => Plan::ForwardWait,
            Pin::Monitor => Plan::Forward(Expect::Monitor),
            Pin::Tracking if request.args().any(|word| word.eq_ignore_ascii_case(b"redirect")) => {
                Plan::Refuse("ERR The client ID you want redirect to does not exist".to_owned())
            }
            Pin::Tracking => Plan::Forward(Expect::Tracking(on(2))),
            Pin::NoTouch => Plan::Forward(Expect::NoTouch(on(2))),
            Pin::Subscribed => match asked.class {
                Class::Subscribe => Plan::Forward(Expect::Confirm(Listen::Channels, given)),
                Class::PSubscribe => Plan::Forward(Expect::Confirm(Listen::Patterns, given)),
                Class::SSubscribe => Plan::Forward(Expect::Confirm(Listen::Shards, given)),
                Class::Unsubscribe => Plan::Forward(unsubscribe(Listen::Channels, request)),
                Class::PUnsubscribe => Plan::Forward(unsubscribe(Listen::Patterns, request)),
                _ => Plan::Forward(unsubscribe(Listen::Shards, request)),
            },
            Pin::State => Plan::Forward(Expect::State),
            Pin::Own if asked.class == Class::PubSub => {
                Plan::Forward(Expect::Counted(Bytes::copy_from_slice(request.bytes())))
            }
            Pin::Blocked if let Class::Blocking(command) = asked.class => Plan::Blocking(command),
            Pin::Watch | Pin::Multi | Pin::Blocked | Pin::Own => Plan::Forward(Expect::Reply),
        }
    }

    /// A RESP2 subscriber may do little else (`processCommand` in redis `server.c`); the server says so for what
    /// reaches it, this for what would not.
    fn plan_while_subscribed(
        &self,
        route: &Route,
        asked: &Asked,
        request: &Request<'_>,
        unknown: Placement,
    ) -> Plan {
        match asked.class {
            Class::Unknown => Plan::Forward(unknown.expected()),
            Class::Quit | Class::Reset => Plan::End(asked.class),
            Class::Subscribe
            | Class::PSubscribe
            | Class::SSubscribe
            | Class::Unsubscribe
            | Class::PUnsubscribe
            | Class::SUnsubscribe => self.plan_pin(Pin::Subscribed, asked, request),
            _ if answers::arity_error(asked, request).is_some() => match route {
                Route::Refuse(text) => Plan::Refuse(text.clone()),
                _ => Plan::Forward(Expect::Reply),
            },
            _ => Plan::Refuse(answers::not_while_subscribed(asked)),
        }
    }

    /// Notes that a command was sent; `muted` keeps its reply from the client. Tells whether it may leave state.
    pub fn sent(&mut self, expect: Expect, asked: &Asked, muted: bool) {
        let known = matches!(
            asked.class,
            Class::Pass | Class::Publish | Class::PubSub | Class::Ping | Class::Blocking(_) | Class::Unwatch
        ) || matches!(asked.class, Class::Multi | Class::Exec | Class::Discard | Class::Watch);
        self.clean &= match &expect {
            Expect::Queued(member) => member.leaves_nothing(),
            _ => known, // the command itself was sent
        };
        self.caching = asked.class == Class::ClientCaching;
        self.unsettling += usize::from(expect.is_unsettling());
        self.kept += expect.kept();
        self.ever_sent += 1;
        self.fifo.push_back((expect, muted));
    }

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

    /// The server's refusal of our PUBLISH before WAIT, until WAIT's own reply comes.
    #[must_use]
    pub fn refused_publish(&self) -> Option<&[u8]> {
        self.failed_publish.as_deref()
    }

    /// Whether the reply now arriving is kept from the client.
    #[must_use]
    pub fn mutes_next(&self, mode: ReplyMode) -> bool {
        match self.fifo.front() {
            Some((_, muted)) => *muted,
            // What MONITOR shows is a reply, not a push (`replicationFeedMonitors` in redis `replication.c`).
            None => self.monitor && mode == ReplyMode::Off,
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
                        "ERR redbouncer: WAIT needs PUBLISH, which the server refused; see docs/compatibility.md",
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
        let aborted = frame.starts_with(b"-EXECABORT");
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

/// UNSUBSCRIBE with names is confirmed once per name, without names once per subscription (or once with nil).
fn unsubscribe(listen: Listen, request: &Request<'_>) -> Expect {
    let named = request.argc() - 1;
    Expect::Confirm(listen, (named > 0).then_some(named))
}

impl Hello {
    /// Makes the session what the accepted HELLO asked for (the identity aside).
    pub fn apply(self, session: &mut Session) {
        if let Some(protocol) = self.protocol {
            session.protocol = protocol;
        }
        if let Some(name) = self.name {
            session.name = name[..].into();
        }
    }
}
