//! The process that this one takes over from: its part of the upstream connections, and its listening sockets.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::error::StartError;
use crate::admin;
use crate::admin::AdminOptions;
use crate::downstream::{
    Announced, HandedSocket, InheritedSockets, ListenerRole, MovedClient, Verdict, Workers,
};
use crate::pool::{Budget, Shared};
use crate::takeover::{Greeting, Link, Message, STEP, TakeoverError, TakeoverSocket, connect};

/// How often it is looked whether the server has let us in.
const LOOK: Duration = Duration::from_millis(10);
/// How many clients may be declined and not yet told of.
const DECLINED: usize = 1024;

/// The process that serves until this one does.
pub(super) struct Predecessor {
    link: Link,
    ceiling: usize,
    /// The first client's id that it has not given.
    pub(super) next_client: u64,
}

impl Predecessor {
    /// Finds the process that listens at `path` and asks it to make room. `None`: there is none.
    pub(super) async fn find(path: &Path, terms: &str) -> Result<Option<Self>, TakeoverError> {
        let Some(mut link) = connect(path).await? else {
            tracing::info!(path = %path.display(), "no running redbouncer to take over from");
            return Ok(None);
        };
        link.send(&Message::Hello(Greeting::ours(terms))).await?;
        let (greeting, ceiling, next_client) = match link.receive("an offer").await? {
            (Message::Offer { greeting, ceiling, next_client }, _) => (greeting, ceiling, next_client),
            (other, _) => return Err(unexpected(&other)),
        };
        greeting.check()?;
        tracing::info!(
            process = greeting.process,
            version = greeting.program,
            "taking over from the running redbouncer"
        );
        Ok(Some(Self { link, ceiling, next_client }))
    }

    /// Leaves to it the upstream connections that it has kept.
    pub(super) fn bound(&self, budget: &Budget) {
        budget.set_elsewhere(self.ceiling);
    }

    /// Waits until the server has let this process in: it does not take over with a configuration that does not work.
    pub(super) async fn await_server(&mut self, shared: &Shared) -> Result<(), TakeoverError> {
        let deadline = Instant::now() + STEP;
        while shared.connector.server().is_none() {
            if Instant::now() >= deadline {
                let why = shared.health.why_down();
                return Err(TakeoverError::Server(why.unwrap_or_else(|| "no answer".to_owned())));
            }
            if let Ok(message) = tokio::time::timeout(LOOK, self.link.next()).await {
                self.heed(&message?.0, &shared.budget)?;
            }
        }
        Ok(())
    }

    fn heed(&mut self, message: &Message, budget: &Budget) -> Result<(), TakeoverError> {
        match message {
            Message::Ceiling { ceiling } => {
                self.ceiling = *ceiling;
                self.bound(budget);
                Ok(())
            }
            Message::Refused { reason } => Err(TakeoverError::Refused(reason.clone())),
            other @ (Message::Hello(_)
            | Message::Offer { .. }
            | Message::Take
            | Message::Socket { .. }
            | Message::AllSockets
            | Message::Accepting
            | Message::Released
            | Message::Confirm
            | Message::Client(_)
            | Message::Announce(_)
            | Message::Give { .. }
            | Message::Keep { .. }
            | Message::Decline { .. }) => Err(unexpected(other)),
        }
    }

    /// Its listening sockets.
    pub(super) async fn take_sockets(&mut self, budget: &Budget) -> Result<InheritedSockets, TakeoverError> {
        self.link.send(&Message::Take).await?;
        let mut sockets = InheritedSockets::default();
        loop {
            match self.link.receive("a listening socket").await? {
                (Message::Socket { role, from_service_manager }, Some(socket)) => {
                    sockets.add(HandedSocket { role: role.into(), from_service_manager, socket });
                }
                (Message::AllSockets, _) => return Ok(sockets),
                (message, _) => self.heed(&message, budget)?,
            }
        }
    }

    /// This process accepts; returns when the other one does not any more and knows that it is replaced.
    pub(super) async fn replace(&mut self, budget: &Budget) -> Result<(), TakeoverError> {
        self.link.send(&Message::Accepting).await?;
        loop {
            match self.link.receive("that it has stopped accepting").await? {
                (Message::Released, _) => break,
                (message, _) => self.heed(&message, budget)?,
            }
        }
        self.link.send(&Message::Confirm).await
    }

