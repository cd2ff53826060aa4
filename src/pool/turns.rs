//! One turn at a time, and in what order those get it who wait: the users in turn, within a user the addresses, within an
//! address first come, first served; or as another [`Order`] has it.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::queue::{Queue, Waiting};

/// Who waits for turns, and who is next.
pub trait Order: std::fmt::Debug + Default + Sized {
    /// What decides when somebody's turn comes.
    type Who: Copy;
    /// `who` waits, as number `ticket`; `hand` is given the turn.
    fn push(&mut self, ticket: u64, who: Self::Who, hand: Hand<Self>);
    /// Takes out who is next.
    fn pop(&mut self) -> Option<Hand<Self>>;
    /// Number `ticket` waits no more. It may have been taken out already.
    fn remove(&mut self, ticket: u64, who: Self::Who);
}

/// How somebody who waits is given a turn.
pub type Hand<O> = oneshot::Sender<Turn<O>>;

/// Users in turn, within a user the addresses (`None`: what many clients wait for, or a Unix socket).
#[derive(Debug, Default)]
pub struct Fair(Queue<Hand<Self>>);

/// Hands out one turn at a time.
#[derive(Debug, Default)]
pub struct Turns<O: Order = Fair>(Mutex<State<O>>);

#[derive(Debug, Default)]
struct State<O: Order> {
    taken: bool,
    tickets: u64,
    waiting: O,
}

/// What one has at a time, until it is dropped.
#[derive(Debug)]
pub struct Turn<O: Order = Fair>(Option<Arc<Turns<O>>>);

/// A place in the queue. Dropping it leaves the queue.
struct Place<'a, O: Order> {
    turns: &'a Turns<O>,
    ticket: u64,
    who: O::Who,
}

impl Order for Fair {
    type Who = (u64, Option<IpAddr>);

    fn push(&mut self, ticket: u64, (user, address): Self::Who, grant: Hand<Self>) {
        self.0.push(Waiting { ticket, user, address, grant });
    }

    fn pop(&mut self) -> Option<Hand<Self>> {
        self.0.pop(|_| true).map(|next| next.grant)
    }

    fn remove(&mut self, ticket: u64, (user, address): Self::Who) {
        self.0.remove(ticket, user, address);
    }
}

impl Turns {
    /// Waits for a turn for a client of `user` at `address`.
    pub async fn turn(self: &Arc<Self>, user: u64, address: Option<IpAddr>) -> Turn {
        self.turn_of((user, address)).await
    }
}

impl<O: Order> Turns<O> {
    /// Waits for a turn for `who`.
    pub async fn turn_of(self: &Arc<Self>, who: O::Who) -> Turn<O> {
        loop {
            let (granted, place) = {
                let mut state = self.0.lock();
                if !state.taken {
                    state.taken = true;
                    return Turn(Some(Arc::clone(self)));
                }
                let (hand, granted) = oneshot::channel();
                state.tickets += 1;
                let ticket = state.tickets;
                state.waiting.push(ticket, who, hand);
                (granted, Place { turns: self, ticket, who })
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

impl<O: Order> Drop for Place<'_, O> {
    fn drop(&mut self) {
        self.turns.0.lock().waiting.remove(self.ticket, self.who);
    }
}

impl<O: Order> Drop for Turn<O> {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else { return };
        loop {
            let next = {
                let mut state = turns.0.lock();
                let next = state.waiting.pop();
                state.taken = next.is_some();
                next
            };
            let Some(next) = next else { return };
            match next.send(Self(Some(Arc::clone(&turns)))) {
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
