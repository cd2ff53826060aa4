//! The handling of the client's next command on a lease.

use bytes::Bytes;

use super::LeaseState;
use super::expected::Expect;
use crate::command::{Asked, Blocking, Class};
use crate::resp::{Protocol, Request};
use crate::session::queued::{self, Member, Sent};
use crate::session::transaction::Transaction;
use crate::session::{Hello, Listen, Pin, Placement, Policy, Route, Session, answers};

/// The handling of the client's next command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Send it; this answers it.
    Forward(Expect),
    /// Send a PUBLISH without subscribers before it, in one write: WAIT refers to the last write of its connection.
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
    /// RESET or QUIT: the lease and its state end.
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

impl LeaseState {
    /// Decides the handling of the client's next command. `unknown` is the server's information about a command that is
    /// not in our table.
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
            Route::Tracking if self.tracking || !policy.tracked_lanes => {
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
}

/// UNSUBSCRIBE with names is confirmed once per name, without names once per subscription (or once with nil).
fn unsubscribe(listen: Listen, request: &Request<'_>) -> Expect {
    let named = request.argc() - 1;
    Expect::Confirm(listen, (named > 0).then_some(named))
}

impl Placement {
    /// The meaning of its reply on a lease.
    fn expected(self) -> Expect {
        match self {
            Self::Lane | Self::Once => Expect::Reply,
            Self::MayBlock => Expect::Blocking,
            Self::Lasting => Expect::State,
        }
    }
}
