//! Messages of the pub/sub hub to a client.

use bytes::{Bytes, BytesMut};

use super::{Client, Subscriber};
use crate::hub::{Listener, Message};
use crate::pool::Unavailable;
use crate::session::Listen;
use crate::telemetry::ClientClose;

impl Client {
    /// Its subscriptions have changed: their number decides what it may send, and their names count.
    pub(in crate::downstream) fn note_subscriptions(&self, subscriber: &Subscriber) {
        let (count, has_grown) = subscriber.count_all();
        self.session.borrow_mut().listens = count;
        self.judge_reader();
        if has_grown {
            self.context.keep_within_bound();
        }
    }
}

impl Listener for Client {
    fn message(&self, message: &Message) {
        self.send_push(message.frame(self.protocol()).clone());
    }

    fn confirmed(&self, listen: Listen, names: &[Bytes], are_all: bool) {
        let Some(subscriber) = self.subscriber.borrow().clone() else { return };
        let mut out = BytesMut::new();
        subscriber.add(listen, names, self.protocol(), &mut out);
        self.note_subscriptions(&subscriber);
        self.send(&out);
        if are_all {
            subscriber.is_answered();
        }
    }

    fn refused(&self, words: &Bytes) {
        self.send(words);
        if let Some(subscriber) = &*self.subscriber.borrow() {
            subscriber.is_answered();
        }
    }

    fn unserved(&self, why: &Unavailable) {
        if let Some(subscriber) = &*self.subscriber.borrow() {
            subscriber.gives_up(why);
        }
    }

    fn lost(&self) {
        self.close(ClientClose::SubscriptionLost);
    }

    fn caught_up(&self) {
        if let Some(subscriber) = &*self.subscriber.borrow() {
            subscriber.is_up_to_date();
        }
    }
}
