//! The state that the clients of one worker share: its pool and hubs, its options, and its knowledge of the server.
//!
//! The context knows clients only as [`Served`]: the operations of the worker on a client, independent of its
//! implementation.

mod departures;
mod metrics;
mod node_hubs;
mod permissions;
mod redirections;
mod served;
mod server;
mod warnings;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::identity::{AuthOptions, Directory};
use super::moved::WayOut;
use super::options::ClientOptions;
use super::settings::ConfigHandle;
use super::workers::{Message, Workers};
use crate::hub::{BlockingHubs, BlockingOptions, GiveBack, PubSubHubs};
use crate::hygiene::fleet::FleetTerms;
use crate::nodes::NodePools;
use crate::pool::{NodeBudget, Pool, Turns};
use crate::telemetry::Count;

use departures::Departures;
use metrics::WorkerMetrics;
use node_hubs::NodeHubs;
use permissions::ListPermissions;
use redirections::Redirections;
use warnings::Warnings;

pub(in crate::downstream) use served::{ElementTaker, Served};
pub(in crate::downstream) use server::ServerView;

/// The state that the clients of one worker share.
pub(in crate::downstream) struct Context {
    /// Which of the workers this is.
    pub(in crate::downstream) index: usize,
    begun: Instant,
    pub(in crate::downstream) pool: Rc<Pool>,
    /// The pools of all nodes, if the server is a cluster.
    pub(in crate::downstream) nodes: Option<Rc<NodePools>>,
    /// Where blocking calls wait.
    pub(in crate::downstream) hubs: Rc<BlockingHubs>,
    /// The same for other nodes than the home node, as far as they were needed.
    node_hubs: NodeHubs,
    /// Where subscribers listen.
    pub(in crate::downstream) pubsub: Rc<PubSubHubs>,
    pub(in crate::downstream) give_back: Rc<GiveBack>,
    pub(in crate::downstream) options: Cell<ClientOptions>,
    /// `log.slow_command`
    pub(in crate::downstream) slow_command: Cell<Option<Duration>>,
    /// Whether more batches are measured than those that are sampled for the metrics.
    pub(in crate::downstream) measures_more: Cell<bool>,
    pub(in crate::downstream) auth: AuthOptions,
    pub(in crate::downstream) blocking: Cell<BlockingOptions>,
    pub(in crate::downstream) directory: Arc<Directory>,
    /// The sharing of connections with other instances, and the known instances.
    pub(in crate::downstream) fleet: FleetTerms,
    /// The users that may act on the proxy with PROXY.
    pub(in crate::downstream) admin_users: RefCell<Arc<[String]>>,
    pub(in crate::downstream) workers: Workers,
    /// The owner of the configuration.
    pub(in crate::downstream) config: ConfigHandle,
    /// The known facts about the server.
    pub(in crate::downstream) server: ServerView,
    /// The server's answers about which users may list clients.
    pub(in crate::downstream) permissions: ListPermissions,
    pub(in crate::downstream) metrics: WorkerMetrics,
    pub(in crate::downstream) warnings: Warnings,
    /// The buffer that every client reads into first.
    pub(in crate::downstream) scratch: RefCell<Vec<u8>>,
    /// When the client whose task runs now began to be served without a pause, where that was noted.
    pub(in crate::downstream) slice: Cell<Option<Instant>>,
    pub(in crate::downstream) clients: RefCell<BTreeMap<u64, Rc<dyn Served>>>,
    /// Clients that are above their soft output limit.
    pub(in crate::downstream) slow_readers: RefCell<BTreeSet<u64>>,
    /// Clients that are not read for the memory they hold, and since when.
    pub(in crate::downstream) paused: RefCell<BTreeMap<u64, Instant>>,
    /// Blocking calls that wait without a hub.
    pub(in crate::downstream) waiters: RefCell<Vec<Rc<dyn ElementTaker>>>,
    /// Elements on their way back into their keys.
    pub(in crate::downstream) saving: Count,
    /// Whose CLIENT LIST or KILL is worked on here: one at a time.
    pub(in crate::downstream) listings: Arc<Turns>,
    /// The same for PROXY, which waits for no CLIENT LIST.
    pub(in crate::downstream) proxy_listings: Arc<Turns>,
    /// Where clients stood when their leaving was noticed, until they are forgotten: for the log.
    left_from: RefCell<HashMap<u64, &'static str>>,
    /// Whether the worker continues.
    pub(in crate::downstream) stage: Cell<Stage>,
    /// Clients that wait for nothing look whether they go on elsewhere: in another process, or on another worker.
    pub(in crate::downstream) moves_clients: Cell<bool>,
    /// A client could not go to another worker when it looked.
    pub(in crate::downstream) moves_later: Cell<bool>,
    /// By which clients go to the process that takes over.
    pub(in crate::downstream) way_out: RefCell<Option<WayOut>>,
    pub(in crate::downstream) departures: Departures,
    /// Whose invalidations go to another client.
    pub(in crate::downstream) redirections: Redirections,
}

