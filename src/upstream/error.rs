//! Errors of dials: the step that failed, and its cause.
//!
//! Each failure has two texts. `Display` is for the operator's log: it may contain addresses, never a credential.
//! [`DialError::public_text`] is for the waiting client, and contains no address of the server.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::tls::TlsFault;
use crate::resp::ErrorCode;

/// The steps of a dial, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The host name's addresses are looked up.
    Resolve,
    /// TCP's handshake.
    Connect,
    /// TLS's handshake.
    Tls,
    /// HELLO, AUTH, SELECT and their like.
    Login,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "name resolution",
            Self::Connect => "TCP connect",
            Self::Tls => "TLS handshake",
            Self::Login => "login",
        })
    }
}

/// A failed dial. `Clone`, because every waiter of the connection gets the same error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The Sentinels have not named a master of the service yet, or none that says that it is one.
    #[error("the Sentinels have named no master of {service} within {after:?}")]
    NoMaster {
        /// As in `upstream.url`.
        service: String,
        /// `upstream.connect_timeout`
        after: Duration,
    },
    /// The server is a replica. It was a master before, and another one is about to take its place.
    #[error("{peer} has become a replica; waiting for a master")]
    Demoted {
        /// The server's address.
        peer: SocketAddr,
    },
    /// No node of the cluster has told yet where its slots are.
    #[error("no node of the cluster has returned its slots within {after:?}")]
    NoSlots {
        /// `upstream.connect_timeout`
        after: Duration,
    },
    /// The name has no address, or the resolver did not answer: the network's or the configuration's fault.
    #[error("cannot resolve {host}: {cause}")]
    Resolve {
        /// The name, without its port.
        host: String,
        /// The resolver's error.
        cause: String,
    },
    /// No process listens there: the server is down, or the port is wrong.
    #[error("connection refused by {peer}")]
    Refused {
        /// The last address tried.
        peer: SocketAddr,
    },
    /// `upstream.connect_timeout` ended in this phase.
    #[error("{phase} with {peer} timed out after {after:?}{}", timeout_hint(*.phase))]
    Timeout {
        /// Where it hung.
        phase: Phase,
        /// The server's address, or its name while it had none.
        peer: String,
        /// The timeout, for TCP, TLS and login together.
        after: Duration,
    },
    /// The TLS handshake was refused, by us or by the server.
    #[error("TLS with {peer}: {fault}")]
    Tls {
        /// The server's address.
        peer: SocketAddr,
        /// The side that refused, and its reason.
        fault: TlsFault,
    },
    /// A plain connection to a port with TLS: `rediss://` is missing.
    #[error("{peer} uses TLS on this port: the URL must begin with rediss://")]
    SpeaksTls {
        /// The server's address.
        peer: SocketAddr,
    },
    /// The server refuses this user, or requires one.
    #[error("the server refuses the login: {text}")]
    Login {
        /// The server's error, code first (`WRONGPASS …`, `NOAUTH …`, `NOPERM …`, `DENIED …`), without a credential.
        text: String,
    },
    /// RESP3 was asked of a server that does not have it.
    #[error("the server does not support RESP3: {text}")]
    NoResp3 {
        /// Its answer to `HELLO 3`.
        text: String,
    },
    /// All of the server's client places are taken: back off.
    #[error("the server is at its connection limit: {text}")]
    MaxClients {
        /// The server's error.
        text: String,
    },
    /// Still loading its data after `upstream.loading_retry`, with required login commands unanswered.
    #[error("the server is still loading its data: {text}")]
    Loading {
        /// The server's error.
        text: String,
    },
    /// The database does not exist, or the user may not use it.
    #[error("the server refuses database {database}: {text}")]
    SelectRefused {
        /// The number asked for.
        database: u32,
        /// The server's error.
        text: String,
    },
    /// READONLY was asked of a server that is no cluster's, or that forbids it.
    #[error("the server refuses READONLY: {text}")]
    ReadOnlyRefused {
        /// The server's error.
        text: String,
    },
    /// CLIENT TRACKING was asked of a server that does not have it, or not for this user.
    #[error("the server refuses CLIENT TRACKING: {text}")]
    TrackingRefused {
        /// The server's error.
        text: String,
    },
    /// The server hung up in the middle.
    #[error("{peer} closed the connection during {phase}{}", closed_hint(*.phase, *.answered))]
    Closed {
        /// Where.
        phase: Phase,
        /// The server's address.
        peer: SocketAddr,
        /// Whether it had sent anything before.
        answered: bool,
    },
    /// The reply is not that of a Redis server.
    #[error("not a reply of a Redis server: {what}")]
    Protocol {
        /// A description of the problem, without any bytes of the server.
        what: String,
    },
    /// The operating system's error.
    #[error("{phase} with {peer}: {cause}")]
    Io {
        /// Where.
        phase: Phase,
        /// The server's address.
        peer: SocketAddr,
        /// Its kind, for decisions.
        kind: io::ErrorKind,
        /// Its words.
        cause: String,
    },
}

