//! Where one command goes.

use crate::command::{Asked, Blocking, Class};
use crate::resp::{Protocol, Request};

use super::text::decimal;
use super::{Hello, Listen, Policy, Session, answers};

/// Why a session needs an upstream connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pin {
    /// WATCH, until EXEC, DISCARD or UNWATCH.
    Watch,
    /// A transaction that has not wholly arrived, or holds more than plain commands.
    Multi,
    /// Subscriptions.
    Subscribed,
    /// MONITOR.
    Monitor,
    /// CLIENT TRACKING ON, on a server that cannot track for lanes.
    Tracking,
    /// CLIENT NO-TOUCH ON.
    NoTouch,
    /// A blocking call.
    Blocked,
    /// WAIT and WAITAOF, which speak of their own connection's writes.
    Wait,
    /// DEBUG and SHUTDOWN, which stall or end their connection.
    Own,
    /// A command that makes connection state which is not modelled here.
    State,
}

impl Pin {
    /// What listings show of a client that waits in the blocking hub, which pins nothing.
    pub const HUB: &'static str = "blocking hub";

    /// Every pin, for documentation and for handles made once.
    pub const ALL: [Self; 10] = [
        Self::Watch,
        Self::Multi,
        Self::Subscribed,
        Self::Monitor,
        Self::Tracking,
        Self::NoTouch,
        Self::Blocked,
        Self::Wait,
        Self::Own,
        Self::State,
    ];

    /// Whether it lasts for as long as the client pleases. A share of the leases is kept from those.
    #[must_use]
    pub fn stands(self) -> bool {
        match self {
            Self::Subscribed
            | Self::Monitor
            | Self::Tracking
            | Self::NoTouch
            | Self::Blocked
            | Self::State => true,
            Self::Watch | Self::Multi | Self::Wait | Self::Own => false,
        }
    }

    /// The word in metrics, listings and errors.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Watch => "WATCH",
            Self::Multi => "MULTI",
            Self::Subscribed => "SUBSCRIBE",
            Self::Monitor => "MONITOR",
            Self::Tracking => "TRACKING",
            Self::NoTouch => "NO-TOUCH",
            Self::Blocked => "blocking call",
            Self::Wait => "WAIT",
            Self::Own => "own connection",
            Self::State => "connection state",
        }
    }
}

/// Where one command goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Over the session's lane.
    Lane,
    /// MULTI: over the lane when the block is whole and plain, else on a lease.
    Transaction,
    /// Answered here, without the server.
    Local(Class),
    /// Answered here with this error (no leading `-`).
    Refuse(String),
    /// On a connection of the session's own.
    Lease(Pin),
    /// CLIENT TRACKING, where the server tracks for lanes.
    Tracking,
    /// SUBSCRIBE and its kin (`true`) or UNSUBSCRIBE and its kin, in the pub/sub hub.
    Listen(Listen, bool),
    /// A call that may block.
    Blocking(Blocking),
    /// AUTH, or HELLO with AUTH: verified upstream.
    Login(Hello),
    /// SELECT of another database: verified upstream at its first use.
    Select(u32),
    /// On the control connection, which no client's command delays.
    Control,
    /// CLIENT LIST, INFO, KILL, UNBLOCK: our clients here, the server's others by the control connection.
    Clients(Class),
    /// A question about subscribers: the server's answer, corrected.
    PubSub,
    /// A command that is in no table: the server is asked once what it is.
    Ask,
    /// The same, from a RESP2 subscriber, who may not run it: the server is asked in which words it is refused.
    Misplaced,
    /// PROXY …: about ourselves.
    Proxy,
}

/// Bytes of one argument that every server takes: `proto-max-bulk-len` cannot be set lower (redis `config.c`). What is longer
/// may end its connection, because the limit may have been lowered at any time.
pub const ALWAYS_TAKEN: usize = 1 << 20;

