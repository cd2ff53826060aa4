//! What one worker has done about changes of the server.

use std::cell::Cell;

use crate::upstream::Change;

/// What one worker has done about changes.
#[derive(Debug, Default)]
pub(super) struct ServerChanges {
    pub(super) change: Cell<Change>,
    /// The version of the cluster's map that was last heeded.
    pub(super) nodes: Cell<u64>,
    /// Not all clients concerned could be closed yet.
    pub(super) unfinished: Cell<bool>,
    /// A dial is under way that shows whether the server is another one.
    pub(super) looking: Cell<bool>,
}
