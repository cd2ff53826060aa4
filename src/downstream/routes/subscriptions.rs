//! Subscribers: their commands, and what the pub/sub hub has for them.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use crate::command::Aftermath;
use crate::downstream::client::{Client, Subscriber, sleep_until};
use crate::hub::Listener;
use crate::pool::Slice;
use crate::resp::Request;
use crate::session::{Listen, Subscriptions};
use crate::telemetry::ClientClose;

impl Client {
    /// SUBSCRIBE and its kin. Returns when every name is confirmed, or the command has failed.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream) async fn subscribe(
        self: &Rc<Self>,
        listen: Listen,
        request: &Bytes,
        muted: bool,
    ) -> Result<(), ClientClose> {
        let Some(parsed) = Request::parse(request) else { return Err(ClientClose::ProtocolError) };
        let Some((key, identity)) = self.lane_key() else { return Err(ClientClose::Denied) };
        let names: Vec<Bytes> = parsed.args().skip(1).map(Bytes::copy_from_slice).collect();
        let subscriber = match self.subscriber.borrow().clone() {
            Some(subscriber) if subscriber.station.is_open() => subscriber,
            Some(_) => return Err(ClientClose::SubscriptionLost),
            None => {
                let station = self.context.pubsub.station(key.user, &identity, self.id());
                Rc::new(Subscriber::new(station, self.charge()))
            }
        };
        self.subscriber.replace(Some(Rc::clone(&subscriber)));
        // What was published before is not for it.
        if subscriber.station.has_all(listen, &names) {
            self.catch_up().await?;
        }
        let listener = Rc::clone(self) as Rc<dyn Listener>;
        subscriber.asks();
        let _charge = self.charge_for_waiting(request);
        if let Some(asking) = subscriber.station.subscribe(listener, listen, names) {
            self.is_caught_up.set(false);
            let waits = self.attachment.await_pubsub();
            let begun = Instant::now();
            let patience = self.context.pool.patience();
            let answered = self
                .unless_gone(async {
                    let mut deadline = begun + patience;
                    while !subscriber.is_done() {
                        tokio::select! {
                            biased;
                            () = subscriber.answered() => {}
                            () = sleep_until(Some(deadline)) => {
                                // The server is there, and at work on very many names.
                                let heard = asking.heard();
                                if heard <= begun || heard + patience <= Instant::now() {
                                    return false;
                                }
                                deadline = heard + patience;
                            }
                        }
                    }
                    true
                })
                .await?;
            drop(waits);
            let why = if answered { subscriber.take_unserved() } else { Some(asking.why_not()) };
            if let Some(why) = why {
                drop(asking);
                self.unserved(&why, Aftermath::Closed, 1, muted)?;
            }
        }
        self.forget_subscriber_without_subscriptions();
        Ok(())
    }

    /// Waits until the client has been sent all that the server had for it before: messages come over the hub's connection
    /// and invalidations over lanes, both perhaps later than the reply to the PUBLISH or write that caused them, where the
    /// server would have written them by now. What begins or ends subscriptions here, or ends the client, comes after it.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream) async fn catch_up(self: &Rc<Self>) -> Result<(), ClientClose> {
        let subscriber = self.subscriber.borrow().clone();
        // Several commands one behind the other wait once.
        if self.is_caught_up.get() || subscriber.is_none() && !self.hears_invalidations() {
            return Ok(());
        }
        let deadline = self.context.pool.wait_deadline();
        if let Some(subscriber) = &subscriber {
            subscriber.wants_to_catch_up();
            if subscriber.station.mark(Rc::clone(self) as Rc<dyn Listener>) {
                let _waits = self.attachment.await_pubsub();
                let caught_up = subscriber.caught_up();
                // A server that says nothing for so long is not waited for.
                let _ = self.unless_gone(tokio::time::timeout_at(deadline, caught_up)).await?;
            }
        }
        let told = self.is_told_what_changed();
        let _ = self.unless_gone(tokio::time::timeout_at(deadline, told)).await?;
        self.is_caught_up.set(true);
        if let Some(subscriber) = &subscriber {
            subscriber.has_caught_up(self.has_ended_input());
        }
        Ok(())
    }

    /// Whether messages or invalidations may come that the server sent before the FIN of this client.
    pub(in crate::downstream) fn may_hear_more(&self) -> bool {
        self.subscriber.borrow().as_ref().is_some_and(|subscriber| !subscriber.has_heard_all())
            || !self.is_caught_up.get() && self.hears_invalidations()
    }

    /// UNSUBSCRIBE and its kin, after [`Self::catch_up`]: done here, whatever the server still has to be told.
    pub(in crate::downstream) async fn unsubscribe(&self, listen: Listen, request: &Bytes) {
        let Some(parsed) = Request::parse(request) else { return };
        let named: Vec<Bytes> = parsed.args().skip(1).map(Bytes::copy_from_slice).collect();
        let subscriber = self.subscriber.borrow().clone();
        let Some(subscriber) = subscriber else { return self.unsubscribe_none(listen, &named) };
        let names = if named.is_empty() { subscriber.names(listen) } else { named };
        if names.is_empty() {
            self.unsubscribe_none(listen, &[]);
        }
        let mut slice = Slice::begin();
        let mut left = &names[..];
        while !left.is_empty() {
            left = self.unsubscribe_some(&subscriber, listen, left, &slice);
            slice.breathe().await;
        }
        self.forget_subscriber_without_subscriptions();
    }

    /// Answers an UNSUBSCRIBE of one that is subscribed to nothing of this kind.
    fn unsubscribe_none(&self, listen: Listen, named: &[Bytes]) {
        let mut out = BytesMut::new();
        let subscriber = self.subscriber.borrow().clone();
        let mut none = Subscriptions::default();
        let protocol = self.protocol();
        let mut remove = |name: Option<&Bytes>| match &subscriber {
            Some(subscriber) => subscriber.remove(listen, name, protocol, &mut out),
            None => none.remove(listen, name, protocol, &mut out),
        };
        if named.is_empty() {
            remove(None);
        }
        for name in named {
            remove(Some(name));
        }
        self.send(&out);
    }

    /// Leaves names until others are to be served. Returns the rest.
    fn unsubscribe_some<'a>(
        &self,
        subscriber: &Subscriber,
        listen: Listen,
        names: &'a [Bytes],
        slice: &Slice,
    ) -> &'a [Bytes] {
        let mut out = BytesMut::new();
        let protocol = self.protocol();
        let mut left = names;
        while let Some((name, rest)) = left.split_first() {
            if subscriber.remove(listen, Some(name), protocol, &mut out) {
                subscriber.station.unsubscribe(listen, name);
            }
            left = rest;
            if slice.is_over() {
                break;
            }
        }
        self.note_subscriptions(subscriber);
        self.send(&out);
        left
    }

    /// Ends all subscriptions without a word, when the client is closed.
    pub(in crate::downstream) async fn leave_subscriptions_in_slices(&self) {
        let Some(subscriber) = self.subscriber.borrow().clone() else { return };
        let names = subscriber.take_all();
        let mut slice = Slice::begin();
        for listen in Listen::ALL {
            for name in names.of(listen) {
                subscriber.station.unsubscribe(listen, name);
                slice.breathe().await;
            }
        }
        self.leave_subscriptions();
    }

    /// Ends all subscriptions without a word, for RESET.
    pub(in crate::downstream) fn leave_subscriptions(&self) {
        let Some(subscriber) = self.subscriber.take() else { return };
        let all = subscriber.take_all();
        for listen in Listen::ALL {
            for name in all.of(listen) {
                subscriber.station.unsubscribe(listen, name);
            }
        }
        self.session.borrow_mut().listens = 0;
        self.judge_reader();
        self.release_pushes();
    }

    fn forget_subscriber_without_subscriptions(&self) {
        let idle = self.subscriber.borrow().as_ref().is_some_and(|it| it.is_empty());
        if idle {
            self.subscriber.take();
            self.release_pushes();
        }
    }
}
