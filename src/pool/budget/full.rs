//! What is full: how many connections of each kind there may be, what is reserved, and who holds what is wanted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::Instant;

use super::ledger::{FleetShare, Share, State};
use super::{Budget, Holding, HumanDuration, Kind, RefusedClients};

/// How many connections of a kind there are, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindUse {
    /// Which kind.
    pub kind: Kind,
    /// Connections, from the dial to the end of the close.
    pub held: usize,
    /// How many there may be at the most, given what the other kinds hold now.
    pub max: usize,
    /// How many of those that are free no other kind may take.
    pub reserved: usize,
}

impl KindUse {
    /// Whether the next of this kind has to wait. A kind that is not in use is not full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.max > 0 && self.held >= self.max
    }
}

/// How so many of a kind are called.
fn noun(kind: Kind, count: usize) -> &'static str {
    match (kind, count) {
        (Kind::Lane, 1) => "lane",
        (Kind::Lease, 1) => "lease",
        (Kind::Blocking, 1) => "blocking hub",
        (Kind::PubSub, 1) => "pub/sub hub",
        (Kind::Control | Kind::Lane | Kind::Lease | Kind::Blocking | Kind::PubSub, _) => plural(kind),
    }
}

/// How a kind is called in the plural.
fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::Control => "control",
        Kind::Lane => "lanes",
        Kind::Lease => "leases",
        Kind::Blocking => "blocking hubs",
        Kind::PubSub => "pub/sub hubs",
    }
}

impl Budget {
    /// A client gets the full-pool error.
    pub fn refuses_a_client(&self) {
        let mut refused = self.refused.lock();
        let clients = refused.map_or(1, |refused| refused.clients + 1);
        *refused = Some(RefusedClients { clients, at: Instant::now() });
    }

    /// The clients that got it, if there were any.
    #[must_use]
    pub fn refused_clients(&self) -> Option<RefusedClients> {
        *self.refused.lock()
    }

    /// Of each kind, how many connections there are and may be.
    #[must_use]
    pub fn kinds(&self) -> [KindUse; Kind::ALL.len()] {
        self.kinds_of(&self.state.lock())
    }

    fn kinds_of(&self, state: &State) -> [KindUse; Kind::ALL.len()] {
        let open_used = self.open_used(state);
        Kind::ALL.map(|kind| {
            let (held, floor) = (state.held[kind as usize], state.floors[kind as usize]);
            let beyond = open_used - self.above_floor(state, kind);
            let open = if kind == Kind::Control { 0 } else { state.open_permits().saturating_sub(beyond) };
            KindUse { kind, held, max: floor + open, reserved: floor.saturating_sub(held) }
        })
    }

    /// The connection that one client has held alone for longest.
    #[must_use]
    pub fn longest_lease(&self) -> Option<Holding> {
        longest(&self.state.lock()).cloned()
    }

    /// For how long the oldest lease of each pin has been held, by the pin's label.
    #[must_use]
    pub fn oldest_leases(&self) -> BTreeMap<&'static str, Duration> {
        let mut oldest = BTreeMap::new();
        for row in self.state.lock().holdings.values() {
            if let Some(client) = row.client() {
                let held = row.since.elapsed();
                let longest = oldest.entry(client.pin).or_insert(held);
                *longest = held.max(*longest);
            }
        }
        oldest
    }

    /// The leases held for `limit` or longer that this has not returned yet, the longest first, `most` at a time; those of the
    /// reason `but` are left out.
    pub fn take_long_leases(&self, limit: Duration, but: &str, most: usize) -> Vec<Holding> {
        let mut state = self.state.lock();
        let mut long: Vec<_> = state
            .holdings
            .values_mut()
            .filter(|row| !row.is_told_of && row.since.elapsed() >= limit)
            .filter(|row| row.client().is_some_and(|client| client.pin != but))
            .collect();
        long.sort_by_key(|row| row.since);
        long.truncate(most);
        long.into_iter()
            .map(|row| {
                row.is_told_of = true;
                row.clone()
            })
            .collect()
    }

    /// The error a client of `user` gets when no connection of `kind` came free within `waited`: which kind is full, what is
    /// reserved, and who has held a lease for longest.
    #[must_use]
    pub fn full_text(&self, kind: Kind, user: u64, waited: Duration) -> String {
        let state = self.state.lock();
        let waited = HumanDuration(waited);
        if !state.has_share(user)
            && let Some(Share { held, limit, .. }) = state.users.get(&user)
        {
            return format!(
                "redbouncer: no upstream connection within {waited}: this user has {held} of its {limit} connections"
            );
        }
        if let Some(text) = state.fleet.as_ref().and_then(FleetShare::why_nothing) {
            return text.to_owned();
        }
        let kinds = self.kinds_of(&state);
        let wanted = kinds[kind as usize];
        let mut text = format!(
            "redbouncer: no upstream connection within {waited} ({} {} of {}",
            plural(kind),
            wanted.held,
            wanted.max,
        );
        if kind == Kind::Lease && state.standing > 0 {
            let _ = write!(text, ", of which {} of {} stand", state.standing, state.standing_max);
        }
        let _ = write!(text, "; {} of {} connections held", state.holdings.len(), state.limit);
        list(&mut text, ": ", kinds.iter().map(|of| (of.kind, of.held)));
        list(&mut text, "; reserved: ", kinds.iter().map(|of| (of.kind, of.reserved)));
        if let Some(FleetShare { total, share, instances, .. }) = &state.fleet {
            let _ = write!(text, "; fleet: {share} of {total} claimed here, instances: {instances}");
        }
        if let Some(fields) = longest(&state).and_then(Holding::client_fields) {
            let _ = write!(text, "; longest: {fields}");
        }
        text.push(')');
        text
    }

    /// The error a client of `user` gets whose lease would stand, where only the reserve for transactions is left. `None`: it
    /// is not that.
    #[must_use]
    pub fn reserved_text(&self, user: u64) -> Option<String> {
        let state = self.state.lock();
        let (whose, standing, most) = match state.users.get(&user) {
            Some(share) if share.standing >= share.standing_max() => {
                (" of this user", share.standing, share.standing_max())
            }
            _ if state.standing >= state.standing_max => ("", state.standing, state.standing_max),
            Some(_) | None => return None,
        };
        Some(format!(
            "redbouncer: no upstream connection for this command: {standing} of {most} leases{whose} for MONITOR, CLIENT TRACKING and blocking calls are in use; the others are reserved for transactions"
        ))
    }
}

/// Appends those of `counts` that are not 0, behind `before`.
fn list(text: &mut String, before: &str, counts: impl Iterator<Item = (Kind, usize)>) {
    let mut before = before;
    for (kind, count) in counts.filter(|(_, count)| *count > 0) {
        let _ = write!(text, "{before}{count} {}", noun(kind, count));
        before = ", ";
    }
}

fn longest(state: &State) -> Option<&Holding> {
    state.holdings.values().filter(|row| row.client().is_some()).min_by_key(|row| row.since)
}
