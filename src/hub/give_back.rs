//! The way back for elements that were popped for a client that is gone.
//!
//! What can be neither handed on nor put back is lost, as it would be with a direct connection, and is counted with its
//! reason; its value is never logged.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::pool::{LaneKey, Pool};
use crate::resp;
use crate::telemetry::{Count, ElementFate, printable};
use crate::upstream::Identity;

/// How long an element waits for a lane: nobody waits for it, and without one it is lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// Puts elements back where they came from.
#[derive(Debug)]
pub struct GiveBack {
    pool: Rc<Pool>,
    /// `blocking.give_back`
    enabled: Cell<bool>,
    pending: Count,
}

impl GiveBack {
    /// Gives back over the lanes of `pool`, where it is `enabled`.
    #[must_use]
    pub fn new(pool: Rc<Pool>, enabled: bool) -> Rc<Self> {
        Rc::new(Self { pool, enabled: Cell::new(enabled), pending: Count::default() })
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
            let pool = &this.pool;
            let group = pool.group(key, &identity);
            let _session = group.attach();
            let ready = pool.lane_ready(&group, pool.wait_deadline().max(Instant::now() + PATIENCE)).await;
            match (ready, group.lane()) {
                (Ok(()), Some(lane)) => lane.exchange(
                    &back,
                    1,
                    Instant::now(),
                    Box::new(|answer| match answer {
                        Ok(frames) if frames.first().is_some_and(|reply| !resp::is_error(reply)) => {
                            fate(ElementFate::GivenBack);
                        }
                        Ok(frames) => {
                            let code = frames.first().and_then(|reply| resp::error_text(reply)).map(code_of);
                            tracing::warn!(?code, "a popped element could not be given back");
                            fate(ElementFate::Lost);
                        }
                        Err(_) => {
                            tracing::warn!(
                                "a popped element may be lost: connection lost while giving it back"
                            );
                            fate(ElementFate::Lost);
                        }
                    }),
                ),
                _ => {
                    tracing::warn!("a popped element is lost: no connection to give it back");
                    fate(ElementFate::Lost);
                }
            }
        });
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
