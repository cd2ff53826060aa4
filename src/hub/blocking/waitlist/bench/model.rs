//! A small model of a server.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::BytesMut;

use crate::resp::{Request, RequestLimits, RequestScanner, RequestStep, encode};

/// Lists, streams with their groups, and who is told about changes: as redis-server with CLIENT TRACKING ON.
#[derive(Default)]
pub(in super::super) struct Model {
    pub(in super::super) lists: BTreeMap<String, VecDeque<String>>,
    pub(in super::super) streams: BTreeMap<String, Stream>,
    pub(in super::super) strings: BTreeSet<String>,
    armed: BTreeSet<String>,
    queue: Option<Vec<Vec<String>>>,
    /// Own changes are told behind EXEC's reply.
    pending: Vec<String>,
    pub(in super::super) commands: usize,
    /// What the server has against writes; the XREADs run.
    pub(in super::super) refusal: Option<&'static str>,
    aborted: bool,
}

/// The entries `n-0`, and of each group the last one that was delivered.
#[derive(Default)]
pub(in super::super) struct Stream {
    pub(in super::super) entries: BTreeSet<u64>,
    pub(in super::super) last: u64,
    pub(in super::super) groups: BTreeMap<String, u64>,
}

impl Stream {
    fn behind(&self, id: u64) -> Vec<u64> {
        self.entries.range(id + 1..).copied().collect()
    }
}

impl Model {
    /// XADD, of the next id.
    pub(in super::super) fn add(&mut self, key: &str, out: &mut BytesMut) -> u64 {
        let stream = self.streams.entry(key.to_owned()).or_default();
        stream.last += 1;
        let id = stream.last;
        stream.entries.insert(id);
        self.changed(key, out);
        id
    }

