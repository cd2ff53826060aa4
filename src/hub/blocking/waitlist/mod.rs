//! Who waits for which key, what is known of each key, and what has been asked of the server: the hub without its
//! socket.
//!
//! The hub's connection has CLIENT TRACKING on, so the server says when a key changes that was read there. A wake pops
//! nothing: the call of the longest waiter then runs inside MULTI and EXEC, where it cannot block, together with the
//! command that says how many elements are left and arms the key again. What always holds:
//!
//! 1. Nothing is popped unless a waiter was at hand when the request was written.
//! 2. A waiter is in at most one request in flight.
//! 3. Where a waiter is queued, its key is armed and was empty, or a request in flight says what it holds, or a timer
//!    of a few milliseconds does. Of a stream a count says nothing: one that is full may hold nothing behind this id or
//!    for this group, and the other way round. There it is: since the stream last changed, the waiter's own call has
//!    found nothing (or its group's oldest waiter's has, or the ids say so), or its spot is marked as woken, and a timer
//!    or the reply to a request in flight will try.
//! 4. Every try ends in exactly one of: nil, delivered, handed on, given back, an error.
//! 5. What is known of a key changes only in the order of the connection's bytes.
//! 6. The tries of one key leave in the order of its waiters.
//! 7. No call ends with nil before an answer has said so that is newer than its arrival, or than the last wake of one of
//!    its keys, unless the server does not answer.
//!
//! Pure: bytes in, bytes out, the time as an argument; clients are called through [`Waiting`].

mod accepted;
mod attempts;
#[cfg(any(test, fuzzing))]
mod bench;
mod checks;
mod expiry;
#[cfg(any(test, fuzzing))]
pub(in crate::hub) mod property;
mod redirects;
mod replies;
mod resync;
mod sent;
mod slots;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
mod watched_key;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::super::driver::HubProtocol;
use super::waiter::{Arrival, End, State, Unblock, Waiter, Withdrawn};
use crate::command::blocking::{Call, Waited};
use crate::pool::LaneKey;
use crate::resp::{self, ReplyKind};
use crate::telemetry::{ClientClose, UpstreamClose};
use crate::upstream::Identity;

use accepted::Checks;
use sent::Sent;
use slots::Slots;
use watched_key::{KeyState, Pace, WatchedKeys};

/// The number of a call that arrives when the waitlist begins, in microseconds; those that have waited elsewhere come before.
const BEGIN: u64 = 1 << 50;

/// Puts an element back that nobody can be given: the request that does it, as whom, under which key.
pub(super) type GiveBack = Rc<dyn Fn(LaneKey, &Arc<Identity>, Option<Bytes>)>;

/// The times that govern a waitlist.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// How long after its deadline a call's answer under way is awaited.
    pub(super) grace: Duration,
    /// The same for calls whose element has moved already when their answer comes.
    pub(super) stall: Duration,
}

/// Why the connection has to be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GiveUp {
    /// The user may not do what a hub needs: no further calls here.
    Refused,
    /// The server has become a replica: the next connection goes where the name points now.
    Moved,
    /// The connection was found in another database than it must be in.
    Astray,
}

/// Whether the connection may be switched to a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Asked,
    Granted,
}

/// The waiting calls of one user.
pub(in crate::hub) struct Waitlist {
    times: Times,
    give_back: GiveBack,
    /// By numbers that grow with the time of their arrival.
    waiters: HashMap<u64, Waiter>,
    /// The last number of a call that has come to the end of the queues.
    last: u64,
    /// When the numbers began at [`BEGIN`].
    begun: Instant,
    spots: WatchedKeys,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Spots whose next try is delayed.
    delayed: BTreeSet<(Instant, usize)>,
    pace: Pace,
    /// Queued ones whose time is up while a request in flight will say whether there was something for them.
    overdue: BTreeSet<u64>,
    /// What is in flight, in the order of the connection.
    sent: VecDeque<Sent>,
    out: BytesMut,
    online: bool,
    /// The database that the connection was in when the last reply was read.
    database: u32,
    /// Requests in flight that change the database.
    switches: usize,
    access: HashMap<u32, Access>,
    /// What this user may not count, and so not wait for here.
    uncountable: Vec<Waited>,
    exists_refused: bool,
    /// Calls that the server has accepted on this connection. Any other has to be sent, even where nothing can be had:
    /// the server may have something against it (NOPERM, READONLY, a syntax error).
    checks: Checks,
    /// The time of the last event.
    now: Instant,
    given_up: Option<GiveUp>,
    tries: u64,
    /// In front of a cluster.
    slots: Option<Slots>,
}

