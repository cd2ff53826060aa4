//! What a request asks for: the command table, the lookup, the keys, and blocking calls taken apart.
//!
//! A multiplexer is right or wrong by one question per command: does it make, or read, state on the connection it
//! runs on? `COMMAND` of the server cannot answer it (nothing there marks MULTI, WATCH or SELECT), so the answer is
//! written down here, one row per command, and `tests/it/command_table.rs` holds the rows against a running server.
//! Everything in this module is pure: bytes in, a decision out.

mod aftermath;
pub mod blocking;
mod class;
mod classify;
mod family;
pub mod glob;
mod keys;
mod reads;
mod row;
mod table;

pub use aftermath::Aftermath;
pub use class::{Blocking, Class, ROUTES, Refusal};
pub use classify::{Asked, classify, find};
pub use family::{FAMILIES, UNKNOWN_FAMILY, family, family_name};
pub use keys::{key_positions, keys};
pub use reads::READS;
pub use row::{Keys, Row};
pub use table::{number_of, rows};
