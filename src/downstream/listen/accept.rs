//! Accepting clients: the cap on clients, protected mode, and on which thread they go on.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::handshake;
use super::listener::{ListenSocket, Listener};
use super::tls::ServerTls;
use crate::downstream::admission::Refused;
use crate::downstream::identity::AuthMode;
use crate::downstream::workers::{Accepted, Incoming, Workers};
use crate::pool::Turns;
use crate::session::Endpoint;
use crate::telemetry::{ClientClose, client_closed};

/// What Redis answers when its `maxclients` is reached (`acceptCommonHandler` in redis `networking.c`).
pub(in crate::downstream) const TOO_MANY: &[u8] = b"-ERR max number of clients reached\r\n";

/// The same for one address: client libraries know the words.
pub(in crate::downstream) const TOO_MANY_HERE: &[u8] =
    b"-ERR max number of clients reached for this address\r\n";

/// What Redis's protected mode answers begins with DENIED, so that client libraries know it.
const DENIED: &[u8] = b"-DENIED redbouncer is running in protected mode: auth.mode is \"open\" and this listener can be reached from other hosts. Set auth.mode = \"passthrough\" (or leave it unset) so that clients must log in, listen on 127.0.0.1, or set listen.protected_mode = false if the network is trusted.\r\n";

/// Pauses after a failed accept (no descriptors left): from here, doubled up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a listener needs to know.
#[derive(Clone, Debug)]
pub struct AcceptOptions {
    /// Where accepted clients go.
    pub workers: Workers,
    /// `auth.mode`.
    pub mode: AuthMode,
    /// What a reload may change.
    pub terms: Arc<Mutex<AcceptTerms>>,
}

/// What a reload may change for those who come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptTerms {
    /// How many clients there may be, for the log.
    pub max_clients: usize,
    /// `client.login_timeout`, for TLS handshakes.
    pub login_timeout: Duration,
    /// `listen.protected_mode`.
    pub protected_mode: bool,
}

/// Who came, and by which kind of socket.
enum Arrived {
    Tcp(TcpStream),
    Tls(TcpStream),
    Unix(UnixStream),
}

/// What one listener knows while it accepts.
struct Accepting {
    address: Endpoint,
    door: AcceptOptions,
    warned: Option<Instant>,
    /// Beyond this host nobody can come here.
    trusted: bool,
    /// Whose TLS handshake goes on next.
    handshakes: Arc<Turns>,
}

impl Listener {
    /// Accepts clients until `paused`. A client that has been accepted gets its place whatever happens then.
    ///
    /// # Errors
    /// The operating system's refusal to have the socket watched.
    pub async fn accept(self, door: AcceptOptions, paused: CancellationToken) -> io::Result<()> {
        let trusted = self.address.is_local();
        let handshakes = Arc::default();
        let mut accepting = Accepting { address: self.address, door, warned: None, trusted, handshakes };
        match self.socket {
            ListenSocket::Tcp(socket) => {
                let socket = TcpListener::from_std(socket)?;
                while let Some((stream, peer)) = accepting.next_unless(&paused, || socket.accept()).await {
                    accepting.admit(Arrived::Tcp(stream), peer.into(), None).await;
                }
            }
            ListenSocket::Tls(socket, tls) => {
                let socket = TcpListener::from_std(socket)?;
                while let Some((stream, peer)) = accepting.next_unless(&paused, || socket.accept()).await {
                    accepting.admit(Arrived::Tls(stream), peer.into(), Some(&tls)).await;
                }
            }
            ListenSocket::Unix(socket, _file) => {
                let socket = UnixListener::from_std(socket)?;
                while let Some((stream, _)) = accepting.next_unless(&paused, || socket.accept()).await {
                    let path = accepting.address.clone();
                    accepting.admit(Arrived::Unix(stream), path, None).await;
                }
            }
        }
        Ok(())
    }
}

impl Accepting {
    /// The next connection; none from when `paused`.
    async fn next_unless<T, F: Future<Output = io::Result<T>>>(
        &self,
        paused: &CancellationToken,
        accept: impl Fn() -> F,
    ) -> Option<T> {
        tokio::select! {
            biased;
            () = paused.cancelled() => None,
            arrived = self.next(accept) => Some(arrived),
        }
    }

