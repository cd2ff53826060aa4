//! Blocking calls: never a starved worker, never a late nil, never a lost element.
//!
//! A call waits in the hub of its user (`in_hub`). Where that cannot be, it is tried without blocking on a lane (inside
//! MULTI nothing blocks), and takes a lease as soon as one is free; until then it is tried again, with growing pauses.
//! Its time counts from its arrival and is kept here. What a try or a lease popped for a client that is gone goes to the
//! next client with the same call, else back into its key.

mod beside;
mod in_hub;
mod on_lease;
mod role;
mod tries;
mod undelivered;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::command::blocking::{self, Call, DEMOTED, Timeout, is_code};
use crate::command::{Aftermath, Blocking};
use crate::downstream::client::LastCall;
use crate::downstream::client::{BlockedCall, Client};
use crate::downstream::client::{FIRST_LOOK, sleep_until};
use crate::downstream::context::{Context, TakesElement};
use crate::downstream::routes::deferred::Taken;
use crate::hub::Unblock;
use crate::pool::{Claim, Holder, LaneKey, Unavailable};
use crate::resp::Request;
use crate::session::Pin;
use crate::telemetry::{ClientClose, UpstreamClose};
use crate::upstream::Identity;

use on_lease::Stay;
use role::RoleSeen;
use tries::own_answer;

/// Where a waiting call stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::downstream) enum State {
    /// Nothing is in flight for it.
    Queued,
    /// A try is in flight.
    Trying,
    /// Answered, or its client is gone.
    Done,
}

/// One blocking call and the client that waits for it.
#[derive(Debug)]
pub(in crate::downstream) struct Waiter {
    client: Rc<Client>,
    blocked: Rc<BlockedCall>,
    pub(in crate::downstream) key: LaneKey,
    identity: Arc<Identity>,
    pub(in crate::downstream) call: Call,
    pub(in crate::downstream) request: RefCell<Bytes>,
    arrived: Instant,
    last_call: LastCall,
    deadline: Option<Instant>,
    muted: bool,
    pub(in crate::downstream) state: Cell<State>,
    /// It has waited: an error that a new call would be told of is not for it.
    has_looked: Cell<bool>,
    /// It had waited, and its client was gone when an element came.
    in_vain: Cell<bool>,
    /// One of its keys is of another type, so they are tried one by one.
    key_by_key: Cell<bool>,
    /// The server may serve it there at any moment.
    on_lease: Cell<bool>,
    role: RoleSeen,
    changed: Notify,
}

impl Waiter {
    /// Whether nobody else can be serving it at this moment.
    pub(in crate::downstream) fn is_free(&self) -> bool {
        self.state.get() == State::Queued && !self.on_lease.get()
    }

    /// Gives the waiting client its element, in one step. `false`: it cannot be had there.
    pub(in crate::downstream) fn deliver(&self, element: &[u8]) -> bool {
        if self.state.get() == State::Done {
            return false;
        }
        let has_waited = self.has_looked.get() || !self.last_call.may_deliver();
        let delivered = self.muted || self.client.deliver_element(element, has_waited);
        self.in_vain.set(!delivered && has_waited);
        self.state.set(State::Done);
        self.changed.notify_one();
        delivered
    }

    /// Whether it is answered: another's element may be handed on to it at any await.
    fn is_done(&self) -> bool {
        self.state.get() == State::Done
    }

    fn nil(&self) {
        // Redis frees a blocked client whose FIN it reads, before its time is up.
        if self.is_done() || self.client.has_said_all() {
            return;
        }
        self.state.set(State::Done);
        if !self.muted {
            let protocol = self.client.protocol();
            self.client.reply(|out| Call::timeout_reply(protocol, out));
        }
    }

    /// There is no connection for it, and no use in waiting.
    fn fail_for(&self, why: &Unavailable) -> Result<(), ClientClose> {
        if self.is_done() {
            return Ok(());
        }
        self.state.set(State::Done);
        self.client.unserved(why, Aftermath::Nothing, 1, self.muted)
    }

    /// Why the client is closed after it has waited for a server that is not there.
    fn gives_up(&self) -> Option<ClientClose> {
        let pool = &self.client.context.pool;
        let is_long = self.arrived.elapsed() >= pool.shared.options.wait_timeout;
        pool.away().filter(|_| is_long).and_then(|away| self.client.ends_for(&away))
    }

    /// The server has answered with an error. One that has become a replica closes whom it tells so, and so does a direct
    /// client learn of it that was waiting already, whatever a try of ours was answered.
    fn refused(&self, error: &[u8]) {
        if self.is_done() {
            return;
        }
        self.state.set(State::Done);
        let demoted = error == DEMOTED || self.has_looked.get() && is_code(error, b"READONLY");
        if !self.muted {
            self.client.send(if demoted { DEMOTED } else { error });
        }
        if demoted {
            self.client.close(ClientClose::UpstreamLost);
        }
    }

    fn fail(&self, text: &str) {
        if self.is_done() {
            return;
        }
        self.state.set(State::Done);
        self.client.error(text, self.muted);
    }

    fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|at| at.saturating_duration_since(Instant::now()))
    }
}

impl TakesElement for Waiter {
    fn take_element(&self, key: LaneKey, request: &Request<'_>, element: &[u8]) -> bool {
        let same = self.key == key
            && Request::parse(&self.request.borrow()).is_some_and(|own| Call::same_shape(request, &own));
        // One that blocks on a lease may be served there at the same moment; only a queued one is surely free.
        same && self.is_free() && self.deliver(element)
    }
}

/// A waiter among those of its worker, until this is dropped.
struct Listed {
    context: Rc<Context>,
    waiter: Rc<dyn TakesElement>,
}

