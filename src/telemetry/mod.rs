//! What an operator sees: log lines, metrics, and the closed list of reasons that both use.

pub mod logging;
mod metrics;
mod reason;

pub use logging::{LogFormat, LogOptions};
pub use metrics::{CommandSeconds, Counted, METRICS, describe, publish_gauge, release_seconds};
pub use reason::{ClientClose, Reap, UpstreamClose};
