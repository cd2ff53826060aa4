//! What holds for a waitlist whatever happens to it, as a function of bytes: for `fuzz/` and for the unit tests.
//!
//! Before a server that keeps to its protocol, in any order of events: a call ends once at most, each element is in one
//! place at the end, and nobody waits for a key that has something. Before one that answers anything: a call ends once at
//! most, and what is kept is bounded by what waits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a property that fails is a panic

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::super::waiter::Unblock;
use super::bench::{Bench, Desk};
use crate::hub::driver::HubProtocol as _;
use crate::resp::ReplyScanner;

const KEYS: [&str; 3] = ["a", "b", "c"];
/// Calls that wait at the same time, at the most.
const CALLS: usize = 64;

/// What a hostile server may say besides bytes of the input's own.
const WORDS: [&[u8]; 22] = [
    b"+OK\r\n",
    b"+QUEUED\r\n",
    b"_\r\n",
    b":0\r\n",
    b":1\r\n",
    b":-1\r\n",
    b"*0\r\n",
    b"%0\r\n",
    b"*1\r\n_\r\n",
    b"*2\r\n_\r\n:0\r\n",
    b"*2\r\n*2\r\n$1\r\na\r\n$1\r\nx\r\n:3\r\n",
    b"*2\r\n%1\r\n$1\r\na\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*0\r\n:1\r\n",
    b"*2\r\n-WRONGTYPE Operation against a key holding the wrong kind of value\r\n:0\r\n",
    b"*2\r\n$1\r\na\r\n$1\r\nx\r\n",
    b"-ERR x\r\n",
    b"-NOPERM this user has no permissions\r\n",
    b"-READONLY You can't write against a read only replica.\r\n",
    b"-LOADING Redis is loading the dataset in memory\r\n",
    b"-EXECABORT Transaction discarded because of previous errors.\r\n",
    b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\na\r\n",
    b">2\r\n$10\r\ninvalidate\r\n_\r\n",
    b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n",
];

/// Runs the program that `bytes` are.
pub(crate) fn holds(bytes: &[u8]) {
    let mut run = Run {
        bytes: bytes.iter().copied(),
        bench: Bench::new(),
        desks: Vec::new(),
        pushed: 0,
        loses: false,
        hostile: false,
    };
    run.hostile = run.below(2) == 1;
    while run.bytes.len() > 0 {
        run.event();
        assert!(run.desks.iter().all(|(_, desk)| desk.ends.get() <= 1), "a call ends once at most");
        let (waiting, out) = (run.bench.waitlist.waiting(), run.bench.waitlist.out().len());
        assert!(waiting <= run.desks.len(), "{waiting} wait of {} calls", run.desks.len());
        assert!(out <= 4096 * (run.desks.len() + 1), "{out} bytes to send for {} calls", run.desks.len());
    }
    if !run.hostile {
        run.comes_to_rest();
    }
}

/// One run of a program.
struct Run<'a> {
    bytes: std::iter::Copied<std::slice::Iter<'a, u8>>,
    bench: Bench,
    desks: Vec<(u64, Rc<Desk>)>,
    pushed: usize,
    /// A connection was lost, and perhaps an element with it.
    loses: bool,
    hostile: bool,
}

