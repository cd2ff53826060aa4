//! What the server, or a user's rights there, lack: found out by being refused, said once, done without.
//!
//! Providers forbid different things, and change them. So there is no list of providers here: everything is asked for as
//! if it were there, and a refusal is believed for a while, so that the server's ACL log is not filled and nobody waits
//! for an answer that is known. A refusal that speaks of rights is that user's; any other one is the server's.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::resp::ErrorCode;
use crate::telemetry::printable;

/// How long a refusal is believed before it is asked for again.
const BELIEVED: Duration = Duration::from_secs(60);
/// Maximum number of remembered refusals. Further ones are requested, and refused, again.
const MAX_KNOWN: usize = 4096;
/// Maximum length of the server's error in the log.
const LONGEST_WORDS: usize = 256;

/// A capability that the server or the user may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Capability {
    /// `HELLO 3`, and RESP3 with it.
    Resp3,
    /// The server has no password and ignored the configured one.
    Password,
    /// `CLIENT SETNAME`.
    SetName,
    /// `CLIENT ID`, where `HELLO` does not tell it.
    Id,
    /// `INFO`, where there is no `HELLO`.
    Info,
    /// `PING`.
    Ping,
    /// `SELECT`.
    Select,
    /// `CONFIG GET`.
    Config,
    /// `COMMAND INFO`.
    CommandInfo,
    /// `CLIENT TRACKING`.
    Tracking,
    /// `MULTI` and `EXEC`.
    Transactions,
    /// `PUBLISH` to the channel that goes before `WAIT`.
    WaitChannel,
    /// All of the keys: it is a node of a cluster.
    WholeKeyspace,
}

impl Capability {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 13] = [
        Self::Resp3,
        Self::Password,
        Self::SetName,
        Self::Id,
        Self::Info,
        Self::Ping,
        Self::Select,
        Self::Config,
        Self::CommandInfo,
        Self::Tracking,
        Self::Transactions,
        Self::WaitChannel,
        Self::WholeKeyspace,
    ];

    /// Whether its lack restricts a function.
    fn is_missed(self) -> bool {
        match self {
            Self::Resp3
            | Self::Password
            | Self::SetName
            | Self::Select
            | Self::Tracking
            | Self::Transactions
            | Self::WaitChannel
            | Self::WholeKeyspace => true,
            Self::Id | Self::Info | Self::Ping | Self::Config | Self::CommandInfo => false,
        }
    }

    /// The fallback of redbouncer without it.
    #[must_use]
    pub fn without(self) -> &'static str {
        match self {
            Self::Resp3 => "clients use RESP2, and blocking calls are tried on lanes or take a lease",
            Self::Password => "the server does not check the configured password",
            Self::SetName => {
                "connections on the server have no name, so other instances cannot kill them after a crash"
            }
            Self::Id => "connections that redbouncer no longer holds cannot be killed",
            Self::Info => {
                "a restart of the server is detected by client ids only; without HELLO its version is unknown"
            }
            Self::Ping => "heartbeats get an error as reply, which is sufficient",
            Self::Select => {
                "clients stay in the database of upstream.url; SELECT of another one gets the server's error"
            }
            Self::Config => {
                "the server's default limits are assumed (bulks of 512 MiB, a million tracked keys)"
            }
            Self::CommandInfo => "a command that redbouncer does not know takes a lease",
            Self::Tracking => "blocking calls are tried on lanes or take a lease",
            Self::Transactions => "each blocking call takes a lease",
            Self::WaitChannel => "WAIT is refused",
            Self::WholeKeyspace => {
                "clients get MOVED and cannot follow it: use redis-cluster:// or an endpoint that hides the cluster"
            }
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resp3 => "HELLO 3",
            Self::Password => "a password",
            Self::SetName => "CLIENT SETNAME",
            Self::Id => "CLIENT ID",
            Self::Info => "INFO",
            Self::Ping => "PING",
            Self::Select => "SELECT",
            Self::Config => "CONFIG GET",
            Self::CommandInfo => "COMMAND INFO",
            Self::Tracking => "CLIENT TRACKING",
            Self::Transactions => "MULTI and EXEC",
            Self::WaitChannel => "PUBLISH redbouncer:wait",
            Self::WholeKeyspace => "all keys on one node",
        })
    }
}

/// Whose fault a refusal is that will be the same next time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The user may not.
    Rights,
    /// The server, or its provider, does not support it.
    Missing,
}

impl Refusal {
    /// Reads an error's text, code first. `None`: it speaks of something else, so the command itself is there.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        if ErrorCode::of_text(text).is_transient() {
            return None;
        }
        const WORDS: [&str; 7] = [
            "unknown command",
            "unknown subcommand",
            "unsupported",
            "not supported",
            "not allowed",
            "not available",
            "disabled",
        ];
        let code = ErrorCode::of_text(text);
        // EXEC quotes what a member, or itself, was refused for.
        let rights = code == ErrorCode::NoPerm || code == ErrorCode::ExecAbort && text.contains("NOPERM");
        if rights {
            return Some(Self::Rights);
        }
        // The client's own arguments must not be mistaken for the server's text.
        let said = said_by_the_server(text).to_ascii_lowercase();
        (code == ErrorCode::NoProto || WORDS.iter().any(|words| said.contains(words)))
            .then_some(Self::Missing)
    }
}

/// The capabilities known to be lacking on one server.
#[derive(Debug, Default)]
pub struct MissingCapabilities {
    known: Mutex<HashMap<(Capability, Whose), Known>>,
}

/// The user that lacks it; `None` if the server lacks it.
type Whose = Option<Box<str>>;

#[derive(Debug)]
struct Known {
    until: Instant,
    words: Arc<str>,
}

