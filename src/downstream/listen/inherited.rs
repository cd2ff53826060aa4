//! Listening sockets that another process opened: a service manager, which passes them on at the start (`sd_listen_fds(3)`), or
//! the proxy that this one takes over from.
//!
//! They stay open while this process is replaced: clients that connect meanwhile wait in the kernel's queue and are served by
//! the next one. And a service manager may open ports that this process has no right to.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use listenfd::ListenFd;
use socket2::{Domain, SockRef};

use crate::session::Endpoint;

/// What systemd numbers the first socket with (`SD_LISTEN_FDS_START`).
const FIRST: usize = 3;

/// What another process handed over is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// From a service manager.
    #[error(
        "cannot listen on the socket passed on by the service manager as file descriptor {number}: {source}"
    )]
    ServiceManager {
        /// Its file descriptor.
        number: usize,
        /// Why.
        source: io::Error,
    },
    /// From the proxy that this one takes over from.
    #[error("cannot listen on a socket of the process that this one takes over from: {0}")]
    Predecessor(io::Error),
}

/// The sockets that this process was started with, or has been given.
#[derive(Default)]
pub struct InheritedSockets {
    environment: Option<ListenFd>,
    handed: Vec<HandedSocket>,
}

/// A listening socket of the proxy that this one takes over from.
#[derive(Debug)]
pub struct HandedSocket {
    /// The clients of the listener.
    pub role: ListenerRole,
    /// It was passed on by a service manager, whatever `listen.addresses` says.
    pub from_service_manager: bool,
    /// The socket.
    pub socket: OwnedFd,
}

/// Who connects to a listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerRole {
    /// Clients, without TLS.
    Plain,
    /// Clients with TLS.
    Tls,
    /// Operators (`admin.address`).
    Admin,
    /// The next process that takes over (`takeover.socket`).
    Takeover,
}

impl fmt::Debug for InheritedSockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InheritedSockets")
            .field("environment", &self.environment.as_ref().map_or(0, ListenFd::len))
            .field("handed", &self.handed)
            .finish()
    }
}

impl InheritedSockets {
    /// Those of the environment, which forgets them: to be called once, before there are other threads.
    #[must_use]
    pub fn from_environment() -> Self {
        Self { environment: Some(ListenFd::from_env()), handed: Vec::new() }
    }

    /// Adds one of the proxy that this one takes over from.
    pub fn add(&mut self, socket: HandedSocket) {
        self.handed.push(socket);
    }

    /// The first one that was handed over for `role` and passes `fits`.
    pub fn take_handed(&mut self, role: ListenerRole, fits: impl Fn(&OwnedFd) -> bool) -> Option<OwnedFd> {
        let at = self.handed.iter().position(|handed| handed.role == role && fits(&handed.socket))?;
        Some(self.handed.swap_remove(at).socket)
    }

    /// The listening socket for `address` of the proxy that this one takes over from, where it has one for `role`. Port 0 is
    /// whatever port that has.
    #[must_use]
    pub fn take_tcp(&mut self, role: ListenerRole, address: SocketAddr) -> Option<std::net::TcpListener> {
        let fits = |socket: &OwnedFd| bound_to(socket).is_some_and(|bound| stands_for(bound, address));
        self.take_handed(role, fits).map(std::net::TcpListener::from)
    }

    /// Every socket for clients with its address.
    ///
    /// # Errors
    /// One of them is no listening stream socket.
    pub(super) fn take(self) -> Result<Vec<Inherited>, InheritedError> {
        let mut taken = Vec::new();
        if let Some(mut sockets) = self.environment {
            for index in 0..sockets.len() {
                let socket = one(&mut sockets, index);
                let number = FIRST + index;
                let found = socket.map_err(|source| InheritedError::ServiceManager { number, source })?;
                taken.extend(found.map(|socket| socket.from(Origin::ServiceManager)));
            }
        }
        for handed in self.handed {
            let origin = match handed.role {
                ListenerRole::Plain | ListenerRole::Tls if handed.from_service_manager => {
                    Origin::ServiceManager
                }
                ListenerRole::Plain | ListenerRole::Tls => Origin::Predecessor(handed.role),
                ListenerRole::Admin | ListenerRole::Takeover => continue,
            };
            let found = opened(handed.socket).map_err(InheritedError::Predecessor)?;
            taken.push(found.from(origin));
        }
        Ok(taken)
    }
}

/// Whether a socket that is bound to `bound` is one for the configured `address`.
fn stands_for(bound: SocketAddr, address: SocketAddr) -> bool {
    bound == address || address.port() == 0 && bound.ip() == address.ip()
}

fn bound_to(socket: &OwnedFd) -> Option<SocketAddr> {
    SockRef::from(socket).local_addr().ok()?.as_socket()
}

/// One of them, and where it comes from.
pub(super) struct Inherited {
    pub(super) socket: InheritedSocket,
    pub(super) origin: Origin,
}

/// Who opened a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    ServiceManager,
    /// The proxy that this one takes over from, which had it for such clients.
    Predecessor(ListenerRole),
}

/// A socket that was passed on.
pub(super) enum InheritedSocket {
    Tcp(std::net::TcpListener, SocketAddr),
    Unix(std::os::unix::net::UnixListener, String),
}

impl InheritedSocket {
    fn from(self, origin: Origin) -> Inherited {
        Inherited { socket: self, origin }
    }

    /// Its address, as clients see it.
    pub(super) fn endpoint(&self) -> Endpoint {
        match self {
            Self::Tcp(_, address) => (*address).into(),
            Self::Unix(_, path) => Endpoint::Unix(path.as_str().into()),
        }
    }
}

impl Inherited {
    /// Whether this is the socket for the configured `address`; one that a service manager passed on is for whatever it is
    /// bound to.
    pub(super) fn is_for(&self, role: ListenerRole, address: SocketAddr) -> bool {
        match (&self.socket, self.origin) {
            (InheritedSocket::Tcp(_, bound), Origin::ServiceManager) => *bound == address,
            (InheritedSocket::Tcp(_, bound), Origin::Predecessor(was)) => {
                *bound == address || was == role && stands_for(*bound, address)
            }
            (InheritedSocket::Unix(..), _) => false,
        }
    }
}

fn one(sockets: &mut ListenFd, index: usize) -> io::Result<Option<InheritedSocket>> {
    match sockets.take_tcp_listener(index) {
        Ok(Some(socket)) => opened(socket.into()).map(Some),
        Ok(None) => Ok(None),
        Err(_) => sockets.take_unix_listener(index)?.map(|socket| opened(socket.into())).transpose(),
    }
}

fn opened(socket: OwnedFd) -> io::Result<InheritedSocket> {
    ready(&socket)?;
    if SockRef::from(&socket).domain()? == Domain::UNIX {
        let socket = std::os::unix::net::UnixListener::from(socket);
        let address = socket.local_addr()?;
        let path = address.as_pathname().map_or_else(String::new, |path| path.display().to_string());
        return Ok(InheritedSocket::Unix(socket, path));
    }
    let socket = std::net::TcpListener::from(socket);
    let address = socket.local_addr()?;
    Ok(InheritedSocket::Tcp(socket, address))
}

/// Connections instead of a listening socket are passed on with `Accept=yes`; systemd's sockets block by default.
fn ready(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    if !socket.is_listener()? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen (Accept=no is needed)"));
    }
    socket.set_nonblocking(true)
}
