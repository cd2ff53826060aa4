//! Elements that were popped for a client that is gone.
//!
//! To the longest waiting client with the same call, else back where they came from.

use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::Worker;
use crate::command::blocking::Call;
use crate::hub::fate;
use crate::pool::LaneKey;
use crate::resp::Request;
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
    let back = call.give_back(&asked, element).map(BytesMut::freeze);
    worker.give_back.send(key, identity, back);
}
