//! Who has read what over a lane that the server tracks for, so that each client is told of its own keys.
//!
//! The server knows the lane alone: the first write to a key that was read there is told once, whoever read it. So a key's
//! readers are kept here, each with the place of its last read among the lane's commands. A reader whose reply had
//! arrived before the news is told and forgotten, as the server forgets the key. One whose read is still on its way is
//! kept, because the server remembers the key for that read anew. Who is told too often loses nothing;
//! who is not told serves old values for ever. So a table that is full tells and forgets, and a lane that ends tells all
//! who have used it to forget what they have read there.
//!
//! Where clients ask by prefix (BCAST), the server is asked for the shortest of their prefixes, because those of one
//! connection must not overlap (`checkPrefixCollisionsOrReply` in redis `tracking.c`), and what it tells is passed on to
//! those with a prefix of the key.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use indexmap::{IndexMap, IndexSet};

use super::Charge;
use crate::resp::{self, Protocol, encode};

/// Keys that are remembered for one lane: as many as the server does by default (`tracking-table-max-keys`).
const MOST_KEYS: usize = 1_000_000;
/// Bytes that they may take, unless all clients together may have little.
const MOST_BYTES: usize = 64 << 20;
/// So many keys are named to a client that nobody tells of them any more. One that may have cached more is to forget everything.
pub(super) const MOST_NAMED: usize = 1024;
/// The server is asked for so many prefixes of one connection; beyond it for all keys, because each write there looks at each
/// prefix.
const MOST_PREFIXES: usize = 256;
#[cfg(test)]
thread_local! {
    /// Looks for a prefix of a key, for tests of how their number grows.
    static LOOKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}
/// What an entry takes besides its key, about: in the table, and among the keys of its reader.
const PER_KEY: usize = 128;
const PER_READER: usize = 80;

/// What the server tracks on a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tracked {
    /// Nothing.
    #[default]
    No,
    /// Every key that is read over it.
    Reads,
    /// Every key with one of the prefixes that its clients have asked for, whoever reads it.
    Prefixes,
    /// As `Reads`, but it is told over another lane, so that the protocol does not matter.
    RedirectedReads,
    /// As `Prefixes`, told in the same way.
    RedirectedPrefixes,
    /// What is read over other lanes: over this one nothing but that is told.
    ForOthers,
}

impl Tracked {
    /// Whether it is told over another lane.
    #[must_use]
    pub fn is_redirected(self) -> bool {
        match self {
            Self::RedirectedReads | Self::RedirectedPrefixes => true,
            Self::No | Self::Reads | Self::Prefixes | Self::ForOthers => false,
        }
    }

    /// Whether it is told by prefix.
    #[must_use]
    pub fn is_by_prefix(self) -> bool {
        match self {
            Self::Prefixes | Self::RedirectedPrefixes => true,
            Self::No | Self::Reads | Self::RedirectedReads | Self::ForOthers => false,
        }
    }

    /// Whether a lane may change its key from or to this: two lanes that depend on one another stay what they are.
    #[must_use]
    pub(super) fn takes_turns(self) -> bool {
        !self.is_redirected() && self != Self::ForOthers
    }
}

/// News for readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The keys that have changed; `None`: all.
    pub keys: Option<Vec<Bytes>>,
    /// The push for RESP3 clients.
    pub frame: Bytes,
}

impl News {
    /// Of `keys`; of all with `None`.
    #[must_use]
    pub fn of(keys: Option<Vec<Bytes>>) -> Self {
        let mut out = BytesMut::new();
        encode::push(&mut out, Protocol::Resp3, 2);
        encode::bulk(&mut out, b"invalidate");
        match &keys {
            Some(keys) => {
                encode::array(&mut out, keys.len());
                keys.iter().for_each(|key| encode::bulk(&mut out, key));
            }
            None => encode::null(&mut out, Protocol::Resp3),
        }
        Self { keys, frame: out.freeze() }
    }

    /// Reads a push of the server's. `None`: it is something else.
    fn read(frame: &[u8]) -> Option<Self> {
        let mut parts = resp::elements(frame)?;
        let is_news = resp::bulk(parts.next()?)? == b"invalidate";
        let what = parts.next().filter(|_| is_news)?;
        let keys = if resp::is_null(what) {
            None
        } else {
            Some(
                resp::elements(what)?
                    .map(|key| resp::bulk(key).map(Bytes::copy_from_slice))
                    .collect::<Option<_>>()?,
            )
        };
        Some(Self { keys, frame: Bytes::copy_from_slice(frame) })
    }
}

/// A client that reads over lanes which the server tracks for. Must not call back into the lane.
pub trait Reader {
    /// Its id, never used again for another.
    fn id(&self) -> u64;
    /// Is to forget what `news` names.
    fn hears(&self, news: &News);
}

