//! The whole proxy: assembled (`start`), run, drained.
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
mod gauges;
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
mod start;
mod status;
mod successor;
mod threads;
mod traces;
mod users_file;
mod verify;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::time::Instant;

use crate::config::{Config, Loaded, Sources};
use crate::downstream::{Directory, InheritedSockets, Workers};
use crate::nodes::Nodes;
use crate::pool::{NodeBudget, Shared};
use crate::shutdown::StopSignals;
use crate::telemetry::{Log, seconds};
use doors::Doors;
use error::{BAD_CONFIGURATION, StartError};
use fleet::FleetTerms;
use runtime::runtime;
use settings::LiveSettings;

/// The grace ended with commands in flight.
const CUT: u8 = 75;
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

/// Keys that are accepted and do nothing any more.
fn warn_of_what_is_retired(config: &Config) {
    if config.client.user_timeout_backpressured.is_some() {
        tracing::warn!(
            "client.user_timeout_backpressured has no effect and will be refused by the next release; remove it"
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
    /// Serves until the process is to end, and drains it.
    async fn serve(
        self: &Rc<Self>,
        own: &successor::Own,
        doors: &Doors,
        signals: &mut StopSignals,
    ) -> ExitCode {
        let told = self.until_told(own, doors, signals).await;
        self.stop(told, doors, signals, self.live.shutdown.get().drain_timeout).await
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
                    tracing::warn!("the server's address has changed; lanes move to the new address");
                    self.workers.address_changed().await;
                }
                resolved = Instant::now();
            }
        }
    }

    /// The permits of all servers.
    fn budgets(&self) -> Vec<NodeBudget> {
        let own = &self.shared.budget;
        match &self.nodes {
            Some(nodes) => nodes.budgets(own),
            None => vec![NodeBudget { node: None, budget: Arc::clone(own), serves: true }],
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
                "no longer ready; clients are still served"
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
            tracing::warn!(clients = cut, "the drain timeout expired with commands in flight");
            return ExitCode::from(CUT);
        }
        ExitCode::SUCCESS
    }
}