impl Waitlist {
    /// `of_node`: the server is a node of a cluster.
    pub(super) fn new(times: Times, give_back: GiveBack, of_node: bool) -> Self {
        Self {
            slots: of_node.then(Slots::default),
            times,
            give_back,
            waiters: HashMap::new(),
            last: 0,
            begun: Instant::now(),
            spots: WatchedKeys::default(),
            deadlines: BTreeSet::new(),
            delayed: BTreeSet::new(),
            pace: Pace::default(),
            overdue: BTreeSet::new(),
            sent: VecDeque::new(),
            out: BytesMut::new(),
            online: false,
            database: 0,
            switches: 0,
            access: HashMap::new(),
            uncountable: Vec::new(),
            exists_refused: false,
            checks: Checks::default(),
            now: Instant::now(),
            given_up: None,
            tries: 0,
        }
    }

    /// A call has arrived. Returns its number, or `None` when it cannot wait here.
    pub(super) fn arrive(&mut self, arrival: Arrival, now: Instant) -> Option<u64> {
        self.now = now;
        if self.uncountable.contains(&arrival.call.command.waits_for()) {
            return None;
        }
        let id = self.number(&arrival);
        let mut waiter = Waiter::new(arrival)?;
        let request = resp::Request::parse(&waiter.request)?;
        let (database, kind) = (waiter.key.database, waiter.kind());
        let words: Vec<&[u8]> = request.args().collect();
        for key in &waiter.call.keys {
            let at = self.spots.enter(database, kind, words.get(*key).copied().unwrap_or_default());
            waiter.spots.push(at);
            if let Some(spot) = self.spots.at_mut(at) {
                spot.queue.insert(id);
            }
        }
        if let Some(deadline) = waiter.deadline {
            self.deadlines.insert((deadline, id));
        }
        self.waiters.insert(id, waiter);
        self.start(id);
        Some(id)
    }

    /// The number of a call: of two, the one that has waited for longer has the lower one.
    fn number(&mut self, arrival: &Arrival) -> u64 {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let since = arrival.arrived.saturating_duration_since(self.begun);
        let before = self.begun.saturating_duration_since(arrival.arrived);
        let place = BEGIN.saturating_add(micros(since)).saturating_sub(micros(before));
        if !arrival.has_moved {
            self.last = place.max(self.last + 1);
            return self.last;
        }
        let free = (place..).find(|number| !self.waiters.contains_key(number)).unwrap_or(place);
        self.last = self.last.max(free);
        free
    }

    /// Takes a call out that nothing is in flight for: it goes on elsewhere.
    pub(super) fn withdraw(&mut self, id: u64) -> Option<Withdrawn> {
        let is_free = |waiter: &&Waiter| {
            waiter.is_free() && !waiter.floating && !waiter.leaving && waiter.unblock.is_none()
        };
        let waiter = self.waiters.get(&id).filter(is_free)?;
        if self.overdue.contains(&id) {
            return None;
        }
        let withdrawn = Withdrawn { request: waiter.request.clone(), has_looked: !waiter.first };
        self.remove(id);
        Some(withdrawn)
    }

    /// The client has left. Nothing upstream; what a try still brings goes elsewhere.
    pub(super) fn gone(&mut self, id: u64) {
        match self.waiters.get_mut(&id) {
            Some(waiter) if waiter.state == State::Trying => {
                waiter.gone = true;
                waiter.unblock = None;
                self.leave_queues(id);
            }
            Some(_) => self.remove(id),
            None => {}
        }
    }

