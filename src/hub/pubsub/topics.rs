//! Who listens to what, and what the server has been asked: the pub/sub hub without its socket.
//!
//! Of each name the upstream connection is subscribed once, for as long as anybody listens or waits to. A listener
//! counts as subscribed, and is told so, from the moment the server has confirmed; what was published before that is
//! not for it. UNSUBSCRIBE and SUBSCRIBE of one name follow each other on one connection, so a name that loses its last
//! listener and gets a new one meanwhile misses nothing after the new confirmation.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::super::carrier::Desk;
use super::audience::Audience;
use super::listener::{Listener, Message};
use crate::resp::{self, ReplyKind, encode};
use crate::session::Listen;
use crate::telemetry::UpstreamClose;

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
    wanted: usize,
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
        self.wanted > 0 || !self.listeners.is_empty()
    }
}

/// A client's command that waits for the server.
struct Request {
    who: u64,
    listener: Rc<dyn Listener>,
    listen: Listen,
    /// In the client's order, repetitions included.
    names: Vec<Bytes>,
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
    Ping,
}

/// The listeners of one user on one worker.
pub(in crate::hub) struct Topics {
    topics: HashMap<Name, Topic>,
    requests: BTreeMap<u64, Request>,
    next: u64,
    sent: VecDeque<Sent>,
    out: BytesMut,
    online: bool,
    audience: Arc<Audience>,
    messages: u64,
    deliveries: u64,
}

