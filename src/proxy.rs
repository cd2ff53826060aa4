//! The whole proxy: assembled, run, drained.
//!
//! The main thread accepts, serves the admin port, watches signals and the server's address; each worker is a thread
//! with a runtime of its own. They share the budget, the workers between them, and the metrics.

mod certificates;
mod cluster;
mod connections;
mod doors;
mod error;
mod exposition;
mod files;
mod fleet;
mod leases;
mod master;
mod memory;
mod password_file;
mod predecessor;
mod reload;
mod runtime;
mod service_manager;
mod settings;
mod sockets;
mod successor;
mod traces;
mod users_file;
mod verify;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, Sample, View};
use crate::config::{Config, Loaded, Sources, own_listener};
use crate::downstream::{
    AcceptOptions, Admission, ConfigHandle, Directory, InheritedSockets, Limits, Message, ServerTls, Worker,
    WorkerConfig, WorkerHandle, Workers,
};
use crate::nodes::Nodes;
use crate::pool::{
    Budget, ClientMemory, DialRateLimiter, Homes, Hubs, Kind, MAX_BULK, NodeBudget, Pool, Shared,
};
use crate::session::{FIRST_CLIENT_ID, Pin};
use crate::shutdown::{StopSignals, UserSignals};
use crate::telemetry::{self, Log, Tracer, publish_gauge, publish_tasks, seconds};
use crate::upstream::{Connector, Instance};
use certificates::CertificateReloader;
use cluster::ClusterFollower;
use doors::Doors;
use error::{BAD_CONFIGURATION, StartError};
use fleet::FleetTerms;
use master::MasterFollower;
use predecessor::Predecessor;
use reload::{Applied, Reloader};
use runtime::runtime;
use settings::LiveSettings;
use sockets::Sockets;
use traces::Traces;
use verify::verify_upstream;

/// The grace ended with commands in flight.
const CUT: u8 = 75;
/// How long the start waits for the first look for orphans, at the most.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// The same while the server has not let us in: one that hangs holds nobody up.
const FIRST_ANSWER: Duration = Duration::from_millis(500);
/// How often the start looks whether it has.
const STEP: Duration = Duration::from_millis(20);
/// How long the start waits for the address of a server at a port of ours.
const NAME: Duration = Duration::from_secs(1);
/// How often gauges are published and the exporter's samples are tidied.
const PUBLISH: Duration = Duration::from_secs(1);

/// Runs the proxy until a signal has drained it, or another process has taken over. With `takes_over` it takes over itself
/// from the process that listens at `takeover.socket`, if there is one.
#[must_use]
pub fn run(sources: Sources, loaded: Loaded, takes_over: bool) -> ExitCode {
    let inherited = InheritedSockets::from_environment();
    let config = &loaded.config;
    let log = match Log::start(&config.log) {
        Ok(log) => Rc::new(log),
        Err(error) => return report_start_error(&error.to_string(), ExitCode::from(BAD_CONFIGURATION)),
    };
    warn_of_what_is_retired(config);
    for exposure in &config.exposed {
        tracing::warn!("{exposure}");
    }
    let outcome = runtime().map_err(StartError::from).and_then(|runtime| {
        let proxy = Proxy::assemble_and_serve((sources, loaded), (inherited, takes_over), Rc::clone(&log));
        let outcome = runtime.block_on(proxy);
        // A name lookup that hangs cannot be cancelled; it must not hold up the exit.
        runtime.shutdown_background();
        outcome
    });
    let code = match outcome {
        Ok(code) => code,
        Err(error) => report_start_error(&error.to_string(), error.exit_code()),
    };
    log.finish();
    code
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

/// Keys that are accepted and do nothing any more.
fn warn_of_what_is_retired(config: &Config) {
    if config.client.user_timeout_backpressured.is_some() {
        tracing::warn!(
            "client.user_timeout_backpressured has no effect any more (no client is closed for being slow to read) and will \
             be refused by the next release: remove it"
        );
    }
}

fn report_start_error(text: &str, code: ExitCode) -> ExitCode {
    tracing::error!("{text}");
    code
}

/// Everything that lives as long as the process.
struct Proxy {
    shared: Shared,
    workers: Workers,
    directory: Arc<Directory>,
    /// Users that the metrics have shown.
    shown: RefCell<BTreeSet<String>>,
    exporter: PrometheusHandle,
    /// The bound addresses, and whether with TLS.
    listening: Vec<(String, bool)>,
    stage: Cell<Stage>,
    live: Rc<LiveSettings>,
    log: Rc<Log>,
    fleet: FleetTerms,
    /// The nodes, if the server is a cluster.
    nodes: Option<Arc<Nodes>>,
}

/// Where in its life the proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The listeners do not accept yet.
    Starting,
    Serving,
    /// As serving, but others are told not to come.
    Leaving,
    /// Draining.
    Stopping,
}

