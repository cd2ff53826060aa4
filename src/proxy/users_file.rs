//! The users file read again: on SIGHUP, and when it, or a password file it names, holds something else.
//!
//! It is looked at together with the certificates, and by the same reasoning ([`super::renewal`]).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, outlasting, read_users};
use crate::downstream::{Directory, StaticUser, Workers};

type Outcome = Result<Vec<StaticUser>, Vec<String>>;

/// The users of the file.
pub(super) struct UsersFileReloader {
    path: Option<PathBuf>,
    /// What a login may take (`client.login_timeout`).
    login_timeout: Duration,
    last: Outcome,
    directory: Arc<Directory>,
    workers: Workers,
}

impl UsersFileReloader {
    pub(super) fn new(config: &Config, directory: Arc<Directory>, workers: Workers) -> Self {
        let auth = &config.auth;
        let (path, last) = (auth.users_file.clone(), Ok(auth.users.clone()));
        Self { path, login_timeout: config.client.login_timeout, last, directory, workers }
    }

    /// Logins may take another time.
    pub(super) fn follow(&mut self, config: &Config) {
        self.login_timeout = config.client.login_timeout;
    }

    /// Reads the file again. Away from the thread that accepts clients: it may lie on a network file system that hangs.
    pub(super) async fn renew(&mut self) {
        let Some(path) = self.path.clone() else { return };
        let Ok(read) = tokio::task::spawn_blocking(move || read_users(&path)).await else { return };
        let outcome = read.and_then(|users| match outlasting(&users, self.login_timeout) {
            Some(wrong) => Err(vec![wrong]),
            None => Ok(users),
        });
        if outcome == self.last {
            return;
        }
        match &outcome {
            Ok(users) => {
                tracing::info!(users = users.len(), "the users file was reloaded");
                for account in self.directory.replace_users(users.clone()) {
                    self.workers.revoke(&self.directory, account).await;
                }
            }
            Err(wrong) => {
                let error = wrong.join("; ");
                tracing::error!(
                    error,
                    "the users file has changed and cannot be used; the former users stay in use"
                );
            }
        }
        self.last = outcome;
    }
}
