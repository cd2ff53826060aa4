//! Why a session got no upstream connection, in words for its client.

use std::fmt;

/// No upstream connection. The texts are whole errors without the leading `-`, and name no address and no credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The cap is reached and nothing came free in time.
    Full(String),
    /// The server cannot be reached, or not in time.
    Down(String),
    /// The server refused the login (WRONGPASS, NOAUTH, NOPERM …): its own words.
    LoginRefused(String),
    /// The server refused the database: its own words.
    SelectRefused(String),
    /// The proxy is stopping.
    Stopping,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(text) => write!(f, "ERR {text}"),
            Self::Down(text) | Self::LoginRefused(text) | Self::SelectRefused(text) => f.write_str(text),
            Self::Stopping => f.write_str("ERR redbouncer: stopping"),
        }
    }
}