impl Proxy {
    async fn assemble_and_serve(
        (sources, loaded): (Sources, Loaded),
        (inherited, takes_over): (InheritedSockets, bool),
        log: Rc<Log>,
    ) -> Result<ExitCode, StartError> {
        let config = loaded.config.clone();
        let exporter = install_metrics()?;
        let limits = Limits {
            inside: config.client.max,
            waiting: config.client.max_unauthenticated,
            together: files::clients_that_fit(&config),
            per_address: config.client.max_per_address,
        };
        let connector = Arc::new(Connector::new(&config.upstream)?);
        refuse_itself(&config, &connector).await?;
        let tls = ServerTls::new(&config.listen.tls)?;
        let nodes = config.upstream.is_cluster().then(Arc::<Nodes>::default);
        let renewal = CertificateReloader::new(Arc::clone(&connector), nodes.clone(), tls.clone());
        let mut predecessor = match &config.takeover.socket {
            Some(path) if takes_over => {
                Predecessor::find(path, &successor::terms(&config.upstream, config.auth.mode)).await?
            }
            Some(_) | None => None,
        };
        let opened = match predecessor {
            None => Some(Sockets::open(&config, tls.as_ref(), inherited).await?),
            Some(_) => None,
        };
        let mut signals = StopSignals::install()?;
        tokio::task::spawn_local(UserSignals::install()?.ignore());
        let traces = Traces::start(&config.tracing, &config.naming.name)?;
        let shared = shared(&config, connector, traces.tracer());
        fleet::join(&config.fleet, &shared.budget);
        if let Some(predecessor) = &predecessor {
            predecessor.bound(&shared.budget);
        }
        let generation = shared.connector.generation();
        let first_id = predecessor.as_ref().map_or(FIRST_CLIENT_ID, |predecessor| predecessor.next_client);
        let ids = Arc::new(AtomicU64::new(first_id));
        let places = Admission::new(limits);
        let first_look = CancellationToken::new();
        let directory = Arc::new(Directory::new(&config.upstream, &config.auth, Arc::clone(&shared.budget))?);
        let (steering, requests) = ConfigHandle::new();
        let fleet = FleetTerms { options: config.fleet, ..FleetTerms::default() };
        let mut terms = worker_config(&config, &fleet, (&directory, &ids), &first_look, steering);
        terms.nodes.clone_from(&nodes);
        let (workers, threads) = start_workers(config.workers, &shared, &terms, &places)?;
        let (upstream, followed) = watch::channel(config.upstream.clone());
        match &nodes {
            None => {
                tokio::task::spawn_local(MasterFollower::new(shared.clone(), workers.clone()).run(followed))
            }
            Some(nodes) => {
                let follower =
                    ClusterFollower::new(shared.clone(), Arc::clone(nodes), workers.clone(), config.workers);
                tokio::task::spawn_local(follower.run(followed))
            }
        };
        let sockets = match (opened, &mut predecessor) {
            (Some(sockets), _) => sockets,
            (None, Some(predecessor)) => {
                let taken = Sockets::take(predecessor, &config, tls.as_ref(), &shared).await;
                give_up_unless(taken, &workers).await?
            }
            (None, None) => Sockets::open(&config, tls.as_ref(), InheritedSockets::default()).await?,
        };
        let listening = sockets.addresses();
        let proxy = Rc::new(Self {
            shared,
            workers,
            directory,
            shown: RefCell::default(),
            exporter,
            listening,
            stage: Cell::new(Stage::Starting),
            live: Rc::new(LiveSettings::of(&config, limits.together)),
            log,
            fleet,
            nodes,
        });
        let door = AcceptOptions {
            workers: proxy.workers.clone(),
            mode: config.auth.mode,
            terms: Arc::clone(&proxy.live.accept),
        };
        let admin_address = sockets.admin_address();
        let doors = sockets.into_doors(door);
        match predecessor {
            None => {
                doors.open_admin(&proxy)?;
                proxy.await_first_look(&first_look, config.upstream.connect_timeout).await;
                proxy.announce(&config, admin_address);
                doors.open()?;
            }
            Some(predecessor) => {
                proxy.open_instead_of(predecessor, &doors).await?;
                proxy.announce(&config, admin_address);
            }
        }
        proxy.stage.set(Stage::Serving);
        let hangup = signal(SignalKind::hangup())?;
        let reloader = Reloader::new(
            (sources, loaded),
            Applied {
                live: Rc::clone(&proxy.live),
                shared: proxy.shared.clone(),
                workers: proxy.workers.clone(),
                nodes: proxy.nodes.clone(),
                directory: Arc::clone(&proxy.directory),
                tls,
                upstream,
            },
            renewal,
        );
        tokio::task::spawn_local(reloader.run(hangup, requests));
        tokio::task::spawn_local(Rc::clone(&proxy).housekeeping());
        service_manager::ready();
        tokio::task::spawn_local(service_manager::watchdog(proxy.workers.clone()));
        let terms = successor::terms(&config.upstream, config.auth.mode);
        let own = successor::Own { shared: proxy.shared.clone(), terms, generation, ids };
        let first = proxy.until_told(&own, &doors, &mut signals).await;
        let code = proxy.stop(first, &doors, &mut signals, proxy.live.shutdown.get().drain_timeout).await;
        for thread in threads {
            // A worker that panicked has said so; there is nothing left to wait for.
            drop(thread.join());
        }
        traces.finish();
        Ok(code)
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

    /// Serves until the process is to stop, or another one has replaced it and its last clients have gone. Returns what told it.
    async fn until_told(
        self: &Rc<Self>,
        own: &successor::Own,
        doors: &Doors,
        signals: &mut StopSignals,
    ) -> &'static str {
        let told = tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => "PROXY SHUTDOWN",
            signal = signals.next() => signal,
            ceiling = successor::replaced(self, own, doors) => {
                doors.leave();
                let client_timeout = self.live.takeover_timeout.get();
                return ceiling.serve_those_who_stay(&self.workers, signals, client_timeout).await;
            }
        };
        self.leave(told, signals, self.live.shutdown.get().delay).await;
        told
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