impl DialError {
    /// Whether the same dial may succeed soon without a change by an operator, so that clients should wait.
    pub fn retryable(&self) -> bool {
        match self {
            Self::NoMaster { .. }
            | Self::Demoted { .. }
            | Self::NoSlots { .. }
            | Self::Resolve { .. }
            | Self::Refused { .. }
            | Self::Timeout { .. }
            | Self::MaxClients { .. }
            | Self::Loading { .. }
            | Self::Closed { .. }
            | Self::Io { .. } => true,
            Self::Tls { fault, .. } => fault.retryable(),
            Self::SelectRefused { text, .. }
            | Self::ReadOnlyRefused { text }
            | Self::TrackingRefused { text } => ErrorCode::of_text(text).is_transient(),
            Self::SpeaksTls { .. } | Self::Login { .. } | Self::NoResp3 { .. } | Self::Protocol { .. } => {
                false
            }
        }
    }

    /// Whether the server has checked the user and refused it: the user is deleted, disabled, or has another password.
    /// (`DENIED` concerns the address instead.)
    pub fn refuses_identity(&self) -> bool {
        matches!(self, Self::Login { text } if ErrorCode::of_text(text) != ErrorCode::Denied)
    }

    /// Whether the connection was lost or hung, rather than refused with an error.
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Closed { .. } | Self::Io { .. } => true,
            Self::Tls { fault, .. } => fault.retryable(),
            Self::NoMaster { .. }
            | Self::Demoted { .. }
            | Self::NoSlots { .. }
            | Self::Resolve { .. }
            | Self::Refused { .. }
            | Self::SpeaksTls { .. }
            | Self::Login { .. }
            | Self::NoResp3 { .. }
            | Self::MaxClients { .. }
            | Self::Loading { .. }
            | Self::SelectRefused { .. }
            | Self::ReadOnlyRefused { .. }
            | Self::TrackingRefused { .. }
            | Self::Protocol { .. } => false,
        }
    }

    /// An I/O error, named as closely as possible.
    pub(super) fn from_io(phase: Phase, peer: SocketAddr, error: &io::Error) -> Self {
        if let Some(fault) = TlsFault::from_io(error) {
            return Self::Tls { peer, fault };
        }
        match (error.kind(), phase) {
            (io::ErrorKind::ConnectionRefused, _) => Self::Refused { peer },
            // A server that closes with unread bytes of ours resets the connection, which is equivalent here.
            (
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe,
                Phase::Tls | Phase::Login,
            ) => Self::Closed { phase, peer, answered: false },
            (kind, _) => Self::Io { phase, peer, kind, cause: error.to_string() },
        }
    }

    pub(super) fn protocol(what: &str) -> Self {
        Self::Protocol { what: what.to_owned() }
    }

    /// The whole error text for a client, code first and without the leading `-`; without address or credential.
    ///
    /// Where the server itself refused, in the server's own words.
    pub fn public_text(&self) -> String {
        let own = |what: &str| format!("ERR redbouncer: no upstream connection: {what}");
        match self {
            Self::Login { text }
            | Self::Loading { text }
            | Self::SelectRefused { text, .. }
            | Self::ReadOnlyRefused { text }
            | Self::TrackingRefused { text } => text.clone(),
            Self::NoMaster { .. } => own("no master is known"),
            Self::Demoted { .. } => own("the server has become a replica"),
            Self::NoSlots { .. } => own("no node of the cluster has returned its slots"),
            Self::Resolve { .. } => own("the server's name cannot be resolved"),
            Self::Refused { .. } => own("connection refused"),
            Self::Timeout { phase, after, .. } => own(&format!("{phase} timed out after {after:?}")),
            Self::Tls { fault, .. } => own(&format!("TLS: {}", fault.public_text())),
            Self::SpeaksTls { .. } => own("the server uses TLS on this port"),
            Self::NoResp3 { .. } => own("the server does not support RESP3"),
            Self::MaxClients { .. } => {
                own("the server is at its connection limit (max number of clients reached)")
            }
            Self::Closed { phase, .. } => own(&format!("the server closed the connection during {phase}")),
            Self::Protocol { .. } => own("the server does not respond as a Redis server"),
            Self::Io { phase, kind, .. } => own(&format!("{phase}: {kind}")),
        }
    }
}

/// The first word of a server's error.
pub(super) fn first_word(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

fn timeout_hint(phase: Phase) -> &'static str {
    match phase {
        Phase::Resolve | Phase::Connect | Phase::Login => "",
        // A plain Redis takes the first record for the beginning of a line and waits for its end.
        Phase::Tls => ", as with a server without TLS on this port",
    }
}

fn closed_hint(phase: Phase, answered: bool) -> &'static str {
    match phase {
        Phase::Resolve | Phase::Connect => "",
        // Redis cannot send its error about maxclients before the handshake, so it only hangs up.
        Phase::Tls => ", as a server at its maxclients or without TLS on this port does",
        Phase::Login if answered => "",
        Phase::Login => " without a reply, as a server that requires TLS on this port does",
    }
}