struct Known {
    reader: Rc<dyn Reader>,
    keys: IndexSet<Bytes>,
    /// Nobody knows what it has read: it is told everything.
    hears_all: bool,
    /// How many prefixes it has asked for.
    prefixes: usize,
}

impl Known {
    /// Whether the keys that it has read last are all that it may have cached.
    fn names_all(&self) -> bool {
        self.keys.len() <= MOST_NAMED && !self.hears_all && self.prefixes == 0
    }
}

/// What the server is to be asked so that a lane hears of more prefixes.
pub(super) struct Asking {
    pub(super) commands: BytesMut,
    pub(super) replies: u32,
    /// What changes meanwhile may not be told.
    pub(super) has_gap: bool,
    /// Who has asked for nothing before, and so has nothing to forget.
    pub(super) newcomer: Option<u64>,
}

/// A reader of one key.
#[derive(Clone, Copy, Debug)]
struct Read {
    id: u64,
    /// The place of its first read, among the lane's commands, that the server has not told of since, or one before it.
    first: u64,
    /// That of its last read.
    last: u64,
}

/// Readers of one key, by id.
type Readers = Vec<Read>;

#[derive(Default)]
struct Table {
    /// In order, as all that is iterated over to act: they are told in the same order each time.
    known: BTreeMap<u64, Known>,
    keys: IndexMap<Bytes, Readers>,
    bytes: usize,
    /// Who has asked for a prefix, by their ids.
    by_prefix: BTreeMap<Bytes, BTreeSet<u64>>,
    /// How many of them have which length.
    lengths: BTreeMap<usize, usize>,
    /// The prefixes that the server has been asked for; none begins with another one.
    asked: BTreeSet<Bytes>,
    /// The write of a client that need not be told of it, by its place.
    own: Option<(u64, Bytes, u64)>,
}

/// The table of one lane.
pub(super) struct Tracker {
    table: RefCell<Table>,
    held: RefCell<Charge>,
    most_bytes: usize,
    most_keys: usize,
}

impl Tracker {
    /// An empty table, whose bytes count in `held`; `bound` is what all clients together may have.
    #[must_use]
    pub(super) fn new(held: Charge, bound: Option<usize>) -> Rc<Self> {
        let most_bytes = bound.map_or(MOST_BYTES, |bound| MOST_BYTES.min(bound / 8));
        Self::bounded(held, most_keys_of(most_bytes), most_bytes)
    }

    fn bounded(held: Charge, most_keys: usize, most_bytes: usize) -> Rc<Self> {
        Rc::new(Self { table: RefCell::default(), held: RefCell::new(held), most_bytes, most_keys })
    }

    /// `reader` uses the lane.
    pub(super) fn join(&self, reader: &Rc<dyn Reader>) {
        let mut table = self.table.borrow_mut();
        table.known(reader);
    }

    /// `reader` is to hear of all keys with one of `prefixes`. What the server is to be asked before, if it does not tell of
    /// them already: to tell over this connection, or over the one with the id `told_over`.
    pub(super) fn broadcasts(
        &self,
        reader: &Rc<dyn Reader>,
        prefixes: &BTreeSet<Bytes>,
        told_over: Option<u64>,
    ) -> Option<Asking> {
        let mut table = self.table.borrow_mut();
        let known = table.known(reader);
        // Of one client they only become more, until it turns tracking off.
        if known.prefixes == prefixes.len() {
            return None;
        }
        let newcomer = (known.prefixes == 0).then(|| reader.id());
        known.prefixes = prefixes.len();
        let mut bytes = 0;
        for prefix in prefixes {
            let table = &mut *table;
            let ids = table.by_prefix.entry(prefix.clone()).or_default();
            if ids.is_empty() {
                bytes += prefix.len() + PER_KEY;
                *table.lengths.entry(prefix.len()).or_default() += 1;
            }
            if ids.insert(reader.id()) {
                bytes += PER_READER;
            }
        }
        table.bytes += bytes;
        self.held.borrow_mut().set(table.bytes);
        let asking = table.ask_for(prefixes, told_over)?;
        Some(Asking { newcomer, ..asking })
    }

    /// Whether the client `id` is told of all its `count` prefixes.
    pub(super) fn knows_prefixes(&self, id: u64, count: usize) -> bool {
        self.table.borrow().known.get(&id).is_some_and(|known| known.prefixes == count)
    }

    /// The client `id` asks by prefix no more.
    pub(super) fn ends_broadcasts(&self, id: u64) {
        let mut table = self.table.borrow_mut();
        if table.known.get(&id).is_some_and(|known| known.prefixes > 0) {
            table.part(id);
            self.held.borrow_mut().set(table.bytes);
        }
    }