    async fn housekeeping(self: Rc<Self>) {
        let mut publish = tokio::time::interval(PUBLISH);
        let mut resolved = Instant::now();
        loop {
            publish.tick().await;
            self.publish();
            if let Some(limit) = self.live.long_lease.get() {
                leases::tell_of_long_ones(&self.budgets(), limit);
            }
            if resolved.elapsed() >= self.live.resolve_interval.get() {
                if matches!(self.shared.connector.address_changed().await, Ok(true)) {
                    tracing::warn!("the upstream's address has changed; lanes move to the new one");
                    self.workers.address_changed().await;
                }
                resolved = Instant::now();
            }
        }
    }

    fn publish(&self) {
        let budgets = self.budgets();
        connections::publish(&budgets);
        if let Some(age) = self.nodes.as_ref().and_then(|nodes| nodes.map_age()) {
            publish_gauge(
                "redbouncer_map_age_seconds",
                &[],
                usize::try_from(age.as_secs()).unwrap_or(usize::MAX),
            );
        }
        leases::publish(&budgets);
        fleet::publish(&self.fleet, &self.shared.budget);
        publish_gauge("redbouncer_paused", &[], usize::from(self.shared.pause.is_on()));
        publish_gauge("redbouncer_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        let (standing, standing_max) = self.shared.budget.standing();
        publish_gauge("redbouncer_standing_leases", &[], standing);
        publish_gauge("redbouncer_standing_leases_max", &[], standing_max);
        let memory = &self.shared.memory;
        publish_gauge("redbouncer_clients_unauthenticated", &[], self.workers.places().waiting());
        publish_gauge("redbouncer_client_memory_bytes", &[], memory.used());
        publish_gauge("redbouncer_client_memory_bytes_max", &[], memory.bound().unwrap_or(0));
        self.shared.health.publish();
        publish_tasks("main");
        self.publish_users();
        self.log.report();
        self.exporter.run_upkeep();
    }

    /// The permits of all servers.
    fn budgets(&self) -> Vec<NodeBudget> {
        let own = &self.shared.budget;
        match &self.nodes {
            Some(nodes) => nodes.budgets(own),
            None => vec![NodeBudget { node: None, budget: Arc::clone(own), serves: true }],
        }
    }

    /// What each user has. One that has gone is 0 from then on: a series cannot be taken back.
    fn publish_users(&self) {
        let rows = self.directory.rows();
        let mut shown = self.shown.borrow_mut();
        for name in shown.iter().filter(|name| !rows.iter().any(|row| row.name == **name)) {
            publish_gauge("redbouncer_user_clients", &[("user", name)], 0);
            publish_gauge("redbouncer_user_connections", &[("user", name)], 0);
        }
        for row in rows {
            let labels = [("user", row.name.as_str())];
            publish_gauge("redbouncer_user_clients", &labels, row.clients);
            publish_gauge("redbouncer_user_connections", &labels, row.connections);
            if let Some(most) = row.max_clients {
                publish_gauge("redbouncer_user_clients_max", &labels, most);
            }
            if let Some(most) = row.max_connections {
                publish_gauge("redbouncer_user_connections_max", &labels, most);
            }
            shown.insert(row.name);
        }
    }

    /// Says that nobody else should come, and serves on for `delay`.
    async fn leave(&self, signal: &str, signals: &mut StopSignals, delay: Duration) {
        if !delay.is_zero() {
            self.stage.set(Stage::Leaving);
            service_manager::stopping(delay);
            let clients = self.workers.clients();
            tracing::info!(
                signal,
                clients,
                delay_seconds = seconds(delay),
                "not ready any more; clients are still served"
            );
            signals.delay(delay).await;
        }
    }

    /// Closes the door, drains the workers, says what was closed.
    async fn stop(
        &self,
        signal: &str,
        doors: &Doors,
        signals: &mut StopSignals,
        grace: Duration,
    ) -> ExitCode {
        self.stage.set(Stage::Stopping);
        service_manager::stopping(grace + self.shared.upstream.get().close_timeout);
        doors.close();
        let clients = self.workers.clients();
        let upstreams = NodeBudget::held(&self.budgets());
        tracing::info!(signal, clients, upstreams, grace_seconds = seconds(grace), "stopping");
        let cut = tokio::select! {
            cut = self.workers.drain(Instant::now() + grace) => cut,
            second = async { signals.settle().await; signals.next().await } => {
                tracing::warn!(signal = second, "stopping at once");
                self.log.finish();
                std::process::exit(i32::from(CUT));
            }
        };
        let left = NodeBudget::held(&self.budgets());
        if left == 0 {
            tracing::info!(connections = upstreams, "all upstream connections closed");
        } else {
            tracing::warn!(connections = upstreams, left, "some upstream connections did not close in time");
        }
        if cut > 0 {
            tracing::warn!(clients = cut, "the grace ended with commands in flight");
            return ExitCode::from(CUT);
        }
        ExitCode::SUCCESS
    }
}

impl View for Proxy {
    fn sample(&self) -> Sample {
        let budgets = self.budgets();
        let waiting = NodeBudget::pressure(&budgets);
        Sample {
            clients: self.workers.clients(),
            upstream: NodeBudget::held(&budgets),
            waiting: waiting.lanes + waiting.leases + waiting.hubs + waiting.blocking + waiting.standing,
        }
    }

