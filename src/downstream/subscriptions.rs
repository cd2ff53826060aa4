//! Subscribers: their commands, and what the pub/sub hub has for them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::client::Client;
use super::leased::sleep_until;
use crate::command::Aftermath;
use crate::hub::{Listener, Message, Station};
use crate::pool::{Slice, Unavailable};
use crate::resp::Request;
use crate::session::{Flags, Listen, Subscriptions};
use crate::telemetry::ClientClose;

/// What a subscriber has that other clients do without.
#[derive(Debug)]
pub(super) struct Subscriber {
    station: Station,
    subscriptions: RefCell<Subscriptions>,
    /// Its request has been answered.
    done: Cell<bool>,
    answered: Notify,
    /// Why its request is given up.
    unserved: RefCell<Option<Unavailable>>,
    /// It has been given all that was published before it last asked.
    is_caught_up: Cell<bool>,
    caught_up: Notify,
    /// So it was after its FIN.
    has_heard_all: Cell<bool>,
}

impl Subscriber {
    /// The names of one kind.
    fn names(&self, listen: Listen) -> Vec<Bytes> {
        self.subscriptions.borrow().of(listen).iter().cloned().collect()
    }

    fn is_answered(&self) {
        self.done.set(true);
        self.answered.notify_one();
    }
}

impl Client {
    /// SUBSCRIBE and its kin. Returns when every name is confirmed, or the command has failed.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(super) async fn listen(
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
            None => Rc::new(Subscriber {
                station: self.worker.pubsub.station(key.user, &identity, self.id),
                subscriptions: RefCell::default(),
                done: Cell::new(false),
                answered: Notify::new(),
                unserved: RefCell::default(),
                is_caught_up: Cell::new(false),
                caught_up: Notify::new(),
                has_heard_all: Cell::new(false),
            }),
        };
        self.subscriber.replace(Some(Rc::clone(&subscriber)));
        // What was published before is not for it.
        if subscriber.station.has_all(listen, &names) {
            self.catch_up().await?;
        }
        let listener = Rc::clone(self) as Rc<dyn Listener>;
        subscriber.done.set(false);
        let _charge = self.charge_for_waiting(request);
        if let Some(asking) = subscriber.station.subscribe(listener, listen, names) {
            self.is_caught_up.set(false);
            let place = self.place.replace("waits for the pub/sub hub");
            let begun = Instant::now();
            let patience = self.worker.pool.shared.options.wait_timeout;
            let answered = self
                .patiently(async {
                    let mut deadline = begun + patience;
                    while !subscriber.done.get() {
                        tokio::select! {
                            biased;
                            () = subscriber.answered.notified() => {}
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
                .await;
            self.place.set(place);
            let why = if answered? { subscriber.unserved.take() } else { Some(asking.why_not()) };
            if let Some(why) = why {
                drop(asking);
                self.unserved(&why, Aftermath::Closed, 1, muted)?;
            }
        }
        self.forget_subscriber_without_subscriptions();
        Ok(())
    }

    /// Waits until the hub has given out all that was published before: its connection may bring it later than a lane brings
    /// the reply to PUBLISH, where the server would have written it by now. What begins or ends subscriptions here, or ends
    /// the client, comes after it.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(super) async fn catch_up(self: &Rc<Self>) -> Result<(), ClientClose> {
        let Some(subscriber) = self.subscriber.borrow().clone() else { return Ok(()) };
        // Several commands one behind the other wait once.
        if self.is_caught_up.get() {
            return Ok(());
        }
        subscriber.is_caught_up.set(false);
        if subscriber.station.mark(Rc::clone(self) as Rc<dyn Listener>) {
            let place = self.place.replace("waits for the pub/sub hub");
            let deadline = self.worker.pool.wait_deadline();
            let caught_up = self
                .patiently(async {
                    while !subscriber.is_caught_up.get() {
                        tokio::select! {
                            biased;
                            () = subscriber.caught_up.notified() => {}
                            () = sleep_until(Some(deadline)) => break,
                        }
                    }
                })
                .await;
            self.place.set(place);
            caught_up?;
        }
        self.is_caught_up.set(true);
        subscriber.has_heard_all.set(self.has_said_all());
        Ok(())
    }

    /// Whether messages may come that were published before the FIN of this client.
    pub(super) fn may_hear_more(&self) -> bool {
        self.subscriber.borrow().as_ref().is_some_and(|subscriber| !subscriber.has_heard_all.get())
    }

    /// UNSUBSCRIBE and its kin, after [`Self::catch_up`]: done here, whatever the server still has to be told.
    pub(super) async fn unlisten(&self, listen: Listen, request: &Bytes) {
        let Some(parsed) = Request::parse(request) else { return };
        let named: Vec<Bytes> = parsed.args().skip(1).map(Bytes::copy_from_slice).collect();
        let subscriber = self.subscriber.borrow().clone();
        let Some(subscriber) = subscriber else { return self.leave_none(listen, &named) };
        let names = if named.is_empty() { subscriber.names(listen) } else { named };
        if names.is_empty() {
            self.leave_none(listen, &[]);
        }
        let mut slice = Slice::begin();
        let mut left = &names[..];
        while !left.is_empty() {
            left = self.leave_some(&subscriber, listen, left, &slice);
            slice.breathe().await;
        }
        self.forget_subscriber_without_subscriptions();
    }

    /// Answers an UNSUBSCRIBE of one that is subscribed to nothing of this kind.
    fn leave_none(&self, listen: Listen, named: &[Bytes]) {
        let mut out = BytesMut::new();
        let subscriber = self.subscriber.borrow().clone();
        let mut none = Subscriptions::default();
        let mut all = subscriber.as_ref().map(|subscriber| subscriber.subscriptions.borrow_mut());
        let all = all.as_deref_mut().unwrap_or(&mut none);
        if named.is_empty() {
            all.remove(listen, None, self.protocol(), &mut out);
        }
        for name in named {
            all.remove(listen, Some(name), self.protocol(), &mut out);
        }
        self.send(&out);
    }

    /// Leaves names until others are to be served. Returns the rest.
    fn leave_some<'a>(
        &self,
        subscriber: &Subscriber,
        listen: Listen,
        names: &'a [Bytes],
        slice: &Slice,
    ) -> &'a [Bytes] {
        let mut out = BytesMut::new();
        let protocol = self.protocol();
        let mut all = subscriber.subscriptions.borrow_mut();
        let mut left = names;
        while let Some((name, rest)) = left.split_first() {
            if all.remove(listen, Some(name), protocol, &mut out) {
                subscriber.station.unsubscribe(listen, name);
            }
            left = rest;
            if slice.is_over() {
                break;
            }
        }
        self.session.borrow_mut().listens = all.len();
        self.holds_names(all.len(), all.bytes());
        drop(all);
        self.send(&out);
        left
    }

    /// Ends all subscriptions without a word, when the client is closed.
    pub(super) async fn leave_subscriptions_in_slices(&self) {
        let Some(subscriber) = self.subscriber.borrow().clone() else { return };
        let names = subscriber.subscriptions.take();
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
    pub(super) fn leave_subscriptions(&self) {
        let Some(subscriber) = self.subscriber.take() else { return };
        let all = subscriber.subscriptions.take();
        for listen in Listen::ALL {
            for name in all.of(listen) {
                subscriber.station.unsubscribe(listen, name);
            }
        }
        self.session.borrow_mut().listens = 0;
        self.holds_names(0, 0);
        self.release_held();
    }

    fn forget_subscriber_without_subscriptions(&self) {
        let idle = self.subscriber.borrow().as_ref().is_some_and(|it| it.subscriptions.borrow().is_empty());
        if idle {
            self.subscriber.take();
            self.release_held();
        }
    }

    /// Its flags in listings.
    pub(super) fn listed_flags(&self) -> Flags {
        let mut flags = self.flags.get();
        let session = self.session.borrow();
        flags.readonly = session.readonly;
        flags.no_evict = session.no_evict;
        flags.tracking |= session.tracking.is_some();
        drop(session);
        if let Some(subscriber) = &*self.subscriber.borrow() {
            let all = subscriber.subscriptions.borrow();
            flags.channels += all.of(Listen::Channels).len();
            flags.patterns += all.of(Listen::Patterns).len();
            flags.shards += all.of(Listen::Shards).len();
        }
        flags
    }

    /// Whether a reply has begun on its way to the client and not ended: nothing may come between.
    pub(super) fn set_mid_reply(&self, begun: bool) {
        if self.mid_reply.replace(begun) && !begun {
            self.release_held();
        }
    }

    fn release_held(&self) {
        let Some(mut held) = self.held_pushes.take() else { return };
        self.holds_messages(0);
        while let Some(frames) = held.pop() {
            self.send_shared(frames);
        }
    }

    /// How many bytes are held back.
    pub(super) fn held_back(&self) -> usize {
        self.held_pushes.borrow().as_ref().map_or(0, |held| held.len())
    }

    /// Closes a subscriber that does not read: above the hard limit at once, above the soft limit after its time
    /// (`client.output_buffer_limit`, as Redis's class `pubsub`).
    pub(super) fn check_subscriber_limits(&self, unsent: usize) {
        if self.session.borrow().listens == 0 {
            return;
        }
        let limit = self.worker.options.output_buffer_limit;
        let now = Instant::now();
        let since = match (unsent > limit.soft, self.over_soft_since.get()) {
            (true, None) => Some(now),
            (true, since) => since,
            (false, _) => None,
        };
        self.over_soft_since.set(since);
        let too_long = since.is_some_and(|since| now.saturating_duration_since(since) >= limit.soft_for);
        if unsent > limit.hard || too_long {
            self.doom(ClientClose::OutputLimit);
        }
    }
}