/// What a server says that is no node of a cluster.
const NO_CLUSTER: &str = "ERR This instance has cluster support disabled";

impl Route {
    /// The same for a command that may end its connection: on none that others share.
    fn alone(self) -> Self {
        match self {
            Self::Lane | Self::PubSub | Self::Control => Self::Lease(Pin::Own),
            // No address, name or id is so long; and on the server itself it would be about our connections, too.
            Self::Clients(_) => Self::Refuse("ERR syntax error".to_owned()),
            Self::Blocking(_) => Self::Lease(Pin::Blocked),
            Self::Listen(..) => Self::Lease(Pin::Subscribed),
            // Of these nothing goes over a connection that others share, or only what we ask of our own accord.
            Self::Transaction
            | Self::Local(_)
            | Self::Refuse(_)
            | Self::Lease(_)
            | Self::Login(_)
            | Self::Select(_)
            | Self::Tracking
            | Self::Ask
            | Self::Misplaced
            | Self::Proxy => self,
        }
    }
}

impl Session {
    /// Decides where `request` goes. Nothing changes until it has succeeded there.
    #[must_use]
    pub fn route(&self, asked: &Asked, request: &Request<'_>, policy: Policy) -> Route {
        if request.has_bulk_above(ALWAYS_TAKEN) {
            return self.shared_route(asked, request, policy).alone();
        }
        self.shared_route(asked, request, policy)
    }

    #[inline]
    fn shared_route(&self, asked: &Asked, request: &Request<'_>, policy: Policy) -> Route {
        if self.user.is_none() {
            return self.route_before_login(asked, request);
        }
        if let Some(route) = self.route_after_refusal(asked) {
            return route;
        }
        if let Some(refusal) = policy.refusal(asked, self) {
            return Route::Refuse(refusal);
        }
        if let Some(refusal) = answers::arity_error(asked, request) {
            return Route::Refuse(refusal);
        }
        if self.is_restricted() {
            return restricted(asked, request);
        }
        match asked.class {
            Class::Pass | Class::Publish | Class::Ping => Route::Lane,
            Class::PubSub => Route::PubSub,
            Class::Multi => Route::Transaction,
            // Without MULTI or WATCH these answer from the connection's (empty) state, the same on every lane.
            Class::Exec | Class::Discard | Class::Unwatch => Route::Lane,
            Class::Watch => Route::Lease(Pin::Watch),
            Class::Select => select(self, request),
            Class::Auth | Class::Hello => match login(self, asked.class, request) {
                Route::Login(hello) if hello.credentials.is_some() && self.listens > 0 => {
                    Route::Refuse(answers::AUTH_WHILE_HELD.to_owned())
                }
                route => route,
            },
            Class::Quit
            | Class::Reset
            | Class::ClientSetName
            | Class::ClientGetName
            | Class::ClientSetInfo
            | Class::ClientId
            | Class::ClientReply
            | Class::ClientNoEvict
            | Class::ClientCaching
            | Class::ClientTrackingInfo
            | Class::ClientGetRedir
            | Class::ClientCapa
            | Class::ClientImportSource
            | Class::ClientUnknown
            | Class::ClientHelp => Route::Local(asked.class),
            Class::ClientNoTouch => Route::Lease(Pin::NoTouch),
            Class::ClientTracking => Route::Tracking,
            Class::ClientList | Class::ClientInfo | Class::ClientKill | Class::ClientUnblock => {
                Route::Clients(asked.class)
            }
            Class::Subscribe
            | Class::PSubscribe
            | Class::SSubscribe
            | Class::Unsubscribe
            | Class::PUnsubscribe
            | Class::SUnsubscribe => subscription(asked.class, policy),
            Class::Monitor => Route::Lease(Pin::Monitor),
            Class::Blocking(command) => Route::Blocking(command),
            Class::Wait => Route::Lease(Pin::Wait),
            Class::Asking if !policy.cluster => Route::Refuse(NO_CLUSTER.to_owned()),
            Class::ReadOnly if !policy.readonly => Route::Refuse(NO_CLUSTER.to_owned()),
            // It ends what no lane has; whether that is an error is for the server to say.
            Class::ReadWrite if !policy.readonly => Route::Lane,
            Class::ReadOnly | Class::ReadWrite => Route::Local(asked.class),
            Class::Asking | Class::Lease => Route::Lease(Pin::State),
            Class::Control => Route::Control,
            Class::Own => Route::Lease(Pin::Own),
            Class::Refused(refusal) => Route::Refuse(refusal.error().to_owned()),
            Class::Proxy => Route::Proxy,
            Class::Unknown => Route::Ask,
        }
    }

