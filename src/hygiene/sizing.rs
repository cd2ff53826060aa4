//! Computes the number of connections that the clients of a CLIENT LIST need with redbouncer. Pure.
//!
//! The rules are those of `docs/guides/sizing.md`. A listing is a snapshot, so short transactions get the number of
//! leases of the default configuration.

use std::collections::{BTreeMap, HashSet};

use crate::session::Listed;
use crate::upstream::Instance;

/// Commands that only block: a client whose last one it was is between two waits.
const ONLY_BLOCK: [&str; 8] =
    ["blpop", "brpop", "brpoplpush", "blmove", "bzpopmin", "bzpopmax", "blmpop", "bzmpop"];
/// Leases for transactions that a pool has at least, as with the default of `pool.max_connections`.
const FOR_TRANSACTIONS: usize = 3;
/// Lanes that are kept free for lanes alone.
const LANES: usize = 2;
/// The smallest pool.
const SMALLEST: usize = 4;

/// The use of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// Blocked, or between two blocking calls.
    Blocked,
    /// Subscribed to a channel or a pattern.
    Subscribed,
    /// Inside MULTI, or with watched keys.
    Transaction,
    /// MONITOR, and CLIENT TRACKING that lanes cannot carry.
    Standing,
    /// Ordinary commands, or none at the moment.
    Ordinary,
    /// Of a redbouncer.
    Redbouncer,
    /// Replicas, and the server's master.
    Replication,
}

impl Use {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 7] = [
        Self::Ordinary,
        Self::Blocked,
        Self::Subscribed,
        Self::Transaction,
        Self::Standing,
        Self::Redbouncer,
        Self::Replication,
    ];

    /// `lanes_track`: lanes can carry clients with CLIENT TRACKING, from Redis 7.0 on.
    fn of(row: &Listed, lanes_track: bool) -> Self {
        let has = |flag| row.flags.contains(flag);
        if has('S') || has('M') {
            Self::Replication
        } else if Instance::of(&row.name).is_some() {
            Self::Redbouncer
        } else if has('O') || has('B') || (has('t') && !lanes_track) {
            Self::Standing
        } else if has('b') || ONLY_BLOCK.contains(&row.command.as_str()) {
            Self::Blocked
        } else if row.subscriptions > 0 || has('P') {
            Self::Subscribed
        } else if row.in_multi || row.watched > 0 || has('x') || row.command == "watch" {
            Self::Transaction
        } else {
            Self::Ordinary
        }
    }

    /// Whether redbouncer would carry it.
    #[must_use]
    pub fn is_client(self) -> bool {
        match self {
            Self::Blocked | Self::Subscribed | Self::Transaction | Self::Standing | Self::Ordinary => true,
            Self::Redbouncer | Self::Replication => false,
        }
    }
}

/// The contents of a listing, and the numbers computed from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Connections by use; those without one are absent.
    pub uses: BTreeMap<Use, usize>,
    /// Combinations of user, database, RESP version and tracking.
    pub groups: usize,
    /// Users with blocked clients.
    pub blocking_users: usize,
    /// Users with subscribers.
    pub subscribing_users: usize,
    /// `listen.workers`
    pub workers: usize,
}

impl Estimate {
    /// Of all connections but the one whose id is `own`; `major` is the server's version, where it is known.
    #[must_use]
    pub fn of(rows: &[Listed], own: impl Fn(&Listed) -> bool, major: Option<u32>, workers: usize) -> Self {
        let mut uses = BTreeMap::new();
        let (mut groups, mut blocking, mut subscribing) = (HashSet::new(), HashSet::new(), HashSet::new());
        let lanes_track = major.is_none_or(|major| major >= 7);
        for row in rows.iter().filter(|row| !own(row)) {
            let kind = Use::of(row, lanes_track);
            *uses.entry(kind).or_default() += 1;
            match kind {
                Use::Blocked => _ = blocking.insert(&row.user),
                Use::Subscribed => _ = subscribing.insert(&row.user),
                Use::Transaction | Use::Ordinary | Use::Standing | Use::Redbouncer | Use::Replication => {}
            }
            // Subscribers and MONITOR do nothing else.
            if matches!(kind, Use::Blocked | Use::Transaction | Use::Ordinary) {
                groups.insert((&row.user, row.database, row.resp == 3, row.flags.contains('t')));
            }
        }
        Self {
            uses,
            groups: groups.len(),
            blocking_users: blocking.len(),
            subscribing_users: subscribing.len(),
            workers,
        }
    }

    /// Connections of this use.
    #[must_use]
    pub fn count(&self, kind: Use) -> usize {
        self.uses.get(&kind).copied().unwrap_or_default()
    }

