//! The process that takes over from this one: what it is given, step by step, and how this one goes on if it fails.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::doors::Doors;
use crate::admin::View;
use crate::downstream::{Accepts, AuthMode, Leaving, MovedClient, WayOut, Workers};
use crate::pool::{Budget, Shared};
use crate::shutdown::StopSignals;
use crate::takeover::{Greeting, Link, Message, STEP, TakeoverError, TakeoverSocket};
use crate::upstream::UpstreamOptions;

/// How often it is looked whether upstream connections have closed, for the other process to open its own.
const LOOK: Duration = Duration::from_millis(10);
/// How many clients may come between the offer and the end of accepting.
const FURTHER_CLIENTS: u64 = 1 << 20;
/// How many clients may be on their way to the other process.
const ON_THEIR_WAY: usize = 64;
/// How long the new process may take to reach the server: its own patience, and a step of ours.
const PREPARE: Duration = Duration::from_secs(20);

/// What this process says of itself.
pub(super) struct Own {
    pub(super) shared: Shared,
    /// What must be the same for clients to move.
    pub(super) terms: String,
    /// The connector's generation at the start.
    pub(super) generation: u64,
    /// The next client's id.
    pub(super) ids: Arc<AtomicU64>,
}

/// What must be the same in two processes for clients to move from one to the other: the server, and how clients log in.
pub(super) fn terms(upstream: &UpstreamOptions, mode: AuthMode) -> String {
    let UpstreamOptions { host, port, database, tls, username, service, .. } = upstream;
    match service {
        None => format!("{host}:{port}/{database} tls={tls} {username:?} {mode:?}"),
        // Whichever of the Sentinels are asked.
        Some(service) => format!("sentinel {}/{database} tls={tls} {username:?} {mode:?}", service.name),
    }
}

/// Returns when another process has taken over. Until then this one serves on, whatever those do that try.
pub(super) async fn replaced<V: View + 'static>(view: &Rc<V>, own: &Own, doors: &Doors) -> Ceiling {
    let Some(socket) = doors.takeover() else { std::future::pending().await };
    loop {
        let link = socket.accept().await;
        let attempt = async {
            tokio::select! {
                biased;
                done = attempt(own, doors, link) => done,
                never = refuse_others(&socket) => match never {},
            }
        };
        match attempt.await {
            Ok(link) => return link,
            Err(error) => {
                tracing::warn!(%error, "takeover failed; this process continues to serve");
                go_on(view, &own.shared.budget, doors);
            }
        }
    }
}

/// Nothing has happened.
fn go_on<V: View + 'static>(view: &Rc<V>, budget: &Budget, doors: &Doors) {
    budget.keep(None);
    doors.pause();
    if let Err(error) = doors.open().and_then(|()| doors.open_admin(view)) {
        tracing::error!(%error, "no client can be accepted");
    }
}

async fn refuse_others(socket: &TakeoverSocket) -> std::convert::Infallible {
    loop {
        let link = socket.accept().await;
        let reason = "another process is taking over".to_owned();
        // One that does not read is no concern of ours.
        drop(link.send(&Message::Refused { reason }).await);
    }
}

async fn attempt(own: &Own, doors: &Doors, mut link: Link) -> Result<Ceiling, TakeoverError> {
    let greeting = match link.receive("hello").await? {
        (Message::Hello(greeting), _) => greeting,
        (other, _) => return Err(unexpected(&other)),
    };
    if let Err(error) = greeting.check() {
        link.send(&Message::Refused { reason: error.to_string() }).await?;
        return Err(error);
    }
    let process = greeting.process;
    tracing::info!(process, version = greeting.program, "another process takes over");
    let budget = Arc::clone(&own.shared.budget);
    budget.keep(Some(half(budget.limit())));
    let told = budget.ceiling();
    // Whether a client's database and user are those of another process, too, is known for the server of the start only.
    // Behind Sentinels it is the same service, whoever is the master.
    let connector = &own.shared.connector;
    let is_the_first_server =
        connector.generation() == own.generation || connector.topology().followed().is_some();
    // Until this process does not accept any more, further clients come.
    let next_client = own.ids.load(Ordering::Relaxed) + FURTHER_CLIENTS;
    let offer = Message::Offer { greeting: Greeting::ours(&own.terms), ceiling: told, next_client };
    link.send(&offer).await?;
    let clients_move = is_the_first_server && greeting.terms == own.terms;
    let mut ceiling = Ceiling { link, budget, told, clients_move, accepts: greeting.accepts() };
    ceiling.expect(&Message::Take, PREPARE).await?;
    for handed in doors.hand_over()? {
        let message =
            Message::Socket { role: handed.role.into(), from_service_manager: handed.from_service_manager };
        ceiling.link.send_with(&message, Some(handed.socket.as_fd())).await?;
    }
    ceiling.link.send(&Message::AllSockets).await?;
    ceiling.expect(&Message::Accepting, STEP).await?;
    doors.pause();
    ceiling.link.send(&Message::Released).await?;
    ceiling.expect(&Message::Confirm, STEP).await?;
    Ok(ceiling)
}

fn unexpected(message: &Message) -> TakeoverError {
    TakeoverError::Unexpected(format!("{message:?}"))
}

