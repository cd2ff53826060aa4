//! A call that waits in the blocking hub: it holds nothing upstream.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::waited::Waited;
use crate::command::Aftermath;
use crate::command::blocking::{Call, Timeout};
use crate::downstream::client::FinTiming;
use crate::downstream::client::{BlockedCall, BlockedOn, Client};
use crate::downstream::client::{FIRST_LOOK, sleep_until};
use crate::hub::{Arrival, BlockingHubs, End, Waiting, Withdrawn};
use crate::pool::LaneKey;
use crate::telemetry::ClientClose;
use crate::upstream::Identity;

/// A call that waits for less than this looks for itself: a wake might come too late.
const BRIEF: Duration = Duration::from_millis(100);

/// A client as the hub sees it.
struct Waits {
    client: Rc<Client>,
    muted: bool,
    fin_timing: FinTiming,
    delivered: Cell<bool>,
    end: RefCell<Option<End>>,
    changed: Notify,
}

impl Waiting for Waits {
    fn deliver(&self, reply: &[u8], has_waited: bool) -> bool {
        let has_waited = has_waited || !self.fin_timing.may_deliver();
        let taken = self.muted || self.client.deliver_element(reply, has_waited);
        // A call that finds something at once has its answer, whether or not anybody hears it.
        if taken || !has_waited {
            self.delivered.set(true);
            self.changed.notify_one();
        }
        taken
    }

    fn end(&self, end: End) {
        self.end.replace(Some(end));
        self.changed.notify_one();
    }
}

/// What has become of a call in a hub.
pub(super) enum InHub {
    /// Its client has its answer.
    Ended,
    /// It has to go on without a hub, with the time it has left.
    Unfit,
    /// It has to go on on another node of the cluster, as the reply says, and as it is now.
    Redirected(Bytes, Withdrawn),
}

impl Client {
    /// Lets a call wait in a hub of these; `is_asking`: behind ASKING.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(super) async fn wait_in_hub(
        self: &Rc<Self>,
        (hubs, is_asking): (&Rc<BlockingHubs>, bool),
        (key, identity): (LaneKey, Arc<Identity>),
        (call, request): (&Call, &Bytes),
        (blocked, deadline): (&BlockedCall, Option<Instant>),
        (began, before): (Instant, Waited),
        muted: bool,
    ) -> Result<InHub, ClientClose> {
        let is_brief = match call.timeout {
            Timeout::After(time) => time < BRIEF,
            Timeout::Forever => false,
            // Only the server knows how long that is.
            Timeout::Unclear => return Ok(InHub::Unfit),
        };
        // One that has closed its side already does not wait for a wake.
        let must_look = self.has_written() || is_brief || self.has_ended_input() || self.is_gone();
        let arrived = Instant::now();
        let waits = Rc::new(Waits {
            client: Rc::clone(self),
            muted,
            fin_timing: FinTiming::new(self),
            delivered: Cell::new(false),
            end: RefCell::new(None),
            changed: Notify::new(),
        });
        let arrival = Arrival {
            key,
            identity,
            call: call.clone(),
            request: request.clone(),
            arrived: began,
            deadline,
            has_moved: before.has_moved,
            has_looked: before.has_looked,
            must_look,
            asking: is_asking,
            waiting: Rc::clone(&waits) as Rc<dyn Waiting>,
        };
        let Some(seat) = hubs.arrive(arrival) else { return Ok(InHub::Unfit) };
        blocked.waits_on(BlockedOn::Hub);
        loop {
            if waits.delivered.get() {
                return Ok(InHub::Ended);
            }
            if let Some(end) = waits.end.take() {
                if end == End::Fallback {
                    blocked.waits_on(BlockedOn::Lease);
                }
                return self.wait_ended(end, muted);
            }
            if let Some(how) = blocked.take_unblock() {
                seat.unblock(how);
                continue;
            }
            if self.moves_blocked(blocked, (began.elapsed(), muted), || seat.withdraw()) {
                return Err(ClientClose::TakenOver);
            }
            let limit = self.has_ended_input().then_some(arrived + FIRST_LOOK);
            if let Some(limit) = limit
                && (!waits.fin_timing.looks() || seat.farewell() || Instant::now() >= limit)
            {
                self.discard_input();
                return Ok(InHub::Ended);
            }
            tokio::select! {
                biased;
                () = waits.changed.notified() => {}
                () = blocked.woken() => {}
                () = sleep_until(limit) => {}
            }
        }
    }

    /// Tells the client how its wait has ended.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(super) fn wait_ended(&self, end: End, muted: bool) -> Result<InHub, ClientClose> {
        match end {
            // Redis would not have told it: it frees a blocked client whose FIN it reads.
            End::Nil if self.has_ended_input() => {
                self.discard_input();
                Ok(InHub::Ended)
            }
            End::Nil => {
                if !muted {
                    let protocol = self.protocol();
                    self.reply(|out| Call::timeout_reply(protocol, out));
                }
                Ok(InHub::Ended)
            }
            End::Error(words) => {
                match muted {
                    true => {}
                    // By CLIENT UNBLOCK, which is answered here.
                    false if words.starts_with(b"-UNBLOCKED") => self.send_own(&words),
                    false => self.send_answer(&words),
                }
                Ok(InHub::Ended)
            }
            End::Close(words, reason) => {
                self.send_answer(&words);
                Err(reason)
            }
            End::Unserved(why) => self.unserved(&why, Aftermath::Nothing, 1, muted).map(|()| InHub::Ended),
            End::Fallback => Ok(InHub::Unfit),
            End::Redirected(reply, now) => Ok(InHub::Redirected(reply, now)),
        }
    }
}
