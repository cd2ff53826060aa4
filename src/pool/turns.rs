//! One turn at a time: the users come in turn, within a user the addresses, within an address first come, first served.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::queue::{Queue, Waiting};

/// Hands out one turn at a time.
#[derive(Debug, Default)]
pub struct Turns(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    taken: bool,
    tickets: u64,
    waiting: Queue<oneshot::Sender<Turn>>,
}

/// What one has at a time, until it is dropped.
#[derive(Debug)]
pub struct Turn(Option<Arc<Turns>>);

/// A place in the queue. Dropping it leaves the queue.
struct Place<'a> {
    turns: &'a Turns,
    ticket: u64,
    user: u64,
    address: Option<IpAddr>,
}

impl Turns {
    /// Waits for a turn for a client of `user` at `address` (`None`: what many clients wait for, or a Unix socket).
    pub async fn turn(self: &Arc<Self>, user: u64, address: Option<IpAddr>) -> Turn {
        loop {
            let (granted, place) = {
                let mut state = self.0.lock();
                if !state.taken {
                    state.taken = true;
                    return Turn(Some(Arc::clone(self)));
                }
                let (grant, granted) = oneshot::channel();
                state.tickets += 1;
                let ticket = state.tickets;
                state.waiting.push(Waiting { ticket, user, address, grant });
                (granted, Place { turns: self, ticket, user, address })
            };
            let turn = granted.await;
            drop(place);
            // A turn is handed over or the queue is gone, which it is not while this waits.
            if let Ok(turn) = turn {
                return turn;
            }
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.turns.0.lock().waiting.remove(self.ticket, self.user, self.address);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else { return };
        loop {
            let next = {
                let mut state = turns.0.lock();
                let next = state.waiting.pop(|_| true);
                state.taken = next.is_some();
                next
            };
            let Some(next) = next else { return };
            match next.grant.send(Self(Some(Arc::clone(&turns)))) {
                Ok(()) => return,
                // It has given up: the next one. Not by dropping, which would come back here for each of them.
                Err(mut unclaimed) => unclaimed.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The order in which those get a turn who wait while somebody has it.
    async fn order(waiting: &[(u64, u8)], leaving: &[usize]) -> Vec<usize> {
        let turns = Arc::new(Turns::default());
        let first = turns.turn(0, None).await;
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (number, (user, host)) in waiting.iter().copied().enumerate() {
            let (turns, served) = (Arc::clone(&turns), Arc::clone(&served));
            tasks.push(tokio::spawn(async move {
                let _turn = turns.turn(user, Some([10, 0, 0, host].into())).await;
                served.lock().push(number);
            }));
            tokio::task::yield_now().await;
        }
        for at in leaving {
            tasks[*at].abort();
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
    async fn users_come_in_turn_and_within_a_user_the_addresses() {
        let mut waiting = vec![(1, 1); 1_000];
        waiting.extend([(1, 2), (2, 1)]);
        let served = order(&waiting, &[]).await;
        assert_eq!(served[..4], [0, 1_001, 1_000, 1]);
        assert_eq!(served.len(), waiting.len());
    }

    #[tokio::test]
    async fn who_gives_up_holds_up_nobody() {
        let leaving: Vec<usize> = (0..10).collect();
        let mut waiting = vec![(1, 1); 10];
        waiting.extend([(1, 1), (2, 1)]);
        let served = order(&waiting, &leaving).await;
        assert_eq!(served.len(), 2);
        let turns = Arc::new(Turns::default());
        for _ in 0..3 {
            drop(turns.turn(1, None).await);
        }
    }
}
