//! A client with a client-side cache (`CLIENT TRACKING ON`): what it has cached is what the server would answer, unless it
//! has been told that it is not.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::{Client, NEVER, Over, Wire};
use crate::resp::{self, ReplyKind, encode};

/// Keys that all such clients read and write.
const CACHED: [&str; 3] = ["cached:0", "cached:1", "cached:2"];

/// What a command's reply says about the cache.
enum Sent {
    /// GET.
    Read(&'static str),
    /// SET, CLIENT CACHING.
    Other,
}

/// The cache of one connection.
struct Cache {
    values: BTreeMap<&'static str, Bytes>,
    /// With NOLOOP a client is not told of its own writes, and the server forgets with each write who has read the key.
    no_loop: bool,
    opt_in: bool,
}

impl Client {
    /// Reads and writes shared keys, and checks each reply against what is cached: invalidations and replies come in one
    /// order, so a reply that differs shows that an invalidation was missed.
    pub(super) async fn cache(&mut self, wire: &mut Wire) -> Result<(), Over> {
        let (no_loop, opt_in) = (self.below(2) == 0, self.below(3) == 0);
        let mut cache = Cache { values: BTreeMap::new(), no_loop, opt_in };
        if !self.resp3 {
            wire.write(&encode::one_command(&[b"HELLO", b"3"])).await?;
            let _ = self.reply(wire, NEVER, "HELLO 3").await?;
            self.resp3 = true;
        }
        let mut words: Vec<&[u8]> = vec![b"CLIENT", b"TRACKING", b"ON"];
        words.extend(no_loop.then_some(&b"NOLOOP"[..]));
        words.extend(opt_in.then_some(&b"OPTIN"[..]));
        wire.write(&encode::one_command(&words)).await?;
        if self.reply(wire, NEVER, "CLIENT TRACKING").await? != "+OK\r\n" {
            return Err(Over);
        }
        while Instant::now() < self.end {
            let mut out = BytesMut::new();
            let mut sent = Vec::new();
            for _ in 0..1 + self.below(4) {
                self.use_cache(&mut cache, &mut out, &mut sent);
            }
            wire.write(&out).await?;
            for sent in sent {
                let reply = self.reply_behind_pushes(wire, &mut cache).await?;
                self.check_cache(&mut cache, &sent, &reply);
            }
            self.rest(40).await;
        }
        Ok(())
    }

    fn use_cache(&mut self, cache: &mut Cache, out: &mut BytesMut, sent: &mut Vec<Sent>) {
        let key = CACHED[self.below(CACHED.len())];
        if self.below(3) == 0 {
            let mark = self.mark();
            encode::command(out, &[b"SET", key.as_bytes(), mark.as_bytes()]);
            sent.push(Sent::Other);
            return;
        }
        if cache.opt_in {
            encode::command(out, &[b"CLIENT", b"CACHING", b"YES"]);
            sent.push(Sent::Other);
        }
        encode::command(out, &[b"GET", key.as_bytes()]);
        sent.push(Sent::Read(key));
    }

    /// The next reply. Invalidations before it are carried out.
    async fn reply_behind_pushes(&mut self, wire: &mut Wire, cache: &mut Cache) -> Result<Bytes, Over> {
        loop {
            let Ok(frame) = tokio::time::timeout(NEVER, wire.frame()).await else {
                self.wrong("no reply to a client with a cache");
                return Err(Over);
            };
            let (kind, frame) = frame?;
            if kind != ReplyKind::Push {
                return Ok(frame);
            }
            let what = resp::elements(&frame).and_then(|mut parts| parts.nth(1));
            match what.filter(|what| !resp::is_null(what)).and_then(resp::elements) {
                None => cache.values.clear(),
                Some(keys) => keys.filter_map(resp::bulk).for_each(|key| {
                    cache.values.retain(|name, _| name.as_bytes() != key);
                }),
            }
        }
    }

    fn check_cache(&mut self, cache: &mut Cache, sent: &Sent, reply: &Bytes) {
        if resp::is_error(reply) {
            self.told.refused.set(self.told.refused.get() + 1);
            return;
        }
        self.told.answered.set(self.told.answered.get() + 1);
        match sent {
            Sent::Read(key) => {
                if let Some(before) = cache.values.insert(key, reply.clone())
                    && before != reply
                {
                    self.wrong(&format!("{key} is {reply:?} and was cached as {before:?}"));
                }
            }
            // Of the reads in the same pipeline before this write it may still be told, or not.
            Sent::Other if cache.no_loop => cache.values.clear(),
            Sent::Other => {}
        }
    }
}
