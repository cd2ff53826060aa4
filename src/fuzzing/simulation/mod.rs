//! A deterministic simulation of one worker with its pool, lanes, leases and hubs: a network in memory, a small Redis, clients,
//! faults, and a clock that is never waited for. A seed decides everything, so a run can be repeated.
//!
//! What has to hold, whatever happens:
//!
//! - the server never has more connections than the cap, those included that are being made or closed;
//! - a client gets the replies to its own commands, in their order, and no other's mark;
//! - what a client has cached is what the server answers, unless the client has been told that it is not;
//! - an element that was pushed once is got by one client once at most, and is then in no list; where nothing fails and
//!   nobody leaves, it is got or still there;
//! - a client whose connection stays open gets its reply in bounded time;
//! - when all have left, nothing is open, held, counted or running.

mod clients;
mod server;
mod tests;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::{Builder, Handle, LocalOptions};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::proxy::panics;
use crate::downstream::{
    Admission, AuthMode, AuthOptions, ClientOptions, ConfigHandle, Directory, Limits, Worker, WorkerConfig,
    WorkerHandle, Workers,
};
use crate::hub::{BlockingOptions, PubSubOptions, Resubscribe};
use crate::hygiene::HygieneOptions;
use crate::pool::{Budget, ClientMemory, DialRateLimiter, Homes, Hubs, MAX_BULK, Pool, PoolOptions, Shared};
use crate::session::FIRST_CLIENT_ID;
use crate::telemetry::Tracer;
use crate::upstream::simulated::{Manners, Network, Path};
use crate::upstream::{Connector, Instance, OnLoss, UpstreamOptions};
use clients::{Client, Told};
use server::Server;

/// The longest time without a connection that a server hears of before the connection's place is used again.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than the close of a connection is waited for.
const LONG_PARTITION: &str = "long partition";
/// Longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(1_000);
/// A drain that takes so long never ends.
const NEVER: Duration = Duration::from_secs(120);

/// What a run was like.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// All that has happened, as a number.
    pub(super) trace: u64,
    /// What must not have happened.
    pub(super) wrong: Vec<String>,
    pub(super) log: Vec<String>,
    pub(super) answered: u64,
    pub(super) refused: u64,
    pub(super) cut: u64,
    pub(super) elements: u64,
    pub(super) messages: u64,
    pub(super) commands: u64,
    pub(super) most_connections: usize,
    /// How many times each kind of fault happened.
    pub(super) faults: BTreeMap<&'static str, u64>,
}

/// Something that goes wrong on purpose, to show that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// The server drops an element.
    LoseElement,
    /// The server keeps an element that it has given away.
    DoubleElement,
    /// The server answers ECHO with the word of the one before.
    CrossReplies,
    /// The server publishes a message behind the next one.
    DelayMessage,
    /// The server publishes a message twice.
    DoubleMessage,
    /// The server does not tell that a key has changed.
    MissInvalidation,
    /// The server answers nothing any more, and the proxy does not mind.
    NeverAnswer,
    /// The proxy has more permits than the cap.
    ExceedCap,
    /// Memory stays counted.
    KeepMemory,
    /// A task of the pool stays.
    KeepTask,
}

/// Runs the simulation of `seed`.
pub(super) fn simulate(seed: u64, is_logged: bool) -> Outcome {
    sabotaged(seed, is_logged, None)
}

/// The same with something that goes wrong on purpose.
pub(super) fn sabotaged(seed: u64, is_logged: bool, sabotage: Option<Sabotage>) -> Outcome {
    let before = panics();
    fastrand::seed(seed);
    let mut outcome = in_paused_time(run(seed, is_logged, sabotage));
    if panics() != before {
        outcome.wrong.push("a task has panicked".to_owned());
    }
    outcome
}

/// Runs `work` on a clock that is never waited for.
fn in_paused_time<T>(work: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build_local(LocalOptions::default())
        .expect("a runtime");
    runtime.block_on(work)
}

/// How a run is set up.
struct Plan {
    random: fastrand::Rng,
    manners: Manners,
    clients: usize,
    cap: usize,
    hubs: Hubs,
    on_loss: OnLoss,
    silent: bool,
    /// Clients leave when it suits them.
    rude: bool,
    /// Something happens to the network and the server.
    faulty: bool,
    time: Duration,
    command_timeout: Option<Duration>,
}

