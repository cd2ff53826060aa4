//! Blocking calls: never a starved worker, never a late nil, never a lost element.
//!
//! A call waits in the hub of its user (`in_hub`). Where that cannot be, it is tried without blocking on a lane (inside
//! MULTI nothing blocks), and takes a lease as soon as one is free; until then it is tried again, with growing pauses.
//! Its time counts from its arrival and is kept here. What a try or a lease popped for a client that is gone goes to the
//! next client with the same call, else back into its key.

mod answer;
mod beside;
mod in_hub;
mod leaving;
mod on_lease;
mod on_nodes;
mod role;
mod tries;
mod undelivered;
mod waited;
mod waiter;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use crate::command::blocking::{self, Call, Timeout, is_nothing};
use crate::command::{Aftermath, Blocking, Class, classify};
use crate::downstream::client::{Attachment, Client, FIRST_LOOK, sleep_until};
use crate::downstream::context::{Context, ElementTaker};
use crate::downstream::moved::Blocked;
use crate::downstream::routes::pending::PendingCommand;
use crate::hub::Unblock;
use crate::pool::{Claim, Holder, Lease, Unavailable, Who};
use crate::resp::Request;
use crate::session::{Pin, Route};
use crate::telemetry::{ClientClose, UpstreamClose};

use answer::own_answer;
use in_hub::InHub;
use on_nodes::BlockedOnNodes;
pub(in crate::downstream) use waited::Waited;
use waiter::{State, Stay, Waiter, Waits};

/// A waiter among those of its worker, until this is dropped.
struct Listed {
    context: Rc<Context>,
    waiter: Rc<dyn ElementTaker>,
}

impl Listed {
    fn new(waiter: &Rc<Waiter>) -> Self {
        let context = Rc::clone(&waiter.client.context);
        let waiter = Rc::clone(waiter) as Rc<dyn ElementTaker>;
        context.waiters.borrow_mut().push(Rc::clone(&waiter));
        Self { context, waiter }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.context.waiters.borrow_mut().retain(|other| !Rc::ptr_eq(other, &self.waiter));
    }
}

/// The server takes the timeout, and nothing else knows what it means.
const NO_TIMEOUT: &str = "ERR redbouncer: in front of a cluster a blocking call needs a plain timeout: decimal seconds such as 5 or 0.5, or whole milliseconds for XREAD and XREADGROUP";

/// Where two ways to say how long a call has waited differ by more, the time of day has been changed.
const CLOCKS_DIFFER: Duration = Duration::from_secs(1);

