//! What the pages show, as the parts above this room tell it.

use serde_json::Value;

use super::dashboard::Sample;

/// What the pages show.
pub trait View {
    /// The metrics in Prometheus' text format.
    fn metrics(&self) -> impl Future<Output = String>;
    /// Names under which the pages may be asked for, beside the address that is listened on (`admin.hosts`).
    fn hosts(&self) -> Vec<String>;
    /// Whether new clients are served now; if not, why.
    ///
    /// # Errors
    /// What is missing, in a few words.
    fn readiness(&self) -> Result<(), &'static str>;
    /// The whole picture.
    fn status(&self) -> impl Future<Output = Value>;
    /// The numbers that the dashboard keeps for each second.
    fn sample(&self) -> Sample;
}
