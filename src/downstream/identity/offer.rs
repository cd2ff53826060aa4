//! An offered name and secret, and the result of their check.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::Account;
use crate::session::Credentials;

/// How long a refusal is cached: long enough for a service that retries a stale password, short enough for an operator
/// who has just corrected it on the server.
const REFUSAL: Duration = Duration::from_secs(2);

/// Identifies a name and a secret without containing the secret: a hash with a salt of this process.
pub(super) type Fingerprint = [u8; 32];

/// The fingerprint of `offered`. AUTH without a name differs from AUTH with the name `default`, as on the server.
pub(super) fn fingerprint(salt: &[u8], offered: &Credentials) -> Fingerprint {
    let mut hash = Sha256::new();
    hash.update(salt);
    if let Some(name) = &offered.username {
        hash.update([1]);
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
    } else {
        hash.update([0]);
    }
    hash.update(&*offered.password);
    hash.finalize().into()
}

/// The known facts about one name and secret.
#[derive(Debug)]
pub(in crate::downstream) struct Credential {
    /// Its account; `None`: no such user.
    pub(in crate::downstream) account: Option<Arc<Account>>,
    /// One check at a time; other logins wait for its result.
    pub(in crate::downstream) turn: tokio::sync::Mutex<()>,
    standing: Mutex<Standing>,
}

#[derive(Debug)]
enum Standing {
    Unknown,
    Good(Instant),
    Bad(Instant, String),
}

/// The cached result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::downstream) enum CachedVerdict {
    /// It was accepted recently.
    Good,
    /// It was refused recently, with this error.
    Bad(String),
    /// Nothing that could be believed.
    Nothing,
}

impl Credential {
    pub(super) fn new(account: Option<Arc<Account>>) -> Arc<Self> {
        Arc::new(Self {
            account,
            turn: tokio::sync::Mutex::default(),
            standing: Mutex::new(Standing::Unknown),
        })
    }

    /// The cached result; a success is valid for `ttl`.
    pub(in crate::downstream) fn remembered(&self, ttl: Duration) -> CachedVerdict {
        match &*self.standing.lock() {
            Standing::Good(at) if at.elapsed() < ttl => CachedVerdict::Good,
            Standing::Bad(at, text) if at.elapsed() < REFUSAL => CachedVerdict::Bad(text.clone()),
            Standing::Good(_) | Standing::Bad(..) | Standing::Unknown => CachedVerdict::Nothing,
        }
    }

    pub(in crate::downstream) fn let_in(&self) {
        *self.standing.lock() = Standing::Good(Instant::now());
    }

    pub(in crate::downstream) fn refuse(&self, text: &str) {
        *self.standing.lock() = Standing::Bad(Instant::now(), text.to_owned());
    }

    pub(super) fn forget(&self) {
        *self.standing.lock() = Standing::Unknown;
    }

    /// The time since it was accepted.
    pub(super) fn good_for(&self) -> Option<Duration> {
        match &*self.standing.lock() {
            Standing::Good(at) => Some(at.elapsed()),
            Standing::Bad(..) | Standing::Unknown => None,
        }
    }

    /// A client is logged in with it.
    pub(super) fn is_live(&self) -> bool {
        self.account.as_ref().is_some_and(|account| account.clients() > 0)
    }
}