    /// CLIENT UNBLOCK. Inside a try the try's element comes first, as long as a deadline would wait for it; a call that
    /// is being unblocked is not unblocked again.
    pub(super) fn unblock(&mut self, id: u64, how: Unblock, now: Instant) {
        let patience = now + self.times.grace;
        match self.waiters.get_mut(&id) {
            Some(waiter) if waiter.state == State::Trying => {
                if waiter.unblock.is_some() || waiter.gone {
                    return;
                }
                waiter.unblock = Some(how);
                let sooner = waiter.deadline.is_none_or(|deadline| deadline > patience);
                if sooner && !Call::moves_before_answering(waiter.call.command) {
                    if let Some(deadline) = waiter.deadline.replace(patience) {
                        self.deadlines.remove(&(deadline, id));
                    }
                    self.deadlines.insert((patience, id));
                }
            }
            Some(_) => self.end_unblocked(id, how),
            None => {}
        }
    }

    /// The connection is there, in `database`: everybody's keys are asked for.
    pub(super) fn connected(&mut self, database: u32) {
        self.online = true;
        self.given_up = None;
        self.database = database;
        self.access.insert(database, Access::Granted);
        self.uncountable.clear();
        self.exists_refused = false;
        self.checks.forget();
        self.slots.iter_mut().for_each(Slots::forget);
        self.start_all();
    }

    fn start_all(&mut self) {
        let mut waiting: Vec<_> = self.waiters.keys().copied().collect();
        waiting.sort_unstable();
        for id in waiting {
            self.start(id);
        }
    }

    /// The connection is lost. Those in a try are closed, because their call may have run; the others keep waiting.
    pub(super) fn disconnected(&mut self) {
        self.online = false;
        self.out.clear();
        self.access.clear();
        self.delayed.clear();
        self.switches = 0;
        self.spots.forget_all_knowledge();
        for sent in std::mem::take(&mut self.sent) {
            for id in sent.waiters() {
                let Some(waiter) = self.waiters.get_mut(id) else { continue };
                // No answer comes any more for which one whose wait has ended would have to stay known.
                waiter.state = State::Queued;
                if waiter.gone {
                    self.remove(*id);
                } else if sent.runs_a_call() {
                    self.finish(*id, End::Close(Bytes::new(), ClientClose::UpstreamLost));
                } else if let Some(how) = waiter.unblock.take() {
                    self.end_unblocked(*id, how);
                }
            }
        }
    }

    /// Nothing more is asked on this connection: it is about to be left.
    pub(super) fn pause(&mut self) {
        self.online = false;
    }

    /// It stays after all: calls that arrived meanwhile begin now, and wakes that were not followed up are.
    pub(super) fn resume(&mut self) {
        if !self.online {
            self.online = true;
            self.start_all();
        }
    }

    /// Ends every wait in the same way.
    pub(super) fn dismiss(&mut self, how: &End) {
        self.dismiss_since(None, how);
    }

    /// As [`Self::dismiss`], but only those that have waited since `then` or longer.
    pub(super) fn dismiss_since(&mut self, then: Option<Instant>, how: &End) {
        let is_meant = |waiter: &Waiter| then.is_none_or(|then| waiter.arrived <= then);
        let mut long: Vec<_> =
            self.waiters.iter().filter(|(_, waiter)| is_meant(waiter)).map(|(id, _)| *id).collect();
        long.sort_unstable();
        for id in long {
            if self.waiters.get(&id).is_some_and(|waiter| waiter.is_free()) {
                self.finish(id, how.clone());
            }
        }
    }

