//! A blocking call in front of a cluster: it waits in the hub of the node that owns its keys, and follows them.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use super::in_hub::InHub;
use super::waited::Waited;
use crate::cluster::{Place, Redirect, place};
use crate::command::blocking::{self, Call};
use crate::command::{Blocking, classify};
use crate::downstream::client::{BlockedCall, Client, Routing, sleep_until};
use crate::downstream::routes::pending::PendingCommand;
use crate::hub::End;
use crate::pool::{LaneKey, Pool};
use crate::resp::{Request, encode};
use crate::telemetry::ClientClose;
use crate::upstream::Identity;

/// How long the cluster may take to say where a slot is before the node that is known is tried.
const QUESTION: Duration = Duration::from_millis(250);
/// Between two nodes that do not serve the call: at first, and at the most.
const PAUSE: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(100)];
/// A call that has waited on a node for so long was served there.
const SERVED: Duration = Duration::from_secs(1);
/// Without a hub there is no way to wait.
const NO_HUB: &str = "ERR redbouncer: in front of a cluster a blocking call needs the blocking hub: blocking.hub is off, no connection is free for it, or the server refuses CLIENT TRACKING or MULTI";

/// Who waits, for what, until when.
pub(super) struct BlockedOnNodes<'a> {
    pub(super) key: LaneKey,
    pub(super) identity: Arc<Identity>,
    pub(super) command: Blocking,
    pub(super) blocked: &'a BlockedCall,
    pub(super) arrived: Instant,
    pub(super) deadline: Option<Instant>,
}

/// The search for a node that serves the call.
struct Search {
    /// Since when none does.
    since: Option<Instant>,
    pause: Duration,
    /// What its client is told if none is found.
    why: String,
}

impl Client {
    /// Where a blocking call goes: the slot of its keys.
    ///
    /// # Errors
    /// Why it goes nowhere, as its client is told.
    fn slot_of_call(request: &Bytes) -> Result<u16, String> {
        let parsed = Request::parse(request).map(|request| place(&classify(&request), &request));
        match parsed {
            Some(Place::Slot(slot)) => Ok(slot),
            Some(Place::Refused(text)) => Err(text),
            Some(Place::Home | Place::Info | Place::BySlot(_) | Place::ByMaster(_) | Place::Scan) | None => {
                Err("ERR syntax error".to_owned())
            }
        }
    }

    /// Goes to the node that judges a call which cannot be parsed.
    pub(super) fn go_to_judge(&self, request: &Bytes) {
        let Some(routing) = self.routing() else { return };
        if let Some(owner) = Self::slot_of_call(request).ok().and_then(|slot| routing.pools.owner(slot)) {
            self.go_to(&owner);
        }
    }

    /// Waits until the call is answered.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(super) async fn block_on_nodes(
        self: &Rc<Self>,
        routing: &Routing,
        mut taken: PendingCommand,
        mut call: Call,
        (waits, mut before): (BlockedOnNodes<'_>, Waited),
    ) -> Result<(), ClientClose> {
        let slot = match Self::slot_of_call(&taken.request) {
            Ok(slot) => slot,
            Err(text) => {
                self.error(&text, taken.muted);
                return Ok(());
            }
        };
        let mut search = Search { since: None, pause: PAUSE[0], why: String::new() };
        let mut asking = None;
        loop {
            let found = match asking.take() {
                Some(node) => Some((node, true)),
                None => routing.pools.owner(slot).map(|node| (node, false)),
            };
            let Some((node, is_asking)) = found else {
                search.why = format!("ERR redbouncer: slot {slot} has no node");
                routing.pools.nodes().doubt();
                if self.waits_between_nodes(&mut search, &waits, taken.muted).await? {
                    return Ok(());
                }
                continue;
            };
            let began = Instant::now();
            let hubs = self.context.hubs_at(&node);
            let waited = self.wait_in_hub(
                (&hubs, is_asking),
                (waits.key, Arc::clone(&waits.identity)),
                (&call, &taken.request),
                (waits.blocked, waits.deadline),
                (waits.arrived, before),
                taken.muted,
            );
            let (reply, now) = match self.unless_gone(waited).await?? {
                InHub::Ended => return Ok(()),
                InHub::Unfit => {
                    NO_HUB.clone_into(&mut search.why);
                    if !self.context.blocking.get().hub {
                        self.error(NO_HUB, taken.muted);
                        return Ok(());
                    }
                    if self.waits_between_nodes(&mut search, &waits, taken.muted).await? {
                        return Ok(());
                    }
                    continue;
                }
                InHub::Redirected(reply, now) => (reply, now),
            };
            if began.elapsed() >= SERVED {
                search.since = None;
                search.pause = PAUSE[0];
            }
            taken.request = now.request;
            before = before.elsewhere(now.has_looked);
            let parsed = Request::parse(&taken.request);
            let Some(again) = parsed.and_then(|request| blocking::parse(&request, waits.command)) else {
                return Err(ClientClose::ProtocolError);
            };
            call = again;
            let has_to_wait;
            (asking, has_to_wait) = self.next_node(routing, &node, slot, &reply, &mut search).await?;
            if has_to_wait && self.waits_between_nodes(&mut search, &waits, taken.muted).await? {
                return Ok(());
            }
        }
    }

