//! Who serves what, as a function of who uses what.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::pool::LaneKey;

/// The homes of each key, lowest number first; one that is not named is served by every worker.
pub(super) type Plan = BTreeMap<LaneKey, Vec<usize>>;

/// One key, while it is decided who serves it.
struct Row {
    key: LaneKey,
    sessions: usize,
    /// How many lanes it gets, each on a worker of its own.
    lanes: usize,
}

impl Row {
    /// What each of its workers has to serve.
    fn share(&self) -> usize {
        (self.sessions / self.lanes).max(1)
    }
}

/// Homes for all keys where `lanes` are too few for every key in use to have one on each worker; else none. `used` are the
/// sessions of each key by worker. What was so `before` stays where it is about as good, so that sessions do not go to and fro.
pub(super) fn plan(used: &[BTreeMap<LaneKey, usize>], lanes: usize, before: &Plan) -> Plan {
    let mut sessions: BTreeMap<LaneKey, usize> = BTreeMap::new();
    for (key, count) in used.iter().flatten() {
        *sessions.entry(*key).or_default() += count;
    }
    if sessions.len() * used.len() <= lanes {
        return Plan::new();
    }
    let mut rows: Vec<_> =
        sessions.into_iter().map(|(key, sessions)| Row { key, sessions, lanes: 1 }).collect();
    share_out(&mut rows, lanes, used.len(), before);
    rows.sort_by_key(|row| Reverse(row.sessions));
    let mut homes = settle(&rows, used, before);
    balance(&rows, used.len(), &mut homes);
    homes.into_iter().map(|(key, homes)| (key, homes.into_iter().collect())).collect()
}

/// Lanes beyond one for each key go to those with the most sessions for each lane they have.
fn share_out(rows: &mut [Row], lanes: usize, workers: usize, before: &Plan) {
    for _ in rows.len()..lanes {
        let had = |row: &Row| before.get(&row.key).is_some_and(|homes| homes.len() > row.lanes);
        // Another one must have half as many sessions again to take a lane away from who had it.
        let weight = |row: &&mut Row| row.sessions * if had(row) { 3 } else { 2 } * workers / row.lanes;
        let open = rows.iter_mut().filter(|row| row.lanes < workers);
        let Some(row) = open.max_by_key(weight) else { return };
        row.lanes += 1;
    }
}

/// Each key stays where it was as far as that goes, or goes to the workers with the least to serve.
fn settle(
    rows: &[Row],
    used: &[BTreeMap<LaneKey, usize>],
    before: &Plan,
) -> BTreeMap<LaneKey, BTreeSet<usize>> {
    let mut homes = BTreeMap::new();
    for row in rows {
        let kept = before.get(&row.key).into_iter().flatten().copied().take(row.lanes);
        homes.insert(row.key, kept.collect::<BTreeSet<_>>());
    }
    for row in rows {
        let load = load(rows, used.len(), &homes);
        let Some(own) = homes.get_mut(&row.key) else { continue };
        let mut order: Vec<_> = (0..used.len()).filter(|worker| !own.contains(worker)).collect();
        let here = |worker: usize| used.get(worker).and_then(|used| used.get(&row.key)).copied();
        order.sort_by_key(|worker| {
            (load.get(*worker).copied(), Reverse(here(*worker).unwrap_or_default()), *worker)
        });
        own.extend(order.into_iter().take(row.lanes - own.len()));
    }
    homes
}

/// What each worker has to serve.
fn load(rows: &[Row], workers: usize, homes: &BTreeMap<LaneKey, BTreeSet<usize>>) -> Vec<usize> {
    let mut load = vec![0; workers];
    for row in rows {
        for worker in homes.get(&row.key).into_iter().flatten() {
            if let Some(load) = load.get_mut(*worker) {
                *load += row.share();
            }
        }
    }
    load
}

