//! Opening listeners: TCP, TCP with TLS, Unix sockets.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::lookup_host;

use super::inherited::{
    HandedSocket, Inherited, InheritedError, InheritedSocket, InheritedSockets, ListenerRole, Origin,
};
use super::options::ListenOptions;
use super::tls::ServerTls;
use crate::session::Endpoint;

/// The prefix of the path of a Unix socket in `listen.addresses`.
pub const UNIX: &str = "unix:";

/// One open listener.
#[derive(Debug)]
pub struct Listener {
    pub(in crate::downstream) socket: ListenSocket,
    pub(in crate::downstream) address: Endpoint,
    from_service_manager: bool,
}

/// By which kind of socket clients come.
#[derive(Debug)]
pub(in crate::downstream) enum ListenSocket {
    Tcp(std::net::TcpListener),
    Tls(std::net::TcpListener, Arc<ServerTls>),
    /// With its file, if we own it.
    Unix(std::os::unix::net::UnixListener, Option<SocketFile>),
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
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}{}", hint(.source))]
    Bind {
        /// The resolved address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The Unix socket cannot be bound.
    #[error("cannot listen on unix:{}: {source}", path.display())]
    BindUnix {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The service manager passed a file descriptor that is not a listening socket.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " (another program, perhaps another redbouncer, listens there)",
        io::ErrorKind::PermissionDenied => " (ports below 1024 need a privilege)",
        _ => "",
    }
}

impl Listener {
    /// The bound address, with the real port where 0 was configured; for a Unix socket `unix:/path`.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.address {
            Endpoint::Tcp(address) => address.to_string(),
            Endpoint::Unix(path) => format!("{UNIX}{path}"),
        }
    }

    /// Whether clients speak TLS here.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        match &self.socket {
            ListenSocket::Tls(..) => true,
            ListenSocket::Tcp(_) | ListenSocket::Unix(..) => false,
        }
    }

    /// The same socket once more, to accept from. The file of a Unix socket stays with the first one.
    ///
    /// # Errors
    /// No file descriptors are left.
    pub fn duplicate(&self) -> io::Result<Self> {
        let socket = match &self.socket {
            ListenSocket::Tcp(socket) => ListenSocket::Tcp(socket.try_clone()?),
            ListenSocket::Tls(socket, tls) => ListenSocket::Tls(socket.try_clone()?, Arc::clone(tls)),
            ListenSocket::Unix(socket, _) => ListenSocket::Unix(socket.try_clone()?, None),
        };
        Ok(Self { socket, address: self.address.clone(), from_service_manager: self.from_service_manager })
    }

    /// The same socket once more, for another process.
    ///
    /// # Errors
    /// No file descriptors are left.
    pub fn hand_over(&self) -> io::Result<HandedSocket> {
        let (role, socket) = match &self.socket {
            ListenSocket::Tcp(socket) => (ListenerRole::Plain, OwnedFd::from(socket.try_clone()?)),
            ListenSocket::Tls(socket, _) => (ListenerRole::Tls, OwnedFd::from(socket.try_clone()?)),
            ListenSocket::Unix(socket, _) => (ListenerRole::Plain, OwnedFd::from(socket.try_clone()?)),
        };
        Ok(HandedSocket { role, from_service_manager: self.from_service_manager, socket })
    }

    /// Whether the file of a Unix socket is removed with it.
    pub fn own_file(&self, ours: bool) {
        if let ListenSocket::Unix(_, Some(file)) = &self.socket {
            file.own(ours);
        }
    }
}

/// Opens every configured listener, or takes the socket that another process had for it. Of those that a service manager passed
/// on, one with an address of `listen.tls.addresses` is for clients with TLS; the others stand in for `listen.addresses`, all of
/// them. Those of the proxy that this one takes over from stand in for their own addresses, as far as they are configured.
///
/// # Errors
/// Names the address that cannot be had.
pub async fn listen(
    options: &ListenOptions,
    tls: Option<&Arc<ServerTls>>,
    inherited: InheritedSockets,
) -> Result<Vec<Listener>, ListenError> {
    let mut inherited = inherited.take()?;
    let mut secured = Vec::new();
    for (address, tls) in options.tls.addresses.iter().filter_map(|address| tls.map(|tls| (address, tls))) {
        for address in resolve(address).await? {
            let had = take_tcp(&mut inherited, ListenerRole::Tls, address);
            let from_service_manager = had.as_ref().is_some_and(|had| had.1 == Origin::ServiceManager);
            let (socket, bound) = match had {
                Some((socket, _)) => socket,
                None => bind(address, options.backlog)?,
            };
            let socket = ListenSocket::Tls(socket, Arc::clone(tls));
            secured.push(Listener { socket, address: bound.into(), from_service_manager });
        }
    }
    let mut listeners = if inherited.iter().any(|socket| socket.origin == Origin::ServiceManager) {
        let passed_on = inherited.into_iter().filter(|socket| socket.origin == Origin::ServiceManager);
        passed_on.map(passed_on_for_plain).collect()
    } else {
        open_plain(options, inherited).await?
    };
    listeners.extend(secured);
    Ok(listeners)
}

