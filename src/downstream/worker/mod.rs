//! One worker: a thread that owns its clients, lanes and leases outright, and what reaches it from outside.

mod drain;
mod housing;
mod node_pools;
mod recheck;
mod server_change;
mod server_changes;
mod switch;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::{Arrived, Client};
use super::context::{Context, Parts, Served, Stage};
use super::identity::{Account, AdminCommands, AuthOptions, Directory};
use super::moved::Login;
use super::options::ClientOptions;
use super::routes::ClientTask;
use super::settings::{ConfigHandle, WorkerSettings};
use super::socket::{ClientSocket, PlainSocket};
use super::workers::{Accepted, Before, Incoming, Message, WorkerFigures, Workers};
use crate::hub::{
    Audience, BlockingHubs, BlockingOptions, GiveBack, HubRow, PubSubHubs, PubSubOptions, Unblock,
};
use crate::hygiene::fleet::{FleetKeeper, FleetTerms};
use crate::hygiene::{HygieneOptions, Reaper};
use crate::nodes::{NodePools, Nodes};
use crate::pool::{Control, HumanDuration, Pool, Pressure, Slice, Turns};
use crate::session::{ClientRow, Filter, Listed, RowFormat, Session};
use crate::telemetry::{ClientClose, UpstreamClose, client_closed, publish_gauge, publish_tasks};
use crate::upstream::{HostPort, tune};

use recheck::recheck;
use server_changes::ServerChanges;

/// The rhythm of a worker's housekeeping.
const TICK: Duration = Duration::from_millis(100);

/// What all workers' clients share.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Limits and times of clients.
    pub clients: ClientOptions,
    /// From how long on a command is named in the log (`log.slow_command`).
    pub slow_command: Option<Duration>,
    /// Who may do what.
    pub auth: AuthOptions,
    /// How blocking calls wait.
    pub blocking: BlockingOptions,
    /// How subscribers are served.
    pub pubsub: PubSubOptions,
    /// What becomes of connections without an owner.
    pub hygiene: HygieneOptions,
    /// How connections are shared with other instances.
    pub fleet: FleetTerms,
    /// Cancelled when orphans have been looked for once.
    pub first_look: CancellationToken,
    /// Who hears what.
    pub audience: Arc<Audience>,
    /// Who is who.
    pub directory: Arc<Directory>,
    /// Who may act on the proxy by PROXY (`admin.users`).
    pub admin_users: Arc<[String]>,
    /// The next client's id.
    pub ids: Arc<AtomicU64>,
    /// Who holds the configuration.
    pub config: ConfigHandle,
    /// The nodes, if the server is a cluster.
    pub nodes: Option<Arc<Nodes>>,
}