impl Topics {
    pub(super) fn new(audience: Arc<Audience>) -> Self {
        Self {
            topics: HashMap::new(),
            requests: BTreeMap::new(),
            next: 0,
            sent: VecDeque::new(),
            out: BytesMut::new(),
            online: false,
            audience,
            messages: 0,
            deliveries: 0,
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
        let ready =
            |name: &Bytes| self.topics.get(&(listen, name.clone())).is_some_and(|topic| topic.is_confirmed());
        let request = Request { who, listener, listen, names };
        if self.online && request.names.iter().all(ready) {
            self.join(&request);
            return None;
        }
        for name in distinct(&request.names) {
            self.topic(listen, name).wanted += 1;
        }
        self.next += 1;
        self.requests.insert(self.next, request);
        if self.online {
            self.ask_for(self.next);
        }
        Some(self.next)
    }

    /// The client no longer waits for its request.
    pub(super) fn cancel(&mut self, request: u64) {
        if let Some(request) = self.requests.remove(&request) {
            self.let_go(&request);
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
        self.sent.clear();
        for ((listen, name), topic) in &mut self.topics {
            topic.told = Told::Nothing;
            topic.in_flight = 0;
            if std::mem::take(&mut topic.counted) {
                self.audience.change(*listen, name, -1, 0);
            }
        }
        if !silent {
            self.tell_all(|listener| listener.lost());
        }
        self.topics.retain(|_, topic| topic.is_needed());
    }

    /// Ends everything: each listener once.
    pub(super) fn tell_all(&mut self, tell: impl Fn(&dyn Listener)) {
        let mut told = HashSet::new();
        for request in std::mem::take(&mut self.requests).into_values() {
            if told.insert(request.who) {
                tell(&*request.listener);
            }
            self.let_go(&request);
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
    pub(super) fn refuse_all(&mut self, words: &Bytes) {
        for request in std::mem::take(&mut self.requests).into_values() {
            request.listener.refused(words);
            self.let_go(&request);
        }
    }

    /// Shows the server that we are alive.
    pub(super) fn ping(&mut self) {
        encode::command(&mut self.out, &[b"PING"]);
        self.sent.push_back(Sent::Ping);
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
            wanted: 0,
            told: Told::Nothing,
            in_flight: 0,
            counted: false,
        })
    }

    /// Subscribes what a request still needs and nobody has asked for yet; with nothing missing it is done.
    fn ask_for(&mut self, id: u64) {
        let Some(request) = self.requests.get(&id) else { return };
        let listen = request.listen;
        let names = distinct(&request.names).into_iter().cloned().collect::<Vec<_>>();
        let state = |name: &Bytes| self.topics.get(&(listen, name.clone()));
        if names.iter().all(|name| state(name).is_some_and(Topic::is_confirmed)) {
            if let Some(request) = self.requests.remove(&id) {
                self.join(&request);
                self.let_go(&request);
            }
            return;
        }
        let untold = |name: &&Bytes| state(name).is_none_or(|topic| topic.told != Told::Subscribe);
        let missing: Vec<Bytes> = names.iter().filter(untold).cloned().collect();
        if !missing.is_empty() {
            self.send(listen, true, missing, Some(id));
        }
    }

    fn join(&mut self, request: &Request) {
        for name in distinct(&request.names) {
            let listener = Rc::clone(&request.listener);
            let who = request.who;
            if self.topic(request.listen, name).listeners.insert(who, listener).is_none() {
                self.audience.change(request.listen, name, 0, 1);
            }
        }
        // In the same step: no message may come before its confirmation.
        request.listener.confirmed(request.listen, &request.names);
    }

    fn let_go(&mut self, request: &Request) {
        for name in distinct(&request.names) {
            if let Some(topic) = self.topics.get_mut(&(request.listen, name.clone())) {
                topic.wanted = topic.wanted.saturating_sub(1);
            }
            self.tidy(request.listen, name);
        }
    }

    /// Leaves a name that nobody needs.
    fn tidy(&mut self, listen: Listen, name: &Bytes) {
        let key = (listen, name.clone());
        let Some(topic) = self.topics.get(&key) else { return };
        if topic.is_needed() {
            return;
        }
        if self.online && topic.told == Told::Subscribe {
            self.send(listen, false, vec![name.clone()], None);
        } else if topic.in_flight == 0 {
            self.topics.remove(&key);
        }
    }

    fn send(&mut self, listen: Listen, subscribe: bool, names: Vec<Bytes>, by: Option<u64>) {
        let word = if subscribe { listen.subscribe() } else { listen.unsubscribe() };
        let mut words: Vec<&[u8]> = vec![word.as_bytes()];
        words.extend(names.iter().map(|name| &name[..]));
        encode::command(&mut self.out, &words);
        for name in &names {
            let topic = self.topic(listen, name);
            topic.told = if subscribe { Told::Subscribe } else { Told::Unsubscribe };
            topic.in_flight += 1;
        }
        self.sent.push_back(Sent::Names { listen, subscribe, names, confirmed: 0, by });
    }

    /// A push, or in RESP2 an array that stands for one. `false`: it is neither a message nor a confirmation.
    fn heard(&mut self, frame: &[u8]) -> Result<bool, UpstreamClose> {
        let Some(mut parts) = resp::elements(frame) else { return Ok(false) };
        let (word, name) = (parts.next().and_then(resp::bulk), parts.next().and_then(resp::bulk));
        let (Some(word), Some(name)) = (word, name) else { return Ok(false) };
        let listen = match word {
            b"message" => Listen::Channels,
            b"pmessage" => Listen::Patterns,
            b"smessage" => Listen::Shards,
            b"pong" => {
                return match self.sent.pop_front() {
                    Some(Sent::Ping) => Ok(true),
                    _ => Err(UpstreamClose::Desync),
                };
            }
            _ => return self.confirmed(word, name),
        };
        self.messages += 1;
        if let Some(topic) = self.topics.get(&(listen, Bytes::copy_from_slice(name))) {
            let message = Message::new(frame);
            for listener in topic.listeners.values() {
                listener.message(&message);
            }
            self.deliveries += topic.listeners.len() as u64;
        }
        Ok(true)
    }

    /// One confirmation: it must be the next one that is owed.
    fn confirmed(&mut self, word: &[u8], name: &[u8]) -> Result<bool, UpstreamClose> {
        let Some(Sent::Names { listen, subscribe, names, confirmed, .. }) = self.sent.front_mut() else {
            return Err(UpstreamClose::Desync);
        };
        let (listen, subscribe) = (*listen, *subscribe);
        let expected = if subscribe { listen.subscribe() } else { listen.unsubscribe() };
        let Some(name) = names.get(*confirmed).filter(|next| ***next == *name).cloned() else {
            return Err(UpstreamClose::Desync);
        };
        if word != expected.as_bytes() {
            return Err(UpstreamClose::Desync);
        }
        *confirmed += 1;
        let last = *confirmed == names.len();
        if last {
            self.sent.pop_front();
        }
        let key = (listen, name);
        if let Some(topic) = self.topics.get_mut(&key) {
            topic.in_flight -= 1;
            if topic.counted != subscribe {
                topic.counted = subscribe;
                self.audience.change(listen, &key.1, if subscribe { 1 } else { -1 }, 0);
            }
        }
        self.tidy(listen, &key.1);
        if subscribe {
            self.finish_requests(listen);
        }
        Ok(true)
    }

    /// Ends the requests that have all they need.
    fn finish_requests(&mut self, listen: Listen) {
        let done: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, request)| request.listen == listen)
            .filter(|(_, request)| {
                request.names.iter().all(|name| {
                    self.topics.get(&(listen, name.clone())).is_some_and(|topic| topic.is_confirmed())
                })
            })
            .map(|(id, _)| *id)
            .collect();
        done.into_iter().for_each(|id| self.ask_for(id));
    }

