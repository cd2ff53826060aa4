//! Who holds an upstream connection, in fields: what an operator needs to find the client and to end it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::command::{Row, number_of, rows};
use crate::session::Endpoint;

/// Signs of a name that are shown: it is the client's own word, and of any length.
const LONGEST_NAME: usize = 64;

/// Who a connection is for.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    /// The user it is logged in as, as a number; [`Holder::NOBODY`] where no user's cap applies.
    pub user: u64,
    /// The host of the client that it is for; `None` for what many clients use, and for Unix sockets.
    pub address: Option<IpAddr>,
    /// What listings show.
    pub who: Who<'a>,
}

/// What listings show of who holds a connection.
#[derive(Clone, Copy, Debug)]
pub enum Who<'a> {
    /// Many clients, or none: words for people.
    Words(&'a str),
    /// One client alone.
    Client(&'a Arc<HoldingClient>),
}

impl Holder<'_> {
    /// Counted for no user.
    pub const NOBODY: u64 = 0;
}

impl<'a> From<&'a str> for Holder<'a> {
    fn from(words: &'a str) -> Self {
        Self { user: Holder::NOBODY, address: None, who: Who::Words(words) }
    }
}

/// The same, kept.
#[derive(Clone, Debug)]
pub(super) enum Occupant {
    Words(String),
    Client(Arc<HoldingClient>),
}

impl From<Who<'_>> for Occupant {
    fn from(who: Who<'_>) -> Self {
        match who {
            Who::Words(words) => Self::Words(words.to_owned()),
            Who::Client(client) => Self::Client(Arc::clone(client)),
        }
    }
}

/// The client that holds a connection alone, as it was when it got it.
#[derive(Debug)]
pub struct HoldingClient {
    /// Its id, as CLIENT ID answers it.
    pub id: u64,
    /// CLIENT SETNAME, the first 64 signs; empty without one.
    pub name: String,
    /// Where it connects from.
    pub peer: Endpoint,
    /// Who it is.
    pub user: Option<Arc<str>>,
    /// The reason for the lease: the label of a `Pin`.
    pub pin: &'static str,
    /// The row of its last command on the connection, plus one; 0 for a command that has none. Written by its worker, read by
    /// whoever lists.
    command: AtomicU16,
}

impl HoldingClient {
    /// Of a client called `name`.
    #[must_use]
    pub fn new(id: u64, name: &[u8], peer: Endpoint, user: Option<Arc<str>>, pin: &'static str) -> Self {
        let name = String::from_utf8_lossy(name).chars().take(LONGEST_NAME).collect();
        Self { id, name, peer, user, pin, command: AtomicU16::new(0) }
    }

    /// It has sent a command of this row; `None`: one that is in no table.
    pub fn sends(&self, row: Option<&'static Row>) {
        let number = row.map_or(0, |row| u16::try_from(number_of(row) + 1).unwrap_or(0));
        self.command.store(number, Ordering::Relaxed);
    }

    /// Its last command; `unknown` for one that is in no table.
    #[must_use]
    pub fn command(&self) -> &'static str {
        let number = usize::from(self.command.load(Ordering::Relaxed));
        number.checked_sub(1).and_then(|at| rows().get(at)).map_or("unknown", |row| row.name)
    }

    /// Its user's name; empty without one.
    #[must_use]
    pub fn user(&self) -> &str {
        self.user.as_deref().unwrap_or_default()
    }
}
