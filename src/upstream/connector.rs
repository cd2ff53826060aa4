//! Dialling: name, TCP, TLS and login, one after the other, each failure with its name.
//!
//! One [`Connector`] serves one server for as long as the configuration lasts. It remembers what is worth
//! remembering between dials: the address that works, the TLS sessions, what the server says about itself, and which
//! of its refusals have been logged already. A dial that is dropped closes its socket: it owns nothing else.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::capabilities::{Capability, MissingCapabilities, Refusal};
use super::conversation::{Conversation, Step};
use super::error::{DialError, Phase};
use super::login::{CredentialSource, Identity, LoggedIn, Login, MissingCapability};
use super::pem::{Fingerprint, TlsSetupError, valid_until};
use super::resolve::Resolver;
use super::runs::{Change, Met, Runs};
#[cfg(test)]
use super::simulated;
use super::tls::TlsSetup;
use super::{Keepalive, ServerInfo, TlsOptions, UpstreamOptions, UpstreamStream, tune};
use crate::telemetry::{Handshake, Side, certificate_expires, handshake_ended, seconds};

/// A connection that is logged in, with nothing pending in either direction.
#[derive(Debug)]
pub struct Established {
    /// The bytes' way.
    pub stream: UpstreamStream,
    /// What the server said about itself.
    pub server: Arc<ServerInfo>,
    /// The connection's client id there, unless the server keeps it to itself.
    pub id: Option<u64>,
    /// Our address.
    pub local: SocketAddr,
    /// The server's address.
    pub peer: SocketAddr,
}

/// A connection without TLS and login.
#[derive(Debug)]
enum Connected {
    Tcp(TcpStream),
    #[cfg(test)]
    Simulated(simulated::End, SocketAddr),
}

impl Connected {
    /// The socket that can be tuned.
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(tcp) => Some(tcp),
            #[cfg(test)]
            Self::Simulated(..) => None,
        }
    }
}

/// Dials one server.
pub struct Connector {
    /// The credentials of `upstream.url`, as of now.
    own: RwLock<Arc<Identity>>,
    resolver: Resolver,
    tls: Option<Tls>,
    connect_timeout: Duration,
    loading_retry: Duration,
    user_timeout: Duration,
    keepalive: Keepalive,
    /// As of the last login.
    server: Mutex<Option<Arc<ServerInfo>>>,
    missing: MissingCapabilities,
    runs: Runs,
}

/// The files' part of the configuration, which may change while we run.
struct Tls {
    options: TlsOptions,
    setup: RwLock<TlsSetup>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("resolver", &self.resolver).finish_non_exhaustive()
    }
}

impl Connector {
    /// Reads the certificates; resolves and dials nothing yet.
    ///
    /// # Errors
    /// Certificate files or names that cannot work.
    pub fn new(options: &UpstreamOptions) -> Result<Self, TlsSetupError> {
        let tls = match options.tls.then(|| options.tls_options.clone()) {
            Some(options_of_tls) => {
                if options_of_tls.insecure {
                    tracing::warn!(
                        "upstream.tls.insecure is set: whoever sits between us and the server can read and change \
                         everything"
                    );
                }
                let setup = RwLock::new(TlsSetup::new(&options_of_tls, &options.host)?);
                Some(Tls { options: options_of_tls, setup })
            }
            None => None,
        };
        Ok(Self {
            own: RwLock::new(Arc::new(Identity::of_url(options))),
            resolver: Resolver::new(&options.host, options.port),
            tls,
            connect_timeout: options.connect_timeout,
            loading_retry: options.loading_retry,
            user_timeout: options.user_timeout,
            keepalive: options.keepalive,
            server: Mutex::default(),
            missing: MissingCapabilities::default(),
            runs: Runs::default(),
        })
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

    /// What the certificate files hold now; `None` without TLS.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        let TlsOptions { ca, cert, key, .. } = &self.tls.as_ref()?.options;
        Some(Fingerprint::of([ca, cert, key].into_iter().flatten().map(PathBuf::as_path)))
    }

    /// Reads the certificate files and the system's authorities again, for new connections. What is connected stays,
    /// and no session from before is resumed. `false`: there is no TLS.
    ///
    /// # Errors
    /// What is wrong with the files now; the former ones stay in use.
    pub fn reload(&self) -> Result<bool, TlsSetupError> {
        let Some(tls) = &self.tls else { return Ok(false) };
        let setup = TlsSetup::new(&tls.options, self.resolver.host())?;
        *tls.setup.write() = setup;
        Ok(true)
    }

