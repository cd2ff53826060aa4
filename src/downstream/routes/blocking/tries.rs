//! One try: the call inside MULTI and EXEC on a lane, where it cannot block.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::answer::own_answer;
use super::undelivered::undelivered;
use super::waiter::{State, Waiter};
use crate::command::Blocking;
use crate::command::blocking::{self, Call, is_nothing};
use crate::downstream::client::sleep_until;
use crate::downstream::context::Context;
use crate::pool::{Choice, Lane, Lost, Receiver};
use crate::resp::{self, ErrorCode, Request, encode};
use crate::telemetry::{ClientClose, TriedOn};
use crate::upstream::Capability;

impl Waiter {
    /// What must be known before the first try: whether tries are safe, and what `$` means. `None`: answered.
    pub(super) async fn prepare(&self, context: &Rc<Context>) -> Result<Option<bool>, ClientClose> {
        let may_try = self.may_try(context).await?;
        Ok(self.resolve_dollars().await?.then_some(may_try))
    }

    /// Whether tries are safe for this user: a refused MULTI would leave its member to block the lane, so MULTI and
    /// EXEC are tried out first.
    async fn may_try(&self, context: &Rc<Context>) -> Result<bool, ClientClose> {
        let (missing, user) = (context.server.missing_capabilities(), self.identity.name());
        if missing.has(Capability::Transactions, user) {
            return Ok(false);
        }
        if context.server.may_try(self.key.user) {
            return Ok(true);
        }
        let mut probe = BytesMut::new();
        encode::command(&mut probe, &[b"MULTI"]);
        encode::command(&mut probe, &[b"EXEC"]);
        // A server that does not know EXEC has left MULTI open. Behind any other EXEC it is refused and changes nothing.
        encode::command(&mut probe, &[b"DISCARD"]);
        let frames = match self.client.exchange(&probe, 3).await {
            Ok(Ok(frames)) => frames,
            Ok(Err(why)) => return self.client.close_reason_for(&why).map_or(Ok(false), Err),
            // Nothing of the client's own was lost.
            Err(_) => return Ok(false),
        };
        if let Some(refusal) = frames.iter().take(2).find_map(|frame| resp::error_text(frame)) {
            // Busy, loading …: not remembered, so asked again next time.
            missing.record_refusal(Capability::Transactions, user, &String::from_utf8_lossy(refusal));
            return Ok(false);
        }
        missing.record_support(Capability::Transactions, user);
        context.server.remember_may_try(self.key.user);
        Ok(true)
    }

    /// Makes `$` explicit, so that what is added from now on is seen however late the connection is. `false`: answered.
    async fn resolve_dollars(&self) -> Result<bool, ClientClose> {
        if self.call.dollars.is_empty() {
            return Ok(true);
        }
        let bytes = self.request.borrow().clone();
        let Some(request) = Request::parse(&bytes) else { return Ok(true) };
        let mut questions = BytesMut::new();
        let floating = self.call.floating(&request);
        let words: Vec<&[u8]> = request.args().collect();
        for (key, _) in &floating {
            blocking::stream_position(words.get(*key).copied().unwrap_or_default(), &mut questions);
        }
        let count = u32::try_from(floating.len()).unwrap_or(u32::MAX);
        let frames = match self.client.exchange(&questions, count).await? {
            Ok(frames) => frames,
            Err(why) => {
                self.fail_for(&why)?;
                return Ok(false);
            }
        };
        let ids: Option<Vec<_>> = frames.iter().map(|frame| blocking::last_generated_id(frame)).collect();
        // Refused (NOPERM, WRONGTYPE …): the call goes on with its `$`, and the server judges it.
        if let Some(ids) = ids {
            self.request.replace(self.call.with_positions(&request, &ids, false));
        }
        Ok(true)
    }

    /// A try on a lane, of each key by itself where one of them is of another type. `true`: the call is answered.
    pub(super) async fn attempt(self: &Rc<Self>, context: &Rc<Context>) -> Result<bool, ClientClose> {
        let request = self.request.borrow().clone();
        if !self.key_by_key.get() {
            return self.try_once(context, request).await;
        }
        let keys = self.call.keys.len();
        for key in 0..keys {
            let Some(parsed) = Request::parse(&request) else { return Ok(false) };
            let keep: Vec<bool> = (0..keys).map(|other| other == key).collect();
            let mut part = BytesMut::new();
            self.call.with_keys(&parsed, &keep, &mut part);
            if self.try_once(context, part.freeze()).await? {
                return Ok(true);
            }
            if self.remaining().is_some_and(|left| left.is_zero()) {
                break;
            }
        }
        Ok(false)
    }

    /// One try of `request`, the call or a part of it. `true`: the call is answered.
    async fn try_once(self: &Rc<Self>, context: &Rc<Context>, request: Bytes) -> Result<bool, ClientClose> {
        let Some(group) = self.client.current_group() else { return Err(ClientClose::Denied) };
        let patience = context.pool.wait_deadline();
        // Nobody has looked yet: redis looks once, however short the call's time is.
        let grace = if self.has_looked.get() { Duration::ZERO } else { context.blocking.get().grace };
        let until = self.deadline.map_or(patience, |at| patience.min(at + grace));
        if group.lane().is_none()
            && let Err(why) = context.pool.lane_ready(&group, until).await
        {
            // A call whose own time has ended first gets its nil, at the end of the grace at the latest.
            let has_time = self.remaining().is_none_or(|left| !left.is_zero());
            let reason = if has_time { self.client.close_reason_for(&why) } else { None };
            return reason.map_or(Ok(false), Err);
        }
        if self.is_done() {
            return Ok(true);
        }
        // Behind what is held there it would be held, too.
        let only_reads = || self.call.command == Blocking::XRead;
        let Some(Choice::Lane(lane)) = context.pool.lane(&group, only_reads, Instant::now()) else {
            return Ok(false);
        };
        self.send_try(context, &lane, request);
        self.await_try(context).await
    }

