//! Who listens to what, and what the server has been asked: the pub/sub hub without its socket.
//!
//! Of each name the upstream connection is subscribed once, for as long as anybody listens or waits to. A listener
//! counts as subscribed, and is told so, from the moment the server has confirmed; what was published before that is
//! not for it. UNSUBSCRIBE and SUBSCRIBE of one name follow each other on one connection, so a name that loses its last
//! listener and gets a new one meanwhile misses nothing after the new confirmation.

mod replies;
mod requests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::audience::Audience;
use super::listener::{DIVIDER, Listener};
use crate::pool::Unavailable;
use crate::resp::encode;
use crate::session::Listen;

/// Names subscribed anew in one command after a loss.
const CHUNK: usize = 100;

type Name = (Listen, Bytes);

/// What the server was last told about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Subscribe,
    Unsubscribe,
}

/// One name and those who listen to it.
struct Topic {
    listeners: BTreeMap<u64, Rc<dyn Listener>>,
    /// Requests that wait for it to be confirmed.
    wanted: BTreeSet<u64>,
    told: Told,
    /// Commands about it in flight.
    in_flight: usize,
    /// Counted in the audience as a connection of ours.
    counted: bool,
}

impl Topic {
    fn is_confirmed(&self) -> bool {
        self.told == Told::Subscribe && self.in_flight == 0
    }

    fn is_needed(&self) -> bool {
        !self.wanted.is_empty() || !self.listeners.is_empty()
    }
}

/// A client's command that waits for the server.
struct Request {
    who: u64,
    listener: Rc<dyn Listener>,
    listen: Listen,
    /// In the client's order, repetitions included.
    names: Vec<Bytes>,
    /// So many of `names`, from the first, are confirmed. A name that a request waits for is not left, so what is
    /// confirmed stays so until the connection is lost. Without this, each of 100,000 confirmations would look at
    /// 100,000 names.
    confirmed: usize,
    /// The server has confirmed a name of its command, so it has accepted the whole command.
    accepted: bool,
    /// So many of `names`, from the first, are joined, and the listener has been told.
    joined: usize,
}

/// A command in flight.
enum Sent {
    Names {
        listen: Listen,
        subscribe: bool,
        names: Vec<Bytes>,
        confirmed: usize,
        /// The request it was sent for: an error is its answer.
        by: Option<u64>,
    },
    /// The listener that is to know when what was published before has come.
    Ping(Option<Rc<dyn Listener>>),
}

/// The listeners of one user on one worker.
pub(in crate::hub) struct SubscriptionRegistry {
    topics: BTreeMap<Name, Topic>,
    requests: BTreeMap<u64, Request>,
    next: u64,
    sent: VecDeque<Sent>,
    out: BytesMut,
    online: bool,
    audience: Arc<Audience>,
    messages: u64,
    deliveries: u64,
    /// How often the state of a name was looked at.
    #[cfg(test)]
    looks: std::cell::Cell<u64>,
}

impl SubscriptionRegistry {
    pub(super) fn new(audience: Arc<Audience>) -> Self {
        Self {
            topics: BTreeMap::new(),
            requests: BTreeMap::new(),
            next: 0,
            sent: VecDeque::new(),
            out: BytesMut::new(),
            online: false,
            audience,
            messages: 0,
            deliveries: 0,
            #[cfg(test)]
            looks: std::cell::Cell::default(),
        }
    }

    /// A client wants to listen to `names`. `None`: done already, and the listener has been told; else the number of
    /// the request that waits for the server.
    pub(super) fn subscribe(
        &mut self,
        who: u64,
        listener: Rc<dyn Listener>,
        listen: Listen,
        names: Vec<Bytes>,
    ) -> Option<u64> {
        let request = Request { who, listener, listen, names, confirmed: 0, accepted: false, joined: 0 };
        if self.has_all(listen, &request.names) {
            self.join(&request, 0..request.names.len());
            return None;
        }
        self.next += 1;
        for name in &request.names {
            let id = self.next;
            self.topic(listen, name).wanted.insert(id);
        }
        self.requests.insert(self.next, request);
        if self.online {
            self.ask_for(self.next);
        }
        Some(self.next)
    }

    /// Whether the server has confirmed all of `names`.
    pub(super) fn has_all(&self, listen: Listen, names: &[Bytes]) -> bool {
        self.online && names.iter().all(|name| self.is_confirmed(listen, name))
    }

    /// The client no longer waits for its request.
    pub(super) fn cancel(&mut self, request: u64) {
        if let Some(given_up) = self.requests.remove(&request) {
            self.let_go(request, &given_up);
        }
    }

    /// A client no longer listens to `name`.
    pub(super) fn unsubscribe(&mut self, who: u64, listen: Listen, name: &Bytes) {
        let Some(topic) = self.topics.get_mut(&(listen, name.clone())) else { return };
        if topic.listeners.remove(&who).is_some() {
            self.audience.change(listen, name, 0, -1);
        }
        self.tidy(listen, name);
    }