impl Plan {
    fn of(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let manners = Manners {
            delay: [0, 1, 3, 20][random.usize(..4)],
            chop: [0, 3, 8, 30][random.usize(..4)],
            window: [700, 4 << 10, 64 << 10][random.usize(..3)],
        };
        Self {
            manners,
            clients: 2 + random.usize(..10),
            cap: 4 + random.usize(..5),
            hubs: Hubs { blocking: random.u8(..4) > 0, pubsub: random.u8(..4) > 0 },
            on_loss: if random.bool() { OnLoss::Close } else { OnLoss::Error },
            silent: random.bool(),
            rude: random.bool(),
            faulty: random.u8(..4) > 0,
            time: Duration::from_millis(random.u64(1_000..8_000)),
            command_timeout: (random.u8(..4) == 0).then(|| Duration::from_secs(1)),
            random,
        }
    }
}

/// The proxy's worker in this runtime.
struct Proxy {
    workers: Workers,
    worker: tokio::task::JoinHandle<()>,
    budget: Arc<Budget>,
    memory: Arc<ClientMemory>,
    tasks: TaskTracker,
}

impl Proxy {
    fn start(plan: &Plan, sabotage: Option<Sabotage>) -> Self {
        let upstream = upstream_of(plan, sabotage);
        let pool = PoolOptions { max_connections: plan.cap, ..PoolOptions::default() };
        let auth = AuthOptions { mode: AuthMode::Open, ..AuthOptions::default() };
        let more = if sabotage == Some(Sabotage::ExceedCap) { 4 } else { 0 };
        let budget = Budget::new(plan.cap + more, 1, plan.hubs);
        let directory = Arc::new(Directory::new(&upstream, &auth, Arc::clone(&budget)).expect("a directory"));
        let shared = shared(&upstream, pool, &budget);
        let memory = Arc::clone(&shared.memory);
        let places = Admission::new(Limits { inside: 100, waiting: 100, together: 100, per_address: 0 });
        let (link, messages) = WorkerHandle::new();
        let workers = Workers::new(vec![link], places);
        let terms = WorkerConfig {
            clients: ClientOptions { pipeline_limit: 16, ..ClientOptions::default() },
            slow_command: None,
            auth,
            blocking: BlockingOptions { hub: plan.hubs.blocking, ..BlockingOptions::default() },
            pubsub: PubSubOptions {
                hub: plan.hubs.pubsub,
                resubscribe: if plan.silent { Resubscribe::Silent } else { Resubscribe::Close },
            },
            hygiene: HygieneOptions::default(),
            fleet: crate::hygiene::fleet::FleetTerms::default(),
            first_look: CancellationToken::new(),
            audience: Arc::default(),
            admin_users: Arc::default(),
            directory,
            ids: Arc::new(AtomicU64::new(FIRST_CLIENT_ID)),
            config: ConfigHandle::new().0,
            nodes: None,
        };
        let tasks = TaskTracker::new();
        if sabotage == Some(Sabotage::KeepTask) {
            tasks.spawn_local(std::future::pending::<()>());
        }
        let pool = Pool::new(shared, tasks.clone());
        let worker = Worker::new(0, pool, terms, workers.clone());
        let worker = tokio::task::spawn_local(worker.run(messages));
        Self { workers, worker, budget, memory, tasks }
    }
}

fn upstream_of(plan: &Plan, sabotage: Option<Sabotage>) -> UpstreamOptions {
    UpstreamOptions {
        connect_timeout: Duration::from_secs(2),
        stall_timeout: if sabotage == Some(Sabotage::NeverAnswer) {
            FOR_EVER
        } else {
            Duration::from_secs(20)
        },
        command_timeout: plan.command_timeout,
        connect_rate: 1_000,
        on_loss: plan.on_loss,
        close_timeout: CLOSE_TIMEOUT,
        ..UpstreamOptions::default()
    }
}

