//! CLIENT TRACKING ON REDIRECT: invalidations on their way from the worker of the client that tracks to the client that is told.
//!
//! What does not fit is never left out: more than a bounded number of bytes becomes one invalidation of all keys. A client that is
//! told and does not read is closed at its output limit, as by the server, and with it its inbox.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Keys of more bytes than this are not named: the client is told to forget everything.
const MOST_BYTES: usize = 1 << 20;
/// What a key takes besides its bytes.
const PER_KEY: usize = 64;

/// Keys that have changed; `None`: all.
pub(super) type Changed = Option<Vec<Bytes>>;

/// What one client is to be told by others of its user, on any worker.
#[derive(Debug)]
pub struct Inbox {
    user: u64,
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    changed: Vec<Changed>,
    bytes: usize,
    is_closed: bool,
}

impl Inbox {
    /// An empty one, of a client of `user`.
    pub(super) fn new(user: u64) -> Arc<Self> {
        Arc::new(Self { user, waiting: Mutex::default(), filled: Notify::new() })
    }

    /// Whether it takes what clients of `user` are to be told: another user's keys are none of its business.
    pub(super) fn is_open_to(&self, user: u64) -> bool {
        self.user == user && !self.waiting.lock().is_closed
    }

    /// Puts `changed` in.
    pub(super) fn put(&self, changed: &Changed) {
        let mut waiting = self.waiting.lock();
        let size = |keys: &Vec<Bytes>| keys.iter().map(|key| key.len() + PER_KEY).sum::<usize>();
        let bytes = waiting.bytes + changed.as_ref().map_or(0, size);
        if changed.is_none() || bytes > MOST_BYTES {
            // Which names all that came before, too.
            (waiting.changed, waiting.bytes) = (vec![None], 0);
        } else {
            waiting.changed.push(changed.clone());
            waiting.bytes = bytes;
        }
        drop(waiting);
        self.filled.notify_one();
    }

    /// Takes out what is there, in order. `None`: it is closed.
    pub(super) fn take(&self) -> Option<Vec<Changed>> {
        let mut waiting = self.waiting.lock();
        waiting.bytes = 0;
        let changed = std::mem::take(&mut waiting.changed);
        (!waiting.is_closed).then_some(changed)
    }

    /// Returns when there may be something in it.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Its client is there no more, or is another user's.
    pub(super) fn close(&self) {
        self.waiting.lock().is_closed = true;
        self.filled.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: usize) -> Changed {
        Some((0..count).map(|at| Bytes::from(format!("key:{at:012}"))).collect())
    }

    #[test]
    fn what_is_put_in_comes_out_in_order_and_what_is_too_much_becomes_all_keys() {
        let inbox = Inbox::new(1);
        inbox.put(&keys(2));
        inbox.put(&keys(1));
        assert_eq!(inbox.take(), Some(vec![keys(2), keys(1)]));
        assert_eq!(inbox.take(), Some(vec![]));
        inbox.put(&keys(3));
        inbox.put(&None);
        inbox.put(&keys(1));
        assert_eq!(inbox.take(), Some(vec![None, keys(1)]));
        let fits = MOST_BYTES / (PER_KEY + 16);
        inbox.put(&keys(fits));
        assert_eq!(inbox.take(), Some(vec![keys(fits)]));
        inbox.put(&keys(fits));
        inbox.put(&keys(1));
        inbox.put(&keys(2));
        assert_eq!(inbox.take(), Some(vec![None, keys(2)]));
    }

    #[test]
    fn only_clients_of_the_same_user_put_something_in_and_nobody_when_it_is_closed() {
        let inbox = Inbox::new(1);
        assert!(inbox.is_open_to(1) && !inbox.is_open_to(2));
        inbox.close();
        assert!(!inbox.is_open_to(1));
        inbox.put(&keys(1));
        assert_eq!(inbox.take(), None);
    }
}