    /// The connection is there: everything that is listened to is subscribed.
    pub(super) fn connected(&mut self) {
        self.online = true;
        let mut wanted: BTreeMap<Listen, Vec<Bytes>> = BTreeMap::new();
        for ((listen, name), topic) in &self.topics {
            if !topic.listeners.is_empty() {
                wanted.entry(*listen).or_default().push(name.clone());
            }
        }
        for (listen, names) in wanted {
            for chunk in names.chunks(CHUNK) {
                self.send(listen, true, chunk.to_vec(), None);
            }
        }
        for request in self.requests.keys().copied().collect::<Vec<_>>() {
            self.ask_for(request);
        }
    }

    /// The connection is lost. Unless `silent`, everybody is told, and nobody listens any more.
    pub(super) fn disconnected(&mut self, silent: bool) {
        self.online = false;
        self.out.clear();
        self.forget_what_was_sent();
        for request in self.requests.values_mut() {
            (request.confirmed, request.accepted) = (request.joined, false);
        }
        for ((listen, name), topic) in &mut self.topics {
            topic.told = Told::Nothing;
            topic.in_flight = 0;
            if std::mem::take(&mut topic.counted) {
                self.audience.change(*listen, name, -1, 0);
            }
        }
        if silent {
            self.lose_dividers();
        } else {
            self.tell_all(|listener| listener.lost());
        }
        self.topics.retain(|_, topic| topic.is_needed());
    }

    /// The message that they wait for may have been published meanwhile.
    fn lose_dividers(&mut self) {
        let is_divider =
            |(listen, name): &Name| *listen == Listen::Channels && name.starts_with(DIVIDER.as_bytes());
        for ((listen, name), topic) in self.topics.iter_mut().filter(|(name, _)| is_divider(name)) {
            for listener in std::mem::take(&mut topic.listeners).into_values() {
                self.audience.change(*listen, name, 0, -1);
                listener.lost();
            }
        }
    }

    /// Nothing of what is in flight will be answered.
    fn forget_what_was_sent(&mut self) {
        for sent in self.sent.drain(..) {
            match sent {
                Sent::Names { names, confirmed, .. } => self.audience.settle(names.len() - confirmed),
                Sent::Ping(listener) => listener.iter().for_each(|listener| listener.caught_up()),
            }
        }
    }

    /// Ends everything: each listener once.
    pub(super) fn tell_all(&mut self, tell: impl Fn(&dyn Listener)) {
        let mut told = HashSet::new();
        for (id, request) in std::mem::take(&mut self.requests) {
            if told.insert(request.who) {
                tell(&*request.listener);
            }
            self.let_go(id, &request);
        }
        let mut left = Vec::new();
        for ((listen, name), topic) in &mut self.topics {
            for (who, listener) in std::mem::take(&mut topic.listeners) {
                self.audience.change(*listen, name, 0, -1);
                if told.insert(who) {
                    tell(&*listener);
                }
            }
            left.push((*listen, name.clone()));
        }
        for (listen, name) in left {
            self.tidy(listen, &name);
        }
    }

    /// Ends the requests that wait, with these words.
    pub(super) fn fail_all(&mut self, why: &Unavailable) {
        for (id, request) in std::mem::take(&mut self.requests) {
            request.listener.unserved(why);
            self.let_go(id, &request);
        }
    }

    /// Shows the server that we are alive.
    pub(super) fn ping(&mut self) {
        encode::command(&mut self.out, &[b"PING"]);
        self.sent.push_back(Sent::Ping(None));
    }

    /// Tells `listener` when it has been given all that was published before this: the server answers what it is asked
    /// behind the messages that it has written before. `false`: there is no connection, so nothing can come.
    pub(super) fn mark(&mut self, listener: Rc<dyn Listener>) -> bool {
        if self.online {
            encode::command(&mut self.out, &[b"PING"]);
            self.sent.push_back(Sent::Ping(Some(listener)));
        }
        self.online
    }

    /// Whether anybody listens or waits to.
    pub(super) fn is_needed(&self) -> bool {
        !self.requests.is_empty() || self.topics.values().any(Topic::is_needed)
    }

    /// Whether somebody waits for the server.
    pub(super) fn is_awaited(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Names subscribed or being subscribed.
    /// How many clients listen.
    pub(super) fn listeners(&self) -> usize {
        let all: BTreeSet<_> = self.topics.values().flat_map(|topic| topic.listeners.keys()).collect();
        all.len()
    }

    pub(super) fn names(&self) -> usize {
        self.topics.len()
    }

    /// Commands in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.sent.len()
    }

    /// Messages from the server and deliveries to clients since this was last asked.
    pub(super) fn take_counts(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.messages), std::mem::take(&mut self.deliveries))
    }

    fn topic(&mut self, listen: Listen, name: &Bytes) -> &mut Topic {
        self.topics.entry((listen, name.clone())).or_insert_with(|| Topic {
            listeners: BTreeMap::new(),
            wanted: BTreeSet::new(),
            told: Told::Nothing,
            in_flight: 0,
            counted: false,
        })
    }

    fn is_confirmed(&self, listen: Listen, name: &Bytes) -> bool {
        #[cfg(test)]
        self.looks.set(self.looks.get() + 1);
        self.topics.get(&(listen, name.clone())).is_some_and(Topic::is_confirmed)
    }
}

impl Drop for SubscriptionRegistry {
    fn drop(&mut self) {
        self.forget_what_was_sent();
        self.tell_all(|listener| listener.lost());
        for ((listen, name), topic) in &self.topics {
            if topic.counted {
                self.audience.change(*listen, name, -1, 0);
            }
        }
    }
}
