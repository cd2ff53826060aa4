//! The way from one process to the other, as the workers at its two ends see it.
//!
//! A client that has nothing but its session goes at once. One for which the server sends by itself, a subscriber, is
//! announced first: the other process gets ready, and the one that has it decides whether it goes or stays.

use tokio::sync::{mpsc, oneshot};

use super::MovedClient;

/// What the process that takes over can go on with, besides clients between two commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepts {
    /// Subscribers.
    pub subscribers: bool,
    /// Clients that are blocked.
    pub blocked: bool,
    /// Clients with client-side caching.
    pub tracking: bool,
    /// The same of subscribers.
    pub tracking_subscribers: bool,
    /// Client-side caching by prefix.
    pub tracking_prefixes: bool,
}

/// By which clients go to the process that takes over.
#[derive(Clone, Debug)]
pub struct WayOut {
    /// To the connection between the processes.
    pub sender: mpsc::Sender<Leaving>,
    /// What may go there.
    pub accepts: Accepts,
}

/// What goes to the process that takes over, in this order.
#[derive(Debug)]
pub enum Leaving {
    /// A client that is the other process's from now on.
    Client(MovedClient),
    /// A client that stays here until it is given. The sender is used if the other process cannot go on with it, and
    /// dropped if there is no other process any more.
    Announced(MovedClient, oneshot::Sender<()>),
    /// An announced client is the other process's from now on.
    Given {
        /// CLIENT ID.
        client: u64,
        /// What it has sent since it was announced, and before, and what was not run.
        input: Vec<u8>,
        /// It has received an invalidation for each key that it may have cached.
        has_forgotten: bool,
    },
    /// An announced client stays here.
    Kept {
        /// CLIENT ID.
        client: u64,
    },
}

/// What becomes of a client that was announced.
#[derive(Debug)]
pub enum Verdict {
    /// It is ours, with this input that was not run, and whether it has been told to forget each key that it may have cached.
    Given(Vec<u8>, bool),
    /// It stays where it was.
    Kept,
}

/// A client that was announced to this process. Dropped without a verdict, it is declined.
#[derive(Debug)]
pub struct Announced {
    client: u64,
    verdict: oneshot::Receiver<Verdict>,
    declined: mpsc::Sender<u64>,
    is_settled: bool,
}

impl Announced {
    /// Client `client`, and the end by which the verdict comes. The number of one that is declined goes to `declined`.
    #[must_use]
    pub fn new(client: u64, declined: mpsc::Sender<u64>) -> (Self, oneshot::Sender<Verdict>) {
        let (sender, verdict) = oneshot::channel();
        (Self { client, verdict, declined, is_settled: false }, sender)
    }

    /// This process cannot go on with it. The verdict still decides.
    pub(in crate::downstream) fn decline(&self) {
        // One that is not told waits until its time is over.
        let _ = self.declined.try_send(self.client);
    }

    /// What becomes of it. `None`: the other process is gone.
    pub(in crate::downstream) async fn verdict(&mut self) -> Option<Verdict> {
        if self.is_settled {
            return None;
        }
        let verdict = (&mut self.verdict).await;
        self.is_settled = true;
        verdict.ok()
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        if !self.is_settled {
            self.decline();
        }
    }
}
