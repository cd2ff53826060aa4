//! One worker: a thread that owns its clients, lanes and leases outright, and what reaches it from outside.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Counter, counter};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::blocking::Waiter;
use super::client::Client;
use super::identity::{Account, Directory};
use super::links::{Accepted, Incoming, Link, Links, Message};
use super::options::{AdminCommands, AuthOptions, ClientOptions};
use super::places::Place;
use super::recheck::recheck;
use super::rights::Refusals;
use super::server_change::Heeded;
use super::socket::ClientSocket;
use super::wire::Wire;
use crate::command::{Asked, rows};
use crate::hub::{Audience, BlockingHubs, BlockingOptions, GiveBack, PubSubHubs, PubSubOptions, Unblock};
use crate::hygiene::{HygieneOptions, Reaper};
use crate::pool::{Control, Pool, Pressure, Slice, Turns, Unavailable, Victim};
use crate::resp::{MAX_ARGUMENTS, MAX_ARGUMENTS_OLD};
use crate::session::{
    ALWAYS_TAKEN, ClientRow, Filter, Listed, LoadedModule, Pin, Placement, Policy, RowFormat, ServerFacts,
    Session,
};
use crate::telemetry::{ClientClose, Counted, UpstreamClose, client_closed, publish_gauge, publish_tasks};
use crate::upstream::{Lacks, tune};

/// The rhythm of a worker's housekeeping.
const TICK: Duration = Duration::from_millis(100);
/// How often a drain looks whether it is done.
const DRAIN_STEP: Duration = Duration::from_millis(5);

/// What all workers' clients share.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Limits and times of clients.
    pub clients: ClientOptions,
    /// Who may do what.
    pub auth: AuthOptions,
    /// How blocking calls wait.
    pub blocking: BlockingOptions,
    /// How subscribers are served.
    pub pubsub: PubSubOptions,
    /// What becomes of connections without an owner.
    pub hygiene: HygieneOptions,
    /// Cancelled when orphans have been looked for once.
    pub first_look: CancellationToken,
    /// Who hears what.
    pub audience: Arc<Audience>,
    /// Who is who.
    pub directory: Arc<Directory>,
    /// The next client's id.
    pub ids: Arc<AtomicU64>,
}

/// The counters of one worker's hot path.
pub(super) struct WorkerMetrics {
    pub(super) bytes_in: Counted,
    pub(super) bytes_out: Counted,
    commands: Vec<Cell<u64>>,
    handles: RefCell<HashMap<usize, Counter>>,
    label: String,
}

/// One worker.
pub(crate) struct Worker {
    pub(super) pool: Rc<Pool>,
    pub(super) options: ClientOptions,
    pub(super) auth: AuthOptions,
    pub(super) blocking: BlockingOptions,
    pub(super) give_back: Rc<GiveBack>,
    /// Where blocking calls wait.
    pub(super) hubs: Rc<BlockingHubs>,
    /// Where subscribers listen.
    pub(super) pubsub: Rc<PubSubHubs>,
    pub(super) directory: Arc<Directory>,
    pub(super) links: Links,
    pub(super) scratch: RefCell<Vec<u8>>,
    pub(super) clients: RefCell<BTreeMap<u64, Rc<Client>>>,
    /// Clients that have much unread.
    pub(super) slow_readers: RefCell<BTreeSet<u64>>,
    /// Clients that were read no further for the memory they hold.
    pub(super) paused: RefCell<BTreeSet<u64>>,
    /// Which of the workers this is.
    pub(super) index: usize,
    pub(super) waiters: RefCell<Vec<Rc<Waiter>>>,
    /// Where commands that are in no table may run, as the server said.
    pub(super) asked: RefCell<HashMap<Vec<u8>, Placement>>,
    /// Users who may MULTI and EXEC, so that blocking calls can be tried.
    pub(super) may_try: RefCell<HashSet<u64>>,
    /// Most arguments of one request that the server takes.
    pub(super) max_arguments: Cell<u32>,
    /// How the server writes a row of CLIENT LIST, by the version that was asked.
    pub(super) row_format: RefCell<Option<(String, RowFormat)>>,
    /// What the server has said about who may see others.
    pub(super) refusals: Refusals,
    pub(super) metrics: WorkerMetrics,
    /// Elements on their way back into their keys.
    pub(super) saving: Cell<usize>,
    pub(super) stopping: Cell<bool>,
    pub(super) heeded: Heeded,
    ids: Arc<AtomicU64>,
    control: Rc<Mutex<Control>>,
    /// Who asks on the control connection next.
    questions: Arc<Turns>,
    /// Whose CLIENT LIST or KILL is worked on here: one at a time.
    pub(super) listings: Arc<Turns>,
    /// The same for PROXY, which waits for no CLIENT LIST.
    pub(super) proxy_listings: Arc<Turns>,
    /// On the first worker, until the drain: what looks after connections and logins by itself.
    upkeep: RefCell<Vec<AbortHandle>>,
    link: Option<Link>,
    policy: Cell<Policy>,
    /// When a client last had the server asked for its limit on arguments.
    pub(super) limit_asked: Cell<Option<Instant>>,
    warned_full: Cell<Option<Instant>>,
    warned_outage: Cell<Option<Instant>>,
    warned_failures: Cell<Option<Instant>>,
    warned_memory: Cell<Option<Instant>>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("clients", &self.clients.borrow().len()).finish_non_exhaustive()
    }
}

