//! One blocking call that waits in a hub, and how its client is reached.

use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::command::Blocking;
use crate::command::blocking::{Call, Waited};
use crate::pool::{LaneKey, Unavailable};
use crate::resp::{Protocol, Request, encode};
use crate::telemetry::ClientClose;
use crate::upstream::Identity;

/// How the client of a blocking call is reached. Called from the hub's task; must not call back into the hub.
pub trait Waiting {
    /// Hands over an element, the call's whole reply in the client's protocol, in one step: looks whether the client
    /// is there, and writes. `false`: it is gone and not a byte was taken, so the element may go to somebody else.
    /// `has_waited`: its call has found nothing before, so a client that has closed its side is gone.
    fn deliver(&self, reply: &[u8], has_waited: bool) -> bool;
    /// Ends the wait without an element.
    fn end(&self, end: End);
}

/// How a wait ends without an element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The time is up, or CLIENT UNBLOCK said so.
    Nil,
    /// This whole error reply.
    Error(Bytes),
    /// Closed, after this whole error reply (which may be empty).
    Close(Bytes, ClientClose),
    /// There is no server.
    Unserved(Unavailable),
    /// The hub cannot serve this call: the client has to go about it otherwise.
    Fallback,
    /// Of a cluster this node does not serve the keys, or not any more: another one has to be found for the call as it is now.
    /// The reply that says so is empty where it was found out otherwise.
    Redirected(Bytes, Withdrawn),
}

/// CLIENT UNBLOCK of a waiting call. Dropped without having ended the wait, it says that it did not.
#[derive(Debug)]
pub struct Unblock {
    /// With an error; otherwise as if the time were up.
    pub with_error: bool,
    /// Whoever asked for it: whether the wait was ended by it.
    pub done: oneshot::Sender<bool>,
}

impl Unblock {
    /// This is what ends the wait. Returns whether it ends with an error.
    pub fn ends_the_wait(self) -> bool {
        // Who asked may have left.
        let _ = self.done.send(true);
        self.with_error
    }
}

/// A blocking call as it arrives.
pub struct Arrival {
    /// Under which key its client's commands run: user, database, protocol.
    pub key: LaneKey,
    /// Who the user is.
    pub identity: Arc<Identity>,
    /// The call, taken apart.
    pub call: Call,
    /// The whole canonical request.
    pub request: Bytes,
    /// When it came.
    pub arrived: Instant,
    /// When its own timeout ends; `None`: never.
    pub deadline: Option<Instant>,
    /// It has waited elsewhere: its place is where its arrival puts it, not behind the others.
    pub has_moved: bool,
    /// It has found nothing elsewhere: an error that a new call would be told of is not for it.
    pub has_looked: bool,
    /// It has to look for itself, even on a key known to be empty: its client has written since its last call, or
    /// waits so briefly that a wake could come too late.
    pub must_look: bool,
    /// The node is asked behind ASKING: the slot is being moved to it.
    pub asking: bool,
    /// How its client is reached.
    pub waiting: Rc<dyn Waiting>,
}

impl std::fmt::Debug for Arrival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrival").field("key", &self.key).field("call", &self.call).finish_non_exhaustive()
    }
}

/// A call that has been taken out of a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withdrawn {
    /// Its request as it is now: `$` may have been made explicit.
    pub request: Bytes,
    /// It has found nothing.
    pub has_looked: bool,
}

/// Where a waiter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is in flight for it.
    Queued,
    /// It is in exactly one request in flight.
    Trying,
}

