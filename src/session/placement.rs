//! Where a command that our table does not have may run, by what the server says of it.
//!
//! It may be a module's, or one of the server's own that `rename-command` has given another name: `XMULTI` on a lane
//! would queue what others send. So a lane is only for what the server describes as a plain data command. Everything
//! else gets a connection of its own, which nobody uses after it.

use crate::resp;

/// Where one command may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// A plain data command: on a lane.
    Lane,
    /// It may change its connection while it runs, but leaves nothing that the client counts on: a lease for the command.
    Once,
    /// The same, and it may block: a client that leaves ends it.
    MayBlock,
    /// It may leave state which the client counts on: a lease until the client leaves or resets.
    Lasting,
}

/// What COMMAND INFO says of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Described {
    /// It is one of the server's.
    Known(Placement),
    /// The server does not know it.
    Unknown,
    /// The server has an answer, but nothing is in it: Upstash's is always empty.
    NotAtAll,
}

/// Flags of commands whose effects may go beyond their keys and their reply (`COMMAND`; redis `server.h`, `CMD_*`).
const NOT_PLAIN: [&[u8]; 4] = [b"noscript", b"blocking", b"pubsub", b"admin"];
/// Categories of such commands (`ACL CAT`). Servers before 6.0 have none and are judged by the flags alone.
const NOT_PLAIN_CATEGORIES: [&[u8]; 6] =
    [b"@connection", b"@transaction", b"@pubsub", b"@blocking", b"@admin", b"@dangerous"];
/// Categories of those that leave state on their connection.
const LASTING_CATEGORIES: [&[u8]; 3] = [b"@connection", b"@transaction", b"@pubsub"];

impl Described {
    /// Reads the answer to COMMAND INFO for one name: name, arity, flags, first key, last key, step, and since 6.0 its
    /// categories, since 7.0 tips, key specifications and subcommands.
    #[must_use]
    pub fn read(answer: &[u8]) -> Self {
        let Some(row) = resp::elements(answer).and_then(|mut rows| rows.next()) else {
            return Self::NotAtAll;
        };
        let Some(fields) = resp::elements(row) else { return Self::Unknown };
        let fields: Vec<_> = fields.collect();
        let words = |at: usize| fields.get(at).and_then(|field| resp::elements(field));
        let Some(flags) = words(2) else { return Self::NotAtAll };
        let flags: Vec<_> = flags.filter_map(resp::bulk).collect();
        let categories: Vec<_> = words(6).into_iter().flatten().filter_map(resp::bulk).collect();
        let is_container = words(9).is_some_and(|mut subcommands| subcommands.next().is_some());
        let has = |list: &[&[u8]], of: &[&[u8]]| of.iter().any(|word| list.contains(word));

        let is_data = has(&flags, &[b"readonly", b"write"]);
        let is_plain = is_data && !has(&flags, &NOT_PLAIN) && !has(&categories, &NOT_PLAIN_CATEGORIES);
        // Of a container only its subcommands are described, and a server without categories says nothing of state. 6.2
        // counts SELECT, READONLY and ASKING among @keyspace.
        let says_nothing = categories.is_empty() || has(&categories, &[b"@keyspace"]);
        let may_leave_state =
            has(&categories, &LASTING_CATEGORIES) || is_container || says_nothing && !is_data;
        let may_block = has(&flags, &[b"blocking"]) || has(&categories, &[b"@blocking"]);
        Self::Known(if is_plain && !is_container {
            Placement::Lane
        } else if may_leave_state {
            Placement::Lasting
        } else if may_block {
            Placement::MayBlock
        } else {
            Placement::Once
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(flags: &str, categories: Option<&str>) -> String {
        let list = |words: &str| {
            let words: Vec<_> = words.split_whitespace().collect();
            let items: String = words.iter().map(|word| format!("+{word}\r\n")).collect();
            format!("*{}\r\n{items}", words.len())
        };
        let fields = if categories.is_some() { 7 } else { 6 };
        let categories = categories.map(list).unwrap_or_default();
        format!("*1\r\n*{fields}\r\n$3\r\nfoo\r\n:1\r\n{}:1\r\n:1\r\n:1\r\n{categories}", list(flags))
    }

    fn placed(flags: &str, categories: &str) -> Described {
        Described::read(row(flags, Some(categories)).as_bytes())
    }

    #[test]
    fn only_a_plain_data_command_may_go_over_a_lane() {
        let known = Described::Known;
        // A module's, and GET and KEYS of 7.0 under other names.
        assert_eq!(placed("readonly fast", ""), known(Placement::Lane));
        assert_eq!(placed("write denyoom", "@write @fast"), known(Placement::Lane));
        assert_eq!(placed("readonly", "@keyspace @read @slow @dangerous"), known(Placement::Once));
        // As 7.0 describes MULTI, SELECT, MONITOR, DEBUG, SYNC, EVAL, SUBSCRIBE, BLPOP.
        assert_eq!(
            placed("noscript loading stale fast allow_busy", "@fast @transaction"),
            known(Placement::Lasting)
        );
        assert_eq!(placed("loading stale fast", "@fast @connection"), known(Placement::Lasting));
        assert_eq!(placed("admin noscript loading stale", "@admin @slow @dangerous"), known(Placement::Once));
        assert_eq!(
            placed("noscript stale skip_monitor movablekeys", "@slow @scripting"),
            known(Placement::Once)
        );
        assert_eq!(placed("pubsub noscript loading stale", "@pubsub @slow"), known(Placement::Lasting));
        assert_eq!(
            placed("write noscript blocking", "@write @list @slow @blocking"),
            known(Placement::MayBlock)
        );
        assert_eq!(placed("write blocking", ""), known(Placement::MayBlock));
        // SELECT of 6.2.
        assert_eq!(placed("loading stale fast", "@keyspace @fast"), known(Placement::Lasting));
        // Neither of the two flags: nobody knows what it does.
        assert_eq!(placed("fast", "@fast"), known(Placement::Once));
    }

    #[test]
    fn a_server_without_categories_is_judged_by_flags() {
        for (flags, placement) in [
            ("readonly fast", Placement::Lane),
            ("noscript fast", Placement::Lasting),
            ("loading fast", Placement::Lasting),
            ("readonly noscript", Placement::Once),
        ] {
            assert_eq!(Described::read(row(flags, None).as_bytes()), Described::Known(placement), "{flags}");
        }
    }

    #[test]
    fn a_container_is_described_by_its_subcommands_only() {
        let answer = "*1\r\n*10\r\n$7\r\nxclient\r\n:-2\r\n*0\r\n:0\r\n:0\r\n:0\r\n*1\r\n+@slow\r\n*0\r\n*0\r\n*1\r\n*0\r\n";
        assert_eq!(Described::read(answer.as_bytes()), Described::Known(Placement::Lasting));
    }

    #[test]
    fn no_description_is_not_one() {
        for (answer, described) in [
            ("*1\r\n*-1\r\n", Described::Unknown),
            ("*1\r\n$-1\r\n", Described::Unknown),
            ("*1\r\n_\r\n", Described::Unknown),
            ("*0\r\n", Described::NotAtAll),
            ("*-1\r\n", Described::NotAtAll),
            ("+OK\r\n", Described::NotAtAll),
            ("*1\r\n*1\r\n$3\r\nfoo\r\n", Described::NotAtAll),
        ] {
            assert_eq!(Described::read(answer.as_bytes()), described, "{answer:?}");
        }
    }
}
