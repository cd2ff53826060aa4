//! One end of a client's connection, as CLIENT LIST writes it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Where a client comes from, or where it came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// TCP, with TLS or without.
    Tcp(SocketAddr),
    /// A Unix socket, by its path. Both ends have the same, because a client's end has no name.
    Unix(Arc<str>),
}

impl Endpoint {
    /// The address of the host; a Unix socket has none.
    #[must_use]
    pub fn host(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip()),
            Self::Unix(_) => None,
        }
    }

    /// Whether only programs on this host are there.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.host().is_none_or(|host| host.to_canonical().is_loopback())
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        // A socket for both families, such as systemd opens, shows IPv4 peers as IPv6 addresses.
        match address.ip().to_canonical() {
            ip @ IpAddr::V4(_) => Self::Tcp(SocketAddr::new(ip, address.port())),
            IpAddr::V6(_) => Self::Tcp(address),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            // As Redis has it (`genClientAddrString` in `networking.c`).
            Self::Unix(path) => write!(f, "{path}:0"),
        }
    }
}
