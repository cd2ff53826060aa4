//! What an operator sees: log lines, metrics, and the closed list of reasons that both use.

mod count;
mod labels;
pub mod logging;
mod metrics;
mod printable;
mod reason;
mod series;

pub use count::{Count, CountGuard};
pub use labels::{ElementFate, Handshake, LineLoss, LoginOutcome, OrphanRound, Side, TriedOn};
pub use logging::{Log, LogFormat, LogOptions};
pub use metrics::{
    CommandSeconds, Counted, METRICS, client_closed, describe, publish_gauge, publish_tasks, release_seconds,
    seconds, upstream_closed,
};
pub use printable::{is_obeyed, printable};
pub use reason::{ClientClose, Reap, UpstreamClose};
pub use series::{create_series, handshake_ended};
