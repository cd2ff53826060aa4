//! What goes through all workers one after the other: listings, kills, the end of a login.
//!
//! A client that changed its worker meanwhile could be met twice, or not at all. So none does while anything of the kind goes on.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

/// How many acts go on.
#[derive(Debug, Default)]
pub(super) struct Acts(Mutex<usize>);

/// One of them, until it is dropped.
pub(super) struct Act(Arc<Acts>);

/// None goes on, and none begins before this is dropped.
pub(super) struct Quiet<'a>(#[expect(dead_code, reason = "held for its drop")] MutexGuard<'a, usize>);

impl Acts {
    /// One begins.
    pub(super) fn begin(self: &Arc<Self>) -> Act {
        *self.0.lock() += 1;
        Act(Arc::clone(self))
    }

    /// `None`: something goes on.
    pub(super) fn quiet(&self) -> Option<Quiet<'_>> {
        let acts = self.0.lock();
        (*acts == 0).then_some(Quiet(acts))
    }
}

impl Drop for Act {
    fn drop(&mut self) {
        *self.0.0.lock() -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_quiet_when_every_act_has_ended() {
        let acts = Arc::new(Acts::default());
        assert!(acts.quiet().is_some());
        let (one, two) = (acts.begin(), acts.begin());
        assert!(acts.quiet().is_none());
        drop(one);
        assert!(acts.quiet().is_none());
        drop(two);
        assert!(acts.quiet().is_some());
    }
}