/// A waiting call.
pub(super) struct Waiter {
    pub(super) key: LaneKey,
    pub(super) identity: Arc<Identity>,
    pub(super) call: Call,
    pub(super) request: Bytes,
    /// The request with its timeout blanked: whoever has the same may be handed the same element.
    pub(super) shape: Bytes,
    /// The group of an XREADGROUP.
    pub(super) group: Option<Bytes>,
    /// One spot for each of the call's keys.
    pub(super) spots: Vec<usize>,
    pub(super) arrived: Instant,
    pub(super) deadline: Option<Instant>,
    pub(super) must_look: bool,
    pub(super) asking: bool,
    pub(super) waiting: Rc<dyn Waiting>,
    pub(super) state: State,
    /// The call's own first answer has not come, so an error is its answer.
    pub(super) first: bool,
    /// `$` or `+` has yet to be made explicit.
    pub(super) floating: bool,
    /// When it took an answer to an earlier call for its own, until there is a later one.
    pub(super) believed: Option<Instant>,
    /// Its try is to see whether calls like it are accepted.
    pub(super) checks: bool,
    /// Its try is to see whether the server still takes writes, and nothing else may end its wait.
    pub(super) probes: bool,
    /// The deadline has passed while something was in flight.
    pub(super) overdue: bool,
    pub(super) unblock: Option<Unblock>,
    /// Its client has closed its side: it is answered by what its own call finds, and does not wait.
    pub(super) leaving: bool,
    /// The client has left, or has its answer: what a try still brings goes elsewhere.
    pub(super) gone: bool,
}

impl Waiter {
    pub(super) fn new(arrival: Arrival) -> Option<Self> {
        let request = Request::parse(&arrival.request)?;
        let shape = shape(&arrival.call, &request);
        let group = arrival.call.group(&request).map(Bytes::copy_from_slice);
        let floating = !arrival.call.floating(&request).is_empty();
        Some(Self {
            key: arrival.key,
            identity: arrival.identity,
            call: arrival.call,
            request: arrival.request,
            shape,
            group,
            spots: Vec::new(),
            arrived: arrival.arrived,
            deadline: arrival.deadline,
            must_look: arrival.must_look,
            asking: arrival.asking,
            waiting: arrival.waiting,
            state: State::Queued,
            first: !arrival.has_looked,
            floating,
            believed: None,
            checks: false,
            probes: false,
            overdue: false,
            unblock: None,
            leaving: false,
            gone: false,
        })
    }

    pub(super) fn kind(&self) -> Waited {
        self.call.command.waits_for()
    }

    pub(super) fn is_free(&self) -> bool {
        self.state == State::Queued && !self.gone
    }

    /// Whether an element belongs to nobody else once it was read for this call.
    pub(super) fn pops(&self) -> bool {
        !matches!(self.call.command, Blocking::XRead | Blocking::XReadGroup)
    }

    /// Whether the call is a write to the server.
    pub(super) fn writes(&self) -> bool {
        self.call.command != Blocking::XRead
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.key.protocol
    }

    /// The request for some of its keys only; `None` when these are all or none.
    pub(super) fn for_keys(&self, keep: &[bool]) -> Option<Bytes> {
        if keep.iter().all(|keep| *keep) || !keep.contains(&true) {
            return None;
        }
        let mut out = BytesMut::new();
        self.call.with_keys(&Request::parse(&self.request)?, keep, &mut out);
        Some(out.freeze())
    }

    /// What the server judges apart from the keys that are waited for: the command, its options, its destination.
    pub(super) fn form(&self) -> Bytes {
        let mut out = BytesMut::new();
        if let Some(request) = Request::parse(&self.request) {
            self.call.form(&request, &mut out);
        }
        out.freeze()
    }

    /// The form with the names of the keys.
    pub(super) fn form_with_keys(&self) -> Bytes {
        let mut out = BytesMut::from(&self.form()[..]);
        if let Some(request) = Request::parse(&self.request) {
            let words: Vec<&[u8]> = request.args().collect();
            for key in &self.call.keys {
                encode::bulk(&mut out, words.get(*key).copied().unwrap_or_default());
            }
        }
        out.freeze()
    }

    /// The request has become this one.
    pub(super) fn rewrite(&mut self, request: Bytes) {
        if let Some(parsed) = Request::parse(&request) {
            self.shape = shape(&self.call, &parsed);
        }
        self.request = request;
    }
}

/// The call with its name in lower case and without its timeout.
fn shape(call: &Call, request: &Request<'_>) -> Bytes {
    let name = request.name().to_ascii_lowercase();
    let mut words: Vec<&[u8]> = request.args().collect();
    if let Some(word) = words.first_mut() {
        *word = &name;
    }
    if let Some(word) = words.get_mut(call.timeout_arg) {
        *word = b"";
    }
    encode::one_command(&words)
}