/// What a pool is made of whose dials go into the simulated network.
fn shared(upstream: &UpstreamOptions, pool: PoolOptions, budget: &Arc<Budget>) -> Shared {
    Shared {
        budget: Arc::clone(budget),
        homes: Homes::new(1),
        connector: Arc::new(Connector::new(upstream).expect("a connector")),
        dial_rate: Arc::new(DialRateLimiter::new(upstream.connect_rate)),
        health: Arc::default(),
        options: Cell::new(pool),
        upstream: Cell::new(upstream.times()),
        heartbeat: Duration::from_secs(5),
        liveness: Arc::default(),
        max_bulk: Arc::new(AtomicU64::new(MAX_BULK)),
        memory: ClientMemory::new(32 << 20),
        instance: Arc::new(Instance::start("simulation")),
        mastership: Arc::default(),
        pause: Arc::default(),
        tracer: Tracer::default(),
        stop: CancellationToken::new(),
    }
}

async fn run(seed: u64, is_logged: bool, sabotage: Option<Sabotage>) -> Outcome {
    let mut plan = Plan::of(seed);
    // What is done on purpose shows where nothing else happens.
    plan.faulty &= sabotage.is_none();
    let network = Network::install(seed ^ 0x5eed, plan.manners, is_logged);
    let told: Rc<Told> = Rc::default();
    let mut helpers = vec![tokio::task::spawn_local(network.clone().run())];
    let server = Server::new(network.clone(), sabotage);
    helpers.push(tokio::task::spawn_local(Rc::clone(&server).run()));
    let proxy = Proxy::start(&plan, sabotage);
    let mut kept = proxy.memory.unnamed();
    if sabotage == Some(Sabotage::KeepMemory) {
        kept.set(1);
    }
    if sabotage == Some(Sabotage::NeverAnswer) {
        let server = Rc::clone(&server);
        helpers.push(tokio::task::spawn_local(async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            server.stall(FOR_EVER);
        }));
    }
    let end = Instant::now() + plan.time;
    let mut running = Vec::new();
    for number in 0..plan.clients {
        let seed = plan.random.u64(..);
        let client = Client::new(number, seed, &network, &proxy.workers, &told, plan.rude, end);
        running.push(tokio::task::spawn_local(client.run()));
    }
    let mut faults = BTreeMap::new();
    if plan.faulty {
        trouble(&mut plan, &network, &server, &mut faults, end).await;
    }
    // Everything works again. What still waits has to come to its end by itself.
    server.set_replica(false);
    server.limit_clients(10_000);
    for client in running {
        drop(client.await);
    }
    network.note(|| "all clients have left".to_owned());
    drain(proxy, &network, &server, &told).await;
    judge(&plan, &server, &told, faults.is_empty());
    let (ours, with_unknown) = network.most();
    // Where the hosts are cut off for longer, the proxy gives up what the server's host has not heard the end of.
    let most = if faults.contains_key(LONG_PARTITION) { ours } else { with_unknown };
    if most > plan.cap {
        told.wrong.borrow_mut().push(format!("{most} connections under a cap of {}", plan.cap));
    }
    for helper in helpers {
        helper.abort();
        drop(helper.await);
    }
    let alive = Handle::current().metrics().num_alive_tasks();
    if alive > 0 {
        told.wrong.borrow_mut().push(format!("{alive} tasks are still there"));
    }
    network.remove();
    let (trace, log) = network.trace();
    Outcome {
        trace,
        wrong: told.wrong.take(),
        log,
        answered: told.answered.get(),
        refused: told.refused.get(),
        cut: told.cut.get(),
        elements: told.received.borrow().len() as u64,
        messages: told.messages.get(),
        commands: server.executed(),
        most_connections: ours,
        faults,
    }
}

