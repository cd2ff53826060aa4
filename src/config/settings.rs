//! All settings, and those of the command line.

use std::fmt;
use std::path::PathBuf;

use crate::admin::AdminOptions;
use crate::downstream::{AuthOptions, ClientOptions, ListenOptions};
use crate::hub::{BlockingOptions, PubSubOptions};
use crate::hygiene::HygieneOptions;
use crate::hygiene::fleet::FleetOptions;
use crate::pool::PoolOptions;
use crate::shutdown::ShutdownOptions;
use crate::takeover::TakeoverOptions;
use crate::telemetry::TracingOptions;
use crate::telemetry::logging::LogOptions;
use crate::upstream::{NameOptions, UpstreamOptions};

/// Everything that can be set, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where clients connect.
    pub listen: ListenOptions,
    /// Threads that serve clients, one runtime each (`listen.workers`).
    pub workers: usize,
    /// Limits of one client.
    pub client: ClientOptions,
    /// Logins and rights of clients.
    pub auth: AuthOptions,
    /// How blocking calls wait.
    pub blocking: BlockingOptions,
    /// How subscribers are served.
    pub pubsub: PubSubOptions,
    /// How to reach the server.
    pub upstream: UpstreamOptions,
    /// How this instance names itself on the server (`[hygiene]`).
    pub naming: NameOptions,
    /// Treatment of orphaned connections.
    pub hygiene: HygieneOptions,
    /// The bound on upstream connections.
    pub pool: PoolOptions,
    /// How it shares a bound with other instances.
    pub fleet: FleetOptions,
    /// The operator's HTTP listener.
    pub admin: AdminOptions,
    /// Whether a change of the configuration file is taken up (`config.watch`).
    pub watch: bool,
    /// How long a stop may take.
    pub shutdown: ShutdownOptions,
    /// How another process may take over.
    pub takeover: TakeoverOptions,
    /// Logging.
    pub log: LogOptions,
    /// Which commands are traced, and where spans of them go.
    pub tracing: TracingOptions,
    /// Secrets of it that others on this host can read.
    pub exposed: Vec<Exposure>,
}

/// The command line's part, as text. No `Debug`: a URL holds a password.
#[derive(Clone, Default)]
pub struct Flags {
    /// `--config`: the file to read instead of the one named by `REDBOUNCER_CONFIG`.
    pub config: Option<PathBuf>,
    /// `--listen`, once for each address.
    pub listen: Vec<String>,
    /// `--upstream`
    pub upstream: Option<String>,
    /// `--admin`
    pub admin: Option<String>,
    /// `--max-connections`
    pub max_connections: Option<String>,
    /// `--workers`
    pub workers: Option<String>,
    /// `--set section.key=value`, each.
    pub set: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: ListenOptions::default(),
            workers: 1,
            client: ClientOptions::default(),
            auth: AuthOptions::default(),
            blocking: BlockingOptions::default(),
            pubsub: PubSubOptions::default(),
            upstream: UpstreamOptions::default(),
            naming: NameOptions::default(),
            hygiene: HygieneOptions::default(),
            pool: PoolOptions::default(),
            fleet: FleetOptions::default(),
            admin: AdminOptions::default(),
            watch: false,
            shutdown: ShutdownOptions::default(),
            takeover: TakeoverOptions::default(),
            log: LogOptions::default(),
            tracing: TracingOptions::default(),
            exposed: Vec::new(),
        }
    }
}

/// Where others can read a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// On the command line, with this flag.
    CommandLine(String),
    /// In a file that every user of this host may read.
    File {
        /// The key that names it, or whose value it holds.
        key: &'static str,
        /// Where it is.
        path: PathBuf,
    },
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine(flag) => write!(
                f,
                "the password given by {flag} stands in the list of processes, where every user of this host can read it: \
                 set the environment variable REDBOUNCER_UPSTREAM, or upstream.password_file, instead"
            ),
            Self::File { key, path } => write!(
                f,
                "{key}: every user of this host may read {}, which holds a secret: chmod o-r",
                path.display()
            ),
        }
    }
}

/// The CPUs that this process may use, if they are fewer than `workers`: a worker without a CPU of its own serves no more requests, and
/// each request costs more.
#[must_use]
pub fn fewer_cpus_than(workers: usize) -> Option<usize> {
    let cpus = std::thread::available_parallelism().ok()?.get();
    (cpus < workers).then_some(cpus)
}