    /// What a redirection means: a node that is asked behind ASKING, and whether to wait first.
    async fn next_node(
        &self,
        routing: &Routing,
        from: &Rc<Pool>,
        slot: u16,
        reply: &[u8],
        search: &mut Search,
    ) -> Result<(Option<Rc<Pool>>, bool), ClientClose> {
        let (pools, nodes) = (&routing.pools, routing.pools.nodes());
        let name = pools.node_of(from);
        let redirect = name.as_ref().and_then(|name| Redirect::read(reply, name));
        if let Some(redirect) = &redirect {
            metrics::counter!("redbouncer_redirects_total", "kind" => redirect.label()).increment(1);
        }
        search.why = format!("ERR redbouncer: slot {slot} has no node");
        let is_first = search.since.is_none();
        search.since.get_or_insert_with(Instant::now);
        match redirect {
            // Found out without a reply: the slot has left, or the node is no master any more.
            None => {
                let known = pools.owner(slot).is_some_and(|owner| !Rc::ptr_eq(&owner, from));
                if !known {
                    // Without an answer in time the node that is known is tried again.
                    drop(self.unless_gone(timeout(QUESTION, nodes.asked_anew())).await?);
                }
                Ok((None, !known && !is_first))
            }
            Some(Redirect::Moved(slot, to)) => {
                nodes.doubt();
                let is_known = to.is_some_and(|to| Some(&to) != name.as_ref() && nodes.patch(slot, &to));
                Ok((None, !is_known || !is_first))
            }
            Some(Redirect::Ask(_, to)) => {
                let target = to.and_then(|to| pools.at(&to));
                if target.is_none() {
                    nodes.doubt();
                    search.why = format!(
                        "ERR redbouncer: slot {slot} is being moved to a node that the cluster does not list"
                    );
                }
                let has_to_wait = target.is_none() || !is_first;
                Ok((target, has_to_wait))
            }
            Some(
                redirect @ (Redirect::TryAgain
                | Redirect::ClusterDown
                | Redirect::Loading
                | Redirect::ReadOnly),
            ) => {
                nodes.doubt();
                search.why = format!(
                    "ERR redbouncer: no master for the command's keys: the node answers {}",
                    redirect.label().to_uppercase()
                );
                Ok((None, true))
            }
        }
    }

    /// Waits a moment, while no node serves the call. `true`: its wait is over, and its client has been told.
    async fn waits_between_nodes(
        self: &Rc<Self>,
        search: &mut Search,
        waits: &BlockedOnNodes<'_>,
        muted: bool,
    ) -> Result<bool, ClientClose> {
        let since = *search.since.get_or_insert_with(Instant::now);
        let again = Instant::now() + search.pause;
        search.pause = (search.pause * 2).min(PAUSE[1]);
        let pause = async {
            tokio::select! {
                () = sleep(again.saturating_duration_since(Instant::now())) => {}
                () = sleep_until(waits.deadline) => {}
                () = waits.blocked.woken() => {}
            }
        };
        self.unless_gone(pause).await?;
        if self.has_ended_input() {
            self.discard_input();
            return Ok(true);
        }
        if let Some(unblock) = waits.blocked.take_unblock() {
            let end = if unblock.ends_the_wait() {
                End::Error(encode::one_error("UNBLOCKED client unblocked via CLIENT UNBLOCK"))
            } else {
                End::Nil
            };
            return self.wait_ended(end, muted).map(|_| true);
        }
        if waits.deadline.is_some_and(|at| at <= Instant::now()) {
            return self.wait_ended(End::Nil, muted).map(|_| true);
        }
        if since.elapsed() >= self.context.pool.patience() {
            self.error(&search.why, muted);
            return Ok(true);
        }
        Ok(false)
    }
}