    /// The next connection. A lack of descriptors is waited out.
    async fn next<T, F: Future<Output = io::Result<T>>>(&self, accept: impl Fn() -> F) -> T {
        let mut pause = SHORTEST_PAUSE;
        let mut failing: Option<Instant> = None;
        loop {
            match accept().await {
                Ok(arrived) => {
                    if let Some(since) = failing {
                        let after = since.elapsed();
                        tracing::info!(listen = %self.address, ?after, "clients are accepted again");
                    }
                    return arrived;
                }
                Err(error) => {
                    // Once for each time that it begins: a lack of descriptors lasts, and a client that has gone
                    // between its coming and our accepting is nobody's fault.
                    if failing.is_none() && error.kind() != io::ErrorKind::ConnectionAborted {
                        failing = Some(Instant::now());
                        let hint = hint_for_accept(&error);
                        tracing::warn!(listen = %self.address, %error, "cannot accept clients; they wait{hint}");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn admit(&mut self, arrived: Arrived, peer: Endpoint, tls: Option<&Arc<ServerTls>>) {
        metrics::counter!("redbouncer_clients_accepted_total").increment(1);
        let door = &self.door;
        let terms = *door.terms.lock();
        // Who has shown a certificate is no stranger.
        let is_known = tls.is_some_and(|tls| tls.knows_its_clients());
        if door.mode == AuthMode::Open
            && terms.protected_mode
            && !self.trusted
            && !is_known
            && !peer.is_local()
        {
            tracing::warn!(%peer, reason = ClientClose::Denied.label(), "client refused: protected mode");
            refuse(&arrived, DENIED, ClientClose::Denied);
            return;
        }
        let must_log_in = door.mode.needs_login(self.trusted);
        let seat = match door.workers.seat(&peer, must_log_in || tls.is_some()) {
            Ok(seat) => seat,
            Err(Refused::Full) => {
                if self.may_warn() {
                    let held_by = most_clients(&self.door.workers).await;
                    let reason = ClientClose::TooMany.label();
                    tracing::warn!(%peer, reason, max = terms.max_clients, held_by, "client refused");
                }
                return refuse(&arrived, TOO_MANY, ClientClose::TooMany);
            }
            Err(Refused::FullForAddress) => {
                let reason = ClientClose::TooManyFromAddress;
                if self.may_warn() {
                    tracing::warn!(%peer, reason = reason.label(), "client refused");
                }
                return refuse(&arrived, TOO_MANY_HERE, reason);
            }
        };
        let trusted = self.trusted;
        let bring = move |stream| move |place| Accepted { stream, peer, trusted, before: None, place };
        let stream = match arrived {
            Arrived::Tls(stream) => {
                if let Some(tls) = tls {
                    let tls = Arc::clone(tls);
                    let (turns, limit) = (Arc::clone(&self.handshakes), terms.login_timeout);
                    tokio::task::spawn_local(async move {
                        // It has its place from the beginning, and goes to its worker when the handshake is done.
                        let made = handshake::make(seat, stream, &tls, &turns, limit).await;
                        let Some((stream, session, seat)) = made else { return };
                        if !must_log_in && seat.place().is_some_and(|place| place.go_inside().is_err()) {
                            return client_closed(ClientClose::TooMany);
                        }
                        match stream.into_std() {
                            Ok(stream) => seat.take(bring(Incoming::Tls(stream, session))).await,
                            Err(_) => client_closed(ClientClose::ClientLost),
                        }
                    });
                }
                return;
            }
            Arrived::Tcp(stream) => stream.into_std().map(Incoming::Tcp),
            Arrived::Unix(stream) => stream.into_std().map(Incoming::Unix),
        };
        match stream {
            Ok(stream) => seat.take(bring(stream)).await,
            Err(_) => client_closed(ClientClose::ClientLost),
        }
    }

    fn may_warn(&mut self) -> bool {
        let may = self.warned.is_none_or(|last| last.elapsed() >= Duration::from_secs(1));
        if may {
            self.warned = Some(Instant::now());
        }
        may
    }
}

/// EMFILE and ENFILE: no file descriptors are left, for this process or for the whole system.
fn hint_for_accept(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(23 | 24) => " (raise the limit of open files, ulimit -n, above client.max)",
        _ => "",
    }
}

/// Says no. The socket buffer of a new connection is empty, so this never waits. To a client with TLS nothing can be
/// said before a handshake, which is too much for one that is refused: as Redis, we only close.
fn refuse(arrived: &Arrived, text: &[u8], reason: ClientClose) {
    match arrived {
        Arrived::Tcp(stream) => {
            let _ = stream.try_write(text);
            let _ = SockRef::from(stream).shutdown(std::net::Shutdown::Write);
        }
        Arrived::Unix(stream) => {
            let _ = stream.try_write(text);
            let _ = SockRef::from(stream).shutdown(std::net::Shutdown::Write);
        }
        Arrived::Tls(_) => {}
    }
    client_closed(reason);
}

/// Which hosts hold the most clients, for the warning that says why others are refused.
async fn most_clients(workers: &Workers) -> String {
    let mut hosts = std::collections::HashMap::new();
    for row in workers.rows().await {
        let host = row.peer.host().map_or_else(|| row.peer.to_string(), |host| host.to_string());
        *hosts.entry(host).or_insert(0_usize) += 1;
    }
    let mut hosts: Vec<_> = hosts.into_iter().collect();
    hosts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let shown: Vec<_> = hosts.iter().take(3).map(|(host, count)| format!("{host}: {count}")).collect();
    shown.join(", ")
}
