//! How workers are reached from other threads: messages in, answers back. Never on the path of a command.

mod acts;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustls::ServerConnection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::admission::{Admission, AdmissionGuard, Refused};
use super::identity::{Account, Directory, Membership};
use super::moved::{Announced, ClientDescription, MovedClient, Peer, WayOut};
use super::redirection::Inbox;
use super::settings::WorkerSettings;
use crate::command::Row;
use crate::hub::HubRow;
use crate::pool::{LaneRow, Unavailable};
use crate::resp::Protocol;
use crate::session::{ClientRow, Endpoint, Filter};
use crate::telemetry::{ClientClose, Seconds, client_closed};
use crate::upstream::{HostPort, Identity};
use acts::Acts;

/// Messages to a worker from other threads.
#[derive(Debug)]
pub enum Message {
    /// A new client.
    Client(Accepted),
    /// The rows of its clients.
    Rows(oneshot::Sender<Vec<ClientRow>>),
    /// The rows of its lanes.
    Lanes(oneshot::Sender<Vec<LaneRow>>),
    /// CLIENT KILL; the answer is how many it closed.
    Kill(Filter, u64, oneshot::Sender<i64>),
    /// This client holds most of the memory, and all hold too much: it is to be closed.
    YieldMemory(u64),
    /// CLIENT UNBLOCK; the answer is whether it has ended the client's wait. None means no.
    Unblock(u64, bool, oneshot::Sender<bool>),
    /// The inbox of client `.0`, if it is one of user `.1`. None means no.
    Inbox(u64, u64, oneshot::Sender<Arc<Inbox>>),
    /// A request for the control connection, which the first worker keeps.
    Control(Question),
    /// The account is removed.
    Revoke(Arc<Account>),
    /// Answer, to show that the thread lives.
    Alive(oneshot::Sender<()>),
    /// The rows of its hubs.
    Hubs(oneshot::Sender<Vec<HubRow>>),
    /// All its upstream connections must be renewed.
    Reconnect(Option<HostPort>),
    /// Publish the counts since the last call.
    Publish(oneshot::Sender<WorkerFigures>),
    /// The server's address has changed.
    AddressChanged,
    /// Other settings, from now on.
    Configure(Box<WorkerSettings>, oneshot::Sender<()>),
    /// `upstream.url` names another server or user: connections move when they are free.
    MoveUpstream(oneshot::Sender<()>),
    /// Sentinels name another master, to which the connector dials now: within this time connections to the former one are
    /// left. The answer says that it is done.
    SwitchMaster(Duration, oneshot::Sender<()>),
    /// Another process has taken over: clients that can be moved go there.
    Leave(WayOut),
    /// Close idle and blocked clients, finish the others, close everything upstream, within this time. The answer is
    /// how many clients were cut with commands in flight.
    Drain(Instant, oneshot::Sender<usize>),
}

/// An accepted connection, on its way to its worker.
#[derive(Debug)]
pub struct Accepted {
    /// The socket, not yet registered with any runtime.
    pub stream: Incoming,
    /// Where it comes from.
    pub peer: Endpoint,
    /// Whether the listener it came by can be reached by this host alone.
    pub trusted: bool,
    /// Its session state from the previous process or another worker.
    pub(super) before: Option<Box<Before>>,
    /// Its place.
    pub(super) place: AdmissionGuard,
}

/// What the server is asked on the control connection.
#[derive(Debug)]
pub struct Question {
    /// Whose request it is, as a number.
    pub user: u64,
    /// Where its client is: users and addresses come in turn.
    pub address: Option<IpAddr>,
    /// The identity of the login.
    pub identity: Arc<Identity>,
    /// In which protocol to ask.
    pub protocol: Protocol,
    /// The whole request.
    pub request: Bytes,
    /// Where the whole reply goes.
    pub reply: oneshot::Sender<Result<Bytes, Unavailable>>,
}

