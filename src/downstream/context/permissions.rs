//! Users that the server permits to list other clients: asked once and cached for `auth.cache_ttl`.
//!
//! PROXY shows our own data about clients, so the server's ACL would otherwise not apply.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// Users remembered.
const MAX_USERS: usize = 1024;

/// The server's answers, on one worker.
#[derive(Debug)]
pub(in crate::downstream) struct ListPermissions {
    ttl: Cell<Duration>,
    known: RefCell<HashMap<u64, Answer>>,
}

/// When it was asked, and the refusal if it was one.
type Answer = (Instant, Option<Bytes>);

impl ListPermissions {
    pub(in crate::downstream) fn new(ttl: Duration) -> Self {
        Self { ttl: Cell::new(ttl), known: RefCell::default() }
    }

    /// How long an answer is remembered from now on.
    pub(in crate::downstream) fn keep_for(&self, ttl: Duration) {
        self.ttl.set(ttl);
    }

    /// `None`: not known. `Some(None)`: allowed.
    pub(in crate::downstream) fn of(&self, user: u64) -> Option<Option<Bytes>> {
        let known = self.known.borrow();
        let (at, refusal) = known.get(&user)?;
        (at.elapsed() < self.ttl.get()).then(|| refusal.clone())
    }

    pub(in crate::downstream) fn remember(&self, user: u64, refusal: Option<Bytes>) {
        let mut known = self.known.borrow_mut();
        if known.len() >= MAX_USERS {
            known.retain(|_, (at, _)| at.elapsed() < self.ttl.get());
        }
        if known.len() < MAX_USERS {
            known.insert(user, (Instant::now(), refusal));
        }
    }
}
