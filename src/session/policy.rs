//! What a client may ask for, beyond what the server's own ACL decides.
//!
//! Rights are not the server's categories: those are for the ACL of the user we log in as. They are the ways in which a
//! command costs more than its place on a lane, so that an operator can give a connection of its own to some users only.

use std::fmt;

use crate::command::{Asked, Class};

use super::Session;

/// One kind of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Everything that only reads or changes data, scripts included.
    Data,
    /// Calls that may wait for an element: BLPOP, XREAD BLOCK and their kin.
    Blocking,
    /// MULTI, EXEC, DISCARD, WATCH, UNWATCH.
    Transactions,
    /// Subscribing and publishing.
    PubSub,
    /// Client-side caching and what else marks a connection: CLIENT TRACKING, CACHING, NO-TOUCH.
    Tracking,
    /// MONITOR.
    Monitor,
    /// WAIT and WAITAOF.
    Wait,
    /// What reaches beyond the own connection (`policy` in `redbouncer commands`), CLIENT LIST and PROXY.
    Admin,
    /// Commands that are in no table of ours: of modules, or newer than we are.
    Other,
}

impl Right {
    /// The words that stand for the rights.
    pub const WORDS: [(&'static str, Self); 9] = [
        ("data", Self::Data),
        ("blocking", Self::Blocking),
        ("transactions", Self::Transactions),
        ("pubsub", Self::PubSub),
        ("tracking", Self::Tracking),
        ("monitor", Self::Monitor),
        ("wait", Self::Wait),
        ("admin", Self::Admin),
        ("other", Self::Other),
    ];

    /// The right that a command needs. `None`: it is only about the client itself.
    fn needed(asked: &Asked) -> Option<Self> {
        match asked.class {
            Class::Monitor => Some(Self::Monitor),
            _ if asked.policy => Some(Self::Admin),
            Class::Auth
            | Class::Hello
            | Class::Select
            | Class::Quit
            | Class::Reset
            | Class::ClientSetName
            | Class::ClientGetName
            | Class::ClientSetInfo
            | Class::ClientId
            | Class::ClientInfo
            | Class::ClientReply
            | Class::ClientNoEvict
            | Class::ClientTrackingInfo
            | Class::ClientGetRedir
            | Class::ClientHelp
            | Class::ClientCapa
            | Class::ClientImportSource
            | Class::ClientUnknown
            | Class::Ping
            | Class::ReadOnly
            | Class::ReadWrite
            | Class::Asking
            | Class::Refused(_) => None,
            Class::Pass | Class::PubSub => Some(Self::Data),
            Class::Blocking(_) => Some(Self::Blocking),
            Class::Multi | Class::Exec | Class::Discard | Class::Watch | Class::Unwatch => {
                Some(Self::Transactions)
            }
            Class::Subscribe
            | Class::Unsubscribe
            | Class::PSubscribe
            | Class::PUnsubscribe
            | Class::SSubscribe
            | Class::SUnsubscribe
            | Class::Publish => Some(Self::PubSub),
            Class::ClientTracking | Class::ClientCaching | Class::ClientNoTouch => Some(Self::Tracking),
            Class::Wait => Some(Self::Wait),
            Class::ClientList
            | Class::ClientKill
            | Class::ClientUnblock
            | Class::Control
            | Class::Own
            | Class::Proxy => Some(Self::Admin),
            Class::Lease | Class::Unknown => Some(Self::Other),
        }
    }
}

/// A set of rights; everything unless it is narrowed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rights(u16);

impl Rights {
    /// Nothing but what is about the client itself.
    pub const NONE: Self = Self(0);
    /// Everything.
    pub const ALL: Self = Self(u16::MAX);

    /// These and `right`.
    #[must_use]
    pub const fn with(self, right: Right) -> Self {
        Self(self.0 | 1 << right as u16)
    }

