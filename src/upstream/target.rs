//! The server's location and connection options (name, TCP and TLS) at one point of the configuration.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustls::HandshakeKind;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::error::{DialError, Phase};
use super::pem::{Fingerprint, TlsSetupError, valid_until};
use super::resolve::Resolver;
#[cfg(test)]
use super::simulated;
use super::tls::TlsSetup;
use super::{Keepalive, TlsOptions, UpstreamOptions, UpstreamStream, tune};
use crate::telemetry::{Certificate, Handshake, Side, certificate_expires, handshake_ended};

/// A server and the way there.
#[derive(Debug)]
pub(super) struct Target {
    /// What has to be told before anything can be dialled; [`Self::resolver`] has no host then.
    pub(super) awaits: Option<Awaited>,
    pub(super) resolver: Resolver,
    tls: Option<Tls>,
    /// Bound on name resolution, TCP, TLS and login together.
    pub(super) connect_timeout: Duration,
    /// How long a login is repeated while the server loads its data.
    pub(super) loading_retry: Duration,
    user_timeout: Duration,
    keepalive: Keepalive,
}

/// Nodes whose location others provide.
#[derive(Clone, Debug)]
pub(super) enum Awaited {
    /// By Sentinels: where the master of this service is.
    Master(String),
    /// By a node of the cluster: where its slots are.
    Slots,
}

/// Settings whose files have been read and found good, for [`super::Connector::replace`].
#[derive(Debug)]
pub struct PreparedTarget(pub(super) Arc<Target>);

impl PreparedTarget {
    /// Reads the certificates; resolves and dials nothing yet.
    ///
    /// # Errors
    /// Certificate files or names that cannot work.
    pub fn new(options: &UpstreamOptions) -> Result<Self, TlsSetupError> {
        let prepared = Self::quietly(options)?;
        warn_if_insecure(options);
        Ok(prepared)
    }

    /// The same for another server of the same settings.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn quietly(options: &UpstreamOptions) -> Result<Self, TlsSetupError> {
        Target::new(options).map(|target| Self(Arc::new(target)))
    }

    /// Whether its location is not known yet.
    #[must_use]
    pub fn is_unlocated(&self) -> bool {
        self.0.awaits.is_some()
    }
}

/// A connection without TLS and login.
#[derive(Debug)]
pub(super) enum Connected {
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

/// The part of the configuration that comes from files, which may change at run time.
struct Tls {
    options: TlsOptions,
    /// Whose certificate it has to be, unless the options name another.
    host: String,
    setup: RwLock<TlsSetup>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Target {
    pub(super) fn new(options: &UpstreamOptions) -> Result<Self, TlsSetupError> {
        let tls = match options.tls.then(|| options.tls_options.clone()) {
            Some(options_of_tls) => {
                let setup = RwLock::new(TlsSetup::new(&options_of_tls, host_to_verify(options))?);
                Some(Tls { options: options_of_tls, host: host_to_verify(options).to_owned(), setup })
            }
            None => None,
        };
        let awaited =
            options.service.as_ref().map_or(Awaited::Slots, |service| Awaited::Master(service.name.clone()));
        Ok(Self {
            awaits: options.is_unlocated().then_some(awaited),
            resolver: Resolver::new(&options.host, options.port),
            tls,
            connect_timeout: options.connect_timeout,
            loading_retry: options.loading_retry,
            user_timeout: options.user_timeout,
            keepalive: options.keepalive,
        })
    }

    /// The current contents of the certificate files; `None` without TLS.
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        let TlsOptions { ca, cert, key, .. } = &self.tls.as_ref()?.options;
        Some(Fingerprint::of([ca, cert, key].into_iter().flatten().map(PathBuf::as_path)))
    }

    /// Reads the certificate files again. `false`: there is no TLS.
    pub(super) fn reload(&self) -> Result<bool, TlsSetupError> {
        let Some(tls) = &self.tls else { return Ok(false) };
        let setup = TlsSetup::new(&tls.options, &tls.host)?;
        *tls.setup.write() = setup;
        Ok(true)
    }

