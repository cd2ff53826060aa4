//! AUTH and HELLO: who a client is, decided by the server.
//!
//! A secret is never compared with anything but our own upstream secret (in constant time); everybody else's is tried
//! by logging in upstream as that user, and the connection that proves it becomes the user's first lane.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::client::Client;
use super::options::AuthMode;
use crate::pool::{LaneKey, Unavailable};
use crate::resp::{Protocol, encode};
use crate::session::{Credentials, Hello, ServerFacts, User, answers};
use crate::telemetry::ClientClose;
use crate::upstream::{Identity, Secret, UpstreamOptions};

const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";
const NO_PASSWORD_SET: &str = "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?";

/// The number of the identity in the configuration.
const OWN_ID: u64 = 1;

type Fingerprint = (Option<String>, [u8; 32]);

/// Who is who, for all workers: equal name and secret give equal numbers, as long as anybody uses them.
#[derive(Debug)]
pub struct Directory {
    own: (User, Arc<Identity>),
    others: Mutex<Others>,
    /// The last one that the server let in, besides our own.
    verified: Mutex<Option<(u64, Weak<Identity>)>>,
    /// Keys the fingerprints, so that what is kept is not a plain hash of a secret.
    salt: [u8; 16],
}

#[derive(Debug, Default)]
struct Others {
    known: HashMap<Fingerprint, (u64, Weak<Identity>)>,
    last: u64,
}

impl Directory {
    /// A directory that knows the identity of the configuration.
    #[must_use]
    pub fn new(upstream: &UpstreamOptions) -> Self {
        let name: Arc<str> = upstream.username.as_deref().unwrap_or("default").into();
        let identity = Identity {
            username: upstream.username.clone(),
            password: upstream.password.clone(),
            of_client: false,
        };
        Self {
            own: (User { id: OWN_ID, name }, Arc::new(identity)),
            others: Mutex::new(Others { known: HashMap::new(), last: OWN_ID }),
            verified: Mutex::default(),
            salt: std::array::from_fn(|_| fastrand::u8(..)),
        }
    }

    /// The identity of the configuration.
    #[must_use]
    pub fn own(&self) -> (User, Arc<Identity>) {
        self.own.clone()
    }

    /// As whom the server may be asked on our own behalf: the identity of the configuration, or else the last that logged
    /// in and is still here.
    #[must_use]
    pub fn candidates(&self) -> Vec<(u64, Arc<Identity>)> {
        let (user, identity) = &self.own;
        let verified = self.verified.lock().as_ref().and_then(|(id, weak)| Some((*id, weak.upgrade()?)));
        std::iter::once((user.id, Arc::clone(identity))).chain(verified).collect()
    }

    /// Whether `offered` is the identity of the configuration.
    fn is_own(&self, offered: &Credentials) -> bool {
        let (user, identity) = &self.own;
        let same_name = offered.username.as_deref().unwrap_or("default") == &*user.name;
        let same_secret =
            identity.password.as_ref().is_some_and(|own| own.expose().ct_eq(&offered.password).into());
        same_name && same_secret
    }

    /// The number and identity of `offered`, not verified yet.
    fn enter(&self, offered: &Credentials) -> (User, Arc<Identity>) {
        let name = offered.username.clone();
        let shown: Arc<str> = name.as_deref().unwrap_or("default").into();
        let mut hash = Sha256::new();
        hash.update(self.salt);
        hash.update(&*offered.password);
        let fingerprint = (name.clone(), hash.finalize().into());
        let mut others = self.others.lock();
        if let Some((id, known)) = others.known.get(&fingerprint)
            && let Some(identity) = known.upgrade()
        {
            return (User { id: *id, name: shown }, identity);
        }
        others.known.retain(|_, (_, identity)| identity.strong_count() > 0);
        others.last += 1;
        let id = others.last;
        let password = Some(Secret::new(offered.password.to_vec()));
        let identity = Arc::new(Identity { username: name, password, of_client: true });
        others.known.insert(fingerprint, (id, Arc::downgrade(&identity)));
        (User { id, name: shown }, identity)
    }
}