    async fn metrics(&self) -> String {
        let figures = self.workers.publish().await;
        self.publish();
        exposition::publish(&figures, self.shared.memory.used());
        exposition::publish_process().await;
        self.exporter.render() + &exposition::render(&figures, &self.budgets())
    }

    fn hosts(&self) -> Vec<String> {
        self.live.admin_hosts.borrow().clone()
    }

    fn readiness(&self) -> Result<(), &'static str> {
        let health = &self.shared.health;
        match self.stage.get() {
            Stage::Starting => Err("starting"),
            Stage::Leaving | Stage::Stopping => Err("stopping"),
            Stage::Serving if self.shared.connector.is_unlocated() => Err(match &self.nodes {
                None => "no Sentinel has named a master yet",
                Some(_) => "no node of the cluster has told of its slots yet",
            }),
            Stage::Serving if health.refused().is_some() => {
                Err("the server refuses the login of upstream.url")
            }
            Stage::Serving if self.live.ready_needs_login.get() && !health.has_reached() => {
                Err("the server has not accepted a login yet")
            }
            Stage::Serving => Ok(()),
        }
    }

    async fn status(&self) -> Value {
        let state = match self.stage.get() {
            Stage::Starting => "starting",
            Stage::Serving if self.shared.pause.is_on() => "paused",
            Stage::Serving => "serving",
            Stage::Leaving => "leaving",
            Stage::Stopping => "stopping",
        };
        let mut upstream = self.shared.connector.server().map_or_else(
            || json!({ "server": "not reached yet" }),
            |server| {
                json!({
                    "server": server.server,
                    "version": server.version,
                    "mode": server.mode,
                    "role": server.role,
                })
            },
        );
        if let Some(down) = self.shared.health.down_for() {
            upstream["unreachable_seconds"] = json!(down.as_secs());
            upstream["unreachable_reason"] = json!(self.shared.health.why_down());
        }
        upstream["up"] = json!(self.shared.health.is_up());
        if let Some(followed) = self.shared.connector.topology().followed() {
            upstream["sentinel"] = admin::sentinels(&followed);
        }
        let budgets = self.budgets();
        if let Some(nodes) = &self.nodes {
            upstream["cluster"] = cluster::status(nodes, &budgets);
        }
        if let Some(refused) = self.shared.health.refused() {
            upstream["login_refused_seconds"] = json!(refused.since.elapsed().as_secs());
            upstream["login_refused_reason"] = json!(refused.text);
        }
        if let Some(closed) = self.shared.health.closed_for_want() {
            upstream["clients_closed"] = json!({
                "clients": closed.clients,
                "last_seconds_ago": closed.at.elapsed().as_secs(),
                "last_reason": closed.reason,
            });
        }
        let (lanes, mut clients) = (self.workers.lanes().await, self.workers.rows().await);
        clients.sort_by_key(|row| row.id);
        let rows = admin::Rows { lanes, users: self.directory.rows(), clients };
        let mut status = admin::status(state, &self.listening, &upstream, &self.shared, &budgets, &rows);
        status["fleet"] = fleet::status(&self.fleet, &self.shared.instance);
        status["unauthenticated"] = json!(self.workers.places().waiting());
        status
    }
}