impl Client {
    /// Goes on with a call that has waited in another process, for the time that it has left.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream) async fn goes_on_blocked(
        self: &Rc<Self>,
        call: Blocked,
    ) -> Result<(), ClientClose> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // The clock may have been set between the two processes.
        let exact = now.checked_sub(call.since).filter(|time| time.abs_diff(call.waited) < CLOCKS_DIFFER);
        let time = exact.unwrap_or(call.waited);
        let before = Waited { time, has_moved: true, has_looked: call.has_looked };
        let request = Bytes::from(call.request);
        let asked = Request::parse(&request).map(|request| classify(&request));
        let Some(asked) = asked else { return Err(ClientClose::ProtocolError) };
        let Class::Blocking(command) = asked.class else { return Err(ClientClose::ProtocolError) };
        self.last_command.set(asked.row);
        let _answers = self.attachment.enter(Attachment::Answering);
        let taken = PendingCommand {
            request,
            route: Route::Blocking(command),
            muted: call.muted,
            may_invent: true,
            replies: 1,
            counts: false,
            remembered: false,
        };
        let reads = (command == Blocking::XRead).then(|| taken.request.clone());
        self.blocking(taken, command, before).await?;
        self.invalidate_reads_of(reads.as_ref());
        Ok(())
    }

    /// Serves a blocking call to its end.
    pub(in crate::downstream) async fn blocking(
        self: &Rc<Self>,
        taken: PendingCommand,
        command: Blocking,
        before: Waited,
    ) -> Result<(), ClientClose> {
        let Some((key, identity)) = self.lane_key() else { return Err(ClientClose::Denied) };
        let key = key.untracked();
        // All earlier replies are out: Redis would begin to count here, too.
        let now = Instant::now();
        let arrived = now.checked_sub(before.time).unwrap_or(now);
        let parsed = Request::parse(&taken.request).and_then(|request| blocking::parse(&request, command));
        let Some(call) = parsed else {
            // Malformed: the server says what is wrong before it would block.
            return self.refused_by_the_server(&taken).await;
        };
        if call.timeout == Timeout::Unclear && self.routing().is_some() {
            return self.refused_by_the_server(&taken).await;
        }
        let deadline = match call.timeout {
            Timeout::After(time) => arrived.checked_add(time),
            Timeout::Forever | Timeout::Unclear => None,
        };
        let _charge = self.charge_for_waiting(&taken.request);
        let (blocked, _state) = self.attachment.block();
        if let Some(routing) = self.routing() {
            let waits = BlockedOnNodes { key, identity, command, blocked: &blocked, arrived, deadline };
            return self.block_on_nodes(routing, taken, call, (waits, before)).await;
        }
        let hub = self.wait_in_hub(
            (&self.context.hubs, false),
            (key, Arc::clone(&identity)),
            (&call, &taken.request),
            (&blocked, deadline),
            (arrived, before),
            taken.muted,
        );
        match self.unless_gone(hub).await?? {
            InHub::Ended => return Ok(()),
            // There are no other nodes.
            InHub::Unfit | InHub::Redirected(..) => {}
        }
        let waiter = Rc::new(Waiter::new(Waits {
            client: Rc::clone(self),
            blocked,
            key,
            identity,
            call,
            request: taken.request,
            arrived,
            deadline,
            muted: taken.muted,
        }));
        waiter.has_looked.set(before.has_looked);
        let _listed = Listed::new(&waiter);
        let outcome = self.unless_gone(waiter.wait(&self.context)).await;
        if self.has_ended_input() && (!waiter.is_done() || waiter.in_vain.get()) {
            self.discard_input();
        }
        waiter.state.set(State::Done);
        outcome?
    }

    /// Sends a call that cannot be parsed inside MULTI, where it cannot block, and forwards the server's error. A call that it takes
    /// has a timeout of which only the server knows how long it is, and in front of a cluster nothing waits on the server.
    async fn refused_by_the_server(self: &Rc<Self>, taken: &PendingCommand) -> Result<(), ClientClose> {
        let mut block = BytesMut::new();
        Call::try_form(&taken.request, &mut block);
        self.go_to_judge(&taken.request);
        match self.exchange(&block, 3).await? {
            Ok(frames) => match own_answer(&frames).filter(|_| !taken.muted) {
                Some(own) if is_nothing(&own) => self.error(NO_TIMEOUT, false),
                Some(own) => self.send_answer(&own),
                None => {}
            },
            Err(why) => self.unserved(&why, Aftermath::Nothing, 1, taken.muted)?,
        }
        Ok(())
    }
}

impl Waiter {
    /// Waits until the call is answered, or its client has closed its side and nothing was found for it.
    ///
    /// # Errors
    /// Why the client is to be closed.
    async fn wait(self: &Rc<Self>, context: &Rc<Context>) -> Result<(), ClientClose> {
        let holding = self.client.holding(Pin::Blocked);
        let address = self.client.peer.host();
        let holder = Holder { user: self.key.user, address, who: Who::Client(&holding) };
        // `$` must be made explicit first: on the lease it would mean something else than after a recall.
        if self.call.dollars.is_empty()
            && let Some(lease) = context.pool.parked_lease(self.key, Claim::BlockingLease)
        {
            lease.permit.describe(holder);
            if matches!(self.stay(context, lease).await?, Stay::Ended) {
                return Ok(());
            }
        }
        let last = self.deadline.map(|at| at + context.blocking.get().grace);
        let may_try = tokio::select! {
            biased;
            may_try = self.prepare(context) => match may_try? {
                Some(may_try) => may_try,
                None => return Ok(()),
            },
            () = sleep_until(last) => {
                self.nil();
                return Ok(());
            }
        };
        let mut pause = context.blocking.get().retry_min;
        while !self.search(context, holder, may_try, &mut pause).await? {}
        Ok(())
    }