impl Run<'_> {
    /// A number below `bound`; 0 when the program is over.
    fn below(&mut self, bound: u8) -> usize {
        usize::from(self.bytes.next().unwrap_or_default() % bound)
    }

    fn key(&mut self) -> &'static str {
        KEYS[self.below(3)]
    }

    fn event(&mut self) {
        match self.below(16) {
            0..=3 => self.arrive(),
            4 | 5 => {
                let (key, count) = (self.key(), 1 + self.below(3));
                let values: Vec<String> = (0..count).map(|i| format!("v{}", self.pushed + i)).collect();
                self.pushed += count;
                self.bench.push(key, &values.iter().map(String::as_str).collect::<Vec<_>>());
            }
            6 | 7 if self.hostile => self.say_anything(),
            6 => self.bench.server_runs(),
            7 => self.bench.read(),
            8 => {
                let time = Duration::from_millis(1 + self.below(200) as u64);
                self.bench.now += time;
                self.bench.waitlist.expire(self.bench.now);
            }
            9 => {
                if let Some((id, desk)) = self.any() {
                    desk.dead.set(true);
                    self.bench.waitlist.gone(id);
                }
            }
            // It has gone, and nobody has noticed yet.
            10 => {
                if let Some((_, desk)) = self.any() {
                    desk.dead.set(true);
                }
            }
            11 => {
                let with_error = self.below(2) == 1;
                if let Some((id, _)) = self.any() {
                    let (done, _) = oneshot::channel();
                    self.bench.waitlist.unblock(id, Unblock { with_error, done }, self.bench.now);
                }
            }
            12 => {
                self.loses = true;
                self.bench.lose_connection();
                if self.below(2) == 0 {
                    self.bench.waitlist.connected(0);
                }
            }
            13 => {
                // Connected once more is what the hub's task never says.
                if self.loses {
                    self.bench.lose_connection();
                    self.bench.waitlist.connected(0);
                }
            }
            14 => {
                if !self.loses {
                    self.bench.waitlist.pause();
                    self.bench.waitlist.resume();
                }
            }
            _ => self.bench.waitlist.sweep(),
        }
    }

    fn any(&mut self) -> Option<(u64, Rc<Desk>)> {
        let at = self.below(u8::MAX);
        let len = self.desks.len();
        (len > 0).then(|| self.desks[at % len].clone())
    }

    fn arrive(&mut self) {
        if self.desks.len() == CALLS {
            return;
        }
        let some: Vec<&str> = (0..1 + self.below(2)).map(|_| self.key()).collect();
        let timeout = match self.below(3) {
            0 => None,
            _ => Some(Duration::from_millis(1 + 2 * self.below(250) as u64)),
        };
        let words = match self.below(4) {
            0..=2 => format!("BLPOP {} 5", some.join(" ")),
            _ if self.hostile => format!("XREAD BLOCK 0 STREAMS {} $", some[0]),
            _ => format!("BLPOP {} 7", some.join(" ")),
        };
        let database = if self.hostile { self.below(3) as u32 } else { 0 };
        if let (Some(id), desk) = self.bench.try_arrive(&words, timeout, database) {
            self.desks.push((id, desk));
        }
    }

    /// The server answers something, whatever it was asked; what is no reply ends the connection, as in the hub's task.
    fn say_anything(&mut self) {
        self.bench.waitlist.out().clear();
        let said = match self.below(32) {
            word if word < WORDS.len() => WORDS[word].to_vec(),
            len => (0..len).filter_map(|_| self.bytes.next()).collect(),
        };
        let mut rest = &said[..];
        while !rest.is_empty() {
            let Ok(step) = ReplyScanner::default().step(rest) else { break };
            let Some(kind) = step.complete else { break };
            let answer = self.bench.waitlist.receive(kind, &rest[..step.consumed], self.bench.now);
            if answer.is_err() || self.bench.waitlist.given_up().is_some() {
                self.loses = true;
                self.bench.lose_connection();
                self.bench.waitlist.connected(0);
                return;
            }
            rest = &rest[step.consumed..];
        }
    }

    /// When nothing more happens every element is in one place, and nobody waits for what is there.
    fn comes_to_rest(&mut self) {
        if self.loses {
            self.bench.lose_connection();
            self.bench.waitlist.connected(0);
        }
        self.bench.settle();
        let is_kept = self.bench.waitlist.waiters.values().any(|waiter| waiter.gone);
        assert!(!is_kept, "a call is kept that has ended");
        let mut found: Vec<String> = self
            .desks
            .iter()
            .flat_map(|(_, desk)| desk.got.borrow().clone())
            .map(|reply| reply.split("\r\n").nth(4).unwrap().to_owned())
            .collect();
        found.extend(self.bench.back.borrow().iter().map(|back| back.split(' ').nth(2).unwrap().to_owned()));
        found.extend(self.bench.model.lists.values().flatten().cloned());
        found.sort();
        let mut all: Vec<String> = (0..self.pushed).map(|value| format!("v{value}")).collect();
        all.sort();
        if self.loses {
            let before = found.len();
            found.dedup();
            assert_eq!(found.len(), before, "an element is in two places");
            assert!(found.iter().all(|element| all.binary_search(element).is_ok()), "{found:?}");
        } else {
            assert_eq!(found, all, "every element is in one place");
        }
        for (at, spot) in self.bench.waitlist.spots.iter() {
            let name = String::from_utf8_lossy(&spot.name).into_owned();
            let is_full = self.bench.model.lists.get(&name).is_some_and(|list| !list.is_empty());
            assert!(spot.queue.is_empty() || !is_full, "spot {at} ({name}) is waited for and full");
        }
    }
}