/// A takeover that has failed leaves nothing of this process on the server.
async fn give_up_unless<T>(outcome: Result<T, StartError>, workers: &Workers) -> Result<T, StartError> {
    if outcome.is_err() {
        workers.drain(Instant::now()).await;
    }
    outcome
}

fn install_metrics() -> Result<PrometheusHandle, StartError> {
    let fail = |error: &dyn std::fmt::Display| StartError::Metrics(error.to_string());
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(
            Matcher::Full("redbouncer_upstream_release_seconds".to_owned()),
            &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 1.0],
        )
        .map_err(|error| fail(&error))?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| fail(&error))?;
    telemetry::describe();
    telemetry::create_series(&Kind::ALL.map(Kind::label), &Pin::ALL.map(Pin::label));
    Ok(handle)
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

fn worker_config(
    config: &Config,
    fleet: &FleetTerms,
    (directory, ids): (&Arc<Directory>, &Arc<AtomicU64>),
    first_look: &CancellationToken,
    steering: ConfigHandle,
) -> WorkerConfig {
    WorkerConfig {
        clients: config.client,
        slow_command: config.log.slow_command,
        auth: config.auth.clone(),
        blocking: config.blocking,
        pubsub: config.pubsub,
        hygiene: config.hygiene,
        fleet: fleet.clone(),
        first_look: first_look.clone(),
        audience: Arc::default(),
        admin_users: config.admin.users.clone().into(),
        directory: Arc::clone(directory),
        ids: Arc::clone(ids),
        config: steering,
        nodes: None,
    }
}

fn start_workers(
    count: usize,
    shared: &Shared,
    terms: &WorkerConfig,
    places: &Arc<Admission>,
) -> Result<(Workers, Vec<JoinHandle<()>>), StartError> {
    let (workers, ends): (Vec<_>, Vec<_>) = (0..count).map(|_| WorkerHandle::new()).unzip();
    let workers = Workers::new(workers, Arc::clone(places));
    let mut threads = Vec::new();
    for (index, end) in ends.into_iter().enumerate() {
        let (shared, terms, workers) = (shared.clone(), terms.clone(), workers.clone());
        // Built here, so that a refusal of the operating system is an error at the start and not a panic later.
        let work = move || work(index, shared, terms, workers, end);
        threads.push(std::thread::Builder::new().name(format!("worker-{index}")).spawn(work)?);
    }
    Ok((workers, threads))
}

/// A worker's thread.
fn work(
    index: usize,
    shared: Shared,
    terms: WorkerConfig,
    workers: Workers,
    messages: mpsc::Receiver<Message>,
) {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(index, %error, "a worker cannot start");
            return;
        }
    };
    runtime.block_on(async {
        let pool = Pool::new(shared, TaskTracker::new());
        let verify = verify_upstream(Rc::clone(&pool), Arc::clone(&terms.directory));
        let worker = Worker::new(index, pool, terms, workers);
        if index == 0 {
            worker.look_after(tokio::task::spawn_local(verify).abort_handle());
        }
        worker.run(messages).await;
    });
    runtime.shutdown_background();
}
