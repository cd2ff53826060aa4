//! The clients' side: accept, and for each client read, route, write.
//!
//! A [`Worker`] is one thread and owns everything it touches. Reading order: `listener` → `accept`
//! (→ `handshake`) → `worker` → `life` → `drive` (the fast path) → `slow` and what it leads to (`leased`, `blocking`,
//! `login`, `clients`; `unserved` where there is no connection).

mod accept;
mod backpressure;
mod blocking;
mod client;
mod clients;
mod counted;
mod drive;
mod farewell;
mod handshake;
mod identity;
mod leased;
mod life;
mod links;
mod listener;
mod login;
mod memory;
mod misplaced;
mod options;
mod places;
mod proxy_commands;
mod queued;
mod recheck;
mod rights;
mod secured;
mod server_change;
mod slow;
mod socket;
mod subscriptions;
mod tls;
mod tracking;
mod undelivered;
mod unserved;
mod wire;
mod worker;

pub use accept::Doorkeeper;
pub use identity::{Account, Cost, Directory, PasswordHash, StaticUser, toll};
pub use links::{Accepted, Incoming, Link, Links, Message};
pub use listener::{ListenError, Listener, UNIX, listen};
pub use options::{
    AdminCommands, AuthMode, AuthOptions, ClientAuth, ClientOptions, ListenOptions, ListenTlsOptions,
    MemoryMax,
};
pub use places::{Limits, Places};
pub use subscriptions::OutputLimit;
pub use tls::ServerTls;
pub use worker::Terms;
pub(crate) use worker::Worker;

use undelivered::undelivered;
