//! Log lines, metrics, and the closed list of reasons that both use.

mod count;
mod labels;
pub mod logging;
mod metrics;
mod printable;
mod reason;
mod seconds;
mod series;
mod tracer;

pub use count::{Count, CountGuard};
#[cfg(feature = "otlp")]
pub use labels::SpanFate;
pub use labels::{
    Certificate, ElementFate, FleetRaise, Handshake, LineLoss, LoginOutcome, Origin, OrphanRound, Side,
    TriedOn,
};
pub use logging::{Log, LogFormat, LogOptions};
pub use metrics::{
    Counted, METRICS, PROCESS_METRICS, certificate_expires, client_closed, describe, publish_gauge,
    publish_tasks, release_seconds, seconds, upstream_closed,
};
pub use printable::{is_obeyed, printable};
pub use reason::{ClientClose, Reap, UpstreamClose};
pub use seconds::Seconds;
pub use series::{create_series, handshake_ended};
pub use tracer::{CommandOutcome, Tracer, TracingOptions};
#[cfg(feature = "otlp")]
pub use tracer::{CommandSpan, spans_ended};
