//! Replies that count subscribers: the server counts each of our hubs once, the client is told of those behind them.

use std::rc::Rc;

use bytes::Bytes;
use tokio::time::Instant;

use super::batch::Batch;
use super::progress::Progress;
use crate::command::{Aftermath, Asked};
use crate::downstream::client::Client;
use crate::downstream::context::Context;
use crate::pool::{Lane, Nature, Receiver};
use crate::resp::{self, Request};
use crate::session::{Beside, ServerFacts, Transaction};
use crate::telemetry::ClientClose;

/// How often the server is asked again when our subscriptions have changed meanwhile.
const ATTEMPTS: usize = 4;

impl Beside for Context {
    fn facts(&self) -> ServerFacts {
        self.server.facts().unwrap_or_default()
    }

    fn counted(&self, request: &[u8], reply: &[u8]) -> Option<Bytes> {
        self.pubsub.audience().correct(&Request::parse(request)?, reply)
    }
}

impl Client {
    /// Takes PUBLISH, or a transaction with members that count, over the lane.
    pub(in crate::downstream) fn accept_counted(
        self: &Rc<Self>,
        frames: &[u8],
        replies: u32,
        asked: &Asked,
        run: &mut Batch,
    ) -> Result<(), (usize, Progress)> {
        self.lane_for(run, asked, frames, (replies, true))?;
        self.count(asked);
        if let Some(lane) = run.lane.take() {
            if self.session.borrow().tracking.is_some() {
                self.note_block(&lane, frames, replies);
            }
            self.counted_on(&lane, frames, replies);
        }
        Ok(())
    }

    /// Sends PUBLISH, or a whole transaction, and corrects its last reply when it comes.
    pub(in crate::downstream) fn counted_on(self: &Rc<Self>, lane: &Rc<Lane>, frames: &[u8], replies: u32) {
        let (last, block) = if replies == 1 { (0, None) } else { Transaction::of_block(frames) };
        match (replies, &block) {
            (1, _) => {}
            (_, Some(_)) => {
                // What is refused here was to be queued only.
                let nature = Nature { may_invent: true, ..Nature::default() };
                self.push_on(lane, &frames[..last], replies - 1, nature);
            }
            (_, None) => {
                let nature = Nature { is_block: true, ..Nature::default() };
                return self.push_on(lane, frames, replies, nature);
            }
        }
        let now = Instant::now();
        let counted = self.copied(&frames[last..]);
        let (client, request) = (Rc::clone(self), counted.clone());
        let change = move |reply: Bytes| {
            let context = &*client.context;
            let corrected = match block {
                None => context.counted(&request, &reply),
                Some(block) => block.executed(&reply, context),
            };
            corrected.unwrap_or(reply)
        };
        let receiver = Rc::clone(self) as Rc<dyn Receiver>;
        lane.push_changed(counted, &receiver, replies > 1, now, Box::new(change));
        self.is_on(lane, 1);
    }

    /// PUBSUB CHANNELS, NUMSUB, NUMPAT and their like. Asked again while our own subscriptions change, since nobody
    /// knows then which of them the server has counted.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream) async fn pubsub(
        self: &Rc<Self>,
        request: &Bytes,
        muted: bool,
    ) -> Result<(), ClientClose> {
        for attempt in 1..=ATTEMPTS {
            let audience = self.context.pubsub.audience();
            let before = audience.agreement();
            let reply = match self.exchange(request, 1).await? {
                Ok(frames) => frames.into_iter().next().unwrap_or_default(),
                Err(why) => return self.unserved(&why, Aftermath::Nothing, 1, muted),
            };
            let is_of_one_moment = before.is_some() && before == audience.agreement();
            if is_of_one_moment || resp::is_error(&reply) || attempt == ATTEMPTS {
                if !muted {
                    self.send(&self.context.counted(request, &reply).unwrap_or(reply));
                }
                break;
            }
        }
        Ok(())
    }
}
