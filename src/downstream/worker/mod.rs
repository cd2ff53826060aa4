//! One worker: a thread that owns its clients, lanes and leases outright, and what reaches it from outside.

mod admit;
mod drain;
mod housekeeping;
mod housing;
mod messages;
mod node_pools;
mod recheck;
mod server_change;
mod server_changes;
mod switch;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::context::{Context, Parts};
use super::identity::{AuthOptions, Directory};
use super::options::ClientOptions;
use super::settings::ConfigHandle;
use super::workers::{Message, Workers};
use crate::hub::{Audience, BlockingHubs, BlockingOptions, GiveBack, PubSubHubs, PubSubOptions};
use crate::hygiene::fleet::{FleetKeeper, FleetTerms};
use crate::hygiene::{HygieneOptions, Reaper};
use crate::nodes::{NodePools, Nodes};
use crate::pool::{Control, Pool, Pressure, Turns};

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
    /// Treatment of orphaned connections.
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
    /// The owner of the configuration.
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
