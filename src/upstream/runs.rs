//! Whether the server is still the one that clients have got to know.
//!
//! A restart or a failover takes the script cache, perhaps functions, and what HELLO said; a direct connection is closed by it, and its
//! library begins anew. Behind lanes an idle client would not notice. So every login asks for the server's run id (`INFO
//! server`), a random number that each start of a server draws, and what has changed is counted in
//! [`Change`]s, which clients compare with those they were served under.
//!
//! Several servers may hide behind one address (read replicas behind a balancer): an id that was met there within
//! [`RECENT`] is no change, or every dial would be one. Behind another address another id always is.
//!
//! Where INFO is refused, the client id of the new connection tells: a server counts them from 1 and never back, so one
//! that is not above all that were given before this dial began is of another run. A server that has given more since its
//! restart than it had before passes for the same. Where ids are kept back, too, only another address tells.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::ServerInfo;

/// An id that is seen again at the same address within this time belongs to a connection that was never closed.
const RECENT: Duration = Duration::from_secs(60);
/// So many ids are remembered.
const MOST: usize = 32;

/// Numbers of the changes that have been seen; they only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change(NonZeroU32);

impl Change {
    /// After so many changes.
    fn after(changes: u64) -> Self {
        Self(NonZeroU32::MIN.saturating_add(u32::try_from(changes).unwrap_or(u32::MAX)))
    }
}

impl Default for Change {
    fn default() -> Self {
        Self::after(0)
    }
}

/// The facts about the server from a login.
#[derive(Debug)]
pub(super) struct Met<'a> {
    pub(super) run: Option<&'a str>,
    pub(super) peer: SocketAddr,
    pub(super) id: Option<u64>,
    /// The greatest id that was known when the dial began.
    pub(super) greatest_before: u64,
    pub(super) info: &'a Arc<ServerInfo>,
}

/// The servers that were met.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// How often the server was found to be another one.
    servers: AtomicU64,
    /// The last of those at which it described itself otherwise as well.
    facts: AtomicU64,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    current: Option<Current>,
    /// When each id was last met.
    met: HashMap<String, Instant>,
    greatest: u64,
}

#[derive(Debug)]
struct Current {
    /// `None`: it is another one than before, and has not named itself.
    run: Option<String>,
    peer: SocketAddr,
    info: Arc<ServerInfo>,
}

impl Runs {
    /// The last change of the server.
    pub(super) fn server(&self) -> Change {
        Change::after(self.servers.load(Ordering::Acquire))
    }

    /// The last change of the server's description of itself.
    pub(super) fn facts(&self) -> Change {
        Change::after(self.facts.load(Ordering::Acquire))
    }

    /// The greatest client id that was met: to be asked before a dial.
    pub(super) fn greatest(&self) -> u64 {
        self.known.lock().greatest
    }

    /// A login is over. `true`: the server is another one than before.
    pub(super) fn note(&self, met: &Met<'_>, now: Instant) -> bool {
        let mut known = self.known.lock();
        let is_another = known.is_another(met, now);
        if is_another {
            let number = self.servers.load(Ordering::Acquire) + 1;
            if known.current.as_ref().is_some_and(|current| *current.info != **met.info) {
                self.facts.store(number, Ordering::Release);
            }
            self.servers.store(number, Ordering::Release);
        }
        known.remember(met, is_another, now);
        is_another
    }
}

impl Known {
    fn is_another(&self, met: &Met<'_>, now: Instant) -> bool {
        let Some(current) = &self.current else { return false };
        let moved = current.peer != met.peer;
        match (&current.run, met.run) {
            (Some(run), Some(is)) if run == is => false,
            (Some(_), Some(is)) => {
                let recent = self.met.get(is).is_some_and(|at| now.saturating_duration_since(*at) < RECENT);
                moved || !recent
            }
            // It has been noticed by its client ids, or by nothing: now it has a name.
            (None, Some(_)) => moved,
            (_, None) => moved || met.id.is_some_and(|id| id <= met.greatest_before),
        }
    }

