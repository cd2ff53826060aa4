//! Which users the server lets see others: asked once and remembered for `auth.cache_ttl`.
//!
//! What PROXY shows of other clients is ours, so the server's ACL would never be asked about it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::client::Client;
use crate::pool::Unavailable;
use crate::resp::{self, encode};

/// Users remembered at the most.
const MOST: usize = 1024;

/// What the server has said, on one worker.
#[derive(Debug)]
pub(super) struct Refusals {
    ttl: Duration,
    known: RefCell<HashMap<u64, Answer>>,
}

/// When it was asked, and the refusal if it was one.
type Answer = (Instant, Option<Bytes>);

impl Refusals {
    pub(super) fn new(ttl: Duration) -> Self {
        Self { ttl, known: RefCell::default() }
    }

    /// `None`: not known. `Some(None)`: allowed.
    fn of(&self, user: u64) -> Option<Option<Bytes>> {
        let known = self.known.borrow();
        let (at, refusal) = known.get(&user)?;
        (at.elapsed() < self.ttl).then(|| refusal.clone())
    }

    fn remember(&self, user: u64, refusal: Option<Bytes>) {
        let mut known = self.known.borrow_mut();
        if known.len() >= MOST {
            known.retain(|_, (at, _)| at.elapsed() < self.ttl);
        }
        if known.len() < MOST {
            known.insert(user, (Instant::now(), refusal));
        }
    }
}

impl Client {
    /// The refusal where this client's user may not CLIENT LIST, and where that is not known: the server is silent, or
    /// loads its data. A server that does not understand the question keeps nobody from looking at us.
    pub(super) async fn forbidden_to_list(self: &Rc<Self>) -> Option<Bytes> {
        let Some((key, _)) = self.lane_key() else {
            return Some(encode::one_error(&Unavailable::NoAuth.to_string()));
        };
        if let Some(known) = self.worker.refusals.of(key.user) {
            return known;
        }
        let question = encode::one_command(&[b"CLIENT", b"LIST", b"ID", b"1"]);
        let reply = match self.ask_control(question).await {
            Ok(reply) => reply,
            Err(why) => return Some(encode::one_error(&why.to_string())),
        };
        let refusal = match resp::error_text(&reply) {
            Some(text) if text.starts_with(b"ERR ") => None,
            Some(text) if text.starts_with(b"NOPERM") => Some(reply),
            // It will say later.
            Some(_) => return Some(reply),
            None => None,
        };
        self.worker.refusals.remember(key.user, refusal.clone());
        refusal
    }
}
