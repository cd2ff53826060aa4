//! Blocked leases that can be called back.
//!
//! A blocking call loses nothing when its lease is taken away: our FIN makes the server forget the call, unless it has
//! answered already, and then the answer comes before the server's own FIN. So when a session that cannot do without a
//! lease waits, the call that has held one longest gives it up and goes on by tries on a lane.

use std::rc::Rc;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Pool;

/// The place of a blocking call in the list of leases that can be called back. It ends with this value, so that a
/// recall never goes to a call that is over.
#[derive(Debug)]
pub struct Blocked {
    pool: Rc<Pool>,
    entry: Rc<Notify>,
}

impl Blocked {
    /// Returns when the lease is wanted back.
    pub async fn reclaimed(&self) {
        self.entry.notified().await;
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.pool.blocked.borrow_mut().retain(|other| !Rc::ptr_eq(other, &self.entry));
    }
}

impl Pool {
    /// Enters a blocking call in the list, until the value returned is dropped.
    #[must_use]
    pub fn blocked(self: &Rc<Self>) -> Blocked {
        let entry = Rc::new(Notify::new());
        self.blocked.borrow_mut().push(Rc::clone(&entry));
        let pressure = self.shared.budget.pressure();
        if pressure.leases + pressure.hubs + pressure.lanes > 0 {
            // Who waits was announced when this lease was not yet in the list.
            self.release_under_pressure(pressure, Instant::now());
        }
        Blocked { pool: Rc::clone(self), entry }
    }

    /// Calls back the `count` leases held longest. Returns how many there were.
    pub(super) fn reclaim(&self, count: usize) -> usize {
        let mut blocked = self.blocked.borrow_mut();
        let count = count.min(blocked.len());
        for entry in blocked.drain(..count) {
            entry.notify_one();
        }
        count
    }
}