    /// A push: keys that have changed, or all of them (FLUSHALL, or the server's table was flushed).
    fn pushed(&mut self, frame: &[u8], now: Instant) {
        let Some(mut parts) = resp::elements(frame) else { return };
        if parts.next().and_then(resp::bulk) != Some(b"invalidate") {
            return;
        }
        let Some(keys) = parts.next() else { return };
        let woken: Vec<usize> = match resp::elements(keys) {
            Some(keys) => {
                keys.filter_map(resp::bulk).flat_map(|key| self.spots.named(key).to_vec()).collect()
            }
            None => self.spots.iter().map(|(at, _)| at).collect(),
        };
        for at in &woken {
            if let Some(spot) = self.spots.at_mut(*at) {
                spot.forget();
                if !spot.woken || spot.not_before.is_some() || !spot.is_losing() {
                    continue;
                }
                if let Some(until) = self.pace.next(now, spot.tries) {
                    self.delay(*at, until);
                }
            }
        }
        for at in woken {
            self.pump(at);
        }
    }

    /// Nothing is tried on this spot until then, unless somebody arrives or ends.
    fn delay(&mut self, at: usize, until: Instant) {
        self.end_delay(at);
        if let Some(spot) = self.spots.at_mut(at) {
            spot.not_before = Some(until);
            self.delayed.insert((until, at));
        }
    }

    fn end_delay(&mut self, at: usize) {
        if let Some(until) = self.spots.at_mut(at).and_then(|spot| spot.not_before.take()) {
            self.delayed.remove(&(until, at));
        }
    }

    /// Whether the connection has to be given up, and why.
    pub(super) fn given_up(&self) -> Option<GiveUp> {
        self.given_up
    }

    /// How many calls wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// How many keys are watched.
    pub(super) fn watched(&self) -> usize {
        self.spots.len()
    }

    /// Whether a further key may be watched. Keys that nobody waits for any more make way.
    pub(super) fn has_room(&mut self, limit: usize) -> bool {
        self.spots.make_room(limit);
        self.spots.len() < limit
    }

    /// How many requests are in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.sent.len()
    }

    /// How long the oldest request has been in flight.
    pub(super) fn oldest(&self, now: Instant) -> Option<Duration> {
        self.sent.front().map(|sent| now.saturating_duration_since(sent.since))
    }

    /// How many tries were sent since this was last asked.
    pub(super) fn take_tries(&mut self) -> u64 {
        std::mem::take(&mut self.tries)
    }

    fn leave_queues(&mut self, id: u64) {
        let Some(waiter) = self.waiters.get(&id) else { return };
        if let Some(deadline) = waiter.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        self.overdue.remove(&id);
        for at in &waiter.spots {
            self.spots.leave(*at, id);
        }
    }

    fn remove(&mut self, id: u64) {
        self.leave_queues(id);
        self.waiters.remove(&id);
    }

    /// Ends a wait without an element. A waiter in a try stays known until the try's answer.
    fn finish(&mut self, id: u64, how: End) {
        let Some(waiter) = self.waiters.get_mut(&id) else { return };
        let (waiting, gone) = (Rc::clone(&waiter.waiting), waiter.gone);
        let how = match (how, waiter.unblock.take()) {
            // It would go on waiting elsewhere.
            (End::Fallback, Some(unblock)) => Self::unblocked(unblock),
            (how, _) => how,
        };
        self.gone(id);
        if !gone {
            waiting.end(how);
        }
    }
}

impl HubProtocol for Waitlist {
    fn out(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    fn receive(&mut self, kind: ReplyKind, frame: &[u8], now: Instant) -> Result<(), UpstreamClose> {
        self.now = now;
        if self.given_up == Some(GiveUp::Refused) {
            // What still comes cannot be told apart any more.
            return Ok(());
        }
        if kind == ReplyKind::Push {
            if let Some(taken) = self.heard_of_slot(frame) {
                return taken;
            }
            self.pushed(frame, now);
            return Ok(());
        }
        let Some(sent) = self.sent.front_mut() else { return Err(UpstreamClose::Desync) };
        if !sent.take(frame) {
            return Ok(());
        }
        match self.sent.pop_front() {
            Some(sent) => self.answered(&sent, frame, now),
            None => Ok(()),
        }
    }

    fn expire(&mut self, now: Instant) {
        self.now = now;
        self.end_the_due(now);
    }

    fn next_timer(&self) -> Option<Instant> {
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let delayed = self.delayed.first().map(|(at, _)| *at);
        deadline.into_iter().chain(delayed).min()
    }
}