/// One worker.
pub(crate) struct Worker {
    context: Rc<Context>,
    /// The next client's id.
    ids: Arc<AtomicU64>,
    control: Rc<Mutex<Control>>,
    /// Who asks on the control connection next.
    questions: Arc<Turns>,
    /// On the first worker, until the drain: what looks after connections and logins by itself.
    upkeep: RefCell<Vec<AbortHandle>>,
    /// On the first worker, while connections are shared with other instances: what keeps the claim. To the end of the drain.
    keeper: Option<AbortHandle>,
    heeded: ServerChanges,
    /// What the reaper goes by.
    hygiene: Rc<Cell<HygieneOptions>>,
    /// It was told that there are not lanes enough for every worker.
    has_warned_of_lanes: Cell<bool>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("clients", &self.context.clients.borrow().len())
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker without clients.
    #[must_use]
    pub(crate) fn new(index: usize, pool: Rc<Pool>, terms: WorkerConfig, workers: Workers) -> Rc<Self> {
        let nodes = terms.nodes.map(|nodes| Rc::new(NodePools::new(nodes, Rc::clone(&pool))));
        let give_back = GiveBack::new(Rc::clone(&pool), nodes.clone(), terms.blocking.give_back);
        let hubs = BlockingHubs::new(
            Rc::clone(&pool),
            terms.blocking,
            Rc::clone(&give_back),
            terms.auth.cache_ttl,
            nodes.is_some(),
        );
        let pubsub_hub = terms.pubsub.hub;
        let pubsub = PubSubHubs::new(Rc::clone(&pool), terms.pubsub, terms.audience);
        let control = Rc::new(Mutex::new(Control::default()));
        let mut upkeep = Vec::new();
        let keeper = (index == 0 && terms.fleet.options.is_on())
            .then(|| keep_claim(&pool, &control, &terms.fleet, &terms.directory));
        let hygiene = Rc::new(Cell::new(terms.hygiene));
        if index == 0 {
            let directory = Arc::clone(&terms.directory);
            let candidates = Box::new(move || directory.candidates());
            let reaper = Reaper::new(Rc::clone(&pool), Rc::clone(&control), Rc::clone(&hygiene), candidates);
            upkeep.push(tokio::task::spawn_local(reaper.run(terms.first_look)).abort_handle());
            let recheck = recheck(Rc::clone(&pool), Arc::clone(&terms.directory), workers.clone());
            upkeep.push(tokio::task::spawn_local(recheck).abort_handle());
        }
        let context = Context::new(Parts {
            index,
            pool,
            nodes,
            hubs,
            pubsub,
            give_back,
            options: terms.clients,
            slow_command: terms.slow_command,
            auth: terms.auth,
            blocking: terms.blocking,
            directory: terms.directory,
            fleet: terms.fleet,
            admin_users: terms.admin_users,
            workers,
            has_pubsub_hub: pubsub_hub,
            config: terms.config,
        });
        Rc::new(Self {
            context,
            ids: terms.ids,
            control,
            questions: Arc::default(),
            upkeep: RefCell::new(upkeep),
            keeper,
            heeded: ServerChanges::default(),
            hygiene,
            has_warned_of_lanes: Cell::new(false),
        })
    }

    /// Has `task` end with the drain's begin.
    pub(crate) fn look_after(&self, task: AbortHandle) {
        self.upkeep.borrow_mut().push(task);
    }

