//! Lanes that change their key: where a user's sessions use more databases and protocols than there are lanes, the lanes
//! serve the keys in turn, by `SELECT` and `HELLO` on the connection that is there.
//!
//! A key that has no lane and gets no permit is queued here. The next lane of the same user that has no reply
//! outstanding is moved to it; a lane that never comes to that takes no more commands once it has served its key for a
//! turn. A move is one round trip: commands of the new key are sent when the server has confirmed it, because behind a
//! refused SELECT they would run in the database of others.

mod queue;

use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::group::{BUSY, Turn};
use super::lane::Hold;
use super::{Group, Lane, LaneKey, Lost, Pool, Tracked, holder_of};
use crate::resp::{self, encode};
use crate::telemetry::{UpstreamClose, printable};

pub(super) use queue::Rotation;

/// In this time every key that waits gets a lane, where lanes never run empty: turns are shorter where many wait.
const ROUND: Duration = Duration::from_millis(100);
/// The shortest turn of a lane that never runs empty: several round trips.
const SHORTEST: Duration = Duration::from_millis(2);
/// A lane that was moved for sessions which do not use it is free again after this time.
const UNUSED: Duration = Duration::from_millis(5);

impl Pool {
    /// Sees to it that `group`, for which somebody waits, gets a lane: by a dial where there is a permit, else by a lane
    /// of the same user, else by the next permit.
    pub(super) fn want_lane(self: &Rc<Self>, group: &Rc<Group>) {
        if group.dialling.get() || group.turn.get() != Turn::None || self.is_stopping() {
            return;
        }
        if !group.key().tracked.takes_turns() {
            return self.open_lane(group, None);
        }
        if self.open_another(group) {
            return;
        }
        let (user, readonly) = (group.key().user, group.key().readonly);
        if !self.has_lanes_for(user, readonly) {
            return self.open_lane(group, None);
        }
        self.queue_for_a_turn(group);
        self.rotate(user, Instant::now());
    }

    fn queue_for_a_turn(self: &Rc<Self>, group: &Rc<Group>) {
        group.turn.set(Turn::Queued);
        self.rotation.queue.borrow_mut().push_back(Rc::clone(group));
        if !self.rotation.watched.replace(true) {
            let pool = Rc::clone(self);
            self.tasks.spawn_local(async move {
                pool.watch_turns().await;
                pool.rotation.watched.set(false);
            });
        }
    }

    /// Queues `group`, whose lanes are all held, for one of another key. `false`: there is none that could come.
    pub(super) fn take_a_turn(self: &Rc<Self>, group: &Rc<Group>, now: Instant) -> bool {
        let may_come = self.others_can_come_to(group, now);
        if may_come {
            // Who asked begins to wait only when it knows that, so nothing is moved yet.
            self.queue_for_a_turn(group);
        }
        may_come
    }

    /// Takes `group` out of the queue where no lane of another key can come to it any more.
    pub(super) fn forget_a_vain_turn(&self, group: &Rc<Group>, now: Instant) {
        if group.turn.get() == Turn::Queued
            && group.has_lanes_to_stay()
            && !self.others_can_come_to(group, now)
        {
            self.rotation.queue.borrow_mut().retain(|other| !Rc::ptr_eq(other, group));
            group.turn.set(Turn::None);
        }
    }

    /// Whether the user has lanes of other keys that are not held.
    fn others_can_come_to(&self, group: &Group, now: Instant) -> bool {
        let key = group.key();
        key.tracked.takes_turns()
            && self.lanes_of(key.user).any(|lane| {
                let other = lane.key();
                other != key
                    && other.tracked.takes_turns()
                    && other.readonly == key.readonly
                    && !lane.is_leaving()
                    && !lane.is_held(BUSY, now)
            })
    }

    /// Whether a lane for `key` may be had without a login.
    #[must_use]
    pub fn has_lanes_of(&self, key: LaneKey) -> bool {
        self.has_lanes_for(key.user, key.readonly)
    }