    fn remember(&mut self, met: &Met<'_>, is_another: bool, now: Instant) {
        let before = self.current.take().filter(|_| !is_another);
        let run = met.run.map(str::to_owned).or_else(|| before.and_then(|current| current.run));
        self.current = Some(Current { run, peer: met.peer, info: Arc::clone(met.info) });
        if is_another {
            self.greatest = 0;
        }
        self.greatest = self.greatest.max(met.id.unwrap_or(0));
        if let Some(run) = met.run {
            self.met.retain(|_, at| now.saturating_duration_since(*at) < RECENT);
            if self.met.len() < MOST || self.met.contains_key(run) {
                self.met.insert(run.to_owned(), now);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Story {
        runs: Runs,
        now: Instant,
        info: Arc<ServerInfo>,
    }

    impl Story {
        fn new() -> Self {
            Self { runs: Runs::default(), now: Instant::now(), info: Arc::default() }
        }

        /// A dial to `port` meets `run` and gets `id`, a second after the last one.
        fn dial(&mut self, port: u16, run: Option<&str>, id: Option<u64>) -> bool {
            let greatest_before = self.runs.greatest();
            self.now += Duration::from_secs(1);
            let peer = SocketAddr::from(([127, 0, 0, 1], port));
            let met = Met { run, peer, id, greatest_before, info: &self.info };
            let before = self.runs.server();
            let changed = self.runs.note(&met, self.now);
            assert_eq!(self.runs.server() > before, changed);
            changed
        }
    }

    #[test]
    fn the_first_server_is_no_change_and_a_restart_is_one() {
        let mut story = Story::new();
        assert!(!story.dial(1, Some("a"), Some(3)));
        assert!(!story.dial(1, Some("a"), Some(4)));
        assert!(story.dial(1, Some("b"), Some(9)));
        // Once, by the next dial.
        assert!(!story.dial(1, Some("b"), Some(10)));
    }

    #[test]
    fn servers_that_take_turns_behind_one_address_are_no_change() {
        let mut story = Story::new();
        assert!(!story.dial(1, Some("a"), None));
        assert!(story.dial(1, Some("b"), None));
        for _ in 0..100 {
            assert!(!story.dial(1, Some("a"), None) && !story.dial(1, Some("b"), None));
        }
    }

    #[test]
    fn a_failover_and_back_are_two_changes() {
        let mut story = Story::new();
        assert!(!story.dial(1, Some("a"), None));
        assert!(story.dial(2, Some("b"), None));
        assert!(story.dial(1, Some("a"), None));
        // Behind one address, too, when the first has not been met for long.
        assert!(story.dial(1, Some("c"), None));
        story.now += RECENT;
        assert!(story.dial(1, Some("a"), None));
    }

    #[test]
    fn one_server_behind_two_addresses_is_no_change() {
        let mut story = Story::new();
        assert!(!story.dial(1, Some("a"), None) && !story.dial(2, Some("a"), None));
    }

    #[test]
    fn without_info_client_ids_tell() {
        let mut story = Story::new();
        assert!(!story.dial(1, None, Some(900)));
        assert!(!story.dial(1, None, Some(901)));
        assert!(story.dial(1, None, Some(5)));
        assert!(!story.dial(1, None, Some(6)));
        assert!(story.dial(2, None, Some(7)), "another address");
        // One may INFO, another may not.
        assert!(!story.dial(2, Some("a"), Some(8)));
        assert!(!story.dial(2, None, Some(9)));
        assert!(story.dial(2, None, Some(2)));
        assert!(!story.dial(2, Some("b"), Some(3)), "noticed already");
        assert!(!story.dial(2, None, None) && !story.dial(2, Some("b"), None));
    }

    #[test]
    fn dials_that_overtake_each_other_are_no_restart() {
        let story = Story::new();
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        for id in [1, 3, 2] {
            let met = Met { run: None, peer, id: Some(id), greatest_before: 0, info: &story.info };
            assert!(!story.runs.note(&met, story.now), "{id}");
        }
    }

    #[test]
    fn what_the_server_says_of_itself_counts_when_it_is_another() {
        let mut story = Story::new();
        story.dial(1, Some("a"), None);
        story.dial(1, Some("b"), None);
        assert_eq!(story.runs.facts(), Change::default());
        story.info = Arc::new(ServerInfo { version: "8.0.0".to_owned(), ..ServerInfo::default() });
        story.dial(1, Some("c"), None);
        assert_eq!(story.runs.facts(), story.runs.server());
        assert!(story.runs.facts() > Change::default());
    }
}