    /// Runs until the drain is over.
    pub(crate) async fn run(self: Rc<Self>, mut messages: mpsc::Receiver<Message>) {
        let mut pressure = self.context.pool.shared.budget.watch_pressure();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut ticks = 0_u64;
        loop {
            tokio::select! {
                biased;
                // Rare, both: they keep nobody waiting, and no number of messages keeps them waiting.
                changed = pressure.changed() => if changed.is_ok() {
                    let now: Pressure = *pressure.borrow_and_update();
                    self.release_under_pressure(now, Instant::now());
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
                self.context.pool.tasks().spawn_local(async move { drop(reply.send(worker.rows().await)) });
            }
            Message::Lanes(reply) => {
                drop(reply.send(self.context.pools().iter().flat_map(|pool| pool.lane_rows()).collect()));
            }
            Message::Kill(filter, me, reply) => {
                let worker = Rc::clone(self);
                self.context.pool.tasks().spawn_local(async move {
                    let _ = reply.send(worker.kill(&filter, me).await);
                });
            }
            Message::YieldMemory(id) => {
                if let Some(client) = self.context.client(id) {
                    client.yield_memory();
                }
            }
            // Dropped, the question is answered with no.
            Message::Unblock(id, with_error, done) => {
                if let Some(client) = self.context.client(id) {
                    client.unblock(Unblock { with_error, done });
                }
            }
            Message::Inbox(id, user, reply) => {
                if let Some(inbox) = self.context.client(id).and_then(|client| client.inbox(user)) {
                    drop(reply.send(inbox));
                }
            }
            Message::Control { user, address, identity, protocol, request, reply } => {
                let (pool, control) = (Rc::clone(&self.context.pool), Rc::clone(&self.control));
                let questions = Arc::clone(&self.questions);
                self.context.pool.tasks().spawn_local(async move {
                    let _turn = questions.turn(user, address).await;
                    let mut control = control.lock().await;
                    let answer = control.ask(&pool, user, &identity, protocol, &request).await;
                    control.was_needed();
                    drop(reply.send(answer));
                });
            }
            Message::Revoke(account) => self.revoke(&account),
            Message::Alive(reply) => drop(reply.send(())),
            Message::Publish(reply) => {
                self.publish();
                drop(reply.send(self.figures()));
            }
            Message::AddressChanged => {
                self.context.pool.leave_all(UpstreamClose::Moved);
                self.context.hubs.leave_all(UpstreamClose::Moved);
                self.context.pubsub.leave_all(UpstreamClose::Moved);
            }
            Message::Configure(settings, done) => {
                self.configure(&settings);
                let _ = done.send(());
            }
            Message::MoveUpstream(done) => {
                self.move_upstream();
                let _ = done.send(());
            }
            Message::SwitchMaster(grace, done) => self.switch_master(grace, done),
            Message::Leave(way) => {
                self.context.way_out.replace(Some(way));
                if self.context.stage.get() == Stage::Serving {
                    self.context.stage.set(Stage::Leaving);
                }
                self.context.moves_clients.set(true);
                self.send_on();
            }
            Message::Hubs(reply) => {
                let nodes = self.context.nodes.as_ref();
                let mut rows = Vec::new();
                for (pool, hubs) in self.context.all_hubs() {
                    let node = nodes.and_then(|nodes| nodes.node_of(&pool)).map(|node| node.to_string());
                    let own = hubs.rows(self.context.index).into_iter();
                    rows.extend(own.map(|row| HubRow { node: node.clone(), ..row }));
                }
                rows.extend(self.context.pubsub.rows(self.context.index));
                drop(reply.send(rows));
            }
            Message::Reconnect(node) => self.reconnect(node.as_ref()),
            // Handled by the loop itself.
            Message::Drain(..) => {}
        }
    }

    /// What is read at its use is changed at once; a copy that a connection has made of it stays.
    fn configure(&self, settings: &WorkerSettings) {
        let context = &self.context;
        for pool in context.pools() {
            pool.configure(settings.pool, settings.upstream);
        }
        context.options.set(settings.clients);
        context.tell_of_slow_commands(settings.slow_command);
        context.blocking.set(settings.blocking);
        for (_, hubs) in context.all_hubs() {
            hubs.configure(settings.blocking, settings.cache_ttl);
        }
        context.permissions.keep_for(settings.cache_ttl);
        context.admin_users.replace(Arc::clone(&settings.admin_users));
        self.hygiene.set(settings.hygiene);
        context.pubsub.configure(settings.pubsub);
        context.server.refuse_admin(settings.admin_commands == AdminCommands::Refuse);
    }

    /// Every connection is made anew where the connector dials now, each as soon as nothing is in flight on it.
    fn move_upstream(self: &Rc<Self>) {
        self.context.pool.move_all();
        self.context.hubs.leave_all(UpstreamClose::Reloaded);
        self.context.pubsub.leave_all(UpstreamClose::Reloaded);
        let (pool, control) = (Rc::clone(&self.context.pool), Rc::clone(&self.control));
        self.context
            .pool
            .tasks()
            .spawn_local(async move { control.lock().await.close(&pool, UpstreamClose::Reloaded).await });
    }

    /// Has the upstream connections made anew, each when it is free; with `node`, those to that node of a cluster.
    fn reconnect(self: &Rc<Self>, node: Option<&HostPort>) {
        let reason = UpstreamClose::Reconnect;
        let node_of = |pool: &Rc<Pool>| self.context.nodes.as_ref().and_then(|nodes| nodes.node_of(pool));
        let is_meant = |pool: &Rc<Pool>| node.is_none() || node_of(pool).as_ref() == node;
        self.context.pools().iter().filter(|pool| is_meant(pool)).for_each(|pool| pool.renew());
        for (_, hubs) in self.context.all_hubs().iter().filter(|(pool, _)| is_meant(pool)) {
            hubs.leave_all(reason);
        }
        if !is_meant(&self.context.pool) {
            return;
        }
        self.context.pubsub.leave_all(reason);
        let (pool, control) = (Rc::clone(&self.context.pool), Rc::clone(&self.control));
        self.context.pool.tasks().spawn_local(async move { control.lock().await.close(&pool, reason).await });
    }

    fn admit(self: &Rc<Self>, accepted: Accepted) {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (before, announced, along) = match accepted.before.map(|before| *before) {
            None => (None, None, None),
            Some(Before { description, announced, along }) => (Some(description), announced, along),
        };
        let (member, last_command) =
            along.map_or((None, None), |along| (Some(along.membership), along.last_command));
        let id = before.as_ref().map_or(id, |before| before.id);
        if announced.is_some() && self.context.client(id).is_some() {
            // It has been announced before, and has not been forgotten yet.
            self.context.workers.client_left(self.context.index);
            return;
        }
        let anonymous = match &before {
            Some(_) if member.is_some() => member,
            None => self.context.directory.anonymous(accepted.trusted),
            Some(before) => {
                self.context.directory.rejoin(before.login.as_ref().map(Login::credentials), accepted.trusted)
            }
        };
        if before.is_some() && anonymous.is_none() {
            // It would be nobody here.
            client_closed(ClientClose::LoginRevoked);
            self.context.workers.client_left(self.context.index);
            return;
        }
        let user = anonymous.as_ref().map(|own| own.account.user.clone());
        let mut session = Session::new(id, user, self.context.pool.shared.upstream.get().database);
        if let Some(before) = &before {
            before.restore(&mut session);
        }
        let socket = match self.registered(accepted.stream) {
            Ok(socket) => socket,
            Err(error) => {
                let reason = ClientClose::ClientLost;
                client_closed(reason);
                tracing::debug!(peer = %accepted.peer, reason = reason.label(), %error, "client closed before it was served");
                self.context.workers.client_left(self.context.index);
                return;
            }
        };
        tracing::debug!(client = id, peer = %accepted.peer, "client connected");
        let client = Client::new(
            Rc::clone(&self.context),
            Arrived {
                socket,
                peer: accepted.peer,
                session,
                membership: anonymous,
                trusted: accepted.trusted,
                place: accepted.place,
            },
        );
        if let Some(before) = &before {
            client.arrives(before);
            client.last_command.set(last_command);
        }
        let served = Rc::clone(&client) as Rc<dyn Served>;
        self.context.clients.borrow_mut().insert(id, served);
        let stay = client.stay();
        if let Some(stay) = stay {
            let client = Rc::downgrade(&client);
            self.context.pool.tasks().spawn_local(async move {
                if stay.is_given_up().await
                    && let Some(client) = client.upgrade()
                {
                    client.close(ClientClose::GaveWay);
                }
            });
        }
        let (subscribed, blocked) = before.map_or((None, None), |before| (before.subscribed, before.blocked));
        let task = match (subscribed, announced, blocked) {
            (Some(subscribed), Some(announced), _) => ClientTask::subscribed(client, subscribed, announced),
            (_, _, Some(blocked)) => ClientTask::blocked(client, blocked),
            (None, _, None) | (_, None, None) => ClientTask::new(client),
        };
        self.context.pool.tasks().spawn_local(task);
    }

    /// Clients that wait for nothing look whether they can go to the process that takes over.
    fn send_on(&self) {
        for client in self.context.clients.borrow().values() {
            client.may_leave();
        }
    }

    /// A new client's socket on this thread's runtime, set up: NODELAY, keepalive, a watch for its host.
    fn registered(&self, incoming: Incoming) -> std::io::Result<ClientSocket> {
        let tuned = |stream| {
            let stream = TcpStream::from_std(stream)?;
            tune(&stream, &self.context.options.get().keepalive, self.context.options.get().user_timeout)?;
            std::io::Result::Ok(PlainSocket::tcp(stream, self.context.options.get().user_timeout))
        };
        Ok(match incoming {
            Incoming::Tcp(stream) => ClientSocket::Plain(tuned(stream)?),
            Incoming::Tls(stream, session) => ClientSocket::secured(tuned(stream)?, *session),
            Incoming::Unix(stream) => ClientSocket::Plain(UnixStream::from_std(stream)?.into()),
            #[cfg(test)]
            Incoming::Simulated(end) => ClientSocket::Plain(PlainSocket::Simulated(end)),
        })
    }

    /// Nobody may be `account` any more: its clients are closed, and what was opened for them.
    fn revoke(self: &Rc<Self>, account: &Arc<Account>) {
        for client in self.context.clients.borrow().values().filter(|client| client.has_logged_in_as(account))
        {
            client.close(ClientClose::LoginRevoked);
        }
        let user = account.user.id;
        self.context.pools().iter().for_each(|pool| pool.leave_user(user));
        for (_, hubs) in self.context.all_hubs() {
            hubs.leave_user(user, UpstreamClose::LoginRevoked);
        }
        self.context.pubsub.leave_user(user, UpstreamClose::LoginRevoked);
        self.context.server.forget_may_try(user);
        let (pool, control) = (Rc::clone(&self.context.pool), Rc::clone(&self.control));
        self.context
            .pool
            .tasks()
            .spawn_local(async move { control.lock().await.close_for(&pool, user).await });
    }

    /// A login of a lane, a lease or a hub was refused: whoever has shown that secret is not let in any more.
    fn heed_refusals(self: &Rc<Self>) {
        let pools = self.context.pools();
        for user in pools.iter().flat_map(|pool| pool.take_refusals()) {
            for account in self.context.directory.live(user) {
                let (directory, workers) =
                    (Arc::clone(&self.context.directory), self.context.workers.clone());
                self.context
                    .pool
                    .tasks()
                    .spawn_local(async move { workers.revoke(&directory, account).await });
            }
        }
    }

    async fn rows(&self) -> Vec<ClientRow> {
        let (mut slice, mut rows) = (Slice::begin(), Vec::new());
        for client in self.context.all_clients() {
            if !client.is_closed() {
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
                let clients = self.context.clients.borrow();
                ids.filter_map(|id| clients.get(&id).map(Rc::clone)).collect()
            }
            None => self.context.all_clients(),
        };
        for client in candidates {
            let row = Listed::parse(&client.row(Instant::now()).text(&RowFormat::default()));
            if !client.is_closed() && row.is_some_and(|row| filter.matches(&row, me)) {
                client.close(ClientClose::Killed);
                killed += 1;
            }
            slice.breathe().await;
        }
        killed
    }

    /// Gives up what others wait for and cannot do without.
    fn release_under_pressure(&self, pressure: Pressure, now: Instant) {
        self.context.pool.release_under_pressure(pressure, now);
        let wanted = pressure.leases + pressure.hubs + pressure.lanes;
        let coming = self.context.pool.shared.budget.closing();
        self.context.hubs.yield_open_permits(wanted.saturating_sub(coming), now);
    }

    fn tick(self: &Rc<Self>, ticks: u64) {
        let now = Instant::now();
        self.context.pool.tick(now);
        self.tend_nodes(now);
        let is_deserted = self.context.workers.clients() == 0;
        for (_, hubs) in self.context.all_hubs() {
            hubs.tick(now, is_deserted);
        }
        self.context.pubsub.tick(now);
        self.tend_homes(now);
        self.heed_refusals();
        self.close_outdated_clients();
        self.tend_slow_readers();
        self.tend_paused();
        if self.context.stage.get() == Stage::Leaving {
            self.send_on();
        }
        self.context.keep_within_bound();
        for user in self.context.pool.shared.budget.crowded() {
            self.context.pool.make_room_within(user, now);
        }
        // A lane or a hub may have been too young to give up, a blocking call still on its way to its lease.
        let pressure = self.context.pool.shared.budget.pressure();
        if pressure.any() {
            self.release_under_pressure(pressure, now);
        }
        self.context.server.learn_from_login();
        if let Some(waited) = self.context.pool.shared.pause.expire(now) {
            tracing::info!(after = %HumanDuration(waited), "the time of PROXY PAUSE is over; commands go on");
        }
        if !ticks.is_multiple_of(10) {
            return;
        }
        for client in self.context.clients.borrow().values() {
            client.age(now);
        }
        self.publish();
        let (pool, control) = (Rc::clone(&self.context.pool), Rc::clone(&self.control));
        let options = self.context.pool.shared.options.get();
        let limit = if self.context.workers.clients() == 0 { options.linger } else { options.idle_timeout };
        self.context.pool.tasks().spawn_local(async move {
            // In use: then it is not idle.
            if let Ok(mut control) = control.try_lock() {
                control.age(&pool, limit).await;
            }
        });
    }

    fn publish(&self) {
        self.context.metrics.publish();
        self.context.pools().iter().for_each(|pool| pool.measures().publish());
        publish_gauge(
            "redbouncer_clients",
            &[("worker", &self.context.metrics.label)],
            self.context.clients.borrow().len(),
        );
        publish_tasks(&format!("worker-{}", self.context.metrics.label));
    }

    fn figures(&self) -> WorkerFigures {
        let (context, measures) = (&self.context, self.context.pool.measures());
        let hubs = context.all_hubs();
        WorkerFigures {
            replies: measures.replies.clone(),
            round_trips: measures.round_trips.clone(),
            families: context.metrics.families(),
            leases: context.metrics.leases(),
            unwritten: context.pools().iter().map(|pool| pool.unwritten()).sum(),
            blocked: hubs.iter().map(|(_, hubs)| hubs.waiting()).sum(),
            keys: hubs.iter().map(|(_, hubs)| hubs.watched()).sum(),
            names: context.pubsub.names(),
        }
    }

    /// Every tick: those who are above their soft output limit.
    fn tend_slow_readers(&self) {
        let slow = std::mem::take(&mut *self.context.slow_readers.borrow_mut());
        let clients = self.context.clients.borrow();
        let still: Vec<u64> = slow
            .into_iter()
            .filter(|id| clients.get(id).is_some_and(|client| client.tend_output()))
            .collect();
        self.context.slow_readers.borrow_mut().extend(still);
    }

    /// Every tick: those that were read no further may go on where there is room, or where they have waited long enough.
    fn tend_paused(&self) {
        let paused: Vec<u64> = self.context.paused.borrow().keys().copied().collect();
        if !self.context.pool.shared.memory.is_above_mark() {
            self.context.paused.borrow_mut().clear();
        }
        let clients = self.context.clients.borrow();
        for client in paused.iter().filter_map(|id| clients.get(id)) {
            client.wake();
        }
    }
}

/// Keeps this process's claim on the connections that all instances share.
fn keep_claim(
    pool: &Rc<Pool>,
    control: &Rc<Mutex<Control>>,
    fleet: &FleetTerms,
    directory: &Arc<Directory>,
) -> AbortHandle {
    let directory = Arc::clone(directory);
    let candidates = Box::new(move || directory.candidates());
    let (pool, control, board) = (Rc::clone(pool), Rc::clone(control), Arc::clone(&fleet.board));
    let keeper = FleetKeeper::new(pool, control, fleet.options, candidates, board);
    tokio::task::spawn_local(keeper.run()).abort_handle()
}
