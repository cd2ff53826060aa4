//! How a subscriber goes from one process to another: no message is lost, none is given twice, and their order stays.
//!
//! The old process subscribes to a channel that nobody else uses, the divider, and announces the client. The new one subscribes to
//! the client's names and the divider, and publishes one message there. The old process gives the client what it hears before that
//! message, the new one what it hears behind it. The old process decides: when the message has come and all before it has reached
//! the kernel, the client is given; else it stays. What either has kept back meanwhile is sent by the one that has the client.

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::downstream::client::{Attachment, Client, Divider, Subscriber};
use crate::downstream::moved::{Announced, Leaving, Subscribed, Verdict, WayOut};
use crate::hub::{Asking, DIVIDER, Listener};
use crate::pool::Lost;
use crate::resp::{self, encode};
use crate::session::Listen;
use crate::telemetry::ClientClose;

/// How long the new process may take until it hears what the old one does. Less than the time that the old one has.
const PREPARE: Duration = Duration::from_secs(5);
/// How long a subscriber is between two processes at the most.
const HANDOVER: Duration = Duration::from_secs(10);
/// A subscriber that could not move is not announced again before.
const AGAIN: Duration = Duration::from_secs(5);

/// A client that has been announced, until it is given. Dropped before, it is kept.
struct Announcement<'a> {
    client: &'a Rc<Client>,
    way: &'a WayOut,
    is_given: bool,
}

impl Drop for Announcement<'_> {
    fn drop(&mut self) {
        if self.is_given {
            return;
        }
        let kept = Leaving::Kept { client: self.client.id() };
        if let Err(mpsc::error::TrySendError::Full(kept)) = self.way.sender.try_send(kept) {
            let sender = self.way.sender.clone();
            let later = async move { drop(timeout(HANDOVER, sender.send(kept)).await) };
            self.client.context.pool.tasks().spawn_local(later);
        }
    }
}

/// A client on its way, until this is dropped.
struct Departing<'a>(&'a Client);

impl<'a> Departing<'a> {
    fn begin(client: &'a Client) -> Self {
        client.context.departures.begin(client.id());
        Self(client)
    }
}

impl Drop for Departing<'_> {
    fn drop(&mut self) {
        let context = &self.0.context;
        if let Some(next) = context.departures.end().and_then(|id| context.client(id)) {
            next.wake();
        }
    }
}

/// The channel of a divider, subscribed until this is dropped.
struct Dividing {
    subscriber: Rc<Subscriber>,
    divider: Rc<Divider>,
    name: Bytes,
    _asking: Option<Asking>,
}

impl Dividing {
    fn begin(client: &Rc<Client>, subscriber: &Rc<Subscriber>, name: Bytes) -> Self {
        let divider = Divider::new(client);
        let listener = Rc::clone(&divider) as Rc<dyn Listener>;
        let asking = subscriber.station.subscribe(listener, Listen::Channels, vec![name.clone()]);
        Self { subscriber: Rc::clone(subscriber), divider, name, _asking: asking }
    }
}

impl Drop for Dividing {
    fn drop(&mut self) {
        self.subscriber.station.unsubscribe(Listen::Channels, &self.name);
    }
}

/// What the server has answered to PUBLISH.
type Published = oneshot::Receiver<Result<Vec<Bytes>, Lost>>;

/// The new process hears what the old one does, and has published the message that divides.
struct Prepared {
    dividing: Dividing,
    published: Published,
}

/// What becomes of a client, which is declined if its message is not `published`.
async fn decided(announced: &mut Announced, published: Option<&mut Published>) -> Option<Verdict> {
    let is_refused = async {
        let answer = match published {
            Some(published) => published.await,
            None => return,
        };
        let is_done = |frames: &Vec<Bytes>| frames.first().is_some_and(|frame| !resp::is_error(frame));
        if matches!(&answer, Ok(Ok(frames)) if is_done(frames)) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        verdict = announced.verdict() => return verdict,
        () = is_refused => {}
    }
    announced.decline();
    announced.verdict().await
}

impl Client {
    /// Sends a subscriber to the process that takes over. Returns when it stays.
    ///
    /// # Errors
    /// It has gone there, or is to be closed.
    pub(in crate::downstream) async fn depart(self: &Rc<Self>) -> Result<(), ClientClose> {
        let (Some(way), Some(subscriber)) = (self.context.way_out(), self.subscriber.borrow().clone()) else {
            return Ok(());
        };
        let (_state, _departing) = (self.attachment.enter(Attachment::Moving), Departing::begin(self));
        let handover = timeout(HANDOVER, self.hand_over(&way, &subscriber));
        if self.unless_gone(handover).await? == Ok(true) {
            return Err(ClientClose::TakenOver);
        }
        subscriber.stays(Instant::now() + AGAIN);
        self.set_mid_reply(false);
        Ok(())
    }

