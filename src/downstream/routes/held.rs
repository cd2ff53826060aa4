//! Commands that a server has refused because it is a replica, sent again to the master that takes its place.
//!
//! They are sent one after the other, each when the one before it is answered: a second refusal would otherwise let the ones
//! behind overtake. Nothing new of the client is sent until all are answered, since their replies are still owed to it.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::downstream::client::Client;
use crate::downstream::context::Served;
use crate::pool::{Group, Held, Lane, Receiver, Step, refusal, steps};
use crate::telemetry::Origin;

/// Between two tries, where a server says at the login that it is a master and refuses to write.
const AGAIN: Duration = Duration::from_millis(50);

/// What became of a command that was sent again.
enum Tried {
    Answered(Vec<Bytes>),
    /// It did not run: there is no master.
    Refused,
    /// It may have run.
    Lost,
}

impl Client {
    /// Sends again what was refused, in order, as soon as there is a master, and answers it.
    pub(in crate::downstream) async fn goes_on_with(self: Rc<Self>, held: Vec<Held>) {
        let pool = &self.context.pool;
        let group = self.known_group();
        let mut deadline = Instant::now() + pool.shared.upstream.get().failover_wait;
        let mut steps: VecDeque<Step> = steps(held);
        while let Some(step) = steps.pop_front() {
            if self.close_reason().is_some() || self.is_closed() {
                return;
            }
            match step {
                Step::Again { command, replies, muted } => {
                    let count = replies.len() as u32;
                    let tried = match &group {
                        Some(group) => self.try_again(group, &command, count, deadline).await,
                        None => Tried::Refused,
                    };
                    match tried {
                        Tried::Answered(replies) => self.settles(&replies, muted),
                        Tried::Refused => {
                            // The next ones look once each.
                            deadline = Instant::now();
                            self.settles(&replies, muted);
                        }
                        Tried::Lost => self.loses(count, muted),
                    }
                }
                Step::Answer { replies, muted } => self.settles(&replies, muted),
                Step::Lose { replies, muted } => self.loses(replies, muted),
            }
        }
    }

    async fn try_again(
        self: &Rc<Self>,
        group: &Rc<Group>,
        command: &Bytes,
        replies: u32,
        deadline: Instant,
    ) -> Tried {
        let pool = &self.context.pool;
        loop {
            if pool.lane_ready(group, deadline).await.is_err() {
                return Tried::Refused;
            }
            let Some(lane) = group.lane() else { continue };
            let frames = match self.once_more(&lane, command, replies).await {
                Some(frames) => frames,
                None => return Tried::Lost,
            };
            let is_refused = frames.first().is_some_and(|reply| refusal(reply).is_some());
            if !is_refused || Instant::now() >= deadline {
                return Tried::Answered(frames);
            }
            pool.heed_refusals(Instant::now());
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Sends `command` over `lane`. `None`: the connection was lost before its last reply.
    async fn once_more(self: &Rc<Self>, lane: &Lane, command: &Bytes, replies: u32) -> Option<Vec<Bytes>> {
        let (sender, answered) = oneshot::channel();
        let owner = Rc::clone(self) as Rc<dyn Receiver>;
        let then = Box::new(move |frames| drop(sender.send(frames)));
        lane.exchange_for(Some(owner), command, replies, Instant::now(), then);
        lane.touch(Instant::now());
        answered.await.ok()?.ok()
    }

    /// These are the replies to a command, or a transaction, that was held.
    fn settles(&self, replies: &[Bytes], muted: bool) {
        let is_refused = replies.first().is_some_and(|reply| refusal(reply).is_some());
        let outcome = if is_refused { "refused" } else { "answered" };
        metrics::counter!("redbouncer_held_commands_total", "outcome" => outcome)
            .increment(replies.len() as u64);
        let count = replies.len() as u32;
        if muted {
            return Receiver::replies(self, &[], count, false);
        }
        let measures = self.context.pool.measures();
        replies.iter().for_each(|reply| measures.reply(Origin::Server, reply));
        self.whole(replies.concat().into(), count);
    }

    fn loses(&self, replies: u32, muted: bool) {
        metrics::counter!("redbouncer_held_commands_total", "outcome" => "lost")
            .increment(u64::from(replies));
        self.lost(replies, muted, false);
    }
}
