//! The clients' side: accept, and for each client read, route, write.
//!
//! A [`Worker`] is one thread and owns everything it touches. Reading order: `accept` → `worker` → `life` → `drive` (the
//! fast path) → `slow` and what it leads to (`leased`, `blocking`, `login`, `clients`).

mod accept;
mod blocking;
mod client;
mod clients;
mod drive;
mod leased;
mod life;
mod links;
mod login;
mod options;
mod out;
mod places;
mod proxy_commands;
mod slow;
mod socket;
mod subscriptions;
mod undelivered;
mod worker;

pub use accept::{Doorkeeper, ListenError, Listener, listen};
pub use links::{Accepted, Link, Links, Message};
pub use login::Directory;
pub use options::{AdminCommands, AuthMode, AuthOptions, ClientOptions, ListenOptions};
pub use places::Places;
pub use subscriptions::OutputLimit;
pub use worker::Terms;
pub(crate) use worker::Worker;

use undelivered::undelivered;