    /// Tells all readers but `newcomer` to forget everything.
    pub(super) fn tell_all(&self, newcomer: Option<u64>) {
        let news = News::of(None);
        let told: Vec<_> = {
            let table = self.table.borrow();
            let others = table.known.iter().filter(|(id, _)| Some(**id) != newcomer);
            others.map(|(_, known)| (Rc::clone(&known.reader), news.clone())).collect()
        };
        tell(told);
    }

    /// `reader` reads `key` by the command at `place`; `answered` commands of the lane have their replies.
    pub(super) fn note(&self, reader: &Rc<dyn Reader>, key: &[u8], place: u64, answered: u64) {
        let mut table = self.table.borrow_mut();
        table.note(reader, key, place);
        if table.bytes > self.most_bytes || table.keys.len() > self.most_keys {
            let news = self.make_room(&mut table, answered);
            drop(table);
            tell(news);
            table = self.table.borrow_mut();
        }
        self.held.borrow_mut().set(table.bytes);
    }

    /// What `reader` reads is not known.
    pub(super) fn note_unknown(&self, reader: &Rc<dyn Reader>) {
        self.table.borrow_mut().known(reader).hears_all = true;
    }

    /// Forgets keys until there is room, and returns who is to be told. What is still on its way is cached after that, so
    /// such a reader is told everything from now on.
    fn make_room(&self, table: &mut Table, answered: u64) -> Vec<(Rc<dyn Reader>, News)> {
        let mut news = Vec::new();
        while table.bytes > self.most_bytes || table.keys.len() > self.most_keys {
            let Some((key, readers)) = table.keys.swap_remove_index(0) else { break };
            table.bytes = table.bytes.saturating_sub(key.len() + PER_KEY + readers.len() * PER_READER);
            let said = News::of(Some(vec![key.clone()]));
            for read in readers {
                if let Some(known) = table.known.get_mut(&read.id) {
                    known.hears_all |= read.last >= answered;
                    known.keys.swap_remove(&key);
                    news.push((Rc::clone(&known.reader), said.clone()));
                }
            }
        }
        news
    }

    /// A client wrote `key` by the command at `place`, surely, and need not be told of it.
    pub(super) fn wrote(&self, id: u64, key: Bytes, place: u64) {
        self.table.borrow_mut().own = Some((id, key, place));
    }

    /// Takes a push of the server's that came behind `answered` replies, and tells whom it concerns. `false`: it is none
    /// that a lane may get.
    #[must_use]
    pub(super) fn receive(&self, push: &[u8], answered: u64) -> bool {
        self.takes(push, answered, answered)
    }

    /// The same of a push that came over another connection, so that its place among the replies is not known: behind the first
    /// `settled` of them, at the least. All readers are told; those with a later read are not forgotten, because the server may
    /// have run that behind the write.
    #[must_use]
    pub(super) fn receive_beside(&self, push: &[u8], settled: u64) -> bool {
        self.takes(push, u64::MAX, settled)
    }

    /// Tells those whose first read is before `heard`, and forgets those whose last read is before `settled`.
    fn takes(&self, push: &[u8], heard: u64, settled: u64) -> bool {
        let Some(news) = News::read(push) else { return false };
        let mut table = self.table.borrow_mut();
        let told = match &news.keys {
            None => table.all_change(settled, &news),
            Some(keys) if !table.asked.is_empty() => table.tell_by_prefix(keys),
            Some(keys) => keys.iter().flat_map(|key| table.changes(key, heard, settled)).collect(),
        };
        let bytes = table.bytes;
        drop(table);
        self.held.borrow_mut().set(bytes);
        tell(told);
        true
    }

    /// Nothing is told of this connection any more: all who have used it are to forget what they may have cached. Who is told all
    /// of that by name is not told to forget everything, see [`Self::name_last_read`].
    pub(super) fn lose(&self) {
        let table = std::mem::take(&mut *self.table.borrow_mut());
        self.held.borrow_mut().set(0);
        let all = News::of(None);
        for known in table.known.values() {
            let named = table.last_read(known, MOST_NAMED);
            if !named.is_empty() {
                known.reader.hears(&News::of(Some(named)));
            }
            if !known.names_all() {
                known.reader.hears(&all);
            }
        }
    }

    /// Whether [`Self::last_read`] names all that the client `id` may have cached of what it has read here.
    pub(super) fn names_all(&self, id: u64) -> bool {
        self.table.borrow().known.get(&id).is_none_or(Known::names_all)
    }

    /// Tells the client `id` to forget what it has read here last, by name. Libraries differ in what forgetting everything means
    /// for replies that they wait for, or have read and not stored yet: node-redis 6 stores them afterwards, and overlooks what
    /// it is told of their keys meanwhile.
    pub(super) fn name_last_read(&self, id: u64) {
        let reader = self.table.borrow().known.get(&id).map(|known| Rc::clone(&known.reader));
        let named = self.last_read(id, MOST_NAMED);
        if let Some(reader) = reader.filter(|_| !named.is_empty()) {
            reader.hears(&News::of(Some(named)));
        }
    }

