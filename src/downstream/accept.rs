//! Accepting clients: the listeners, the cap on clients, protected mode.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream, lookup_host};

use super::links::{Accepted, Links};
use super::options::{AuthMode, ListenOptions};
use super::places::Places;
use crate::telemetry::{ClientClose, client_closed};

/// What Redis answers when its `maxclients` is reached (`acceptCommonHandler` in redis `networking.c`).
const TOO_MANY: &[u8] = b"-ERR max number of clients reached\r\n";

/// The same for one address: client libraries know the words.
const TOO_MANY_HERE: &[u8] = b"-ERR max number of clients reached for this address\r\n";

/// What Redis's protected mode answers begins with DENIED, so that client libraries know it.
const DENIED: &[u8] = b"-DENIED redbouncer is running in protected mode: auth.mode is \"open\" and this listener can be reached from other hosts. Set auth.mode = \"passthrough\" (or leave it unset) so that clients must log in, listen on 127.0.0.1, or set listen.protected_mode = false if the network is trusted.\r\n";

/// Pauses after a failed accept (no descriptors left): from here, doubled up to [`LONGEST_PAUSE`].
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// One open listener.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The name does not resolve.
    #[error("cannot listen on {address}: {source}")]
    Resolve {
        /// As configured.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}{}", hint(.source))]
    Bind {
        /// The resolved address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " (another program, perhaps another redbouncer, listens there)",
        io::ErrorKind::PermissionDenied => " (ports below 1024 need a privilege)",
        _ => "",
    }
}

/// Opens every configured listener.
///
/// # Errors
/// Names the address that cannot be had.
pub async fn listen(options: &ListenOptions) -> Result<Vec<Listener>, ListenError> {
    let mut listeners = Vec::new();
    for address in &options.addresses {
        let resolved = lookup_host(address.as_str())
            .await
            .map_err(|source| ListenError::Resolve { address: address.clone(), source })?;
        for address in resolved {
            listeners.push(
                open(address, options.backlog).map_err(|source| ListenError::Bind { address, source })?,
            );
        }
    }
    Ok(listeners)
}

fn open(address: SocketAddr, backlog: u32) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the connections of the process before it.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    let socket = TcpListener::from_std(socket.into())?;
    let address = socket.local_addr()?;
    Ok(Listener { socket, address })
}

/// What a listener needs to know.
#[derive(Clone, Debug)]
pub struct Doorkeeper {
    /// Where accepted clients go.
    pub links: Links,
    /// `client.max`.
    pub max_clients: usize,
    /// `client.max_per_address`.
    pub places: Arc<Places>,
    /// `auth.mode`.
    pub mode: AuthMode,
    /// `listen.protected_mode`.
    pub protected_mode: bool,
}

impl Listener {
    /// The bound address, with the real port where 0 was configured.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts clients until dropped.
    pub async fn accept(self, door: Doorkeeper) {
        let mut pause = SHORTEST_PAUSE;
        let mut failing: Option<Instant> = None;
        let mut warned: Option<Instant> = None;
        loop {
            match self.socket.accept().await {
                Ok((stream, peer)) => {
                    pause = SHORTEST_PAUSE;
                    if let Some(since) = failing.take() {
                        let after = since.elapsed();
                        tracing::info!(listen = %self.address, ?after, "clients are accepted again");
                    }
                    self.admit(&door, stream, peer, &mut warned).await;
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

    async fn admit(
        &self,
        door: &Doorkeeper,
        stream: TcpStream,
        peer: SocketAddr,
        warned: &mut Option<Instant>,
    ) {
        metrics::counter!("redbouncer_clients_accepted_total").increment(1);
        let trusted = self.address.ip().is_loopback();
        if door.mode == AuthMode::Open
            && door.protected_mode
            && !trusted
            && !peer.ip().to_canonical().is_loopback()
        {
            tracing::warn!(%peer, reason = ClientClose::Denied.label(), "client refused: protected mode");
            refuse(&stream, DENIED, ClientClose::Denied);
            return;
        }
        if door.links.clients() >= door.max_clients {
            if warned.is_none_or(|last| last.elapsed() >= Duration::from_secs(1)) {
                *warned = Some(Instant::now());
                let held_by = most_clients(&door.links).await;
                let reason = ClientClose::TooMany.label();
                tracing::warn!(%peer, reason, max = door.max_clients, held_by, "client refused");
            }
            refuse(&stream, TOO_MANY, ClientClose::TooMany);
            return;
        }
        if !door.places.enter(peer.ip()) {
            let reason = ClientClose::TooManyFromAddress.label();
            if warned.is_none_or(|last| last.elapsed() >= Duration::from_secs(1)) {
                *warned = Some(Instant::now());
                tracing::warn!(%peer, reason, "client refused");
            }
            refuse(&stream, TOO_MANY_HERE, ClientClose::TooManyFromAddress);
            return;
        }
        let (Ok(local), Ok(stream)) = (stream.local_addr(), stream.into_std()) else {
            door.places.leave(peer.ip());
            client_closed(ClientClose::ClientLost);
            return;
        };
        // Refused only while stopping: the connection closes with the socket.
        let _ = door.links.hand(Accepted { stream, peer, local, trusted }).await;
    }
}

/// EMFILE and ENFILE: no file descriptors are left, for this process or for the whole system.
fn hint_for_accept(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(23 | 24) => " (raise the limit of open files, ulimit -n, above client.max)",
        _ => "",
    }
}

/// Says no. The socket buffer of a new connection is empty, so this never waits.
fn refuse(stream: &TcpStream, text: &[u8], reason: ClientClose) {
    let _ = stream.try_write(text);
    let _ = SockRef::from(stream).shutdown(std::net::Shutdown::Write);
    client_closed(reason);
}

/// Which hosts hold the most clients, for the warning that says why others are refused.
async fn most_clients(links: &Links) -> String {
    let mut hosts = std::collections::HashMap::new();
    for row in links.rows().await {
        *hosts.entry(row.peer.ip()).or_insert(0_usize) += 1;
    }
    let mut hosts: Vec<_> = hosts.into_iter().collect();
    hosts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let shown: Vec<_> = hosts.iter().take(3).map(|(host, count)| format!("{host}: {count}")).collect();
    shown.join(", ")
}
