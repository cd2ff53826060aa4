//! Where a scenario plays: against the server itself, or through the proxy before that server.

use std::net::SocketAddr;

use super::client::Client;
use super::proxy::Proxy;
use super::server::Server;

pub(crate) struct Stage {
    // First, so that it ends first: a proxy whose server is dropped before it would log a loss that is none.
    proxy: Option<Proxy>,
    pub(crate) server: Server,
}

impl Stage {
    /// The clients connect to the server.
    pub(crate) fn direct() -> Self {
        Self::before_none(Server::start())
    }

    /// The clients connect to a proxy with default settings.
    pub(crate) fn proxied() -> Self {
        Self::proxied_with(&[])
    }

    /// The clients connect to a proxy with these `section.key=value` settings.
    pub(crate) fn proxied_with(settings: &[&str]) -> Self {
        Self::before(Server::start(), settings)
    }

    /// The clients connect to a server that wants the password `sesame`.
    pub(crate) fn direct_secured() -> Self {
        Self::before_none(Server::start_with(&["--requirepass", "sesame"]))
    }

    /// The clients connect to a proxy that passes their logins through to a server that wants the password `sesame`.
    pub(crate) fn proxied_secured() -> Self {
        Self::before(Server::start_with(&["--requirepass", "sesame"]), &["auth.mode=passthrough"])
    }

    /// The clients connect to this server.
    pub(crate) fn before_none(server: Server) -> Self {
        Self { server, proxy: None }
    }

    /// A proxy before a server that was started with options of its own.
    pub(crate) fn before(server: Server, settings: &[&str]) -> Self {
        let proxy = Some(Proxy::start(&server, settings));
        Self { server, proxy }
    }

    /// Where clients connect to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.proxy.as_ref().map_or_else(|| self.server.address(), Proxy::address)
    }

    #[track_caller]
    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    /// A client that has switched to RESP3.
    #[track_caller]
    pub(crate) fn connect_resp3(&self) -> Client {
        let mut client = self.connect();
        let hello = client.call("HELLO 3");
        assert!(!hello.is_error(), "{hello:?}");
        client
    }

    pub(crate) fn is_proxied(&self) -> bool {
        self.proxy.is_some()
    }

    #[track_caller]
    pub(crate) fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("a proxied stage")
    }

    pub(crate) fn into_parts(self) -> (Server, Proxy) {
        (self.server, self.proxy.expect("a proxied stage"))
    }
}
