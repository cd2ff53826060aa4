//! Accounts and remembered login results, for all workers.
//!
//! Does no I/O and does not wait; `routes::login` and `worker::recheck` query the server. A secret is kept only in the
//! [`Identity`] of an account that has clients; all other entries are salted hashes.

mod account;
mod failures;
mod offer;
mod options;
mod turns;
mod users;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use subtle::ConstantTimeEq;

pub use account::Account;
pub(super) use account::Membership;
use failures::Failures;
pub(super) use offer::{CachedVerdict, Credential};
use offer::{Fingerprint, fingerprint};
pub use options::{AdminCommands, AuthMode, AuthOptions};
pub(super) use turns::Turns;
pub(super) use users::look;
pub use users::{Cost, PasswordHash, StaticUser, toll};

use crate::pool::{Budget, DialRateLimiter};
use crate::session::{Credentials, User, UserRow};
use crate::upstream::{Identity, UpstreamOptions};

/// The number of the identity in the configuration.
const OWN_ID: u64 = 1;
/// Names and secrets remembered beyond those in use.
const MOST: usize = 4096;

/// The accounts and remembered results.
#[derive(Debug)]
pub struct Directory {
    mode: AuthMode,
    ttl: Mutex<Duration>,
    own: Arc<Account>,
    /// Its credentials now: they may be read again.
    own_identity: Mutex<Arc<Identity>>,
    /// By name (`auth.mode = "static"`).
    users: Mutex<HashMap<String, Arc<Known>>>,
    /// The cost of a failed login (`auth.mode = "static"`).
    toll: Mutex<Arc<[Cost]>>,
    offers: Mutex<HashMap<Fingerprint, Arc<Credential>>>,
    /// The last account that the server has accepted, besides that of the configuration.
    verified: Mutex<Option<(u64, Weak<Identity>)>>,
    pub(super) failures: Failures,
    /// Logins are checked upstream one at a time, so that guesses cannot take the pool.
    pub(super) asking: Arc<Turns>,
    /// One Argon2 at a time: it takes a core and some memory.
    pub(super) hashing: Arc<Turns>,
    /// How often a login is checked upstream: guesses must not use up the rate at which others' connections are dialled.
    pub(super) gate: DialRateLimiter,
    /// Salts the fingerprints, so that no plain hash of a secret is kept.
    salt: [u8; 32],
    last: AtomicU64,
    budget: Arc<Budget>,
}

/// A user of the users file.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) account: Arc<Account>,
    entry: StaticUser,
}

impl Known {
    /// The possible hashes of the secret.
    pub(super) fn hashes(&self) -> &[PasswordHash] {
        &self.entry.hashes
    }
}

impl Directory {
    /// A directory that knows the identity of the configuration and the users of the users file.
    ///
    /// # Errors
    /// The operating system has no random numbers.
    pub fn new(upstream: &UpstreamOptions, auth: &AuthOptions, budget: Arc<Budget>) -> std::io::Result<Self> {
        let name: Arc<str> = upstream.username.as_deref().unwrap_or("default").into();
        let identity = Arc::new(Identity::of_url(upstream));
        let mut salt = [0; 32];
        getrandom::fill(&mut salt)?;
        let directory = Self {
            mode: auth.mode,
            ttl: Mutex::new(auth.cache_ttl),
            own: Arc::new(Account::kept(User { id: OWN_ID, name }, Arc::clone(&identity))),
            own_identity: Mutex::new(identity),
            users: Mutex::default(),
            toll: Mutex::new(Arc::new([])),
            offers: Mutex::default(),
            verified: Mutex::default(),
            failures: Failures::default(),
            asking: Arc::default(),
            hashing: Arc::default(),
            gate: DialRateLimiter::new(upstream.connect_rate.div_ceil(2)),
            salt,
            last: AtomicU64::new(OWN_ID),
            budget,
        };
        directory.replace_users(auth.users.clone());
        Ok(directory)
    }

    /// How long a login accepted by the server is cached (`auth.cache_ttl`).
    pub(super) fn ttl(&self) -> Duration {
        *self.ttl.lock()
    }

    /// So long from now on.
    pub fn believe_for(&self, ttl: Duration) {
        *self.ttl.lock() = ttl;
    }

    /// The identity of the configuration.
    #[must_use]
    pub fn own(&self) -> &Arc<Account> {
        &self.own
    }

    /// The same, as pools want it.
    #[must_use]
    pub fn own_identity(&self) -> (u64, Arc<Identity>) {
        (OWN_ID, Arc::clone(&self.own_identity.lock()))
    }

