//! A call that blocks on a connection of its own, and what becomes of the connection when the call is given up.

use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::undelivered::undelivered;
use super::waiter::{Ending, State, Stay, Waiter};
use crate::command::blocking::{Call, is_nothing};
use crate::downstream::client::sleep_until;
use crate::downstream::context::Context;
use crate::hub::Unblock;
use crate::pool::{Charge, LONG, Lease};
use crate::resp::{self, ReplyScanner, Request};
use crate::session::Pin;
use crate::telemetry::{ClientClose, UpstreamClose};

/// How long after its deadline a call on a lease is left to the server's own timer, which may be 100 ms late.
const SERVER_LATENESS: Duration = Duration::from_millis(120);

impl Waiter {
    /// The call as it goes on the lease: with the time that is left.
    fn on_the_lease(&self) -> Bytes {
        let bytes = self.request.borrow().clone();
        match (self.remaining(), Request::parse(&bytes)) {
            (Some(left), Some(request)) => {
                let mut out = BytesMut::new();
                self.call.with_timeout(&request, left, &mut out);
                out.freeze()
            }
            _ => bytes,
        }
    }

    /// Blocks on a lease until the server answers, the time is up, or the lease is wanted back.
    pub(super) async fn stay(
        self: &Rc<Self>,
        context: &Rc<Context>,
        lease: Lease,
    ) -> Result<Stay, ClientClose> {
        if self.state.get() == State::Done {
            // Another's element has been handed on to this call: nothing may be popped for it any more.
            context.pool.end_lease(lease, true, UpstreamClose::LeaseEnded, None);
            return Ok(Stay::Ended);
        }
        let mut stay = OnLease {
            waiter: Rc::clone(self),
            context: Rc::clone(context),
            charge: self.client.charge(),
            lease: Some(lease),
            scanner: ReplyScanner::default(),
            reply: BytesMut::new(),
        };
        let counted = context.metrics.lease(Pin::Blocked, Instant::now());
        self.on_lease.set(true);
        if self.ending.get() != Ending::Never {
            self.ending.set(Ending::From(Instant::now()));
        }
        stay.send(&self.on_the_lease()).await?;
        let entry = context.pool.blocked();
        let server_had_its_chance =
            self.deadline.map(|at| at + SERVER_LATENESS.min(context.blocking.get().grace));
        let ended = loop {
            let ended = tokio::select! {
                biased;
                answered = stay.answer() => Some(Ended::Answered(answered)),
                () = entry.reclaimed() => Some(Ended::Recalled),
                kind = self.attention() => kind,
                never = self.watch_the_role() => match never {},
                () = sleep_until(server_had_its_chance) => Some(Ended::Late),
            };
            match ended {
                Some(ended) => break ended,
                None => self.ask_to_end(stay.lease.as_ref()),
            }
        };
        drop(entry);
        let outcome = self.end_stay(context, stay, ended).await;
        drop(counted);
        self.on_lease.set(false);
        outcome
    }

    /// Returns when CLIENT UNBLOCK names the client, or it has closed its side. `None`: it may go on in another process.
    async fn attention(&self) -> Option<Ended> {
        loop {
            if let Some(kind) = self.blocked.take_unblock() {
                return Some(Ended::Unblocked(kind));
            }
            if self.client.has_ended_input() {
                return Some(Ended::Fin);
            }
            if self.is_to_be_ended() {
                return None;
            }
            self.blocked.woken().await;
        }
    }

