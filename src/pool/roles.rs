//! What the server's role says about the lanes: they are for where the name points, and after a failover that is another
//! server, though nobody has closed the connections to this one.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

/// Between two looks where the name points now, while writes are refused: growing from the first to the second.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(15)];

/// The role of the server that lanes were made to.
#[derive(Debug, Default)]
pub(super) struct Roles {
    pub(super) is_replica: Cell<bool>,
    /// Some server of this name was a master: a replica there is not what clients are meant to write to.
    pub(super) was_master: Cell<bool>,
    pub(super) asked: Cell<Option<Instant>>,
    /// How many demotions lanes have been left for.
    pub(super) heeded: Cell<u64>,
    looked: Cell<Option<Instant>>,
    pause: Cell<Duration>,
}

impl Roles {
    /// Takes note of what a login has told; `None`: nothing. Returns whether the new connection's server is a replica.
    pub(super) fn met(&self, is_replica: Option<bool>) -> bool {
        if let Some(is_replica) = is_replica {
            self.is_replica.set(is_replica);
        }
        if is_replica == Some(false) {
            self.was_master.set(true);
            self.looked.set(None);
        }
        self.is_replica.get()
    }

    /// Whether the name may point to a master by now. The next time is later each time.
    pub(super) fn may_look(&self, now: Instant) -> bool {
        let [first, longest] = PAUSES;
        let pause = match self.looked.get() {
            None if self.was_master.get() => first,
            None => longest,
            Some(_) => self.pause.get(),
        };
        let Some(last) = self.looked.get() else {
            self.looked.set(Some(now));
            self.pause.set(pause);
            return false;
        };
        if now.saturating_duration_since(last) < pause {
            return false;
        }
        self.looked.set(Some(now));
        self.pause.set((pause * 2).min(longest));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(roles: &Roles, seconds: u64) -> Vec<u64> {
        let start = Instant::now();
        (0..seconds).filter(|&second| roles.may_look(start + Duration::from_secs(second))).collect()
    }

    #[test]
    fn after_a_demotion_the_pauses_grow_to_the_longest() {
        let roles = Roles::default();
        assert!(!roles.met(Some(false)));
        assert!(roles.met(Some(true)));
        assert_eq!(looks(&roles, 80), [1, 3, 7, 15, 30, 45, 60, 75]);
        // A master in between, and it begins anew.
        assert!(!roles.met(Some(false)));
        assert_eq!(looks(&roles, 8), [1, 3, 7]);
    }

    #[test]
    fn a_replica_from_the_beginning_is_left_rarely() {
        let roles = Roles::default();
        assert!(roles.met(Some(true)));
        assert_eq!(looks(&roles, 50), [15, 30, 45]);
    }
}