impl WorkerMetrics {
    fn new(index: usize) -> Self {
        let bytes = |direction: &'static str| {
            Counted::new(counter!("redbouncer_client_bytes_total", "direction" => direction))
        };
        Self {
            bytes_in: bytes("in"),
            bytes_out: bytes("out"),
            commands: (0..=rows().len()).map(|_| Cell::new(0)).collect(),
            handles: RefCell::default(),
            label: index.to_string(),
        }
    }

    fn publish(&self) {
        self.bytes_in.publish();
        self.bytes_out.publish();
        let mut handles = self.handles.borrow_mut();
        for (at, cell) in self.commands.iter().enumerate() {
            let count = cell.replace(0);
            if count > 0 {
                let name = rows().get(at).map_or("unknown", |row| row.name);
                handles
                    .entry(at)
                    .or_insert_with(|| counter!("redbouncer_commands_total", "command" => name))
                    .increment(count);
            }
        }
    }
}

impl Worker {
    /// A worker without clients.
    #[must_use]
    pub(crate) fn new(index: usize, pool: Rc<Pool>, terms: Terms, links: Links) -> Rc<Self> {
        let refuse_admin = terms.auth.admin_commands == AdminCommands::Refuse;
        let link = links.of(index);
        let give_back = GiveBack::new(Rc::clone(&pool), terms.blocking.give_back);
        let hubs = BlockingHubs::new(
            Rc::clone(&pool),
            terms.blocking.clone(),
            Rc::clone(&give_back),
            terms.auth.cache_ttl,
        );
        let pubsub_hub = terms.pubsub.hub;
        let pubsub = PubSubHubs::new(Rc::clone(&pool), terms.pubsub, terms.audience);
        let control = Rc::new(Mutex::new(Control::default()));
        let mut upkeep = Vec::new();
        if index == 0 {
            let directory = Arc::clone(&terms.directory);
            let candidates = Box::new(move || directory.candidates());
            let reaper = Reaper::new(Rc::clone(&pool), Rc::clone(&control), terms.hygiene, candidates);
            upkeep.push(tokio::task::spawn_local(reaper.run(terms.first_look)).abort_handle());
            let recheck = recheck(Rc::clone(&pool), Arc::clone(&terms.directory), links.clone());
            upkeep.push(tokio::task::spawn_local(recheck).abort_handle());
        }
        Rc::new(Self {
            pool,
            control,
            questions: Arc::default(),
            listings: Arc::default(),
            proxy_listings: Arc::default(),
            upkeep: RefCell::new(upkeep),
            give_back,
            hubs,
            pubsub,
            options: terms.clients,
            refusals: Refusals::new(terms.auth.cache_ttl),
            auth: terms.auth,
            blocking: terms.blocking,
            directory: terms.directory,
            links,
            scratch: RefCell::new(vec![0; 64 << 10]),
            clients: RefCell::default(),
            slow_readers: RefCell::default(),
            paused: RefCell::default(),
            index,
            waiters: RefCell::default(),
            asked: RefCell::default(),
            max_arguments: Cell::new(MAX_ARGUMENTS_OLD),
            row_format: RefCell::default(),
            may_try: RefCell::default(),
            metrics: WorkerMetrics::new(index),
            saving: Cell::new(0),
            stopping: Cell::new(false),
            heeded: Heeded::default(),
            ids: terms.ids,
            link,
            policy: Cell::new(Policy { refuse_admin, pubsub_hub, ..Policy::default() }),
            limit_asked: Cell::new(None),
            warned_full: Cell::new(None),
            warned_outage: Cell::new(None),
            warned_failures: Cell::new(None),
            warned_memory: Cell::new(None),
        })
    }