impl Client {
    /// AUTH or HELLO: all of it takes effect, or nothing.
    pub(super) async fn login(self: &Rc<Self>, hello: Hello, muted: bool) -> Result<(), ClientClose> {
        let mut identity = None;
        if let Some(offered) = &hello.credentials {
            match self.authenticate(offered, hello.protocol).await? {
                Ok(accepted) => identity = Some(accepted),
                Err(text) => {
                    self.error(&text, muted);
                    return Ok(());
                }
            }
        }
        if !hello.is_hello {
            self.become_user(identity);
            if !muted {
                self.reply(|out| encode::simple(out, "OK"));
            }
            return Ok(());
        }
        let who = identity.clone().or_else(|| self.identified());
        let name = who.as_ref().map(|(_, identity)| identity.name().to_owned()).unwrap_or_default();
        let facts = match self.server_facts(who).await? {
            Ok(facts) => facts,
            Err(why) => {
                self.unavailable(&why, 1, muted);
                return Ok(());
            }
        };
        if hello.protocol == Some(Protocol::Resp3) && !self.worker.pool.shared.connector.speaks_resp3(&name) {
            self.error("NOPROTO unsupported protocol version", muted);
            return Ok(());
        }
        self.become_user(identity);
        let mut out = bytes::BytesMut::new();
        {
            let mut session = self.session.borrow_mut();
            hello.apply(&mut session);
            answers::hello(&session, &facts, &mut out);
        }
        self.leave_group();
        if !muted {
            self.send(&out);
        }
        Ok(())
    }

    fn identified(&self) -> Option<(User, Arc<Identity>)> {
        Some((self.session.borrow().user.clone()?, self.identity.borrow().clone()?))
    }

    fn become_user(&self, identity: Option<(User, Arc<Identity>)>) {
        if let Some((user, identity)) = identity {
            self.leave_group();
            self.session.borrow_mut().user = Some(user);
            self.identity.replace(Some(identity));
        }
    }

    /// Checks credentials; `Err` is the client's error.
    async fn authenticate(
        self: &Rc<Self>,
        offered: &Credentials,
        protocol: Option<Protocol>,
    ) -> Result<Result<(User, Arc<Identity>), String>, ClientClose> {
        let directory = Arc::clone(&self.worker.directory);
        if self.worker.auth.mode == AuthMode::Open {
            // As a Redis whose default user has no password.
            return Ok(match offered.username.as_deref() {
                None => Err(NO_PASSWORD_SET.to_owned()),
                Some("default") => Ok(directory.own()),
                Some(_) => Err(WRONG_PASSWORD.to_owned()),
            });
        }
        if directory.is_own(offered) {
            return Ok(Ok(directory.own()));
        }
        let (user, identity) = directory.enter(offered);
        let session = (self.session.borrow().database, self.session.borrow().protocol);
        let key = LaneKey {
            user: user.id,
            database: session.0,
            protocol: protocol.unwrap_or(session.1),
            readonly: false,
        };
        let group = self.worker.pool.group(key, &identity);
        group.join();
        let verified = self.patiently(self.verify(&group)).await;
        group.part(Instant::now());
        Ok(match verified? {
            Ok(()) => {
                *directory.verified.lock() = Some((user.id, Arc::downgrade(&identity)));
                Ok((user, identity))
            }
            Err(why) => Err(why.to_string()),
        })
    }

    /// Logs in upstream as that user. One verification at a time, so that guesses cannot take the pool.
    async fn verify(&self, group: &Rc<crate::pool::Group>) -> Result<(), Unavailable> {
        let _turn = self.worker.verifying.lock().await;
        group.expire_login(self.worker.auth.cache_ttl);
        self.worker.pool.lane_ready(group, self.worker.pool.wait_deadline()).await
    }

    /// What HELLO says about the server: as it was at the last upstream login, after waiting for a first one.
    async fn server_facts(
        self: &Rc<Self>,
        who: Option<(User, Arc<Identity>)>,
    ) -> Result<Result<ServerFacts, Unavailable>, ClientClose> {
        if let Some(facts) = self.worker.server_facts() {
            return Ok(Ok(facts));
        }
        let (user, identity) = who.unwrap_or_else(|| self.worker.directory.own());
        let database = self.session.borrow().database;
        let key = LaneKey { user: user.id, database, protocol: Protocol::Resp2, readonly: false };
        let group = self.worker.pool.group(key, &identity);
        group.join();
        let ready = self.patiently(self.worker.pool.lane_ready(&group, self.wait_deadline())).await;
        group.part(Instant::now());
        Ok(match ready? {
            Ok(()) => Ok(self.worker.server_facts().unwrap_or_default()),
            Err(why) => Err(why),
        })
    }
}
