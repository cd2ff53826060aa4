//! What an operator sees: log lines, metrics, and the closed list of reasons that both use.

mod count;
pub mod logging;
mod metrics;
mod printable;
mod reason;

pub use count::{Count, CountGuard};
pub use logging::{Log, LogFormat, LogOptions};
pub use metrics::{
    CommandSeconds, Counted, METRICS, client_closed, describe, publish_gauge, publish_tasks, release_seconds,
    upstream_closed,
};
pub use printable::{is_obeyed, printable};
pub use reason::{ClientClose, Reap, UpstreamClose};
