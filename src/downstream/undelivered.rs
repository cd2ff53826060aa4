//! Elements that were popped for a client that is gone.
//!
//! To the longest waiting client with the same call, else back where they came from. What can be neither is lost, as
//! it would be with a direct connection, and is counted with its reason; its value is never logged.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::Worker;
use crate::command::blocking::Call;
use crate::pool::LaneKey;
use crate::resp::{self, Request};
use crate::upstream::Identity;

/// Hands `element`, the reply to `request`, on or back.
pub(super) fn undelivered(
    worker: &Rc<Worker>,
    call: &Call,
    key: LaneKey,
    identity: &Arc<Identity>,
    request: &Bytes,
    element: &[u8],
) {
    let Some(asked) = Request::parse(request) else { return };
    let others: Vec<_> = worker.waiters.borrow().iter().cloned().collect();
    for other in others {
        let same = other.key == key
            && Request::parse(&other.request.borrow()).is_some_and(|its| Call::same_shape(&asked, &its));
        // One that blocks on a lease may be served there at the same moment; only a queued one is surely free.
        if same && other.is_free() && other.deliver(element) {
            fate("handed_on");
            return;
        }
    }
    let back = call.give_back(&asked, element).filter(|_| worker.blocking.give_back);
    match back {
        Some(back) => give_back(worker, key, identity, back),
        None => {
            tracing::warn!(command = ?call.command, "a popped element could not be delivered");
            fate("lost");
        }
    }
}

/// Sends `back` over a lane of the same user and database, as soon as there is one.
fn give_back(worker: &Rc<Worker>, key: LaneKey, identity: &Arc<Identity>, back: BytesMut) {
    let (worker, identity) = (Rc::clone(worker), Arc::clone(identity));
    let tasks = worker.pool.tasks().clone();
    worker.saving.set(worker.saving.get() + 1);
    tasks.spawn_local(async move {
        let group = worker.pool.group(key, &identity);
        group.join();
        let ready = worker.pool.lane_ready(&group, worker.pool.wait_deadline()).await;
        match (ready, group.lane()) {
            (Ok(()), Some(lane)) => lane.exchange(
                &back,
                1,
                Instant::now(),
                Box::new(|answer| match answer {
                    Ok(frames) if frames.first().is_some_and(|reply| !resp::is_error(reply)) => {
                        fate("given_back");
                    }
                    Ok(frames) => {
                        let code = frames.first().and_then(|reply| resp::error_text(reply)).map(code_of);
                        tracing::warn!(?code, "a popped element could not be given back");
                        fate("lost");
                    }
                    Err(_) => {
                        tracing::warn!("a popped element may be lost: connection lost while giving it back");
                        fate("lost");
                    }
                }),
            ),
            _ => {
                tracing::warn!("a popped element is lost: no connection to give it back");
                fate("lost");
            }
        }
        group.part(Instant::now());
        worker.saving.set(worker.saving.get() - 1);
    });
}

/// The first word of an error (WRONGTYPE, NOPERM …): the rest may hold a key.
fn code_of(text: &[u8]) -> String {
    let word = text.split(|byte| *byte == b' ').next().unwrap_or_default();
    String::from_utf8_lossy(word).into_owned()
}

fn fate(fate: &'static str) {
    metrics::counter!("redbouncer_elements_undelivered_total", "fate" => fate).increment(1);
}
