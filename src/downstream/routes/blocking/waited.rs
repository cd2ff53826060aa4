//! How long a blocking call has waited elsewhere.

use std::time::Duration;

/// How a call has waited before it came here.
#[derive(Clone, Copy, Debug)]
pub(in crate::downstream) struct Waited {
    pub(super) time: Duration,
    /// In another process.
    pub(super) has_moved: bool,
    /// It has found nothing.
    pub(super) has_looked: bool,
}

impl Waited {
    /// It has just come.
    pub(in crate::downstream) const NOW: Self =
        Self { time: Duration::ZERO, has_moved: false, has_looked: false };

    /// It goes on in another hub.
    pub(super) fn elsewhere(self, has_looked: bool) -> Self {
        Self { has_moved: true, has_looked: self.has_looked || has_looked, ..self }
    }
}
