//! A pub/sub hub's connection: permit, dial, then bytes for the topics until it is lost or nobody needs it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::Resubscribe;
use super::super::driver::{ConnectionEnd, Ended, HubDriver, HubProtocol, WakerSlot, lost};
use super::super::hub_row::HubRow;
use super::audience::Audience;
use super::listener::Listener;
use super::registry::SubscriptionRegistry;
use crate::pool::{Claim, Holder, Kind, LaneKey, Permit, Pool, Stage, Tracked, Unavailable, Who};
use crate::resp::Protocol;
use crate::session::Listen;
use crate::telemetry::UpstreamClose;
use crate::upstream::{DialError, Identity, UpstreamStream};

/// The hub of one user on one worker.
pub(super) struct Hub {
    pool: Rc<Pool>,
    user: u64,
    identity: Arc<Identity>,
    resubscribe: Resubscribe,
    topics: RefCell<SubscriptionRegistry>,
    bell: WakerSlot,
    leaving: Cell<Option<UpstreamClose>>,
    /// Until when its replies are waited for, where it leaves a server that may not answer.
    cut_at: Cell<Option<Instant>>,
    running: Cell<bool>,
    opened: Cell<Option<Instant>>,
    /// Since when nobody listens.
    idle_since: Cell<Option<Instant>>,
    /// When something last came from the server.
    heard: Cell<Instant>,
    pinged: Cell<Instant>,
    /// It waits for a place under the cap.
    queued: Cell<bool>,
    last_failure: RefCell<Option<Unavailable>>,
    messages: metrics::Counter,
    deliveries: metrics::Counter,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Hub {
    pub(super) fn new(
        pool: Rc<Pool>,
        user: u64,
        identity: Arc<Identity>,
        resubscribe: Resubscribe,
        audience: Arc<Audience>,
    ) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            pool,
            user,
            identity,
            resubscribe,
            topics: RefCell::new(SubscriptionRegistry::new(audience)),
            bell: WakerSlot::default(),
            leaving: Cell::new(None),
            cut_at: Cell::new(None),
            running: Cell::new(true),
            opened: Cell::new(None),
            idle_since: Cell::new(None),
            heard: Cell::new(now),
            pinged: Cell::new(now),
            queued: Cell::new(false),
            last_failure: RefCell::new(None),
            messages: metrics::counter!("redbouncer_pubsub_messages_total"),
            deliveries: metrics::counter!("redbouncer_pubsub_deliveries_total"),
        })
    }

    pub(super) fn subscribe(
        &self,
        who: u64,
        listener: Rc<dyn Listener>,
        listen: Listen,
        names: Vec<Bytes>,
    ) -> Option<u64> {
        self.idle_since.set(None);
        let request = self.topics.borrow_mut().subscribe(who, listener, listen, names);
        self.bell.ring();
        request
    }

    pub(super) fn unsubscribe(&self, who: u64, listen: Listen, name: &Bytes) {
        self.topics.borrow_mut().unsubscribe(who, listen, name);
        self.bell.ring();
    }

    pub(super) fn has_all(&self, listen: Listen, names: &[Bytes]) -> bool {
        self.topics.borrow().has_all(listen, names)
    }

    pub(super) fn mark(&self, listener: Rc<dyn Listener>) -> bool {
        let is_marked = self.topics.borrow_mut().mark(listener);
        self.bell.ring();
        is_marked
    }

    pub(super) fn cancel(&self, request: u64) {
        self.topics.borrow_mut().cancel(request);
        self.bell.ring();
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.get()
    }

    pub(super) fn names(&self) -> usize {
        self.topics.borrow().names()
    }

    pub(super) fn row(&self, worker: usize) -> HubRow {
        let topics = self.topics.borrow();
        HubRow {
            worker,
            node: None,
            kind: Kind::PubSub,
            user: self.identity.name().to_owned(),
            open_for: self.opened.get().map(|at| at.elapsed()),
            waiting: topics.listeners(),
            names: topics.names(),
            in_flight: topics.in_flight(),
        }
    }

    pub(super) fn heard(&self) -> Instant {
        self.heard.get()
    }

    /// Why there is no confirmation after all the time that a wait may take.
    pub(super) fn why_not(&self) -> Unavailable {
        if self.queued.get() {
            return self.pool.why_nothing(Kind::PubSub, self.user, Stage::Queued);
        }
        let failure = self.last_failure.borrow().clone();
        failure.unwrap_or_else(|| Unavailable::still_connecting(self.pool.patience()))
    }

    pub(super) fn leave(&self, reason: UpstreamClose) {
        if self.leaving.get().is_none() || reason == UpstreamClose::Shutdown {
            self.leaving.set(Some(reason));
            self.bell.ring();
        }
    }

    /// Another server is the master now: the connection is left, at the latest at `end`. A dial under way finds that out by
    /// itself.
    pub(super) fn depose(&self, end: Instant) {
        if self.opened.get().is_some() && self.leaving.get() != Some(UpstreamClose::Shutdown) {
            self.leaving.set(Some(UpstreamClose::Deposed));
            self.cut_at.set(Some(end));
            self.bell.ring();
        }
    }

    pub(super) fn tick(&self, now: Instant) {
        if self.cut_at.get().is_some_and(|at| at <= now) {
            self.bell.ring();
        }
        let mut topics = self.topics.borrow_mut();
        let (messages, deliveries) = topics.take_counts();
        self.messages.increment(messages);
        self.deliveries.increment(deliveries);
        if topics.is_needed() {
            self.idle_since.set(None);
        } else if self.idle_since.get().is_none() {
            self.idle_since.set(Some(now));
        }
        let shared = &self.pool.shared;
        let since = |at: Instant| now.saturating_duration_since(at);
        let idle = self.idle_since.get().is_some_and(|at| since(at) >= shared.options.get().linger);
        let open = self.opened.get().is_some();
        let silent = since(self.heard.get().max(self.pinged.get())) >= shared.heartbeat;
        let stalled = topics.in_flight() > 0 && since(self.heard.get()) > shared.upstream.get().stall_timeout;
        if open && silent {
            self.pinged.set(now);
            topics.ping();
            self.bell.ring();
        }
        drop(topics);
        if idle {
            self.leave(UpstreamClose::Linger);
        }
        if open && stalled {
            self.leaving.set(Some(UpstreamClose::Stalled));
            self.bell.ring();
        }
    }

    /// Connects, and again after a loss, as long as anybody listens.
    pub(super) async fn run(self: &Rc<Self>) -> Ended {
        let ended = self.serve().await;
        self.running.set(false);
        self.topics.borrow_mut().tell_all(|listener| listener.lost());
        ended
    }

    async fn serve(self: &Rc<Self>) -> Ended {
        let mut backoff = self.pool.backoff();
        'permit: loop {
            let Some(permit) = self.permit().await else { return Ended::NoPermit };
            loop {
                match self.connect(&permit).await {
                    Ok(stream) => {
                        backoff = self.pool.backoff();
                        let (over, stream) = self.carry(stream).await;
                        match over {
                            // The place is for the next connection: a server that stands still would hold it.
                            ConnectionEnd::Left(reason @ UpstreamClose::Deposed) => {
                                permit.closes(reason);
                                drop(stream);
                                if self.is_needed() {
                                    continue;
                                }
                            }
                            ConnectionEnd::Left(reason) => {
                                self.pool.close_now(stream, permit, reason).await;
                                if reason == UpstreamClose::Shutdown || !self.is_needed() {
                                    return Ended::Done;
                                }
                                continue 'permit;
                            }
                            ConnectionEnd::Lost(reason) => lost(&permit, reason),
                            ConnectionEnd::Refused => return Ended::Refused,
                        }
                    }
                    Err(error) => {
                        let why = Unavailable::of(&error);
                        if !error.retryable() {
                            self.topics.borrow_mut().fail_all(&why);
                        }
                        self.last_failure.replace(Some(why));
                    }
                }
                if !self.is_needed() {
                    return Ended::Done;
                }
                let is_awaited = self.topics.borrow().is_awaited();
                self.pool.pause(&mut backoff, is_awaited).await;
            }
        }
    }

    fn is_needed(&self) -> bool {
        self.topics.borrow().is_needed()
    }

    /// A place under the cap: at once within the floor, else in turn with leases while anybody waits.
    async fn permit(&self) -> Option<Permit> {
        let what = format!("pub/sub hub of user '{}'", self.identity.name());
        let holder = Holder { user: self.user, address: None, who: Who::Words(&what) };
        let budget = &self.pool.shared.budget;
        if let Some(permit) = budget.try_acquire(Kind::PubSub, holder) {
            return Some(permit);
        }
        self.queued.set(true);
        let mut place = budget.queue(Claim::PubSub, holder);
        let permit = loop {
            match tokio::time::timeout(self.pool.patience(), place.granted()).await {
                Ok(permit) => break permit,
                Err(_) if self.topics.borrow().is_awaited() => {}
                Err(_) => break None,
            }
        };
        self.queued.set(false);
        permit
    }

    async fn connect(&self, permit: &Permit) -> Result<UpstreamStream, DialError> {
        // A new connection is what it was to leave for; what it is told during the dial stands, and so does a stop.
        self.leaving.set(self.leaving.get().filter(|reason| *reason == UpstreamClose::Shutdown));
        self.cut_at.set(None);
        let shared = &self.pool.shared;
        let resp3 = shared.connector.speaks_resp3(self.identity.name());
        let protocol = if resp3 { Protocol::Resp3 } else { Protocol::Resp2 };
        let key = LaneKey {
            user: self.user,
            database: shared.upstream.get().database,
            protocol,
            readonly: false,
            tracked: Tracked::No,
        };
        match self.pool.dial_for(permit, key, &self.identity).await {
            // Nobody had asked before.
            Err(DialError::NoResp3 { .. }) => {
                let key = LaneKey { protocol: Protocol::Resp2, ..key };
                self.pool.dial_for(permit, key, &self.identity).await
            }
            other => other,
        }
    }

    async fn carry(self: &Rc<Self>, stream: UpstreamStream) -> (ConnectionEnd, UpstreamStream) {
        let now = Instant::now();
        self.opened.set(Some(now));
        self.heard.set(now);
        self.pinged.set(now);
        self.last_failure.replace(None);
        self.topics.borrow_mut().connected();
        let mut carrier = HubDriver::new(stream, &self.pool);
        let over = poll_fn(|cx| {
            self.bell.answer_to(cx);
            carrier.poll(cx, &self.pool, &self.topics, &self.heard, || self.leaves())
        })
        .await;
        self.opened.set(None);
        // However it ended: what is published until the next connection is subscribed reaches nobody.
        self.topics.borrow_mut().disconnected(self.resubscribe == Resubscribe::Silent);
        (over, carrier.stream)
    }

    /// Whether the connection is to be left now.
    fn leaves(&self) -> Option<ConnectionEnd> {
        let mut topics = self.topics.borrow_mut();
        let reason = self.leaving.get()?;
        if reason == UpstreamClose::Stalled {
            return Some(ConnectionEnd::Lost(reason));
        }
        if self.cut_at.get().is_some_and(|at| at <= Instant::now()) {
            return Some(ConnectionEnd::Lost(reason));
        }
        if reason == UpstreamClose::Linger && topics.is_needed() {
            self.leaving.set(None);
            return None;
        }
        (topics.in_flight() == 0 && topics.out().is_empty() || reason == UpstreamClose::Shutdown)
            .then_some(ConnectionEnd::Left(reason))
    }
}
