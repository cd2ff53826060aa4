//! How buffers grow that must hold a whole frame, however long it is.
//!
//! A buffer that grows by copying holds its bytes twice while it does. One that has become long gets room for all that is
//! expected, or for much more than there is, at once: memory that has been asked for and not been written to costs nothing.
//! Where the system does not give that much it grows as it must. What has been written to is kept until the whole buffer is
//! dropped, so a frame is taken out with all of it, never split off.

use bytes::{Bytes, BytesMut};

use super::spares;

/// Up to this length a buffer grows as it likes.
const SMALL: usize = 1 << 20;
/// From this length on a buffer that was used before is taken.
const WORTH_IT: usize = 8 << 10;
/// A longer one has room for this much from the beginning.
const LONG: usize = 32 << 20;

/// Whether a long buffer is copied when room for `more` bytes is made in it.
#[must_use]
pub fn moves(buffer: &BytesMut, more: usize) -> bool {
    let len = buffer.len() + more;
    len > SMALL && len > buffer.capacity()
}

/// Makes room for `more` bytes behind those in `buffer`, and where it is moved for `more` behind `expected` that are on their
/// way: the last of them must not have it moved again.
pub fn make_room(buffer: &mut BytesMut, more: usize, expected: usize) {
    if moves(buffer, more) {
        let all = (buffer.len() + more.saturating_add(expected)).max(buffer.len() * 2).max(LONG);
        let mut room = Vec::new();
        if room.try_reserve_exact(all).is_ok() {
            room.extend_from_slice(buffer);
            *buffer = BytesMut::from(Bytes::from(room));
            return;
        }
    }
    let len = buffer.len() + more;
    // A buffer with little data stays small, because many clients may have an incomplete command.
    if len > buffer.capacity()
        && len >= WORTH_IT
        && let Some(mut spare) =
            spares::take(buffer.len().saturating_add(more.max(expected))).or_else(|| spares::take(len))
    {
        spare.extend_from_slice(buffer);
        spares::give(std::mem::replace(buffer, spare));
        return;
    }
    buffer.reserve(more);
}

/// Appends `bytes`.
pub fn append(buffer: &mut BytesMut, bytes: &[u8]) {
    make_room(buffer, bytes.len(), 0);
    buffer.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_buffer_is_moved_once() {
        let (mut buffer, mut moved) = (BytesMut::new(), 0);
        for _ in 0..800 {
            moved += usize::from(moves(&buffer, 40_000));
            append(&mut buffer, &[7; 40_000]);
        }
        assert_eq!((buffer.len(), moved), (32_000_000, 1));
        assert!(buffer.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn there_is_room_for_all_that_is_expected() {
        let mut buffer = BytesMut::from(&[7; SMALL][..]);
        make_room(&mut buffer, 1, 50 << 20);
        assert!(buffer.capacity() >= SMALL + (50 << 20), "{}", buffer.capacity());
        assert_eq!(buffer, vec![7; SMALL]);
        buffer.resize(SMALL + (50 << 20), 7);
        assert!(!moves(&buffer, 1));
        // More than there is.
        make_room(&mut buffer, 60 << 20, usize::MAX / 4);
        assert!(buffer.capacity() >= SMALL + (110 << 20), "{}", buffer.capacity());
    }

    #[test]
    fn a_short_one_takes_little() {
        let mut buffer = BytesMut::new();
        make_room(&mut buffer, 16 << 10, 1 << 30);
        assert!(buffer.capacity() <= 64 << 10, "{}", buffer.capacity());
    }
}
