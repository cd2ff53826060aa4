//! What a refusal of ours leaves behind.
//!
//! A server never refuses MULTI, WATCH or SELECT for want of a connection, so no client expects that what it has sent
//! behind one of them means something else: commands that run one by one, a transaction without its guard, writes into
//! the old database. Such a command happens, or the session has failed.

use super::Class;

/// The effect on a session when redbouncer refuses one of its commands for a reason that no server has: a full pool, or
/// no server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aftermath {
    /// Later commands keep their meaning: send the error and continue.
    Nothing,
    /// It would have started a transaction: later commands are refused until EXEC or DISCARD, and EXEC returns
    /// EXECABORT.
    FailedTransaction,
    /// It would have guarded a transaction: the next one is refused as a whole.
    FailedWatch,
    /// It would have changed the meaning or the user of later commands: send the error and close the client.
    Closed,
}

impl Class {
    /// The effect of a refusal, one line for each class.
    #[must_use]
    pub const fn aftermath(self) -> Aftermath {
        match self {
            Self::Multi => Aftermath::FailedTransaction,
            Self::Watch => Aftermath::FailedWatch,

            // The client's user, the meaning of its commands, and its subscriptions.
            Self::Auth
            | Self::Hello
            | Self::Select
            | Self::Reset
            | Self::ReadOnly
            | Self::ReadWrite
            | Self::Asking
            | Self::ClientReply
            | Self::ClientTracking
            | Self::ClientCaching
            | Self::ClientNoTouch
            | Self::Subscribe
            | Self::Unsubscribe
            | Self::PSubscribe
            | Self::PUnsubscribe
            | Self::SSubscribe
            | Self::SUnsubscribe
            | Self::Monitor => Aftermath::Closed,
            // Their effect is unknown.
            Self::Lease | Self::Unknown => Aftermath::Closed,

            // One request, one reply, and no more.
            Self::Pass | Self::Publish | Self::PubSub | Self::Ping | Self::Blocking(_) | Self::Wait => {
                Aftermath::Nothing
            }
            // A transaction that is open is on a connection of its own, where nothing is refused for want of one.
            Self::Exec | Self::Discard | Self::Unwatch => Aftermath::Nothing,
            // About others, or about the server.
            Self::ClientList
            | Self::ClientKill
            | Self::ClientUnblock
            | Self::Control
            | Self::Own
            | Self::Proxy => Aftermath::Nothing,
            // Answered here whatever happens. (What a name or a hint to the server changes, no reply shows.)
            Self::Quit
            | Self::ClientSetName
            | Self::ClientGetName
            | Self::ClientSetInfo
            | Self::ClientId
            | Self::ClientInfo
            | Self::ClientNoEvict
            | Self::ClientTrackingInfo
            | Self::ClientGetRedir
            | Self::ClientHelp
            | Self::ClientCapa
            | Self::ClientImportSource
            | Self::ClientUnknown
            | Self::Refused(_) => Aftermath::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows;
    use super::*;

    /// What a server's own documentation says of each name, held against the table by name: a row that changes its class
    /// must not lose what its refusal leaves behind.
    #[test]
    fn every_command_that_changes_later_ones_fails_the_session_and_no_other_does() {
        const CLOSED: &[&str] = &[
            "asking",
            "auth",
            "hello",
            "select",
            "reset",
            "readonly",
            "readwrite",
            "monitor",
            "subscribe",
            "unsubscribe",
            "psubscribe",
            "punsubscribe",
            "ssubscribe",
            "sunsubscribe",
            "client|caching",
            "client|no-touch",
            "client|reply",
            "client|tracking",
        ];
        for row in rows() {
            let expected = match row.name {
                "multi" => Aftermath::FailedTransaction,
                "watch" => Aftermath::FailedWatch,
                name if CLOSED.contains(&name) => Aftermath::Closed,
                _ if matches!(row.class, Class::Lease | Class::Unknown) => Aftermath::Closed,
                _ => Aftermath::Nothing,
            };
            assert_eq!(row.class.aftermath(), expected, "{}", row.name);
        }
        for name in CLOSED.iter().chain(&["multi", "watch"]) {
            assert!(rows().iter().any(|row| row.name == *name), "{name} is in the table");
        }
    }

    /// Data commands continue: a refused GET changes no state.
    #[test]
    fn what_goes_over_a_lane_leaves_nothing_behind() {
        for row in rows() {
            if matches!(row.class.route(), "lane" | "blocking" | "local" | "control" | "own connection") {
                let is_local_state =
                    matches!(row.class, Class::Reset | Class::ClientReply | Class::ClientCaching);
                assert_eq!(row.class.aftermath() == Aftermath::Nothing, !is_local_state, "{}", row.name);
            }
        }
    }
}
