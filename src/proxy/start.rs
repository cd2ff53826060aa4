//! The start: what the configuration asks for is made in its order, up to the first client.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::certificates::CertificateReloader;
use super::cluster::ClusterFollower;
use super::doors::Doors;
use super::error::StartError;
use super::gauges::install_metrics;
use super::master::MasterFollower;
use super::predecessor::Predecessor;
use super::reload::{Applied, Reloader};
use super::settings::LiveSettings;
use super::sockets::Sockets;
use super::threads::WorkerThreads;
use super::traces::Traces;
use super::{Proxy, Stage, files, fleet, memory, service_manager, successor};
use crate::config::{Config, Loaded, Sources, fewer_cpus_than, own_listener};
use crate::downstream::{AcceptOptions, InheritedSockets, Limits, ServerTls, Workers};
use crate::nodes::Nodes;
use crate::pool::{Budget, ClientMemory, DialRateLimiter, Homes, Hubs, MAX_BULK, Shared};
use crate::session::FIRST_CLIENT_ID;
use crate::shutdown::{StopSignals, UserSignals};
use crate::telemetry::{Log, Tracer};
use crate::upstream::{Connector, Instance, UpstreamOptions};

/// How long the start waits for the first look for orphans, at the most.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// The same while the server has not let us in: one that hangs holds nobody up.
const FIRST_ANSWER: Duration = Duration::from_millis(500);
/// How often the start looks whether it has.
const STEP: Duration = Duration::from_millis(20);
/// How long the start waits for the address of a server at a port of ours.
const NAME: Duration = Duration::from_secs(1);

/// What the configuration names, checked before a socket is opened.
struct Foundation {
    exporter: PrometheusHandle,
    limits: Limits,
    connector: Arc<Connector>,
    /// The certificates that clients are shown, where there is a listener with TLS.
    tls: Option<Arc<ServerTls>>,
    /// The nodes, if the server is a cluster.
    nodes: Option<Arc<Nodes>>,
}

impl Foundation {
    async fn lay(config: &Config) -> Result<Self, StartError> {
        let exporter = install_metrics()?;
        let limits = Limits {
            inside: config.client.max,
            waiting: config.client.max_unauthenticated,
            together: files::clients_that_fit(config),
            per_address: config.client.max_per_address,
        };
        let connector = Arc::new(Connector::new(&config.upstream)?);
        refuse_itself(config, &connector).await?;
        let tls = ServerTls::new(&config.listen.tls)?;
        let nodes = config.upstream.is_cluster().then(Arc::<Nodes>::default);
        Ok(Self { exporter, limits, connector, tls, nodes })
    }
}

/// Where the listening sockets come from.
enum Entrance {
    /// They are open.
    Own(Sockets),
    /// Another process has them, and is to hand them over.
    Of(Predecessor),
}

impl Entrance {
    async fn find(
        config: &Config,
        tls: Option<&Arc<ServerTls>>,
        (inherited, takes_over): (InheritedSockets, bool),
    ) -> Result<Self, StartError> {
        if let Some(path) = config.takeover.socket.as_ref().filter(|_| takes_over) {
            let terms = successor::terms(&config.upstream, config.auth.mode);
            if let Some(predecessor) = Predecessor::find(path, &terms).await? {
                return Ok(Self::Of(predecessor));
            }
        }
        Ok(Self::Own(Sockets::open(config, tls, inherited).await?))
    }

    fn predecessor(&self) -> Option<&Predecessor> {
        match self {
            Self::Own(_) => None,
            Self::Of(predecessor) => Some(predecessor),
        }
    }
}

