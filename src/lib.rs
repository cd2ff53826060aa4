//! redbouncer: PgBouncer for Redis.
//!
//! The modules are listed in reading order, which is import order: a module imports only from those above it
//! (`tests/it/structure.rs` holds the tree to that). The life of a command is told in `docs/architecture.md`.

pub mod telemetry;

pub mod shutdown;

pub mod resp;

pub mod command;

pub mod session;

pub mod upstream;

pub mod cluster;

pub mod pool;

pub mod nodes;

pub mod hub;

pub mod hygiene;

pub mod admin;

pub mod downstream;

pub mod takeover;

pub mod config;

pub mod proxy;

pub mod cli;

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