    /// `true`: it is the other process's.
    async fn hand_over(self: &Rc<Self>, way: &WayOut, subscriber: &Rc<Subscriber>) -> bool {
        let boot = &self.context.pool.shared.instance.boot;
        let name = format!("{DIVIDER}{boot}:{}:{}", self.id(), self.context.now());
        let dividing = Dividing::begin(self, subscriber, Bytes::from(name.clone()));
        if !dividing.divider.is_subscribed().await {
            return false;
        }
        let Some(moved) = self.announced(name) else { return false };
        let (sender, declined) = oneshot::channel();
        if way.sender.send(Leaving::Announced(moved, sender)).await.is_err() {
            return false;
        }
        let mut announcement = Announcement { client: self, way, is_given: false };
        let is_passed = tokio::select! {
            biased;
            is_passed = dividing.divider.is_passed() => is_passed,
            _ = declined => false,
        };
        if !is_passed {
            return false;
        }
        poll_fn(|cx| self.poll_flush(cx)).await;
        let Ok(place) = way.sender.reserve().await else { return false };
        announcement.is_given = self.is_given(place);
        announcement.is_given
    }

    /// Goes on with a subscriber that another process has announced, when that gives it.
    ///
    /// # Errors
    /// It stays there, or is to be closed.
    pub(in crate::downstream) async fn arrive(
        self: &Rc<Self>,
        subscribed: Subscribed,
        mut announced: Announced,
    ) -> Result<(), ClientClose> {
        self.belongs_to_another();
        let _state = self.attachment.enter(Attachment::Moving);
        let mut prepared = match self.unless_closed(timeout(PREPARE, self.hear_the_same(&subscribed))).await {
            Ok(Ok(prepared)) => prepared,
            // Its connection is closed for both.
            Err(ClientClose::Killed) => return Err(ClientClose::Killed),
            Ok(Err(_)) | Err(_) => None,
        };
        let published = prepared.as_mut().map(|prepared| &mut prepared.published);
        // However long it takes: the other process always says what becomes of it, or ends.
        let (input, has_forgotten) = match self.unless_closed(decided(&mut announced, published)).await {
            Ok(Some(Verdict::Given(input, has_forgotten))) => (input, has_forgotten),
            Err(ClientClose::Killed) => return Err(ClientClose::Killed),
            Ok(Some(Verdict::Kept) | None) | Err(_) => return Err(ClientClose::TakenOver),
        };
        // It was not given without the message.
        let Some(Prepared { dividing, .. }) = &prepared else { return Err(ClientClose::SubscriptionLost) };
        // The other process has heard the message, and we may hear it much later, where the server or this host is busy. What is
        // before it has been given there; what is behind it is not lost while our connection lasts, whose end the hub tells.
        if !self.unless_closed(dividing.divider.is_passed()).await? {
            if let Some(reason) = self.close_reason() {
                return Err(reason);
            }
            // Who listens is told of no gap (`pubsub.resubscribe = "silent"`): it goes on with what comes from now on.
            self.hears_again();
        }
        self.is_received(&input, has_forgotten);
        Ok(())
    }

    /// Runs `work` until it is done or the client is to be closed, and reads nothing from it meanwhile.
    async fn unless_closed<T>(&self, work: impl Future<Output = T>) -> Result<T, ClientClose> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            reason = poll_fn(|cx| self.poll_close_requested(cx)) => Err(reason),
        }
    }

    /// Subscribes to all that the client is subscribed to, and publishes the message that divides. `None`: it cannot be.
    async fn hear_the_same(self: &Rc<Self>, subscribed: &Subscribed) -> Option<Prepared> {
        let (key, identity) = self.lane_key()?;
        if !self.context.server.policy().pubsub_hub {
            return None;
        }
        let station = self.context.pubsub.station(key.user, &identity, self.id());
        let subscriber = Rc::new(Subscriber::new(station, self.charge()));
        self.subscriber.replace(Some(Rc::clone(&subscriber)));
        let name = Bytes::copy_from_slice(subscribed.divider.as_bytes());
        let dividing = Dividing::begin(self, &subscriber, name);
        for listen in Listen::ALL {
            let names: Vec<Bytes> =
                subscribed.names(listen).iter().map(|name| Bytes::copy_from_slice(name)).collect();
            let count = names.len();
            if count == 0 {
                continue;
            }
            subscriber.asks();
            let listener = Rc::clone(self) as Rc<dyn Listener>;
            let _asking = subscriber.station.subscribe(listener, listen, names);
            while !subscriber.is_done() {
                subscriber.answered().await;
            }
            if subscriber.take_unserved().is_some() || subscriber.names(listen).len() != count {
                return None;
            }
        }
        if !dividing.divider.is_subscribed().await {
            return None;
        }
        let published = self.publish(&dividing.name).await?;
        Some(Prepared { dividing, published })
    }

    /// Publishes the message that divides. `None`: the server cannot be reached.
    async fn publish(&self, divider: &Bytes) -> Option<Published> {
        let (key, identity) = self.lane_key()?;
        let group = self.context.pool.group(key, &identity);
        // Counted as a user of the lanes while it waits, so that they are not closed for want of one.
        let _session = group.attach();
        let deadline = Instant::now() + PREPARE;
        let lane = loop {
            self.context.pool.lane_ready(&group, deadline).await.ok()?;
            if let Some(lane) = group.lane() {
                break lane;
            }
        };
        let (sender, receiver) = oneshot::channel();
        let then = Box::new(move |frames| drop(sender.send(frames)));
        let publish = encode::one_command(&[b"PUBLISH", divider, b"moved"]);
        lane.exchange(&publish, 1, Instant::now(), then);
        Some(receiver)
    }
}
