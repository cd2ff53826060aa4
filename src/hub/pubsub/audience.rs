//! Who hears what, on all workers: what the counts of PUBLISH and PUBSUB are corrected by.
//!
//! The server counts each of our hub connections as one receiver. The client that asks wants to know how many clients
//! there are.

use std::collections::{HashMap, HashSet};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::command::glob;
use crate::resp::{self, Request, encode};
use crate::session::Listen;

/// Connections of ours that are subscribed to one name, and the clients behind them.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    connections: i64,
    clients: i64,
}

/// All subscriptions of all hubs.
#[derive(Debug, Default)]
pub struct Audience {
    channels: Mutex<HashMap<Bytes, Heard>>,
    patterns: Mutex<HashMap<Bytes, Heard>>,
    shards: Mutex<HashMap<Bytes, Heard>>,
    agreed: Mutex<Agreed>,
}

/// How far the server and we agree on what our hubs are subscribed to.
#[derive(Clone, Copy, Debug, Default)]
struct Agreed {
    /// Names whose SUBSCRIBE or UNSUBSCRIBE the server has not answered: it may count them either way.
    open: usize,
    /// How many it has answered since the start.
    answered: u64,
}

/// A moment at which the server and we agreed on what our hubs are subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement(u64);

impl Audience {
    fn of(&self, listen: Listen) -> &Mutex<HashMap<Bytes, Heard>> {
        match listen {
            Listen::Channels => &self.channels,
            Listen::Patterns => &self.patterns,
            Listen::Shards => &self.shards,
        }
    }

    /// A hub's connection or its clients came or went.
    pub(super) fn change(&self, listen: Listen, name: &Bytes, connections: i64, clients: i64) {
        let mut all = self.of(listen).lock();
        let heard = all.entry(name.clone()).or_default();
        heard.connections += connections;
        heard.clients += clients;
        if heard.connections == 0 && heard.clients == 0 {
            all.remove(name);
        }
    }

    /// The server is asked about this many names.
    pub(super) fn ask(&self, names: usize) {
        self.agreed.lock().open += names;
    }

    /// The server has answered about this many names, or will not any more.
    pub(super) fn settle(&self, names: usize) {
        let mut agreed = self.agreed.lock();
        agreed.open = agreed.open.saturating_sub(names);
        agreed.answered += names as u64;
    }

    /// `None` while the server has not confirmed all that our hubs have sent. An answer that comes at the same
    /// agreement as its question was asked is corrected by what was true on the server.
    #[must_use]
    pub fn agreement(&self) -> Option<Agreement> {
        let agreed = *self.agreed.lock();
        (agreed.open == 0).then_some(Agreement(agreed.answered))
    }

    /// Whether nobody listens to anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        Listen::ALL.iter().all(|listen| self.of(*listen).lock().is_empty())
    }

    /// The number of clients that PUBLISH (or SPUBLISH, with `shard`) on `channel` has reached, from the server's count.
    #[must_use]
    pub fn corrected(&self, channel: &[u8], shard: bool, count: i64) -> i64 {
        let listen = if shard { Listen::Shards } else { Listen::Channels };
        let mut more = 0;
        if let Some(heard) = self.of(listen).lock().get(channel) {
            more += heard.clients - heard.connections;
        }
        if !shard {
            for (pattern, heard) in self.patterns.lock().iter() {
                if glob::matches(pattern, channel) {
                    more += heard.clients - heard.connections;
                }
            }
        }
        (count + more).max(0)
    }

    /// The reply to `request`, which is PUBLISH, SPUBLISH or a PUBSUB question, as if every client were connected to
    /// the server itself. `None`: it stays as it is.
    #[must_use]
    pub fn correct(&self, request: &Request<'_>, reply: &[u8]) -> Option<Bytes> {
        let is = |word: &[u8], name: &str| word.eq_ignore_ascii_case(name.as_bytes());
        let mut out = BytesMut::new();
        if !is(request.name(), "pubsub") {
            let (shard, count) = (is(request.name(), "spublish"), resp::integer(reply)?);
            encode::integer(&mut out, self.corrected(request.arg(1)?, shard, count));
            return Some(out.freeze());
        }
        match request.arg(1)? {
            word if is(word, "numsub") => self.recount(Listen::Channels, reply, &mut out)?,
            word if is(word, "shardnumsub") => self.recount(Listen::Shards, reply, &mut out)?,
            word if is(word, "channels") => self.relist(Listen::Channels, request.arg(2), reply, &mut out)?,
            word if is(word, "shardchannels") => {
                self.relist(Listen::Shards, request.arg(2), reply, &mut out)?;
            }
            word if is(word, "numpat") => {
                let patterns = self.patterns.lock();
                let more: i64 = patterns.values().map(|heard| heard.appears() - heard.vanishes()).sum();
                encode::integer(&mut out, (resp::integer(reply)? + more).max(0));
            }
            _ => return None,
        }
        Some(out.freeze())
    }

    /// NUMSUB: names and counts in turn.
    fn recount(&self, listen: Listen, reply: &[u8], out: &mut BytesMut) -> Option<()> {
        let all = self.of(listen).lock();
        let parts: Vec<_> = resp::elements(reply)?.collect();
        encode::array(out, parts.len());
        for pair in parts.chunks(2) {
            let [name, count] = pair else { return None };
            out.extend_from_slice(name);
            let more = all.get(resp::bulk(name)?).map_or(0, |heard| heard.clients - heard.connections);
            encode::integer(out, (resp::integer(count)? + more).max(0));
        }
        Some(())
    }

    /// CHANNELS: without names that only a hub has and is about to leave, and with those that a hub which has lost its
    /// connection will take again.
    fn relist(&self, listen: Listen, pattern: Option<&[u8]>, reply: &[u8], out: &mut BytesMut) -> Option<()> {
        let all = self.of(listen).lock();
        let mut names: Vec<_> = resp::elements(reply)?
            .filter(|name| {
                resp::bulk(name).and_then(|name| all.get(name)).is_none_or(|heard| heard.vanishes() == 0)
            })
            .map(Bytes::copy_from_slice)
            .collect();
        let known: HashSet<Bytes> = names.iter().cloned().collect();
        for (name, _) in all.iter().filter(|(_, heard)| heard.appears() > 0) {
            let mut word = BytesMut::new();
            encode::bulk(&mut word, name);
            if pattern.is_none_or(|pattern| glob::matches(pattern, name)) && !known.contains(&word[..]) {
                names.push(word.freeze());
            }
        }
        encode::array(out, names.len());
        names.iter().for_each(|name| out.extend_from_slice(name));
        Some(())
    }
}

