//! The pub/sub hub: any number of subscribers on one upstream connection per user.
//!
//! `topics` decides (pure), `connection` carries its bytes, `audience` knows on all workers who hears what.

mod audience;
mod connection;
mod listener;
mod registry;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::PubSubOptions;
use super::driver::Ended;
use super::hub_row::HubRow;
use crate::pool::{Pool, Unavailable};
use crate::session::Listen;
use crate::telemetry::UpstreamClose;
use crate::upstream::Identity;

pub use audience::Audience;
use connection::Hub;
pub use listener::{DIVIDER, Listener, Message};

/// The pub/sub hubs of one worker's users.
pub struct PubSubHubs {
    pool: Rc<Pool>,
    options: Cell<PubSubOptions>,
    audience: Arc<Audience>,
    hubs: RefCell<BTreeMap<u64, Rc<Hub>>>,
}

/// A subscriber's place in the hub of the user that it was when it subscribed. Dropping it ends its subscriptions
/// there, which [`Self::unsubscribe`] must have named before.
#[derive(Clone, Debug)]
pub struct Station {
    hub: Rc<Hub>,
    who: u64,
}

/// A request that waits for the server. Dropping it gives it up.
#[derive(Debug)]
pub struct Asking {
    hub: Rc<Hub>,
    request: Cell<Option<u64>>,
}

impl Station {
    /// Subscribes. `None`: done, and the listener was told; else it will be told.
    #[must_use]
    pub fn subscribe(&self, listener: Rc<dyn Listener>, listen: Listen, names: Vec<Bytes>) -> Option<Asking> {
        let request = self.hub.subscribe(self.who, listener, listen, names)?;
        Some(Asking { hub: Rc::clone(&self.hub), request: Cell::new(Some(request)) })
    }

    /// Whether [`Self::subscribe`] would be done at once.
    #[must_use]
    pub fn has_all(&self, listen: Listen, names: &[Bytes]) -> bool {
        self.hub.has_all(listen, names)
    }

    /// Ends one subscription.
    pub fn unsubscribe(&self, listen: Listen, name: &Bytes) {
        self.hub.unsubscribe(self.who, listen, name);
    }

    /// Has `listener` told when all that was published before has been given to it. `false`: there is no connection, so
    /// nothing can come.
    #[must_use]
    pub fn mark(&self, listener: Rc<dyn Listener>) -> bool {
        self.hub.mark(listener)
    }

    /// Whether its hub is still in use.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.hub.is_running()
    }
}

impl Asking {
    /// When the server last said anything to the hub.
    #[must_use]
    pub fn heard(&self) -> Instant {
        self.hub.heard()
    }

    /// Why the server has not answered until now.
    #[must_use]
    pub fn why_not(&self) -> Unavailable {
        self.hub.why_not()
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            self.hub.cancel(request);
        }
    }
}

impl std::fmt::Debug for PubSubHubs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PubSubHubs").field("hubs", &self.hubs.borrow().len()).finish_non_exhaustive()
    }
}

impl PubSubHubs {
    /// No hubs yet; each is opened by the first subscriber that needs it.
    #[must_use]
    pub fn new(pool: Rc<Pool>, options: PubSubOptions, audience: Arc<Audience>) -> Rc<Self> {
        Rc::new(Self { pool, options: Cell::new(options), audience, hubs: RefCell::default() })
    }

    /// Other settings, for hubs that are opened from now on.
    pub fn configure(&self, options: PubSubOptions) {
        self.options.set(options);
    }

    /// What everybody hears.
    #[must_use]
    pub fn audience(&self) -> &Audience {
        &self.audience
    }

    /// A place for client `who` in the hub of `user`.
    #[must_use]
    pub fn station(self: &Rc<Self>, user: u64, identity: &Arc<Identity>, who: u64) -> Station {
        let known = self.hubs.borrow().get(&user).filter(|hub| hub.is_running()).cloned();
        let hub = known.unwrap_or_else(|| {
            let hub = Hub::new(
                Rc::clone(&self.pool),
                user,
                Arc::clone(identity),
                self.options.get().resubscribe,
                Arc::clone(&self.audience),
            );
            self.hubs.borrow_mut().insert(user, Rc::clone(&hub));
            self.pool.tasks().spawn_local(Rc::clone(self).keep(user, Rc::clone(&hub)));
            hub
        });
        Station { hub, who }
    }

    /// Runs a hub until nobody needs it.
    async fn keep(self: Rc<Self>, user: u64, hub: Rc<Hub>) {
        let ended: Ended = hub.run().await;
        let mut hubs = self.hubs.borrow_mut();
        if hubs.get(&user).is_some_and(|current| Rc::ptr_eq(current, &hub)) {
            hubs.remove(&user);
        }
        drop(hubs);
        tracing::debug!(user, ?ended, "a pub/sub hub ended");
    }

    /// What must be done every tenth of a second: heartbeats, stalls, hubs that nobody needs.
    pub fn tick(&self, now: Instant) {
        for hub in self.hubs.borrow().values() {
            hub.tick(now);
        }
    }

    /// The connections are to be made anew (the server's address has changed), or closed for good.
    pub fn leave_all(&self, reason: UpstreamClose) {
        for hub in self.hubs.borrow().values() {
            hub.leave(reason);
        }
    }

    /// Another server is the master now: connections are made anew there, and replies of this one are waited for until `end`.
    pub fn depose(&self, end: Instant) {
        for hub in self.hubs.borrow().values() {
            hub.depose(end);
        }
    }

    /// The server no longer lets `user` in, and those who listened have gone.
    pub fn leave_user(&self, user: u64, reason: UpstreamClose) {
        if let Some(hub) = self.hubs.borrow().get(&user) {
            hub.leave(reason);
        }
    }

    /// The hubs, for listings.
    pub fn rows(&self, worker: usize) -> Vec<HubRow> {
        let hubs = self.hubs.borrow();
        hubs.values().map(|hub| hub.row(worker)).collect()
    }

    /// Names subscribed upstream.
    #[must_use]
    pub fn names(&self) -> usize {
        self.hubs.borrow().values().map(|hub| hub.names()).sum()
    }
}
