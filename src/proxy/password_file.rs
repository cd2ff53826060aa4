//! `upstream.password_file` read again: on SIGHUP, and when it holds something else.
//!
//! It is looked at together with the certificates, and by the same reasoning ([`super::certificates`]).

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{Config, secret_in};
use crate::downstream::Directory;
use crate::pool::Health;
use crate::upstream::{Connector, Identity, Secret};

/// The password of `upstream.url` in a file of its own.
pub(super) struct PasswordFileReloader {
    path: Option<PathBuf>,
    last: Result<Option<Secret>, String>,
    connector: Arc<Connector>,
    directory: Arc<Directory>,
    health: Arc<Health>,
}

impl PasswordFileReloader {
    pub(super) fn new(
        config: &Config,
        connector: Arc<Connector>,
        directory: Arc<Directory>,
        health: Arc<Health>,
    ) -> Self {
        let (path, last) = (config.upstream.password_file.clone(), Ok(config.upstream.password.clone()));
        Self { path, last, connector, directory, health }
    }

    /// Another file is named now, or none, and has just been read.
    pub(super) fn follow(&mut self, config: &Config) {
        self.path.clone_from(&config.upstream.password_file);
        self.last = Ok(config.upstream.password.clone());
    }

    /// Reads the file again. Away from the thread that accepts clients: it may lie on a network file system that hangs.
    pub(super) async fn renew(&mut self) {
        let Some(path) = self.path.clone() else { return };
        let Ok(read) = tokio::task::spawn_blocking(move || secret_in(&path).map(Some)).await else { return };
        if read == self.last {
            return;
        }
        match &read {
            Ok(password) => {
                let own = self.connector.own_identity();
                if own.password != *password {
                    let identity = Arc::new(Identity { password: password.clone(), ..(*own).clone() });
                    self.connector.replace_own_identity(Arc::clone(&identity));
                    self.directory.replace_own_identity(identity);
                    self.health.try_the_login();
                }
                tracing::info!("upstream.password_file was reloaded; new logins use it");
            }
            Err(error) => {
                tracing::error!(
                    error,
                    "upstream.password_file cannot be used; the former password stays in use"
                );
            }
        }
        self.last = read;
    }
}
