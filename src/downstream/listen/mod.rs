//! How clients come in: listening sockets, the accept loop, TLS and its handshakes.

mod accept;
mod handshake;
mod inherited;
mod listener;
mod options;
mod tls;

pub use accept::{AcceptOptions, AcceptTerms};
pub(in crate::downstream) use accept::{TOO_MANY, TOO_MANY_HERE};
pub use inherited::{HandedSocket, InheritedSockets, ListenerRole};
pub use listener::{ListenError, Listener, SocketFile, UNIX, bind_unix, listen};
pub use options::{ClientAuth, ListenOptions, ListenTlsOptions};
pub use tls::{PreparedTls, ServerTls};
