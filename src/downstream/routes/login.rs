//! AUTH and HELLO: who a client is, decided by the server or by the users file.
//!
//! Where the server decides, a secret is never compared with anything: it is tried by logging in upstream as that user,
//! and the connection that proves it becomes the user's first lane. What is remembered of a success spares the next
//! client of that user the login; one look at a name and secret at a time, whoever else offers the same waits for it.

use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::command::Aftermath;
use crate::downstream::client::Client;
use crate::downstream::identity::AuthMode;
use crate::downstream::identity::{CachedVerdict, Credential, Membership, look};
use crate::pool::{HumanDuration, LaneKey, Tracked, Unavailable};
use crate::resp::{Protocol, encode};
use crate::session::{Credentials, Hello, ServerFacts, answers};
use crate::telemetry::{ClientClose, LoginOutcome};
use crate::upstream::Identity;

const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";
const NO_PASSWORD_SET: &str = "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?";

/// Why a login came to nothing.
enum Failure {
    /// The server, or the users file, refuses it, in these words.
    Refused(String),
    /// It is refused here, whatever the server would say: the error.
    Ours(LoginOutcome, String),
    /// The server cannot be asked.
    Unserved(Unavailable),
}

impl Failure {
    fn outcome(&self) -> LoginOutcome {
        match self {
            Self::Refused(_) => LoginOutcome::Refused,
            Self::Ours(outcome, _) => *outcome,
            Self::Unserved(_) => LoginOutcome::Unavailable,
        }
    }
}

impl Client {
    /// AUTH or HELLO: all of it takes effect, or nothing.
    pub(in crate::downstream) async fn login(
        self: &Rc<Self>,
        hello: Hello,
        muted: bool,
    ) -> Result<(), ClientClose> {
        let mut membership = None;
        if let Some(offered) = &hello.credentials {
            match self.authenticate(offered, hello.protocol).await? {
                Ok(accepted) => {
                    self.take_place(muted)?;
                    membership = Some(accepted);
                }
                Err(Failure::Refused(text)) => {
                    self.error(&text, muted);
                    return Ok(());
                }
                // The server might have let it in: what follows would run as somebody else.
                Err(Failure::Ours(_, text)) => {
                    self.error(&text, muted);
                    return if self.is_logged_in() { Err(ClientClose::StateRefused) } else { Ok(()) };
                }
                Err(Failure::Unserved(why)) => return self.unserved(&why, Aftermath::Closed, 1, muted),
            }
        }
        if !hello.is_hello {
            self.become_user(membership);
            if !muted {
                self.reply(|out| encode::simple(out, "OK"));
            }
            return Ok(());
        }
        let who = membership.as_ref().map(|own| (own.account.user.id, Arc::clone(&own.identity)));
        let who = who.or_else(|| self.account());
        let name = who.as_ref().map(|(_, identity)| identity.name().to_owned()).unwrap_or_default();
        let facts = match self.server_facts(who).await? {
            Ok(facts) => facts,
            Err(why) => return self.unserved(&why, Aftermath::Closed, 1, muted),
        };
        if hello.protocol == Some(Protocol::Resp3) && !self.context.pool.shared.connector.speaks_resp3(&name)
        {
            self.error("NOPROTO unsupported protocol version", muted);
            return Ok(());
        }
        if membership.is_some() {
            self.become_user(membership);
        }
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
        if self.has_tracked.get() {
            self.begins_to_hear();
        }
        Ok(())
    }

    /// Checks credentials; the inner `Err` says why they do not let the client in.
    async fn authenticate(
        self: &Rc<Self>,
        offered: &Credentials,
        protocol: Option<Protocol>,
    ) -> Result<Result<Membership, Failure>, ClientClose> {
        if self.context.auth.mode == AuthMode::Open {
            // As a Redis whose default user has no password.
            let anonymous = self.anonymous().ok_or(ClientClose::Denied)?;
            return Ok(match offered.username.as_deref() {
                None => Err(Failure::Refused(NO_PASSWORD_SET.to_owned())),
                Some("default") => Ok(anonymous),
                Some(_) => Err(wrong_password()),
            });
        }
        let checked = self.unless_gone(self.check(offered, protocol.unwrap_or(self.protocol()))).await?;
        let (outcome, result) = match checked {
            Ok((outcome, membership)) => (outcome, Ok(membership)),
            Err(failure) => (failure.outcome(), Err(failure)),
        };
        metrics::counter!("redbouncer_logins_total", "outcome" => outcome.label()).increment(1);
        Ok(result)
    }

