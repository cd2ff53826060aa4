//! Options of listeners.

use std::path::PathBuf;

/// Where clients connect (`[listen]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// `host:port` or `unix:/path`, one listener each; port 0 lets the system choose.
    pub addresses: Vec<String>,
    /// The permissions of Unix sockets.
    pub unix_mode: u32,
    /// TLS listeners, their certificate, and client certificates (`[listen.tls]`).
    pub tls: ListenTlsOptions,
    /// Answer DENIED to clients from elsewhere when `auth.mode = "open"` and a listener is beyond loopback.
    pub protected_mode: bool,
    /// Connections the kernel may hold before we accept them (it caps this at `net.core.somaxconn`).
    pub backlog: u32,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            addresses: vec!["127.0.0.1:6380".to_owned()],
            unix_mode: 0o700,
            tls: ListenTlsOptions::default(),
            protected_mode: true,
            backlog: 1024,
        }
    }
}

/// Where clients connect with TLS, and what they are shown and asked for (`[listen.tls]`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenTlsOptions {
    /// `host:port`, one listener each; none for no TLS.
    pub addresses: Vec<String>,
    /// Our certificate, with those between it and its authority (PEM).
    pub cert: Option<PathBuf>,
    /// Its private key (PEM).
    pub key: Option<PathBuf>,
    /// The authorities of clients' certificates (PEM).
    pub client_ca: Option<PathBuf>,
    /// Whether clients show a certificate.
    pub client_auth: ClientAuth,
}

/// Whether clients show a certificate (`listen.tls.client_auth`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked.
    #[default]
    Off,
    /// Clients may present a certificate, and are refused if it is not valid.
    Optional,
    /// Clients without a certificate are refused.
    Required,
}

impl ClientAuth {
    /// The configuration values.
    pub const WORDS: [(&'static str, Self); 3] =
        [("off", Self::Off), ("optional", Self::Optional), ("required", Self::Required)];
}
