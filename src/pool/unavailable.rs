//! Why a session got no upstream connection.

use std::fmt;

use super::HumanDuration;
use crate::resp::ErrorCode;
use crate::upstream::DialError;

/// No upstream connection. The texts are whole errors without the leading `-`, and name no address and no credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The cap is reached, or as many connections are being opened as may be, and nothing came free in time.
    Full(String),
    /// There is no server: it cannot be reached, is silent, or is none that we can talk to.
    Down(String),
    /// The server is there and serves nobody just now (LOADING, BUSY …): its own words.
    Busy(String),
    /// The server refused the login (WRONGPASS, NOPERM …): its own words.
    LoginRefused(String),
    /// The server wants a login, and nobody has given us one.
    NoAuth,
    /// The server refused the database, READONLY or CLIENT TRACKING: its own words.
    SelectRefused(String),
    /// The command was written, and no answer came.
    Unanswered,
    /// The proxy is stopping.
    Stopping,
}

impl Unavailable {
    /// What a dial that failed means to those who waited for it.
    #[must_use]
    pub fn of(error: &DialError) -> Self {
        let text = error.public_text();
        match error {
            // The server speaks of our HELLO there, which the client knows nothing of.
            DialError::Login { .. } if ErrorCode::of_text(&text) == ErrorCode::NoAuth => Self::NoAuth,
            DialError::Login { .. } if error.refuses_identity() => Self::LoginRefused(text),
            DialError::Loading { .. } => Self::Busy(text),
            DialError::SelectRefused { .. }
            | DialError::ReadOnlyRefused { .. }
            | DialError::TrackingRefused { .. } => {
                if error.retryable() {
                    Self::Busy(text)
                } else {
                    Self::SelectRefused(text)
                }
            }
            // Where we come from is not the client's doing.
            DialError::NoMaster { .. }
            | DialError::Demoted { .. }
            | DialError::NoSlots { .. }
            | DialError::Login { .. }
            | DialError::Resolve { .. }
            | DialError::Refused { .. }
            | DialError::Timeout { .. }
            | DialError::Tls { .. }
            | DialError::SpeaksTls { .. }
            | DialError::NoResp3 { .. }
            | DialError::MaxClients { .. }
            | DialError::Closed { .. }
            | DialError::Protocol { .. }
            | DialError::Io { .. } => Self::Down(text),
        }
    }

    /// The dial has not come to an end in time.
    #[must_use]
    pub fn still_connecting(waited: std::time::Duration) -> Self {
        Self::Down(format!(
            "ERR redbouncer: no upstream connection within {}: still connecting",
            HumanDuration(waited)
        ))
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(text) => write!(f, "ERR {text}"),
            Self::Down(text) | Self::Busy(text) | Self::LoginRefused(text) | Self::SelectRefused(text) => {
                f.write_str(text)
            }
            Self::NoAuth => f.write_str("NOAUTH Authentication required."),
            Self::Unanswered => f.write_str("ERR redbouncer: no answer on the control connection"),
            Self::Stopping => f.write_str("ERR redbouncer: shutting down"),
        }
    }
}
