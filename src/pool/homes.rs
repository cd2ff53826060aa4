//! Which workers serve which keys, where there are not lanes enough for every worker to have one of each.
//!
//! A lane belongs to one worker, so a key in use takes a lane on each. Where the cap does not allow for that, lanes of every
//! worker would change their keys for every few commands ([`super::rotation`]), even where there are as many lanes as keys. So
//! each key is then served by as few workers as there are lanes for, its homes, and its sessions go there.

mod plan;
mod record;

use std::rc::Rc;

use tokio::time::Instant;

use super::group::BUSY;
use super::{Group, Pool, Tracked};
use crate::telemetry::UpstreamClose;

pub use record::{Homes, Housing};

impl Pool {
    /// Looks which keys this worker, the one with number `me`, serves. Returns what holds from now on if that is not as before.
    pub fn find_homes(self: &Rc<Self>, me: usize, now: Instant) -> Option<Housing> {
        if !self.shared.homes.is_of_several() {
            return None;
        }
        let groups: Vec<_> = self.groups.borrow().values().cloned().collect();
        let used = groups.iter().filter(|group| group.sessions() > 0 && group.key().tracked == Tracked::No);
        let used = used.map(|group| (group.key(), group.sessions())).collect();
        let lanes = self.shared.budget.lanes_at_most();
        let plan = self.shared.homes.report(me, used, lanes);
        self.is_crowded.set(!plan.is_empty());
        let mut changed = false;
        for group in &groups {
            let home = plan.get(&group.key()).filter(|homes| !homes.contains(&me));
            let home = home.and_then(|homes| homes.get(me % homes.len())).copied();
            changed |= group.set_home(home);
            if self.is_crowded.get() {
                self.give_up_spare_lanes(group, now);
            }
        }
        let sends_away = groups.iter().any(|group| group.home().is_some());
        let housing = Housing { keys: plan.len(), lanes, sends_away };
        (self.housing.replace(housing) != housing || changed).then_some(housing)
    }

    /// Lanes are wanted elsewhere: one is enough for a key, and none for one whose sessions belong to another worker.
    fn give_up_spare_lanes(&self, group: &Group, now: Instant) {
        let mut lanes = group.lanes();
        lanes.retain(|lane| !lane.is_leaving() && !lane.is_held(BUSY, now));
        lanes.sort_by_key(|lane| lane.used());
        if group.home().is_none() {
            lanes.pop();
        } else {
            // Sessions that cannot go, as those over TLS, use theirs.
            let linger = self.shared.options.get().linger;
            lanes.retain(|lane| {
                lane.outstanding() == 0 && now.saturating_duration_since(lane.used()) >= linger
            });
        }
        for lane in lanes {
            lane.leave(UpstreamClose::Turn);
        }
    }

    /// How many lanes one key may have.
    pub(super) fn lanes_per_key(&self) -> usize {
        if self.is_crowded.get() { 1 } else { self.shared.options.get().lanes_per_key }
    }
}
