//! The messages between the two processes: one JSON object each.
//!
//! Unknown fields are ignored; [`Greeting::requires`] names features that a process must know.

use serde::{Deserialize, Serialize};

use super::error::TakeoverError;
use crate::downstream::{Accepts, ClientDescription, ListenerRole};

/// The version of the protocol. Another one is refused.
pub const VERSION: u32 = 1;

/// The features of this program. A process may require any of them from the other one.
pub const CAPABILITIES: [&str; 8] = [
    "sockets",
    "permits",
    "clients",
    SUBSCRIBERS,
    BLOCKED,
    TRACKING,
    TRACKING_SUBSCRIBERS,
    TRACKING_PREFIXES,
];

/// Required features: without these no takeover takes place.
const REQUIRED: [&str; 3] = ["sockets", "permits", "clients"];

/// It takes over subscribers. If the other process cannot, they stay.
const SUBSCRIBERS: &str = "subscribers";
/// It takes over blocking calls.
const BLOCKED: &str = "blocked";
/// It takes over clients with client-side caching.
const TRACKING: &str = "tracking";
/// It takes over subscribers with client-side caching: they are invalidated when they are passed, not when they are
/// announced.
const TRACKING_SUBSCRIBERS: &str = "tracking_subscribers";
/// It takes over clients with client-side caching by prefix.
const TRACKING_PREFIXES: &str = "tracking_prefixes";

/// One of the two processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// The version of the protocol.
    pub version: u32,
    /// Its features.
    pub capabilities: Vec<String>,
    /// The features that it requires of the other process.
    pub requires: Vec<String>,
    /// The version of the program.
    pub program: String,
    /// Its process id.
    pub process: u32,
    /// The settings that must be equal for clients to move: the server, and the mode of logins.
    pub terms: String,
}

