//! The memory that is held for clients, over all workers: its sum, its bound, and who gives way when it is above.
//!
//! Each client has an [`Account`]. Its numbers change when a buffer grows or shrinks, not with every command: a client
//! whose commands are passed on as they come has none. Two atomic additions are made then, and the accounts are looked
//! through only while the sum is above its bound.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::resp::give_bytes;

/// Requests and replies of this length are passed on by reference, each with a charge of its own.
pub const LONG: usize = 64 << 10;

/// The sum and the accounts.
#[derive(Debug)]
pub struct ClientMemory {
    /// `client.memory_max` in bytes; `usize::MAX` for none.
    bound: AtomicUsize,
    /// Above this sum the clients that hold most are read no further.
    mark: AtomicUsize,
    used: AtomicUsize,
    /// Up to this sum nobody more has to be closed: the bound, and what those hold who are being closed.
    settled: AtomicUsize,
    holdings: Mutex<BTreeMap<u64, Arc<Holding>>>,
}

/// What is held for one client, or for nobody by name.
struct Holding {
    id: u64,
    worker: usize,
    bytes: AtomicUsize,
    /// It is being closed, or has been.
    closing: AtomicBool,
    /// The client is gone. It stays among the others until the last of its memory has been given back.
    closed: AtomicBool,
    memory: Arc<ClientMemory>,
}

/// A client's holding, as long as it is connected.
#[derive(Debug)]
pub struct Account(Arc<Holding>);

/// Bytes that count for a holding until this is dropped.
#[derive(Debug)]
pub struct Charge {
    holding: Arc<Holding>,
    bytes: usize,
}

/// Who has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victim {
    /// The client's id.
    pub id: u64,
    /// The worker that serves it.
    pub worker: usize,
    /// What is held for it.
    pub bytes: usize,
}

/// A bound in bytes, where 0 stands for none.
fn bytes_of(bound: usize) -> usize {
    if bound == 0 { usize::MAX } else { bound }
}

/// Three quarters of it.
fn mark_of(bound: usize) -> usize {
    bound - bound / 4
}

impl ClientMemory {
    /// Nothing is held; `bound` of 0 for no bound.
    #[must_use]
    pub fn new(bound: usize) -> Arc<Self> {
        let bound = bytes_of(bound);
        Arc::new(Self {
            bound: AtomicUsize::new(bound),
            mark: AtomicUsize::new(mark_of(bound)),
            used: AtomicUsize::new(0),
            settled: AtomicUsize::new(bound),
            holdings: Mutex::default(),
        })
    }

    /// Another bound from now on, 0 for none. Where more is held, clients are closed at the next look.
    pub fn resize(&self, bound: usize) {
        let bound = bytes_of(bound);
        self.bound.store(bound, Relaxed);
        self.mark.store(mark_of(bound), Relaxed);
        self.settled.store(bound, Relaxed);
    }

    /// The bound, if there is one.
    #[must_use]
    pub fn bound(&self) -> Option<usize> {
        Some(self.limit()).filter(|bound| *bound < usize::MAX)
    }

    fn limit(&self) -> usize {
        self.bound.load(Relaxed)
    }

    /// The sum.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Whether the sum is above three quarters of the bound.
    #[must_use]
    pub fn is_above_mark(&self) -> bool {
        self.used() > self.mark.load(Relaxed)
    }

    /// What the sum may still grow by. Above the mark a client that holds more than this is read no further: the largest
    /// first, and all that hold something at the bound.
    #[must_use]
    pub fn room(&self) -> usize {
        self.limit().saturating_sub(self.used())
    }

    /// The account of client `id`, which `worker` serves.
    #[must_use]
    pub fn open(self: &Arc<Self>, id: u64, worker: usize) -> Account {
        let holding = self.holding(id, worker);
        self.holdings.lock().insert(id, Arc::clone(&holding));
        Account(holding)
    }

    /// For what is held for clients and cannot be said to be one's: it counts, and nobody is closed for it.
    #[must_use]
    pub fn unnamed(self: &Arc<Self>) -> Charge {
        Charge { holding: self.holding(0, 0), bytes: 0 }
    }

    fn holding(self: &Arc<Self>, id: u64, worker: usize) -> Arc<Holding> {
        Arc::new(Holding {
            id,
            worker,
            bytes: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            memory: Arc::clone(self),
        })
    }

    /// The client that has to be closed now, if the sum is above its bound by more than those hold who are being closed
    /// already: the one that holds most. It counts as being closed from now on.
    #[must_use]
    pub fn victim(&self) -> Option<Victim> {
        if self.used() <= self.settled.load(Relaxed) {
            return None;
        }
        let holdings = self.holdings.lock();
        // What is given back from now on is looked at anew.
        self.settled.store(self.limit(), Relaxed);
        let (mut leaving, mut largest) = (0_usize, None::<&Arc<Holding>>);
        for holding in holdings.values() {
            if holding.closing.load(Relaxed) {
                leaving += holding.bytes();
            } else if largest.is_none_or(|largest| holding.bytes() > largest.bytes()) {
                largest = Some(holding);
            }
        }
        let settled = self.limit().saturating_add(leaving);
        let largest = largest.filter(|largest| self.used() > settled && largest.bytes() > 0);
        let Some(largest) = largest else {
            self.settled.store(settled, Relaxed);
            return None;
        };
        largest.closing.store(true, Relaxed);
        Some(Victim { id: largest.id, worker: largest.worker, bytes: largest.bytes() })
    }