    /// Runs until the drain is over.
    pub(crate) async fn run(self: Rc<Self>, mut messages: mpsc::Receiver<Message>) {
        let mut pressure = self.pool.shared.budget.watch_pressure();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut ticks = 0_u64;
        loop {
            tokio::select! {
                biased;
                // Rare, both: they keep nobody waiting, and no number of messages keeps them waiting.
                changed = pressure.changed() => if changed.is_ok() {
                    let now: Pressure = *pressure.borrow_and_update();
                    self.relieve(now, Instant::now());
                },
                _ = tick.tick() => {
                    ticks += 1;
                    self.tick(ticks);
                }
                message = messages.recv() => match message {
                    None => return,
                    Some(Message::Drain(deadline, reply)) => {
                        let cut = self.drain(deadline, &mut messages).await;
                        let _ = reply.send(cut);
                        return;
                    }
                    Some(message) => self.handle(message),
                },
            }
        }
    }

    fn handle(self: &Rc<Self>, message: Message) {
        // An answer nobody waits for any more is dropped.
        match message {
            Message::Client(accepted) => self.admit(accepted),
            Message::Rows(reply) => {
                let worker = Rc::clone(self);
                self.pool.tasks().spawn_local(async move { drop(reply.send(worker.rows().await)) });
            }
            Message::Lanes(reply) => drop(reply.send(self.pool.lane_rows())),
            Message::Kill(filter, me, reply) => {
                let worker = Rc::clone(self);
                self.pool.tasks().spawn_local(async move {
                    let _ = reply.send(worker.kill(&filter, me).await);
                });
            }
            Message::YieldMemory(id) => {
                let client = self.clients.borrow().get(&id).cloned();
                if let Some(client) = client {
                    client.yields_memory();
                }
            }
            Message::Unblock(id, with_error, done) => self.unblock(id, Unblock { with_error, done }),
            Message::Control { user, address, identity, protocol, request, reply } => {
                let (pool, control) = (Rc::clone(&self.pool), Rc::clone(&self.control));
                let questions = Arc::clone(&self.questions);
                self.pool.tasks().spawn_local(async move {
                    let _turn = questions.turn(user, address).await;
                    let mut control = control.lock().await;
                    let answer = control.ask(&pool, user, &identity, protocol, &request).await;
                    control.was_needed();
                    drop(reply.send(answer));
                });
            }
            Message::Revoke(account) => self.revoke(&account),
            Message::Publish(reply) => {
                self.publish();
                drop(reply.send(self.pool.seconds().clone()));
            }
            Message::AddressChanged => {
                self.pool.leave_all(UpstreamClose::Moved);
                self.hubs.leave_all(UpstreamClose::Moved);
                self.pubsub.leave_all(UpstreamClose::Moved);
            }
            // Handled by the loop itself.
            Message::Drain(..) => {}
        }
    }

    fn admit(self: &Rc<Self>, accepted: Accepted) {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let anonymous = self.directory.anonymous(accepted.trusted);
        let user = anonymous.as_ref().map(|own| own.account.user.clone());
        let session = Session::new(id, user, self.pool.shared.upstream.database);
        let socket = match self.registered(accepted.stream) {
            Ok(socket) => socket,
            Err(error) => {
                let reason = ClientClose::ClientLost;
                client_closed(reason);
                tracing::debug!(peer = %accepted.peer, reason = reason.label(), %error, "client closed before it was served");
                if let Some(link) = &self.link {
                    link.client_left();
                }
                return;
            }
        };
        tracing::debug!(client = id, peer = %accepted.peer, "client connected");
        let client = Client::new(
            Rc::clone(self),
            socket,
            (accepted.peer, accepted.local),
            session,
            anonymous,
            accepted.trusted,
            accepted.place,
        );
        self.clients.borrow_mut().insert(id, Rc::clone(&client));
        let stay = client.admission.borrow().as_ref().and_then(Place::stay);
        if let Some(stay) = stay {
            let client = Rc::downgrade(&client);
            self.pool.tasks().spawn_local(async move {
                if stay.is_given_up().await
                    && let Some(client) = client.upgrade()
                {
                    client.doom(ClientClose::GaveWay);
                }
            });
        }
        self.pool.tasks().spawn_local(client.run());
    }

