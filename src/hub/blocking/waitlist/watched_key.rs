//! What is known of each key that is waited for.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;
use tokio::time::Instant;

use crate::command::blocking::Waited;

/// Keys that nobody waits for stay known, because most waiters come back at once; at most this many.
const VACANT: usize = 10_000;
/// Wakes without an element in a row before the next ones are paced: another consumer wins this key, or the key of this
/// name in another database is busy.
const LOST_IN_A_ROW: u32 = 3;
/// One request in this time for keys whose wakes find nothing, all together.
const PACE: Duration = Duration::from_millis(1);
/// No wake is followed up later than this (and [`AHEAD`] less).
const SLOWEST: Duration = Duration::from_millis(100);
/// So far tries may run ahead of that pace.
const AHEAD: Duration = Duration::from_millis(20);

/// What was last heard of a key. Changed in the order of the connection's replies and pushes, and by nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyState {
    /// Nothing, or it has changed since.
    Unknown,
    /// It held this many elements, and the server will say when that changes.
    Remaining(u64),
    /// It is of another type, and the server will say when that changes.
    OtherType,
}

/// One key in one database, as calls of one kind wait for it.
#[derive(Debug)]
pub(super) struct WatchedKey {
    pub(super) database: u32,
    pub(super) kind: Waited,
    pub(super) name: Bytes,
    pub(super) known: KeyState,
    /// It has changed since its waiters last had their chance, whatever has been heard of it since: what one waiter asked
    /// says how much there is, and of a stream nothing at all of what another waits for.
    pub(super) woken: bool,
    /// Who waits for it, by arrival; those in a try included.
    pub(super) queue: BTreeSet<u64>,
    /// Those of them for whose first look an older one's answer is awaited.
    pub(super) newcomers: BTreeSet<u64>,
    /// Requests in flight whose reply will say what it holds.
    pub(super) asking: u32,
    /// Wakes in a row that found nothing.
    empty_wakes: u32,
    /// How many requests the last wake cost.
    pub(super) tries: u32,
    /// No try for it before this, but for those of calls that arrive or end.
    pub(super) not_before: Option<Instant>,
    /// A stream: nothing stands behind this id.
    quiet_after: Option<StreamId>,
    /// A stream: what `$` stands for.
    position: Option<Bytes>,
    /// When the last waiter left, as a number.
    vacated: u64,
}

/// A stream's id: milliseconds and a sequence number.
pub(super) type StreamId = (u64, u64);

/// Reads an id as XREAD takes it: `ms-seq`, or `ms` alone, which begins that millisecond.
pub(super) fn stream_id(text: &[u8]) -> Option<StreamId> {
    let text = std::str::from_utf8(text).ok()?;
    let (millis, sequence) = text.split_once('-').unwrap_or((text, "0"));
    Some((millis.parse().ok()?, sequence.parse().ok()?))
}

impl WatchedKey {
    /// Whether nothing can be had here until the server says otherwise.
    pub(super) fn is_settled(&self) -> bool {
        match (self.kind, self.known) {
            (_, KeyState::Unknown) => false,
            // A stream may be full and hold nothing for this id or group.
            (Waited::Stream, KeyState::Remaining(_)) | (_, KeyState::OtherType) => true,
            (Waited::List | Waited::SortedSet, KeyState::Remaining(left)) => left == 0,
        }
    }

    /// It may have changed: nothing is known any more, and whoever waits has a chance again.
    pub(super) fn forget(&mut self) {
        self.known = KeyState::Unknown;
        self.woken = !self.queue.is_empty();
        self.quiet_after = None;
        self.position = None;
    }

    /// A stream that the server watches for us held nothing behind `id`.
    pub(super) fn note_quiet(&mut self, id: StreamId) {
        if matches!(self.known, KeyState::Remaining(_)) && self.quiet_after.is_none_or(|quiet| id < quiet) {
            self.quiet_after = Some(id);
        }
    }

    /// Whether nothing stands behind `id`.
    pub(super) fn is_quiet_after(&self, id: StreamId) -> bool {
        matches!(self.known, KeyState::Remaining(_)) && self.quiet_after.is_some_and(|quiet| quiet <= id)
    }

    /// A stream that the server watches for us ends with `id`.
    pub(super) fn note_position(&mut self, id: &Bytes) {
        if matches!(self.known, KeyState::Remaining(_)) {
            self.position = Some(id.clone());
            if let Some(id) = stream_id(id) {
                self.note_quiet(id);
            }
        }
    }

    /// What `$` stands for, where that is known.
    pub(super) fn position(&self) -> Option<&Bytes> {
        self.position.as_ref().filter(|_| matches!(self.known, KeyState::Remaining(_)))
    }

    /// A wake has found nothing.
    pub(super) fn wake_was_empty(&mut self) {
        self.empty_wakes = self.empty_wakes.saturating_add(1);
    }

    /// A wake has found something.
    pub(super) fn wake_was_full(&mut self) {
        self.empty_wakes = 0;
    }

    /// Whether its wakes find nothing. Whether other consumers win, or the key of this name in another database is meant
    /// (tracking does not say which), or the server forgets keys, cannot be told apart.
    pub(super) fn is_losing(&self) -> bool {
        self.empty_wakes >= LOST_IN_A_ROW
    }
}