impl Proxy {
    /// Makes everything, serves until the process is to end, and takes it down again.
    pub(super) async fn assemble_and_serve(
        (sources, loaded): (Sources, Loaded),
        (inherited, takes_over): (InheritedSockets, bool),
        log: Rc<Log>,
    ) -> Result<ExitCode, StartError> {
        let config = loaded.config.clone();
        let Foundation { exporter, limits, connector, tls, nodes } = Foundation::lay(&config).await?;
        let certificates = CertificateReloader::new(Arc::clone(&connector), nodes.clone(), tls.clone());
        let entrance = Entrance::find(&config, tls.as_ref(), (inherited, takes_over)).await?;
        let mut signals = StopSignals::install()?;
        tokio::task::spawn_local(UserSignals::install()?.ignore());
        let traces = Traces::start(&config.tracing, &config.naming.name)?;
        let shared = shared(&config, connector, traces.tracer());
        fleet::join(&config.fleet, &shared.budget);
        if let Some(predecessor) = entrance.predecessor() {
            predecessor.bound(&shared.budget);
        }
        let generation = shared.connector.generation();
        let first_id = entrance.predecessor().map_or(FIRST_CLIENT_ID, |predecessor| predecessor.next_client);
        let WorkerThreads { workers, threads, directory, fleet, ids, first_look, requests } =
            WorkerThreads::start(&config, limits, &shared, nodes.as_ref(), first_id)?;
        let upstream = follow_upstream(&config, &shared, nodes.as_ref(), &workers);
        let (sockets, predecessor) = match entrance {
            Entrance::Own(sockets) => (sockets, None),
            Entrance::Of(mut predecessor) => {
                let taken = Sockets::take(&mut predecessor, &config, tls.as_ref(), &shared).await;
                (give_up_unless(taken, &workers).await?, Some(predecessor))
            }
        };
        let proxy = Rc::new(Self {
            shared,
            workers,
            directory,
            shown: RefCell::default(),
            exporter,
            listening: sockets.addresses(),
            stage: Cell::new(Stage::Starting),
            live: Rc::new(LiveSettings::of(&config, limits.together)),
            log,
            fleet,
            nodes,
        });
        let doors = proxy.open(&config, sockets, predecessor, &first_look).await?;
        let hangup = signal(SignalKind::hangup())?;
        let applied = proxy.applied(tls, upstream);
        let reloader = Reloader::new((sources, loaded), applied, certificates);
        tokio::task::spawn_local(reloader.run(hangup, requests));
        tokio::task::spawn_local(Rc::clone(&proxy).housekeeping());
        service_manager::ready();
        tokio::task::spawn_local(service_manager::watchdog(proxy.workers.clone()));
        let code = proxy.serve(&proxy.own(&config, generation, ids), &doors, &mut signals).await;
        for thread in threads {
            // A worker that panicked has said so; there is nothing left to wait for.
            drop(thread.join());
        }
        traces.finish();
        Ok(code)
    }

    /// Accepts clients, once what a run before this one left on the server is gone, or the process before this one has stopped to.
    async fn open(
        self: &Rc<Self>,
        config: &Config,
        sockets: Sockets,
        predecessor: Option<Predecessor>,
        first_look: &CancellationToken,
    ) -> Result<Doors, StartError> {
        let admin = sockets.admin_address();
        let doors = sockets.into_doors(AcceptOptions {
            workers: self.workers.clone(),
            mode: config.auth.mode,
            terms: Arc::clone(&self.live.accept),
        });
        match predecessor {
            None => {
                doors.open_admin(self)?;
                self.await_first_look(first_look, config.upstream.connect_timeout).await;
                self.announce(config, admin);
                doors.open()?;
            }
            Some(predecessor) => {
                self.open_instead_of(predecessor, &doors).await?;
                self.announce(config, admin);
            }
        }
        self.stage.set(Stage::Serving);
        Ok(doors)
    }

    /// What a reload of the configuration changes.
    fn applied(&self, tls: Option<Arc<ServerTls>>, upstream: watch::Sender<UpstreamOptions>) -> Applied {
        Applied {
            live: Rc::clone(&self.live),
            shared: self.shared.clone(),
            workers: self.workers.clone(),
            nodes: self.nodes.clone(),
            directory: Arc::clone(&self.directory),
            tls,
            upstream,
        }
    }

    /// What a process is told that takes over from this one.
    fn own(&self, config: &Config, generation: u64, ids: Arc<AtomicU64>) -> successor::Own {
        let terms = successor::terms(&config.upstream, config.auth.mode);
        successor::Own { shared: self.shared.clone(), terms, generation, ids }
    }

    /// Accepts clients at the sockets of `predecessor`, and has it stop to.
    async fn open_instead_of(
        self: &Rc<Self>,
        mut predecessor: Predecessor,
        doors: &Doors,
    ) -> Result<(), StartError> {
        doors.open()?;
        doors.open_admin(self)?;
        let replaced = predecessor.replace(&self.shared.budget).await;
        give_up_unless(replaced.map_err(StartError::from), &self.workers).await?;
        doors.own_files(true);
        tokio::task::spawn_local(predecessor.follow(Arc::clone(&self.shared.budget), self.workers.clone()));
        Ok(())
    }

    /// What a run before this one left on the server goes before the first client is served. A server that cannot be
    /// reached, or hangs, holds nobody up.
    async fn await_first_look(&self, first_look: &CancellationToken, connect_timeout: Duration) {
        let begun = Instant::now();
        let patience = connect_timeout.min(FIRST_LOOK);
        let is_answered = || self.shared.connector.server().is_some();
        while begun.elapsed() < patience && (is_answered() || begun.elapsed() < FIRST_ANSWER) {
            if tokio::time::timeout(STEP, first_look.cancelled()).await.is_ok() {
                return;
            }
        }
    }

