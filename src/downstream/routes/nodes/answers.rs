//! Replies of a cluster's nodes: passed on as they come, unless one proves that its command has to be sent again.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};

use crate::cluster::{Redirect, block_redirect, commands};
use crate::downstream::client::{Answer, Client, Kept};
use crate::downstream::context::Context;
use crate::pool::{Lost, Pool, Receiver};
use crate::session::{Beside, Transaction};
use crate::telemetry::ClientClose;
use crate::upstream::HostPort;

use super::resend::Ran;

impl Client {
    /// What has become of commands that were sent, in the lane's own task.
    pub(super) fn is_answered(self: &Rc<Self>, kept: Kept, outcome: Result<Vec<Bytes>, Lost>) {
        let Some(routing) = self.routing() else { return };
        routing.releases(&kept);
        if self.close_reason().is_some() {
            self.have_ended(kept.count);
            return;
        }
        let is_final = outcome.as_ref().is_ok_and(|replies| !replies.iter().any(|reply| is_redirect(reply)));
        match outcome {
            Ok(replies) if is_final && !routing.is_holding() => {
                self.deliver(&kept, replies);
                self.have_ended(kept.count);
            }
            outcome => {
                if routing.hold(Answer { kept, outcome }) {
                    self.context.keep_within_bound();
                }
                self.wake();
            }
        }
    }

    /// Whether answers wait for commands that are to be sent again.
    pub(in crate::downstream::routes) fn has_to_mend(&self) -> bool {
        self.routing().is_some_and(|routing| routing.has_answers())
    }

    /// Sends again what did not run, and delivers all answers that wait, in their order.
    ///
    /// # Errors
    /// Why the client is to be closed.
    pub(in crate::downstream::routes) async fn mend(self: &Rc<Self>) -> Result<(), ClientClose> {
        let Some(routing) = self.routing() else { return Ok(()) };
        // All that is outstanding was sent to one node.
        let from = self.pool();
        routing.mends(true);
        let mut outcome = Ok(());
        while let Some(Answer { kept, outcome: answered }) = routing.next_answer() {
            let count = kept.count;
            outcome = match answered {
                Err(Lost) => {
                    self.lost(count, kept.muted, false);
                    self.close_reason().map_or(Ok(()), Err)
                }
                Ok(replies) => {
                    let mended = self.mend_one(&kept, replies, &from).await;
                    self.have_ended(count);
                    mended
                }
            };
            if outcome.is_err() {
                break;
            }
        }
        routing.mends(false);
        outcome
    }

    /// Delivers the replies to `kept`; those that prove that their command did not run are replaced.
    async fn mend_one(
        self: &Rc<Self>,
        kept: &Kept,
        replies: Vec<Bytes>,
        from: &Rc<Pool>,
    ) -> Result<(), ClientClose> {
        let node = self.routing().and_then(|routing| routing.pools.node_of(from));
        if kept.is_block {
            let redirect = node.and_then(|node| block_redirect(&replies, &node));
            return match redirect {
                None => {
                    self.deliver(kept, replies);
                    Ok(())
                }
                Some(redirect) => self.send_again(kept, (redirect, replies, Rc::clone(from))).await,
            };
        }
        let parts: Vec<_> = commands(&kept.commands).collect();
        for (command, reply) in parts.into_iter().zip(replies) {
            let redirect = node.as_ref().and_then(|node| Redirect::read(&reply, node));
            let one = Kept { commands: command, count: 1, ..kept.clone() };
            match redirect {
                None => self.deliver(&one, vec![reply]),
                Some(redirect) => self.send_again(&one, (redirect, vec![reply], Rc::clone(from))).await?,
            }
        }
        Ok(())
    }

    async fn send_again(
        self: &Rc<Self>,
        kept: &Kept,
        answered: (Redirect, Vec<Bytes>, Rc<Pool>),
    ) -> Result<(), ClientClose> {
        match self.run_on_nodes(kept, Some(answered)).await? {
            Ran::Answered(replies) => self.deliver(kept, replies),
            Ran::Told => {}
        }
        Ok(())
    }

    /// Sends the replies to `kept` to the client, unless it wants none.
    pub(super) fn deliver(&self, kept: &Kept, mut replies: Vec<Bytes>) {
        if kept.muted {
            return;
        }
        if kept.counts
            && let Some(last) = replies.last_mut()
            && let Some(corrected) = corrected(&self.context, kept, last)
        {
            *last = corrected;
        }
        match &replies[..] {
            [one] => self.send_answer(one),
            many => {
                let mut joined = BytesMut::with_capacity(many.iter().map(Bytes::len).sum());
                for reply in many {
                    self.note_answer(reply);
                    joined.extend_from_slice(reply);
                }
                self.send_shared(joined.freeze());
            }
        }
    }
}

/// Whether a reply may be one that proves that its command did not run. Which node it came from does not matter for that.
fn is_redirect(reply: &[u8]) -> bool {
    let nobody = || HostPort { host: String::new(), port: 0 };
    reply.starts_with(b"-")
        && (Redirect::read(reply, &nobody()).is_some() || reply.starts_with(b"-EXECABORT "))
}

/// The last reply to `kept` with subscribers counted as clients.
fn corrected(context: &Context, kept: &Kept, reply: &Bytes) -> Option<Bytes> {
    if kept.is_block {
        return Transaction::of_block(&kept.commands).1?.executed(reply, context);
    }
    context.counted(&kept.commands, reply)
}
