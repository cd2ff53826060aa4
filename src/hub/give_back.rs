//! The way back for elements that were popped for a client that is gone.
//!
//! What can be neither handed on nor put back is lost, as it would be with a direct connection, and is counted with its
//! reason; its value is never logged.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::cluster::{Redirect, slot_of};
use crate::nodes::NodePools;
use crate::pool::{LaneKey, Pool};
use crate::resp::{self, Request};
use crate::telemetry::{Count, ElementFate, printable};
use crate::upstream::Identity;

/// How long an element waits for a lane: nobody waits for it, and without one it is lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two nodes of a cluster of which none takes the element.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a lane of one node is waited for before it is looked whether the slot has another owner.
const LANE: Duration = Duration::from_millis(250);

/// Puts elements back where they came from.
#[derive(Debug)]
pub struct GiveBack {
    pool: Rc<Pool>,
    /// In a cluster the element belongs to the node that owns its key.
    nodes: Option<Rc<NodePools>>,
    /// `blocking.give_back`
    enabled: Cell<bool>,
    pending: Count,
}

/// Why an element was not put back.
enum Failure {
    /// No connection could be had.
    NoLane,
    /// The connection was lost behind the request.
    Lost,
    /// The server's reply, an error.
    Refused(Bytes),
}

impl GiveBack {
    /// Gives back over the lanes of `pool`, or of the nodes of a cluster, where it is `enabled`.
    #[must_use]
    pub fn new(pool: Rc<Pool>, nodes: Option<Rc<NodePools>>, enabled: bool) -> Rc<Self> {
        Rc::new(Self { pool, nodes, enabled: Cell::new(enabled), pending: Count::default() })
    }

    /// Whether elements are given back from now on.
    pub fn enable(&self, enabled: bool) {
        self.enabled.set(enabled);
    }

    /// How many elements are on their way.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.get()
    }

    /// Sends `back` over a lane of the same user and database, as soon as there is one. `None`: there is no way back for
    /// this kind of element.
    pub fn send(self: &Rc<Self>, key: LaneKey, identity: &Arc<Identity>, back: Option<Bytes>) {
        let Some(back) = back.filter(|_| self.enabled.get()) else {
            tracing::warn!("a popped element could not be delivered");
            return fate(ElementFate::Lost);
        };
        let (this, identity) = (Rc::clone(self), Arc::clone(identity));
        let on_its_way = self.pending.one();
        self.pool.tasks().spawn_local(async move {
            let _on_its_way = on_its_way;
            let end = this.pool.wait_deadline().max(Instant::now() + PATIENCE);
            let put = match &this.nodes {
                None => put(&this.pool, key, &identity, &back, end).await,
                Some(nodes) => put_on_a_node(nodes, key, &identity, &back, end).await,
            };
            match put {
                Ok(()) => return fate(ElementFate::GivenBack),
                Err(Failure::Refused(reply)) => {
                    let code = resp::error_text(&reply).map(code_of);
                    tracing::warn!(?code, "a popped element could not be given back");
                }
                Err(Failure::Lost) => {
                    tracing::warn!("a popped element may be lost: connection lost while giving it back");
                }
                Err(Failure::NoLane) => {
                    tracing::warn!("a popped element is lost: no connection to give it back");
                }
            }
            fate(ElementFate::Lost);
        });
    }
}

/// Sends `back` over a lane of `pool`, as soon as there is one.
async fn put(
    pool: &Rc<Pool>,
    key: LaneKey,
    identity: &Arc<Identity>,
    back: &[u8],
    end: Instant,
) -> Result<(), Failure> {
    let group = pool.group(key, identity);
    let _session = group.attach();
    let ready = pool.lane_ready(&group, end).await;
    let lane = ready.ok().and_then(|()| group.lane()).ok_or(Failure::NoLane)?;
    let (sender, receiver) = oneshot::channel();
    lane.exchange(back, 1, Instant::now(), Box::new(move |answer| drop(sender.send(answer))));
    match receiver.await {
        Ok(Ok(frames)) => match frames.into_iter().next() {
            Some(reply) if !resp::is_error(&reply) => Ok(()),
            reply => Err(Failure::Refused(reply.unwrap_or_default())),
        },
        Ok(Err(_)) | Err(_) => Err(Failure::Lost),
    }
}

/// The same in a cluster: to the node that owns the key, which may change. While its slot is being moved and the key is on neither
/// node, the element waits for the end of that.
async fn put_on_a_node(
    nodes: &NodePools,
    key: LaneKey,
    identity: &Arc<Identity>,
    back: &[u8],
    end: Instant,
) -> Result<(), Failure> {
    let slot = Request::parse(back).and_then(|request| request.arg(1).map(slot_of)).ok_or(Failure::NoLane)?;
    loop {
        let failure = match nodes.owner(slot) {
            None => Failure::NoLane,
            Some(node) => {
                match put(&node, key, identity, back, end.min(Instant::now() + LANE)).await {
                    // It did not run.
                    Err(Failure::Refused(reply)) if Redirect::is_one(&reply) => Failure::Refused(reply),
                    Err(Failure::NoLane) => Failure::NoLane,
                    over => return over,
                }
            }
        };
        if Instant::now() >= end {
            return Err(failure);
        }
        nodes.nodes().doubt();
        sleep(PAUSE).await;
    }
}

/// The first word of an error (WRONGTYPE, NOPERM …): the rest may hold a key.
fn code_of(text: &[u8]) -> String {
    let word = text.split(|byte| *byte == b' ').next().unwrap_or_default();
    printable(word)
}

/// Counts what became of an element whose client was gone.
pub fn fate(fate: ElementFate) {
    metrics::counter!("redbouncer_elements_undelivered_total", "fate" => fate.label()).increment(1);
}