/// Whether a worker continues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::downstream) enum Stage {
    /// It does.
    #[default]
    Serving,
    /// Another process has taken over: clients that can be moved go there.
    Leaving,
    /// It drains.
    Stopping,
}

/// The parts of a context.
pub(in crate::downstream) struct Parts {
    pub(in crate::downstream) index: usize,
    pub(in crate::downstream) pool: Rc<Pool>,
    pub(in crate::downstream) nodes: Option<Rc<NodePools>>,
    pub(in crate::downstream) hubs: Rc<BlockingHubs>,
    pub(in crate::downstream) pubsub: Rc<PubSubHubs>,
    pub(in crate::downstream) give_back: Rc<GiveBack>,
    pub(in crate::downstream) options: ClientOptions,
    pub(in crate::downstream) slow_command: Option<Duration>,
    pub(in crate::downstream) auth: AuthOptions,
    pub(in crate::downstream) blocking: BlockingOptions,
    pub(in crate::downstream) directory: Arc<Directory>,
    pub(in crate::downstream) fleet: FleetTerms,
    pub(in crate::downstream) admin_users: Arc<[String]>,
    pub(in crate::downstream) workers: Workers,
    pub(in crate::downstream) has_pubsub_hub: bool,
    pub(in crate::downstream) config: ConfigHandle,
}

/// Bytes that one read may bring.
const SCRATCH: usize = 64 << 10;

impl Context {
    pub(in crate::downstream) fn new(parts: Parts) -> Rc<Self> {
        let Parts {
            index,
            pool,
            nodes,
            hubs,
            pubsub,
            give_back,
            options,
            slow_command,
            auth,
            blocking,
            directory,
            fleet,
            admin_users,
            workers,
            config,
            ..
        } = parts;
        Rc::new(Self {
            index,
            begun: Instant::now(),
            server: ServerView::new(Rc::clone(&pool), &auth, parts.has_pubsub_hub),
            permissions: ListPermissions::new(auth.cache_ttl),
            measures_more: Cell::new(slow_command.is_some() || pool.shared.tracer.is_on()),
            metrics: WorkerMetrics::new(index),
            warnings: Warnings::default(),
            scratch: RefCell::new(vec![0; SCRATCH]),
            slice: Cell::new(None),
            clients: RefCell::default(),
            slow_readers: RefCell::default(),
            paused: RefCell::default(),
            waiters: RefCell::default(),
            saving: Count::default(),
            listings: Arc::default(),
            proxy_listings: Arc::default(),
            left_from: RefCell::default(),
            stage: Cell::default(),
            moves_clients: Cell::new(false),
            moves_later: Cell::new(false),
            way_out: RefCell::default(),
            departures: Departures::default(),
            node_hubs: NodeHubs::default(),
            redirections: Redirections::default(),
            nodes,
            pool,
            hubs,
            pubsub,
            give_back,
            options: Cell::new(options),
            slow_command: Cell::new(slow_command),
            auth,
            blocking: Cell::new(blocking),
            directory,
            fleet,
            admin_users: RefCell::new(admin_users),
            workers,
            config,
        })
    }

