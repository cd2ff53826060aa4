//! The configuration read again: on SIGHUP, on `PROXY RELOAD`, and when its file has changed where `config.watch` asks for it.
//!
//! Everything is read and checked before anything changes. A key that needs a restart keeps its value, and is named.
//! Certificates, the users file and the password file are read again besides, every two seconds and with every reload.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::certificates::CertificateReloader;
use super::memory;
use super::password_file::PasswordFileReloader;
use super::settings::{LiveSettings, of_workers};
use super::users_file::UsersFileReloader;
use crate::config::{Change, Config, Effect, Loaded, Sources};
use crate::downstream::{
    ConfigRequest, Directory, Outcome, PreparedTls, ReloadReport, ServerTls, SettingRow, Workers,
};
use crate::nodes::Nodes;
use crate::pool::Shared;
use crate::telemetry::logging::{self, LogOptions};
use crate::telemetry::publish_gauge;
use crate::upstream::pem::Fingerprint;
use crate::upstream::{Identity, PreparedTarget, UpstreamOptions};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// What is in effect, and what is read again.
pub(super) struct Reloader {
    sources: Sources,
    current: Loaded,
    applied: Applied,
    certificates: CertificateReloader,
    users: UsersFileReloader,
    password: PasswordFileReloader,
    /// What the configuration file held when it was last read.
    seen: Option<Fingerprint>,
}

/// What a reload changes.
pub(super) struct Applied {
    pub(super) live: Rc<LiveSettings>,
    pub(super) shared: Shared,
    pub(super) workers: Workers,
    /// The nodes, if the server is a cluster.
    pub(super) nodes: Option<Arc<Nodes>>,
    pub(super) directory: Arc<Directory>,
    /// The certificates that clients are shown, where there is a listener with TLS.
    pub(super) tls: Option<Arc<ServerTls>>,
    /// For whoever follows the master that Sentinels name.
    pub(super) upstream: watch::Sender<UpstreamOptions>,
}

/// What has been read and found good, but is not used yet.
#[derive(Default)]
struct Prepared {
    target: Option<PreparedTarget>,
    tls: Option<PreparedTls>,
}

impl Reloader {
    pub(super) fn new(
        (sources, current): (Sources, Loaded),
        applied: Applied,
        certificates: CertificateReloader,
    ) -> Self {
        let (config, directory) = (&current.config, &applied.directory);
        let users = UsersFileReloader::new(config, Arc::clone(directory), applied.workers.clone());
        let (connector, health) = (&applied.shared.connector, &applied.shared.health);
        let password = PasswordFileReloader::new(
            config,
            Arc::clone(connector),
            Arc::clone(directory),
            Arc::clone(health),
        );
        let seen = look(&sources);
        Self { sources, current, applied, certificates, users, password, seen }
    }

