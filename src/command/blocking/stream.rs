//! The last id of a stream, which `$` means at the arrival of a call.

use bytes::{Bytes, BytesMut};

use crate::resp::{bulk, elements, encode, is_error};

/// Appends the request that asks for a stream's position.
pub fn stream_position(stream: &[u8], out: &mut BytesMut) {
    encode::command(out, &[b"XINFO", b"STREAM", stream]);
}

/// The id that `$` stands for, from XINFO STREAM's reply in either protocol.
///
/// A stream that does not exist has given out no id yet: `0-0`. None for any other error (NOPERM, WRONGTYPE): the
/// call itself will meet it.
pub fn last_generated_id(reply: &[u8]) -> Option<Bytes> {
    if is_error(reply) {
        let missing = reply.windows(11).any(|text| text == b"no such key");
        return missing.then(|| Bytes::from_static(b"0-0"));
    }
    let mut fields = elements(reply)?;
    while let (Some(field), Some(value)) = (fields.next(), fields.next()) {
        if bulk(field) == Some(b"last-generated-id") {
            return bulk(value).map(Bytes::copy_from_slice);
        }
    }
    None
}