    fn announce(&self, config: &Config, admin: Option<SocketAddr>) {
        let addresses = |with_tls| {
            let of_kind = self.listening.iter().filter(|(_, tls)| *tls == with_tls);
            let shown: Vec<_> = of_kind.map(|(address, _)| address.as_str()).collect();
            if shown.is_empty() { "off".to_owned() } else { shown.join(",") }
        };
        if let Some(cpus) = fewer_cpus_than(config.workers) {
            tracing::warn!(
                workers = config.workers,
                cpus,
                "there are fewer CPUs than workers, so the workers serve no more requests and use more CPU time: lower listen.workers"
            );
        }
        let scheme = if config.upstream.tls { "rediss" } else { "redis" };
        tracing::info!(
            listen = addresses(false),
            listen_tls = addresses(true),
            admin = admin.map_or_else(|| "off".to_owned(), |address| address.to_string()),
            upstream = match &config.upstream.service {
                None if config.upstream.is_cluster() => format!("{scheme}-cluster://…"),
                None => format!("{scheme}://{}:{}", config.upstream.host, config.upstream.port),
                Some(service) => format!("{scheme}-sentinel://…/{}", service.name),
            },
            max_connections = config.pool.max_connections,
            client_memory_max = self.shared.memory.bound(),
            workers = config.workers,
            version = env!("CARGO_PKG_VERSION"),
            "ready"
        );
    }
}

/// What all workers share.
fn shared(config: &Config, connector: Arc<Connector>, tracer: Tracer) -> Shared {
    Shared {
        budget: Budget::new(
            config.pool.max_connections,
            config.workers,
            Hubs { blocking: config.blocking.hub, pubsub: config.pubsub.hub },
        ),
        homes: Homes::new(config.workers),
        connector,
        dial_rate: Arc::new(DialRateLimiter::new(config.upstream.connect_rate)),
        health: Arc::default(),
        options: Cell::new(config.pool),
        upstream: Cell::new(config.upstream.times()),
        heartbeat: config.naming.heartbeat,
        liveness: Arc::default(),
        max_bulk: Arc::new(AtomicU64::new(MAX_BULK)),
        memory: ClientMemory::new(memory::bound(&config.client)),
        instance: Arc::new(Instance::start(&config.naming.name)),
        mastership: Arc::default(),
        pause: Arc::default(),
        tracer,
        stop: CancellationToken::new(),
    }
}

/// A server that is named may turn out to be this very proxy. Only a name at a port of ours is worth the question, and one
/// that is not resolved soon is left to the dials.
async fn refuse_itself(config: &Config, connector: &Connector) -> Result<(), StartError> {
    if config.upstream.is_unlocated() {
        return Ok(());
    }
    let port = format!(":{}", config.upstream.port);
    let mut listeners = config.listen.addresses.iter().chain(&config.listen.tls.addresses);
    if !listeners.any(|listener| listener.ends_with(&port)) {
        return Ok(());
    }
    let Ok(Ok(found)) = tokio::time::timeout(NAME, connector.addresses()).await else { return Ok(()) };
    let found: Vec<_> = found.iter().map(SocketAddr::ip).collect();
    own_listener(config, &found).map_or(Ok(()), |listener| Err(StartError::Itself(listener.clone())))
}

/// Follows the master or the cluster's slots, each as `config` names them and as what is sent names them later.
fn follow_upstream(
    config: &Config,
    shared: &Shared,
    nodes: Option<&Arc<Nodes>>,
    workers: &Workers,
) -> watch::Sender<UpstreamOptions> {
    let (upstream, followed) = watch::channel(config.upstream.clone());
    let (shared, workers) = (shared.clone(), workers.clone());
    match nodes {
        None => tokio::task::spawn_local(MasterFollower::new(shared, workers).run(followed)),
        Some(nodes) => {
            let follower = ClusterFollower::new(
                shared,
                Arc::clone(nodes),
                workers,
                (config.workers, config.blocking.hub),
            );
            tokio::task::spawn_local(follower.run(followed))
        }
    };
    upstream
}

/// A takeover that has failed leaves nothing of this process on the server.
async fn give_up_unless<T>(outcome: Result<T, StartError>, workers: &Workers) -> Result<T, StartError> {
    if outcome.is_err() {
        workers.drain(Instant::now()).await;
    }
    outcome
}