impl Heard {
    /// 1 for a name that clients of ours listen to and the server does not have from us.
    fn appears(self) -> i64 {
        i64::from(self.clients > 0 && self.connections == 0)
    }

    /// 1 for a name that the server has from us and no client of ours listens to.
    fn vanishes(self) -> i64 {
        i64::from(self.clients == 0 && self.connections > 0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn corrected(audience: &Audience, command: &str, reply: &str) -> String {
        let mut frame = BytesMut::new();
        let words: Vec<_> = command.split(' ').map(str::as_bytes).collect();
        encode::command(&mut frame, &words);
        let request = Request::parse(&frame).unwrap();
        let reply = audience.correct(&request, reply.as_bytes());
        reply.map_or_else(|| "as it is".to_owned(), |reply| String::from_utf8(reply.to_vec()).unwrap())
    }

    fn audience(heard: &[(Listen, &'static str, i64, i64)]) -> Audience {
        let audience = Audience::default();
        for (listen, name, connections, clients) in heard {
            audience.change(*listen, &Bytes::from_static(name.as_bytes()), *connections, *clients);
        }
        audience
    }

    #[test]
    fn hubs_are_taken_out_of_a_count_and_their_clients_put_in() {
        let all = audience(&[(Listen::Channels, "a", 2, 7), (Listen::Shards, "a", 1, 3)]);
        // One of the server's three is another's.
        let reply = "*4\r\n$1\r\na\r\n:3\r\n$1\r\nb\r\n:4\r\n";
        assert_eq!(corrected(&all, "PUBSUB NUMSUB a b", reply), "*4\r\n$1\r\na\r\n:8\r\n$1\r\nb\r\n:4\r\n");
        assert_eq!(
            corrected(&all, "pubsub ShardNumSub a", "*2\r\n$1\r\na\r\n:1\r\n"),
            "*2\r\n$1\r\na\r\n:3\r\n"
        );
        assert_eq!(corrected(&all, "PUBLISH a x", ":3\r\n"), ":8\r\n");
        assert_eq!(corrected(&all, "SPUBLISH a x", ":1\r\n"), ":3\r\n");
    }

    #[test]
    fn names_that_nobody_listens_to_are_not_listed_and_those_of_a_lost_hub_are() {
        let all = audience(&[
            (Listen::Channels, "left", 1, 0),
            (Listen::Channels, "kept", 1, 2),
            (Listen::Channels, "lost", 0, 1),
            (Listen::Patterns, "l*", 1, 0),
            (Listen::Patterns, "m*", 0, 4),
        ]);
        let reply = "*3\r\n$4\r\nleft\r\n$4\r\nkept\r\n$5\r\nother\r\n";
        assert_eq!(
            corrected(&all, "PUBSUB CHANNELS", reply),
            "*3\r\n$4\r\nkept\r\n$5\r\nother\r\n$4\r\nlost\r\n"
        );
        assert_eq!(corrected(&all, "PUBSUB CHANNELS k*", "*1\r\n$4\r\nkept\r\n"), "*1\r\n$4\r\nkept\r\n");
        assert_eq!(corrected(&all, "PUBSUB NUMPAT", ":5\r\n"), ":5\r\n");
    }

    #[test]
    fn errors_and_what_has_no_count_stay_as_they_are() {
        let all = audience(&[(Listen::Channels, "a", 1, 2)]);
        for command in ["PUBLISH a x", "PUBSUB NUMSUB a", "PUBSUB CHANNELS", "PUBSUB NUMPAT", "PUBSUB HELP"] {
            assert_eq!(corrected(&all, command, "-NOPERM no\r\n"), "as it is", "{command}");
        }
    }

    #[test]
    fn there_is_no_agreement_while_the_server_has_not_confirmed() {
        let audience = Audience::default();
        let first = audience.agreement();
        audience.ask(2);
        assert_eq!((first.is_some(), audience.agreement()), (true, None));
        audience.settle(2);
        assert!(audience.agreement().is_some_and(|now| Some(now) != first));
    }
}
