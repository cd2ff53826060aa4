//! How a call that waits without a hub goes on in the process that takes over.
//!
//! While it is tried on a lane, nothing is in flight between two tries. On a lease the server may answer it at any moment: there it
//! ends only if the server has ended it (CLIENT UNBLOCK), whose nil is read in any case. An element that comes is the client's.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::waiter::{Ending, State, Waiter};
use crate::command::blocking::Timeout;
use crate::hub::Withdrawn;
use crate::pool::{Lease, Lost};
use crate::resp::{self, encode};

/// A server whose connection was not blocked, because its answer or the call is on its way, is asked again after this.
const AGAIN: Duration = Duration::from_secs(1);

impl Waiter {
    /// Whether it may go to the process that takes over.
    fn may_leave(&self) -> bool {
        match self.call.timeout {
            Timeout::After(_) | Timeout::Forever => self.client.may_move_blocked(&self.blocked),
            // How much of it is left, only the server knows.
            Timeout::Unclear => false,
        }
    }

    /// Goes to the process that takes over, if nothing is in flight for it. `true`: its client is not ours any more.
    pub(super) fn leaves(&self) -> bool {
        let withdraw = || {
            self.state.set(State::Done);
            Some(Withdrawn { request: self.request.borrow().clone(), has_looked: self.has_looked.get() })
        };
        self.is_free()
            && self.may_leave()
            && self.client.moves_blocked(&self.blocked, (self.arrived.elapsed(), self.muted), withdraw)
    }

    /// Whether the server is to be asked to end it on its lease.
    pub(super) fn is_to_be_ended(&self) -> bool {
        matches!(self.ending.get(), Ending::From(at) if at <= Instant::now()) && self.may_leave()
    }

    /// Asks the server to end it on `lease`.
    pub(super) fn ask_to_end(self: &Rc<Self>, lease: Option<&Lease>) {
        let now = Instant::now();
        let Some(id) = lease.and_then(|lease| lease.permit.client_id()) else {
            return self.ending.set(Ending::Never);
        };
        let Some(lane) = self.client.current_group().and_then(|group| group.lane()) else {
            return self.ending.set(Ending::From(now + AGAIN));
        };
        self.ending.set(Ending::Asked);
        let waiter = Rc::clone(self);
        let then = move |frames: Result<Vec<Bytes>, Lost>| waiter.is_told_of_the_end(frames);
        let unblock = encode::one_command(&[b"CLIENT", b"UNBLOCK", id.to_string().as_bytes(), b"TIMEOUT"]);
        lane.exchange(&unblock, 1, now, Box::new(then));
    }

    fn is_told_of_the_end(&self, frames: Result<Vec<Bytes>, Lost>) {
        let answer = frames.ok().and_then(|frames| frames.into_iter().next());
        self.ending.set(match answer {
            Some(answer) if &answer[..] == b":1\r\n" => Ending::Ended,
            // This user may not, or the server cannot.
            Some(answer) if resp::is_error(&answer) => Ending::Never,
            Some(_) | None => Ending::From(Instant::now() + AGAIN),
        });
    }

    /// Whether nothing that the server was asked about its lease can still reach another call there.
    pub(super) fn leaves_lease_clean(&self) -> bool {
        self.ending.get() != Ending::Asked
    }

    /// Whether a nil that has come on its lease is not the answer: the server has ended the call for us, before its time.
    pub(super) fn is_ended_early(&self) -> bool {
        let has_time = self.remaining().is_none_or(|left| !left.is_zero());
        has_time && matches!(self.ending.get(), Ending::Asked | Ending::Ended)
    }
}