    /// XTRIM or XDEL of all, or a foreign consumer that took all of a list.
    pub(in super::super) fn clear(&mut self, key: &str, out: &mut BytesMut) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.entries.clear();
        }
        self.lists.remove(key);
        self.changed(key, out);
    }

    pub(in super::super) fn push(&mut self, key: &str, values: &[&str], out: &mut BytesMut) {
        let list = self.lists.entry(key.to_owned()).or_default();
        list.extend(values.iter().map(|value| (*value).to_owned()));
        self.changed(key, out);
    }

    pub(in super::super) fn changed(&mut self, key: &str, out: &mut BytesMut) {
        if self.armed.remove(key) {
            out.extend_from_slice(
                format!(">2\r\n$10\r\ninvalidate\r\n*1\r\n${}\r\n{key}\r\n", key.len()).as_bytes(),
            );
        }
    }

    /// The waitlist's connection is gone, and what the server kept for it.
    pub(in super::super) fn forget_connection(&mut self) {
        self.armed.clear();
        self.pending.clear();
        self.queue = None;
        self.aborted = false;
    }

    /// Runs what the waitlist has written; its replies and pushes.
    pub(in super::super) fn run(&mut self, mut written: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        while !written.is_empty() {
            let limits =
                RequestLimits { max_bulk: u64::MAX, max_request: usize::MAX, ..RequestLimits::default() };
            let Ok(RequestStep::Request(shape)) = RequestScanner::default().step(written, &limits) else {
                panic!("not a request: {written:?}")
            };
            let request = Request::new(&written[..shape.len], &shape);
            let words: Vec<String> =
                request.args().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
            written = &written[shape.len..];
            self.commands += 1;
            match (words[0].as_str(), self.queue.as_mut()) {
                ("MULTI", _) => {
                    self.queue = Some(Vec::new());
                    encode::simple(&mut out, "OK");
                }
                ("EXEC", _) => {
                    let members = self.queue.take().unwrap();
                    if std::mem::take(&mut self.aborted) {
                        encode::error(
                            &mut out,
                            "EXECABORT Transaction discarded because of previous errors.",
                        );
                        continue;
                    }
                    encode::array(&mut out, members.len());
                    for member in members {
                        self.member(&member, &mut out);
                    }
                    for key in std::mem::take(&mut self.pending) {
                        out.extend_from_slice(
                            format!(">2\r\n$10\r\ninvalidate\r\n*1\r\n${}\r\n{key}\r\n", key.len())
                                .as_bytes(),
                        );
                    }
                }
                (name, Some(_)) if self.refusal.is_some() && ["BLPOP", "XREADGROUP"].contains(&name) => {
                    self.aborted = true;
                    encode::error(&mut out, self.refusal.unwrap());
                }
                (_, Some(queue)) => {
                    queue.push(words);
                    encode::simple(&mut out, "QUEUED");
                }
                ("ROLE", None) => {
                    let refuses = self.refusal.is_some_and(|words| words.starts_with("READONLY"));
                    encode::array(&mut out, 1);
                    encode::bulk(&mut out, if refuses { b"slave" } else { b"master" });
                }
                (_, None) => encode::simple(&mut out, "OK"),
            }
        }
        out
    }

    fn member(&mut self, words: &[String], out: &mut BytesMut) {
        match words[0].to_ascii_uppercase().as_str() {
            "BLPOP" => {
                let keys = &words[1..words.len() - 1];
                for key in keys {
                    if self.strings.contains(key) {
                        encode::error(
                            out,
                            "WRONGTYPE Operation against a key holding the wrong kind of value",
                        );
                        return;
                    }
                    if let Some(value) = self.lists.get_mut(key).and_then(VecDeque::pop_front) {
                        if self.armed.remove(key) {
                            self.pending.push(key.clone());
                        }
                        encode::array(out, 2);
                        encode::bulk(out, key.as_bytes());
                        encode::bulk(out, value.as_bytes());
                        return;
                    }
                }
                out.extend_from_slice(b"_\r\n");
            }
            "LLEN" => {
                self.armed.insert(words[1].clone());
                if self.strings.contains(&words[1]) {
                    encode::error(out, "WRONGTYPE Operation against a key holding the wrong kind of value");
                    return;
                }
                let left = self.lists.get(&words[1]).map_or(0, VecDeque::len);
                encode::integer(out, i64::try_from(left).unwrap());
            }
            "XREAD" | "XREADGROUP" => self.read(words, out),
            "XLEN" => {
                self.armed.insert(words[1].clone());
                let left = self.streams.get(&words[1]).map_or(0, |stream| stream.entries.len());
                encode::integer(out, i64::try_from(left).unwrap());
            }
            "EXISTS" => {
                let there = words[1..].iter().filter(|key| {
                    self.lists.get(*key).is_some_and(|list| !list.is_empty()) || self.strings.contains(*key)
                });
                encode::integer(out, i64::try_from(there.count()).unwrap());
            }
            "SELECT" => encode::simple(out, "OK"),
            other => panic!("the model does not know {other}"),
        }
    }

    fn read(&mut self, words: &[String], out: &mut BytesMut) {
        let of_group = words[0].eq_ignore_ascii_case("XREADGROUP");
        let from = words.iter().position(|word| word == "STREAMS").unwrap() + 1;
        let count = (words.len() - from) / 2;
        let mut found = Vec::new();
        for key in &words[from..from + count] {
            let id = &words[words.iter().rposition(|word| word == key).unwrap() + count];
            if !of_group {
                self.armed.insert(key.clone());
            }
            let Some(stream) = self.streams.get_mut(key) else { continue };
            let after = if of_group {
                stream.groups.get(&words[2]).copied().unwrap_or_default()
            } else {
                id.trim_end_matches("-0").parse().unwrap()
            };
            let entries = stream.behind(after);
            if let (true, Some(last)) = (of_group, entries.last()) {
                stream.groups.insert(words[2].clone(), *last);
                if self.armed.remove(key) {
                    self.pending.push(key.clone());
                }
            }
            if !entries.is_empty() {
                found.push((key.clone(), entries));
            }
        }
        if found.is_empty() {
            return out.extend_from_slice(b"_\r\n");
        }
        out.extend_from_slice(format!("%{}\r\n", found.len()).as_bytes());
        for (key, entries) in found {
            encode::bulk(out, key.as_bytes());
            encode::array(out, entries.len());
            for entry in entries {
                encode::array(out, 2);
                encode::bulk(out, format!("{entry}-0").as_bytes());
                encode::array(out, 0);
            }
        }
    }
}
