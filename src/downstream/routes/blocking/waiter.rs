//! A blocking call that waits without a hub.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::command::Aftermath;
use crate::command::blocking::{Call, DEMOTED};
use crate::downstream::client::{BlockedCall, Client, FinTiming};
use crate::downstream::context::ElementTaker;
use crate::pool::{LaneKey, Unavailable};
use crate::resp::{ErrorCode, Request};
use crate::telemetry::ClientClose;
use crate::upstream::Identity;

/// How a stay on a lease ended.
pub(super) enum Stay {
    /// The call is answered, or its client waits no more.
    Ended,
    /// The lease was wanted back: go on by tries.
    Recalled,
}

/// What a waiting call has learned of its server's role.
#[derive(Debug, Default)]
pub(super) struct RoleSeen {
    /// When ROLE was last asked for.
    pub(super) asked: Cell<Option<Instant>>,
    /// The server was a master while the call waited: a client may also wait before a replica, and is told nothing then.
    pub(super) was_master: Cell<bool>,
    /// This user may not ask.
    pub(super) is_refused: Cell<bool>,
}

/// Whether a call on a lease is being ended for the process that takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The server may be asked to, from this moment on.
    From(Instant),
    /// It has been asked.
    Asked,
    /// It has ended the call: no element comes.
    Ended,
    /// It cannot be asked.
    Never,
}

/// Where a waiting call stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is in flight for it.
    Queued,
    /// A try is in flight.
    Trying,
    /// Answered, or its client is gone.
    Done,
}

/// One blocking call and the client that waits for it.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) client: Rc<Client>,
    pub(super) blocked: Rc<BlockedCall>,
    pub(super) key: LaneKey,
    pub(super) identity: Arc<Identity>,
    pub(super) call: Call,
    pub(super) request: RefCell<Bytes>,
    pub(super) arrived: Instant,
    pub(super) fin_timing: FinTiming,
    pub(super) deadline: Option<Instant>,
    pub(super) muted: bool,
    pub(super) state: Cell<State>,
    /// It has waited: an error that a new call would be told of is not for it.
    pub(super) has_looked: Cell<bool>,
    /// It had waited, and its client was gone when an element came.
    pub(super) in_vain: Cell<bool>,
    /// One of its keys is of another type, so they are tried one by one.
    pub(super) key_by_key: Cell<bool>,
    /// The server may serve it there at any moment.
    pub(super) on_lease: Cell<bool>,
    pub(super) ending: Cell<Ending>,
    pub(super) role: RoleSeen,
    pub(super) changed: Notify,
}

/// A call that is to wait.
pub(super) struct Waits {
    pub(super) client: Rc<Client>,
    pub(super) blocked: Rc<BlockedCall>,
    pub(super) key: LaneKey,
    pub(super) identity: Arc<Identity>,
    pub(super) call: Call,
    pub(super) request: Bytes,
    pub(super) arrived: Instant,
    pub(super) deadline: Option<Instant>,
    pub(super) muted: bool,
}

impl Waiter {
    pub(super) fn new(waits: Waits) -> Self {
        let Waits { client, blocked, key, identity, call, request, arrived, deadline, muted } = waits;
        Self {
            fin_timing: FinTiming::new(&client),
            client,
            blocked,
            key,
            identity,
            call,
            request: RefCell::new(request),
            arrived,
            deadline,
            muted,
            state: Cell::new(State::Queued),
            has_looked: Cell::new(false),
            in_vain: Cell::new(false),
            key_by_key: Cell::new(false),
            on_lease: Cell::new(false),
            ending: Cell::new(Ending::From(arrived)),
            role: RoleSeen::default(),
            changed: Notify::new(),
        }
    }

    /// Whether nobody else can be serving it at this moment.
    pub(super) fn is_free(&self) -> bool {
        self.state.get() == State::Queued && !self.on_lease.get()
    }

    /// Gives the waiting client its element, in one step. `false`: it cannot be had there.
    pub(super) fn deliver(&self, element: &[u8]) -> bool {
        if self.state.get() == State::Done {
            return false;
        }
        let has_waited = self.has_looked.get() || !self.fin_timing.may_deliver();
        let delivered = self.muted || self.client.deliver_element(element, has_waited);
        self.in_vain.set(!delivered && has_waited);
        self.state.set(State::Done);
        self.changed.notify_one();
        delivered
    }

    /// Whether it is answered: another's element may be handed on to it at any await.
    pub(super) fn is_done(&self) -> bool {
        self.state.get() == State::Done
    }

    pub(super) fn nil(&self) {
        // Redis frees a blocked client whose FIN it reads, before its time is up.
        if self.is_done() || self.client.has_ended_input() {
            return;
        }
        self.state.set(State::Done);
        if !self.muted {
            let protocol = self.client.protocol();
            self.client.reply(|out| Call::timeout_reply(protocol, out));
        }
    }

    /// There is no connection for it, and no use in waiting.
    pub(super) fn fail_for(&self, why: &Unavailable) -> Result<(), ClientClose> {
        if self.is_done() {
            return Ok(());
        }
        self.state.set(State::Done);
        self.client.unserved(why, Aftermath::Nothing, 1, self.muted)
    }

    /// Why the client is closed after it has waited for a server that is not there.
    pub(super) fn gives_up(&self) -> Option<ClientClose> {
        let pool = &self.client.context.pool;
        let is_long = self.arrived.elapsed() >= pool.patience();
        pool.away().filter(|_| is_long).and_then(|away| self.client.close_reason_for(&away))
    }

    /// The server has answered with an error. One that has become a replica closes whom it tells so, and so does a direct
    /// client learn of it that was waiting already, whatever a try of ours was answered.
    pub(super) fn refused(&self, error: &[u8]) {
        if self.is_done() {
            return;
        }
        self.state.set(State::Done);
        let demoted = error == DEMOTED || self.has_looked.get() && ErrorCode::ReadOnly.is(error);
        if !self.muted {
            self.client.send_answer(if demoted { DEMOTED } else { error });
        }
        if demoted {
            self.client.close(ClientClose::UpstreamLost);
        }
    }

    pub(super) fn fail(&self, text: &str) {
        if self.is_done() {
            return;
        }
        self.state.set(State::Done);
        self.client.error(text, self.muted);
    }

    pub(super) fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|at| at.saturating_duration_since(Instant::now()))
    }
}

impl ElementTaker for Waiter {
    fn take_element(&self, key: LaneKey, request: &Request<'_>, element: &[u8]) -> bool {
        let same = self.key == key
            && Request::parse(&self.request.borrow()).is_some_and(|own| Call::same_shape(request, &own));
        // One that blocks on a lease may be served there at the same moment; only a queued one is surely free.
        same && self.is_free() && self.deliver(element)
    }
}
