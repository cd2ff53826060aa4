//! How instances share a total without speaking to each other: a pure state machine of one of them.
//!
//! The register is the name of each instance's control connection. An instance raises its claim by one write: the new name, then
//! CLIENT LIST. The server runs them in order, so of two that raise at the same time the later one sees the earlier one's new
//! claim. Who sees that all claims together are too many takes his back. So confirmed claims never exceed what may be claimed,
//! as long as a claim is never below what its instance holds, and the register is never lowered for what is still held.

#[cfg(test)]
mod simulation;

use super::member::{Member, used};
use super::{FleetOptions, shares};
use crate::upstream::{Instance, Intent, Registered};

/// What this instance has and needs now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// Permits that it has granted, those being dialled or closed among them.
    pub(super) held: usize,
    /// What it would hold if it could: what it uses, and what is waited for.
    pub(super) wanted: usize,
    /// More it may not have, whatever the others do: `pool.max_connections`, and what another process left of it.
    pub(super) most: usize,
    /// Another process takes its place.
    pub(super) leaves: bool,
    /// What a process before this one still has: both are one instance to the others.
    pub(super) elsewhere: usize,
}

/// What is to be done about the own claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing; so many permits may be granted.
    Keep(usize),
    /// No more permits than this, at once; the claim follows what is held.
    Lower(usize),
    /// Announce this claim, and look.
    Raise(usize),
}

/// What became of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was no more than before.
    Kept,
    /// All claims fit: it is ours.
    Raised,
    /// They do not: it has to be taken back, by [`Rules::registered`].
    Withdrawn,
    /// The listing does not show it: nothing can be concluded from that listing.
    Unlisted,
}

/// One instance's part of the total.
#[derive(Debug)]
pub(super) struct Rules {
    options: FleetOptions,
    me: Instance,
    /// What the register says, once a raise is confirmed or withdrawn; never below what is held.
    claim: usize,
    /// How many permits may be granted; at most `claim`.
    share: usize,
    /// The claim that was announced and is not confirmed.
    announced: Option<Registered>,
    /// The others, as they were listed last.
    others: Vec<Member>,
    /// The most that was wanted since the claim was last looked at for what is unused of it.
    peak: usize,
}

impl Rules {
    /// `me` has registered nothing yet.
    #[must_use]
    pub(super) fn new(options: FleetOptions, me: Instance) -> Self {
        Self { options, me, claim: 1, share: 1, announced: None, others: Vec::new(), peak: 0 }
    }

    /// What the register says of this instance.
    #[must_use]
    pub(super) fn claim(&self) -> usize {
        self.claim
    }

    /// How many permits may be granted.
    #[must_use]
    pub(super) fn share(&self) -> usize {
        self.share
    }

    /// The others, as they were listed last.
    #[must_use]
    pub(super) fn others(&self) -> &[Member] {
        &self.others
    }

    /// There is another control connection: the claim of the one before has gone with it. Of it nothing is left but what is held,
    /// which the others have seen.
    pub(super) fn restart(&mut self, held: usize) {
        self.claim = held.max(1);
        self.share = self.claim;
        self.announced = None;
    }

    /// So many are held, perhaps more than is claimed: while nothing could be registered, they were granted without a claim.
    pub(super) fn cover(&mut self, held: usize) {
        self.claim = self.claim.max(held);
    }

    /// How many connections this instance is to claim, as far as it goes by itself.
    #[must_use]
    pub(super) fn wanted(&self, need: &Need) -> usize {
        if need.leaves {
            return self.share.min(need.most).max(1);
        }
        need.wanted.max(self.options.minimum).min(need.most).max(1)
    }

    /// The own fair part: the others that want nothing have what they use, the rest is divided evenly.
    #[must_use]
    pub(super) fn fair(&self, need: &Need) -> usize {
        let own = self.own_member(need);
        let all: Vec<&Member> = self.others.iter().chain([&own]).collect();
        let fair = shares::fair(&all, self.options.claimable());
        fair.last().copied().unwrap_or_default().saturating_sub(need.elsewhere).max(1)
    }

