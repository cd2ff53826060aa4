//! A small model of one connection of a server: what is left on it by the commands that were sent.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};

use super::Input;
use crate::resp::{Protocol, Request, encode};

/// What the server knows of the connection.
#[derive(Default)]
pub(super) struct Connection {
    pub(super) protocol: Protocol,
    pub(super) database: u32,
    pub(super) multi: Option<Vec<Bytes>>,
    pub(super) aborted: bool,
    pub(super) watching: bool,
    pub(super) tracking: bool,
    pub(super) no_touch: bool,
    pub(super) monitor: bool,
    /// Channels, patterns, shards.
    pub(super) subscriptions: [BTreeSet<Vec<u8>>; 3],
}

const KINDS: [(&[u8], &[u8]); 3] =
    [(b"subscribe", b"unsubscribe"), (b"psubscribe", b"punsubscribe"), (b"ssubscribe", b"sunsubscribe")];

impl Connection {
    pub(super) fn is_subscribed(&self) -> bool {
        self.subscriptions.iter().any(|names| !names.is_empty())
    }

    /// Whether something is left that a client counts on.
    pub(super) fn holds_state(&self) -> bool {
        self.multi.is_some()
            || self.watching
            || self.tracking
            || self.no_touch
            || self.monitor
            || self.is_subscribed()
    }

    /// Runs one command. `input` says what the server has against it.
    pub(super) fn run(&mut self, frame: &[u8], input: &mut Input<'_>, out: &mut BytesMut) {
        let request = Request::parse(frame).expect("the lease sends canonical requests");
        let words: Vec<&[u8]> = request.args().collect();
        let name = request.name().to_ascii_lowercase();
        let is_refused = input.one_in(8);
        if self.multi.is_some() && !matches!(&name[..], b"exec" | b"discard") {
            let is_wrong = matches!(&name[..], b"multi" | b"watch") || name == b"client" && words.len() == 1;
            if is_refused || is_wrong {
                self.aborted |= name != b"multi";
                encode::error(out, "ERR not here");
            } else if let Some(queue) = &mut self.multi {
                queue.push(Bytes::copy_from_slice(frame));
                encode::simple(out, "QUEUED");
            }
            return;
        }
        match &name[..] {
            b"exec" => self.exec(is_refused, input, out),
            b"discard" => match self.multi.take() {
                Some(_) => {
                    self.watching = false;
                    self.aborted = false;
                    encode::simple(out, "OK");
                }
                None => encode::error(out, "ERR DISCARD without MULTI"),
            },
            _ if is_refused => encode::error(out, "NOPERM this user has no permissions"),
            _ => self.execute(&name, &words, false, out),
        }
    }

    fn exec(&mut self, is_lost: bool, input: &mut Input<'_>, out: &mut BytesMut) {
        let Some(queue) = self.multi.take() else {
            return encode::error(out, "ERR EXEC without MULTI");
        };
        let was_watching = std::mem::take(&mut self.watching);
        if std::mem::take(&mut self.aborted) {
            return encode::error(out, "EXECABORT Transaction discarded because of previous errors.");
        }
        if was_watching && is_lost {
            return self.null(out);
        }
        encode::array(out, queue.len());
        for frame in queue {
            let request = Request::parse(&frame).expect("it was queued");
            let words: Vec<&[u8]> = request.args().collect();
            let name = request.name().to_ascii_lowercase();
            if input.one_in(8) {
                encode::error(out, "NOPERM withdrawn");
            } else {
                self.execute(&name, &words, true, out);
            }
        }
    }

