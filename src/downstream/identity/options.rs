//! Options of client logins.

use std::path::PathBuf;
use std::time::Duration;

use super::users::StaticUser;

/// Logins and rights of clients (`[auth]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthOptions {
    /// How a client gets its identity on the server.
    pub mode: AuthMode,
    /// Handling of commands that affect more than the client's own connection.
    pub admin_commands: AdminCommands,
    /// How long a verified login or an observed refusal is believed without asking the server again.
    pub cache_ttl: Duration,
    /// The file that `users` came from.
    pub users_file: Option<PathBuf>,
    /// The users (`static`).
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

    /// The configuration values; `Unset` has none.
    pub const WORDS: [(&'static str, Self); 3] =
        [("open", Self::Open), ("passthrough", Self::Passthrough), ("static", Self::Static)];
}

/// Handling of commands that affect more than the client's own connection (`auth.admin_commands`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdminCommands {
    /// They go to the server, whose ACL decides.
    #[default]
    Pass,
    /// They are answered with a clear error.
    Refuse,
}

impl AdminCommands {
    /// The configuration values.
    pub const WORDS: [(&'static str, Self); 2] = [("pass", Self::Pass), ("refuse", Self::Refuse)];
}