    /// Connections that redbouncer would carry.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.uses.iter().filter(|(kind, _)| kind.is_client()).map(|(_, count)| count).sum()
    }

    /// Lanes: one for each group on each worker, and at least those that only lanes get.
    #[must_use]
    pub fn lanes(&self) -> usize {
        (self.groups * self.workers).max(LANES.max(self.workers))
    }

    /// One blocking hub for each user that blocks, on each worker, and at least one.
    #[must_use]
    pub fn blocking_hubs(&self) -> usize {
        self.blocking_users.max(1) * self.workers
    }

    /// One pub/sub hub for each user that subscribes, on each worker, and at least one.
    #[must_use]
    pub fn pubsub_hubs(&self) -> usize {
        self.subscribing_users.max(1) * self.workers
    }

    /// Leases for transactions: those that are open, at least as many as the default has, and a third of those that stand,
    /// because a quarter of the leases is kept for transactions.
    #[must_use]
    pub fn transactions(&self) -> usize {
        self.count(Use::Transaction).max(FOR_TRANSACTIONS).max(self.count(Use::Standing).div_ceil(3))
    }

    /// `pool.max_connections`: all of these and the control connection.
    #[must_use]
    pub fn max_connections(&self) -> usize {
        let leases = self.count(Use::Standing) + self.transactions();
        (1 + self.lanes() + self.blocking_hubs() + self.pubsub_hubs() + leases).max(SMALLEST)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn listing(lines: &[&str]) -> Vec<Listed> {
        let line =
            |(at, line): (usize, &&str)| Listed::parse(&format!("id={} multi=-1 {line}", at + 1)).unwrap();
        lines.iter().enumerate().map(line).collect()
    }

    fn estimate(lines: &[&str], major: Option<u32>, workers: usize) -> Estimate {
        Estimate::of(&listing(lines), |row| row.name == "own", major, workers)
    }

    #[test]
    fn nobody_needs_what_the_default_has() {
        let empty = estimate(&["name=own flags=N db=0 user=default"], Some(7), 1);
        assert_eq!((empty.clients(), empty.max_connections()), (0, 8));
    }

    #[test]
    fn a_hundred_blocked_workers_need_no_more_than_one() {
        let worker = "flags=b db=0 user=default resp=2 cmd=bzpopmin";
        let queue = "flags=N db=0 user=default resp=2 cmd=hgetall";
        let events = "flags=N db=0 user=default resp=2 cmd=subscribe sub=1";
        let mut lines = vec![worker; 100];
        lines.extend([queue; 50]);
        lines.extend([events; 20]);
        let found = estimate(&lines, Some(7), 1);
        assert_eq!((found.clients(), found.max_connections()), (170, 8));
        assert_eq!((found.groups, found.blocking_users, found.subscribing_users), (1, 1, 1));
    }

    /// Between two blocking calls, a connection is recognised by its last command.
    #[test]
    fn a_client_between_two_blocking_calls_counts_as_blocked() {
        let found = estimate(&["flags=N cmd=brpop user=a", "flags=N cmd=xread user=b"], None, 1);
        assert_eq!((found.count(Use::Blocked), found.count(Use::Ordinary)), (1, 1));
    }

    #[test]
    fn users_databases_and_protocols_need_lanes_and_hubs_of_their_own() {
        let lines = [
            "flags=N db=0 user=a resp=2",
            "flags=N db=1 user=a resp=2",
            "flags=N db=1 user=a resp=3",
            "flags=t db=1 user=a resp=3",
            "flags=b db=0 user=b resp=2",
            "flags=b db=0 user=a resp=2",
        ];
        let found = estimate(&lines, Some(7), 1);
        assert_eq!((found.lanes(), found.blocking_hubs(), found.pubsub_hubs()), (5, 2, 1));
        assert_eq!(found.max_connections(), 1 + 5 + 2 + 1 + 3);
        let found = estimate(&lines, Some(7), 2);
        assert_eq!((found.lanes(), found.blocking_hubs(), found.pubsub_hubs()), (10, 4, 2));
    }

    #[test]
    fn what_stands_needs_a_connection_each_and_a_reserve_beside_it() {
        let mut lines = vec!["flags=O user=a", "flags=tB user=a"];
        assert_eq!(estimate(&lines, Some(7), 1).max_connections(), 1 + 2 + 1 + 1 + 2 + 3);
        // Before 7.0 lanes cannot carry clients with CLIENT TRACKING.
        lines.extend(["flags=t user=a"; 10]);
        assert_eq!(estimate(&lines, Some(6), 1).max_connections(), 1 + 2 + 1 + 1 + 12 + 4);
        assert_eq!(estimate(&lines, Some(7), 1).count(Use::Standing), 2);
    }

    #[test]
    fn open_transactions_are_seen_by_multi_and_by_watched_keys() {
        let rows: Vec<Listed> =
            ["multi=0", "multi=-1 watch=2", "multi=-1 cmd=watch", "multi=-1 watch=0", "multi=3"]
                .iter()
                .map(|line| Listed::parse(&format!("id=1 flags=N user=a {line}")).unwrap())
                .collect();
        let found = Estimate::of(&rows, |_| false, None, 1);
        assert_eq!((found.count(Use::Transaction), found.transactions()), (4, 4));
    }

    #[test]
    fn replicas_and_connections_of_a_redbouncer_are_no_clients() {
        let lines = [
            "flags=S user=default cmd=replconf",
            "flags=N user=default name=redbouncer:web-1:5c1a90be:shared",
            "flags=N user=default name=redbouncer:web-1:5c1a90be:control:4+",
        ];
        let found = estimate(&lines, None, 1);
        assert_eq!((found.count(Use::Replication), found.count(Use::Redbouncer)), (1, 2));
        assert_eq!(found.clients(), 0);
    }
}
