//! What gives way to those that wait for a connection.

use std::rc::Rc;

use tokio::time::Instant;

use super::{Pool, Pressure};
use crate::telemetry::UpstreamClose;

impl Pool {
    /// Lets `waiting` others have a lane's place: the one longest in use (an idle one first) takes no new command,
    /// empties its FIFO and closes. Each has had at least `pool.min_turn`.
    fn rotate_lanes(self: &Rc<Self>, waiting: usize, now: Instant) {
        let mut lanes: Vec<_> = self.groups.borrow().values().flat_map(|group| group.lanes()).collect();
        let leaving = lanes.iter().filter(|lane| lane.is_leaving()).count();
        lanes.retain(|lane| {
            !lane.is_leaving()
                && now.saturating_duration_since(lane.opened()) >= self.shared.options.get().min_turn
        });
        lanes.sort_by_key(|lane| (lane.outstanding() > 0, lane.opened()));
        for lane in lanes.into_iter().take(waiting.saturating_sub(leaving)) {
            lane.leave(UpstreamClose::Turn);
        }
    }

    /// Gives up what others wait for: parked leases, then blocked ones where a session cannot do without a lease, and
    /// lanes in turn.
    pub fn release_under_pressure(self: &Rc<Self>, pressure: Pressure, now: Instant) {
        let for_sessions = pressure.leases + pressure.hubs;
        let waiting = for_sessions + pressure.blocking + pressure.lanes;
        let mut freed = 0;
        while freed < waiting {
            let Some((_, lease)) = self.parked.borrow_mut().pop() else { break };
            self.close(lease.stream, lease.permit, UpstreamClose::Turn, None);
            freed += 1;
        }
        let coming = freed + self.shared.budget.closing();
        // A parked lease does not stand.
        let reclaimed =
            self.reclaim((for_sessions + pressure.lanes).saturating_sub(coming) + pressure.standing);
        // Lanes beyond their floor live in permits that leases may have too.
        let unserved = for_sessions.saturating_sub(freed + reclaimed);
        let lanes = pressure.lanes + unserved.min(self.shared.budget.lanes_above_floor());
        if lanes > 0 {
            self.rotate_lanes(lanes, now);
        }
    }

    /// Lets those of `user` take turns who wait for a connection that only the user's own cap keeps from them: a parked
    /// lease is closed, else the lane longest in use (an idle one first) makes way.
    pub fn make_room_within(self: &Rc<Self>, user: u64, now: Instant) {
        let mut parked = self.parked.borrow_mut();
        if let Some(at) = parked.iter().position(|(_, lease)| lease.key.user == user) {
            let (_, lease) = parked.swap_remove(at);
            drop(parked);
            return self.close(lease.stream, lease.permit, UpstreamClose::Turn, None);
        }
        drop(parked);
        let mut lanes: Vec<_> = self.lanes_of(user).collect();
        if lanes.iter().any(|lane| lane.is_leaving()) {
            return; // one is on its way out
        }
        lanes.retain(|lane| {
            now.saturating_duration_since(lane.opened()) >= self.shared.options.get().min_turn
        });
        let first = lanes.into_iter().min_by_key(|lane| (lane.outstanding() > 0, lane.opened()));
        if let Some(lane) = first {
            lane.leave(UpstreamClose::Turn);
        }
    }
}