    /// Runs until it is dropped.
    pub(super) async fn run(mut self, mut hangup: Signal, mut requests: mpsc::Receiver<ConfigRequest>) {
        published(true);
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = hangup.recv() => drop(self.reload("SIGHUP").await),
                Some(request) = requests.recv() => self.answer(request).await,
                _ = tick.tick() => self.look().await,
            }
        }
    }

    async fn look(&mut self) {
        self.renew(false).await;
        if self.current.config.watch && look(&self.sources) != self.seen {
            drop(self.reload("the file has changed").await);
        }
    }

    /// Reads certificates and passwords again that have changed; with `asked`, certificates in any case.
    async fn renew(&mut self, asked: bool) {
        self.certificates.renew(asked).await;
        self.users.renew().await;
        self.password.renew().await;
    }

    async fn answer(&mut self, request: ConfigRequest) {
        // An answer nobody waits for any more is dropped.
        match request {
            ConfigRequest::Reload(reply) => drop(reply.send(self.reload("PROXY RELOAD").await)),
            ConfigRequest::Set(key, value, reply) => drop(reply.send(self.set(&key, &value).await)),
            ConfigRequest::List(reply) => drop(reply.send(self.rows())),
        }
    }

    fn rows(&self) -> Vec<SettingRow> {
        let rows = self.current.settings().map(|setting| SettingRow {
            key: setting.key,
            value: setting.value.unwrap_or_default(),
            default: setting.default.unwrap_or_default(),
            source: setting.origin.to_string(),
            effect: setting.effect.label(),
        });
        rows.collect()
    }

    async fn reload(&mut self, cause: &'static str) -> Outcome {
        self.renew(true).await;
        self.seen = look(&self.sources);
        let outcome = self.take(self.sources.clone()).await;
        published(outcome.is_ok());
        match &outcome {
            Ok(report) => {
                let changed = report.changed.len();
                tracing::info!(cause, changed, "the configuration was reloaded");
            }
            Err(error) => {
                tracing::error!(cause, error, "the configuration cannot be used; nothing has changed");
            }
        }
        outcome
    }

    /// Sets one key until the process ends.
    async fn set(&mut self, key: &str, value: &str) -> Outcome {
        let sources = self.sources.with(key, value)?;
        let report = self.take(sources.clone()).await?;
        self.sources = sources;
        Ok(report)
    }

    /// Reads `sources`, and changes what has changed if all of it can be used.
    async fn take(&mut self, sources: Sources) -> Outcome {
        // Away from the thread that accepts clients: a file may lie on a network file system that hangs.
        let read = tokio::task::spawn_blocking(move || sources.load()).await;
        let new = read.map_err(|wrong| wrong.to_string())?.map_err(|errors| joined(&errors))?;
        let (merged, changes) = self.current.merge(new).map_err(|errors| joined(&errors))?;
        let budget = &self.applied.shared.budget;
        let cap = merged.config.pool.max_connections;
        if !budget.may_become(cap) {
            return Err(format!(
                "\"pool.max_connections\" cannot become {cap} without a restart: it is {} now, and below 6 connections \
                 are divided otherwise",
                budget.cap()
            ));
        }
        if merged.config.upstream.nodes != self.current.config.upstream.nodes {
            return Err("\"upstream.url\" cannot name another cluster, or begin or cease to name one, without a restart".to_owned());
        }
        let (config, is_tls) = (merged.config.clone(), self.applied.tls.is_some());
        let touched: Vec<&'static str> = applied(&changes).map(|change| change.key).collect();
        let upstream = self.located(&config.upstream);
        let prepared =
            tokio::task::spawn_blocking(move || prepare(&config, &upstream, &touched, is_tls)).await;
        let prepared = prepared.map_err(|wrong| wrong.to_string())??;
        let former = std::mem::replace(&mut self.current, merged);
        self.apply(&former.config, prepared).await;
        Ok(report(&changes))
    }

    /// `new`, with the master that is followed where it names the same service.
    fn located(&self, new: &UpstreamOptions) -> UpstreamOptions {
        let of_service =
            |options: &UpstreamOptions| options.service.as_ref().map(|service| service.name.clone());
        let followed = self.applied.shared.connector.topology().followed();
        match followed.and_then(|followed| followed.master) {
            Some((master, _)) if of_service(new) == of_service(&self.current.config.upstream) => {
                new.at(&master)
            }
            Some(_) | None => new.clone(),
        }
    }

    async fn apply(&mut self, former: &Config, prepared: Prepared) {
        let Applied { live, shared, workers, nodes, directory, tls, upstream } = &self.applied;
        let config = &self.current.config;
        let (old, new) = (&former.upstream, &config.upstream);
        let has_new_login = old.username != new.username || old.password != new.password;
        if has_new_login {
            let identity = Arc::new(Identity::of_url(new));
            shared.connector.replace_own_identity(Arc::clone(&identity));
            directory.replace_own_identity(identity);
        }
        let moves =
            (&old.host, old.port, old.tls, &old.username) != (&new.host, new.port, new.tls, &new.username);
        // Where the master of another service is will be asked first; until then what is connected stays.
        let target = prepared.target.filter(|target| !target.is_unlocated());
        let moves = moves && target.is_some();
        if let Some(target) = target {
            shared.connector.replace(target, moves);
        }
        upstream.send_if_modified(|known| {
            let is_new = *known != *new;
            known.clone_from(new);
            is_new
        });
        if let (Some(tls), Some(prepared)) = (tls, prepared.tls) {
            tls.replace(prepared);
        }
        live.set(config);
        shared.budget.resize(config.pool.max_connections);
        nodes.iter().for_each(|nodes| nodes.resize(config.pool.max_connections));
        shared.dial_rate.set(new.connect_rate);
        shared.tracer.set_sample(config.tracing.sample);
        let clients = &config.client;
        workers.places().resize(clients.max, clients.max_unauthenticated, clients.max_per_address);
        if clients.memory_max != former.client.memory_max {
            shared.memory.resize(memory::bound(clients));
        }
        directory.believe_for(config.auth.cache_ttl);
        self.users.follow(config);
        follow_log(&former.log, &config.log);
        workers.configure(&of_workers(config)).await;
        if moves {
            tracing::info!("upstream.url has changed; connections move as they become free");
            workers.move_upstream().await;
        }
        if moves || has_new_login {
            shared.health.try_the_login();
        }
        self.certificates.look_again();
        self.password.follow(config);
    }
}