/// A client of the process before this one, or of another worker.
#[derive(Debug)]
pub(super) struct Before {
    pub(super) description: ClientDescription,
    /// This process does not own it yet.
    pub(super) announced: Option<Announced>,
    /// Its state from another worker.
    pub(super) along: Option<Along>,
}

/// State of a client that only another worker of the same process can use.
#[derive(Debug)]
pub(super) struct Along {
    pub(super) membership: Membership,
    pub(super) last_command: Option<&'static Row>,
}

/// A new client's socket.
#[derive(Debug)]
pub enum Incoming {
    /// TCP.
    Tcp(std::net::TcpStream),
    /// TCP, and the TLS session over it.
    Tls(std::net::TcpStream, Box<ServerConnection>),
    /// A Unix socket.
    Unix(std::os::unix::net::UnixStream),
    /// In memory.
    #[cfg(test)]
    Simulated(crate::upstream::simulated::End),
}

/// A client's place among those of one worker, counted until the client is gone.
#[derive(Debug)]
pub(super) struct WorkerSlot {
    link: WorkerHandle,
    peer: Endpoint,
    /// Handed over with the client.
    place: Option<AdmissionGuard>,
}

impl WorkerSlot {
    pub(super) fn peer(&self) -> &Endpoint {
        &self.peer
    }

    pub(super) fn place(&self) -> Option<&AdmissionGuard> {
        self.place.as_ref()
    }

    /// Hands the client to its worker, which counts it from now on. Refused only while stopping: then its connection
    /// closes.
    pub(super) async fn take(mut self, bring: impl FnOnce(AdmissionGuard) -> Accepted) {
        let Some(place) = self.place.take() else { return };
        if self.link.sender.send(Message::Client(bring(place))).await.is_err() {
            self.link.client_left();
            client_closed(ClientClose::Shutdown);
        }
    }
}

impl Drop for WorkerSlot {
    fn drop(&mut self) {
        if self.place.is_some() {
            self.link.client_left();
        }
    }
}

/// One worker as the others see it.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    sender: mpsc::Sender<Message>,
    clients: Arc<AtomicUsize>,
}

/// All workers, and the places of their clients.
#[derive(Clone, Debug)]
pub struct Workers {
    all: Arc<[WorkerHandle]>,
    places: Arc<Admission>,
    acts: Arc<Acts>,
}