    /// Who `offered` is, from memory, or else by asking.
    async fn check(
        self: &Rc<Self>,
        offered: &Credentials,
        protocol: Protocol,
    ) -> Result<(LoginOutcome, Membership), Failure> {
        let directory = &self.context.directory;
        let address = self.place();
        if let Some(known) = directory.known(offered)
            && let Some(judged) = self.recall(&known, offered)
        {
            return judged;
        }
        self.refuse_after_failures(address)?;
        let offer = directory.offer(offered);
        let deadline = self.context.pool.wait_deadline();
        let _turn = self.in_time(deadline, offer.turn.lock()).await?;
        // Whoever had the turn before may have asked.
        if let Some(judged) = self.recall(&offer, offered) {
            return judged;
        }
        let own_turn = directory.failures.turn(address, Instant::now());
        let _own_turn = self.in_time(deadline, own_turn.lock()).await?;
        self.refuse_after_failures(address)?;
        let judged = if self.context.auth.mode == AuthMode::Static {
            self.ask_users_file(&offer, offered, deadline).await
        } else {
            self.ask_server(&offer, offered, protocol, deadline).await
        };
        match judged {
            Ok(membership) => Ok((LoginOutcome::Verified, membership)),
            Err(Failure::Refused(text)) => {
                offer.refuse(&text);
                directory.failures.failed(address, Instant::now());
                Err(Failure::Refused(text))
            }
            Err(other @ (Failure::Ours(..) | Failure::Unserved(_))) => Err(other),
        }
    }

    /// What is remembered of `offer`, if anything.
    fn recall(
        &self,
        offer: &Credential,
        offered: &Credentials,
    ) -> Option<Result<(LoginOutcome, Membership), Failure>> {
        match offer.remembered(self.context.directory.ttl()) {
            CachedVerdict::Nothing => None,
            CachedVerdict::Bad(text) => Some(Err(Failure::Refused(text))),
            CachedVerdict::Good => Some(enter(offer, offered).map(|own| (LoginOutcome::Remembered, own))),
        }
    }

    /// Where its failures are counted. All who come by Unix sockets are one place.
    fn place(&self) -> IpAddr {
        self.peer.host().unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }

    /// Guesses are refused without asking anybody.
    fn refuse_after_failures(&self, address: IpAddr) -> Result<(), Failure> {
        let Some(wait) = self.context.directory.failures.wait(address, Instant::now()) else { return Ok(()) };
        self.context.warnings.failed_logins(address);
        let text = format!(
            "ERR redbouncer: too many failed logins from this address, try again in {}",
            HumanDuration(wait)
        );
        Err(Failure::Ours(LoginOutcome::Limited, text))
    }

    /// Waits for a turn.
    async fn in_time<T>(&self, deadline: Instant, turn: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::time::timeout_at(deadline, turn).await.map_err(|_| {
            // Those before it wait for a server that is not there.
            if let Some(away) = self.context.pool.away() {
                return Failure::Unserved(away);
            }
            let waited = HumanDuration(self.context.pool.patience());
            let text =
                format!("ERR redbouncer: login not checked within {waited}: too many logins are waiting");
            Failure::Ours(LoginOutcome::Unavailable, text)
        })
    }