/// What `PROXY LOG` has set stays where the configuration says the same as before.
fn follow_log(former: &LogOptions, new: &LogOptions) {
    if former.level != new.level {
        // It has been checked with the rest of the configuration.
        drop(logging::set_level(&new.level));
    }
    if former.format != new.format {
        logging::set_format(new.format);
    }
}

/// What the configuration file holds now.
fn look(sources: &Sources) -> Option<Fingerprint> {
    sources.file().map(|path| Fingerprint::of([path.as_path()]))
}

/// Reads the files that the keys `touched` name, and finds out whether they can be used.
fn prepare(
    config: &Config,
    upstream: &UpstreamOptions,
    touched: &[&str],
    is_tls: bool,
) -> Result<Prepared, String> {
    let is_touched = |section: &str| touched.iter().any(|key| key.starts_with(section));
    let target = is_touched("upstream.").then(|| PreparedTarget::new(upstream));
    let tls = (is_tls && is_touched("listen.tls.")).then(|| ServerTls::prepare(&config.listen.tls));
    let target = target.transpose().map_err(|wrong| wrong.to_string())?;
    let tls = tls.transpose().map_err(|wrong| wrong.to_string())?;
    Ok(Prepared { target, tls })
}

fn applied(changes: &[Change]) -> impl Iterator<Item = &Change> {
    changes.iter().filter(|change| change.effect != Effect::Restart)
}

/// Says what has changed, key by key, and what needs a restart.
fn report(changes: &[Change]) -> ReloadReport {
    // As in TOML, but for the quotes of a text: the log has quotes of its own.
    let shown = |value: &Option<String>| {
        value.as_ref().map_or_else(|| "not set".to_owned(), |value| value.trim_matches('"').to_owned())
    };
    for Change { key, from, to, effect } in applied(changes) {
        tracing::info!(
            key,
            from = shown(from),
            to = shown(to),
            effect = effect.label(),
            "a setting has changed"
        );
    }
    let changed = applied(changes).map(|change| change.key).collect();
    let pending = changes.iter().filter(|change| change.effect == Effect::Restart);
    let restart: Vec<_> = pending.map(|change| change.key).collect();
    if !restart.is_empty() {
        tracing::warn!(
            keys = restart.join(", "),
            "these keys need a restart; their former values stay in use"
        );
    }
    ReloadReport { changed, restart }
}

fn joined(errors: &[crate::config::ConfigError]) -> String {
    let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// Publishes how the last reload ended, and when; the start counts as one.
fn published(is_good: bool) {
    publish_gauge("redbouncer_config_reload_success", &[], usize::from(is_good));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = usize::try_from(now.as_secs()).unwrap_or(usize::MAX);
    publish_gauge("redbouncer_config_reload_timestamp_seconds", &[], seconds);
}