impl Greeting {
    /// Our own.
    #[must_use]
    pub fn ours(terms: &str) -> Self {
        Self {
            version: VERSION,
            requires: REQUIRED.map(str::to_owned).into(),
            capabilities: CAPABILITIES.map(str::to_owned).into(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            process: std::process::id(),
            terms: terms.to_owned(),
        }
    }

    /// The clients that it takes over besides those between two commands.
    #[must_use]
    pub fn accepts(&self) -> Accepts {
        let can = |what: &str| self.capabilities.iter().any(|capability| capability == what);
        Accepts {
            subscribers: can(SUBSCRIBERS),
            blocked: can(BLOCKED),
            tracking: can(TRACKING),
            tracking_subscribers: can(TRACKING_SUBSCRIBERS),
            tracking_prefixes: can(TRACKING_PREFIXES),
        }
    }

    /// Whether this program can continue with the other one.
    ///
    /// # Errors
    /// It has another protocol version, or requires a feature that this program lacks.
    pub fn check(&self) -> Result<(), TakeoverError> {
        if self.version != VERSION {
            return Err(TakeoverError::Incompatible(format!(
                "redbouncer {} speaks version {} of the takeover protocol, redbouncer {} speaks version {VERSION}",
                self.program,
                self.version,
                env!("CARGO_PKG_VERSION"),
            )));
        }
        match self.requires.iter().find(|needed| !CAPABILITIES.contains(&needed.as_str())) {
            None => Ok(()),
            Some(unknown) => Err(TakeoverError::Incompatible(format!(
                "redbouncer {} requires \"{unknown}\", which redbouncer {} cannot do",
                self.program,
                env!("CARGO_PKG_VERSION"),
            ))),
        }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum Message {
    /// New to old: may I?
    Hello(Greeting),
    /// Old to new: no.
    Refused {
        /// The reason.
        reason: String,
    },
    /// Old to new: yes, and from now on I hold no more upstream connections than this.
    Offer {
        /// The sender.
        greeting: Greeting,
        /// Permits for upstream connections that the old process keeps.
        ceiling: usize,
        /// No client of the old process has this id or one above it.
        next_client: u64,
    },
    /// Old to new: from now on I hold no more than this.
    Ceiling {
        /// Permits for upstream connections that the old process keeps.
        ceiling: usize,
    },
    /// New to old: my configuration is good and the server lets me in; give me the listening sockets.
    Take,
    /// Old to new, with a file descriptor: one of them.
    Socket {
        /// The clients of the listener.
        role: Role,
        /// It was passed on by a service manager.
        from_service_manager: bool,
    },
    /// Old to new: these were all.
    AllSockets,
    /// New to old: I accept from them.
    Accepting,
    /// Old to new: I do not any more.
    Released,
    /// New to old: the new process serves without the old one. This step cannot be undone.
    Confirm,
    /// Old to new, with a file descriptor: take over this client.
    Client(Box<ClientDescription>),
    /// Old to new, with a file descriptor: prepare to take over this client, which the old process still serves.
    Announce(Box<ClientDescription>),
    /// Old to new: take over this announced client.
    Give {
        /// CLIENT ID.
        client: u64,
        /// The bytes that it has sent and that were not executed.
        input: Vec<u8>,
        /// It has received an invalidation for each key that it may have cached.
        #[serde(default)]
        has_forgotten: bool,
    },
    /// Old to new: the old process keeps this announced client.
    Keep {
        /// CLIENT ID.
        client: u64,
    },
    /// New to old: the new process cannot take over this client. The message may be too late.
    Decline {
        /// CLIENT ID.
        client: u64,
    },
}

/// [`ListenerRole`] as it is written in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Clients, without TLS.
    Plain,
    /// Clients with TLS.
    Tls,
    /// Operators.
    Admin,
    /// The next process that takes over.
    Takeover,
}

impl From<ListenerRole> for Role {
    fn from(role: ListenerRole) -> Self {
        match role {
            ListenerRole::Plain => Self::Plain,
            ListenerRole::Tls => Self::Tls,
            ListenerRole::Admin => Self::Admin,
            ListenerRole::Takeover => Self::Takeover,
        }
    }
}

impl From<Role> for ListenerRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Plain => Self::Plain,
            Role::Tls => Self::Tls,
            Role::Admin => Self::Admin,
            Role::Takeover => Self::Takeover,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn another_version_and_an_unknown_requirement_are_refused_with_their_names() {
        Greeting::ours("").check().unwrap();
        let newer = Greeting { version: VERSION + 1, program: "9.9.9".to_owned(), ..Greeting::ours("") };
        let text = newer.check().unwrap_err().to_string();
        assert!(text.contains("redbouncer 9.9.9 speaks version 2"), "{text}");
        let demanding =
            Greeting { requires: vec!["sockets".into(), "telepathy".into()], ..Greeting::ours("") };
        let text = demanding.check().unwrap_err().to_string();
        assert!(text.contains("\"telepathy\""), "{text}");
    }

    #[test]
    fn what_an_older_version_cannot_do_is_not_required_and_not_sent_to_it() {
        let older = Greeting {
            capabilities: REQUIRED.map(str::to_owned).into(),
            requires: REQUIRED.map(str::to_owned).into(),
            ..Greeting::ours("")
        };
        older.check().unwrap();
        let (theirs, ours) = (older.accepts(), Greeting::ours("").accepts());
        assert_eq!(theirs, Accepts::default());
        let all = Accepts {
            subscribers: true,
            blocked: true,
            tracking: true,
            tracking_subscribers: true,
            tracking_prefixes: true,
        };
        assert_eq!(ours, all);
        assert!(Greeting::ours("").requires.iter().all(|needed| older.capabilities.contains(needed)));
    }

    #[test]
    fn what_a_later_version_adds_is_ignored() {
        let text = r#"{"message":"ceiling","ceiling":3,"colour":"green"}"#;
        assert_eq!(serde_json::from_str::<Message>(text).unwrap(), Message::Ceiling { ceiling: 3 });
    }
}
