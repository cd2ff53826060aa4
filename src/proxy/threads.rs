//! The worker threads, and what is made for them.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::StartError;
use super::fleet::FleetTerms;
use super::runtime::runtime;
use super::verify::verify_upstream;
use crate::config::Config;
use crate::downstream::{
    Admission, ConfigHandle, ConfigRequest, Directory, Limits, Message, Worker, WorkerConfig, WorkerHandle,
    Workers,
};
use crate::nodes::Nodes;
use crate::pool::{Pool, Shared};

/// The workers, and what they have in common with the main thread.
pub(super) struct WorkerThreads {
    pub(super) workers: Workers,
    pub(super) threads: Vec<JoinHandle<()>>,
    pub(super) directory: Arc<Directory>,
    pub(super) fleet: FleetTerms,
    /// The next client's id.
    pub(super) ids: Arc<AtomicU64>,
    /// Cancelled when orphans have been looked for once.
    pub(super) first_look: CancellationToken,
    /// The subcommands of `config`.
    pub(super) requests: mpsc::Receiver<ConfigRequest>,
}

impl WorkerThreads {
    /// Starts them. The first client that is accepted gets the id `first_id`.
    pub(super) fn start(
        config: &Config,
        limits: Limits,
        shared: &Shared,
        nodes: Option<&Arc<Nodes>>,
        first_id: u64,
    ) -> Result<Self, StartError> {
        let ids = Arc::new(AtomicU64::new(first_id));
        let first_look = CancellationToken::new();
        let directory = Arc::new(Directory::new(&config.upstream, &config.auth, Arc::clone(&shared.budget))?);
        let (steering, requests) = ConfigHandle::new();
        let fleet = FleetTerms { options: config.fleet, ..FleetTerms::default() };
        let terms = WorkerConfig {
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
            directory: Arc::clone(&directory),
            ids: Arc::clone(&ids),
            config: steering,
            nodes: nodes.cloned(),
        };
        let (workers, threads) = start_threads(config.workers, shared, &terms, &Admission::new(limits))?;
        Ok(Self { workers, threads, directory, fleet, ids, first_look, requests })
    }
}

fn start_threads(
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