/// When the tries of wakes are due that will probably find nothing: at once, as long as they come no faster than the
/// pace. It bounds what all such keys together cost, at a rate that lets a key in use live with it.
#[derive(Debug, Default)]
pub(super) struct Pace {
    due: Option<Instant>,
}

impl Pace {
    /// When the next wake may be followed up, which costs so many requests; `None`: now.
    pub(super) fn next(&mut self, now: Instant, tries: u32) -> Option<Instant> {
        let due = self.due.map_or(now, |at| at.max(now)) + PACE.saturating_mul(tries.max(1));
        let due = due.min(now + SLOWEST);
        self.due = Some(due);
        due.checked_sub(AHEAD).filter(|at| *at > now)
    }
}

#[cfg(test)]
thread_local! {
    /// Looks at a spot by this thread, for tests of how the cost of a call grows.
    pub(super) static LOOKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct WatchedKeys {
    spots: Slab<WatchedKey>,
    by_name: HashMap<Bytes, Vec<usize>>,
    /// Spots that were left, the first one first, with the number of that leaving.
    vacant: VecDeque<(usize, u64)>,
    leavings: u64,
}

impl WatchedKeys {
    /// The spot of a key, made when there is none.
    pub(super) fn enter(&mut self, database: u32, kind: Waited, name: &[u8]) -> usize {
        let found = self.named(name).iter().copied();
        let mut found = found.filter(|at| {
            self.spots.get(*at).is_some_and(|spot| spot.database == database && spot.kind == kind)
        });
        if let Some(at) = found.next() {
            return at;
        }
        let name = Bytes::copy_from_slice(name);
        let at = self.spots.insert(WatchedKey {
            database,
            kind,
            name: name.clone(),
            known: KeyState::Unknown,
            woken: false,
            queue: BTreeSet::new(),
            newcomers: BTreeSet::new(),
            asking: 0,
            empty_wakes: 0,
            tries: 0,
            not_before: None,
            quiet_after: None,
            position: None,
            vacated: 0,
        });
        self.by_name.entry(name).or_default().push(at);
        at
    }

    /// The spots of a key's name, in all databases and kinds.
    pub(super) fn named(&self, name: &[u8]) -> &[usize] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    pub(super) fn at(&self, at: usize) -> Option<&WatchedKey> {
        #[cfg(test)]
        LOOKS.with(|looks| looks.set(looks.get() + 1));
        self.spots.get(at)
    }

    pub(super) fn at_mut(&mut self, at: usize) -> Option<&mut WatchedKey> {
        #[cfg(test)]
        LOOKS.with(|looks| looks.set(looks.get() + 1));
        self.spots.get_mut(at)
    }

    /// All spots, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &WatchedKey)> {
        self.spots.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.spots.len()
    }

    /// A waiter leaves a spot. Of those nobody waits for, the oldest are forgotten.
    pub(super) fn leave(&mut self, at: usize, waiter: u64) {
        let Some(spot) = self.spots.get_mut(at) else { return };
        spot.newcomers.remove(&waiter);
        if !spot.queue.remove(&waiter) || !spot.queue.is_empty() {
            return;
        }
        self.leavings += 1;
        spot.vacated = self.leavings;
        self.vacant.push_back((at, self.leavings));
        self.trim();
    }

    /// Forgets the spots that were left first, until no more than [`VACANT`] are kept. One that is being asked about stays
    /// until its answer has come, and with it those that were left after it.
    pub(super) fn trim(&mut self) {
        while self.vacant.len() > VACANT
            && let Some((oldest, leaving)) = self.vacant.front().copied()
        {
            if self.vacated(oldest, leaving).is_some_and(|spot| spot.asking > 0) {
                return;
            }
            self.forget_oldest();
        }
    }

    /// The spot that was left then, unless it has been waited for again since, or stands for another key by now.
    fn vacated(&self, at: usize, leaving: u64) -> Option<&WatchedKey> {
        self.spots.get(at).filter(|spot| spot.vacated == leaving && spot.queue.is_empty())
    }

    /// Forgets spots that nobody waits for until there are fewer than `limit`, as far as there are such.
    pub(super) fn make_room(&mut self, limit: usize) {
        for _ in 0..self.vacant.len() {
            if self.spots.len() < limit {
                return;
            }
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((oldest, leaving)) = self.vacant.pop_front()
            && let Some(spot) = self.vacated(oldest, leaving)
        {
            if spot.asking == 0 {
                self.forget(oldest);
            } else {
                self.vacant.push_back((oldest, leaving));
            }
        }
    }

    fn forget(&mut self, at: usize) {
        let spot = self.spots.remove(at);
        if let Some(spots) = self.by_name.get_mut(&spot.name) {
            spots.retain(|other| *other != at);
            if spots.is_empty() {
                self.by_name.remove(&spot.name);
            }
        }
    }

    /// The connection is lost: nothing is known any more, nothing is asked.
    pub(super) fn forget_all_knowledge(&mut self) {
        for (_, spot) in &mut self.spots {
            spot.forget();
            spot.woken = false;
            spot.asking = 0;
            spot.not_before = None;
        }
        self.trim();
    }
}