    /// Tries the call on lanes, with growing pauses, until there is a lease, and waits on that. `false`: the lease was wanted
    /// back, or none can be had now, and all begins anew.
    async fn search(
        self: &Rc<Self>,
        context: &Rc<Context>,
        holder: Holder<'_>,
        may_try: bool,
        pause: &mut Duration,
    ) -> Result<bool, ClientClose> {
        let lease = context.pool.lease(self.key, &self.identity, Claim::BlockingLease, holder, None);
        tokio::pin!(lease);
        loop {
            if self.is_done() {
                return Ok(true);
            }
            if may_try && self.attempt(context).await? || self.waits_for_nobody() {
                return Ok(true);
            }
            if let Some(reason) = self.gives_up() {
                return Err(reason);
            }
            if let Some(kind) = self.blocked.take_unblock() {
                self.unblocked(kind);
                return Ok(true);
            }
            if self.leaves() {
                return Err(ClientClose::TakenOver);
            }
            // With Unclear only the server knows how long to wait, so only a lease can.
            tokio::select! {
                biased;
                found = &mut lease => return self.found(context, found, *pause).await,
                () = sleep_until(self.deadline) => {
                    self.nil();
                    return Ok(true);
                }
                () = self.blocked.woken() => {}
                () = self.changed.notified() => {}
                () = tokio::time::sleep(*pause) => {}
            }
            *pause = (*pause * 2).min(context.blocking.get().retry_max);
        }
    }

    /// The search for a lease has ended. `false`: it begins anew.
    async fn found(
        self: &Rc<Self>,
        context: &Rc<Context>,
        found: Result<Lease, Unavailable>,
        pause: Duration,
    ) -> Result<bool, ClientClose> {
        match found {
            Ok(lease) if self.is_done() => {
                // Nothing was sent on it: it goes to the next who waits.
                context.pool.end_lease(lease, true, UpstreamClose::LeaseEnded, None);
                Ok(true)
            }
            Ok(lease) => match self.stay(context, lease).await? {
                Stay::Ended => Ok(true),
                Stay::Recalled => {
                    self.has_looked.set(true);
                    Ok(false)
                }
            },
            Err(
                why @ (Unavailable::LoginRefused(_) | Unavailable::NoAuth | Unavailable::SelectRefused(_)),
            ) => {
                self.fail_for(&why)?;
                Ok(true)
            }
            Err(_) => {
                if self.waits_for_nobody() {
                    return Ok(true);
                }
                let again = Instant::now() + pause;
                sleep_until(Some(self.deadline.map_or(again, |at| at.min(again)))).await;
                let is_late = self.remaining().is_some_and(|left| left.is_zero());
                if is_late {
                    self.nil();
                }
                Ok(is_late)
            }
        }
    }

    /// Whether nobody waits any more: the client has closed its side, and its call has found nothing, or nobody could
    /// look in time.
    fn waits_for_nobody(&self) -> bool {
        self.client.has_ended_input()
            && (self.has_looked.get() || !self.fin_timing.looks() || self.arrived.elapsed() >= FIRST_LOOK)
    }

    fn unblocked(&self, unblock: Unblock) {
        if self.is_done() {
            return;
        }
        if unblock.ends_the_wait() {
            self.fail("UNBLOCKED client unblocked via CLIENT UNBLOCK");
        } else {
            self.nil();
        }
    }
}