    /// An error: the server has refused the whole command.
    fn refused(&mut self, words: &[u8]) -> Result<(), UpstreamClose> {
        let Some(Sent::Names { listen, subscribe, names, by, .. }) = self.sent.pop_front() else {
            return Err(UpstreamClose::Desync);
        };
        if !subscribe {
            // Some servers refuse to leave what was never joined (`-NOSUB` of Valkey).
            for name in &names {
                if let Some(topic) = self.topics.get_mut(&(listen, name.clone())) {
                    topic.in_flight -= 1;
                }
                self.tidy(listen, name);
            }
            return Ok(());
        }
        for name in &names {
            if let Some(topic) = self.topics.get_mut(&(listen, name.clone())) {
                topic.in_flight -= 1;
                if topic.in_flight == 0 {
                    topic.told = Told::Nothing;
                }
            }
        }
        if let Some(request) = by.and_then(|id| self.requests.remove(&id)) {
            request.listener.refused(&Bytes::copy_from_slice(words));
            self.let_go(&request);
        }
        // Others may have relied on it: each asks for itself now. Those who listened before a loss may no longer.
        let relying: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, request)| {
                request.listen == listen && request.names.iter().any(|name| names.contains(name))
            })
            .map(|(id, _)| *id)
            .collect();
        relying.into_iter().for_each(|id| self.ask_for(id));
        for name in &names {
            let Some(topic) = self.topics.get_mut(&(listen, name.clone())) else { continue };
            if by.is_none() {
                for listener in std::mem::take(&mut topic.listeners).into_values() {
                    self.audience.change(listen, name, 0, -1);
                    listener.lost();
                }
            }
            self.tidy(listen, name);
        }
        Ok(())
    }
}

impl Desk for Topics {
    fn out(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    fn receive(&mut self, kind: ReplyKind, frame: &[u8], _now: Instant) -> Result<(), UpstreamClose> {
        match kind {
            ReplyKind::Push | ReplyKind::Array if self.heard(frame)? => Ok(()),
            ReplyKind::Push => Ok(()),
            ReplyKind::Error | ReplyKind::BlobError
                if matches!(self.sent.front(), Some(Sent::Names { .. })) =>
            {
                self.refused(frame)
            }
            _ => match self.sent.pop_front() {
                Some(Sent::Ping) => Ok(()),
                _ => Err(UpstreamClose::Desync),
            },
        }
    }

    fn expire(&mut self, _now: Instant) {}

    fn next_timer(&self) -> Option<Instant> {
        None
    }
}

impl Drop for Topics {
    fn drop(&mut self) {
        self.tell_all(|listener| listener.lost());
        for ((listen, name), topic) in &self.topics {
            if topic.counted {
                self.audience.change(*listen, name, -1, 0);
            }
        }
    }
}

/// Each name once, in the order of their first mention.
fn distinct(names: &[Bytes]) -> Vec<&Bytes> {
    let mut seen = HashSet::new();
    names.iter().filter(|name| seen.insert(*name)).collect()
}
