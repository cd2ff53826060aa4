//! The settings of the proxy on the command line.

use std::path::PathBuf;

use clap::Args;

use crate::config::{Flags, Loaded, Sources};

/// Flags are text here: the configuration reads them by the same rules as variables and files.
#[derive(Args)]
pub(super) struct Settings {
    /// Address for clients, host:port; may be repeated [default: 127.0.0.1:6380]
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,
    /// The Redis server, redis[s]://user:password@host:port/database [default: redis://127.0.0.1:6379]
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Address for /metrics, /live, /ready and /status, or "" for none [default: 127.0.0.1:9380]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// A configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Maximum number of upstream connections of all kinds [default: 8]
    #[arg(long, value_name = "N")]
    max_connections: Option<String>,
    /// Threads that serve clients [default: 1]
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// Any key of the configuration; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl From<Settings> for Flags {
    fn from(settings: Settings) -> Self {
        let Settings { listen, upstream, admin, config, max_connections, workers, set } = settings;
        Self { config, listen, upstream, admin, max_connections, workers, set }
    }
}

/// The configuration, or all that is wrong with it, a line each.
pub(super) fn load(sources: &Sources) -> Result<Loaded, String> {
    sources.load().map_err(|errors| {
        errors.iter().map(|wrong| format!("redbouncer: configuration: {wrong}\n")).collect()
    })
}
