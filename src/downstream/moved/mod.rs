//! A client that goes on in another process: what it has set, and how that is written.
//!
//! It moves between two commands, when every reply has reached the kernel: then the session, the names that it is subscribed to
//! and the bytes of a command that has begun are all there is.

mod way;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::resp::Protocol;
use crate::session::tracking::{Caching, Tracking};
use crate::session::{Credentials, Endpoint, Library, Listen, ReplyMode, Session};

pub use way::{Accepts, Announced, Leaving, Verdict, WayOut};

/// A client on its way to another process.
#[derive(Debug)]
pub struct MovedClient {
    /// What it has set.
    pub description: ClientDescription,
    /// Its connection.
    pub socket: OwnedFd,
}

/// What one client has set, as it is written in messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientDescription {
    /// CLIENT ID.
    pub id: u64,
    /// Where it comes from: an address, or the path of a Unix socket.
    pub peer: Peer,
    /// It came by a listener that only this host can reach.
    pub trusted: bool,
    /// What it has logged in with; `None`: it need not.
    pub login: Option<Login>,
    /// The selected database.
    pub database: u32,
    /// HELLO 3.
    pub resp3: bool,
    /// READONLY.
    pub readonly: bool,
    /// CLIENT REPLY.
    pub replies: Replies,
    /// CLIENT SETNAME.
    pub name: Vec<u8>,
    /// CLIENT SETINFO: name and version.
    pub library: Option<(Vec<u8>, Vec<u8>)>,
    /// CLIENT NO-EVICT.
    pub no_evict: bool,
    /// It knows what HELLO has said of the server.
    pub knows_greeting: bool,
    /// It has used scripts or functions.
    pub knows_scripts: bool,
    /// Bytes of a command that has begun.
    pub input: Vec<u8>,
    /// For how long it has been connected.
    pub age: Duration,
    /// For how long it has sent nothing.
    pub idle: Duration,
    /// What it is subscribed to.
    #[serde(default)]
    pub subscribed: Option<Subscribed>,
    /// Its blocking call.
    #[serde(default)]
    pub blocked: Option<Blocked>,
    /// It has had CLIENT TRACKING on.
    #[serde(default)]
    pub tracked: Option<Tracked>,
}

/// Client-side caching of a client. What it has cached it is to forget: nobody tells it of changes meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    /// It is on.
    pub is_on: bool,
    /// OPTIN.
    pub opt_in: bool,
    /// OPTOUT.
    pub opt_out: bool,
    /// CLIENT CACHING applies to the next command.
    pub is_next_marked: bool,
    /// NOLOOP.
    pub no_loop: bool,
    /// BCAST: of which keys.
    #[serde(default)]
    pub prefixes: Option<Vec<Vec<u8>>>,
    /// It has received an invalidation for each key that it may have cached.
    #[serde(default)]
    pub has_forgotten: bool,
}

impl Tracked {
    /// `tracking`, or none any more.
    pub(super) fn of(tracking: Option<&Tracking>) -> Self {
        let caching = tracking.map_or(Caching::All, |tracking| tracking.caching);
        Self {
            is_on: tracking.is_some(),
            opt_in: caching == Caching::OptIn,
            opt_out: caching == Caching::OptOut,
            is_next_marked: tracking.is_some_and(|tracking| tracking.is_next_marked),
            no_loop: tracking.is_some_and(|tracking| tracking.no_loop),
            has_forgotten: false,
            prefixes: tracking
                .and_then(|tracking| tracking.prefixes.as_ref())
                .map(|prefixes| prefixes.iter().map(|prefix| prefix.to_vec()).collect()),
        }
    }

    fn tracking(&self) -> Option<Tracking> {
        let caching = match (self.opt_in, self.opt_out) {
            (true, _) => Caching::OptIn,
            (false, true) => Caching::OptOut,
            (false, false) => Caching::All,
        };
        let Self { is_next_marked, no_loop, .. } = *self;
        let prefixes = self.prefixes.as_ref();
        let prefixes = prefixes.map(|all| all.iter().map(|prefix| Bytes::copy_from_slice(prefix)).collect());
        self.is_on.then_some(Tracking { caching, is_next_marked, no_loop, prefixes, redirect: None })
    }
}

/// A blocking call that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// The whole canonical request.
    pub request: Vec<u8>,
    /// For how long it has waited.
    pub waited: Duration,
    /// When it came, since 1970: calls are in this order, which the time between two processes must not change.
    pub since: Duration,
    /// It has found nothing.
    pub has_looked: bool,
    /// Its reply is not wanted.
    pub muted: bool,
}

/// What a client is subscribed to, and how two processes tell which of them gives it a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribed {
    /// SUBSCRIBE.
    pub channels: Vec<Vec<u8>>,
    /// PSUBSCRIBE.
    pub patterns: Vec<Vec<u8>>,
    /// SSUBSCRIBE.
    pub shards: Vec<Vec<u8>>,
    /// A channel that both processes listen to: what is published before the one message there comes from the old one, what is
    /// published behind it from the new one.
    pub divider: String,
}

impl Subscribed {
    /// The names of one kind.
    pub(in crate::downstream) fn names(&self, listen: Listen) -> &[Vec<u8>] {
        match listen {
            Listen::Channels => &self.channels,
            Listen::Patterns => &self.patterns,
            Listen::Shards => &self.shards,
        }
    }
}

/// [`Endpoint`] as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// TCP.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(String),
}

/// [`ReplyMode`] as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Replies {
    /// All of them.
    On,
    /// None.
    Off,
    /// None for the next command.
    SkipNext,
}

/// A name and its secret. No `Debug` of the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    username: Option<String>,
    password: Vec<u8>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Login {
    pub(super) fn new(username: Option<String>, password: &[u8]) -> Self {
        Self { username, password: password.to_vec() }
    }

    pub(super) fn credentials(&self) -> Credentials {
        Credentials { username: self.username.clone(), password: Zeroizing::new(self.password.clone()) }
    }
}

impl From<&Endpoint> for Peer {
    fn from(endpoint: &Endpoint) -> Self {
        match endpoint {
            Endpoint::Tcp(address) => Self::Tcp(*address),
            Endpoint::Unix(path) => Self::Unix(path.to_string()),
        }
    }
}

impl Peer {
    pub(super) fn endpoint(&self) -> Endpoint {
        match self {
            Self::Tcp(address) => Endpoint::Tcp(*address),
            Self::Unix(path) => Endpoint::Unix(path.as_str().into()),
        }
    }
}

impl From<ReplyMode> for Replies {
    fn from(mode: ReplyMode) -> Self {
        match mode {
            ReplyMode::On => Self::On,
            ReplyMode::Off => Self::Off,
            ReplyMode::SkipNext => Self::SkipNext,
        }
    }
}

impl ClientDescription {
    /// What is carried over into `session`, of the same user.
    pub(super) fn restore(&self, session: &mut Session) {
        session.database = self.database;
        session.protocol = if self.resp3 { Protocol::Resp3 } else { Protocol::Resp2 };
        session.readonly = self.readonly;
        session.replies = match self.replies {
            Replies::On => ReplyMode::On,
            Replies::Off => ReplyMode::Off,
            Replies::SkipNext => ReplyMode::SkipNext,
        };
        session.name = self.name.as_slice().into();
        session.library = self.library.as_ref().map(|(name, version)| {
            Box::new(Library { name: name.as_slice().into(), version: version.as_slice().into() })
        });
        session.no_evict = self.no_evict;
        session.tracking = self.tracked.as_ref().and_then(Tracked::tracking).map(Box::new);
    }
}
