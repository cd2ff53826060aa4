//! One connection to one server: dialled, secured, logged in.
//!
//! [`Connector::dial`] gives an [`Established`] connection with nothing pending in either direction, or a
//! [`DialError`] that names the step that failed and whose fault it is. What is then done with the connection, and
//! how many there may be, is the pool's business.

mod ask;
mod backoff;
mod capabilities;
mod connector;
mod conversation;
mod error;
mod host_port;
mod instance;
mod login;
mod options;
mod peer;
pub(crate) mod pem;
mod resolve;
mod runs;
pub mod sentinel;
mod server;
#[cfg(test)]
pub(crate) mod simulated;
mod socket;
mod stream;
mod target;
mod tcp_info;
mod tls;
pub mod topology;
mod verify;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod testing;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;

pub use ask::ask_by;
pub use backoff::Backoff;
pub use capabilities::{Capability, MissingCapabilities, Refusal};
pub use connector::{Connector, Established};
pub use error::{DialError, Phase};
pub use host_port::HostPort;
pub use instance::{Instance, Intent, Registered};
pub use login::{CredentialSource, Identity, Login};
pub use options::{
    Keepalive, NameOptions, OnLoss, Reachable, SENTINEL_PORT, Secret, SentinelOptions, SentinelService,
    TlsOptions, UpstreamOptions, UpstreamTimes,
};
pub use peer::{Peer, PeerWatch};
pub use pem::TlsSetupError;
pub use runs::Change;
pub use server::{Module, ServerInfo};
pub use socket::tune;
pub use stream::UpstreamStream;
pub use target::PreparedTarget;
pub use tcp_info::acknowledged;
pub use tls::TlsFault;
#[cfg(feature = "otlp")]
pub(crate) use tls::public_tls;