impl WorkerHandle {
    /// A link and the end that its worker keeps.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Message>) {
        let (sender, receiver) = mpsc::channel(1024);
        (Self { sender, clients: Arc::default() }, receiver)
    }

    fn client_left(&self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Measurements of a worker since its start, and its current state.
#[derive(Clone, Debug)]
pub struct WorkerFigures {
    /// From the first command of a batch to its last reply.
    pub replies: Seconds,
    /// PINGs on lanes.
    pub round_trips: Seconds,
    /// How long commands took, by family.
    pub families: Vec<(&'static str, Seconds)>,
    /// Leases that are held, and how long others were held, by pin.
    pub leases: Vec<(&'static str, usize, Seconds)>,
    /// Bytes of requests that the server has not taken.
    pub unwritten: usize,
    /// Blocked clients in hubs.
    pub blocked: usize,
    /// Keys that hubs watch.
    pub keys: usize,
    /// Channels and patterns that hubs are subscribed to.
    pub names: usize,
}

impl Workers {
    /// All workers, the first one first.
    #[must_use]
    pub fn new(workers: Vec<WorkerHandle>, places: Arc<Admission>) -> Self {
        Self { all: workers.into(), places, acts: Arc::default() }
    }

    /// The places of clients.
    #[must_use]
    pub fn places(&self) -> &Admission {
        &self.places
    }

    /// A client that was handed to this worker is gone.
    pub(super) fn client_left(&self, worker: usize) {
        if let Some(link) = self.all.get(worker) {
            link.client_left();
        }
    }

    /// How many clients are connected, on all workers.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.all.iter().map(|link| link.clients.load(Ordering::Relaxed)).sum()
    }

    /// A place for a client from `peer`, with the worker that has the fewest; with `waits` among those that have not logged
    /// in.
    ///
    /// # Errors
    /// There are too many.
    pub(super) fn seat(&self, peer: &Endpoint, waits: bool) -> Result<WorkerSlot, Refused> {
        let fewest = self.all.iter().min_by_key(|link| link.clients.load(Ordering::Relaxed));
        let link = fewest.ok_or(Refused::Full)?;
        let place = self.places.enter(peer, waits)?;
        link.clients.fetch_add(1, Ordering::Relaxed);
        Ok(WorkerSlot { link: link.clone(), peer: peer.clone(), place: Some(place) })
    }

    /// Goes on with a client of the process before this one; with one that is `announced` if it is given.
    pub async fn adopt(&self, client: MovedClient, announced: Option<Announced>) {
        let MovedClient { description, socket } = client;
        let peer = description.peer.endpoint();
        let stream = match &description.peer {
            Peer::Tcp(_) => Incoming::Tcp(socket.into()),
            Peer::Unix(_) => Incoming::Unix(socket.into()),
        };
        let Ok(seat) = self.seat(&peer, false) else {
            return client_closed(ClientClose::TooMany);
        };
        let before = Before { description, announced, along: None };
        let (trusted, before) = (before.description.trusted, Some(Box::new(before)));
        seat.take(|place| Accepted { stream, peer, trusted, before, place }).await;
    }

    /// Has another worker go on with a client that `bring` takes from the one it has. `None`: not now; `false`: it stays.
    pub(super) fn pass_on(&self, worker: usize, bring: impl FnOnce() -> Option<Accepted>) -> Option<bool> {
        let link = self.all.get(worker)?;
        let _quiet = self.acts.quiet()?;
        let room = link.sender.try_reserve().ok()?;
        let Some(accepted) = bring() else { return Some(false) };
        link.clients.fetch_add(1, Ordering::Relaxed);
        room.send(Message::Client(accepted));
        Some(true)
    }

    /// Another process has taken over: from now on clients that can be moved come by `way`.
    pub async fn leave(&self, way: &WayOut) {
        for worker in 0..self.all.len() {
            // A worker that has ended has no clients.
            let _ = self.send(worker, Message::Leave(way.clone())).await;
        }
    }

    /// Seats a client whose socket came by no listener, inside.
    #[cfg(any(test, fuzzing))]
    pub(crate) async fn admit(&self, stream: Incoming, peer: Endpoint, trusted: bool) {
        if let Ok(seat) = self.seat(&peer, false) {
            seat.take(|place| Accepted { stream, peer, trusted, before: None, place }).await;
        }
    }

    /// Sends `message` to one worker.
    ///
    /// # Errors
    /// When that worker is gone.
    pub async fn send(&self, worker: usize, message: Message) -> Result<(), ()> {
        let Some(link) = self.all.get(worker) else { return Err(()) };
        link.sender.send(message).await.map_err(|_| ())
    }

    /// Sends `message` to one worker, if there is room for it now.
    pub(super) fn try_send(&self, worker: usize, message: Message) -> bool {
        self.all.get(worker).is_some_and(|link| link.sender.try_send(message).is_ok())
    }

    async fn ask<T>(&self, question: impl Fn(oneshot::Sender<T>) -> Message) -> Vec<T> {
        let _act = self.acts.begin();
        let mut answers = Vec::new();
        for worker in 0..self.all.len() {
            let (sender, receiver) = oneshot::channel();
            if self.send(worker, question(sender)).await.is_ok()
                && let Ok(answer) = receiver.await
            {
                answers.push(answer);
            }
        }
        answers
    }

    /// The rows of all clients.
    pub async fn rows(&self) -> Vec<ClientRow> {
        self.ask(Message::Rows).await.into_iter().flatten().collect()
    }

    /// The rows of all lanes.
    pub async fn lanes(&self) -> Vec<LaneRow> {
        self.ask(Message::Lanes).await.into_iter().flatten().collect()
    }

    /// Waits until every worker has answered; one that has ended its drain need not.
    pub async fn answer(&self) {
        self.ask(Message::Alive).await;
    }

    /// Has every worker publish its counts, so that a scrape is of this moment, and returns what is not the exporter's.
    pub async fn publish(&self) -> Vec<WorkerFigures> {
        self.ask(Message::Publish).await
    }

    /// Closes the clients that match `filter`; `me` is the sender.
    pub async fn kill(&self, filter: &Filter, me: u64) -> i64 {
        self.ask(|reply| Message::Kill(filter.clone(), me, reply)).await.into_iter().sum()
    }

    /// Unblocks a blocked client. `false`: no such client, or it is not blocked.
    pub async fn unblock(&self, id: u64, with_error: bool) -> bool {
        self.ask(|reply| Message::Unblock(id, with_error, reply)).await.into_iter().any(|done| done)
    }

    /// Where what other clients of `user` are to be told can go to client `id`, if that is one of `user`.
    pub(super) async fn inbox(&self, id: u64, user: u64) -> Option<Arc<Inbox>> {
        self.ask(|reply| Message::Inbox(id, user, reply)).await.pop()
    }

    /// Removes `account` on all workers.
    pub async fn revoke(&self, directory: &Directory, account: Arc<Account>) {
        let (user, clients) = (&account.user.name, account.clients());
        tracing::warn!(%user, clients, reason = "login_revoked", "a user is no longer accepted; its clients are closed");
        directory.forget(&account);
        let _act = self.acts.begin();
        for worker in 0..self.all.len() {
            // A worker that has ended has no clients.
            let _ = self.send(worker, Message::Revoke(Arc::clone(&account))).await;
        }
        self.answer().await;
    }

    /// Tells every worker that the server's address has changed.
    pub async fn address_changed(&self) {
        for worker in 0..self.all.len() {
            // A worker that has ended has no lanes to move.
            let _ = self.send(worker, Message::AddressChanged).await;
        }
    }

    /// Gives every worker other settings; returns when all have them.
    pub async fn configure(&self, settings: &WorkerSettings) {
        self.ask(|reply| Message::Configure(Box::new(settings.clone()), reply)).await;
    }

    /// Has every worker move its connections to the server that the connector dials now.
    pub async fn move_upstream(&self) {
        self.ask(Message::MoveUpstream).await;
    }

    /// Has every worker leave the former master within `grace`, all at the same time. Returns when they have.
    pub async fn switch_master(&self, grace: Duration) {
        let mut answers = Vec::new();
        for worker in 0..self.all.len() {
            let (sender, receiver) = oneshot::channel();
            if self.send(worker, Message::SwitchMaster(grace, sender)).await.is_ok() {
                answers.push(receiver);
            }
        }
        for answer in answers {
            // A worker that has ended has no connections.
            let _ = answer.await;
        }
    }

    /// The rows of all hubs.
    pub async fn hubs(&self) -> Vec<HubRow> {
        self.ask(Message::Hubs).await.into_iter().flatten().collect()
    }

    /// Has every worker renew its upstream connections as they become free; with `node`, those to that node of a cluster.
    pub async fn reconnect(&self, node: Option<&HostPort>) {
        for worker in 0..self.all.len() {
            // A worker that has ended has no connections.
            let _ = self.send(worker, Message::Reconnect(node.cloned())).await;
        }
    }

    /// Drains every worker at the same time. Returns how many clients were cut.
    pub async fn drain(&self, deadline: Instant) -> usize {
        let mut answers = Vec::new();
        for worker in 0..self.all.len() {
            let (sender, receiver) = oneshot::channel();
            if self.send(worker, Message::Drain(deadline, sender)).await.is_ok() {
                answers.push(receiver);
            }
        }
        let mut cut = 0;
        for answer in answers {
            cut += answer.await.unwrap_or(0);
        }
        cut
    }
}
