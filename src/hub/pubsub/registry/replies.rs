//! What the server says: messages, confirmations, refusals.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::{Sent, SubscriptionRegistry, Told};
use crate::hub::driver::HubProtocol;
use crate::hub::pubsub::listener::{DIVIDER, Message};
use crate::resp::{self, ReplyKind};
use crate::session::Listen;
use crate::telemetry::UpstreamClose;

impl SubscriptionRegistry {
    /// The answer to PING.
    fn answered(&mut self) -> Result<(), UpstreamClose> {
        let Some(Sent::Ping(listener)) = self.sent.pop_front() else { return Err(UpstreamClose::Desync) };
        listener.iter().for_each(|listener| listener.caught_up());
        Ok(())
    }

    /// A push, or in RESP2 an array that stands for one. `false`: it is neither a message nor a confirmation.
    fn heard(&mut self, frame: &[u8]) -> Result<bool, UpstreamClose> {
        let Some(mut parts) = resp::elements(frame) else { return Ok(false) };
        let (word, name) = (parts.next().and_then(resp::bulk), parts.next().and_then(resp::bulk));
        let (Some(word), Some(name)) = (word, name) else { return Ok(false) };
        let listen = match word {
            b"message" => Listen::Channels,
            b"pmessage" => {
                let channel = parts.next().and_then(resp::bulk);
                if channel.is_some_and(|channel| channel.starts_with(DIVIDER.as_bytes())) {
                    // A client that listens to everything does not mean this.
                    return Ok(true);
                }
                Listen::Patterns
            }
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

impl HubProtocol for SubscriptionRegistry {
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