    /// The victim `id` could not be told that it has to be closed: it is looked for again.
    pub fn is_not_told(&self, id: u64) {
        if let Some(holding) = self.holdings.lock().get(&id) {
            holding.closing.store(holding.closed.load(Relaxed), Relaxed);
        }
    }
}

impl std::fmt::Debug for Holding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Holding").field("id", &self.id).field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

impl Holding {
    fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    fn add(&self, more: usize) {
        self.bytes.fetch_add(more, Relaxed);
        self.memory.used.fetch_add(more, Relaxed);
    }

    fn subtract(&self, less: usize) {
        let before = self.bytes.fetch_sub(less, Relaxed);
        self.memory.used.fetch_sub(less, Relaxed);
        if self.closing.load(Relaxed) {
            // There is as much less to wait for.
            self.memory.settled.store(self.memory.limit(), Relaxed);
            if before == less && self.closed.load(Relaxed) {
                self.forget();
            }
        }
    }

    /// A client that has changed its worker has another one by now.
    fn forget(&self) {
        let mut holdings = self.memory.holdings.lock();
        if holdings.get(&self.id).is_some_and(|known| std::ptr::eq(&raw const **known, self)) {
            holdings.remove(&self.id);
        }
    }
}

impl Account {
    /// What is held for this client.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// One part of it was `before` and is `now` long.
    pub fn change(&self, before: usize, now: usize) {
        if now > before {
            self.0.add(now - before);
        } else if before > now {
            self.0.subtract(before - now);
        }
    }

    /// Counts `bytes` more, until the charge is dropped.
    #[must_use]
    pub fn charge(&self, bytes: usize) -> Charge {
        self.0.add(bytes);
        Charge { holding: Arc::clone(&self.0), bytes }
    }

    /// `bytes`, which count until the last reference to them is dropped, wherever they go.
    #[must_use]
    pub fn keep(&self, bytes: Bytes) -> Bytes {
        let charge = self.charge(bytes.len());
        Bytes::from_owner(Charged { bytes, _charge: charge })
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.0.closed.store(true, Relaxed);
        self.0.closing.store(true, Relaxed);
        if self.0.bytes() == 0 {
            self.0.forget();
        }
    }
}

impl Charge {
    /// Whether nothing is counted now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Counts so many bytes from now on. Returns whether these are more than before.
    pub fn set(&mut self, bytes: usize) -> bool {
        let before = std::mem::replace(&mut self.bytes, bytes);
        if bytes > before {
            self.holding.add(bytes - before);
        } else if bytes < before {
            self.holding.subtract(before - bytes);
        }
        bytes > before
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Bytes and what they count.
struct Charged {
    bytes: Bytes,
    _charge: Charge,
}

impl Drop for Charged {
    fn drop(&mut self) {
        give_bytes(std::mem::take(&mut self.bytes));
    }
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_closed_one_after_the_other_until_the_sum_is_below_the_bound() {
        let memory = ClientMemory::new(1_000);
        let accounts: Vec<_> = (0..5).map(|id| memory.open(id, 0)).collect();
        for (account, bytes) in accounts.iter().zip([100, 400, 300, 200, 0]) {
            account.change(0, bytes);
        }
        assert_eq!((memory.used(), memory.victim()), (1_000, None));
        accounts[4].change(0, 450);
        assert_eq!(memory.victim(), Some(Victim { id: 4, worker: 0, bytes: 450 }));
        assert_eq!(memory.victim(), None, "what the first one holds is enough");
        accounts[0].change(100, 200);
        assert_eq!(memory.victim().map(|victim| victim.id), Some(1));
        accounts[4].change(450, 0);
        accounts[1].change(400, 0);
        assert_eq!((memory.used(), memory.victim()), (700, None));
    }

    #[test]
    fn bytes_that_outlive_their_client_count_and_close_nobody() {
        let memory = ClientMemory::new(1_000);
        let (one, other) = (memory.open(1, 0), memory.open(2, 1));
        other.change(0, 600);
        let kept = one.keep(Bytes::from(vec![0; 500]));
        let part = kept.slice(100..200);
        drop((one, kept));
        assert_eq!((memory.used(), memory.victim()), (1_100, None));
        assert_eq!(memory.holdings.lock().len(), 2);
        drop(part);
        assert_eq!((memory.used(), memory.holdings.lock().len()), (600, 1));
        other.change(600, 1_100);
        assert_eq!(memory.victim().map(|victim| (victim.id, victim.worker)), Some((2, 1)));
    }

    #[test]
    fn what_belongs_to_nobody_counts() {
        let memory = ClientMemory::new(1_000);
        let mut unnamed = memory.unnamed();
        let account = memory.open(1, 0);
        account.change(0, 10);
        unnamed.set(2_000);
        assert_eq!(memory.victim().map(|victim| victim.id), Some(1));
        drop(unnamed);
        assert_eq!((memory.used(), memory.victim()), (10, None));
    }

    #[test]
    fn above_the_mark_there_is_room_for_less_and_less() {
        let memory = ClientMemory::new(1_000);
        let account = memory.open(1, 0);
        account.change(0, 750);
        assert_eq!((memory.is_above_mark(), memory.room()), (false, 250));
        account.change(750, 900);
        assert_eq!((memory.is_above_mark(), memory.room()), (true, 100));
        account.change(900, 2_000);
        assert_eq!(memory.room(), 0);
    }

    #[test]
    fn without_a_bound_nobody_is_closed() {
        let memory = ClientMemory::new(0);
        let account = memory.open(1, 0);
        account.change(0, usize::MAX / 4 * 3);
        assert_eq!((memory.bound(), memory.victim(), memory.is_above_mark()), (None, None, false));
    }
}