    /// Takes reloaded credentials of the configuration. Clients that have logged in with the former ones stay; new
    /// logins need the new ones.
    pub fn replace_own_identity(&self, identity: Arc<Identity>) {
        *self.own_identity.lock() = identity;
        if self.mode != AuthMode::Static {
            let is_own = |offer: &Arc<Credential>| {
                offer.account.as_ref().is_some_and(|account| Arc::ptr_eq(account, &self.own))
            };
            self.offers.lock().retain(|_, offer| !is_own(offer));
        }
    }

    /// The identity for redbouncer's own queries: that of the configuration, or else the last account that logged in
    /// and still has clients.
    #[must_use]
    pub fn candidates(&self) -> Vec<(u64, Arc<Identity>)> {
        let verified = self.verified.lock().as_ref().and_then(|(id, weak)| Some((*id, weak.upgrade()?)));
        std::iter::once(self.own_identity()).chain(verified).collect()
    }

    /// The account of a client without a login: the identity of the configuration on loopback and with `open`, else
    /// none.
    #[must_use]
    pub(super) fn anonymous(&self, trusted: bool) -> Option<Membership> {
        let open = match self.mode {
            AuthMode::Open => true,
            AuthMode::Unset => trusted,
            AuthMode::Passthrough | AuthMode::Static => false,
        };
        let (_, identity) = open.then(|| self.own_identity())?;
        self.own.join(identity, false)
    }

    /// The account of a client taken over from another process, by the credentials that it used there.
    #[must_use]
    pub(super) fn rejoin(&self, shown: Option<Credentials>, trusted: bool) -> Option<Membership> {
        let Some(shown) = shown else { return self.anonymous(trusted) };
        if self.mode == AuthMode::Static {
            return None;
        }
        let account = self.offer(&shown).account.clone()?;
        account.join(account.identity_of(&shown), true)
    }

    /// The remembered result for a name and secret, without creating an entry, so guesses use no memory.
    pub(super) fn known(&self, offered: &Credentials) -> Option<Arc<Credential>> {
        self.offers.lock().get(&fingerprint(&self.salt, offered)).cloned()
    }

    /// The note about a name and secret.
    pub(super) fn offer(&self, offered: &Credentials) -> Arc<Credential> {
        let fingerprint = fingerprint(&self.salt, offered);
        let mut offers = self.offers.lock();
        if let Some(known) = offers.get(&fingerprint) {
            return Arc::clone(known);
        }
        if offers.len() >= MOST {
            let in_use = |offer: &Arc<Credential>| Arc::strong_count(offer) > 1 || offer.is_live();
            let ttl = self.ttl();
            offers.retain(|_, offer| in_use(offer) || offer.remembered(ttl) != CachedVerdict::Nothing);
            if offers.len() >= MOST {
                offers.retain(|_, offer| in_use(offer));
            }
        }
        let offer = Credential::new(self.account_of(offered));
        offers.insert(fingerprint, Arc::clone(&offer));
        offer
    }

    /// The account for `offered`.
    fn account_of(&self, offered: &Credentials) -> Option<Arc<Account>> {
        let name = offered.username.as_deref().unwrap_or("default");
        if self.mode == AuthMode::Static {
            return self.users.lock().get(name).map(|known| Arc::clone(&known.account));
        }
        if self.is_own(offered) {
            return Some(Arc::clone(&self.own));
        }
        let id = self.new_id();
        Some(Arc::new(Account::lent(User { id, name: name.into() })))
    }

    /// Whether `offered` is the identity of the configuration.
    fn is_own(&self, offered: &Credentials) -> bool {
        let same_name = offered.username.as_deref().unwrap_or("default") == &*self.own.user.name;
        let own = self.own_identity.lock().password.clone();
        let same_secret = own.is_some_and(|own| own.expose().ct_eq(&offered.password).into());
        same_name && same_secret
    }