    /// Whether `right` is among them.
    #[must_use]
    pub const fn has(self, right: Right) -> bool {
        self.0 & 1 << right as u16 != 0
    }
}

impl Default for Rights {
    fn default() -> Self {
        Self::ALL
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = Right::WORDS.iter().filter(|(_, right)| self.has(*right)).map(|(word, _)| word);
        f.debug_list().entries(words).finish()
    }
}

/// What an operator has decided about one client's commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Refuse commands that reach beyond the client's own connection.
    pub refuse_admin: bool,
    /// Subscribers share a hub; otherwise each takes a lease.
    pub pubsub_hub: bool,
    /// The upstream is a cluster node, so ASKING means something.
    pub cluster: bool,
    /// READONLY means something: on a cluster node, and on every Valkey since 8.0.
    pub readonly: bool,
    /// The server can track for lanes, which other clients share (`CLIENT TRACKING`); otherwise each that tracks takes a lease.
    pub tracked_lanes: bool,
    /// What the client's user may ask for.
    pub rights: Rights,
}

impl Policy {
    /// Whether the command may go on.
    #[must_use]
    pub fn allows(&self, asked: &Asked) -> bool {
        !(asked.policy && self.refuse_admin)
            && (self.rights == Rights::ALL || Right::needed(asked).is_none_or(|right| self.rights.has(right)))
    }

    /// The error (no leading `-`) for a command that may not go on; for a right that is missing in Redis's own words
    /// (`ACL_DENIED_CMD` in redis `acl.c`), which client libraries know.
    #[inline]
    pub(super) fn refusal(&self, asked: &Asked, session: &Session) -> Option<String> {
        (!self.allows(asked)).then(|| self.words(asked, session))
    }

    #[cold]
    fn words(&self, asked: &Asked, session: &Session) -> String {
        let user = session.user.as_ref().map_or("default", |user| &user.name);
        let Some(row) = asked.row else {
            // Its name is the client's text, so the right is named instead.
            return format!(
                "NOPERM User {user} has no permissions to run commands unknown to redbouncer (\"other\")"
            );
        };
        let name = row.name;
        if asked.policy && self.refuse_admin {
            return format!("ERR redbouncer: '{name}' is refused by auth.admin_commands");
        }
        format!("NOPERM User {user} has no permissions to run the '{name}' command")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::command::classify;
    use crate::resp::{Request, encode};

    fn allowed(policy: Policy, words: &str) -> bool {
        let mut frame = bytes::BytesMut::new();
        let words: Vec<_> = words.split(' ').map(str::as_bytes).collect();
        encode::command(&mut frame, &words);
        policy.allows(&classify(&Request::parse(&frame).unwrap()))
    }

    #[test]
    fn nothing_is_refused_unless_it_is_narrowed() {
        for words in ["GET k", "MONITOR", "CONFIG GET x", "FT.SEARCH i q", "SUBSCRIBE c", "PROXY HELP"] {
            assert!(allowed(Policy::default(), words), "{words}");
        }
    }

    #[test]
    fn each_right_opens_its_commands_and_no_others() {
        let samples = [
            (Right::Data, "GET k"),
            (Right::Data, "XREAD STREAMS s 0"),
            (Right::Blocking, "BLPOP k 0"),
            (Right::Blocking, "XREAD BLOCK 0 STREAMS s 0"),
            (Right::Transactions, "WATCH k"),
            (Right::PubSub, "SUBSCRIBE c"),
            (Right::PubSub, "PUBLISH c m"),
            (Right::Tracking, "CLIENT TRACKING on"),
            (Right::Monitor, "MONITOR"),
            (Right::Wait, "WAIT 1 0"),
            (Right::Admin, "CONFIG GET x"),
            (Right::Admin, "CLIENT LIST"),
            (Right::Admin, "SCRIPT KILL"),
            (Right::Other, "FT.SEARCH i q"),
        ];
        for (right, words) in samples {
            for (_, given) in Right::WORDS {
                let policy = Policy { rights: Rights::NONE.with(given), ..Policy::default() };
                assert_eq!(allowed(policy, words), given == right, "{words} with {given:?}");
            }
        }
        let none = Policy { rights: Rights::NONE, ..Policy::default() };
        for words in ["PING", "AUTH a b", "HELLO 3", "SELECT 1", "CLIENT SETNAME x", "QUIT", "RESET"] {
            assert!(allowed(none, words), "{words}");
        }
    }
}
