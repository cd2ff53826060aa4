//! What a reload may change, and where each of it goes.

use std::cell::Cell;
use std::time::Duration;

use crate::config::Config;
use crate::downstream::WorkerSettings;
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
}

impl LiveSettings {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            ready_needs_login: Cell::new(config.admin.ready_needs_login),
            shutdown: Cell::new(config.shutdown),
            long_lease: Cell::new(config.log.long_lease),
            resolve_interval: Cell::new(config.upstream.resolve_interval),
        }
    }

    pub(super) fn set(&self, config: &Config) {
        let Self { ready_needs_login, shutdown, long_lease, resolve_interval } = Self::of(config);
        self.ready_needs_login.swap(&ready_needs_login);
        self.shutdown.swap(&shutdown);
        self.long_lease.swap(&long_lease);
        self.resolve_interval.swap(&resolve_interval);
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
    }
}
