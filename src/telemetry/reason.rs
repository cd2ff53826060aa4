//! Reasons for closed connections: one closed list per side, used as metric label and as log field.

/// Why a client's connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientClose {
    /// The client closed (end of file).
    ClientEof,
    /// The client's connection failed: reset, keepalive, or its host left replies unanswered.
    ClientLost,
    /// The client asked: QUIT.
    Quit,
    /// CLIENT KILL named this client.
    Killed,
    /// The client broke the protocol; the error was sent.
    ProtocolError,
    /// An HTTP request (`POST`, `Host:`) came instead of RESP.
    Http,
    /// TLS came to a port without it.
    TlsOnPlain,
    /// Plain Redis came to a port with TLS.
    PlainOnTls,
    /// The TLS handshake failed; the log has the reason.
    TlsFailed,
    /// The TLS handshake took longer than `client.login_timeout`, or gave way to newer ones.
    TlsTimeout,
    /// One request was longer than `client.request_limit`.
    RequestLimit,
    /// Unsent replies exceeded `client.output_hard_limit`.
    OutputLimit,
    /// All clients held more than `client.memory_max`, and this one the most.
    Memory,
    /// Nothing was sent for `client.idle_timeout`.
    IdleTimeout,
    /// No login within `client.login_timeout`.
    LoginTimeout,
    /// It had not logged in, and gave way to a newer one: `client.max_unauthenticated`.
    GaveWay,
    /// The server, or the users file, no longer lets its user in.
    LoginRevoked,
    /// A command was not completed within `client.half_command_timeout`.
    HalfCommand,
    /// There was no server for its command within `pool.wait_timeout`.
    NoUpstream,
    /// A command that changes the meaning of later ones got no connection; the client got an error.
    StateRefused,
    /// The upstream connection was lost with this client's commands written and unanswered.
    UpstreamLost,
    /// The upstream connection that held this client's state was lost.
    LeaseLost,
    /// The connection that carried this client's subscriptions was lost: messages may be missing.
    SubscriptionLost,
    /// The server was restarted or replaced, and this client had used scripts, or HELLO, whose reply has changed.
    ServerChanged,
    /// No reply within `upstream.command_timeout` on a lease.
    CommandTimeout,
    /// It held a lease and was silent for `pool.lease_idle_timeout`.
    LeaseIdle,
    /// `client.max` clients were connected already.
    TooMany,
    /// `client.max_per_address` clients were connected from its address already.
    TooManyFromAddress,
    /// A listener beyond loopback in protected mode.
    Denied,
    /// The proxy is stopping.
    Shutdown,
    /// The process that has taken over serves the client; its connection stays open.
    TakenOver,
}

impl ClientClose {
    /// Every reason, for documentation and for handles made once.
    pub const ALL: [Self; 31] = [
        Self::ClientEof,
        Self::ClientLost,
        Self::Quit,
        Self::Killed,
        Self::ProtocolError,
        Self::Http,
        Self::TlsOnPlain,
        Self::PlainOnTls,
        Self::TlsFailed,
        Self::TlsTimeout,
        Self::RequestLimit,
        Self::OutputLimit,
        Self::Memory,
        Self::IdleTimeout,
        Self::LoginTimeout,
        Self::GaveWay,
        Self::LoginRevoked,
        Self::HalfCommand,
        Self::NoUpstream,
        Self::StateRefused,
        Self::UpstreamLost,
        Self::LeaseLost,
        Self::SubscriptionLost,
        Self::ServerChanged,
        Self::CommandTimeout,
        Self::LeaseIdle,
        Self::TooMany,
        Self::TooManyFromAddress,
        Self::Denied,
        Self::Shutdown,
        Self::TakenOver,
    ];

    /// Whether a connection of the server was lost that it needed, or the server is another one.
    #[must_use]
    pub fn is_by_the_server(self) -> bool {
        matches!(
            self,
            Self::UpstreamLost
                | Self::LeaseLost
                | Self::SubscriptionLost
                | Self::ServerChanged
                | Self::NoUpstream
        )
    }