    pub(super) async fn resolve(&self, deadline: Instant) -> Result<Vec<SocketAddr>, DialError> {
        self.within(deadline, Phase::Resolve, None, self.resolver.lookup())
            .await?
            .map_err(|e| self.unresolved(&e))
    }

    pub(super) fn unresolved(&self, error: &io::Error) -> DialError {
        DialError::Resolve { host: self.resolver.host().to_owned(), cause: error.to_string() }
    }

    /// TCP to the first address that answers. Each gets an equal share of the time that is left, so that a silent
    /// one leaves time for the others.
    pub(super) async fn connect(
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

    /// Performs the TLS handshake, if TLS is used. Also returns the local address.
    pub(super) async fn secure(
        &self,
        connected: Connected,
        peer: SocketAddr,
        deadline: Instant,
    ) -> Result<(UpstreamStream, SocketAddr), DialError> {
        let (tcp, local) = match connected {
            Connected::Tcp(tcp) => {
                let local = tcp.local_addr().map_err(|e| DialError::from_io(Phase::Connect, peer, &e))?;
                (tcp, local)
            }
            #[cfg(test)]
            Connected::Simulated(end, local) => return Ok((UpstreamStream::simulated(end), local)),
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
                    certificate_expires(Certificate::OfServer, until);
                }
                UpstreamStream::tls(secured, self.user_timeout)
            }
        };
        Ok((stream, local))
    }

    /// One step of the dial, until `deadline` at the latest.
    pub(super) async fn within<T>(
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
}

/// Whose certificate the server has to show. While nobody has named a server its files are tried out with the name of the first
/// who is asked. Nodes of a cluster that announce an address have the certificate of the name in the URL; one that announces a
/// name has its own.
fn host_to_verify(options: &UpstreamOptions) -> &str {
    let sentinel = options.service.as_ref().and_then(|service| service.sentinels.first());
    let asked = sentinel.or_else(|| options.nodes.first());
    let is_address = options.is_cluster() && options.host.parse::<IpAddr>().is_ok();
    asked.filter(|_| options.is_unlocated() || is_address).map_or(&options.host, |asked| &asked.host)
}

/// Logs at the start, and when the settings change, that certificates are not verified.
pub(super) fn warn_if_insecure(options: &UpstreamOptions) {
    if options.tls && options.tls_options.insecure {
        tracing::warn!(
            "upstream.tls.insecure is set: a host between redbouncer and the server can read and change all data"
        );
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
        let target = Target::new(&UpstreamOptions::default()).unwrap();
        let (dead, refusing) = live().await;
        drop(dead);
        let (_listener, live) = live().await;
        let deadline = Instant::now() + Duration::from_secs(5);
        let (_, peer) = target.connect(&[refusing, live], deadline).await.unwrap();
        assert_eq!(peer, live);
        let none = target.connect(&[refusing], deadline).await.unwrap_err();
        assert_eq!(none, DialError::Refused { peer: refusing });
    }

    #[tokio::test]
    async fn a_host_that_was_away_is_reached_within_a_second_of_its_return() {
        let target = Target::new(&UpstreamOptions::default()).unwrap();
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
        target.connect(&[peer], started + Duration::from_secs(5)).await.unwrap();
        let late = Instant::now().saturating_duration_since(back);
        assert!(started.elapsed() > Duration::from_secs(1), "it was not away");
        assert!(late < Duration::from_millis(1_400), "{late:?}");
    }

    #[tokio::test]
    async fn an_address_that_is_silent_leaves_time_for_the_next() {
        let target = Target::new(&UpstreamOptions::default()).unwrap();
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
        let (_, peer) = target.connect(&[silent, live], started + Duration::from_secs(3)).await.unwrap();
        assert_eq!(peer, live);
        assert!((1_500..3_000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    }
}