    fn execute(&mut self, name: &[u8], words: &[&[u8]], in_exec: bool, out: &mut BytesMut) {
        let kind = KINDS.iter().position(|(on, off)| name == *on || name == *off);
        let word = |at: usize| words.get(at).copied().unwrap_or_default().to_ascii_lowercase();
        if self.is_subscribed() && self.protocol == Protocol::Resp2 && kind.is_none() && name != b"ping" {
            return encode::error(out, "ERR Can't execute it in this context");
        }
        match name {
            _ if let Some(kind) = kind => {
                self.listen(kind, name == KINDS[kind].0, &words[1..], out);
            }
            b"ping" if self.is_subscribed() && self.protocol == Protocol::Resp2 => {
                encode::array(out, 2);
                encode::bulk(out, b"pong");
                encode::bulk(out, b"");
            }
            b"multi" => {
                self.multi = Some(Vec::new());
                self.aborted = false;
                encode::simple(out, "OK");
            }
            b"watch" => {
                self.watching = true;
                encode::simple(out, "OK");
            }
            b"unwatch" => {
                self.watching = false;
                encode::simple(out, "OK");
            }
            b"select" => match std::str::from_utf8(&word(1)).ok().and_then(|text| text.parse().ok()) {
                Some(database) if database < 16 => {
                    self.database = database;
                    encode::simple(out, "OK");
                }
                _ => encode::error(out, "ERR DB index is out of range"),
            },
            b"client" => self.client(&word(1), &word(2), words, out),
            b"monitor" if in_exec => encode::error(out, "ERR MONITOR isn't allowed here"),
            b"monitor" => {
                self.monitor = true;
                encode::simple(out, "OK");
            }
            b"hello" => {
                match &word(1)[..] {
                    b"" => {}
                    b"2" => self.protocol = Protocol::Resp2,
                    b"3" => self.protocol = Protocol::Resp3,
                    _ => return encode::error(out, "NOPROTO unsupported protocol version"),
                }
                encode::array(out, 2);
                encode::bulk(out, b"server");
                encode::bulk(out, b"redis");
            }
            b"publish" | b"wait" => encode::integer(out, 0),
            b"get" | b"blpop" => self.null(out),
            b"keys" => {
                encode::array(out, 1);
                encode::array(out, 0);
            }
            _ => encode::simple(out, "OK"), // whatever else is sent leaves nothing that is modelled
        }
    }

    fn client(&mut self, subcommand: &[u8], third: &[u8], words: &[&[u8]], out: &mut BytesMut) {
        match subcommand {
            b"tracking" if words.iter().any(|word| word.eq_ignore_ascii_case(b"redirect")) => {
                encode::error(out, "ERR The client ID you want redirect to does not exist");
            }
            b"tracking" if third == b"on" && self.protocol == Protocol::Resp2 => {
                encode::error(out, "ERR Client tracking can be enabled only in RESP3 mode");
            }
            b"tracking" => {
                self.tracking = third == b"on";
                encode::simple(out, "OK");
            }
            b"no-touch" => {
                self.no_touch = third == b"on";
                encode::simple(out, "OK");
            }
            b"setname" if third.contains(&b' ') => {
                encode::error(out, "ERR Client names cannot contain spaces");
            }
            b"id" => encode::integer(out, 7),
            _ => encode::simple(out, "OK"), // as above
        }
    }

    fn listen(&mut self, kind: usize, on: bool, names: &[&[u8]], out: &mut BytesMut) {
        let word = if on { KINDS[kind].0 } else { KINDS[kind].1 };
        let names: Vec<Vec<u8>> = if names.is_empty() {
            self.subscriptions[kind].iter().cloned().collect()
        } else {
            names.iter().map(|name| name.to_vec()).collect()
        };
        let count = names.len().max(1);
        for at in 0..count {
            let name = names.get(at);
            if let Some(name) = name {
                if on {
                    self.subscriptions[kind].insert(name.clone());
                } else {
                    self.subscriptions[kind].remove(name);
                }
            }
            self.push(3, out);
            encode::bulk(out, word);
            match name {
                Some(name) => encode::bulk(out, name),
                None => out.extend_from_slice(self.null_bulk()),
            }
            let left = match kind {
                2 => self.subscriptions[2].len(),
                _ => self.subscriptions[0].len() + self.subscriptions[1].len(),
            };
            encode::integer(out, left as i64);
        }
    }

    /// Something that the server says unasked: a message to a subscriber, an invalidation, a line of MONITOR.
    pub(super) fn say_unasked(&self, out: &mut BytesMut) {
        if let Some(channel) = self.subscriptions[0].first() {
            self.push(3, out);
            encode::bulk(out, b"message");
            encode::bulk(out, channel);
            encode::bulk(out, b"hello");
        } else if self.tracking && self.protocol == Protocol::Resp3 {
            out.extend_from_slice(b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n");
        }
    }

    fn push(&self, len: usize, out: &mut BytesMut) {
        match self.protocol {
            Protocol::Resp2 => encode::array(out, len),
            Protocol::Resp3 => out.extend_from_slice(format!(">{len}\r\n").as_bytes()),
        }
    }

    fn null_bulk(&self) -> &'static [u8] {
        match self.protocol {
            Protocol::Resp2 => b"$-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        }
    }

    fn null(&self, out: &mut BytesMut) {
        out.extend_from_slice(match self.protocol {
            Protocol::Resp2 => b"*-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }
}
