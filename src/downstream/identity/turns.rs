//! The order of login checks: one at a time, addresses with the fewest failures first.
//!
//! In order of arrival, addresses that guess would always be first: with 25 of them a valid login would wait for 25
//! failures. Ordered by failures, it waits only for the check in progress.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::pool::{self, Hand, Order, Turn};

/// Fewest failures first; among equals, in order of arrival.
#[derive(Debug, Default)]
pub(in crate::downstream) struct ByBlame(BTreeMap<(u32, u64), Hand<Self>>);

impl Order for ByBlame {
    type Who = u32;

    fn push(&mut self, ticket: u64, blame: u32, hand: Hand<Self>) {
        self.0.insert((blame, ticket), hand);
    }

    fn pop(&mut self) -> Option<Hand<Self>> {
        self.0.pop_first().map(|(_, hand)| hand)
    }

    fn remove(&mut self, ticket: u64, blame: u32) {
        self.0.remove(&(blame, ticket));
    }
}

/// The turns of login checks.
pub(in crate::downstream) type Turns = pool::Turns<ByBlame>;

impl Turns {
    /// Waits for a turn, after logins with fewer failures and earlier ones with as many.
    pub(in crate::downstream) async fn turn(self: &Arc<Self>, blame: u32) -> Turn<ByBlame> {
        self.turn_of(blame).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::*;

    /// The order of turns for logins that wait during a check; `true`: the login gives up before its turn.
    async fn order(waiting: &[(u32, bool)]) -> Vec<usize> {
        let turns = Arc::new(Turns::default());
        let first = turns.turn(0).await;
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (number, (blame, _)) in waiting.iter().copied().enumerate() {
            let (turns, served) = (Arc::clone(&turns), Arc::clone(&served));
            tasks.push(tokio::spawn(async move {
                let _turn = turns.turn(blame).await;
                served.lock().push(number);
            }));
            tokio::task::yield_now().await;
        }
        for (task, (_, leaves)) in tasks.iter().zip(waiting) {
            if *leaves {
                task.abort();
            }
        }
        tokio::task::yield_now().await;
        drop(first);
        for task in tasks {
            let done = tokio::time::timeout(Duration::from_secs(5), task).await;
            assert!(done.is_ok(), "nobody is forgotten");
        }
        served.lock().clone()
    }

    #[tokio::test]
    async fn who_has_failed_least_is_next_whatever_the_others_number() {
        let mut waiting = vec![(7, false); 25];
        waiting.push((0, false));
        let served = order(&waiting).await;
        assert_eq!(served[0], 25);
        assert_eq!(served[1..], (0..25).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn who_gives_up_holds_up_nobody() {
        let mut waiting = vec![(0, true); 1000];
        waiting.extend([(3, false), (2, true), (1, false)]);
        assert_eq!(order(&waiting).await, [1002, 1000]);
    }

    #[tokio::test]
    async fn a_turn_is_free_again_when_all_have_had_it() {
        assert!(order(&[]).await.is_empty());
        let turns = Arc::new(Turns::default());
        for _ in 0..3 {
            drop(turns.turn(0).await);
        }
    }
}
