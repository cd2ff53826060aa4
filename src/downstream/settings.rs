//! Messages of a reload to the workers, and of clients' requests to the owner of the configuration.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::identity::AdminCommands;
use super::options::ClientOptions;
use crate::hub::{BlockingOptions, PubSubOptions};
use crate::hygiene::HygieneOptions;
use crate::pool::PoolOptions;
use crate::upstream::UpstreamTimes;

/// The settings of a worker's clients that may change at run time.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// Sizes and times of the pool.
    pub pool: PoolOptions,
    /// Times of upstream connections.
    pub upstream: UpstreamTimes,
    /// Limits of one client.
    pub clients: ClientOptions,
    /// From how long on a command is named in the log.
    pub slow_command: Option<Duration>,
    /// How blocking calls wait.
    pub blocking: BlockingOptions,
    /// How subscribers are served.
    pub pubsub: PubSubOptions,
    /// Whether commands that reach beyond the own connection are refused.
    pub admin_commands: AdminCommands,
    /// The users that may act on the proxy with PROXY.
    pub admin_users: Arc<[String]>,
    /// How long the server's answers about a user are cached.
    pub cache_ttl: Duration,
    /// Treatment of orphaned connections.
    pub hygiene: HygieneOptions,
}

/// A key of the configuration as listings show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingRow {
    /// `section.key`.
    pub key: &'static str,
    /// As TOML, credentials as `***`; empty where nothing is set.
    pub value: String,
    /// The default in the same form.
    pub default: String,
    /// Where the value came from.
    pub source: String,
    /// How a change takes effect.
    pub effect: &'static str,
}

/// The outcome of a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReloadReport {
    /// Keys that have changed.
    pub changed: Vec<&'static str>,
    /// Keys whose new value needs a restart.
    pub restart: Vec<&'static str>,
}

/// The outcome of a reload, or the reason for none.
pub type Outcome = Result<ReloadReport, String>;

/// A request to the owner of the configuration.
#[derive(Debug)]
pub enum ConfigRequest {
    /// Read everything again.
    Reload(oneshot::Sender<Outcome>),
    /// Set one key until the process ends.
    Set(String, String, oneshot::Sender<Outcome>),
    /// Every key.
    List(oneshot::Sender<Vec<SettingRow>>),
}

/// Sends requests to the owner of the configuration.
#[derive(Clone, Debug)]
pub struct ConfigHandle(mpsc::Sender<ConfigRequest>);

impl ConfigHandle {
    /// A handle and the end that answers. The queue is short: such requests are rare, and whoever sends more waits.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<ConfigRequest>) {
        let (sender, receiver) = mpsc::channel(16);
        (Self(sender), receiver)
    }

    /// `None`: the process is ending.
    pub async fn reload(&self) -> Option<Outcome> {
        self.ask(ConfigRequest::Reload).await
    }

    /// `None`: the process is ending.
    pub async fn set(&self, key: String, value: String) -> Option<Outcome> {
        self.ask(|reply| ConfigRequest::Set(key, value, reply)).await
    }

    /// `None`: the process is ending.
    pub async fn list(&self) -> Option<Vec<SettingRow>> {
        self.ask(ConfigRequest::List).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> ConfigRequest) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        self.0.send(request(sender)).await.ok()?;
        receiver.await.ok()
    }
}