    /// Sends `request` inside of MULTI and EXEC.
    fn send_try(self: &Rc<Self>, context: &Rc<Context>, lane: &Rc<Lane>, request: Bytes) {
        let mut begin = BytesMut::new();
        encode::command(&mut begin, &[b"MULTI"]);
        let mut block = BytesMut::new();
        block.extend_from_slice(&request);
        encode::command(&mut block, &[b"EXEC"]);
        self.state.set(State::Trying);
        let now = Instant::now();
        lane.touch(now);
        metrics::counter!("redbouncer_blocking_tries_total", "on" => TriedOn::Lane.label()).increment(1);
        self.ask_for_the_role(lane, now);
        let (waiter, owner) = (Rc::clone(self), Rc::clone(context));
        // Appended one behind the other without an await: MULTI, the call and EXEC stay contiguous.
        let (watched, user, judge) = (Rc::clone(lane), self.key.user, Rc::clone(context));
        let identity = Arc::clone(&self.identity);
        let begun = move |frames: Result<Vec<Bytes>, Lost>| {
            let frames = frames.unwrap_or_default();
            if let Some(refusal) = frames.iter().find_map(|frame| resp::error_text(frame)) {
                // The call behind it is not queued but runs, and may block everybody's lane.
                let words = String::from_utf8_lossy(refusal);
                judge.server.missing_capabilities().record_refusal(
                    Capability::Transactions,
                    identity.name(),
                    &words,
                );
                judge.server.forget_may_try(user);
                watched.condemn();
            }
        };
        lane.exchange(&begin, 1, now, Box::new(begun));
        let client = Rc::clone(&self.client) as Rc<dyn Receiver>;
        let then = Box::new(move |frames| waiter.tried(&owner, &request, frames));
        lane.exchange_for(Some(client), &block, 2, now, then);
    }

    /// Waits for what a try brings. `true`: the call is answered.
    async fn await_try(&self, context: &Context) -> Result<bool, ClientClose> {
        // The answer decides, also after the deadline; but nil wins in the end, except for calls whose element has
        // moved already when its answer is read.
        let moved = Call::moves_before_answering(self.call.command);
        let mut last = self.deadline.filter(|_| !moved).map(|at| at + context.blocking.get().grace);
        let mut is_unblocked = false;
        loop {
            match self.state.get() {
                State::Queued => return Ok(false),
                State::Done => return Ok(true),
                State::Trying => {}
            }
            if !moved && !is_unblocked && self.blocked.is_being_unblocked() {
                is_unblocked = true;
                let patience = Instant::now() + context.blocking.get().grace;
                last = Some(last.map_or(patience, |at| at.min(patience)));
            }
            tokio::select! {
                biased;
                () = self.changed.notified() => {}
                () = self.blocked.woken(), if !moved && !is_unblocked => {}
                () = sleep_until(last) => {
                    match self.blocked.take_unblock() {
                        Some(unblock) => self.unblocked(unblock),
                        None => self.nil(),
                    }
                    return Ok(true);
                }
            }
        }
    }

    /// A try's answer, in the lane's own task: deciding and writing are one step.
    fn tried(self: &Rc<Self>, context: &Rc<Context>, request: &Bytes, frames: Result<Vec<Bytes>, Lost>) {
        let own = match frames {
            Ok(frames) => own_answer(&frames),
            Err(Lost) => {
                if self.state.get() == State::Trying {
                    self.client.close(ClientClose::UpstreamLost);
                }
                return;
            }
        };
        let Some(own) = own else { return };
        let waiting = self.state.get() == State::Trying;
        if is_nothing(&own) || self.waits_through(&own) {
            if waiting {
                self.has_looked.set(true);
                self.state.set(State::Queued);
                self.changed.notify_one();
            }
        } else if resp::is_error(&own) {
            if waiting {
                self.refused(&own);
                self.changed.notify_one();
            }
        } else if !self.deliver(&own) {
            undelivered(context, &self.call, self.key, &self.identity, request, &own);
        }
    }

    /// Whether a client that is blocked already would not notice this error. To a call that has just come it is the
    /// answer.
    fn waits_through(&self, error: &[u8]) -> bool {
        // Of the try, not of the call: outside of MULTI, on a lease, it may run.
        if ErrorCode::Oom.is(error) {
            return true;
        }
        if !self.has_looked.get() {
            return false;
        }
        // With BLMOVE and BRPOPLPUSH it may be the destination, which is an error at any time.
        let is_its_own = match self.call.command {
            Blocking::BLMove | Blocking::BRPopLPush | Blocking::XReadGroup => false,
            Blocking::BLPop
            | Blocking::BRPop
            | Blocking::BLMPop
            | Blocking::BZPopMin
            | Blocking::BZPopMax
            | Blocking::BZMPop
            | Blocking::XRead => ErrorCode::WrongType.is(error),
        };
        if is_its_own && self.call.keys.len() > 1 {
            self.key_by_key.set(true);
        }
        is_its_own || ErrorCode::of(error).is_some_and(ErrorCode::is_transient)
    }
}
