//! What an operator asks a running proxy by HTTP: the dashboard, `/live`, `/ready`, `/metrics`, `/status`.
//!
//! This room only answers; what is to be said comes from the parts above it through [`View`].

mod connections;
mod dashboard;
mod deadlined;
mod http;
mod options;
mod status;
mod view;

pub use dashboard::Sample;
pub use http::{AdminError, Server};
pub use options::AdminOptions;
pub use status::{Rows, permits, sentinels, status};
pub use view::View;
