//! A client as its worker sees it, and the limits that time and memory set.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Client;
use crate::downstream::context::Served;
use crate::downstream::identity::Account;
use crate::downstream::redirection::Inbox;
use crate::hub::Unblock;
use crate::pool::{Charge, LONG, LaneKey, Pool};
use crate::resp::Request;
use crate::session::ClientRow;
use crate::telemetry::ClientClose;
use crate::upstream::Identity;

/// How often a client's worker looks after it.
const AGE: Duration = Duration::from_secs(1);
/// So long a client is read no further at the most: the memory of all may stand still above the mark, and the request that
/// it has begun must come to its end, or to the bound.
const PAUSE: Duration = Duration::from_secs(1);
/// What is kept of one argument of a call that waits, or of a name that is asked for, besides its bytes.
const PER_ARGUMENT: usize = 256;

impl Client {
    /// Whether commands of this client are unanswered, or answers unsent: a drain waits for it.
    fn owes_or_is_owed(&self) -> bool {
        self.outstanding() > 0 || self.has_unsent()
    }

    /// Whether it is read no further now, because it is among those that hold most and all hold too much. The worker's next
    /// tick looks again.
    fn waits_for_memory(&self) -> bool {
        let memory = &self.context.pool.shared.memory;
        if !memory.is_above_mark() {
            return false;
        }
        let mut paused = self.context.paused.borrow_mut();
        if self.outbound.memory() <= memory.room() {
            paused.remove(&self.id());
            return false;
        }
        let since = *paused.entry(self.id()).or_insert_with(Instant::now);
        // Above the bound somebody is being closed, perhaps by another worker: what is given back is not taken before.
        memory.room() == 0 || since.elapsed() < PAUSE
    }

    /// Nothing more is read from it or run for it now.
    pub(in crate::downstream) fn is_held_back(&self) -> bool {
        self.is_backpressured() || self.waits_for_memory()
    }

    /// A copy of `request`, which counts where it is long.
    pub(in crate::downstream) fn copied(&self, request: &[u8]) -> Bytes {
        let copy = Bytes::copy_from_slice(request);
        if copy.len() < LONG { copy } else { self.outbound.account().keep(copy) }
    }

    /// `bytes`, which count until the last reference to them is dropped.
    pub(in crate::downstream) fn kept(&self, bytes: Bytes) -> Bytes {
        self.outbound.account().keep(bytes)
    }

    /// For what is held for it elsewhere.
    pub(in crate::downstream) fn charge(&self) -> Charge {
        self.outbound.account().charge(0)
    }

    /// Takes the frame of `len` bytes that the input begins with out of it; without a copy where it is long.
    pub(in crate::downstream) fn take_frame(&self, len: usize) -> Bytes {
        self.inbound.take_frame(len, self.outbound.account())
    }

    /// What is made of the arguments of `request` while a hub waits for them.
    pub(in crate::downstream) fn charge_for_waiting(&self, request: &Bytes) -> Option<Charge> {
        let argc = Request::parse(request).map_or(0, |request| request.argc());
        let bytes = 2 * request.len() + argc * PER_ARGUMENT;
        let charge = (bytes >= LONG).then(|| self.outbound.account().charge(bytes));
        if charge.is_some() {
            self.context.keep_within_bound();
        }
        charge
    }

    /// Gives idle memory back.
    pub(in crate::downstream) fn shrink(&self) {
        self.inbound.shrink();
        self.outbound.shrink();
    }

    /// It is closed: nothing here holds anything for it any more. Slots in lanes may hold the client itself until their
    /// replies have come; its socket is closed now.
    pub(in crate::downstream) fn shut(&self) {
        self.outbound.shut();
        self.identified.leave();
        self.inbound.discard();
        self.outbound.drop_queue();
    }

    /// How long it has been connected.
    pub(in crate::downstream) fn connected_for(&self) -> Duration {
        Duration::from_micros(self.context.now().wrapping_sub(self.opened.get()))
    }
}

impl Served for Client {
    fn close(&self, reason: ClientClose) {
        Self::close(self, reason);
    }

    fn close_reason(&self) -> Option<ClientClose> {
        Self::close_reason(self)
    }

    fn is_closed(&self) -> bool {
        self.outbound.is_closed()
    }

    fn wake(&self) {
        Self::wake(self);
    }

    fn may_leave(&self) {
        self.attachment.wake_to_go(|call| self.may_move_blocked(call));
        Self::wake(self);
    }

    fn row(&self, now: Instant) -> ClientRow {
        Self::row(self, now)
    }

    fn age(&self, now: Instant) {
        let idle = now.saturating_duration_since(self.inbound.last_input());
        if self.outbound.socket().has_vanished(idle < AGE, now) {
            return self.close(ClientClose::ClientLost);
        }
        self.outbound.age();
        let options = self.context.options.get();
        let flags = self.listed_flags();
        let listens = flags.blocked || flags.monitor || flags.tracking || flags.listens();
        let is_busy = Served::is_busy(self);
        if !self.is_logged_in() && self.connected_for() > options.login_timeout {
            self.close(ClientClose::LoginTimeout);
        } else if !is_busy
            && !flags.blocked
            && !self.inbound.is_empty()
            && idle > options.half_command_timeout
        {
            self.close(ClientClose::HalfCommand);
        } else if options.idle_timeout.is_some_and(|limit| idle > limit) && !listens && !is_busy {
            self.close(ClientClose::IdleTimeout);
        }
    }

    fn is_busy(&self) -> bool {
        self.attachment.is_busy(|| self.owes_or_is_owed())
    }

    fn waits_in_vain_for_a_drain(&self) -> bool {
        self.attachment.is_paused() || self.attachment.is_away() && !Served::is_busy(self)
    }

    fn holds_lease(&self, of: &Rc<Pool>) -> bool {
        self.attachment.holds_lease() && self.routing().is_none_or(|routing| routing.is_at(of))
    }

    fn yield_memory(&self) {
        self.close(ClientClose::Memory);
        self.outbound.silence();
        self.inbound.discard();
    }

    fn tend_output(&self) -> bool {
        self.outbound.tend()
    }

    fn has_logged_in_as(&self, account: &Arc<Account>) -> bool {
        self.identified.has_logged_in_as(account)
    }

    fn unblock(&self, how: Unblock) {
        self.attachment.unblock(how);
    }

    fn inbox(self: Rc<Self>, user: u64) -> Option<Arc<Inbox>> {
        self.inbox_for(user)
    }

    fn has_outlived_the_server(&self) -> bool {
        Self::has_outlived_the_server(self)
    }

    fn lanes_to_watch(&self) -> Option<(LaneKey, Arc<Identity>)> {
        if self.learned.is_any() { self.lane_key() } else { None }
    }
}