    /// A new client's socket on this thread's runtime, set up: NODELAY, keepalive, a watch for its host.
    fn registered(&self, incoming: Incoming) -> std::io::Result<ClientSocket> {
        let tuned = |stream| {
            let stream = TcpStream::from_std(stream)?;
            tune(&stream, &self.options.keepalive, self.options.user_timeout)?;
            std::io::Result::Ok(Wire::tcp(stream, self.options.user_timeout))
        };
        Ok(match incoming {
            Incoming::Tcp(stream) => ClientSocket::Plain(tuned(stream)?),
            Incoming::Tls(stream, session) => ClientSocket::secured(tuned(stream)?, *session),
            Incoming::Unix(stream) => ClientSocket::Plain(UnixStream::from_std(stream)?.into()),
            #[cfg(test)]
            Incoming::Simulated(end) => ClientSocket::Plain(Wire::Simulated(end)),
        })
    }

    /// The client is closed: nothing here knows it any more.
    pub(super) fn forget(&self, client: &Client) {
        self.clients.borrow_mut().remove(&client.id);
        if let Some(link) = &self.link {
            link.client_left();
        }
    }

    /// Nobody may be `account` any more: its clients are closed, and what was opened for them.
    fn revoke(self: &Rc<Self>, account: &Arc<Account>) {
        for client in self.clients.borrow().values().filter(|client| client.has_logged_in_as(account)) {
            client.doom(ClientClose::LoginRevoked);
        }
        let user = account.user.id;
        self.pool.leave_user(user);
        self.hubs.leave_user(user, UpstreamClose::LoginRevoked);
        self.pubsub.leave_user(user, UpstreamClose::LoginRevoked);
        self.may_try.borrow_mut().remove(&user);
        let (pool, control) = (Rc::clone(&self.pool), Rc::clone(&self.control));
        self.pool.tasks().spawn_local(async move { control.lock().await.close_for(&pool, user).await });
    }

    /// A login of a lane, a lease or a hub was refused: whoever has shown that secret is not let in any more.
    fn heed_refusals(self: &Rc<Self>) {
        for user in self.pool.take_refusals() {
            for account in self.directory.live(user) {
                let (directory, links) = (Arc::clone(&self.directory), self.links.clone());
                self.pool.tasks().spawn_local(async move { links.revoke(&directory, account).await });
            }
        }
    }

    pub(super) fn policy(&self) -> Policy {
        self.policy.get()
    }

    /// Counts a command under its row.
    pub(super) fn count(&self, client: &Client, asked: &Asked) {
        let at = match asked.row {
            Some(row) => {
                client.last_command.set(row.name);
                client.learns_by(row);
                let first = rows().as_ptr().addr();
                (std::ptr::from_ref(row).addr() - first) / size_of_val(row)
            }
            None => {
                client.last_command.set("NULL");
                rows().len()
            }
        };
        if let Some(cell) = self.metrics.commands.get(at) {
            cell.set(cell.get() + 1);
        }
    }

    pub(super) fn server_facts(&self) -> Option<ServerFacts> {
        let server = self.pool.shared.connector.server()?;
        Some(ServerFacts {
            server: server.server.clone(),
            version: server.version.clone(),
            mode: server.mode.clone(),
            role: server.role.clone(),
            modules: server
                .modules
                .iter()
                .map(|module| LoadedModule {
                    name: module.name.clone(),
                    version: module.version,
                    path: module.path.clone(),
                    args: module.args.clone(),
                })
                .collect(),
        })
    }

    /// Where the command `name` may run, if the server has been asked.
    pub(super) fn placement_of(&self, name: &[u8]) -> Option<Placement> {
        if name.len() > ALWAYS_TAKEN {
            // No command is called so, and the question would end the connection it is asked on.
            return Some(Placement::Once);
        }
        self.asked.borrow().get(name).copied()
    }

    /// What the server, or a user's rights there, lack.
    pub(super) fn lacks(&self) -> &Lacks {
        self.pool.shared.connector.lacks()
    }

