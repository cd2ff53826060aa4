//! What the server has answered a try with.

use bytes::Bytes;

use crate::resp;

/// What the last two frames of a try (the member's queueing, EXEC) say about the member.
pub(super) fn own_answer(frames: &[Bytes]) -> Option<Bytes> {
    let [.., queued, exec] = frames else { return None };
    if resp::is_error(queued) {
        return Some(queued.clone());
    }
    if resp::is_error(exec) {
        return Some(exec.clone());
    }
    resp::elements(exec)?.next().map(Bytes::copy_from_slice)
}
