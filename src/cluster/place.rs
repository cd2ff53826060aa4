//! To which node a request goes.
//!
//! A request with keys goes to the owner of their slot. One without keys asks something of a server as such, and goes to the home
//! node where the answer of any node will do. What can be divided among nodes is. What is about one node is refused rather than
//! answered for a part of the data.

use crate::command::{Asked, Class, Keys, keys};
use crate::resp::Request;

use super::gather::{by_master, by_slot};
use super::{Gather, slot_of};

/// The server's words for keys of several slots (redis `clusterRedirectClient`).
pub const CROSS_SLOT: &str = "CROSSSLOT Keys in request don't hash to the same slot";
/// The words of a server that is no node of a cluster.
const NO_CLUSTER: &str = "ERR This instance has cluster support disabled";

/// Requests without keys that any node can answer.
const ANYWHERE: [&str; 34] = [
    "acl|cat",
    "acl|dryrun",
    "acl|genpass",
    "acl|getuser",
    "acl|list",
    "acl|users",
    "acl|whoami",
    "command",
    "config|get",
    "discard",
    "echo",
    "exec",
    "function|dump",
    "function|list",
    "lastsave",
    "latency|doctor",
    "latency|graph",
    "latency|histogram",
    "latency|history",
    "latency|latest",
    "lolwut",
    "memory|doctor",
    "memory|malloc-stats",
    "memory|stats",
    "module|list",
    "multi",
    "ping",
    "publish",
    "role",
    "slowlog|get",
    "slowlog|len",
    "time",
    "unwatch",
    "commandlog|get",
];
/// Requests with keys that are about the node they are sent to.
const ABOUT_A_NODE: [&str; 3] = ["migrate", "move", "spublish"];

/// Where one request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// To the owner of this slot.
    Slot(u16),
    /// To the home node.
    Home,
    /// To the home node; in the answer the cluster is not mentioned.
    Info,
    /// Part by part to the owners of its keys.
    BySlot(Gather),
    /// To every master.
    ByMaster(Gather),
    /// To one master after the other, as its cursor says.
    Scan,
    /// Nowhere: its client gets this error (no leading `-`).
    Refused(String),
}

/// Decides where `request` goes. A command that no table knows goes to the home node, and from there wherever that says.
#[must_use]
pub fn place(asked: &Asked, request: &Request<'_>) -> Place {
    let Some(row) = asked.row else { return Place::Home };
    if let Keys::Range { first: 1, last: 1, .. } = row.keys
        && asked.class == Class::Pass
        && let Some(key) = request.arg(1)
        && !ABOUT_A_NODE.contains(&row.name)
    {
        return Place::Slot(slot_of(key));
    }
    if row.name == "info" {
        return Place::Info;
    }
    if row.name == "cluster" || row.name.starts_with("cluster|") || row.name == "readwrite" {
        return Place::Refused(NO_CLUSTER.to_owned());
    }
    if ABOUT_A_NODE.contains(&row.name) {
        return Place::Refused(about_one_node(row.name));
    }
    if row.keys == Keys::None {
        let is_anywhere = ANYWHERE.contains(&row.name)
            || row.name.ends_with("|help")
            || row.name.starts_with("command|")
            || asked.class == Class::PubSub;
        return match by_master(row) {
            _ if is_anywhere => Place::Home,
            _ if row.name == "scan" => Place::Scan,
            Some(gather) => Place::ByMaster(gather),
            None => Place::Refused(about_one_node(row.name)),
        };
    }
    let mut slots = keys(row, request).into_iter().map(slot_of);
    match slots.next() {
        // A script without keys; or the arguments are wrong, and any node says so.
        None => Place::Home,
        Some(slot) if slots.all(|other| other == slot) => Place::Slot(slot),
        Some(_) => by_slot(row).map_or_else(|| Place::Refused(CROSS_SLOT.to_owned()), Place::BySlot),
    }
}

/// The error for the command `name`, which cannot be answered for the cluster as a whole.
#[must_use]
pub fn about_one_node(name: &str) -> String {
    let name = name.replace('|', " ");
    format!("ERR redbouncer: '{name}' concerns one node of a cluster: connect to that node")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::command::{classify, rows};
    use crate::resp::encode;

    fn placed(line: &str) -> Place {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let mut frame = BytesMut::new();
        encode::command(&mut frame, &words);
        let request = Request::parse(&frame).unwrap();
        place(&classify(&request), &request)
    }

    #[test]
    fn keys_decide_where_there_are_any() {
        let slot = Place::Slot(slot_of(b"k"));
        for line in ["GET k", "SET k v", "MGET k {k}2", "EVAL s 1 k", "XREAD STREAMS k 0", "SPUBLISHED k"] {
            let expected = if line.starts_with("SPUBLISHED") { Place::Home } else { slot.clone() };
            assert_eq!(placed(line), expected, "{line}");
        }
        let crossed = Place::Refused(CROSS_SLOT.to_owned());
        for line in ["MSET a 1 b 2", "RENAME a b", "SUNIONSTORE {a} {a}2 b", "EVAL s 2 a b"] {
            assert_eq!(placed(line), crossed, "{line}");
        }
    }

    #[test]
    fn without_keys_the_home_node_answers_or_nobody() {
        for line in [
            "PING",
            "EVAL s 0",
            "TIME",
            "COMMAND DOCS get",
            "GET",
            "EVAL s x",
            "PUBLISH c m",
            "FT.SEARCH i q",
        ] {
            assert_eq!(placed(line), Place::Home, "{line}");
        }
        for line in ["SWAPDB 0 1", "MEMORY PURGE", "MIGRATE h 1 k 0 1", "SPUBLISH c m"] {
            assert!(matches!(placed(line), Place::Refused(text) if text.contains("one node")), "{line}");
        }
        for line in ["CLUSTER SLOTS", "CLUSTER INFO", "CLUSTER"] {
            assert_eq!(placed(line), Place::Refused(NO_CLUSTER.to_owned()), "{line}");
        }
        assert_eq!(placed("INFO server"), Place::Info);
        assert_eq!(placed("SCAN 0"), Place::Scan);
        assert_eq!(placed("DBSIZE"), Place::ByMaster(Gather::Sum));
        assert_eq!(placed("MGET a b"), Place::BySlot(Gather::Values));
    }

    #[test]
    fn names_in_the_lists_are_those_of_the_table() {
        for name in ANYWHERE.iter().chain(&ABOUT_A_NODE) {
            assert!(rows().iter().any(|row| row.name == *name), "{name}");
        }
    }
}