    /// Takes over clients, and upstream connections as the other one closes its own, until it has ended.
    pub(super) async fn follow(mut self, budget: Arc<Budget>, workers: Workers) {
        let (decline, mut declined) = mpsc::channel(DECLINED);
        let mut newcomers = Newcomers { workers, decline, announced: HashMap::new() };
        loop {
            let heeded = tokio::select! {
                biased;
                Some(client) = declined.recv() => {
                    // If it has ended, it may have said before what becomes of its clients: that is still read.
                    let _ = self.link.send(&Message::Decline { client }).await;
                    Ok(())
                }
                message = self.link.next() => match message {
                    Ok((message, socket)) => match newcomers.heed(message, socket).await {
                        None => Ok(()),
                        Some(other) => self.heed(&other, &budget),
                    },
                    Err(error) => Err(error),
                }
            };
            match heeded {
                Ok(()) => {}
                Err(TakeoverError::Closed) => break,
                Err(error) => {
                    tracing::warn!(%error, "the replaced process no longer reports its connections");
                    break;
                }
            }
        }
        budget.set_elsewhere(0);
        tracing::info!("the replaced process has exited");
    }
}

/// The clients that come from the other process.
struct Newcomers {
    workers: Workers,
    /// Which of those that were announced this process cannot go on with.
    decline: mpsc::Sender<u64>,
    /// Those that the other process still has.
    announced: HashMap<u64, oneshot::Sender<Verdict>>,
}

impl Newcomers {
    /// Takes what is said of clients; returns what is said of anything else.
    async fn heed(&mut self, message: Message, socket: Option<OwnedFd>) -> Option<Message> {
        match (message, socket) {
            (Message::Client(description), Some(socket)) => {
                self.workers.adopt(MovedClient { description: *description, socket }, None).await;
            }
            (Message::Announce(description), Some(socket)) => {
                let (announced, verdict) = Announced::new(description.id, self.decline.clone());
                self.announced.insert(description.id, verdict);
                self.workers.adopt(MovedClient { description: *description, socket }, Some(announced)).await;
            }
            (Message::Give { client, input, has_forgotten }, _) => {
                self.decide(client, Verdict::Given(input, has_forgotten));
            }
            (Message::Keep { client }, _) => self.decide(client, Verdict::Kept),
            (other, _) => return Some(other),
        }
        None
    }

    fn decide(&mut self, client: u64, verdict: Verdict) {
        if let Some(waiting) = self.announced.remove(&client) {
            // One that does not wait any more has been closed.
            let _ = waiting.send(verdict);
        }
    }
}

fn unexpected(message: &Message) -> TakeoverError {
    TakeoverError::Unexpected(format!("{message:?}"))
}

/// The admin port: that of the process before this one, where it has the configured address.
pub(super) async fn open_admin(
    options: &AdminOptions,
    inherited: &mut InheritedSockets,
) -> Result<Option<admin::Server>, StartError> {
    let Some(configured) = &options.address else { return Ok(None) };
    // A name that does not resolve is an error of the bind below.
    let addresses: Vec<_> = lookup_host(configured).await.into_iter().flatten().collect();
    let had = addresses.iter().find_map(|address| inherited.take_tcp(ListenerRole::Admin, *address));
    Ok(Some(match had {
        Some(listener) => admin::Server::on(listener, configured)?,
        None => admin::Server::bind(configured).await?,
    }))
}

/// The socket by which the next process may take over: that of the process before this one, where it has the same path.
pub(super) fn open_takeover(
    path: Option<&Path>,
    inherited: &mut InheritedSockets,
) -> Result<Option<TakeoverSocket>, StartError> {
    let Some(path) = path else { return Ok(None) };
    let fits = |socket: &_| TakeoverSocket::is_bound_to(socket, path);
    Ok(Some(match inherited.take_handed(ListenerRole::Takeover, fits) {
        Some(socket) => TakeoverSocket::take(socket, path)?,
        None => TakeoverSocket::bind(path)?,
    }))
}