/// Keys go from the worker with the most to serve to the one with the least, while that makes a difference.
fn balance(rows: &[Row], workers: usize, homes: &mut BTreeMap<LaneKey, BTreeSet<usize>>) {
    for _ in rows {
        let load = load(rows, workers, homes);
        let most = (0..workers).max_by_key(|worker| load.get(*worker).copied());
        let least = (0..workers).min_by_key(|worker| load.get(*worker).copied());
        let (Some(most), Some(least)) = (most, least) else { return };
        let apart = load.iter().max().unwrap_or(&0) - load.iter().min().unwrap_or(&0);
        let after = |row: &&Row| apart.abs_diff(2 * row.share());
        let is_there =
            |row: &&Row| homes.get(&row.key).is_some_and(|own| own.contains(&most) && !own.contains(&least));
        let best = rows.iter().filter(is_there).min_by_key(after);
        let Some(best) = best.filter(|row| after(row) * 4 <= apart * 3) else { return };
        if let Some(own) = homes.get_mut(&best.key) {
            own.remove(&most);
            own.insert(least);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Tracked;
    use crate::resp::Protocol;

    fn key(database: u32) -> LaneKey {
        LaneKey { user: 1, database, protocol: Protocol::Resp2, readonly: false, tracked: Tracked::No }
    }

    /// Sessions by database, of each worker.
    fn used<const N: usize>(workers: [&[usize]; N]) -> Vec<BTreeMap<LaneKey, usize>> {
        let one = |counts: &[usize]| {
            (0..).map(key).zip(counts.iter().copied()).filter(|(_, count)| *count > 0).collect()
        };
        workers.into_iter().map(one).collect()
    }

    fn shown(plan: &Plan) -> Vec<(u32, Vec<usize>)> {
        plan.iter().map(|(key, homes)| (key.database, homes.clone())).collect()
    }

    #[test]
    fn with_lanes_enough_every_worker_serves_every_key() {
        assert_eq!(plan(&used([&[9], &[9]]), 2, &Plan::new()), Plan::new());
        assert_eq!(plan(&used([&[9, 1, 5], &[9, 1, 5]]), 6, &Plan::new()), Plan::new());
    }

    #[test]
    fn with_one_lane_for_each_key_each_has_one_worker_and_both_have_work() {
        let plan = plan(&used([&[8, 8, 8], &[8, 8, 8]]), 3, &Plan::new());
        assert_eq!(shown(&plan), [(0, vec![0]), (1, vec![1]), (2, vec![0])]);
    }

    #[test]
    fn a_lane_more_than_keys_goes_to_the_one_with_the_most_sessions() {
        let plan = plan(&used([&[1, 40], &[0, 40]]), 3, &Plan::new());
        assert_eq!(shown(&plan), [(0, vec![0]), (1, vec![0, 1])]);
    }

    #[test]
    fn with_fewer_lanes_than_keys_each_key_has_one_worker() {
        let plan = plan(&used([&[4; 30], &[4; 30]]), 3, &Plan::new());
        let mut by_worker = [0, 0];
        for (_, homes) in shown(&plan) {
            assert_eq!(homes.len(), 1);
            by_worker[homes[0]] += 1;
        }
        assert_eq!(by_worker, [15, 15]);
    }

    #[test]
    fn what_is_about_as_good_stays() {
        let mut before = plan(&used([&[8, 8, 8], &[8, 8, 8]]), 3, &Plan::new());
        for counts in [[7, 9, 8], [9, 8, 7], [8, 7, 9], [10, 10, 6], [6, 9, 10]] {
            let now = plan(&used([&counts, &[8, 8, 8]]), 3, &before);
            assert_eq!(now, before, "{counts:?}");
            before = now;
        }
    }

    #[test]
    fn a_key_goes_where_there_is_much_less_to_serve() {
        let before = Plan::from([(key(0), vec![0]), (key(1), vec![0]), (key(2), vec![1])]);
        let now = plan(&used([&[30, 20, 0], &[0, 0, 1]]), 3, &before);
        assert_eq!(shown(&now), [(0, vec![0]), (1, vec![1]), (2, vec![1])]);
    }

    #[test]
    fn every_plan_names_every_key_and_no_lane_twice() {
        let mut random = fastrand::Rng::with_seed(11);
        let mut before = Plan::new();
        for _ in 0..2000 {
            let workers = random.usize(2..6);
            let counts: Vec<Vec<usize>> =
                (0..workers).map(|_| (0..6).map(|_| random.usize(0..20)).collect()).collect();
            let used: Vec<BTreeMap<_, _>> =
                counts.iter().flat_map(|counts| used([counts.as_slice()])).collect();
            let lanes = random.usize(1..20);
            let keys: BTreeSet<_> = used.iter().flat_map(|used| used.keys().copied()).collect();
            before.retain(|_, homes| homes.iter().all(|home| *home < workers));
            let plan = plan(&used, lanes, &before);
            if keys.len() * workers <= lanes {
                assert!(plan.is_empty());
                continue;
            }
            assert_eq!(plan.keys().copied().collect::<BTreeSet<_>>(), keys);
            let all: usize = plan.values().map(Vec::len).sum();
            assert_eq!(all, lanes.max(keys.len()), "every lane is used, and none twice");
            for homes in plan.values() {
                assert!(homes.iter().all(|home| *home < workers));
                assert!(homes.windows(2).all(|pair| pair[0] < pair[1]));
            }
            before = plan;
        }
    }
}
