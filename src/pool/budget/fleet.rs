//! The part of a total that all instances on a server share (`fleet.total_connections`): what this instance may grant of it.
//!
//! Somebody else decides how large the part is and registers it on the server. Here it is only kept: nothing is granted beyond
//! it, and nothing at all while it is in doubt, because what was registered may have gone with the connection that was lost.

use std::sync::atomic::Ordering;

use super::ledger::{FleetShare, State};
use super::{Budget, Kind};
use crate::pool::queue::Queue;

/// What this instance has and would like to have of the total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FleetDemand {
    /// Permits that are held.
    pub held: usize,
    /// What is used, and what is waited for.
    pub wanted: usize,
    /// No more than this by the cap, and by what another process has of it.
    pub most: usize,
    /// Another process takes this one's place.
    pub leaves: bool,
    /// What the process before this one still has.
    pub elsewhere: usize,
    /// To be given back to [`Budget::set_share`].
    pub doubts: u64,
}

impl FleetShare {
    /// Why there is nothing for clients, where there is nothing.
    pub(super) fn why_nothing(&self) -> Option<&'static str> {
        if !self.is_certain {
            Some(
                "redbouncer: no upstream connection, because this instance's claim is not registered on the server",
            )
        } else if self.share <= 1 {
            Some("redbouncer: this instance's share of fleet.total_connections is 0")
        } else {
            None
        }
    }
}

impl Budget {
    /// From now on the cap is not this instance's own: it has a part of `total`, at first none but the control connection.
    pub fn share_total(&self, total: usize) {
        let mut state = self.state.lock();
        state.fleet =
            Some(FleetShare { total, share: 1, instances: 1, is_certain: false, doubts: 0, missed: false });
        self.rebound(&mut state);
    }

    /// The part of the total; `None` where nothing is shared.
    #[must_use]
    pub fn fleet(&self) -> Option<FleetShare> {
        self.state.lock().fleet
    }

    /// What this instance has and would like to have.
    #[must_use]
    pub fn fleet_demand(&self) -> FleetDemand {
        let state = self.state.lock();
        let missed = state.fleet.is_some_and(|fleet| fleet.missed);
        let closing = state.closing();
        // A larger part does not help those whose user holds all it may.
        let helped = state.queues().flat_map(Queue::users).filter(|(user, _)| state.has_share(*user));
        let waiting: usize = helped.map(|(_, count)| count).sum();
        let waiting = waiting + usize::from(missed);
        // What is kept for other kinds does not help who waits: a larger part has to have room for both.
        let reserved: usize = match waiting {
            0 => 0,
            _ => state.floors.iter().zip(state.held).map(|(floor, held)| floor.saturating_sub(held)).sum(),
        };
        FleetDemand {
            held: state.holdings.len(),
            wanted: state.holdings.len() - closing + reserved + waiting,
            most: self.unshared_limit(&state),
            leaves: state.kept.is_some(),
            elsewhere: state.elsewhere,
            doubts: state.fleet.map_or(0, |fleet| fleet.doubts),
        }
    }

    /// `share` permits may be granted, of a total that so many instances share. What is held beyond is kept until it closes, and
    /// whoever holds more than he needs is asked to give it up. `as_of`: the part is registered, as it was found when this was
    /// [counted](Self::fleet_demand); a doubt since then stays. While another process takes over the part only falls, because that
    /// one was told how much this one may still open. Returns how many permits are held now.
    pub fn set_share(&self, share: usize, instances: usize, as_of: Option<u64>) -> usize {
        let mut state = self.state.lock();
        let leaves = state.kept.is_some();
        if let Some(fleet) = &mut state.fleet {
            let share = if leaves { share.min(fleet.share) } else { share };
            (fleet.share, fleet.instances) = (share, instances);
            if let Some(doubts) = as_of {
                fleet.missed = false;
                fleet.is_certain = fleet.doubts == doubts;
            }
        }
        self.rebound(&mut state);
        self.serve(&mut state);
        state.holdings.len()
    }

    /// What is registered may be gone: nothing is granted until it is registered again.
    pub fn doubt_share(&self) {
        self.doubt(&mut self.state.lock());
    }

    pub(super) fn doubt(&self, state: &mut State) {
        if let Some(fleet) = &mut state.fleet {
            fleet.doubts += 1;
            if std::mem::take(&mut fleet.is_certain) {
                self.share_wanted.notify_one();
            }
        }
    }

    /// Waits until somebody waits for a permit that the part does not allow, or the part is in doubt; at once when that happened
    /// since the last time.
    pub async fn share_wanted(&self) {
        self.share_wanted.notified().await;
    }

    /// How many permits there would be if nothing were shared.
    pub(super) fn unshared_limit(&self, state: &State) -> usize {
        let left = self.cap.load(Ordering::Relaxed).saturating_sub(state.elsewhere);
        state.kept.map_or(left, |kept| kept.min(left))
    }

    /// Whether the part of the total has room for one more. The control connection is not asked: it registers the part.
    pub(super) fn may_grant(&self, state: &State, kind: Kind) -> Option<bool> {
        let fleet = state.fleet?;
        if kind == Kind::Control {
            let is_first = state.held[Kind::Control as usize] == 0;
            return Some(is_first && state.holdings.len() < self.unshared_limit(state));
        }
        (!fleet.is_certain).then_some(false)
    }

    /// A permit was refused that nobody waits for.
    pub(super) fn note_missed(&self, state: &mut State, kind: Kind) {
        let limit = self.unshared_limit(state);
        if kind != Kind::Control
            && let Some(fleet) = &mut state.fleet
            && fleet.share < limit
        {
            fleet.missed = true;
            self.share_wanted.notify_one();
        }
    }
}