impl Listed {
    fn new(waiter: &Rc<Waiter>) -> Self {
        let context = Rc::clone(&waiter.client.context);
        let waiter = Rc::clone(waiter) as Rc<dyn TakesElement>;
        context.waiters.borrow_mut().push(Rc::clone(&waiter));
        Self { context, waiter }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.context.waiters.borrow_mut().retain(|other| !Rc::ptr_eq(other, &self.waiter));
    }
}

impl Client {
    /// Serves a blocking call to its end.
    pub(in crate::downstream) async fn blocking(
        self: &Rc<Self>,
        taken: Taken,
        command: Blocking,
    ) -> Result<(), ClientClose> {
        let Some((key, identity)) = self.lane_key() else { return Err(ClientClose::Denied) };
        let key = key.untracked();
        // All earlier replies are out: Redis would begin to count here, too.
        let arrived = Instant::now();
        let parsed = Request::parse(&taken.request).and_then(|request| blocking::parse(&request, command));
        let Some(call) = parsed else {
            // Malformed: the server says what is wrong before it would block.
            return self.refused_by_the_server(&taken).await;
        };
        let deadline = match call.timeout {
            Timeout::After(time) => arrived.checked_add(time),
            Timeout::Forever | Timeout::Unclear => None,
        };
        let _charge = self.charge_for_waiting(&taken.request);
        let (blocked, _state) = self.attachment.block();
        let hub = self.wait_in_hub(
            (key, Arc::clone(&identity)),
            (&call, &taken.request),
            (&blocked, deadline),
            taken.muted,
        );
        if self.patiently(hub).await?? {
            return Ok(());
        }
        let waiter = Rc::new(Waiter {
            client: Rc::clone(self),
            blocked,
            key,
            identity,
            call,
            request: RefCell::new(taken.request),
            arrived,
            last_call: LastCall::new(self),
            deadline,
            muted: taken.muted,
            state: Cell::new(State::Queued),
            has_looked: Cell::new(false),
            in_vain: Cell::new(false),
            key_by_key: Cell::new(false),
            on_lease: Cell::new(false),
            role: RoleSeen::default(),
            changed: Notify::new(),
        });
        let _listed = Listed::new(&waiter);
        let outcome = self.patiently(waiter.wait(&self.context)).await;
        if self.has_said_all() && (!waiter.is_done() || waiter.in_vain.get()) {
            self.hears_no_more();
        }
        waiter.state.set(State::Done);
        outcome?
    }

    /// Sends a call that cannot be parsed inside MULTI, where it cannot block, and forwards the server's error.
    async fn refused_by_the_server(self: &Rc<Self>, taken: &Taken) -> Result<(), ClientClose> {
        let mut block = BytesMut::new();
        Call::try_form(&taken.request, &mut block);
        match self.exchange(&block, 3).await? {
            Ok(frames) => {
                if !taken.muted
                    && let Some(own) = own_answer(&frames)
                {
                    self.send(&own);
                }
            }
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
        // `$` must be made explicit first: on the lease it would mean something else than after a recall.
        if self.call.dollars.is_empty()
            && let Some(lease) = context.pool.parked_lease(self.key, Claim::BlockingLease)
            && matches!(self.stay(context, lease).await?, Stay::Ended)
        {
            return Ok(());
        }
        let last = self.deadline.map(|at| at + context.blocking.grace);
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
        let mut pause = context.blocking.retry_min;
        let what = format!("{}, {}", self.client.called(), Pin::Blocked.label());
        let holder = Holder { user: self.key.user, address: self.client.peer.host(), what: &what };
        'search: loop {
            let lease = context.pool.lease(self.key, &self.identity, Claim::BlockingLease, holder, None);
            tokio::pin!(lease);
            loop {
                if self.is_done() {
                    return Ok(());
                }
                if may_try && self.attempt(context).await? || self.waits_for_nobody() {
                    return Ok(());
                }
                if let Some(reason) = self.gives_up() {
                    return Err(reason);
                }
                if let Some(kind) = self.blocked.take_unblock() {
                    self.unblocked(kind);
                    return Ok(());
                }
                // With Unclear only the server knows how long to wait, so only a lease can.
                tokio::select! {
                    biased;
                    found = &mut lease => match found {
                        Ok(lease) if self.is_done() => {
                            // Nothing was sent on it: it goes to the next who waits.
                            context.pool.end_lease(lease, true, UpstreamClose::LeaseEnded, None);
                            return Ok(());
                        }
                        Ok(lease) => match self.stay(context, lease).await? {
                            Stay::Ended => return Ok(()),
                            Stay::Recalled => {
                                self.has_looked.set(true);
                                continue 'search;
                            }
                        },
                        Err(
                            why @ (Unavailable::LoginRefused(_)
                            | Unavailable::NoAuth
                            | Unavailable::SelectRefused(_)),
                        ) => return self.fail_for(&why),
                        Err(_) => {
                            if self.waits_for_nobody() {
                                return Ok(());
                            }
                            let again = Instant::now() + pause;
                            sleep_until(Some(self.deadline.map_or(again, |at| at.min(again)))).await;
                            if self.remaining().is_some_and(|left| left.is_zero()) {
                                self.nil();
                                return Ok(());
                            }
                            continue 'search;
                        }
                    },
                    () = sleep_until(self.deadline) => {
                        self.nil();
                        return Ok(());
                    }
                    () = self.blocked.woken() => {}
                    () = self.changed.notified() => {}
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(context.blocking.retry_max);
            }
        }
    }

    /// Whether nobody waits any more: the client has closed its side, and its call has found nothing, or nobody could
    /// look in time.
    fn waits_for_nobody(&self) -> bool {
        self.client.has_said_all()
            && (self.has_looked.get() || !self.last_call.looks() || self.arrived.elapsed() >= FIRST_LOOK)
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