    /// Whether this worker has a lane that can be moved to keys of `user`, now or later, or is about to have one.
    fn has_lanes_for(&self, user: u64, readonly: bool) -> bool {
        let groups = self.groups.borrow();
        let mut own = groups.values().filter(|group| {
            let key = group.key();
            key.user == user && key.readonly == readonly && key.tracked.takes_turns()
        });
        own.any(|group| group.dialling.get() || group.has_lanes_to_stay())
    }

    /// Moves lanes that are free to the groups that wait for one.
    fn rotate(self: &Rc<Self>, user: u64, now: Instant) {
        let may_go = |lane: &Rc<Lane>| lane.key().tracked.takes_turns() && lane.is_free(UNUSED, now);
        let mut free: Vec<_> = self.lanes_of(user).filter(may_go).collect();
        free.sort_by_key(|lane| lane.used());
        for lane in free {
            self.pass_on(&lane);
        }
    }

    /// Called by a lane's task when no reply is outstanding.
    pub(super) fn lane_is_idle(self: &Rc<Self>, lane: &Rc<Lane>) {
        if !self.rotation.is_empty()
            && lane.key().tracked.takes_turns()
            && lane.is_free(UNUSED, Instant::now())
        {
            self.pass_on(lane);
        }
    }

    /// Gives `lane`, which has nothing to do, to the next group, or back to its own.
    fn pass_on(self: &Rc<Self>, lane: &Rc<Lane>) {
        let key = lane.key();
        if self.is_spared(lane, Instant::now()) {
            return self.keep_serving(lane);
        }
        match self.rotation.next(key.user, key.readonly) {
            Some(next) if next.key() != key => self.move_lane(lane, &next),
            Some(_) | None => {
                self.keep_serving(lane);
            }
        }
    }

    /// Whether readers of `lane` would have to forget what they have read if it went, and another one can go.
    fn is_spared(&self, lane: &Lane, now: Instant) -> bool {
        let can_go = |other: &Rc<Lane>| {
            let is_like = other.key().readonly == lane.key().readonly;
            is_like
                && other.key().tracked.takes_turns()
                && !other.has_readers()
                && !other.is_leaving()
                && !other.is_held(BUSY, now)
        };
        lane.has_readers() && self.lanes_of(lane.key().user).any(|other| can_go(&other))
    }

    /// `lane` takes commands of its key again.
    fn keep_serving(&self, lane: &Lane) {
        if lane.hold() == Hold::Yields {
            lane.set_hold(Hold::None);
        }
        if let Some(own) = self.known_group(lane) {
            own.give_way();
        }
    }

    pub(super) fn known_group(&self, lane: &Lane) -> Option<Rc<Group>> {
        self.groups.borrow().get(&lane.key()).cloned()
    }

