//! What can be set about clients: where they connect, what each may cost, and who may do what.

use std::path::PathBuf;
use std::time::Duration;

use super::identity::StaticUser;
use super::subscriptions::OutputLimit;
use crate::upstream::Keepalive;

/// Where clients connect (`[listen]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// `host:port` or `unix:/path`, one listener each; port 0 lets the system choose.
    pub addresses: Vec<String>,
    /// The permissions of Unix sockets.
    pub unix_mode: u32,
    /// Where clients connect with TLS.
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
    /// They are asked, and refused if what they show is not valid; they may show none.
    Optional,
    /// Nobody gets in without.
    Required,
}

impl ClientAuth {
    /// The words that stand for the values.
    pub const WORDS: [(&'static str, Self); 3] =
        [("off", Self::Off), ("optional", Self::Optional), ("required", Self::Required)];
}

/// How much memory may be held for all clients together (`client.memory_max`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryMax {
    /// A share of the memory that there is.
    Percent(u8),
    /// Bytes; 0 for no bound.
    Size(usize),
}

/// What one client may cost and how long it may be silent (`[client]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// Clients at the same time, those that must log in when they have.
    pub max: usize,
    /// Peers at the same time that have not logged in.
    pub max_unauthenticated: usize,
    /// Clients from one address at the same time; 0 for as many as `max`.
    pub max_per_address: usize,
    /// A client that sends nothing for this long is closed; `None` leaves it to keepalive.
    pub idle_timeout: Option<Duration>,
    /// A client that must log in and has not within this time is closed.
    pub login_timeout: Duration,
    /// A client that sent half a command and nothing more for this long is closed.
    pub half_command_timeout: Duration,
    /// The largest request in bytes, as Redis's `client-query-buffer-limit`.
    pub request_limit: usize,
    /// What all clients may hold together.
    pub memory_max: MemoryMax,
    /// Commands of one client that may be outstanding before its socket is not read.
    pub pipeline_limit: usize,
    /// Unsent reply bytes above which no more of a client's requests are read.
    pub output_soft_limit: usize,
    /// Unsent reply bytes above which a client is closed.
    pub output_hard_limit: usize,
    /// How much a subscriber may leave unread.
    pub output_buffer_limit: OutputLimit,
    /// How long a client's host may leave what was sent to it unanswered. Not below [`Keepalive::total`].
    pub user_timeout: Duration,
    /// Without effect: no client that is slow to read is closed by time.
    pub user_timeout_backpressured: Option<Duration>,
    /// TCP keepalive of an idle client.
    pub keepalive: Keepalive,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            max: 10_000,
            max_unauthenticated: 1_000,
            max_per_address: 0,
            idle_timeout: None,
            login_timeout: Duration::from_secs(10),
            half_command_timeout: Duration::from_secs(60),
            request_limit: 1 << 30,
            memory_max: MemoryMax::Percent(25),
            pipeline_limit: 1024,
            output_soft_limit: 1 << 20,
            output_hard_limit: 512 << 20,
            output_buffer_limit: OutputLimit::default(),
            user_timeout: Duration::from_secs(12),
            user_timeout_backpressured: None,
            keepalive: Keepalive::default(),
        }
    }
}

/// Who a client is and what it may ask for (`[auth]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthOptions {
    /// How a client gets its identity on the server.
    pub mode: AuthMode,
    /// What happens to commands that reach beyond the client's own connection.
    pub admin_commands: AdminCommands,
    /// How long a verified login or an observed refusal is believed without asking the server again.
    pub cache_ttl: Duration,
    /// The file that `users` came from.
    pub users_file: Option<PathBuf>,
    /// Who may log in (`static`).
    pub users: Vec<StaticUser>,
}

impl Default for AuthOptions {
    fn default() -> Self {
        Self {
            mode: AuthMode::default(),
            admin_commands: AdminCommands::default(),
            cache_ttl: Duration::from_secs(60),
            users_file: None,
            users: Vec::new(),
        }
    }
}

/// How a client gets its identity on the server (`auth.mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthMode {
    /// Not written: as `Open` on loopback, as `Passthrough` elsewhere.
    #[default]
    Unset,
    /// A client without credentials uses the upstream identity.
    Open,
    /// A client gets NOAUTH until its AUTH was accepted by the server.
    Passthrough,
    /// A client gets NOAUTH until it has logged in as a user of `auth.users_file`.
    Static,
}

impl AuthMode {
    /// Whether a client has to log in; `trusted`: it came by a listener that only this host can reach.
    #[must_use]
    pub fn needs_login(self, trusted: bool) -> bool {
        match self {
            Self::Open => false,
            Self::Unset => !trusted,
            Self::Passthrough | Self::Static => true,
        }
    }

    /// The words that stand for the values; none stands for `Unset`.
    pub const WORDS: [(&'static str, Self); 3] =
        [("open", Self::Open), ("passthrough", Self::Passthrough), ("static", Self::Static)];
}

/// What happens to commands that reach beyond the client's own connection (`auth.admin_commands`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdminCommands {
    /// They go to the server, whose ACL decides.
    #[default]
    Pass,
    /// They are answered with a clear error.
    Refuse,
}

impl AdminCommands {
    /// The words that stand for the values.
    pub const WORDS: [(&'static str, Self); 2] = [("pass", Self::Pass), ("refuse", Self::Refuse)];
}