    /// Names commands in the log that take this long.
    pub(in crate::downstream) fn tell_of_slow_commands(&self, limit: Option<Duration>) {
        self.slow_command.set(limit);
        self.measures_more.set(limit.is_some() || self.pool.shared.tracer.is_on());
    }

    /// The pools of all servers: one, or in a cluster one of each node that was ever needed.
    pub(in crate::downstream) fn pools(&self) -> Vec<Rc<Pool>> {
        let mut pools = vec![Rc::clone(&self.pool)];
        pools.extend(self.nodes.iter().flat_map(|nodes| nodes.others()));
        pools
    }

    /// The budgets of all servers, likewise; all workers share them.
    pub(in crate::downstream) fn budgets(&self) -> Vec<NodeBudget> {
        let own = &self.pool.shared.budget;
        match &self.nodes {
            Some(nodes) => nodes.nodes().budgets(own),
            None => vec![NodeBudget { node: None, budget: Arc::clone(own), serves: true }],
        }
    }

    /// The blocking hubs of the server of `pool`.
    pub(in crate::downstream) fn hubs_at(&self, pool: &Rc<Pool>) -> Rc<BlockingHubs> {
        if Rc::ptr_eq(pool, &self.pool) { Rc::clone(&self.hubs) } else { self.node_hubs.at(pool, &self.hubs) }
    }

    /// The blocking hubs of all servers, each with its pool; those of the home node first.
    pub(in crate::downstream) fn all_hubs(&self) -> Vec<(Rc<Pool>, Rc<BlockingHubs>)> {
        let own = (Rc::clone(&self.pool), Rc::clone(&self.hubs));
        std::iter::once(own).chain(self.node_hubs.all()).collect()
    }

    /// Microseconds since the worker began.
    pub(in crate::downstream) fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// By which clients go to the process that takes over.
    pub(in crate::downstream) fn way_out(&self) -> Option<WayOut> {
        self.way_out.borrow().clone()
    }

    /// Whether the worker drains.
    pub(in crate::downstream) fn is_stopping(&self) -> bool {
        self.stage.get() == Stage::Stopping
    }

    /// The client `id`, while it is served here.
    pub(in crate::downstream) fn client(&self, id: u64) -> Option<Rc<dyn Served>> {
        self.clients.borrow().get(&id).cloned()
    }

    /// The clients that are served now; some may have left when they are come to.
    pub(in crate::downstream) fn all_clients(&self) -> Vec<Rc<dyn Served>> {
        self.clients.borrow().values().cloned().collect()
    }

    /// The leaving of client `id` was noticed while it stood there. The first place stays.
    pub(in crate::downstream) fn note_place(&self, id: u64, place: &'static str) {
        self.left_from.borrow_mut().entry(id).or_insert(place);
    }

    /// Where client `id` stood when its leaving was noticed.
    pub(in crate::downstream) fn place_left(&self, id: u64) -> Option<&'static str> {
        self.left_from.borrow_mut().remove(&id)
    }

    /// The client is closed: nothing here knows it any more.
    pub(in crate::downstream) fn forget(&self, id: u64) {
        self.left_from.borrow_mut().remove(&id);
        self.clients.borrow_mut().remove(&id);
        self.paused.borrow_mut().remove(&id);
        self.redirections.forget(id);
        self.workers.client_left(self.index);
    }

    /// Closes the clients that hold most memory, one after the other, while all hold more than they may.
    pub(in crate::downstream) fn keep_within_bound(&self) {
        let memory = &self.pool.shared.memory;
        while let Some(victim) = memory.victim() {
            self.warnings.memory(memory, &victim);
            if victim.worker == self.index {
                if let Some(client) = self.client(victim.id) {
                    client.yield_memory();
                }
            } else if !self.workers.try_send(victim.worker, Message::YieldMemory(victim.id)) {
                // Its worker has a thousand other messages before it: that one finds out by itself.
                memory.is_not_told(victim.id);
                return;
            }
        }
    }
}
