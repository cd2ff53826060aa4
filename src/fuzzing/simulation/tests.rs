//! The short form of `make simulate`, and the long one.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{Outcome, Plan, Sabotage, in_paused_time, sabotaged, shared, simulate, upstream_of};
use crate::downstream::{AuthOptions, Directory};
use crate::pool::{Budget, Kind, LaneKey, Pool, PoolOptions, Tracked, Unavailable};
use crate::resp::Protocol;
use crate::upstream::simulated::Network;

/// Seeds of the short form, some 3 s of one core.
const FEW: u64 = 30;
/// It ends earlier on a machine that is busy.
const MOMENT: Duration = Duration::from_secs(20);

/// The key of a lane.
const KEY: LaneKey =
    LaneKey { user: 0, database: 0, protocol: Protocol::Resp2, readonly: false, tracked: Tracked::No };

/// Seeds that are run twice at most: their logs are kept.
const MOST_TWICE: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Runs `seed` and panics with the command that repeats it where something went wrong.
fn holds(seed: u64) -> Outcome {
    let outcome = catch_unwind(AssertUnwindSafe(|| simulate(seed, false)));
    let wrong = match outcome {
        Ok(outcome) if outcome.wrong.is_empty() => return outcome,
        Ok(outcome) => outcome.wrong.join("\n"),
        Err(_) => "a panic, told above".to_owned(),
    };
    panic!("seed {seed}: {wrong}\nto repeat it, with its log: make simulate SEED={seed} COUNT=1 LOG=1");
}

#[test]
fn a_seed_says_everything() {
    let first = number("REDBOUNCER_SEED").unwrap_or(1);
    for seed in first..first + number("REDBOUNCER_COUNT").unwrap_or(5).min(MOST_TWICE) {
        let (first, second) = (simulate(seed, true), simulate(seed, true));
        let differs = first.log.iter().zip(&second.log).position(|(first, second)| first != second);
        if let Some(at) = differs {
            panic!("seed {seed} differs at {at}:\n{}\n{}", first.log[at], second.log[at]);
        }
        assert_eq!(first, second, "seed {seed}");
    }
}

/// A check that cannot fail shows nothing.
#[test]
fn what_goes_wrong_on_purpose_is_noticed() {
    let all = [
        (Sabotage::LoseElement, "elements are gone"),
        (Sabotage::DoubleElement, "was got by client"),
        (Sabotage::CrossReplies, "is answered with"),
        (Sabotage::DelayMessage, "comes late"),
        (Sabotage::DoubleMessage, "comes twice"),
        (Sabotage::MissInvalidation, "was cached as"),
        (Sabotage::NeverAnswer, "no reply to"),
        (Sabotage::ExceedCap, "connections under a cap of"),
        (Sabotage::KeepMemory, "bytes are counted after the drain"),
        (Sabotage::KeepTask, "tasks of the pool are still there"),
    ];
    for (sabotage, words) in all {
        let noticed = (1..30).any(|seed| {
            sabotaged(seed, false, Some(sabotage)).wrong.iter().any(|wrong| wrong.contains(words))
        });
        assert!(noticed, "{sabotage:?} is not noticed");
    }
}

/// Tasks of the pool wait for lanes, too, with an element that is to be given back up to a minute: a drain would wait for them.
#[test]
fn a_wait_for_a_lane_ends_with_the_pool() {
    for is_full in [false, true] {
        in_paused_time(async {
            let plan = Plan::of(1);
            let network = Network::install(1, plan.manners, false);
            let delivery = tokio::task::spawn_local(network.clone().run());
            network.listen(false);
            let upstream = upstream_of(&plan, None);
            let budget = Budget::new(plan.cap, 1, plan.hubs);
            let directory =
                Directory::new(&upstream, &AuthOptions::default(), Arc::clone(&budget)).expect("a directory");
            let held: Vec<_> = std::iter::repeat_with(|| budget.try_acquire(Kind::Lane, "test"))
                .map_while(|permit| permit.filter(|_| is_full))
                .collect();
            let tasks = TaskTracker::new();
            let pool = Pool::new(shared(&upstream, PoolOptions::default(), &budget), tasks.clone());
            let group = pool.group(KEY, &directory.own_identity().1);
            let waiting = Rc::clone(&pool);
            let wait = tasks.spawn_local(async move {
                waiting.lane_ready(&group, Instant::now() + Duration::from_secs(60)).await
            });
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(!wait.is_finished());
            pool.stop();
            tasks.close();
            let is_over = tokio::time::timeout(Duration::from_secs(1), tasks.wait()).await;
            assert!(is_over.is_ok(), "{} tasks after a second, full: {is_full}", tasks.len());
            assert_eq!(wait.await.expect("no panic"), Err(Unavailable::Stopping));
            drop(held);
            delivery.abort();
            network.remove();
        });
    }
}

#[allow(clippy::print_stderr)] // what was run is told to whoever runs the long form
/// `REDBOUNCER_COUNT` seeds from `REDBOUNCER_SEED` on.
#[test]
fn whatever_the_network_and_the_server_do_nothing_is_crossed_doubled_or_left_behind() {
    let first = number("REDBOUNCER_SEED").unwrap_or(1);
    let asked = number("REDBOUNCER_COUNT");
    let mut count = asked.unwrap_or(FEW);
    let start = Instant::now();
    if std::env::var_os("REDBOUNCER_LOG").is_some() {
        for seed in first..first + count {
            let outcome = simulate(seed, true);
            eprintln!("{}", outcome.log.join("\n"));
            assert!(outcome.wrong.is_empty(), "{}", outcome.wrong.join("\n"));
        }
        return;
    }
    let mut sum = Outcome::default();
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    let mut failed = Vec::new();
    for seed in first..first + count {
        if asked.is_none() && start.elapsed() >= MOMENT {
            count = seed - first;
            break;
        }
        let outcome = match catch_unwind(|| holds(seed)) {
            Ok(outcome) => outcome,
            Err(_) => {
                failed.push(seed);
                continue;
            }
        };
        sum.answered += outcome.answered;
        sum.refused += outcome.refused;
        sum.cut += outcome.cut;
        sum.elements += outcome.elements;
        sum.messages += outcome.messages;
        sum.commands += outcome.commands;
        for (kind, times) in outcome.faults {
            *faults.entry(kind).or_default() += times;
        }
    }
    eprintln!(
        "{count} seeds: {} replies, {} refusals, {} connections cut, {} elements, {} messages, {} commands at the server, \
         faults {faults:?}",
        sum.answered, sum.refused, sum.cut, sum.elements, sum.messages, sum.commands
    );
    assert!(failed.is_empty(), "{} of {count} seeds fail: {failed:?}", failed.len());
    // A run in which nothing happens shows nothing.
    if asked.is_none() {
        assert!(sum.answered > 10 * count && sum.elements > count && sum.messages > count);
    }
}