    async fn end_stay(
        self: &Rc<Self>,
        context: &Rc<Context>,
        mut stay: OnLease,
        ended: Ended,
    ) -> Result<Stay, ClientClose> {
        // An element that has moved is the answer, however late.
        let moved = Call::moves_before_answering(self.call.command);
        let last = self.deadline.filter(|_| !moved).map(|at| at + context.blocking.get().grace);
        match ended {
            Ended::Answered(true) if is_nothing(&stay.reply) && self.is_ended_early() => {
                stay.hand_back(true);
                Ok(if self.is_done() { Stay::Ended } else { Stay::Recalled })
            }
            Ended::Answered(true) => {
                stay.deliver();
                Ok(Stay::Ended)
            }
            Ended::Answered(false) => Err(ClientClose::UpstreamLost),
            Ended::Recalled => {
                let answered = stay.take_back(UpstreamClose::Recalled, last).await?;
                if !answered && self.remaining().is_some_and(|left| left.is_zero()) {
                    self.nil();
                }
                Ok(if self.is_done() { Stay::Ended } else { Stay::Recalled })
            }
            Ended::Unblocked(kind) => {
                if !stay.take_back(UpstreamClose::LeaseEnded, last).await? {
                    self.unblocked(kind);
                }
                Ok(Stay::Ended)
            }
            // The server answers what it has for the call, or closes.
            Ended::Fin => {
                let _ = self.fin_timing.looks();
                let _ = stay.take_back(UpstreamClose::ClientGone, last).await?;
                Ok(Stay::Ended)
            }
            Ended::Late => {
                if !stay.take_back(UpstreamClose::Deadline, last).await? {
                    self.nil();
                }
                Ok(Stay::Ended)
            }
        }
    }
}

enum Ended {
    /// A whole reply is there (`false`: the connection was lost first).
    Answered(bool),
    Recalled,
    Unblocked(Unblock),
    /// The client has closed its side.
    Fin,
    Late,
}

/// A call that blocks on a lease. Dropped in the middle (the client has left), it closes the connection in order and
/// saves the element that may still come.
struct OnLease {
    waiter: Rc<Waiter>,
    context: Rc<Context>,
    /// A long reply counts until it is whole.
    charge: Charge,
    lease: Option<Lease>,
    scanner: ReplyScanner,
    reply: BytesMut,
}

impl OnLease {
    async fn send(&mut self, call: &[u8]) -> Result<(), ClientClose> {
        let Some(lease) = &mut self.lease else { return Ok(()) };
        lease.stream.write_all(call).await.map_err(|_| ClientClose::UpstreamLost)?;
        lease.stream.flush().await.map_err(|_| ClientClose::UpstreamLost)
    }

    /// Reads until the reply is whole. `false`: lost before.
    async fn answer(&mut self) -> bool {
        let Some(lease) = &mut self.lease else { return false };
        let mut chunk = vec![0; 16 << 10];
        loop {
            let Ok(came @ 1..) = lease.stream.read(&mut chunk).await else { return false };
            if let Some(whole) = gather(&mut self.scanner, &mut self.reply, &chunk[..came]) {
                self.charge.set(0);
                return whole;
            }
            if self.reply.len() >= LONG {
                // It will be copied when it is whole.
                if self.charge.set(2 * self.reply.len()) {
                    self.context.keep_within_bound();
                }
            }
        }
    }

    /// The whole reply goes to the client, and the connection to whom it may serve next.
    fn deliver(&mut self) {
        let reply = std::mem::take(&mut self.reply);
        let (failed, nothing) = (resp::is_error(&reply), is_nothing(&reply));
        if failed {
            self.waiter.refused(&reply);
        } else if nothing {
            let answered = self.waiter.is_done();
            self.waiter.state.set(State::Done);
            if !self.waiter.muted && !answered {
                self.waiter.client.send(&reply);
            }
        } else if !self.waiter.deliver(&reply) {
            self.save(&reply);
        }
        self.hand_back(!failed);
    }

    /// The connection goes to whom it may serve next, unless something of the call may be left on it: it was answered with an
    /// error, or the server is still to end it.
    fn hand_back(&mut self, is_answered: bool) {
        if let Some(lease) = self.lease.take() {
            let is_clean = is_answered && self.waiter.leaves_lease_clean();
            self.context.pool.end_lease(lease, is_clean, UpstreamClose::LeaseEnded, None);
        }
    }

