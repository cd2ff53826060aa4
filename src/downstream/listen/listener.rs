//! Opening listeners: TCP, TCP with TLS, Unix sockets.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::lookup_host;

use super::inherited::{InheritedError, InheritedSocket, InheritedSockets};
use super::options::ListenOptions;
use super::tls::ServerTls;
use crate::session::Endpoint;

/// What stands before the path of a Unix socket in `listen.addresses`.
pub const UNIX: &str = "unix:";

/// One open listener.
#[derive(Debug)]
pub struct Listener {
    pub(in crate::downstream) socket: ListenSocket,
    pub(in crate::downstream) address: Endpoint,
}

/// By which kind of socket clients come.
#[derive(Debug)]
pub(in crate::downstream) enum ListenSocket {
    Tcp(std::net::TcpListener),
    Tls(std::net::TcpListener, Arc<ServerTls>),
    /// With its file, where that is ours.
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
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}{}", hint(.source))]
    Bind {
        /// The resolved address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The Unix socket cannot be had.
    #[error("cannot listen on unix:{}: {source}", path.display())]
    BindUnix {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What the service manager passed on is no socket to listen on.
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
}

/// Opens every configured listener, or takes the socket that was passed on for it: one with an address of
/// `listen.tls.addresses` is for clients with TLS; the others stand in for `listen.addresses`, all of them.
///
/// # Errors
/// Names the address that cannot be had.
pub async fn listen(
    options: &ListenOptions,
    tls: Option<&Arc<ServerTls>>,
    inherited: InheritedSockets,
) -> Result<Vec<Listener>, ListenError> {
    let mut passed_on = inherited.take()?;
    let mut secured = Vec::new();
    for (address, tls) in options.tls.addresses.iter().filter_map(|address| tls.map(|tls| (address, tls))) {
        for address in resolve(address).await? {
            let (socket, bound) = match take_passed_on(&mut passed_on, address) {
                Some(found) => found,
                None => bind(address, options.backlog)?,
            };
            secured
                .push(Listener { socket: ListenSocket::Tls(socket, Arc::clone(tls)), address: bound.into() });
        }
    }
    let mut listeners = if passed_on.is_empty() {
        open_plain(options).await?
    } else {
        let taken = passed_on.into_iter();
        taken.map(|(socket, address)| Listener { socket: plain(socket), address }).collect()
    };
    listeners.extend(secured);
    Ok(listeners)
}

async fn open_plain(options: &ListenOptions) -> Result<Vec<Listener>, ListenError> {
    let mut listeners = Vec::new();
    for address in &options.addresses {
        if let Some(path) = address.strip_prefix(UNIX) {
            let opened = open_unix(Path::new(path), options.unix_mode, options.backlog);
            let socket = opened.map_err(|source| ListenError::BindUnix { path: path.into(), source })?;
            listeners.push(Listener { socket, address: Endpoint::Unix(path.into()) });
        } else {
            for address in resolve(address).await? {
                let (socket, bound) = bind(address, options.backlog)?;
                listeners.push(Listener { socket: ListenSocket::Tcp(socket), address: bound.into() });
            }
        }
    }
    Ok(listeners)
}

/// For clients without TLS. The file of a Unix socket that was passed on is not ours.
fn plain(socket: InheritedSocket) -> ListenSocket {
    match socket {
        InheritedSocket::Tcp(socket, _) => ListenSocket::Tcp(socket),
        InheritedSocket::Unix(socket) => ListenSocket::Unix(socket, None),
    }
}

/// The socket among `passed_on` that is bound to `address`.
fn take_passed_on(
    passed_on: &mut Vec<(InheritedSocket, Endpoint)>,
    address: SocketAddr,
) -> Option<(std::net::TcpListener, SocketAddr)> {
    let at = passed_on.iter().position(|(socket, _)| match socket {
        InheritedSocket::Tcp(_, bound) => *bound == address,
        InheritedSocket::Unix(_) => false,
    })?;
    match passed_on.remove(at).0 {
        InheritedSocket::Tcp(socket, bound) => Some((socket, bound)),
        InheritedSocket::Unix(_) => None,
    }
}

/// Every address that a name stands for.
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

/// Binds a Unix socket. Permissions are set before anybody can connect.
fn open_unix(path: &Path, mode: u32, backlog: u32) -> io::Result<ListenSocket> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::of(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(ListenSocket::Unix(socket.into(), Some(file)))
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
pub(in crate::downstream) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let found = std::fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), inode: (found.dev(), found.ino()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let same =
            std::fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.inode);
        if same && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket's file stays behind");
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
        // Somebody else took the place: the end of this listener leaves it alone.
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
