//! Who listens to what, and what the server has been asked: the pub/sub hub without its socket.
//!
//! Of each name the upstream connection is subscribed once, for as long as anybody listens or waits to. A listener
//! counts as subscribed, and is told so, from the moment the server has confirmed; what was published before that is
//! not for it. UNSUBSCRIBE and SUBSCRIBE of one name follow each other on one connection, so a name that loses its last
//! listener and gets a new one meanwhile misses nothing after the new confirmation.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::super::carrier::Desk;
use super::audience::Audience;
use super::listener::{Listener, Message};
use crate::pool::Unavailable;
use crate::resp::{self, ReplyKind, encode};
use crate::session::Listen;
use crate::telemetry::UpstreamClose;

/// Names subscribed anew in one command after a loss.
const CHUNK: usize = 100;
/// Of a request for very many names so many are joined in one step, so that others are served between two.
const STEP: usize = 500;

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
pub(in crate::hub) struct Topics {
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

impl Topics {
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
        if !silent {
            self.tell_all(|listener| listener.lost());
        }
        self.topics.retain(|_, topic| topic.is_needed());
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

    /// The answer to PING.
    fn answered(&mut self) -> Result<(), UpstreamClose> {
        let Some(Sent::Ping(listener)) = self.sent.pop_front() else { return Err(UpstreamClose::Desync) };
        listener.iter().for_each(|listener| listener.caught_up());
        Ok(())
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

    /// Subscribes what a request still needs and nobody has asked for yet; with nothing missing it is done.
    fn ask_for(&mut self, id: u64) {
        if self.finish(id) {
            return;
        }
        let Some(request) = self.requests.get(&id) else { return };
        let listen = request.listen;
        let state = |name: &Bytes| self.topics.get(&(listen, name.clone()));
        let untold = |name: &&Bytes| state(name).is_none_or(|topic| topic.told != Told::Subscribe);
        let missing: Vec<Bytes> = distinct(&request.names).into_iter().filter(untold).cloned().collect();
        if !missing.is_empty() {
            self.send(listen, true, missing, Some(id));
        }
    }

    /// Ends a request that has all it needs.
    fn finish(&mut self, id: u64) -> bool {
        let Some(request) = self.requests.get(&id) else { return true };
        let more = &request.names[request.confirmed..];
        let more = more.iter().take_while(|name| self.is_confirmed(request.listen, name)).count();
        let all = request.confirmed + more;
        let is_done = all == request.names.len();
        let is_step = request.accepted && all - request.joined >= STEP;
        if !(is_done || is_step) {
            if let Some(request) = self.requests.get_mut(&id) {
                request.confirmed = all;
            }
            return false;
        }
        if let Some(mut request) = self.requests.remove(&id) {
            let step = request.joined..all;
            self.join(&request, step.clone());
            self.let_go_of(id, &request, step);
            if !is_done {
                (request.confirmed, request.joined) = (all, all);
                self.requests.insert(id, request);
            }
        }
        is_done
    }

    fn join(&mut self, request: &Request, step: Range<usize>) {
        let is_last = step.end == request.names.len();
        let names = &request.names[step];
        for name in names {
            let listener = Rc::clone(&request.listener);
            let who = request.who;
            if self.topic(request.listen, name).listeners.insert(who, listener).is_none() {
                self.audience.change(request.listen, name, 0, 1);
            }
        }
        // In the same step: no message may come before its confirmation.
        request.listener.confirmed(request.listen, names, is_last);
    }

    fn let_go(&mut self, id: u64, request: &Request) {
        self.let_go_of(id, request, request.joined..request.names.len());
    }

    fn let_go_of(&mut self, id: u64, request: &Request, step: Range<usize>) {
        for name in &request.names[step] {
            if let Some(topic) = self.topics.get_mut(&(request.listen, name.clone())) {
                topic.wanted.remove(&id);
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
        self.audience.ask(names.len());
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
            b"pong" => return self.answered().map(|()| true),
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
        let Some(Sent::Names { listen, subscribe, names, confirmed, by }) = self.sent.front_mut() else {
            return Err(UpstreamClose::Desync);
        };
        let (listen, subscribe) = (*listen, *subscribe);
        if let Some(request) = by.and_then(|id| self.requests.get_mut(&id)) {
            request.accepted = true;
        }
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
        self.audience.settle(1);
        self.tidy(listen, &key.1);
        if subscribe && let Some(topic) = self.topics.get(&key).filter(|topic| topic.is_confirmed()) {
            for id in topic.wanted.iter().copied().collect::<Vec<_>>() {
                self.finish(id);
            }
        }
        Ok(true)
    }

    /// An error: the server has refused the whole command.
    fn refused(&mut self, words: &[u8]) -> Result<(), UpstreamClose> {
        let Some(Sent::Names { listen, subscribe, names, confirmed, by }) = self.sent.pop_front() else {
            return Err(UpstreamClose::Desync);
        };
        self.audience.settle(names.len() - confirmed);
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
        if let Some((id, request)) = by.and_then(|id| Some((id, self.requests.remove(&id)?))) {
            request.listener.refused(&Bytes::copy_from_slice(words));
            self.let_go(id, &request);
        }
        // Others may have relied on it: each asks for itself now. Those who listened before a loss may no longer.
        let relying: BTreeSet<u64> = names
            .iter()
            .filter_map(|name| self.topics.get(&(listen, name.clone())))
            .flat_map(|topic| topic.wanted.iter().copied())
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
            _ => self.answered(),
        }
    }

    fn expire(&mut self, _now: Instant) {}

    fn next_timer(&self) -> Option<Instant> {
        None
    }
}

impl Drop for Topics {
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

/// Each name once, in the order of their first mention.
fn distinct(names: &[Bytes]) -> Vec<&Bytes> {
    let mut seen = HashSet::new();
    names.iter().filter(|name| seen.insert(*name)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[derive(Default)]
    struct Heard {
        confirmed: Cell<usize>,
        /// Most of them in one step.
        step: Cell<usize>,
        done: Cell<usize>,
        refused: Cell<usize>,
        lost: Cell<usize>,
    }

    impl Listener for Heard {
        fn message(&self, _: &Message) {}
        fn confirmed(&self, _: Listen, names: &[Bytes], are_all: bool) {
            self.confirmed.set(self.confirmed.get() + names.len());
            self.step.set(self.step.get().max(names.len()));
            self.done.set(self.done.get() + usize::from(are_all));
        }
        fn refused(&self, _: &Bytes) {
            self.refused.set(self.refused.get() + 1);
        }
        fn unserved(&self, _: &Unavailable) {}
        fn lost(&self) {
            self.lost.set(self.lost.get() + 1);
        }
        fn caught_up(&self) {}
    }

    fn names(prefix: &str, count: usize) -> Vec<Bytes> {
        (0..count).map(|at| Bytes::from(format!("{prefix}{at}"))).collect()
    }

    fn confirm(topics: &mut Topics, names: &[Bytes]) {
        for name in names {
            let mut frame = BytesMut::new();
            encode::push(&mut frame, crate::resp::Protocol::Resp3, 3);
            encode::bulk(&mut frame, b"subscribe");
            encode::bulk(&mut frame, name);
            encode::integer(&mut frame, 1);
            topics.receive(ReplyKind::Push, &frame, Instant::now()).unwrap();
        }
    }

    /// How often the state of a name is looked at for `count` names, subscribed in one command or in as many.
    fn looks(count: usize, at_once: bool) -> u64 {
        let mut topics = Topics::new(Arc::default());
        topics.connected();
        let heard = Rc::new(Heard::default());
        let all = names("c", count);
        let chunk = if at_once { count } else { 1 };
        for chunk in all.chunks(chunk) {
            let listener = Rc::clone(&heard) as Rc<dyn Listener>;
            assert!(topics.subscribe(1, listener, Listen::Channels, chunk.to_vec()).is_some());
        }
        confirm(&mut topics, &all);
        assert_eq!(heard.confirmed.get(), count);
        assert!(!topics.is_awaited());
        topics.looks.get()
    }

    #[test]
    fn the_cost_of_a_name_does_not_grow_with_their_number() {
        for at_once in [true, false] {
            let (few, many) = (looks(1_000, at_once), looks(10_000, at_once));
            assert!(many <= few * 11, "{few} looks for 1,000 names, {many} for 10,000");
        }
    }

    fn ask(topics: &mut Topics, who: u64, heard: &Rc<Heard>, names: &[Bytes]) {
        let listener = Rc::clone(heard) as Rc<dyn Listener>;
        assert!(topics.subscribe(who, listener, Listen::Channels, names.to_vec()).is_some());
    }

    #[test]
    fn very_many_names_are_joined_in_steps_and_each_once_also_after_a_loss() {
        let mut topics = Topics::new(Arc::default());
        topics.connected();
        let (heard, all) = (Rc::new(Heard::default()), names("c", 10_000));
        ask(&mut topics, 1, &heard, &all);
        confirm(&mut topics, &all[..7_200]);
        assert_eq!((heard.confirmed.get(), heard.done.get()), (7_000, 0));
        topics.disconnected(true);
        topics.connected();
        // What is listened to is asked for first, in any order.
        while let Some(Sent::Names { names, .. }) = topics.sent.front() {
            let names = names.clone();
            confirm(&mut topics, &names);
        }
        assert_eq!((heard.confirmed.get(), heard.step.get(), heard.done.get()), (10_000, STEP, 1));
        assert!(!topics.is_awaited());
        for name in &all {
            topics.unsubscribe(1, Listen::Channels, name);
        }
        assert!(!topics.is_needed());
    }

    /// Redis judges all names of a command before it subscribes to the first.
    #[test]
    fn of_a_command_that_is_refused_nothing_is_joined() {
        let mut topics = Topics::new(Arc::default());
        topics.connected();
        let (other, heard) = (Rc::new(Heard::default()), Rc::new(Heard::default()));
        let mut all = names("c", 2 * STEP);
        ask(&mut topics, 1, &other, &all);
        confirm(&mut topics, &all);
        all.push(Bytes::from("forbidden"));
        ask(&mut topics, 2, &heard, &all);
        topics.receive(ReplyKind::Error, b"-NOPERM no\r\n", Instant::now()).unwrap();
        assert_eq!((heard.confirmed.get(), heard.refused.get()), (0, 1));
    }

    #[test]
    fn requests_that_share_names_end_when_the_last_of_theirs_is_confirmed_also_after_a_loss() {
        let mut topics = Topics::new(Arc::default());
        topics.connected();
        let (one, other) = (Rc::new(Heard::default()), Rc::new(Heard::default()));
        let [a, b] = [Bytes::from("a"), Bytes::from("b")];
        let subscribe = |topics: &mut Topics, who, heard: &Rc<Heard>, names: &[&Bytes]| {
            let names = names.iter().map(|name| (*name).clone()).collect();
            topics.subscribe(who, Rc::clone(heard) as Rc<dyn Listener>, Listen::Channels, names).is_some()
        };
        assert!(subscribe(&mut topics, 1, &one, &[&a, &b, &a]));
        assert!(subscribe(&mut topics, 2, &other, &[&b, &a]));
        confirm(&mut topics, std::slice::from_ref(&a));
        assert_eq!((one.confirmed.get(), other.confirmed.get()), (0, 0));
        // What was confirmed counts for nothing on the next connection.
        topics.disconnected(true);
        topics.connected();
        confirm(&mut topics, std::slice::from_ref(&a));
        assert_eq!((one.confirmed.get(), other.confirmed.get()), (0, 0));
        confirm(&mut topics, std::slice::from_ref(&b));
        assert_eq!((one.confirmed.get(), other.confirmed.get()), (3, 2));
        assert!(!subscribe(&mut topics, 2, &other, &[&a]), "it is there already");
    }
}