    fn save(&self, element: &[u8]) {
        let waiter = &self.waiter;
        undelivered(
            &self.context,
            &waiter.call,
            waiter.key,
            &waiter.identity,
            &waiter.request.borrow(),
            element,
        );
    }

    /// Closes the lease, and delivers the answer if the server had given one. Waits for it at most until `last` (the
    /// rest then goes on without us). `true`: the call is answered.
    ///
    /// # Errors
    /// When the server did not say in time whether an element has moved.
    async fn take_back(mut self, reason: UpstreamClose, last: Option<Instant>) -> Result<bool, ClientClose> {
        let Some(lease) = self.lease.take() else { return Ok(false) };
        let (context, waiter) = (Rc::clone(&self.context), Rc::clone(&self.waiter));
        let salvage = Salvage {
            reply: std::mem::take(&mut self.reply),
            scanner: std::mem::take(&mut self.scanner),
            context: Rc::clone(&context),
            waiter: Rc::clone(&waiter),
        };
        let gone = (reason == UpstreamClose::ClientGone).then(Instant::now);
        let done = context.pool.tasks().spawn_local(salvage.finish(lease, reason, gone));
        let said_all = tokio::select! {
            biased;
            said_all = done => said_all.unwrap_or(false),
            () = sleep_until(last) => false,
        };
        if !said_all && !waiter.is_done() && Call::moves_before_answering(waiter.call.command) {
            return Err(ClientClose::UpstreamLost);
        }
        Ok(waiter.is_done())
    }
}

impl Drop for OnLease {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.waiter.state.set(State::Done);
            let salvage = Salvage {
                reply: std::mem::take(&mut self.reply),
                scanner: std::mem::take(&mut self.scanner),
                context: Rc::clone(&self.context),
                waiter: Rc::clone(&self.waiter),
            };
            let gone = self.waiter.client.departed();
            let reason = if gone.is_some() { UpstreamClose::ClientGone } else { UpstreamClose::Lost };
            self.context.pool.tasks().spawn_local(salvage.finish(lease, reason, gone));
        }
    }
}

/// What is left to do for a call whose lease is being closed.
struct Salvage {
    reply: BytesMut,
    scanner: ReplyScanner,
    context: Rc<Context>,
    waiter: Rc<Waiter>,
}

impl Salvage {
    /// Reads what the server still says. A whole answer goes to the waiting client, else to the next, else back.
    /// `false`: the server did not come to its end of file in time.
    async fn finish(self, lease: Lease, reason: UpstreamClose, gone: Option<Instant>) -> bool {
        let context = Rc::clone(&self.context);
        let _saving = context.saving.one();
        let rest = context.pool.close_and_keep(lease, reason, gone).await;
        let said_all = rest.is_some();
        self.save(&rest.unwrap_or_default());
        said_all
    }

    fn save(mut self, rest: &[u8]) {
        let whole = gather(&mut self.scanner, &mut self.reply, rest) == Some(true);
        if !whole || is_nothing(&self.reply) {
            return;
        }
        let waiter = &self.waiter;
        if resp::is_error(&self.reply) {
            waiter.refused(&self.reply);
        } else if !waiter.deliver(&self.reply) {
            let request = waiter.request.borrow();
            undelivered(&self.context, &waiter.call, waiter.key, &waiter.identity, &request, &self.reply);
        }
    }
}

/// Appends what came to `reply` until a frame is whole: `Some(true)`. `Some(false)`: not RESP.
fn gather(scanner: &mut ReplyScanner, reply: &mut BytesMut, data: &[u8]) -> Option<bool> {
    if data.is_empty() {
        return None;
    }
    match scanner.step(data) {
        Ok(step) => {
            resp::append(reply, &data[..step.consumed]);
            step.complete.is_some().then_some(true)
        }
        Err(_) => Some(false),
    }
}
