//! Accounts that clients log in as, and membership in them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::session::{Credentials, Rights, User};
use crate::upstream::{CredentialSource, Identity, Secret};

/// An account: the identity of the configuration, a user of the users file, or a name and secret that the server has
/// accepted.
#[derive(Debug)]
pub struct Account {
    /// Its number in pool keys, and the name that listings show.
    pub user: User,
    /// The commands that it may send.
    pub rights: Rights,
    /// Clients at the same time.
    pub max_clients: Option<usize>,
    /// Upstream connections at the same time.
    pub max_connections: Option<usize>,
    identity: Upstream,
    clients: AtomicUsize,
}

/// Where the identity comes from with which an account logs in upstream.
#[derive(Debug)]
enum Upstream {
    /// It is configured.
    Kept(Arc<Identity>),
    /// The secret came from a client: it is kept while the account has clients, and then wiped.
    Lent(Mutex<Weak<Identity>>),
}

impl Account {
    pub(super) fn kept(user: User, identity: Arc<Identity>) -> Self {
        Self::new(user, Upstream::Kept(identity))
    }

    pub(super) fn lent(user: User) -> Self {
        Self::new(user, Upstream::Lent(Mutex::default()))
    }

    fn new(user: User, identity: Upstream) -> Self {
        Self {
            user,
            rights: Rights::ALL,
            max_clients: None,
            max_connections: None,
            identity,
            clients: AtomicUsize::new(0),
        }
    }

    /// How many clients are logged in as it.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Its upstream identity, while known.
    #[must_use]
    pub fn identity(&self) -> Option<Arc<Identity>> {
        match &self.identity {
            Upstream::Kept(identity) => Some(Arc::clone(identity)),
            Upstream::Lent(lent) => lent.lock().upgrade(),
        }
    }

    /// As [`Self::identity`], with the secret that a client has just brought.
    pub(in crate::downstream) fn identity_of(&self, offered: &Credentials) -> Arc<Identity> {
        match &self.identity {
            Upstream::Kept(identity) => Arc::clone(identity),
            Upstream::Lent(lent) => {
                let mut lent = lent.lock();
                lent.upgrade().unwrap_or_else(|| {
                    let identity = Arc::new(Identity {
                        username: offered.username.clone(),
                        password: Some(Secret::new(offered.password.to_vec())),
                        source: CredentialSource::Client,
                    });
                    *lent = Arc::downgrade(&identity);
                    identity
                })
            }
        }
    }

    /// One more client. `None`: there are as many as there may be.
    pub(in crate::downstream) fn join(
        self: &Arc<Self>,
        identity: Arc<Identity>,
        by_login: bool,
    ) -> Option<Membership> {
        let most = self.max_clients.unwrap_or(usize::MAX);
        let more = |clients: usize| (clients < most).then_some(clients + 1);
        self.clients.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Membership { account: Arc::clone(self), identity, by_login })
    }
}

/// That a client is logged in. Dropping it ends that.
#[derive(Debug)]
pub(in crate::downstream) struct Membership {
    /// The identity.
    pub(in crate::downstream) account: Arc<Account>,
    /// The upstream identity.
    pub(in crate::downstream) identity: Arc<Identity>,
    /// It has shown a secret, which may turn out to be good no longer.
    pub(in crate::downstream) by_login: bool,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.account.clients.fetch_sub(1, Ordering::Relaxed);
    }
}