    /// Says that the pool is full, and who holds what; at most once a second.
    pub(super) fn warn_full(&self, text: &str) {
        let now = Instant::now();
        if self.warned_full.get().is_none_or(|last| now - last >= Duration::from_secs(1)) {
            self.warned_full.set(Some(now));
            tracing::warn!(reason = "pool_full", "{text}");
        }
    }

    /// Says why clients are closed for want of a server, and keeps it for `/status`; a line at most once a second.
    pub(super) fn warn_of_outage(&self, why: &Unavailable) {
        let text = why.to_string();
        let now = Instant::now();
        if self.warned_outage.get().is_none_or(|last| now - last >= Duration::from_secs(1)) {
            self.warned_outage.set(Some(now));
            let reason = ClientClose::NoUpstream.label();
            tracing::warn!(reason, "clients are closed because their commands find no server: {text}");
        }
        self.pool.shared.health.closes_a_client(text);
    }

    /// Says that a client is closed for its memory; at most once a second.
    pub(super) fn warn_of_memory(&self, victim: &Victim) {
        let now = Instant::now();
        if self.warned_memory.get().is_none_or(|last| now - last >= Duration::from_secs(1)) {
            self.warned_memory.set(Some(now));
            let memory = &self.pool.shared.memory;
            let (reason, used, memory_max) = (ClientClose::Memory.label(), memory.used(), memory.bound());
            tracing::warn!(
                reason,
                client = victim.id,
                held = victim.bytes,
                used,
                memory_max,
                "clients hold more memory than client.memory_max; the one that holds most is closed"
            );
        }
    }

    /// Says that an address fails to log in too often; at most once a second.
    pub(super) fn warn_of_failures(&self, address: std::net::IpAddr) {
        let now = Instant::now();
        if self.warned_failures.get().is_none_or(|last| now - last >= Duration::from_secs(1)) {
            self.warned_failures.set(Some(now));
            tracing::warn!(%address, reason = "failed_logins", "logins from this address are refused for a while");
        }
    }

    /// The clients that are there now; some may have left when they are come to.
    fn all_clients(&self) -> Vec<Rc<Client>> {
        self.clients.borrow().values().cloned().collect()
    }

    async fn rows(&self) -> Vec<ClientRow> {
        let (mut slice, mut rows) = (Slice::begin(), Vec::new());
        for client in self.all_clients() {
            if !client.closed.get() {
                rows.push(client.row(Instant::now()));
            }
            slice.breathe().await;
        }
        rows
    }

    async fn kill(&self, filter: &Filter, me: u64) -> i64 {
        let (mut slice, mut killed) = (Slice::begin(), 0);
        let candidates = match filter.ids() {
            Some(ids) => {
                let clients = self.clients.borrow();
                ids.filter_map(|id| clients.get(&id).cloned()).collect()
            }
            None => self.all_clients(),
        };
        for client in candidates {
            let row = Listed::parse(&client.row(Instant::now()).text(&RowFormat::default()));
            if !client.closed.get() && row.is_some_and(|row| filter.matches(&row, me)) {
                client.doom(ClientClose::Killed);
                killed += 1;
            }
            slice.breathe().await;
        }
        killed
    }

    /// The answer is given when it is known what ends the wait. Dropped, it is that this did not.
    fn unblock(&self, id: u64, how: Unblock) {
        let clients = self.clients.borrow();
        let Some(client) = clients
            .get(&id)
            .filter(|client| client.flags.get().blocked)
            .filter(|client| [Pin::Blocked.label(), Pin::HUB].contains(&client.place.get()))
        else {
            return;
        };
        if !client.is_being_unblocked() {
            client.unblock.set(Some(how));
            client.unblocked.notify_one();
        }
    }

    /// Gives up what others wait for and cannot do without.
    fn relieve(&self, pressure: Pressure, now: Instant) {
        self.pool.relieve(pressure, now);
        let wanted = pressure.leases + pressure.hubs + pressure.lanes;
        let coming = self.pool.shared.budget.closing();
        self.hubs.yield_open_permits(wanted.saturating_sub(coming), now);
    }