impl MissingCapabilities {
    /// Forgets all refusals, because the server is a different one.
    pub fn forget(&self) {
        self.known.lock().clear();
    }

    /// Records that `user` was refused `what` with the error `text`. Logged the first time. Transient errors are
    /// ignored.
    pub fn record_refusal(&self, what: Capability, user: &str, text: &str) {
        if ErrorCode::of_text(text).is_transient() {
            return;
        }
        let words = printable(said_by_the_server(text).as_bytes());
        let words: String = words.chars().take(LONGEST_WORDS).collect();
        let by_rights = Refusal::of(text) == Some(Refusal::Rights);
        let whose = by_rights.then(|| Box::from(user));
        let until = Instant::now() + BELIEVED;
        {
            let mut known = self.known.lock();
            let is_new = !known.contains_key(&(what, whose.clone()));
            if is_new && known.len() >= MAX_KNOWN {
                return;
            }
            known.insert((what, whose), Known { until, words: words.as_str().into() });
            if !is_new {
                return;
            }
        }
        let (lacks, without) = (what.to_string(), what.without());
        let whose = if by_rights { "not permitted for this user" } else { "not supported by the server" };
        let user = by_rights.then_some(user);
        if what.is_missed() {
            tracing::warn!(lacks, user, server_says = %words, "unavailable: {lacks}, {whose}; fallback: {without}");
        } else {
            tracing::info!(lacks, user, server_says = %words, "unavailable: {lacks}, {whose}; fallback: {without}");
        }
    }

    /// Records that `user` may use `what`: an earlier refusal no longer holds.
    pub fn record_support(&self, what: Capability, user: &str) {
        let mut known = self.known.lock();
        if known.is_empty() {
            return;
        }
        let gone = [None, Some(Box::from(user))].map(|whose| known.remove(&(what, whose)).is_some());
        drop(known);
        if gone.contains(&true) {
            tracing::info!(lacks = %what, user, "{what} is available again");
        }
    }

    /// The server's error when it refused `what` to `user`, if the refusal is still remembered.
    #[must_use]
    pub fn refusal_of(&self, what: Capability, user: &str) -> Option<Arc<str>> {
        let known = self.known.lock();
        if known.is_empty() {
            return None;
        }
        let now = Instant::now();
        let believed = |whose| known.get(&(what, whose)).filter(|known| known.until > now);
        believed(None).or_else(|| believed(Some(Box::from(user)))).map(|known| Arc::clone(&known.words))
    }

    /// Whether any user was refused `what` and has not been permitted since, however long ago.
    #[must_use]
    pub fn has_been_refused(&self, what: Capability) -> bool {
        self.known.lock().keys().any(|(lacking, _)| *lacking == what)
    }

    /// Whether `user` is known to lack `what`.
    #[must_use]
    pub fn has(&self, what: Capability, user: &str) -> bool {
        self.refusal_of(what, user).is_some()
    }
}

/// Redis repeats an unknown command's arguments after its own text.
fn said_by_the_server(text: &str) -> &str {
    text.split(", with args beginning with").next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_from_what_a_command_says_itself() {
        for (text, whose) in [
            (
                "NOPERM this user has no permissions to run the 'client' command or its subcommand",
                Some(Refusal::Rights),
            ),
            (
                "EXECABORT Transaction discarded because of: NOPERM User x has no permissions",
                Some(Refusal::Rights),
            ),
            ("ERR unknown command `CLIENT`, with args beginning with: `LIST`, ", Some(Refusal::Missing)),
            ("ERR unknown command 'CLIENT', with args beginning with: 'LIST' ", Some(Refusal::Missing)),
            (
                "ERR Unknown subcommand or wrong number of arguments for 'X'. Try CLIENT HELP.",
                Some(Refusal::Missing),
            ),
            ("ERR Command is not available: 'CLIENT TRACKING'.", Some(Refusal::Missing)),
            ("NOPROTO unsupported protocol version", Some(Refusal::Missing)),
            ("ERR DB index is out of range", None),
            ("ERR wrong number of arguments for 'client' command", None),
            ("BUSY Redis is busy running a script.", None),
            ("OOM command not allowed when used memory > 'maxmemory'.", None),
            ("EXECABORT Transaction discarded because of previous errors.", None),
        ] {
            assert_eq!(Refusal::of(text), whose, "{text}");
        }
    }

    #[test]
    fn a_users_lack_is_nobody_elses_and_the_servers_is_everybodys() {
        let missing = MissingCapabilities::default();
        missing.record_refusal(Capability::Config, "a", "NOPERM User a has no permissions");
        assert!(missing.has(Capability::Config, "a"));
        assert!(!missing.has(Capability::Config, "b") && !missing.has(Capability::Select, "a"));
        missing.record_refusal(
            Capability::Select,
            "a",
            "ERR unknown command 'SELECT', with args beginning with: 'secret' ",
        );
        assert_eq!(
            missing.refusal_of(Capability::Select, "b").as_deref(),
            Some("ERR unknown command 'SELECT'")
        );
        missing.record_support(Capability::Select, "b");
        assert!(!missing.has(Capability::Select, "a") && missing.has(Capability::Config, "a"));
    }

    #[test]
    fn what_passes_by_itself_is_not_believed() {
        let missing = MissingCapabilities::default();
        for text in
            ["LOADING Redis is loading", "MISCONF Errors writing", "MASTERDOWN Link is down", "BUSY x"]
        {
            missing.record_refusal(Capability::Ping, "a", text);
            assert!(!missing.has(Capability::Ping, "a"), "{text}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let missing = MissingCapabilities::default();
        for user in 0..MAX_KNOWN + 10 {
            missing.record_refusal(Capability::Ping, &user.to_string(), "NOPERM no");
        }
        assert_eq!(missing.known.lock().len(), MAX_KNOWN);
    }
}
