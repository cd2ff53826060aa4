//! Replies that count subscribers: the server counts each of our hubs once, the client is told of those behind them.

use std::rc::Rc;

use bytes::Bytes;
use tokio::time::Instant;

use super::client::Client;
use super::drive::{Ran, Run};
use super::worker::Worker;
use crate::command::{Aftermath, Asked};
use crate::pool::{Lane, Nature, Receiver};
use crate::resp::{self, Request};
use crate::session::{Beside, ServerFacts, Transaction};
use crate::telemetry::ClientClose;

/// How often the server is asked again when our subscriptions have changed meanwhile.
const ATTEMPTS: usize = 4;

impl Beside for Worker {
    fn facts(&self) -> ServerFacts {
        self.server_facts().unwrap_or_default()
    }

    fn counted(&self, request: &[u8], reply: &[u8]) -> Option<Bytes> {
        self.pubsub.audience().correct(&Request::parse(request)?, reply)
    }
}

impl Client {
    /// Takes PUBLISH, or a transaction with members that count, over the lane.
    pub(super) fn take_counted(
        self: &Rc<Self>,
        frames: &[u8],
        replies: u32,
        asked: &Asked,
        run: &mut Run,
    ) -> Result<(), (usize, Ran)> {
        self.lane_for(run, asked, frames, (replies, true))?;
        self.worker.count(self, asked);
        if let Some(lane) = run.lane.take() {
            if self.session.borrow().tracking.is_some() {
                self.note_block(&lane, frames, replies);
            }
            self.counted_on(&lane, frames, replies);
        }
        Ok(())
    }

    /// Sends PUBLISH, or a whole transaction, and corrects its last reply when it comes.
    pub(super) fn counted_on(self: &Rc<Self>, lane: &Rc<Lane>, frames: &[u8], replies: u32) {
        let (last, block) = if replies == 1 { (0, None) } else { Transaction::of_block(frames) };
        match (replies, &block) {
            (1, _) => {}
            (_, Some(_)) => self.push_on(lane, &frames[..last], replies - 1, Nature::default()),
            (_, None) => {
                let nature = Nature { is_block: true, ..Nature::default() };
                return self.push_on(lane, frames, replies, nature);
            }
        }
        let now = Instant::now();
        self.outstanding.set(self.outstanding.get() + 1);
        self.has_written.set(true);
        let counted = self.copied(&frames[last..]);
        let (client, request) = (Rc::clone(self), counted.clone());
        let change = move |reply: Bytes| {
            let worker = &*client.worker;
            let corrected = match block {
                None => worker.counted(&request, &reply),
                Some(block) => block.executed(&reply, worker),
            };
            corrected.unwrap_or(reply)
        };
        let receiver = Rc::clone(self) as Rc<dyn Receiver>;
        lane.push_changed(counted, &receiver, replies > 1, now, Box::new(change));
        self.lane.replace(Some(Rc::clone(lane)));
    }

    /// PUBSUB CHANNELS, NUMSUB, NUMPAT and their like. Asked again while our own subscriptions change, since nobody
    /// knows then which of them the server has counted.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(super) async fn pubsub(self: &Rc<Self>, request: &Bytes, muted: bool) -> Result<(), ClientClose> {
        for attempt in 1..=ATTEMPTS {
            let audience = self.worker.pubsub.audience();
            let before = audience.agreement();
            let reply = match self.exchange(request, 1).await? {
                Ok(frames) => frames.into_iter().next().unwrap_or_default(),
                Err(why) => return self.unserved(&why, Aftermath::Nothing, 1, muted),
            };
            let is_of_one_moment = before.is_some() && before == audience.agreement();
            if is_of_one_moment || resp::is_error(&reply) || attempt == ATTEMPTS {
                if !muted {
                    self.send(&self.worker.counted(request, &reply).unwrap_or(reply));
                }
                break;
            }
        }
        Ok(())
    }
}
