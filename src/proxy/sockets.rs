//! Every listening socket of the process: opened, or taken over.

use std::net::SocketAddr;
use std::sync::Arc;

use super::doors::Doors;
use super::error::StartError;
use super::predecessor::{Predecessor, open_admin, open_takeover};
use crate::admin;
use crate::config::Config;
use crate::downstream::{AcceptOptions, InheritedSockets, Listener, ServerTls, listen};
use crate::pool::Shared;
use crate::takeover::TakeoverSocket;

/// Every listening socket, not accepted from yet.
pub(super) struct Sockets {
    listeners: Vec<Listener>,
    admin: Option<admin::Server>,
    takeover: Option<TakeoverSocket>,
}

impl Sockets {
    /// Opens those that are configured and not among `inherited`.
    pub(super) async fn open(
        config: &Config,
        tls: Option<&Arc<ServerTls>>,
        mut inherited: InheritedSockets,
    ) -> Result<Self, StartError> {
        let admin = open_admin(&config.admin, &mut inherited).await?;
        let takeover = open_takeover(config.takeover.socket.as_deref(), &mut inherited)?;
        let listeners = listen(&config.listen, tls, inherited).await?;
        Ok(Self { listeners, admin, takeover })
    }

    /// Takes those of the process before this one, once the server has let this one in, and opens the others.
    pub(super) async fn take(
        predecessor: &mut Predecessor,
        config: &Config,
        tls: Option<&Arc<ServerTls>>,
        shared: &Shared,
    ) -> Result<Self, StartError> {
        predecessor.await_server(shared).await?;
        let inherited = predecessor.take_sockets(&shared.budget).await?;
        Self::open(config, tls, inherited).await
    }

    /// The bound addresses for clients, and whether with TLS.
    pub(super) fn addresses(&self) -> Vec<(String, bool)> {
        self.listeners.iter().map(|listener| (listener.address(), listener.is_tls())).collect()
    }

    pub(super) fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(admin::Server::address)
    }

    pub(super) fn into_doors(self, door: AcceptOptions) -> Doors {
        Doors::new(self.listeners, self.admin, self.takeover, door)
    }
}
