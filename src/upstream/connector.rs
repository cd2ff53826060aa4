//! Dials: name resolution, TCP, TLS and login, one after the other; the error names the failed step.
//!
//! One [`Connector`] serves one server, which may change address at run time ([`Target`]). Between dials it remembers
//! the working address, the TLS sessions, the server's description of itself, and the refusals that have been logged. A
//! dropped dial closes its socket; it owns no other resource.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::capabilities::{Capability, MissingCapabilities, Refusal};
use super::conversation::{Conversation, Step};
use super::error::{DialError, Phase};
use super::login::{CredentialSource, Identity, LoggedIn, Login, MissingCapability};
use super::pem::{Fingerprint, TlsSetupError};
use super::runs::{Change, Met, Runs};
use super::target::{Awaited, Connected, PreparedTarget, Target, warn_if_insecure};
use super::topology::Topology;
use super::{ServerInfo, UpstreamOptions, UpstreamStream};
use crate::telemetry::seconds;

/// A connection that is logged in, with nothing pending in either direction.
#[derive(Debug)]
pub struct Established {
    /// The bytes' way.
    pub stream: UpstreamStream,
    /// The server's description of itself.
    pub server: Arc<ServerInfo>,
    /// The connection's client id there, unless the server keeps it to itself.
    pub id: Option<u64>,
    /// Our address.
    pub local: SocketAddr,
    /// The server's address.
    pub peer: SocketAddr,
    /// Of the connector when it was dialled.
    pub generation: u64,
}

/// The credentials and options of a login.
struct Greet<'a> {
    target: &'a Target,
    login: &'a Login,
    deadline: Instant,
    greatest_before: u64,
    generation: u64,
}

/// Dials one server.
pub struct Connector {
    /// The credentials of `upstream.url`, as of now.
    own: Arc<RwLock<Arc<Identity>>>,
    /// Where it is and how it is dialled, as of now.
    target: RwLock<Arc<Target>>,
    /// Number of moves to another server. Connections from before a move must be replaced.
    generation: watch::Sender<u64>,
    /// As of the last login.
    server: Mutex<Option<Arc<ServerInfo>>>,
    missing: MissingCapabilities,
    runs: Runs,
    topology: Topology,
    is_of_cluster: bool,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("target", &*self.target()).finish_non_exhaustive()
    }
}

impl Connector {
    /// Reads the certificates; resolves and dials nothing yet.
    ///
    /// # Errors
    /// Certificate files or names that cannot work.
    pub fn new(options: &UpstreamOptions) -> Result<Self, TlsSetupError> {
        let connector = Self::quietly(options)?;
        warn_if_insecure(options);
        Ok(connector)
    }