    /// The client `id` has gone.
    pub(super) fn part(&self, id: u64) {
        let mut table = self.table.borrow_mut();
        table.part(id);
        self.held.borrow_mut().set(table.bytes);
    }

    /// Whether the client `id` has used the lane.
    #[must_use]
    pub(super) fn knows(&self, id: u64) -> bool {
        self.table.borrow().known.contains_key(&id)
    }

    /// The keys that client `id` has read last, of those that it is to be told of: `most` at the most.
    #[must_use]
    pub(super) fn last_read(&self, id: u64, most: usize) -> Vec<Bytes> {
        let table = self.table.borrow();
        table.known.get(&id).map(|known| table.last_read(known, most)).unwrap_or_default()
    }

    /// Whether anybody has used the lane who would have to forget everything with it.
    #[must_use]
    pub(super) fn has_readers(&self) -> bool {
        !self.table.borrow().known.is_empty()
    }
}

/// So many keys fit at the most, with one reader each.
fn most_keys_of(bytes: usize) -> usize {
    MOST_KEYS.min(bytes / (PER_KEY + PER_READER))
}

impl Table {
    /// The keys that `known` has read last: `most` at the most, the last one first.
    fn last_read(&self, known: &Known, most: usize) -> Vec<Bytes> {
        let id = known.reader.id();
        let read = |key: &Bytes| {
            let readers = self.keys.get(key)?;
            let at = readers.binary_search_by_key(&id, |read| read.id).ok()?;
            Some((Reverse(readers.get(at)?.last), key.clone()))
        };
        let mut keys: Vec<_> = known.keys.iter().filter_map(read).collect();
        if keys.len() > most {
            // There may be a million.
            keys.select_nth_unstable(most);
            keys.truncate(most);
        }
        keys.sort_unstable();
        keys.into_iter().map(|(_, key)| key).collect()
    }

    fn known(&mut self, reader: &Rc<dyn Reader>) -> &mut Known {
        self.known.entry(reader.id()).or_insert_with(|| Known {
            reader: Rc::clone(reader),
            keys: IndexSet::new(),
            hears_all: false,
            prefixes: 0,
        })
    }

    fn note(&mut self, reader: &Rc<dyn Reader>, key: &[u8], place: u64) {
        let id = reader.id();
        if let Some(readers) = self.keys.get_mut(key) {
            match readers.binary_search_by_key(&id, |read| read.id) {
                Ok(at) => readers[at].last = place,
                Err(at) => {
                    readers.insert(at, Read { id, first: place, last: place });
                    self.bytes += PER_READER;
                    // The same bytes as in the table.
                    if let Some((key, _)) = self.keys.get_key_value(key) {
                        let key = key.clone();
                        self.known(reader).keys.insert(key);
                    }
                }
            }
            return;
        }
        let key = Bytes::copy_from_slice(key);
        self.known(reader).keys.insert(key.clone());
        self.bytes += key.len() + PER_KEY + PER_READER;
        self.keys.insert(key, vec![Read { id, first: place, last: place }]);
    }

    /// The server has told of `key`: whom it concerns, see [`Tracker::takes`].
    fn changes(&mut self, key: &Bytes, heard: u64, settled: u64) -> Vec<(Rc<dyn Reader>, News)> {
        let said = News::of(Some(vec![key.clone()]));
        // Between a write and what the server tells of it no other reply comes, and a key that was not read since is not
        // told of again: this is that write's.
        let own = self.own.take().filter(|(_, of, place)| of == key && heard == place + 1);
        let is_own = |id: u64| own.as_ref().is_some_and(|(writer, ..)| *writer == id);
        let mut told = Vec::new();
        if let Some(readers) = self.keys.get_mut(key) {
            let mut left = Vec::new();
            for read in readers.drain(..) {
                if let Some(known) = self.known.get_mut(&read.id) {
                    if read.first < heard && !is_own(read.id) && !known.hears_all {
                        told.push((Rc::clone(&known.reader), said.clone()));
                    }
                    if read.last >= settled {
                        // Which of its reads is the next to be answered is not known: it may be any from here on.
                        left.push(Read { first: read.first.max(settled), ..read });
                    } else {
                        known.keys.swap_remove(key);
                        self.bytes = self.bytes.saturating_sub(PER_READER);
                    }
                }
            }
            if left.is_empty() {
                self.keys.swap_remove(key);
                self.bytes = self.bytes.saturating_sub(key.len() + PER_KEY);
            } else {
                *readers = left;
            }
        }
        let hear_all = self.known.values().filter(|known| known.hears_all && !is_own(known.reader.id()));
        told.extend(hear_all.map(|known| (Rc::clone(&known.reader), said.clone())));
        told
    }