    /// What is to be done, by the last listing.
    #[must_use]
    pub(super) fn plan(&self, need: &Need) -> Plan {
        let (wanted, claimable) = (self.wanted(need), self.options.claimable());
        let taken = used(&self.others);
        let fair = self.fair(need);
        let is_crowded = !need.leaves && (self.somebody_starves(need) || taken + self.claim > claimable);
        let limit = if is_crowded { fair.min(need.most.max(1)) } else { need.most.max(1) };
        if self.claim > limit {
            return if self.share > limit { Plan::Lower(limit) } else { Plan::Keep(self.share) };
        }
        if self.share < self.claim && wanted > self.share {
            // What is claimed still may be granted again.
            return Plan::Keep(self.claim);
        }
        let room = claimable.saturating_sub(taken);
        let step = self.options.minimum.max(2 * self.claim);
        let ask = wanted.min(limit).min(room).min(step);
        if ask > self.claim && !need.leaves { Plan::Raise(ask) } else { Plan::Keep(self.share) }
    }

    /// What has been claimed and not wanted since the last time is given up; called once an interval.
    pub(super) fn give_up_unused(&mut self, need: &Need) {
        let peak = std::mem::take(&mut self.peak).max(self.wanted(need));
        self.share = self.share.min(peak);
    }

    /// So much is wanted now.
    pub(super) fn note(&mut self, need: &Need) {
        self.peak = self.peak.max(self.wanted(need));
    }

    /// Takes a plan up. Returns how many permits may be granted from now on: to be set before [`Self::announce`].
    pub(super) fn take(&mut self, plan: Plan) -> usize {
        match plan {
            Plan::Keep(share) | Plan::Lower(share) => self.share = share.min(self.claim),
            Plan::Raise(_) => {}
        }
        self.share
    }

    /// What to register now. `held` was counted after the share of [`Self::take`] was set, so it only falls from there.
    #[must_use]
    pub(super) fn announce(&mut self, plan: Plan, need: &Need, held: usize) -> Registered {
        let claim = match plan {
            Plan::Raise(ask) => ask,
            Plan::Keep(_) | Plan::Lower(_) => {
                self.claim = self.share.max(held).max(1);
                self.claim
            }
        };
        let registered = Registered { claim, intent: self.intent(need, claim) };
        self.announced = Some(registered);
        registered
    }

    /// The name's fifth part as it is without a raise.
    #[must_use]
    pub(super) fn registered(&self, need: &Need) -> Registered {
        Registered { claim: self.claim, intent: self.intent(need, self.claim) }
    }

    /// What the listing behind the announcement says about it.
    pub(super) fn judge(&mut self, listed: Vec<Member>) -> Verdict {
        let announced = self.announced.take();
        let own = listed.iter().find(|member| member.instance == self.me).and_then(|own| own.registered);
        if announced.is_none() || own.map(|own| own.claim) < announced.map(|announced| announced.claim) {
            return Verdict::Unlisted;
        }
        self.others = listed.into_iter().filter(|member| member.instance != self.me).collect();
        let claim = announced.map_or(self.claim, |announced| announced.claim);
        if claim <= self.claim {
            return Verdict::Kept;
        }
        if used(&self.others) + claim > self.options.claimable() {
            return Verdict::Withdrawn;
        }
        (self.claim, self.share) = (claim, claim);
        Verdict::Raised
    }

    fn intent(&self, need: &Need, claim: usize) -> Intent {
        if need.leaves {
            Intent::Leaves
        } else if self.wanted(need) > claim {
            Intent::Wants
        } else {
            Intent::Settled
        }
    }

    /// Whether another one wants more and has less than its fair part.
    fn somebody_starves(&self, need: &Need) -> bool {
        let own = self.own_member(need);
        let all: Vec<&Member> = self.others.iter().chain([&own]).collect();
        let fair = shares::fair(&all, self.options.claimable());
        self.others.iter().zip(&fair).any(|(other, fair)| other.wants() && other.used() < *fair)
    }

    fn own_member(&self, need: &Need) -> Member {
        Member {
            instance: self.me.clone(),
            rows: need.held,
            registered: Some(self.registered(need)),
            address: String::new(),
        }
    }
}