    /// The same for another server of the same settings: what is to be said of them has been said.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn quietly(options: &UpstreamOptions) -> Result<Self, TlsSetupError> {
        Ok(Self {
            own: Arc::new(RwLock::new(Arc::new(Identity::of_url(options)))),
            target: RwLock::new(Arc::new(Target::new(options)?)),
            generation: watch::Sender::new(0),
            server: Mutex::default(),
            missing: MissingCapabilities::default(),
            runs: Runs::default(),
            topology: Topology::default(),
            is_of_cluster: options.is_cluster(),
        })
    }

    /// The same for another node of the same cluster: the credentials of `upstream.url` are those of this one, also when they
    /// change.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn beside(&self, options: &UpstreamOptions) -> Result<Self, TlsSetupError> {
        Ok(Self { own: Arc::clone(&self.own), ..Self::quietly(options)? })
    }

    /// Whether its server is a node of a cluster that is served as one.
    pub fn is_of_cluster(&self) -> bool {
        self.is_of_cluster
    }

    /// The credentials of `upstream.url`, as of now.
    pub fn own_identity(&self) -> Arc<Identity> {
        Arc::clone(&self.own.read())
    }

    /// Takes other credentials of `upstream.url` for new connections.
    pub fn replace_own_identity(&self, identity: Arc<Identity>) {
        *self.own.write() = identity;
    }

    /// `identity` as a login that begins now takes it.
    pub fn current(&self, identity: &Arc<Identity>) -> Arc<Identity> {
        match identity.source {
            CredentialSource::Url => self.own_identity(),
            CredentialSource::UsersFile | CredentialSource::Client => Arc::clone(identity),
        }
    }

    /// The current contents of the certificate files; `None` without TLS.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.target().fingerprint()
    }

    /// Reads the certificate files and the system's authorities again, for new connections. What is connected stays,
    /// and no session from before is resumed. `false`: there is no TLS.
    ///
    /// # Errors
    /// What is wrong with the files now; the former ones stay in use.
    pub fn reload(&self) -> Result<bool, TlsSetupError> {
        self.target().reload()
    }

    /// Whether no Sentinel has named a server yet, or no node of the cluster its slots.
    pub fn is_unlocated(&self) -> bool {
        self.target().awaits.is_some()
    }

    fn target(&self) -> Arc<Target> {
        Arc::clone(&self.target.read())
    }

    /// How often the server has moved. A connection of another generation is not handed on.
    pub fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// Takes other settings for new connections: those that `prepared` has been made of. `moves`: it is another server, or
    /// another user there; dials under way begin anew.
    pub fn replace(&self, prepared: PreparedTarget, moves: bool) {
        *self.target.write() = prepared.0;
        if moves {
            self.missing.forget();
            self.generation.send_modify(|generation| *generation += 1);
        }
    }

    /// Opens a connection and logs in: within `upstream.connect_timeout`, or `upstream.loading_retry` longer while
    /// the server is loading its data.
    ///
    /// # Errors
    /// [`DialError`]; nothing stays open, on a server that has answered neither. Dropping the future closes the socket.
    pub async fn dial(&self, login: &Login) -> Result<Established, DialError> {
        loop {
            let mut moved = self.generation.subscribe();
            let generation = *moved.borrow_and_update();
            let target = self.target();
            // A dial to the former address of a server that has moved is dropped, which closes its socket.
            tokio::select! {
                biased;
                Ok(()) = moved.changed() => {}
                dialled = self.dial_at(&target, login, generation) => return dialled,
            }
        }
    }

    async fn dial_at(
        &self,
        target: &Target,
        login: &Login,
        generation: u64,
    ) -> Result<Established, DialError> {
        let deadline = Instant::now() + target.connect_timeout;
        if let Some(awaited) = &target.awaits {
            // Ends when a target of another generation is set.
            tokio::time::sleep_until(deadline).await;
            let after = target.connect_timeout;
            return Err(match awaited.clone() {
                Awaited::Master(service) => DialError::NoMaster { service, after },
                Awaited::Slots => DialError::NoSlots { after },
            });
        }
        let addresses = target.resolve(deadline).await?;
        let greatest_before = self.runs.greatest();
        let (connected, peer) = target.connect(&addresses, deadline).await?;
        let greeting = Greet { target, login, deadline, greatest_before, generation };
        let established = self.greet(connected, peer, &greeting).await;
        match &established {
            Ok(_) => target.resolver.works(peer),
            // Whatever accepts TCP there may be no Redis any more: the next dial begins with the other addresses.
            Err(error) if error.is_lost() => target.resolver.fails(peer),
            Err(error) => self.note_refusal(error, login.identity.name()),
        }
        established
    }

    /// Opens a connection on which nothing has been said yet, within `upstream.connect_timeout`.
    ///
    /// # Errors
    /// As [`Self::dial`], as far as that comes without a login.
    pub async fn open(&self) -> Result<UpstreamStream, DialError> {
        let target = self.target();
        let deadline = Instant::now() + target.connect_timeout;
        let addresses = target.resolve(deadline).await?;
        let (connected, peer) = target.connect(&addresses, deadline).await?;
        Ok(target.secure(connected, peer, deadline).await?.0)
    }

    /// The addresses of the server's name now, in the order of trying them.
    ///
    /// # Errors
    /// [`DialError::Resolve`], or a timeout.
    pub async fn addresses(&self) -> Result<Vec<SocketAddr>, DialError> {
        let target = self.target();
        target.resolve(Instant::now() + target.connect_timeout).await
    }

    /// What the server said about itself at the last login, if there was one.
    pub fn server(&self) -> Option<Arc<ServerInfo>> {
        self.server.lock().clone()
    }

    /// The last time the server was found to be another one than before: scripts that clients had loaded are gone.
    pub fn server_change(&self) -> Change {
        self.runs.server()
    }

    /// The last such time at which it described itself otherwise, too.
    pub fn facts_change(&self) -> Change {
        self.runs.facts()
    }

    /// The servers there are, for listings.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The capabilities that the server, or a user, lacks.
    pub fn missing_capabilities(&self) -> &MissingCapabilities {
        &self.missing
    }

    /// Whether `user` can have RESP3, as far as is known.
    pub fn speaks_resp3(&self, user: &str) -> bool {
        self.server().is_none_or(|server| server.hello) && !self.missing.has(Capability::Resp3, user)
    }

    /// The address in use, which new connections try first. Connections to other addresses must be drained.
    pub fn address(&self) -> Option<SocketAddr> {
        self.target().resolver.in_use()
    }

    /// Resolves the server's name again and says whether the address in use is gone from it (said once for each);
    /// to be called every `upstream.resolve_interval`, and after a `-READONLY` reply.
    ///
    /// # Errors
    /// The name cannot be resolved just now; what is connected stays good.
    pub async fn address_changed(&self) -> Result<bool, DialError> {
        let target = self.target();
        if target.awaits.is_some() {
            return Ok(false);
        }
        let deadline = Instant::now() + target.connect_timeout;
        target
            .within(deadline, Phase::Resolve, None, target.resolver.in_use_is_gone())
            .await?
            .map_err(|e| target.unresolved(&e))
    }

    /// TLS and login on a connected socket.
    async fn greet(
        &self,
        connected: Connected,
        peer: SocketAddr,
        greet: &Greet<'_>,
    ) -> Result<Established, DialError> {
        let (stream, local) = greet.target.secure(connected, peer, greet.deadline).await?;
        self.log_in(stream, (local, peer), greet).await
    }

    /// The login on a stream from the first of these addresses to the second.
    async fn log_in(
        &self,
        stream: UpstreamStream,
        (local, peer): (SocketAddr, SocketAddr),
        greet: &Greet<'_>,
    ) -> Result<Established, DialError> {
        let Greet { target, login, deadline, greatest_before, generation } = *greet;
        let user = login.identity.name();
        let known = Capability::ALL.into_iter().filter(|what| self.missing.has(*what, user)).collect();
        let mut conversation = Conversation::start(stream, peer, login, known);
        let first = match target.within(deadline, Phase::Login, Some(peer), conversation.proceed()).await? {
            Ok(step) => step,
            Err(error) => {
                if !error.is_lost() {
                    farewell(conversation.into_stream()).await;
                }
                return Err(error);
            }
        };
        if first == Step::Loading {
            self.outwait_loading(target, &mut conversation, peer).await?;
        }
        let (stream, logged_in) = conversation.finish();
        self.note(&logged_in, user);
        let server = self.remember(logged_in.server);
        let (run, id) = (logged_in.run.as_deref(), logged_in.id);
        let met = Met { run, peer, id, greatest_before, info: &server };
        if self.runs.note(&met, Instant::now()) {
            tracing::warn!(%peer, "the server was restarted or replaced; clients that have used scripts are closed");
        }
        Ok(Established { stream, server, id: logged_in.id, local, peer, generation })
    }

    /// Asks again, in growing intervals, until the server has its data or `upstream.loading_retry` has passed.
    async fn outwait_loading(
        &self,
        target: &Target,
        conversation: &mut Conversation<'_, UpstreamStream>,
        peer: SocketAddr,
    ) -> Result<(), DialError> {
        const LONGEST_PAUSE: Duration = Duration::from_secs(1);
        let end = Instant::now() + target.loading_retry;
        let mut pause = Duration::from_millis(50);
        tracing::info!(%peer, retry_seconds = seconds(target.loading_retry), "the server is loading its data");
        while Instant::now() < end {
            tokio::time::sleep(pause.min(end.saturating_duration_since(Instant::now()))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            conversation.resume();
            let deadline = Instant::now() + target.connect_timeout;
            match target.within(deadline, Phase::Login, Some(peer), conversation.proceed()).await?? {
                Step::Done => return Ok(()),
                Step::Loading => {}
            }
        }
        conversation.give_up()
    }

    /// Keeps the server's description; all connections to an unchanged server share one.
    fn remember(&self, server: ServerInfo) -> Arc<ServerInfo> {
        let mut last = self.server.lock();
        match &*last {
            Some(known) if **known == server => Arc::clone(known),
            // This user may not use INFO; the run id from other users' logins remains valid.
            Some(known) if !server.hello && server.version.is_empty() && !known.hello => Arc::clone(known),
            Some(_) | None => Arc::clone(last.insert(Arc::new(server))),
        }
    }

    /// Records the capabilities that a login found and lacked.
    fn note(&self, logged_in: &LoggedIn, user: &str) {
        for MissingCapability { what, text } in &logged_in.missing {
            self.missing.record_refusal(*what, user, text);
        }
        for what in &logged_in.met {
            self.missing.record_support(*what, user);
        }
        if logged_in.server.mode == "cluster" && !self.is_of_cluster {
            self.missing.record_refusal(
                Capability::WholeKeyspace,
                user,
                "(it calls itself a node of a cluster)",
            );
        }
    }

    /// Records the capability that made a login fail, if it is lacking permanently.
    fn note_refusal(&self, error: &DialError, user: &str) {
        match error {
            DialError::NoResp3 { text } => self.missing.record_refusal(Capability::Resp3, user, text),
            DialError::SelectRefused { text, .. } if Refusal::of(text).is_some() => {
                self.missing.record_refusal(Capability::Select, user, text);
            }
            _ => {} // says nothing about what the server has
        }
    }
}

/// Closes a connection that the server has refused with an error, and returns when the server has freed it, so that the
/// next dial under the same permit does not exceed the limit.
async fn farewell(mut stream: UpstreamStream) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let end = async {
        stream.shutdown().await?;
        let mut rest = [0; 512];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // If the server does not close after our end of stream, the kernel closes the connection.
    drop(tokio::time::timeout(PATIENCE, end).await);
}