    fn new_id(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The user of the users file that `offered` names.
    pub(super) fn user_named(&self, offered: &Credentials) -> Option<Arc<Known>> {
        self.users.lock().get(offered.username.as_deref().unwrap_or("default")).cloned()
    }

    /// The cost of every login that the users file refuses.
    pub(super) fn toll(&self) -> Arc<[Cost]> {
        Arc::clone(&self.toll.lock())
    }

    /// The server has let `account` in.
    pub(super) fn verified(&self, account: &Account, identity: &Arc<Identity>) {
        if account.user.id != OWN_ID {
            *self.verified.lock() = Some((account.user.id, Arc::downgrade(identity)));
        }
    }

    /// Accounts with clients whose last check is so old that the server must check them again before the cached result
    /// expires.
    pub(super) fn due(&self) -> Vec<(Arc<Credential>, Arc<Account>, Arc<Identity>)> {
        if self.mode == AuthMode::Static {
            return Vec::new();
        }
        let early = self.ttl() * 3 / 4;
        let offers = self.offers.lock();
        let due = offers.values().filter(|offer| {
            offer.is_live() && offer.good_for().is_none_or(|age| age >= early.max(Duration::from_secs(1)))
        });
        due.filter_map(|offer| {
            let account = offer.account.clone()?;
            let identity = account.identity()?;
            Some((Arc::clone(offer), account, identity))
        })
        .collect()
    }

    /// The accounts with this number that came from a client's login and have clients.
    pub(super) fn live(&self, user: u64) -> Vec<Arc<Account>> {
        if self.mode == AuthMode::Static {
            // The operator sets the upstream identity of these accounts; no client provides it.
            return Vec::new();
        }
        let offers = self.offers.lock();
        let accounts =
            offers.values().filter(|offer| offer.is_live()).filter_map(|offer| offer.account.clone());
        accounts.filter(|account| account.user.id == user).collect()
    }

    /// Nothing is believed any more of the secrets of `account`.
    pub(super) fn forget(&self, account: &Arc<Account>) {
        for offer in self.offers.lock().values() {
            if offer.account.as_ref().is_some_and(|own| Arc::ptr_eq(own, account)) {
                offer.forget();
            }
        }
    }

    /// Takes a reloaded users file: new users may log in from now on. Returns the accounts that were removed or
    /// changed; their clients must be closed.
    pub fn replace_users(&self, entries: Vec<StaticUser>) -> Vec<Arc<Account>> {
        let mut users = self.users.lock();
        *self.toll.lock() = toll(&entries).into();
        let mut before = std::mem::take(&mut *users);
        for entry in entries {
            let known = match before.remove(&entry.name) {
                Some(known) if known.entry == entry => known,
                changed => {
                    before.extend(changed.map(|known| (entry.name.clone(), known)));
                    Arc::new(self.known_by(entry))
                }
            };
            users.insert(known.entry.name.clone(), known);
        }
        let gone: Vec<_> = before.into_values().map(|known| Arc::clone(&known.account)).collect();
        for account in gone.iter().filter(|account| account.user.id != OWN_ID) {
            self.budget.limit_user(account.user.id, None);
        }
        drop(users);
        // A note holds the account as it was.
        let mut offers = self.offers.lock();
        if self.mode == AuthMode::Static {
            offers.retain(|_, offer| {
                offer.account.as_ref().is_some_and(|own| !gone.iter().any(|gone| Arc::ptr_eq(own, gone)))
            });
        }
        gone
    }

    /// Users without an upstream identity and without a limit share the connections of `upstream.url`'s user.
    fn known_by(&self, entry: StaticUser) -> Known {
        let shares = entry.upstream.is_none() && entry.max_connections.is_none();
        let id = if shares { OWN_ID } else { self.new_id() };
        let identity = entry.upstream.clone().map_or_else(|| self.own_identity().1, Arc::new);
        let mut account = Account::kept(User { id, name: entry.name.as_str().into() }, identity);
        account.rights = entry.rights;
        account.max_clients = entry.max_clients;
        account.max_connections = entry.max_connections;
        if entry.max_connections.is_some() {
            self.budget.limit_user(id, entry.max_connections);
        }
        Known { account: Arc::new(account), entry }
    }

    /// Every user with clients, connections or a cap, by name.
    #[must_use]
    pub fn rows(&self) -> Vec<UserRow> {
        let mut accounts = vec![Arc::clone(&self.own)];
        accounts.extend(self.users.lock().values().map(|known| Arc::clone(&known.account)));
        if self.mode != AuthMode::Static {
            let offers = self.offers.lock();
            let live = offers.values().filter(|offer| offer.is_live());
            accounts.extend(live.filter_map(|offer| offer.account.clone()).filter(|a| a.user.id != OWN_ID));
        }
        let mut held: HashMap<u64, usize> = HashMap::new();
        for row in self.budget.holdings() {
            *held.entry(row.user).or_default() += 1;
        }
        let mut rows: BTreeMap<String, UserRow> = BTreeMap::new();
        for account in accounts {
            let row = rows.entry(account.user.name.to_string()).or_default();
            row.name = account.user.name.to_string();
            row.clients += account.clients();
            row.max_clients = account.max_clients;
            row.max_connections = account.max_connections;
            // Counted once, for the one whose it is.
            if account.user.id != OWN_ID || Arc::ptr_eq(&account, &self.own) {
                row.connections += held.remove(&account.user.id).unwrap_or_default();
            }
        }
        rows.into_values().collect()
    }
}
