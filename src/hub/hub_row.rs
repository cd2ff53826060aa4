//! One row of the listing of hubs.

use std::time::Duration;

use crate::pool::Kind;

/// A hub, and what waits there.
#[derive(Clone, Debug)]
pub struct HubRow {
    /// Whose it is: the number of the worker.
    pub worker: usize,
    /// Of which node of a cluster; `None` without one.
    pub node: Option<String>,
    /// Blocking or pub/sub.
    pub kind: Kind,
    /// The user that it is logged in as.
    pub user: String,
    /// How long its connection has been open; `None`: it has none yet.
    pub open_for: Option<Duration>,
    /// Blocked calls, or subscribers.
    pub waiting: usize,
    /// Keys that are watched, or names that are subscribed to.
    pub names: usize,
    /// Requests without an answer.
    pub in_flight: usize,
}
