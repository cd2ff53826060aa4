//! A waitlist before a small model of a server: for its tests and for the property that is fuzzed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // for tests
#![cfg_attr(not(test), allow(dead_code))] // the property uses a part of it

mod model;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::super::waiter::{Arrival, End, Waiting};
use super::{GiveBack, Times, Waitlist};
use crate::command::{Class, blocking, classify};
use crate::hub::driver::HubProtocol as _;
use crate::pool::{LaneKey, Tracked};
use crate::resp::{Protocol, Request, encode};

pub(super) use model::Model;

/// What a client of the waitlist got.
#[derive(Default)]
pub(super) struct Desk {
    pub(super) got: RefCell<Vec<String>>,
    pub(super) ended: RefCell<Option<End>>,
    /// How often its wait has ended, with an element or without.
    pub(super) ends: Cell<usize>,
    pub(super) dead: Cell<bool>,
}

impl Waiting for Desk {
    fn deliver(&self, reply: &[u8], _has_waited: bool) -> bool {
        if self.dead.get() {
            return false;
        }
        self.ends.set(self.ends.get() + 1);
        self.got.borrow_mut().push(String::from_utf8_lossy(reply).into_owned());
        true
    }

    fn end(&self, end: End) {
        self.ends.set(self.ends.get() + 1);
        self.ended.replace(Some(end));
    }
}

pub(super) struct Bench {
    pub(super) waitlist: Waitlist,
    pub(super) model: Model,
    pub(super) back: Rc<RefCell<Vec<String>>>,
    pub(super) now: Instant,
    /// What the server has said and the waitlist has not read.
    pub(super) wire: BytesMut,
}

impl Bench {
    pub(super) fn new() -> Self {
        let back = Rc::new(RefCell::new(Vec::new()));
        let kept = Rc::clone(&back);
        let give_back: GiveBack = Rc::new(move |_, _, request: Option<Bytes>| {
            // An answer that no server gives has no element that could be put back.
            let Some(request) = request else { return };
            let words: Vec<_> = Request::parse(&request)
                .unwrap()
                .args()
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            kept.borrow_mut().push(words.join(" "));
        });
        let times = Times { grace: Duration::from_millis(200), stall: Duration::from_secs(60) };
        let mut waitlist = Waitlist::new(times, give_back, false);
        waitlist.connected(0);
        Self { waitlist, model: Model::default(), back, now: Instant::now(), wire: BytesMut::new() }
    }

    pub(super) fn arrive(&mut self, words: &str, timeout: Option<Duration>) -> (u64, Rc<Desk>) {
        self.arrive_in(words, timeout, 0)
    }

    pub(super) fn arrive_in(
        &mut self,
        words: &str,
        timeout: Option<Duration>,
        database: u32,
    ) -> (u64, Rc<Desk>) {
        let (id, desk) = self.try_arrive(words, timeout, database);
        (id.unwrap(), desk)
    }

    /// The number is `None` where the call cannot wait there.
    pub(super) fn try_arrive(
        &mut self,
        words: &str,
        timeout: Option<Duration>,
        database: u32,
    ) -> (Option<u64>, Rc<Desk>) {
        let mut frame = BytesMut::new();
        encode::command(&mut frame, &words.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        let request = Request::parse(&frame).unwrap();
        let Class::Blocking(command) = classify(&request).class else { panic!("{words}") };
        let call = blocking::parse(&request, command).unwrap();
        let desk = Rc::new(Desk::default());
        let arrival = Arrival {
            key: LaneKey {
                user: 1,
                database,
                protocol: Protocol::Resp3,
                readonly: false,
                tracked: Tracked::No,
            },
            identity: Arc::default(),
            call,
            request: frame.freeze(),
            arrived: self.now,
            deadline: timeout.map(|timeout| self.now + timeout),
            has_moved: false,
            has_looked: false,
            must_look: false,
            asking: false,
            waiting: Rc::clone(&desk) as Rc<dyn Waiting>,
        };
        (self.waitlist.arrive(arrival, self.now), desk)
    }

    /// The connection is lost, with all that was on its way.
    pub(super) fn lose_connection(&mut self) {
        self.waitlist.disconnected();
        self.waitlist.out().clear();
        self.wire.clear();
        self.model.forget_connection();
    }

    /// The server runs what was written; nothing is read yet.
    pub(super) fn server_runs(&mut self) {
        let written = self.waitlist.out().split();
        let said = self.model.run(&written);
        self.wire.extend_from_slice(&said);
    }

    pub(super) fn push(&mut self, key: &str, values: &[&str]) {
        let mut told = BytesMut::new();
        self.model.push(key, values, &mut told);
        self.wire.extend_from_slice(&told);
    }

    /// The waitlist reads what the server has said.
    pub(super) fn read(&mut self) {
        let said = self.wire.split();
        let mut rest = &said[..];
        while !rest.is_empty() {
            let step = crate::resp::ReplyScanner::default().step(rest).unwrap();
            self.waitlist.receive(step.complete.unwrap(), &rest[..step.consumed], self.now).unwrap();
            rest = &rest[step.consumed..];
        }
    }

    /// What came is read and what was written runs, without any time passing.
    pub(super) fn exchange(&mut self) {
        for _ in 0..100 {
            self.server_runs();
            if self.wire.is_empty() {
                return;
            }
            self.read();
        }
        panic!("it never comes to rest");
    }

    pub(super) fn settle(&mut self) {
        for _ in 0..100 {
            self.server_runs();
            if self.wire.is_empty() {
                match self.waitlist.next_timer().filter(|at| *at <= self.now + Duration::from_millis(150)) {
                    Some(at) => {
                        self.now = at;
                        self.waitlist.expire(at);
                        continue;
                    }
                    None => return,
                }
            }
            self.read();
        }
        panic!("it never comes to rest");
    }
}

/// BLPOP's reply.
pub(super) fn element(key: &str, value: &str) -> String {
    format!("*2\r\n${}\r\n{key}\r\n${}\r\n{value}\r\n", key.len(), value.len())
}