/// Faults, one after the other, until `end`.
async fn trouble(
    plan: &mut Plan,
    network: &Network,
    server: &Server,
    faults: &mut BTreeMap<&'static str, u64>,
    end: Instant,
) {
    loop {
        let random = &mut plan.random;
        tokio::time::sleep(Duration::from_millis(random.u64(..1_500))).await;
        if Instant::now() >= end {
            return;
        }
        let short = Duration::from_millis(random.u64(1..1_500));
        let kind = match random.usize(..16) {
            0..=3 => {
                for _ in 0..1 + random.usize(..3) {
                    network.reset_one(Path::Server);
                }
                "reset"
            }
            4 | 5 => {
                network.partition(Path::Server, short);
                "partition"
            }
            6 => {
                network.partition(Path::Server, Duration::from_secs(random.u64(6..30)));
                LONG_PARTITION
            }
            7 => {
                let client = random.usize(..plan.clients);
                network.partition(Path::Client(client), short);
                "partition of a client"
            }
            8 => {
                let client = random.usize(..plan.clients);
                network.reset_one(Path::Client(client));
                "reset of a client"
            }
            9 | 10 => {
                let keeps_data = random.bool();
                server.restart(short, keeps_data).await;
                "restart"
            }
            11 => {
                server.set_replica(true);
                tokio::time::sleep(short).await;
                server.set_replica(false);
                "failover"
            }
            12 | 13 => {
                server.stall(short * 3);
                "stall"
            }
            14 => {
                server.limit_clients(random.usize(..4));
                tokio::time::sleep(short).await;
                server.limit_clients(10_000);
                "maxclients"
            }
            _ => {
                network.listen(false);
                tokio::time::sleep(short).await;
                network.listen(true);
                "refused dials"
            }
        };
        *faults.entry(kind).or_default() += 1;
    }
}

/// Stops the proxy, and looks for what it has left behind.
async fn drain(proxy: Proxy, network: &Network, server: &Server, told: &Told) {
    let wrong = |what: String| {
        network.note(|| format!("WRONG: {what}"));
        told.wrong.borrow_mut().push(what);
    };
    let grace = Duration::from_secs(5);
    if tokio::time::timeout(NEVER, proxy.workers.drain(Instant::now() + grace)).await.is_err() {
        wrong("the drain does not end".to_owned());
    }
    if tokio::time::timeout(NEVER, proxy.worker).await.is_err() {
        wrong("the worker does not end".to_owned());
    }
    // What is under way arrives, and hosts that were cut off learn it.
    tokio::time::sleep(Duration::from_secs(40)).await;
    if proxy.budget.held() + proxy.budget.closing() > 0 {
        wrong(format!("held after the drain: {:?}", proxy.budget.holdings()));
    }
    if proxy.memory.used() > 0 {
        wrong(format!("{} bytes are counted after the drain", proxy.memory.used()));
    }
    if !proxy.tasks.is_empty() {
        wrong(format!("{} tasks of the pool are still there", proxy.tasks.len()));
    }
    if server.connected() > 0 {
        wrong(format!("the server still has {} connections", server.connected()));
    }
    let ends = network.open_ends();
    if !ends.is_empty() {
        wrong(format!("ends are still open: {ends:?}"));
    }
}

/// What has become of the elements and the messages.
fn judge(plan: &Plan, server: &Server, told: &Told, calm: bool) {
    let mut wrong = told.wrong.borrow_mut();
    wrong.extend(server.wrong());
    wrong.extend(server.unknown().into_iter().map(|name| format!("the server is asked for {name}")));
    let unconfirmed = told.unconfirmed.borrow();
    for (client, text) in told.late.borrow().iter().filter(|(_, text)| !unconfirmed.contains(text)) {
        wrong.push(format!("client {client}: message {text} comes late"));
    }
    let (left, lost) = server.elements();
    let received = told.received.borrow();
    for (element, clients) in received.iter() {
        if clients.len() > 1 {
            wrong.push(format!("{element:?} was got by clients {clients:?}"));
        }
        if left.contains(element) {
            wrong.push(format!("{element:?} was got by client {clients:?} and is still in its list"));
        }
    }
    // Nobody has left while an element was on its way to it.
    if calm && !plan.rude && told.deserted.get() == 0 {
        let is_gone = |element: &&Bytes| {
            !received.contains_key(*element) && !left.contains(element) && !lost.contains(*element)
        };
        let gone: Vec<_> = told.pushed.borrow().iter().filter(is_gone).cloned().collect();
        if !gone.is_empty() {
            wrong.push(format!("elements are gone: {gone:?}"));
        }
    }
}