    fn tick(self: &Rc<Self>, ticks: u64) {
        let now = Instant::now();
        self.pool.tick(now);
        self.hubs.tick(now, self.links.clients() == 0);
        self.pubsub.tick(now);
        self.heed_refusals();
        self.heed_changes();
        self.tend_slow_readers();
        self.tend_paused();
        self.keep_within_bound();
        for user in self.pool.shared.budget.crowded() {
            self.pool.make_room_within(user, now);
        }
        // A lane or a hub may have been too young to give up, a blocking call still on its way to its lease.
        let pressure = self.pool.shared.budget.pressure();
        if pressure.any() {
            self.relieve(pressure, now);
        }
        self.heed_server();
        if !ticks.is_multiple_of(10) {
            return;
        }
        for client in self.clients.borrow().values() {
            client.age(now);
        }
        self.publish();
        let (pool, control) = (Rc::clone(&self.pool), Rc::clone(&self.control));
        let options = &self.pool.shared.options;
        let limit = if self.links.clients() == 0 { options.linger } else { options.idle_timeout };
        self.pool.tasks().spawn_local(async move {
            // In use: then it is not idle.
            if let Ok(mut control) = control.try_lock() {
                control.age(&pool, limit).await;
            }
        });
    }

    /// Learns from the last login what the server is.
    pub(super) fn heed_server(&self) {
        if let Some(server) = self.pool.shared.connector.server() {
            let mut policy = self.policy.get();
            policy.cluster = server.mode == "cluster";
            policy.readonly = policy.cluster || server.server == "valkey";
            let major = server.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
            let is_old = major.is_none_or(|major| major < 7);
            // Before 7.0 an invalidation may come inside a reply, which would be somebody else's on a lane.
            policy.tracked_lanes = !is_old;
            self.policy.set(policy);
            self.max_arguments.set(if is_old { MAX_ARGUMENTS_OLD } else { MAX_ARGUMENTS });
        }
    }

    fn publish(&self) {
        self.metrics.publish();
        publish_gauge("redbouncer_blocking_waiters", &[], self.hubs.waiting());
        publish_gauge("redbouncer_pubsub_names", &[], self.pubsub.names());
        publish_gauge("redbouncer_blocking_keys", &[], self.hubs.watched());
        publish_gauge("redbouncer_clients", &[("worker", &self.metrics.label)], self.clients.borrow().len());
        publish_tasks(&format!("worker-{}", self.metrics.label));
    }

    /// Closes idle and blocked clients at once, the others when their answers are out, and then everything upstream.
    async fn drain(self: &Rc<Self>, deadline: Instant, messages: &mut mpsc::Receiver<Message>) -> usize {
        self.stopping.set(true);
        for task in self.upkeep.take() {
            task.abort();
        }
        let mut cut = 0;
        while !self.clients.borrow().is_empty() {
            let late = Instant::now() >= deadline;
            for client in self.clients.borrow().values() {
                if late && client.is_busy() && client.doomed.get().is_none() {
                    cut += 1;
                }
                if late || (client.in_slow_path.get() && !client.is_busy()) {
                    client.doom(ClientClose::Shutdown);
                } else {
                    client.wake();
                }
            }
            self.pause(messages).await;
        }
        while self.is_settling() && Instant::now() < deadline {
            self.pause(messages).await;
        }
        // Accepted in the last moment: their sockets close with their messages.
        messages.close();
        while let Ok(message) = messages.try_recv() {
            if matches!(message, Message::Client(_)) {
                client_closed(ClientClose::Shutdown);
            }
        }
        self.pool.stop();
        self.hubs.leave_all(UpstreamClose::Shutdown);
        self.pubsub.leave_all(UpstreamClose::Shutdown);
        self.control.lock().await.close(&self.pool, UpstreamClose::Shutdown).await;
        let tasks = self.pool.tasks();
        tasks.close();
        let patience = self.pool.shared.upstream.close_timeout + Duration::from_secs(1);
        if tokio::time::timeout(patience, tasks.wait()).await.is_err() {
            tracing::warn!("some connections did not close in time");
        }
        self.publish();
        cut
    }

    /// Whether replies or elements are still under way.
    fn is_settling(&self) -> bool {
        self.pool.outstanding() + self.hubs.in_flight() + self.give_back.pending() + self.saving.get() > 0
    }

    /// One step of the drain; questions from outside are still answered.
    async fn pause(self: &Rc<Self>, messages: &mut mpsc::Receiver<Message>) {
        if let Ok(Some(message)) = tokio::time::timeout(DRAIN_STEP, messages.recv()).await {
            self.handle(message);
        }
    }
}