    /// The label in metrics and logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::ClientEof => "client_eof",
            Self::ClientLost => "client_lost",
            Self::Quit => "quit",
            Self::Killed => "killed",
            Self::ProtocolError => "protocol_error",
            Self::Http => "http",
            Self::TlsOnPlain => "tls_on_plain_port",
            Self::PlainOnTls => "plain_on_tls_port",
            Self::TlsFailed => "tls_failed",
            Self::TlsTimeout => "tls_timeout",
            Self::RequestLimit => "request_limit",
            Self::OutputLimit => "output_limit",
            Self::Memory => "memory",
            Self::IdleTimeout => "idle_timeout",
            Self::LoginTimeout => "login_timeout",
            Self::GaveWay => "gave_way",
            Self::LoginRevoked => "login_revoked",
            Self::HalfCommand => "half_command",
            Self::NoUpstream => "no_upstream",
            Self::StateRefused => "state_refused",
            Self::UpstreamLost => "upstream_lost",
            Self::LeaseLost => "lease_lost",
            Self::SubscriptionLost => "subscription_lost",
            Self::ServerChanged => "server_changed",
            Self::CommandTimeout => "command_timeout",
            Self::LeaseIdle => "lease_idle",
            Self::TooMany => "too_many",
            Self::TooManyFromAddress => "too_many_from_address",
            Self::Denied => "denied",
            Self::Shutdown => "shutdown",
            Self::TakenOver => "taken_over",
        }
    }
}

/// Why an upstream connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamClose {
    /// A lane without clients, after `pool.linger`.
    Linger,
    /// A lane whose clients were silent for `pool.idle_timeout`.
    Idle,
    /// `pool.max_lifetime` passed.
    Lifetime,
    /// Another lane key or lease needed the permit.
    Turn,
    /// The state that needed the lease ended, and the connection was not provably clean.
    LeaseEnded,
    /// A clean lease that no client used within `pool.linger`.
    Parked,
    /// The client that held the lease left.
    ClientGone,
    /// A blocked lease gave way to a session that cannot do without one.
    Recalled,
    /// A blocking call's own deadline passed on a lease.
    Deadline,
    /// The server or the user turned out not to be fit for a hub, or for a lane that tells of keys by prefix.
    Unfit,
    /// The server closed, or the connection failed.
    Lost,
    /// The server sent data without a waiting slot, or violated the protocol.
    Desync,
    /// No progress for `upstream.stall_timeout` with commands outstanding.
    Stalled,
    /// Made only to see whether the server still lets a user in.
    LoginChecked,
    /// The server no longer lets the user in, or the users file has changed.
    LoginRevoked,
    /// The server's address changed, or it became a replica.
    Moved,
    /// Sentinels name another server as the master.
    Deposed,
    /// `upstream.url` names another server or user since a reload.
    Reloaded,
    /// PROXY RECONNECT.
    Reconnect,
    /// The proxy is stopping.
    Shutdown,
    /// Its task ended first, because the drain timeout expired.
    Cut,
}

impl UpstreamClose {
    /// Every reason, for documentation and for handles made once.
    pub const ALL: [Self; 21] = [
        Self::Linger,
        Self::Idle,
        Self::Lifetime,
        Self::Turn,
        Self::LeaseEnded,
        Self::Parked,
        Self::ClientGone,
        Self::Recalled,
        Self::Deadline,
        Self::Unfit,
        Self::Lost,
        Self::Desync,
        Self::Stalled,
        Self::LoginChecked,
        Self::LoginRevoked,
        Self::Moved,
        Self::Deposed,
        Self::Reloaded,
        Self::Reconnect,
        Self::Shutdown,
        Self::Cut,
    ];

    /// The label in metrics and logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Linger => "linger",
            Self::Idle => "idle",
            Self::Lifetime => "lifetime",
            Self::Turn => "turn",
            Self::LeaseEnded => "lease_ended",
            Self::Parked => "parked",
            Self::ClientGone => "client_gone",
            Self::Recalled => "recalled",
            Self::Deadline => "deadline",
            Self::Unfit => "unfit",
            Self::Lost => "lost",
            Self::Desync => "desync",
            Self::Stalled => "stalled",
            Self::LoginChecked => "login_checked",
            Self::LoginRevoked => "login_revoked",
            Self::Moved => "moved",
            Self::Deposed => "deposed",
            Self::Reloaded => "reloaded",
            Self::Reconnect => "reconnect",
            Self::Shutdown => "shutdown",
            Self::Cut => "cut",
        }
    }
}

/// The reason why an orphaned connection on the server was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reap {
    /// None of its instance's connections was active for `hygiene.orphan_after`: that instance is dead.
    DeadInstance,
    /// A connection of this very instance that is closed here, but not there.
    LeftBehind,
}

impl Reap {
    /// Every reason, for documentation and for handles made once.
    pub const ALL: [Self; 2] = [Self::DeadInstance, Self::LeftBehind];

    /// The label in metrics and logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::DeadInstance => "dead_instance",
            Self::LeftBehind => "left_behind",
        }
    }
}