    /// What the server is to be asked so that it tells of all `prefixes`.
    fn ask_for(&mut self, prefixes: &BTreeSet<Bytes>, told_over: Option<u64>) -> Option<Asking> {
        // None of those begins with another one, so what `prefix` begins with comes directly before it in their order.
        let is_covered = |prefix: &Bytes, by: &BTreeSet<Bytes>| {
            let upto = (Bound::Unbounded, Bound::Included(&prefix[..]));
            by.range::<[u8], _>(upto).next_back().is_some_and(|before| prefix.starts_with(before))
        };
        let fresh: Vec<Bytes> =
            prefixes.iter().filter(|prefix| !is_covered(prefix, &self.asked)).cloned().collect();
        if fresh.is_empty() {
            return None;
        }
        let too_many = self.asked.len() + fresh.len() > MOST_PREFIXES;
        let fresh = if too_many { vec![Bytes::new()] } else { fresh };
        let before = self.asked.len();
        self.asked.retain(|known| !fresh.iter().any(|prefix| known.starts_with(prefix)));
        // A shorter prefix in the place of longer ones: they have to be taken back, and meanwhile nothing is told.
        let has_gap = self.asked.len() < before;
        self.asked.extend(fresh.iter().cloned());
        let mut commands = BytesMut::new();
        if has_gap {
            encode::command(&mut commands, &[b"CLIENT", b"TRACKING", b"OFF"]);
        }
        let asked: Vec<&Bytes> = if has_gap { self.asked.iter().collect() } else { fresh.iter().collect() };
        let mut words: Vec<&[u8]> = vec![b"CLIENT", b"TRACKING", b"ON", b"BCAST"];
        let id = told_over.map(|id| id.to_string());
        id.iter().for_each(|id| words.extend([&b"REDIRECT"[..], id.as_bytes()]));
        asked.iter().for_each(|prefix| words.extend([&b"PREFIX"[..], prefix]));
        encode::command(&mut commands, &words);
        Some(Asking { commands, replies: 1 + u32::from(has_gap), has_gap, newcomer: None })
    }

    /// The server has told of `keys`: who has asked for a prefix of them. One push for each prefix, as the server sends.
    fn tell_by_prefix(&self, keys: &[Bytes]) -> Vec<(Rc<dyn Reader>, News)> {
        let mut found: BTreeMap<&[u8], (&BTreeSet<u64>, Vec<Bytes>)> = BTreeMap::new();
        for key in keys {
            for (&length, _) in self.lengths.range(..=key.len()) {
                #[cfg(test)]
                LOOKS.with(|looks| looks.set(looks.get() + 1));
                if let Some(ids) = self.by_prefix.get(&key[..length]) {
                    found.entry(&key[..length]).or_insert((ids, Vec::new())).1.push(key.clone());
                }
            }
        }
        let mut told = Vec::new();
        for (ids, own) in found.into_values() {
            let news = News::of(Some(own));
            let readers = ids.iter().filter_map(|id| self.known.get(id));
            told.extend(readers.map(|known| (Rc::clone(&known.reader), news.clone())));
        }
        told
    }

    /// Every key has changed.
    fn all_change(&mut self, answered: u64, news: &News) -> Vec<(Rc<dyn Reader>, News)> {
        self.own = None;
        let mut bytes = 0;
        let known = &mut self.known;
        self.keys.retain(|key, readers| {
            readers.retain_mut(|read| {
                let is_on_its_way = read.last >= answered;
                if !is_on_its_way && let Some(known) = known.get_mut(&read.id) {
                    known.keys.swap_remove(key);
                }
                read.first = read.first.max(answered);
                is_on_its_way
            });
            if !readers.is_empty() {
                bytes += key.len() + PER_KEY + readers.len() * PER_READER;
            }
            !readers.is_empty()
        });
        for (prefix, ids) in &self.by_prefix {
            bytes += prefix.len() + PER_KEY + ids.len() * PER_READER;
        }
        self.bytes = bytes;
        self.known.values().map(|known| (Rc::clone(&known.reader), news.clone())).collect()
    }