    /// Logs in upstream as that user.
    async fn ask_server(
        self: &Rc<Self>,
        offer: &Arc<Credential>,
        offered: &Credentials,
        protocol: Protocol,
        deadline: Instant,
    ) -> Result<Membership, Failure> {
        let (directory, pool) = (&self.context.directory, &self.context.pool);
        let Some(account) = &offer.account else { return Err(wrong_password()) };
        let address = self.place();
        let blame = directory.failures.blame(address, Instant::now());
        if blame > 0 {
            // Not with the turn in hand: others would wait for it.
            self.in_time(deadline, directory.gate.lane_behind()).await?;
        }
        let _one = self.in_time(deadline, directory.asking.turn(blame)).await?;
        self.refuse_after_failures(address)?;
        if blame == 0 {
            self.in_time(deadline, directory.gate.lane(account.user.id)).await?;
        }
        let identity = account.identity_of(offered);
        let database = self.session.borrow().database;
        let key =
            LaneKey { user: account.user.id, database, protocol, readonly: false, tracked: Tracked::No };
        // A lane that is there proves nothing about now.
        let answer = if pool.has_lanes_of(key) {
            pool.check_login(key, &identity, pool.wait_deadline()).await
        } else {
            let group = pool.group(key, &identity);
            let _session = group.attach();
            pool.lane_ready(&group, pool.wait_deadline()).await
        };
        match answer {
            Ok(()) => {
                offer.let_in();
                directory.verified(account, &identity);
                enter(offer, offered)
            }
            Err(Unavailable::LoginRefused(text)) => Err(Failure::Refused(text)),
            Err(why @ Unavailable::NoAuth) => Err(Failure::Refused(why.to_string())),
            Err(why) => Err(Failure::Unserved(why)),
        }
    }

    /// Holds the secret against the hashes of the users file, where that takes long in a thread of its own. What fails costs
    /// the same for every name, one that does not exist included.
    async fn ask_users_file(
        &self,
        offer: &Credential,
        offered: &Credentials,
        deadline: Instant,
    ) -> Result<Membership, Failure> {
        let directory = &self.context.directory;
        let known = directory.user_named(offered);
        let hashes = known.as_ref().map(|known| known.hashes()).unwrap_or_default();
        let quick = hashes.iter().any(|hash| hash.cost().is_none() && hash.fits(&offered.password));
        let toll = directory.toll();
        if !quick && toll.is_empty() {
            return Err(wrong_password());
        }
        if !quick {
            let blame = directory.failures.blame(self.place(), Instant::now());
            let turn = self.in_time(deadline, directory.hashing.turn(blame)).await?;
            let (hashes, secret) = (hashes.to_vec(), Zeroizing::new(offered.password.to_vec()));
            let look = move || {
                let fits = look(&hashes, &toll, &secret, &mut |_| {});
                // The turn ends with the work, also where the client has gone meanwhile.
                drop(turn);
                fits
            };
            if !tokio::task::spawn_blocking(look).await.unwrap_or(false) {
                return Err(wrong_password());
            }
        }
        offer.let_in();
        enter(offer, offered)
    }

    /// What HELLO says about the server: as it was at the last upstream login, after waiting for a first one.
    async fn server_facts(
        self: &Rc<Self>,
        who: Option<(u64, Arc<Identity>)>,
    ) -> Result<Result<ServerFacts, Unavailable>, ClientClose> {
        if let Some(facts) = self.context.server.facts() {
            return Ok(Ok(facts));
        }
        let (user, identity) = who.unwrap_or_else(|| self.context.directory.own_identity());
        let database = self.session.borrow().database;
        let key =
            LaneKey { user, database, protocol: Protocol::Resp2, readonly: false, tracked: Tracked::No };
        let group = self.context.pool.group(key, &identity);
        let _session = group.attach();
        let deadline = self.context.pool.wait_deadline();
        let ready = self.unless_gone(self.context.pool.lane_ready(&group, deadline)).await;
        Ok(match ready? {
            Ok(()) => Ok(self.context.server.facts().unwrap_or_default()),
            Err(why) => Err(why),
        })
    }
}

fn wrong_password() -> Failure {
    Failure::Refused(WRONG_PASSWORD.to_owned())
}

/// Lets a client in whose secret is good.
fn enter(offer: &Credential, offered: &Credentials) -> Result<Membership, Failure> {
    let Some(account) = &offer.account else { return Err(wrong_password()) };
    account.join(account.identity_of(offered), true).ok_or_else(|| {
        let most = account.max_clients.unwrap_or_default();
        let name = &account.user.name;
        let text = format!("ERR max number of clients reached for this user ('{name}' may have {most})");
        Failure::Ours(LoginOutcome::Unavailable, text)
    })
}
