//! Elements that were popped for a client that is gone.
//!
//! To the longest waiting client with the same call, else back where they came from.

use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::command::blocking::Call;
use crate::downstream::context::Context;
use crate::hub::fate;
use crate::pool::LaneKey;
use crate::resp::Request;
use crate::telemetry::ElementFate;
use crate::upstream::Identity;

/// Hands `element`, the reply to `request`, on or back.
pub(super) fn undelivered(
    context: &Rc<Context>,
    call: &Call,
    key: LaneKey,
    identity: &Arc<Identity>,
    request: &Bytes,
    element: &[u8],
) {
    let Some(asked) = Request::parse(request) else { return };
    let others: Vec<_> = context.waiters.borrow().iter().cloned().collect();
    for other in others {
        if other.take_element(key, &asked, element) {
            fate(ElementFate::HandedOn);
            return;
        }
    }
    let back = call.give_back(&asked, element).map(BytesMut::freeze);
    context.give_back.send(key, identity, back);
}