impl Listener for Client {
    fn message(&self, message: &Message) {
        let frame = message.frame(self.protocol());
        self.send_push(frame.clone());
    }

    fn confirmed(&self, listen: Listen, names: &[Bytes], are_all: bool) {
        let Some(subscriber) = self.subscriber.borrow().clone() else { return };
        let mut out = BytesMut::new();
        let protocol = self.protocol();
        let mut all = subscriber.subscriptions.borrow_mut();
        for name in names {
            all.add(listen, name, protocol, &mut out);
        }
        self.session.borrow_mut().listens = all.len();
        let (count, bytes) = (all.len(), all.bytes());
        drop(all);
        self.holds_names(count, bytes);
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
            subscriber.unserved.replace(Some(why.clone()));
            subscriber.is_answered();
        }
    }

    fn lost(&self) {
        self.doom(ClientClose::SubscriptionLost);
    }

    fn caught_up(&self) {
        if let Some(subscriber) = &*self.subscriber.borrow() {
            subscriber.is_caught_up.set(true);
            subscriber.caught_up.notify_one();
        }
    }
}

/// How much a subscriber may leave unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputLimit {
    /// Bytes above which it is closed at once.
    pub hard: usize,
    /// Bytes above which it is closed after `soft_for`.
    pub soft: usize,
    /// How long it may stay above `soft`.
    pub soft_for: Duration,
}

impl Default for OutputLimit {
    /// Redis's own limits for subscribers (`client-output-buffer-limit pubsub`).
    fn default() -> Self {
        Self { hard: 32 << 20, soft: 8 << 20, soft_for: Duration::from_secs(60) }
    }
}
