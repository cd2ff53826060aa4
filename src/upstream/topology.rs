//! The known state of the servers of `upstream.url`, for listings. Written by the task that follows the Sentinels, read
//! by operators.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::HostPort;
use super::sentinel::MemberRow;

/// The servers of one process. Nothing in it decides anything.
#[derive(Debug, Default)]
pub struct Topology(Mutex<Option<Followed>>);

/// A service that Sentinels watch.
#[derive(Clone, Debug)]
pub struct Followed {
    /// Its service name.
    pub service: String,
    /// The master that is used, as announced, and since when.
    pub master: Option<(HostPort, Instant)>,
    /// The Sentinels.
    pub sentinels: Vec<MemberRow>,
    /// The last failover since the start.
    pub last_failover: Option<MasterSwitch>,
}

/// A failover that is over.
#[derive(Clone, Debug)]
pub struct MasterSwitch {
    /// From which master.
    pub from: HostPort,
    /// When commands went to the other one.
    pub at: Instant,
    /// How long they went to none.
    pub took: Duration,
}

impl Topology {
    /// The followed master; `None` without Sentinels.
    pub fn followed(&self) -> Option<Followed> {
        self.0.lock().clone()
    }

    /// Updates the shown state.
    pub fn show(&self, change: impl FnOnce(&mut Option<Followed>)) {
        change(&mut self.0.lock());
    }
}
