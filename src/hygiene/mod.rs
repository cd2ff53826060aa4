//! Finds and kills the connections that dead proxies have left on the server.
//!
//! A proxy whose process or host is lost closes no connection, and the server keeps them until its own keepalive fails,
//! which can take hours. The names of connections identify their instance, and CLIENT LIST has their idle times. This
//! is sufficient: no key is written, and the proxies need not know each other.

pub mod check;
pub mod cleanup;
pub mod fleet;
mod options;
mod orphans;
mod reaper;
pub mod sizing;
mod sweep;
mod visit;

pub use options::HygieneOptions;
pub use orphans::{Orphan, Own, orphans};
pub use reaper::{Candidates, Reaper};
pub use sweep::{Swept, sweep};
pub use visit::{Visit, VisitError, config_value, info_field};
