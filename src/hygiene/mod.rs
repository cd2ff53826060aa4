//! Nothing outlives its owner: what dead proxies left on the server is found and killed.
//!
//! A proxy whose process or host is gone closes nothing, and the server keeps its connections until its own keepalive,
//! for hours or for ever. Their names say whose they are, and CLIENT LIST says how long they have been idle; that is
//! enough, without a key written and without the proxies knowing of each other.

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
