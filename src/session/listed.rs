//! One row of the server's CLIENT LIST, read.
//!
//! Redis, Valkey and the providers agree on `key=value` fields between spaces and on nothing else: fields come and go
//! between versions (`lib-name` from 7.2 on, `laddr` from 6.2 on), and a value may be empty.

use std::time::Duration;

/// The fields of a row that kills, listings and the search for orphans look at (`catClientInfoString` in redis
/// `networking.c`). What a server does not show is empty or zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// `id=`: never used twice while the server runs.
    pub id: u64,
    /// `addr=`
    pub addr: String,
    /// `laddr=`
    pub laddr: String,
    /// `name=`
    pub name: String,
    /// `user=`
    pub user: String,
    /// `flags=`
    pub flags: String,
    /// `db=`
    pub database: u32,
    /// `sub=` + `psub=` + `ssub=`
    pub subscriptions: u64,
    /// `age=`, in whole seconds.
    pub age: Duration,
    /// `idle=`: since the server last read from it or wrote to it, in whole seconds.
    pub idle: Duration,
    /// `cmd=`: the last command.
    pub command: String,
    /// `resp=`: 2 or 3; 0 where the server does not show it (before 7.0).
    pub resp: u8,
    /// `multi=` is not -1: commands are queued.
    pub in_multi: bool,
    /// `watch=`: keys that are watched, which Redis shows from 7.4 on.
    pub watched: u64,
    /// `lib-name=`
    pub lib_name: String,
    /// `lib-ver=`
    pub lib_ver: String,
}

impl Listed {
    /// Reads the payload of CLIENT LIST's reply; lines that are no rows are passed over.
    #[must_use]
    pub fn parse_all(text: &[u8]) -> Vec<Self> {
        String::from_utf8_lossy(text).lines().filter_map(Self::parse).collect()
    }

    /// Reads one line of CLIENT LIST. Unknown fields are passed over; `None` without an id.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut row = Self::default();
        let seconds = |value: &str| Duration::from_secs(value.parse().unwrap_or_default());
        for field in line.trim_end().split(' ') {
            let Some((key, value)) = field.split_once('=') else { continue };
            match key {
                "id" => row.id = value.parse().ok()?,
                "addr" => row.addr = value.to_owned(),
                "laddr" => row.laddr = value.to_owned(),
                "name" => row.name = value.to_owned(),
                "user" => row.user = value.to_owned(),
                "flags" => row.flags = value.to_owned(),
                "db" => row.database = value.parse().unwrap_or_default(),
                "age" => row.age = seconds(value),
                "idle" => row.idle = seconds(value),
                "cmd" => row.command = value.to_owned(),
                "resp" => row.resp = value.parse().unwrap_or_default(),
                "multi" => row.in_multi = value.parse::<u64>().is_ok(),
                "watch" => row.watched = value.parse().unwrap_or_default(),
                "lib-name" => row.lib_name = value.to_owned(),
                "lib-ver" => row.lib_ver = value.to_owned(),
                "sub" | "psub" | "ssub" => row.subscriptions += value.parse::<u64>().unwrap_or_default(),
                _ => {}
            }
        }
        (row.id > 0).then_some(row)
    }

    /// The type that CLIENT LIST TYPE and CLIENT KILL TYPE know it by.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        if self.flags.contains('M') {
            "master"
        } else if self.flags.contains('S') {
            "replica"
        } else if self.subscriptions > 0 {
            "pubsub"
        } else {
            "normal"
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    // As redis-server 6.2.14, 7.0.15, valkey-server 8.1.8 and 9.1.2 list a client that was named two seconds ago.
    const V6_2: &str = "id=3 addr=127.0.0.1:56016 laddr=127.0.0.1:23501 fd=8 name=web age=2 idle=2 flags=N db=0 sub=0 psub=0 multi=-1 qbuf=0 qbuf-free=0 argv-mem=0 obl=0 oll=0 omem=0 tot-mem=17048 events=r cmd=client user=default redir=-1";
    const V7_0: &str = "id=3 addr=127.0.0.1:34874 laddr=127.0.0.1:23502 fd=8 name=web age=3 idle=2 flags=N db=0 sub=0 psub=0 ssub=0 multi=-1 qbuf=0 qbuf-free=20474 argv-mem=0 multi-mem=0 rbs=1024 rbp=0 obl=0 oll=0 omem=0 tot-mem=22272 events=r cmd=client|setname user=default redir=-1 resp=2";
    const V8_1: &str = "id=2 addr=127.0.0.1:50498 laddr=127.0.0.1:23503 fd=10 name=web age=2 idle=2 flags=N capa= db=0 sub=0 psub=0 ssub=0 multi=-1 watch=0 qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=1032 rbp=0 obl=0 oll=0 omem=0 tot-mem=1552 events=r cmd=client|setname user=default redir=-1 resp=2 lib-name= lib-ver= tot-net-in=20 tot-net-out=5 tot-cmds=1";

    const V9_1: &str = "id=3 addr=127.0.0.1:45800 laddr=127.0.0.1:27348 fd=11 name=web age=2 idle=2 flags=N capa= db=0 sub=0 psub=0 ssub=0 multi=-1 watch=0 qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=1032 rbp=0 obl=0 oll=0 omem=0 tot-mem=1653 events=r cmd=client|setname user=default redir=-1 resp=2 lib-name= lib-ver= tot-net-in=100 tot-net-out=238587 tot-cmds=2";

    #[test]
    fn rows_of_every_version_are_read() {
        for line in [V6_2, V7_0, V8_1, V9_1] {
            let row = Listed::parse(line).unwrap();
            assert_eq!((row.name.as_str(), row.user.as_str(), row.kind()), ("web", "default", "normal"));
            assert_eq!((row.idle.as_secs(), row.lib_name.as_str()), (2, ""));
            assert!(row.id > 1 && row.addr.starts_with("127.0.0.1:") && row.command.starts_with("client"));
        }
    }

    /// Providers leave fields out, put others in, and count their own ids; Dragonfly has neither user nor flags.
    #[test]
    fn rows_that_are_short_or_strange_are_read_as_far_as_they_go() {
        let cloud = "id=1000000000042 addr=10.0.1.7:39514 fd=34 name= age=7200 idle=600 flags=N db=0 sub=0 psub=0 multi=-1 qbuf=0 qbuf-free=0 obl=0 oll=0 omem=0 events=r cmd=ping";
        let row = Listed::parse(cloud).unwrap();
        assert_eq!((row.id, row.idle.as_secs(), row.user.as_str()), (1_000_000_000_042, 600, ""));
        let other = "id=7 addr=10.0.1.7:1 laddr=10.0.0.1:6379 fd=9 name=x tid=0 irqmatch=1 age=5 idle=4 tot-cmds=1 db=0 lib-name=a=b lib-ver=1";
        let row = Listed::parse(other).unwrap();
        assert_eq!((row.flags.as_str(), row.age.as_secs(), row.lib_name.as_str()), ("", 5, "a=b"));
        // What is no number is no idle time: never a reason to kill.
        assert_eq!(Listed::parse("id=7 idle=-1 age=x").unwrap().idle.as_secs(), 0);
    }

    #[test]
    fn what_is_no_row_is_passed_over() {
        assert_eq!(Listed::parse(""), None);
        assert_eq!(Listed::parse("name=x age=1"), None);
        assert_eq!(Listed::parse_all(format!("{V6_2}\n\r\n{V7_0}\r\n").as_bytes()).len(), 2);
    }
}