    /// Whether subscriptions leave this client only what a RESP2 subscriber may do (`processCommand` in redis
    /// `server.c`).
    #[must_use]
    pub fn is_restricted(&self) -> bool {
        self.listens > 0 && self.protocol == Protocol::Resp2
    }

    /// Before a login only AUTH, HELLO, QUIT and RESET run (flag `no-auth` in redis `src/commands/*.json`). Arguments are
    /// counted first, as there (`processCommand` in redis `server.c`).
    fn route_before_login(&self, asked: &Asked, request: &Request<'_>) -> Route {
        if let Some(refusal) = answers::misfit(asked, request) {
            return Route::Refuse(refusal);
        }
        match asked.class {
            Class::Auth | Class::Hello => login(self, asked.class, request),
            Class::Quit | Class::Reset => Route::Local(asked.class),
            _ => Route::Refuse(answers::rejection(asked, "NOAUTH Authentication required.".to_owned())),
        }
    }
}

/// HELLO or AUTH.
fn login(session: &Session, class: Class, request: &Request<'_>) -> Route {
    let parsed = if class == Class::Auth { Hello::of_auth(request) } else { Hello::of_hello(request) };
    match parsed {
        Err(text) => Route::Refuse(text),
        Ok(hello) if hello.credentials.is_none() && session.user.is_none() => Route::Refuse(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time"
                .to_owned(),
        ),
        Ok(hello) => Route::Login(hello),
    }
}

/// SELECT: nothing to do, a database to verify, or an error (`selectCommand` in redis `db.c`).
pub(super) fn select(session: &Session, request: &Request<'_>) -> Route {
    let refuse = |text: &str| Route::Refuse(text.to_owned());
    let Some(index) = request.arg(1).and_then(decimal) else {
        return refuse("ERR value is not an integer or out of range");
    };
    if i32::try_from(index).is_err() {
        return refuse("ERR value is out of range, value must between -2147483648 and 2147483647");
    }
    match u32::try_from(index) {
        Err(_) => refuse("ERR DB index is out of range"),
        Ok(index) if index == session.database => Route::Local(Class::Select),
        Ok(index) => Route::Select(index),
    }
}

/// (P|S)SUBSCRIBE and (P|S)UNSUBSCRIBE: the hub's, where there is one.
fn subscription(class: Class, policy: Policy) -> Route {
    match Listen::of(class) {
        Some((listen, join)) if policy.pubsub_hub => Route::Listen(listen, join),
        _ => Route::Lease(Pin::Subscribed),
    }
}

/// What a RESP2 subscriber may do.
fn restricted(asked: &Asked, request: &Request<'_>) -> Route {
    match asked.class {
        Class::Unknown => Route::Misplaced,
        Class::Quit | Class::Reset | Class::Ping => Route::Local(asked.class),
        class => match Listen::of(class) {
            Some((listen, join)) => Route::Listen(listen, join),
            None => {
                let misfit = answers::misfit(asked, request).map(|text| answers::rejection(asked, text));
                Route::Refuse(misfit.unwrap_or_else(|| answers::not_while_subscribed(asked)))
            }
        },
    }
}
