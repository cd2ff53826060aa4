//! The state of one client between commands.

use std::sync::Arc;

use super::tracking::Tracking;
use crate::command::Class;
use crate::resp::Protocol;

/// Client ids start here, far above a server's own, and stay below 2^53 (the largest integer that every client
/// library reads exactly), so a merged CLIENT LIST never shows one id twice.
pub const FIRST_CLIENT_ID: u64 = 1 << 40;

/// The user of a client: a number that keys upstream connections, and the name for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Represents the identity in pool keys. Equal only for equal name and secret.
    pub id: u64,
    /// The user name as CLIENT LIST shows it.
    pub name: Arc<str>,
}

/// Which replies the client wants (CLIENT REPLY).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplyMode {
    /// All of them.
    #[default]
    On,
    /// None, until CLIENT REPLY ON.
    Off,
    /// None for the next command.
    SkipNext,
}

/// The client's library, from CLIENT SETINFO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Library {
    /// LIB-NAME; empty when unset.
    pub name: Box<[u8]>,
    /// LIB-VER; empty when unset.
    pub version: Box<[u8]>,
}

/// The state of a client that outlives a command.
#[derive(Debug, Default)]
pub struct Session {
    /// Our id for the client, as CLIENT ID returns it.
    pub id: u64,
    /// The user; `None` before a required login.
    pub user: Option<User>,
    /// The selected database.
    pub database: u32,
    /// The database a client starts in, and RESET returns to.
    pub home: u32,
    /// The protocol that HELLO has set.
    pub protocol: Protocol,
    /// Set by READONLY on a cluster: reads may go to a replica's keys.
    pub readonly: bool,
    /// Subscriptions in the pub/sub hub, of all kinds. In RESP2 they leave the client few other commands.
    pub listens: usize,
    /// A MULTI or WATCH that was refused for want of a connection.
    pub failed: Failed,
    /// CLIENT REPLY.
    pub replies: ReplyMode,
    /// CLIENT SETNAME; empty when unset.
    pub name: Box<[u8]>,
    /// CLIENT SETINFO, once it was used.
    pub library: Option<Box<Library>>,
    /// CLIENT NO-EVICT on. Remembered for listings; a proxy has no eviction.
    pub no_evict: bool,
    /// CLIENT TRACKING, unless a lease holds it.
    pub tracking: Option<Box<Tracking>>,
}

impl Session {
    /// A new client's session.
    #[must_use]
    pub fn new(id: u64, user: Option<User>, database: u32) -> Self {
        Self { id, user, database, home: database, ..Self::default() }
    }

    /// Whether the reply of the command now begun is kept from the client. Call once per command, before it runs.
    pub fn mutes_this(&mut self) -> bool {
        match self.replies {
            ReplyMode::On => false,
            ReplyMode::Off => true,
            ReplyMode::SkipNext => {
                self.replies = ReplyMode::On;
                true
            }
        }
    }

    /// As [`Self::mutes_this`], for a command of class `class` that is answered here. CLIENT REPLY judges for itself, by
    /// the mode it sets; RESET ends OFF before it answers, but not SKIP (`resetCommand` in redis `networking.c`).
    pub fn mutes_answer(&mut self, class: Class) -> bool {
        match class {
            Class::ClientReply => false,
            Class::Reset if self.replies == ReplyMode::Off => false,
            _ => self.mutes_this(), // whatever else is answered here has no say in it
        }
    }

    /// RESET: everything but the id and what CLIENT SETINFO said goes back to a new connection's state
    /// (`resetCommand` in redis `networking.c`). It also logs out: who a client is then, is not decided here.
    pub fn reset(&mut self) {
        self.user = None;
        self.database = self.home;
        self.protocol = Protocol::Resp2;
        self.readonly = false;
        self.failed = Failed::Nothing;
        self.replies = ReplyMode::On;
        self.name = Box::default();
        self.no_evict = false;
        self.tracking = None;
    }
}

/// The refusal that makes the client's next transaction fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Failed {
    /// Nothing.
    #[default]
    Nothing,
    /// A WATCH: the next transaction has no guard.
    Watch {
        /// The client had sent no command after it, so its next commands are sent with knowledge of the refusal.
        known: bool,
    },
    /// A MULTI: the transaction is open, and failed.
    Multi,
}