    /// Opens a connection and logs in: within `upstream.connect_timeout`, or `upstream.loading_retry` longer while
    /// the server is loading its data.
    ///
    /// # Errors
    /// [`DialError`]; nothing stays open, on a server that has answered neither. Dropping the future closes the socket.
    pub async fn dial(&self, login: &Login) -> Result<Established, DialError> {
        let deadline = Instant::now() + self.connect_timeout;
        let addresses = self.resolve(deadline).await?;
        let greatest_before = self.runs.greatest();
        let (connected, peer) = self.connect(&addresses, deadline).await?;
        let established = self.greet(connected, peer, login, deadline, greatest_before).await;
        match &established {
            Ok(_) => self.resolver.works(peer),
            // Whatever accepts TCP there may be no Redis any more: the next dial begins with the other addresses.
            Err(error) if error.is_lost() => self.resolver.fails(peer),
            Err(error) => self.note_refusal(error, login.identity.name()),
        }
        established
    }

    /// The addresses of the server's name now, in the order of trying them.
    ///
    /// # Errors
    /// [`DialError::Resolve`], or a timeout.
    pub async fn addresses(&self) -> Result<Vec<SocketAddr>, DialError> {
        self.resolve(Instant::now() + self.connect_timeout).await
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

    /// What the server, or a user's rights there, lack.
    pub fn missing_capabilities(&self) -> &MissingCapabilities {
        &self.missing
    }

    /// Whether `user` can have RESP3, as far as is known.
    pub fn speaks_resp3(&self, user: &str) -> bool {
        self.server().is_none_or(|server| server.hello) && !self.missing.has(Capability::Resp3, user)
    }

    /// The address that serves us: where new connections go first. A connection to another one is to be drained.
    pub fn address(&self) -> Option<SocketAddr> {
        self.resolver.in_use()
    }

    /// Resolves the server's name again and says whether the address in use is gone from it (said once for each);
    /// to be called every `upstream.resolve_interval`, and after a `-READONLY` reply.
    ///
    /// # Errors
    /// The name cannot be resolved just now; what is connected stays good.
    pub async fn address_changed(&self) -> Result<bool, DialError> {
        let deadline = Instant::now() + self.connect_timeout;
        self.within(deadline, Phase::Resolve, None, self.resolver.in_use_is_gone())
            .await?
            .map_err(|e| self.unresolved(&e))
    }

    async fn resolve(&self, deadline: Instant) -> Result<Vec<SocketAddr>, DialError> {
        self.within(deadline, Phase::Resolve, None, self.resolver.lookup())
            .await?
            .map_err(|e| self.unresolved(&e))
    }

    fn unresolved(&self, error: &io::Error) -> DialError {
        DialError::Resolve { host: self.resolver.host().to_owned(), cause: error.to_string() }
    }

    /// TCP to the first address that answers. Each gets an equal share of the time that is left, so that a silent
    /// one leaves time for the others.
    async fn connect(
        &self,
        addresses: &[SocketAddr],
        deadline: Instant,
    ) -> Result<(Connected, SocketAddr), DialError> {
        let mut failure =
            DialError::Resolve { host: self.resolver.host().to_owned(), cause: "no address".to_owned() };
        for (tried, &peer) in addresses.iter().enumerate() {
            let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let now = Instant::now();
            let share = now + deadline.saturating_duration_since(now) / left;
            let outcome = self.within(share, Phase::Connect, Some(peer), handshake(peer, share)).await;
            let tuned = outcome.and_then(|connected| {
                let connected = connected.map_err(|e| DialError::from_io(Phase::Connect, peer, &e))?;
                if let Some(tcp) = connected.tcp() {
                    tune(tcp, &self.keepalive, self.user_timeout)
                        .map_err(|e| DialError::from_io(Phase::Connect, peer, &e))?;
                }
                Ok(connected)
            });
            match tuned {
                Ok(connected) => return Ok((connected, peer)),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// TLS and login on a connected socket.
    async fn greet(
        &self,
        connected: Connected,
        peer: SocketAddr,
        login: &Login,
        deadline: Instant,
        greatest_before: u64,
    ) -> Result<Established, DialError> {
        let (tcp, local) = match connected {
            Connected::Tcp(tcp) => {
                let local = tcp.local_addr().map_err(|e| DialError::from_io(Phase::Connect, peer, &e))?;
                (tcp, local)
            }
            #[cfg(test)]
            Connected::Simulated(end, local) => {
                let stream = UpstreamStream::simulated(end);
                return self.log_in(stream, (local, peer), login, deadline, greatest_before).await;
            }
        };
        let stream = match &self.tls {
            None => UpstreamStream::plain(tcp, self.user_timeout),
            Some(tls) => {
                let setup = tls.setup.read().clone();
                let handshake = TlsConnector::from(setup.config).connect(setup.name, tcp);
                let secured = self.within(deadline, Phase::Tls, Some(peer), handshake).await;
                let secured =
                    secured.and_then(|secured| secured.map_err(|e| DialError::from_io(Phase::Tls, peer, &e)));
                let outcome = match &secured {
                    Err(_) => Handshake::Failed,
                    Ok(tls) if tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) => {
                        Handshake::Resumed
                    }
                    Ok(_) => Handshake::Full,
                };
                handshake_ended(Side::Upstream, outcome);
                let secured = secured?;
                let shown = secured.get_ref().1.peer_certificates().and_then(<[_]>::first);
                if let Some(until) = shown.and_then(valid_until) {
                    certificate_expires(Side::Upstream, until);
                }
                UpstreamStream::tls(secured, self.user_timeout)
            }
        };
        self.log_in(stream, (local, peer), login, deadline, greatest_before).await
    }

    /// The login on a stream from the first of these addresses to the second.
    async fn log_in(
        &self,
        stream: UpstreamStream,
        (local, peer): (SocketAddr, SocketAddr),
        login: &Login,
        deadline: Instant,
        greatest_before: u64,
    ) -> Result<Established, DialError> {
        let user = login.identity.name();
        let known = Capability::ALL.into_iter().filter(|what| self.missing.has(*what, user)).collect();
        let mut conversation = Conversation::start(stream, peer, login, known);
        let first = match self.within(deadline, Phase::Login, Some(peer), conversation.proceed()).await? {
            Ok(step) => step,
            Err(error) => {
                if !error.is_lost() {
                    farewell(conversation.into_stream()).await;
                }
                return Err(error);
            }
        };
        if first == Step::Loading {
            self.outwait_loading(&mut conversation, peer).await?;
        }
        let (stream, logged_in) = conversation.finish();
        self.note(&logged_in, user);
        let server = self.remember(logged_in.server);
        let (run, id) = (logged_in.run.as_deref(), logged_in.id);
        let met = Met { run, peer, id, greatest_before, info: &server };
        if self.runs.note(&met, Instant::now()) {
            tracing::warn!(%peer, "the server is another one than before: clients that have used scripts are closed");
        }
        Ok(Established { stream, server, id: logged_in.id, local, peer })
    }

    /// Asks again, in growing intervals, until the server has its data or `upstream.loading_retry` has passed.
    async fn outwait_loading(
        &self,
        conversation: &mut Conversation<'_, UpstreamStream>,
        peer: SocketAddr,
    ) -> Result<(), DialError> {
        const LONGEST_PAUSE: Duration = Duration::from_secs(1);
        let end = Instant::now() + self.loading_retry;
        let mut pause = Duration::from_millis(50);
        tracing::info!(%peer, retry_seconds = seconds(self.loading_retry), "the server is loading its data");
        while Instant::now() < end {
            tokio::time::sleep(pause.min(end.saturating_duration_since(Instant::now()))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            conversation.resume();
            let deadline = Instant::now() + self.connect_timeout;
            match self.within(deadline, Phase::Login, Some(peer), conversation.proceed()).await?? {
                Step::Done => return Ok(()),
                Step::Loading => {}
            }
        }
        conversation.give_up()
    }

    /// One step of the dial, until `deadline` at the latest.
    async fn within<T>(
        &self,
        deadline: Instant,
        phase: Phase,
        peer: Option<SocketAddr>,
        step: impl Future<Output = T>,
    ) -> Result<T, DialError> {
        timeout_at(deadline, step).await.map_err(|_| DialError::Timeout {
            phase,
            peer: peer.map_or_else(|| self.resolver.host().to_owned(), |peer| peer.to_string()),
            after: self.connect_timeout,
        })
    }

    /// Keeps the server's description; all connections to an unchanged server share one.
    fn remember(&self, server: ServerInfo) -> Arc<ServerInfo> {
        let mut last = self.server.lock();
        match &*last {
            Some(known) if **known == server => Arc::clone(known),
            // Somebody may not ask for INFO: what others were told stands.
            Some(known) if !server.hello && server.version.is_empty() && !known.hello => Arc::clone(known),
            Some(_) | None => Arc::clone(last.insert(Arc::new(server))),
        }
    }

    /// Remembers what a login was given and what not.
    fn note(&self, logged_in: &LoggedIn, user: &str) {
        for MissingCapability { what, text } in &logged_in.missing {
            self.missing.record_refusal(*what, user, text);
        }
        for what in &logged_in.met {
            self.missing.record_support(*what, user);
        }
        if logged_in.server.mode == "cluster" {
            self.missing.record_refusal(
                Capability::WholeKeyspace,
                user,
                "(it calls itself a node of a cluster)",
            );
        }
    }

    /// Remembers what a login has failed for, where that is lacking for good.
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

/// TCP's handshake, begun anew after one second, then after two more, and so on until `end`: a host that was away answers
/// the first packet it sees, and the kernel repeats one only after 1, 3 and 7 seconds. Each try is longer than the one
/// before, so that a very long way has its time, too.
async fn handshake(peer: SocketAddr, end: Instant) -> io::Result<Connected> {
    #[cfg(test)]
    if let Some(network) = simulated::current() {
        return network.dial().await.map(|(end, local)| Connected::Simulated(end, local));
    }
    let mut patience = Duration::from_secs(1);
    loop {
        let again = Instant::now() + patience;
        if again >= end {
            return TcpStream::connect(peer).await.map(Connected::Tcp);
        }
        if let Ok(connected) = timeout_at(again, TcpStream::connect(peer)).await {
            return connected.map(Connected::Tcp);
        }
        patience *= 2;
    }
}

/// Ends a connection that the server has refused in words, and returns when the server has freed it: whoever dials
/// next under the same permit must not be one too many there.
async fn farewell(mut stream: UpstreamStream) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let end = async {
        stream.shutdown().await?;
        let mut rest = [0; 512];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // A server that does not answer our end of stream is left to the kernel.
    drop(tokio::time::timeout(PATIENCE, end).await);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn live() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_followed_by_the_next() {
        let connector = Connector::new(&UpstreamOptions::default()).unwrap();
        let (dead, refusing) = live().await;
        drop(dead);
        let (_listener, live) = live().await;
        let deadline = Instant::now() + Duration::from_secs(5);
        let (_, peer) = connector.connect(&[refusing, live], deadline).await.unwrap();
        assert_eq!(peer, live);
        let none = connector.connect(&[refusing], deadline).await.unwrap_err();
        assert_eq!(none, DialError::Refused { peer: refusing });
    }

    #[tokio::test]
    async fn a_host_that_was_away_is_reached_within_a_second_of_its_return() {
        let connector = Connector::new(&UpstreamOptions::default()).unwrap();
        let (listener, peer) = live().await;
        // A backlog of one, filled: handshakes stay unanswered, as by a host that is away.
        socket2::SockRef::from(&listener).listen(1).unwrap();
        let mut fillers = Vec::new();
        for _ in 0..8 {
            fillers
                .push(timeout_at(Instant::now() + Duration::from_millis(50), TcpStream::connect(peer)).await);
        }
        let started = Instant::now();
        let back = started + Duration::from_millis(1_200);
        tokio::spawn(async move {
            tokio::time::sleep_until(back).await;
            drop(fillers);
            while let Ok(accepted) = listener.accept().await {
                drop(accepted);
            }
        });
        connector.connect(&[peer], started + Duration::from_secs(5)).await.unwrap();
        let late = Instant::now().saturating_duration_since(back);
        assert!(started.elapsed() > Duration::from_secs(1), "it was not away");
        assert!(late < Duration::from_millis(1_400), "{late:?}");
    }

    #[tokio::test]
    async fn an_address_that_is_silent_leaves_time_for_the_next() {
        let connector = Connector::new(&UpstreamOptions::default()).unwrap();
        let (listener, silent) = live().await;
        // A backlog of one, filled: further handshakes stay unanswered.
        socket2::SockRef::from(&listener).listen(1).unwrap();
        let mut fillers = Vec::new();
        for _ in 0..8 {
            fillers.push(
                timeout_at(Instant::now() + Duration::from_millis(50), TcpStream::connect(silent)).await,
            );
        }
        let (_listener, live) = live().await;
        let started = Instant::now();
        let (_, peer) = connector.connect(&[silent, live], started + Duration::from_secs(3)).await.unwrap();
        assert_eq!(peer, live);
        assert!((1_500..3_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    }
}