    fn move_lane(self: &Rc<Self>, lane: &Rc<Lane>, to: &Rc<Group>) {
        let now = Instant::now();
        let (old, new) = (lane.key(), to.key());
        let from = self.known_group(lane);
        if let Some(from) = &from {
            from.closed(lane);
        }
        lane.begin_turn(new, &holder_of(new), now);
        to.turn.set(Turn::Coming);
        to.is_given(Rc::clone(lane));
        let (mut commands, mut replies) = (BytesMut::new(), 0);
        // A database is no matter to tracking, which names keys alone.
        if old.tracked != new.tracked && old.tracked != Tracked::No {
            lane.forget_readers();
            encode::command(&mut commands, &[b"CLIENT", b"TRACKING", b"OFF"]);
            replies += 1;
        }
        if old.protocol != new.protocol {
            encode::command(&mut commands, &[b"HELLO", new.protocol.number().to_string().as_bytes()]);
            replies += 1;
        }
        if old.database != new.database {
            encode::command(&mut commands, &[b"SELECT", new.database.to_string().as_bytes()]);
            replies += 1;
        }
        if old.tracked != new.tracked && new.tracked == Tracked::Reads {
            encode::command(&mut commands, &[b"CLIENT", b"TRACKING", b"ON"]);
            replies += 1;
        }
        if old.tracked != new.tracked && new.tracked != Tracked::No {
            lane.track(self.new_tracker());
        }
        metrics::counter!("redbouncer_lane_turns_total").increment(1);
        let (pool, group, moved) = (Rc::downgrade(self), Rc::clone(to), Rc::clone(lane));
        let then = move |answer: Result<Vec<Bytes>, Lost>| {
            group.turn.set(Turn::None);
            moved.serves_from(Instant::now());
            let Some(pool) = pool.upgrade() else { return };
            let is_done =
                answer.as_ref().is_ok_and(|frames| !frames.iter().any(|reply| resp::is_error(reply)));
            if is_done && moved.is_usable() {
                if new.tracked == Tracked::No {
                    moved.stop_tracking();
                }
                group.has_a_lane();
                return;
            }
            if let Ok(frames) = &answer
                && !is_done
            {
                let error = frames.iter().find_map(|reply| resp::error_text(reply)).map(printable);
                tracing::debug!(error, database = group.key().database, "a lane could not change its key");
                // What it is set to now is not certain; a dial brings the server's own words to those who wait.
                moved.leave(UpstreamClose::Turn);
                if group.has_waiters() {
                    pool.open_lane(&group, None);
                }
                return;
            }
            if group.has_waiters() {
                pool.want_lane(&group);
            }
        };
        lane.exchange(&commands, replies, now, Box::new(then));
        // Behind a held lane they wait for any that is not.
        if let Some(from) = from.filter(|from| from.has_waiters()) {
            self.want_lane(&from);
        }
    }

    /// Ends the turns of lanes that never run empty, until no group waits.
    async fn watch_turns(self: &Rc<Self>) {
        while !self.rotation.is_empty() && !self.is_stopping() {
            tokio::time::sleep(SHORTEST).await;
            let now = Instant::now();
            for user in self.rotation.users() {
                self.rotate(user, now);
                self.end_turns(user, now);
                self.dial_for_the_first(user);
            }
        }
        let groups: Vec<_> = self.groups.borrow().values().cloned().collect();
        for lane in groups.iter().flat_map(|group| group.lanes()) {
            if lane.hold() == Hold::Yields {
                self.keep_serving(&lane);
            }
        }
    }

    /// As many lanes of `user` as groups wait take no more commands, those first that have served longest. A lane that the
    /// server holds would not run empty, whatever it is told.
    fn end_turns(&self, user: u64, now: Instant) {
        let serves = |lane: &Rc<Lane>| {
            lane.key().tracked.takes_turns() && !lane.is_leaving() && !lane.is_held(BUSY, now)
        };
        let mut lanes: Vec<_> = self.lanes_of(user).filter(serves).collect();
        let waiting = self.rotation.waiting(user);
        let on_their_way = lanes.iter().filter(|lane| !lane.is_usable()).count();
        let share = ROUND.mul_f64(lanes.len() as f64 / (waiting + lanes.len()) as f64);
        let turn = share.min(self.shared.options.get().min_turn).max(SHORTEST);
        lanes.retain(|lane| !self.is_spared(lane, now));
        lanes.retain(|lane| lane.is_usable() && now.saturating_duration_since(lane.serves_since()) >= turn);
        lanes.sort_by_key(|lane| lane.serves_since());
        for lane in lanes.into_iter().take(waiting.saturating_sub(on_their_way)) {
            lane.set_hold(Hold::Yields);
        }
    }

    /// A group that waits for a lane of `user` has to dial where there is none any more.
    fn dial_for_the_first(self: &Rc<Self>, user: u64) {
        let waits = |group: &&Rc<Group>| group.key().user == user && group.has_waiters();
        let first = self.rotation.queue.borrow().iter().find(waits).cloned();
        let Some(first) = first.filter(|first| !self.has_lanes_for(user, first.key().readonly)) else {
            return;
        };
        self.rotation.queue.borrow_mut().retain(|group| !Rc::ptr_eq(group, &first));
        first.turn.set(Turn::None);
        self.open_lane(&first, None);
    }
}
