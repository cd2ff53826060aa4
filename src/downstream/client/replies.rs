//! How commands reach lanes, and how replies come back.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::Client;
use crate::pool::{Group, Held, Lane, LaneKey, News, Pool, Receiver, Tracked};
use crate::resp::{ErrorCode, encode};
use crate::telemetry::{ClientClose, Origin};
use crate::upstream::{Identity, OnLoss};

impl Client {
    /// The key of the lanes this client's commands go over.
    pub(in crate::downstream) fn lane_key(&self) -> Option<(LaneKey, Arc<Identity>)> {
        let (identity, tracked) = (self.identity()?, self.tracked());
        let session = self.session.borrow();
        let user = session.user.as_ref()?.id;
        let key = LaneKey {
            user,
            database: session.database,
            protocol: session.protocol,
            readonly: session.readonly,
            tracked,
        };
        Some((key, identity))
    }

    /// The lanes this client uses, found again after its key has changed.
    pub(in crate::downstream) fn current_group(&self) -> Option<Rc<Group>> {
        if let Some(group) = self.lanes.group() {
            return Some(group);
        }
        let (key, identity) = self.lane_key()?;
        if self.has_tracked.get() {
            self.hears_on(key.tracked);
        }
        let group = self.pool().group(key, &identity);
        self.lanes.join(&group);
        Some(group)
    }

    /// What it reads from now on is tracked so. What it was not told before, because it did not speak RESP3 or its lane was
    /// lost when it did not track, may be in its cache.
    fn hears_on(&self, tracked: Tracked) {
        if tracked != Tracked::No {
            if self.has_missed.take() {
                self.tell(&News::of(None));
            }
        } else if self.session.borrow().tracking.is_some() {
            self.has_missed.set(true);
        }
    }

    /// The session's key has changed, or the client leaves: its lanes are no longer its own.
    pub(in crate::downstream) fn leave_group(&self) {
        self.lanes.leave();
        if let Some(routing) = self.routing() {
            routing.leave();
        }
    }

    /// Its commands go to `node` from now on. Nothing of it is outstanding elsewhere.
    pub(in crate::downstream) fn go_to(&self, node: &Rc<Pool>) {
        if let Some(routing) = self.routing().filter(|routing| !routing.is_at(node)) {
            self.lanes.restore(routing.go_to(node, self.lanes.take_session()));
        }
    }

    /// In a cluster, what follows goes to the home node, and so does a lease that it takes.
    pub(in crate::downstream) fn go_home(&self) {
        if let Some(routing) = self.routing() {
            routing.leases_for(None);
            self.go_to(routing.pools.home());
        }
    }

    /// So many of its commands, which lanes owed it, are answered or never will be.
    pub(in crate::downstream) fn have_ended(&self, count: u32) {
        self.are_answered(count);
    }

    /// When the wait for a lane must end that begins now, with the command's turn: its bytes may have lain here for long,
    /// behind replies that the client did not read.
    pub(in crate::downstream) fn lane_deadline(&self) -> Instant {
        match self.inbound.has_waited_in_vain() {
            true => Instant::now(),
            false => self.context.pool.wait_deadline(),
        }
    }

    /// The same for a lease. A client that has closed its side has a bounded number of commands left, and they wait once.
    pub(in crate::downstream) fn lease_deadline(&self) -> Instant {
        if self.has_ended_input() { self.lane_deadline() } else { self.context.pool.wait_deadline() }
    }

    /// Its lanes, if it has used any since its key has changed.
    pub(in crate::downstream) fn known_group(&self) -> Option<Rc<Group>> {
        self.lanes.group()
    }

    /// The lane that its last command went over.
    pub(in crate::downstream) fn last_lane(&self) -> Option<Rc<Lane>> {
        self.lanes.last()
    }

    /// Replies that lanes still owe it.
    pub(in crate::downstream) fn outstanding(&self) -> u32 {
        self.lanes.outstanding()
    }

    /// `count` commands were appended to `lane`.
    pub(in crate::downstream) fn is_on(&self, lane: &Rc<Lane>, count: u32) {
        self.lanes.owe(lane, count);
        self.is_caught_up.set(false);
        self.has_sent();
    }

    /// It has sent a command that a blocking call behind it may wait for.
    pub(in crate::downstream) fn note_written(&self) {
        self.lanes.note_written();
    }

    /// Whether it has, since it was last asked.
    pub(in crate::downstream) fn has_written(&self) -> bool {
        self.lanes.take_written()
    }

    /// So many of its commands have been answered.
    fn are_answered(&self, ended: u32) {
        if ended == 0 {
            return;
        }
        let left = self.lanes.settle(ended);
        // The task sleeps until the socket is readable; only what waits for these replies must be woken.
        if !self.inbound.is_empty() || (left == 0 && self.inbound.is_at_end()) {
            self.wake();
        }
    }
}

impl Receiver for Client {
    fn replies(&self, bytes: &[u8], ended: u32, begun: bool) {
        self.send(bytes);
        self.set_mid_reply(begun);
        self.are_answered(ended);
    }

    fn whole(&self, replies: Bytes, ended: u32) {
        self.send_shared(replies);
        self.set_mid_reply(false);
        self.are_answered(ended);
    }

    fn lost(&self, unanswered: u32, muted: bool, partial: bool) {
        let _ = self.lanes.settle(unanswered);
        if partial || self.context.pool.shared.upstream.get().on_loss == OnLoss::Close {
            self.close(ClientClose::UpstreamLost);
        }
        // Behind a reply that will not be whole nothing is said, for what comes after it neither.
        if self.close_reason().is_some() {
            return;
        }
        if !muted {
            self.reply(|out| {
                for _ in 0..unanswered {
                    self.context.pool.measures().error(Origin::Redbouncer, ErrorCode::Err);
                    encode::error(out, "ERR redbouncer: upstream connection lost, the command may have run");
                }
            });
        }
        self.wake();
    }

    fn resume(&self) {
        self.wake();
    }

    fn gathers(&self, bytes: usize) -> bool {
        self.outbound.gathers(bytes)
    }

    fn takes_back(self: Rc<Self>, held: Vec<Held>) {
        // While the lane is still there that says so.
        self.context.pool.heed_refusals(Instant::now());
        let tasks = self.context.pool.tasks().clone();
        tasks.spawn_local(async move { self.goes_on_with(held).await });
    }
}
