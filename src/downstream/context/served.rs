//! The operations of a worker on a client, independent of its implementation.

use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use crate::downstream::identity::Account;
use crate::downstream::redirection::Inbox;
use crate::hub::Unblock;
use crate::pool::{LaneKey, Pool};
use crate::resp::Request;
use crate::session::ClientRow;
use crate::telemetry::ClientClose;
use crate::upstream::Identity;

/// A client as its worker sees it.
pub(in crate::downstream) trait Served {
    /// Has its task close it, unless it is being closed already.
    fn close(&self, reason: ClientClose);
    /// Why it is being closed.
    fn close_reason(&self) -> Option<ClientClose>;
    /// Whether its socket is closed.
    fn is_closed(&self) -> bool;
    /// Wakes its task to check whether it can continue.
    fn wake(&self);
    /// Another process has taken over: has its task look whether it can go there.
    fn may_leave(&self);
    /// Its row in listings.
    fn row(&self, now: Instant) -> ClientRow;
    /// Every second: whether its host is still there, and the limits that time sets.
    fn age(&self, now: Instant);
    /// Whether a drain waits for it: commands are unanswered, or replies unsent.
    fn is_busy(&self) -> bool;
    /// Whether it waits for something that a drain does not: its own task would not notice the drain.
    fn waits_in_vain_for_a_drain(&self) -> bool;
    /// Whether it holds a connection of its own to the server of this pool.
    fn holds_lease(&self, of: &Rc<Pool>) -> bool;
    /// Closes it for the memory it holds, which is dropped at once.
    fn yield_memory(&self);
    /// Every tick while it is above its soft output limit (`false`: no longer): whether it reads.
    fn tend_output(&self) -> bool;
    /// Whether it has logged in as `account` by showing a secret.
    fn has_logged_in_as(&self, account: &Arc<Account>) -> bool;
    /// CLIENT UNBLOCK: ends its blocking call, if it waits in one that is served here.
    fn unblock(&self, how: Unblock);
    /// Where other clients of `user` may have what they are to be told go to this one. `None`: it is not theirs, or it ends.
    fn inbox(self: Rc<Self>, user: u64) -> Option<Arc<Inbox>>;
    /// Whether the server that it knows things of is no more.
    fn has_outlived_the_server(&self) -> bool;
    /// The lanes of a client that knows things of the server which another server would not know.
    fn lanes_to_watch(&self) -> Option<(LaneKey, Arc<Identity>)>;
}

/// A blocking call that may be given an element popped for another client.
pub(in crate::downstream) trait ElementTaker {
    /// Gives it `element`, the reply to `request` on connections of `key`, if it is the same call and waits. `false`: it does
    /// not take it.
    fn take_element(&self, key: LaneKey, request: &Request<'_>, element: &[u8]) -> bool;
}