async fn open_plain(
    options: &ListenOptions,
    mut inherited: Vec<Inherited>,
) -> Result<Vec<Listener>, ListenError> {
    let mut listeners = Vec::new();
    let mut had = |socket, address| listeners.push(Listener { socket, address, from_service_manager: false });
    for address in &options.addresses {
        if let Some(path) = address.strip_prefix(UNIX) {
            let opened = match take_unix(&mut inherited, path) {
                Some(socket) => {
                    SocketFile::of_another(Path::new(path)).map(|file| ListenSocket::Unix(socket, Some(file)))
                }
                None => open_unix(Path::new(path), options.unix_mode, options.backlog),
            };
            let socket = opened.map_err(|source| ListenError::BindUnix { path: path.into(), source })?;
            had(socket, Endpoint::Unix(path.into()));
        } else {
            for address in resolve(address).await? {
                let (socket, bound) = match take_tcp(&mut inherited, ListenerRole::Plain, address) {
                    Some((socket, _)) => socket,
                    None => bind(address, options.backlog)?,
                };
                had(ListenSocket::Tcp(socket), bound.into());
            }
        }
    }
    Ok(listeners)
}

/// For clients without TLS. The file of a Unix socket that a service manager passed on is not ours.
fn passed_on_for_plain(inherited: Inherited) -> Listener {
    let address = inherited.socket.endpoint();
    let socket = match inherited.socket {
        InheritedSocket::Tcp(socket, _) => ListenSocket::Tcp(socket),
        InheritedSocket::Unix(socket, _) => ListenSocket::Unix(socket, None),
    };
    Listener { socket, address, from_service_manager: true }
}

type TcpSocket = (std::net::TcpListener, SocketAddr);

/// The socket for `address` among `inherited`.
fn take_tcp(
    inherited: &mut Vec<Inherited>,
    role: ListenerRole,
    address: SocketAddr,
) -> Option<(TcpSocket, Origin)> {
    let at = inherited.iter().position(|socket| socket.is_for(role, address))?;
    let Inherited { socket, origin } = inherited.remove(at);
    match socket {
        InheritedSocket::Tcp(socket, bound) => Some(((socket, bound), origin)),
        InheritedSocket::Unix(..) => None,
    }
}

/// The Unix socket of the file `path` among `inherited`.
fn take_unix(inherited: &mut Vec<Inherited>, path: &str) -> Option<std::os::unix::net::UnixListener> {
    let at = inherited.iter().position(
        |inherited| matches!(&inherited.socket, InheritedSocket::Unix(_, bound) if bound == path),
    )?;
    match inherited.remove(at).socket {
        InheritedSocket::Unix(socket, _) => Some(socket),
        InheritedSocket::Tcp(..) => None,
    }
}

/// All addresses of a name.
async fn resolve(name: &str) -> Result<Vec<SocketAddr>, ListenError> {
    let resolved = lookup_host(name).await;
    Ok(resolved.map_err(|source| ListenError::Resolve { address: name.to_owned(), source })?.collect())
}

fn bind(address: SocketAddr, backlog: u32) -> Result<(std::net::TcpListener, SocketAddr), ListenError> {
    open(address, backlog).map_err(|source| ListenError::Bind { address, source })
}

fn open(address: SocketAddr, backlog: u32) -> io::Result<(std::net::TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the connections of the process before it.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    let socket = std::net::TcpListener::from(socket);
    let address = socket.local_addr()?;
    Ok((socket, address))
}

fn open_unix(path: &Path, mode: u32, backlog: u32) -> io::Result<ListenSocket> {
    let (socket, file) = bind_unix(path, mode, backlog)?;
    Ok(ListenSocket::Unix(socket, Some(file)))
}

/// Binds a Unix socket. Permissions are set before anybody can connect.
///
/// # Errors
/// Another program listens there, or the operating system refuses.
pub fn bind_unix(
    path: &Path,
    mode: u32,
    backlog: u32,
) -> io::Result<(std::os::unix::net::UnixListener, SocketFile)> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::of(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok((socket.into(), file))
}

/// A socket file that a dead process left behind is removed; one that is listened to, or any other file, is not ours
/// to touch.
fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let in_use = |text| Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    if !found.file_type().is_socket() {
        return in_use("a file that is no socket is there");
    }
    match UnixStream::connect(path) {
        Ok(_) => in_use("another program, perhaps another redbouncer, listens there"),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "the socket of a process that has ended is removed");
            std::fs::remove_file(path)
        }
        Err(error) => Err(error),
    }
}

/// The file of a Unix socket, removed with its listener, unless another process has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
    is_ours: Cell<bool>,
}

impl SocketFile {
    /// The file that is at `path` now. It is not removed before [`Self::own`].
    ///
    /// # Errors
    /// There is none.
    pub fn of_another(path: &Path) -> io::Result<Self> {
        let file = Self::of(path)?;
        file.own(false);
        Ok(file)
    }

    fn of(path: &Path) -> io::Result<Self> {
        let found = std::fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), inode: (found.dev(), found.ino()), is_ours: Cell::new(true) })
    }

    /// Whether it is removed with this.
    pub fn own(&self, ours: bool) {
        self.is_ours.set(ours);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let same = self.is_ours.get()
            && std::fs::symlink_metadata(&self.path)
                .is_ok_and(|found| (found.dev(), found.ino()) == self.inode);
        if same && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn open_at(path: &Path) -> io::Result<ListenSocket> {
        open_unix(path, 0o600, 16)
    }

    #[test]
    fn a_socket_is_there_with_its_permissions_as_long_as_it_is_listened_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("redis.sock");
        let listener = open_at(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        let second = open_at(&path).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse, "{second}");
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_process_left_is_replaced_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("redis.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "nobody removed it");
        let listener = open_at(&path).unwrap();
        // Another process owns the file now, so this listener does not remove it.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        drop(listener);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        assert!(open_at(&path).unwrap_err().to_string().contains("no socket"));
    }

    #[test]
    fn a_path_too_long_for_the_kernel_is_an_error() {
        assert!(open_at(Path::new(&format!("/tmp/{}", "x".repeat(200)))).is_err());
    }
}
