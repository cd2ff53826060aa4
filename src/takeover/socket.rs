//! The Unix socket on which the running process accepts a new one. It gives access to the clients' connections, so only
//! our own user and root may use it: by the permissions of the file, and by the peer's credentials from the kernel.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::process::geteuid;
use tokio::net::{UnixListener, UnixStream};

use super::error::TakeoverError;
use super::link::Link;
use crate::downstream::{SocketFile, bind_unix};

/// Only our own user, and root, may connect.
const MODE: u32 = 0o600;
/// One takeover at a time.
const BACKLOG: u32 = 4;

/// The open socket.
#[derive(Debug)]
pub struct TakeoverSocket {
    listener: UnixListener,
    file: SocketFile,
}

impl TakeoverSocket {
    /// Opens the socket at `path`. Must run on a tokio runtime.
    ///
    /// # Errors
    /// Another process listens there, or the operating system refuses.
    pub fn bind(path: &Path) -> Result<Self, TakeoverError> {
        let open = || {
            let (listener, file) = bind_unix(path, MODE, BACKLOG)?;
            io::Result::Ok(Self { listener: UnixListener::from_std(listener)?, file })
        };
        open().map_err(|source| TakeoverError::Socket { path: path.to_owned(), source })
    }

    /// Goes on with the socket of the process before this one, which is that of the file `path`.
    ///
    /// # Errors
    /// The file is gone, or the operating system refuses.
    pub fn take(socket: OwnedFd, path: &Path) -> Result<Self, TakeoverError> {
        let open = || {
            let listener = std::os::unix::net::UnixListener::from(socket);
            listener.set_nonblocking(true)?;
            io::Result::Ok(Self {
                listener: UnixListener::from_std(listener)?,
                file: SocketFile::of_another(path)?,
            })
        };
        open().map_err(|source| TakeoverError::Socket { path: path.to_owned(), source })
    }

    /// Whether `socket` is bound to `path`.
    #[must_use]
    pub fn is_bound_to(socket: &OwnedFd, path: &Path) -> bool {
        let address = socket2::SockRef::from(socket).local_addr();
        address.is_ok_and(|address| address.as_pathname() == Some(path))
    }

    /// The next process that wants to take over. Others are refused, with a line in the log.
    pub async fn accept(&self) -> Link {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => match check(&stream) {
                    Ok(()) => return Link::new(stream),
                    Err(error) => tracing::warn!(%error, "takeover refused"),
                },
                Err(error) => {
                    tracing::warn!(%error, "takeover.socket does not accept");
                    tokio::time::sleep(super::STEP / 10).await;
                }
            }
        }
    }

    /// The socket once more, for another process.
    ///
    /// # Errors
    /// No file descriptors are left.
    pub fn hand_over(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    /// Whether its file is removed with it.
    pub fn own_file(&self, ours: bool) {
        self.file.own(ours);
    }
}

/// Connects to the process that listens at `path`. `None`: there is none.
///
/// # Errors
/// It cannot be reached, or is not of our own user.
pub async fn connect(path: &Path) -> Result<Option<Link>, TakeoverError> {
    match UnixStream::connect(path).await {
        Ok(stream) => {
            check(&stream)?;
            Ok(Some(Link::new(stream)))
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        Err(source) => Err(TakeoverError::Socket { path: path.to_owned(), source }),
    }
}

fn check(stream: &UnixStream) -> Result<(), TakeoverError> {
    let uid = stream.peer_cred()?.uid();
    let expected = geteuid().as_raw();
    if uid == expected || uid == 0 { Ok(()) } else { Err(TakeoverError::ForeignUser { uid, expected }) }
}
