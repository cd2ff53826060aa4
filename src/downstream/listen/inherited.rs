//! Listening sockets that a service manager opened and passed on at the start (`sd_listen_fds(3)`).
//!
//! It keeps them while this process is replaced: clients that connect meanwhile wait in the kernel's queue and are served by
//! the next one. And it may open ports that this process has no right to.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use listenfd::ListenFd;
use socket2::SockRef;

use crate::session::Endpoint;

/// What systemd numbers the first socket with (`SD_LISTEN_FDS_START`).
const FIRST: usize = 3;

/// What the service manager passed on is no socket to listen on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the socket passed on by the service manager as file descriptor {number}: {source}")]
pub struct InheritedError {
    /// Its file descriptor.
    pub number: usize,
    /// Why.
    pub source: io::Error,
}

/// The sockets that this process was started with.
#[derive(Default)]
pub struct InheritedSockets(Option<ListenFd>);

impl fmt::Debug for InheritedSockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InheritedSockets").field(&self.0.as_ref().map_or(0, ListenFd::len)).finish()
    }
}

impl InheritedSockets {
    /// Those of the environment, which forgets them: to be called once, before there are other threads.
    #[must_use]
    pub fn from_environment() -> Self {
        Self(Some(ListenFd::from_env()))
    }

    /// Every socket with its address.
    ///
    /// # Errors
    /// One of them is no listening stream socket.
    pub(super) fn take(self) -> Result<Vec<(InheritedSocket, Endpoint)>, InheritedError> {
        let Some(mut sockets) = self.0 else { return Ok(Vec::new()) };
        let mut taken = Vec::new();
        for index in 0..sockets.len() {
            let socket = one(&mut sockets, index);
            let number = FIRST + index;
            taken.extend(socket.map_err(|source| InheritedError { number, source })?);
        }
        Ok(taken)
    }
}

/// A socket that was passed on.
pub(super) enum InheritedSocket {
    Tcp(std::net::TcpListener, SocketAddr),
    Unix(std::os::unix::net::UnixListener),
}

fn one(sockets: &mut ListenFd, index: usize) -> io::Result<Option<(InheritedSocket, Endpoint)>> {
    match sockets.take_tcp_listener(index) {
        Ok(Some(socket)) => {
            ready(&socket)?;
            let address = socket.local_addr()?;
            Ok(Some((InheritedSocket::Tcp(socket, address), address.into())))
        }
        Ok(None) => Ok(None),
        Err(_) => {
            let Some(socket) = sockets.take_unix_listener(index)? else { return Ok(None) };
            ready(&socket)?;
            let address = socket.local_addr()?;
            let path = address.as_pathname().map_or_else(String::new, |path| path.display().to_string());
            Ok(Some((InheritedSocket::Unix(socket), Endpoint::Unix(path.into()))))
        }
    }
}

/// Connections instead of a listening socket are passed on with `Accept=yes`; systemd's sockets block by default.
fn ready(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    if !socket.is_listener()? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen (Accept=no is needed)"));
    }
    socket.set_nonblocking(true)
}