    fn part(&mut self, id: u64) {
        let Some(gone) = self.known.remove(&id) else { return };
        if gone.prefixes > 0 {
            let (freed, lengths) = (&mut 0, &mut self.lengths);
            self.by_prefix.retain(|prefix, ids| {
                *freed += if ids.remove(&id) { PER_READER } else { 0 };
                if ids.is_empty() {
                    *freed += prefix.len() + PER_KEY;
                    if let Entry::Occupied(mut count) = lengths.entry(prefix.len()) {
                        *count.get_mut() -= 1;
                        if *count.get() == 0 {
                            count.remove();
                        }
                    }
                }
                !ids.is_empty()
            });
            self.bytes = self.bytes.saturating_sub(*freed);
        }
        for key in gone.keys {
            let Some(readers) = self.keys.get_mut(&key) else { continue };
            if let Ok(at) = readers.binary_search_by_key(&id, |read| read.id) {
                readers.remove(at);
                self.bytes = self.bytes.saturating_sub(PER_READER);
            }
            if readers.is_empty() {
                self.keys.swap_remove(&key);
                self.bytes = self.bytes.saturating_sub(key.len() + PER_KEY);
            }
        }
    }
}

fn tell(news: Vec<(Rc<dyn Reader>, News)>) {
    for (reader, news) in news {
        reader.hears(&news);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::pool::ClientMemory;

    struct Listener {
        id: u64,
        heard: RefCell<Vec<String>>,
    }

    impl Reader for Listener {
        fn id(&self) -> u64 {
            self.id
        }

        fn hears(&self, news: &News) {
            self.heard.borrow_mut().push(match &news.keys {
                Some(keys) => keys.iter().map(|key| String::from_utf8_lossy(key)).collect(),
                None => "*".to_owned(),
            });
        }
    }

    impl Listener {
        fn new(id: u64) -> (Rc<Self>, Rc<dyn Reader>) {
            let listener = Rc::new(Self { id, heard: RefCell::default() });
            (Rc::clone(&listener), listener)
        }

        fn heard(&self) -> String {
            self.heard.take().join(" ")
        }
    }

    fn tracker(most_keys: usize) -> Rc<Tracker> {
        Tracker::bounded(ClientMemory::new(0).unnamed(), most_keys, usize::MAX)
    }

    fn changed(key: &str) -> Bytes {
        News::of(Some(vec![Bytes::copy_from_slice(key.as_bytes())])).frame
    }

    #[test]
    fn the_keys_that_a_client_has_read_last_are_its_own() {
        let tracker = tracker(10);
        let ((_, of_a), (_, of_b)) = (Listener::new(1), Listener::new(2));
        for (place, (reader, key)) in
            [(&of_a, "x"), (&of_a, "y"), (&of_b, "z"), (&of_a, "w"), (&of_a, "x")].into_iter().enumerate()
        {
            tracker.note(reader, key.as_bytes(), place as u64, 0);
        }
        assert_eq!(tracker.last_read(1, 2), ["x", "w"]);
        assert_eq!(tracker.last_read(1, 9), ["x", "w", "y"]);
        assert_eq!(tracker.last_read(2, 9), ["z"]);
        assert!(tracker.last_read(3, 9).is_empty());
    }

    #[test]
    fn those_who_have_read_a_key_are_told_once_and_others_never() {
        let tracker = tracker(10);
        let ((a, of_a), (b, of_b), (c, of_c)) = (Listener::new(1), Listener::new(2), Listener::new(3));
        tracker.note(&of_a, b"k", 0, 0);
        tracker.note(&of_b, b"k", 1, 0);
        tracker.note(&of_c, b"j", 2, 0);
        assert!(tracker.receive(&changed("k"), 3));
        assert!(tracker.receive(&changed("k"), 3));
        assert_eq!((a.heard(), b.heard(), c.heard()), ("k".into(), "k".into(), String::new()));
    }

    #[test]
    fn a_read_on_its_way_is_remembered() {
        let tracker = tracker(10);
        let (a, of_a) = Listener::new(1);
        tracker.note(&of_a, b"k", 5, 5);
        assert!(tracker.receive(&changed("k"), 5));
        assert_eq!(a.heard(), "", "of what it has not got");
        assert!(tracker.receive(&changed("k"), 6));
        assert!(tracker.receive(&changed("k"), 6));
        assert_eq!(a.heard(), "k");
        // Of three reads one has its reply, and then two.
        for place in 6..9 {
            tracker.note(&of_a, b"k", place, 6);
        }
        for answered in [6, 7, 8, 9, 9] {
            assert!(tracker.receive(&changed("k"), answered));
        }
        assert_eq!(a.heard(), "k k k");
        // The same of all keys.
        tracker.note(&of_a, b"k", 9, 9);
        assert!(tracker.receive(&News::of(None).frame, 9));
        assert!(tracker.receive(&changed("k"), 10));
        assert!(tracker.receive(&changed("k"), 10));
        assert_eq!(a.heard(), "* k");
    }

    #[test]
    fn what_comes_over_another_connection_is_told_to_all_and_forgets_whom_the_server_has_forgotten() {
        let tracker = tracker(10);
        let ((a, of_a), (b, of_b)) = (Listener::new(1), Listener::new(2));
        tracker.note(&of_a, b"k", 0, 0);
        tracker.note(&of_b, b"k", 1, 1);
        // Neither read is known to be older than the write.
        assert!(tracker.receive_beside(&changed("k"), 0));
        assert_eq!((a.heard(), b.heard()), ("k".into(), "k".into()));
        // That of `a` is; that of `b` may have been run behind it, and then the server tells of the next write.
        assert!(tracker.receive_beside(&changed("k"), 1));
        assert_eq!((a.heard(), b.heard()), ("k".into(), "k".into()));
        assert!(tracker.receive_beside(&changed("k"), 2));
        assert!(tracker.receive_beside(&changed("k"), 2));
        assert_eq!((a.heard(), b.heard()), (String::new(), "k".into()));
        // The same of all keys, in the null of either protocol.
        tracker.note(&of_b, b"k", 2, 2);
        for null in ["_", "$-1"] {
            let all = format!(">2\r\n$10\r\ninvalidate\r\n{null}\r\n");
            assert!(tracker.receive_beside(all.as_bytes(), 2));
        }
        assert!(tracker.receive_beside(&changed("k"), 3));
        assert_eq!((a.heard(), b.heard()), ("* *".into(), "* * k".into()));
    }

    #[test]
    fn a_full_table_tells_what_it_forgets() {
        let tracker = tracker(2);
        let ((a, of_a), (b, of_b)) = (Listener::new(1), Listener::new(2));
        tracker.note(&of_a, b"i", 0, 0);
        tracker.note(&of_b, b"j", 1, 1);
        tracker.note(&of_b, b"k", 2, 0);
        assert_eq!((a.heard(), b.heard()), ("i".into(), String::new()));
        // `i` was on its way when it was forgotten: its reader is told everything from now on.
        assert!(tracker.receive(&changed("i"), 3));
        assert_eq!(a.heard(), "i");
    }

    #[test]
    fn only_a_sure_write_directly_before_the_news_is_ones_own() {
        let tracker = tracker(10);
        let ((a, of_a), (b, of_b)) = (Listener::new(1), Listener::new(2));
        for (place, answered, is_told) in [(2, 3, false), (2, 2, true), (2, 4, true)] {
            tracker.note(&of_a, b"k", 0, 0);
            tracker.note(&of_b, b"k", 1, 0);
            tracker.wrote(1, Bytes::from_static(b"k"), place);
            assert!(tracker.receive(&changed("k"), answered));
            assert_eq!(a.heard().is_empty(), !is_told, "{place} {answered}");
            assert_eq!(b.heard(), "k");
        }
    }

    #[test]
    fn who_has_gone_leaves_nothing_and_who_is_left_forgets_with_the_lane() {
        let tracker = tracker(10);
        let ((a, of_a), (b, of_b)) = (Listener::new(1), Listener::new(2));
        for key in [&b"i"[..], b"j", b"k"] {
            tracker.note(&of_a, key, 0, 1);
            tracker.note(&of_b, key, 0, 1);
        }
        let full = tracker.table.borrow().bytes;
        tracker.part(1);
        assert_eq!(tracker.table.borrow().bytes, full - 3 * PER_READER);
        tracker.lose();
        assert_eq!(tracker.table.borrow().bytes, 0);
        assert_eq!((a.heard(), b.heard()), (String::new(), "ijk".into()), "all is named");
        tracker.note(&of_b, b"k", 0, 1);
        tracker.part(2);
        assert_eq!(tracker.table.borrow().bytes, 0);
        assert!(!tracker.has_readers());
    }

    /// A library may overlook, for a reply that it waits for, what it is told after it was to forget everything.
    #[test]
    fn only_who_cannot_be_told_all_keys_by_name_is_to_forget_everything() {
        let tracker = tracker(5000);
        let readers: Vec<_> = (1..6).map(Listener::new).collect();
        tracker.note(&readers[0].1, b"k", 0, 1);
        for key in 0..=MOST_NAMED {
            tracker.note(&readers[1].1, key.to_string().as_bytes(), 0, 1);
        }
        tracker.note_unknown(&readers[2].1);
        tracker.join(&readers[3].1);
        let _ = tracker.broadcasts(&readers[4].1, &prefixes("a"), None);
        tracker.lose();
        let heard: Vec<_> = readers.iter().map(|(reader, _)| reader.heard.take()).collect();
        assert_eq!(heard[0], ["k"]);
        assert_eq!((heard[1].len(), heard[1].last().map(String::as_str)), (2, Some("*")));
        assert_eq!(
            (&heard[2][..], &heard[3][..], &heard[4][..]),
            (&["*".into()][..], &[][..], &["*".into()][..])
        );
    }

    fn prefixes(words: &str) -> BTreeSet<Bytes> {
        words.split(' ').map(|word| Bytes::copy_from_slice(word.trim_matches('.').as_bytes())).collect()
    }

    #[test]
    fn the_server_is_asked_for_the_shortest_prefixes() {
        let tracker = tracker(10);
        let readers: Vec<_> = (1..7).map(Listener::new).collect();
        let ask = |at: usize, words: &str| {
            let asking = tracker.broadcasts(&readers[at].1, &prefixes(words), None);
            asking.map(|asking| {
                let text = String::from_utf8_lossy(&asking.commands).into_owned();
                let words: Vec<_> = text.split("\r\n").filter(|word| !word.starts_with(['*', '$'])).collect();
                (words.join(" ").trim().to_owned(), asking.replies, asking.has_gap)
            })
        };
        let once = |words: &str| Some((format!("CLIENT TRACKING ON BCAST PREFIX {words}"), 1, false));
        assert_eq!(ask(0, "user:1"), once("user:1"));
        assert_eq!(ask(0, "user:1"), None, "again");
        assert_eq!(ask(0, "user:1 user:2"), once("user:2"));
        assert_eq!(ask(1, "user:12"), None, "told of already");
        assert_eq!(ask(2, "job:"), once("job:"));
        let all = "CLIENT TRACKING OFF CLIENT TRACKING ON BCAST PREFIX job: PREFIX user:".to_owned();
        assert_eq!(ask(3, "user:"), Some((all, 2, true)));
        assert_eq!(ask(4, "user:9 job:1"), None);
        for (key, who) in
            [("user:12", vec![0, 1, 3]), ("user:3", vec![3]), ("job:1", vec![2, 4]), ("x", vec![])]
        {
            assert!(tracker.receive(&changed(key), 0));
            let heard: Vec<_> = (0..5).filter(|at| readers[*at].0.heard() == key).collect();
            assert_eq!(heard, who, "{key}");
        }
        assert_eq!(
            ask(5, "."),
            Some(("CLIENT TRACKING OFF CLIENT TRACKING ON BCAST PREFIX".to_owned(), 2, true))
        );
    }

    #[test]
    fn one_push_is_parted_among_prefixes_and_who_has_gone_leaves_nothing() {
        let tracker = tracker(10);
        let ((a, of_a), (b, of_b)) = (Listener::new(1), Listener::new(2));
        let keys = |words: &str| {
            Some(words.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect())
        };
        assert!(tracker.broadcasts(&of_a, &prefixes("a b"), None).is_some());
        assert!(tracker.broadcasts(&of_b, &prefixes("."), None).is_some());
        assert!(tracker.receive(&News::of(keys("a1 b1 a2 c")).frame, 0));
        assert_eq!((a.heard(), b.heard()), ("a1a2 b1".into(), "a1b1a2c".into()));
        assert!(tracker.receive(&News::of(None).frame, 0));
        assert_eq!((a.heard(), b.heard()), ("*".into(), "*".into()));
        let full = tracker.table.borrow().bytes;
        assert_eq!(full, 3 * (PER_KEY + PER_READER) + 2);
        tracker.ends_broadcasts(1);
        assert!(tracker.receive(&changed("a1"), 0));
        assert_eq!((a.heard(), b.heard()), (String::new(), "a1".into()));
        tracker.part(2);
        assert_eq!(tracker.table.borrow().bytes, 0);
        assert!(!tracker.has_readers());
    }

    #[test]
    fn a_long_prefix_costs_no_more_looks_than_a_short_one() {
        for length in [10, 100_000] {
            let tracker = tracker(10);
            let ((a, of_a), (b, of_b)) = (Listener::new(1), Listener::new(2));
            let key = "k".repeat(length + 1);
            assert!(tracker.broadcasts(&of_a, &prefixes(&key[1..]), None).is_some());
            assert!(tracker.broadcasts(&of_b, &prefixes(&key), None).is_none(), "told of already");
            let before = LOOKS.get();
            assert!(tracker.receive(&changed(&key), 0));
            assert_eq!(LOOKS.get() - before, 2, "one for each length, at {length}");
            assert_eq!((a.heard(), b.heard()), (key.clone(), key.clone()));
            tracker.part(2);
            tracker.part(1);
            let before = LOOKS.get();
            assert!(tracker.receive(&changed(&key), 0));
            assert_eq!((LOOKS.get(), b.heard()), (before, String::new()));
        }
    }

    #[test]
    fn what_is_no_news_is_not_taken() {
        for push in ["+OK\r\n", ">2\r\n$7\r\nmessage\r\n*0\r\n", ">1\r\n$10\r\ninvalidate\r\n", ">0\r\n"] {
            assert!(!tracker(1).receive(push.as_bytes(), 0), "{push}");
        }
    }
}
