//! What clients ask for, and what the server is asked for them.

use std::collections::HashSet;
use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;

use super::{Request, Sent, SubscriptionRegistry, Told};
use crate::resp::encode;
use crate::session::Listen;

/// Of a request for very many names so many are joined in one step, so that others are served between two.
pub(super) const STEP: usize = 500;

impl SubscriptionRegistry {
    /// Subscribes what a request still needs and nobody has asked for yet; with nothing missing it is done.
    pub(super) fn ask_for(&mut self, id: u64) {
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
    pub(super) fn finish(&mut self, id: u64) -> bool {
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

    pub(super) fn join(&mut self, request: &Request, step: Range<usize>) {
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

    pub(super) fn let_go(&mut self, id: u64, request: &Request) {
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
    pub(super) fn tidy(&mut self, listen: Listen, name: &Bytes) {
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

    pub(super) fn send(&mut self, listen: Listen, subscribe: bool, names: Vec<Bytes>, by: Option<u64>) {
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
}

/// Each name once, in the order of their first mention.
fn distinct(names: &[Bytes]) -> Vec<&Bytes> {
    let mut seen = HashSet::new();
    names.iter().filter(|name| seen.insert(*name)).collect()
}
