//! What is held and who waits, by kind and by user: counted, and nothing else.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::oneshot;

use super::holder::Occupant;
use super::kinds::{Claim, Holding, Kind, Phase};
use crate::pool::queue::{Queue, Waiting};

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) holdings: BTreeMap<u64, Holding>,
    pub(super) held: [usize; Kind::ALL.len()],
    /// How many permits there are now.
    pub(super) limit: usize,
    /// How many of the cap's the process before this one still has.
    pub(super) elsewhere: usize,
    /// How many are kept at most while another process takes over.
    pub(super) kept: Option<usize>,
    /// The part of a total that all instances share.
    pub(super) fleet: Option<FleetShare>,
    /// Of each kind, how many nobody else may have.
    pub(super) floors: [usize; Kind::ALL.len()],
    /// The users that have a cap of their own.
    pub(super) users: HashMap<u64, Share>,
    /// Leases that stand.
    pub(super) standing: usize,
    /// How many may.
    pub(super) standing_max: usize,
    pub(super) lanes: Queue<Grant>,
    pub(super) leases: Queue<Grant>,
    pub(super) standing_leases: Queue<Grant>,
    pub(super) hubs: Queue<Grant>,
    pub(super) blocking: Queue<Grant>,
    pub(super) next: u64,
    /// The claim that got the last open permit: the others come first now.
    pub(super) last: Option<Claim>,
}

/// Where the number of a permit goes that somebody waits for, and what listings show of it.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) holder: Occupant,
    pub(super) hand: oneshot::Sender<u64>,
}

/// One user's part of the cap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) held: usize,
    pub(super) limit: usize,
    /// Of `held`, leases that stand.
    pub(super) standing: usize,
}

impl Share {
    /// How many leases of this user may stand: one connection is a lane.
    pub(super) fn standing_max(self) -> usize {
        without_reserve(self.limit.saturating_sub(1))
    }
}

/// This instance's part of the total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetShare {
    /// `fleet.total_connections`
    pub total: usize,
    /// Permits that may be granted, the control connection's among them.
    pub share: usize,
    /// Instances that share the total, this one among them, as far as is known.
    pub instances: usize,
    /// The part is registered on the server. Otherwise nothing is granted but the control connection.
    pub is_certain: bool,
    /// How often it came into doubt.
    pub(super) doubts: u64,
    /// A permit was refused that nobody waits for: a further lane, which commands can do without.
    pub(super) missed: bool,
}

/// Of `leases` so many may stand (MONITOR, CLIENT TRACKING, blocked …): a quarter, and where there are two or more at least
/// one, is kept for those that end by themselves (WATCH, MULTI …).
pub(super) fn without_reserve(leases: usize) -> usize {
    match leases {
        0 | 1 => leases,
        _ => leases - (leases / 4).max(1),
    }
}

impl State {
    /// There are `limit` permits from now on.
    pub(super) fn bound(&mut self, limit: usize, floors: [usize; Kind::ALL.len()]) {
        self.limit = limit;
        self.floors = floors;
        self.standing_max = without_reserve(self.open_permits());
    }

    /// How many connections are on their way out.
    pub(super) fn closing(&self) -> usize {
        self.holdings.values().filter(|row| row.phase == Phase::Closing).count()
    }

    /// How many permits are open to leases, and to lanes and hubs beyond their floors.
    pub(super) fn open_permits(&self) -> usize {
        self.limit.saturating_sub(self.floors.iter().sum())
    }

    pub(super) fn queue(&mut self, claim: Claim) -> &mut Queue<Grant> {
        match claim {
            Claim::Lane => &mut self.lanes,
            Claim::Lease => &mut self.leases,
            Claim::StandingLease => &mut self.standing_leases,
            Claim::PubSub => &mut self.hubs,
            Claim::BlockingLease => &mut self.blocking,
        }
    }

    pub(super) fn queue_of(&self, claim: Claim) -> &Queue<Grant> {
        match claim {
            Claim::Lane => &self.lanes,
            Claim::Lease => &self.leases,
            Claim::StandingLease => &self.standing_leases,
            Claim::PubSub => &self.hubs,
            Claim::BlockingLease => &self.blocking,
        }
    }

    pub(super) fn queues(&self) -> impl Iterator<Item = &Queue<Grant>> {
        Claim::ALL.into_iter().map(|claim| self.queue_of(claim))
    }

    /// Whether `user` may hold one more.
    pub(super) fn has_share(&self, user: u64) -> bool {
        self.users.get(&user).is_none_or(|share| share.held < share.limit)
    }

    /// Whether one more lease of `user` may stand.
    pub(super) fn may_stand(&self, user: u64) -> bool {
        self.standing < self.standing_max
            && self.users.get(&user).is_none_or(|share| share.standing < share.standing_max())
    }

    /// Whether `user` may hold one more for `claim`, as far as shares go.
    pub(super) fn may_have(&self, claim: Claim, user: u64) -> bool {
        self.has_share(user) && (!claim.stands() || self.may_stand(user))
    }

    /// Says whether a lease stands.
    pub(super) fn set_standing(&mut self, id: u64, stands: bool) {
        let Some(row) = self.holdings.get_mut(&id).filter(|row| row.stands != stands) else { return };
        row.stands = stands;
        let user = row.user;
        let change = |count: &mut usize| *count = if stands { *count + 1 } else { count.saturating_sub(1) };
        change(&mut self.standing);
        if let Some(share) = self.users.get_mut(&user) {
            change(&mut share.standing);
        }
    }

    /// The ticket of who comes first in a queue: those whose user holds all it may are passed over.
    pub(super) fn first(&self, claim: Claim) -> Option<u64> {
        self.queue_of(claim).first(|user| self.may_have(claim, user))
    }

    /// Takes the first one out of its queue.
    pub(super) fn pop(&mut self, claim: Claim) -> Option<Waiting<Grant>> {
        let mut queue = std::mem::take(self.queue(claim));
        let waiting = queue.pop(|user| self.may_have(claim, user));
        *self.queue(claim) = queue;
        waiting
    }

    pub(super) fn anybody_waits(&self) -> bool {
        Claim::ALL.into_iter().any(|claim| self.first(claim).is_some())
    }

    /// Counts one more connection. Returns its number.
    pub(super) fn grant(&mut self, kind: Kind, (user, stands): (u64, bool), holder: Occupant) -> u64 {
        self.next += 1;
        let id = self.next;
        self.held[kind as usize] += 1;
        if let Some(share) = self.users.get_mut(&user) {
            share.held += 1;
        }
        self.holdings.insert(id, Holding::new(kind, user, holder));
        self.set_standing(id, stands);
        id
    }

    /// Returns what was held.
    pub(super) fn give_back(&mut self, id: u64, kind: Kind) -> Option<Holding> {
        self.set_standing(id, false);
        let row = self.holdings.remove(&id)?;
        self.held[kind as usize] -= 1;
        if let Some(share) = self.users.get_mut(&row.user) {
            share.held = share.held.saturating_sub(1);
        }
        Some(row)
    }
}
