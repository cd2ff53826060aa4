//! What an operator asks a running proxy by HTTP: `/live`, `/ready`, `/metrics`, `/status`.
//!
//! This room only answers; what is to be said comes from the parts above it through [`View`].

mod connections;
mod deadlined;
mod http;
mod options;
mod status;

pub use http::{AdminError, Server, View};
pub use options::AdminOptions;
pub use status::status;