/// The other process cannot go on with this client. One that has gone, or stays, is none of those that were announced.
fn decline(client: u64, announced: &mut HashMap<u64, oneshot::Sender<()>>) {
    if let Some(waiting) = announced.remove(&client) {
        // It may have left meanwhile.
        let _ = waiting.send(());
    }
}

/// What this process keeps while both serve: half of what it had, and not less than a lane and one more.
fn half(limit: usize) -> usize {
    limit.div_ceil(2).max(2)
}

/// How many upstream connections this process keeps for itself, as the other one was told.
pub(super) struct Ceiling {
    link: Link,
    budget: Arc<Budget>,
    told: usize,
    /// Clients can go on in the other process.
    clients_move: bool,
    /// Which of them besides those between two commands.
    accepts: Accepts,
}

impl Ceiling {
    /// Tells the other process when this one has come to need fewer.
    async fn tell(&mut self) -> Result<(), TakeoverError> {
        let ceiling = self.budget.ceiling();
        if ceiling < self.told {
            self.link.send(&Message::Ceiling { ceiling }).await?;
            self.told = ceiling;
        }
        Ok(())
    }

    /// Waits for `wanted`, for `patience` at the most.
    async fn expect(&mut self, wanted: &Message, patience: Duration) -> Result<(), TakeoverError> {
        let deadline = Instant::now() + patience;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                message = self.link.next() => {
                    let (message, _) = message?;
                    return if message == *wanted { Ok(()) } else { Err(unexpected(&message)) };
                }
                () = sleep_until(deadline) => return Err(TakeoverError::TimedOut("the next step")),
                _ = look.tick() => self.tell().await?,
            }
        }
    }

    /// Keeps as many as the clients need that have stayed, until the process ends.
    async fn follow(
        mut self,
        workers: Workers,
        mut leaving: mpsc::Receiver<Leaving>,
        is_sending: Rc<Cell<bool>>,
    ) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut announced = HashMap::new();
        loop {
            tokio::select! {
                biased;
                Some(client) = leaving.recv() => {
                    is_sending.set(true);
                    let sent = self.send_client(client, &mut announced).await;
                    is_sending.set(false);
                    if sent.is_err() {
                        return;
                    }
                    continue;
                }
                message = self.link.next() => {
                    match message {
                        Ok((Message::Decline { client }, _)) => decline(client, &mut announced),
                        // The other one is gone, or says what does not belong here: nothing more goes there.
                        Ok(_) | Err(_) => return,
                    }
                    continue;
                }
                _ = look.tick() => {}
            }
            let needed = match workers.clients() {
                0 => 0,
                clients => clients + 1,
            };
            if needed < self.budget.limit() {
                self.budget.keep(Some(needed));
            }
            // If the other one is gone, nobody needs to know.
            if self.tell().await.is_err() {
                return;
            }
        }
    }

    async fn send_client(
        &mut self,
        leaving: Leaving,
        announced: &mut HashMap<u64, oneshot::Sender<()>>,
    ) -> Result<(), TakeoverError> {
        match leaving {
            Leaving::Client(MovedClient { description, socket }) => {
                self.link.send_with(&Message::Client(Box::new(description)), Some(socket.as_fd())).await
            }
            Leaving::Announced(MovedClient { description, socket }, declined) => {
                announced.insert(description.id, declined);
                self.link.send_with(&Message::Announce(Box::new(description)), Some(socket.as_fd())).await
            }
            Leaving::Given { client, input, has_forgotten } => {
                announced.remove(&client);
                self.link.send(&Message::Give { client, input, has_forgotten }).await
            }
            Leaving::Kept { client } => {
                announced.remove(&client);
                self.link.send(&Message::Keep { client }).await
            }
        }
    }

    /// Another process has taken over: serves the clients that stay until they have left, for `patience` at the most.
    /// Returns why it ends.
    pub(super) async fn serve_those_who_stay(
        self,
        workers: &Workers,
        signals: &mut StopSignals,
        patience: Duration,
    ) -> &'static str {
        let clients = workers.clients();
        tracing::info!(
            clients,
            "replaced: another process serves new clients; clients of this process move or stay until they disconnect"
        );
        let budget = Arc::clone(&self.budget);
        let (sender, leaving) = mpsc::channel(ON_THEIR_WAY);
        let way = WayOut { sender, accepts: self.accepts };
        let is_sending = Rc::new(Cell::new(false));
        if self.clients_move {
            workers.leave(&way).await;
        }
        tokio::task::spawn_local(self.follow(workers.clone(), leaving, Rc::clone(&is_sending)));
        let is_moving =
            || !way.sender.is_closed() && (way.sender.capacity() < ON_THEIR_WAY || is_sending.get());
        let all_have_left = async {
            let mut look = interval(LOOK);
            // A client that moves is no worker's any more before it is on its way. And while the process before this one serves,
            // only this one knows what that holds.
            while workers.clients() + budget.elsewhere() > 0 || is_moving() {
                look.tick().await;
            }
        };
        let why = tokio::select! {
            biased;
            signal = signals.next() => signal,
            () = all_have_left => "takeover",
            () = tokio::time::sleep(patience) => "takeover.client_timeout",
        };
        let until = Instant::now() + STEP;
        while is_moving() && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
        why
    }
}
