//! Who has read what over a lane that the server tracks for, so that each client is told of its own keys.
//!
//! The server knows the lane alone: the first write to a key that was read there is told once, whoever read it. So a key's
//! readers are kept here, each with the place of its last read among the lane's commands. A reader whose reply had
//! arrived before the news is told and forgotten, as the server forgets the key. One whose read is still on its way is
//! kept, because the server remembers the key for that read anew. Who is told too often loses nothing;
//! who is not told serves old values for ever. So a table that is full tells and forgets, and a lane that ends tells all
//! who have used it to forget everything.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use indexmap::{IndexMap, IndexSet};

use super::Charge;
use crate::resp::{self, Protocol, encode};

/// Keys that are remembered for one lane: as many as the server does by default (`tracking-table-max-keys`).
const MOST_KEYS: usize = 1_000_000;
/// Bytes that they may take, unless all clients together may have little.
const MOST_BYTES: usize = 64 << 20;
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
        let Some(news) = News::read(push) else { return false };
        let mut table = self.table.borrow_mut();
        let told = match &news.keys {
            None => table.all_change(answered, &news),
            Some(keys) => keys.iter().flat_map(|key| table.changes(key, answered)).collect(),
        };
        let bytes = table.bytes;
        drop(table);
        self.held.borrow_mut().set(bytes);
        tell(told);
        true
    }

    /// Nothing is told of this connection any more: all who have used it are to forget everything.
    pub(super) fn lose(&self) {
        let table = std::mem::take(&mut *self.table.borrow_mut());
        self.held.borrow_mut().set(0);
        let news = News::of(None);
        for known in table.known.into_values() {
            known.reader.hears(&news);
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
    fn known(&mut self, reader: &Rc<dyn Reader>) -> &mut Known {
        self.known.entry(reader.id()).or_insert_with(|| Known {
            reader: Rc::clone(reader),
            keys: IndexSet::new(),
            hears_all: false,
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

    /// The server has told of `key`, behind `answered` replies: whom it concerns.
    fn changes(&mut self, key: &Bytes, answered: u64) -> Vec<(Rc<dyn Reader>, News)> {
        let said = News::of(Some(vec![key.clone()]));
        // Between a write and what the server tells of it no other reply comes, and a key that was not read since is not
        // told of again: this is that write's.
        let own = self.own.take().filter(|(_, of, place)| of == key && answered == place + 1);
        let is_own = |id: u64| own.as_ref().is_some_and(|(writer, ..)| *writer == id);
        let mut told = Vec::new();
        if let Some(readers) = self.keys.get_mut(key) {
            let mut left = Vec::new();
            for read in readers.drain(..) {
                if let Some(known) = self.known.get_mut(&read.id) {
                    if read.first < answered && !is_own(read.id) && !known.hears_all {
                        told.push((Rc::clone(&known.reader), said.clone()));
                    }
                    if read.last >= answered {
                        // Which of its reads is the next to be answered is not known: it may be any from here on.
                        left.push(Read { first: read.first.max(answered), ..read });
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
        self.bytes = bytes;
        self.known.values().map(|known| (Rc::clone(&known.reader), news.clone())).collect()
    }

    fn part(&mut self, id: u64) {
        let Some(gone) = self.known.remove(&id) else { return };
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
        assert_eq!((a.heard(), b.heard()), (String::new(), "*".into()));
        tracker.note(&of_b, b"k", 0, 1);
        tracker.part(2);
        assert_eq!(tracker.table.borrow().bytes, 0);
        assert!(!tracker.has_readers());
    }

    #[test]
    fn what_is_no_news_is_not_taken() {
        for push in ["+OK\r\n", ">2\r\n$7\r\nmessage\r\n*0\r\n", ">1\r\n$10\r\ninvalidate\r\n", ">0\r\n"] {
            assert!(!tracker(1).receive(push.as_bytes(), 0), "{push}");
        }
    }
}
