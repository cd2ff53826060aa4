//! What a reload may change, and where each of it goes.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::config::Config;
use crate::downstream::{AcceptTerms, WorkerSettings};
use crate::shutdown::ShutdownOptions;

/// Settings of the main thread that may change.
pub(super) struct LiveSettings {
    /// `admin.ready_needs_login`
    pub(super) ready_needs_login: Cell<bool>,
    /// `[shutdown]`
    pub(super) shutdown: Cell<ShutdownOptions>,
    /// `log.long_lease`
    pub(super) long_lease: Cell<Option<Duration>>,
    /// `upstream.resolve_interval`
    pub(super) resolve_interval: Cell<Duration>,
    /// `takeover.client_timeout`
    pub(super) takeover_timeout: Cell<Duration>,
    /// `admin.hosts`
    pub(super) admin_hosts: RefCell<Vec<String>>,
    /// What the threads that accept clients go by.
    pub(super) accept: Arc<Mutex<AcceptTerms>>,
    /// So many clients there are open files for.
    most_clients: usize,
}

impl LiveSettings {
    pub(super) fn of(config: &Config, most_clients: usize) -> Self {
        Self {
            ready_needs_login: Cell::new(config.admin.ready_needs_login),
            shutdown: Cell::new(config.shutdown),
            long_lease: Cell::new(config.log.long_lease),
            resolve_interval: Cell::new(config.upstream.resolve_interval),
            takeover_timeout: Cell::new(config.takeover.client_timeout),
            admin_hosts: RefCell::new(config.admin.hosts.clone()),
            accept: Arc::new(Mutex::new(accept_terms(config, most_clients))),
            most_clients,
        }
    }

    pub(super) fn set(&self, config: &Config) {
        let Self {
            ready_needs_login,
            shutdown,
            long_lease,
            resolve_interval,
            takeover_timeout,
            admin_hosts,
            accept,
            most_clients,
        } = self;
        ready_needs_login.set(config.admin.ready_needs_login);
        shutdown.set(config.shutdown);
        long_lease.set(config.log.long_lease);
        resolve_interval.set(config.upstream.resolve_interval);
        takeover_timeout.set(config.takeover.client_timeout);
        admin_hosts.replace(config.admin.hosts.clone());
        *accept.lock() = accept_terms(config, *most_clients);
    }
}

fn accept_terms(config: &Config, most_clients: usize) -> AcceptTerms {
    AcceptTerms {
        max_clients: config.client.max.min(most_clients),
        login_timeout: config.client.login_timeout,
        protected_mode: config.listen.protected_mode,
    }
}

/// Settings of a worker's clients and connections that may change.
pub(super) fn of_workers(config: &Config) -> WorkerSettings {
    WorkerSettings {
        pool: config.pool,
        upstream: config.upstream.times(),
        clients: config.client,
        slow_command: config.log.slow_command,
        blocking: config.blocking,
        pubsub: config.pubsub,
        admin_commands: config.auth.admin_commands,
        admin_users: config.admin.users.clone().into(),
        cache_ttl: config.auth.cache_ttl,
        hygiene: config.hygiene,
    }
}
