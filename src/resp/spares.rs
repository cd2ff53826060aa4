//! Buffers that nobody uses any more and that are kept for the next use, on each thread by itself.
//!
//! The allocator gives freed pages back to the system at once (decision 26). A value of tens of kilobytes would pay for each
//! of its pages with every request: given back by one, taken again and cleared by the kernel for the next.

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};

/// Shorter buffers are kept by the allocator itself.
const SHORTEST: usize = 16 << 10;
/// Longer buffers are freed, because their cost is in their bytes.
const LONGEST: usize = 256 << 10;
/// All that a thread keeps, in bytes.
const KEPT: usize = 2 << 20;

thread_local! {
    static SPARES: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with room for `len` bytes or more, if one is kept: the shortest such.
pub(super) fn take(len: usize) -> Option<BytesMut> {
    if len > LONGEST {
        return None;
    }
    with(|spares| {
        let fitting = spares.iter().enumerate().filter(|(_, spare)| spare.capacity() >= len);
        let (at, _) = fitting.min_by_key(|(_, spare)| spare.capacity())?;
        Some(spares.swap_remove(at))
    })?
}

/// Keeps a buffer that is used no more, if there is room.
pub fn give(mut buffer: BytesMut) {
    buffer.clear();
    // Where its beginning was taken off, that is room again.
    let mut whole = LONGEST;
    while whole > buffer.capacity() && whole >= SHORTEST && !buffer.try_reclaim(whole) {
        whole /= 2;
    }
    if !(SHORTEST..=LONGEST).contains(&buffer.capacity()) {
        return;
    }
    with(|spares| {
        let kept: usize = spares.iter().map(BytesMut::capacity).sum();
        if kept + buffer.capacity() <= KEPT {
            spares.push(buffer);
        }
    });
}

/// The same for bytes, if nobody else refers to them.
pub fn give_bytes(bytes: Bytes) {
    if let Ok(buffer) = bytes.try_into_mut() {
        give(buffer);
    }
}

/// `None`: the thread ends.
fn with<T>(f: impl FnOnce(&mut Vec<BytesMut>) -> T) -> Option<T> {
    SPARES.try_with(|spares| f(&mut spares.borrow_mut())).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Buf;

    use super::*;

    #[test]
    fn a_buffer_is_used_again_in_its_whole_length_once_nobody_refers_to_it() {
        let mut buffer = BytesMut::with_capacity(100 << 10);
        buffer.resize(100 << 10, 7);
        let start = buffer.as_ptr();
        let bytes = buffer.freeze();
        let mut part = bytes.slice(50_000..);
        part.advance(10);
        give_bytes(bytes);
        assert!(take(20 << 10).is_none(), "a part of it is in use");
        give_bytes(part);
        assert!(take(101 << 10).is_none());
        let again = take(20 << 10).unwrap();
        assert_eq!((again.as_ptr(), again.len()), (start, 0));
        assert!(again.capacity() >= 64 << 10, "{}", again.capacity());
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_shortest_that_fits_is_taken() {
        for length in [1 << 10, 300 << 10] {
            give(BytesMut::with_capacity(length));
        }
        assert!(take(1).is_none(), "too short, too long");
        give(BytesMut::with_capacity(200 << 10));
        for _ in 0..200 {
            give(BytesMut::with_capacity(32 << 10));
        }
        assert_eq!(take(32 << 10).unwrap().capacity(), 32 << 10);
        assert_eq!(take(100 << 10).unwrap().capacity(), 200 << 10);
        let left = std::iter::from_fn(|| take(1)).map(|spare| spare.capacity()).sum::<usize>();
        assert!(left <= KEPT - (232 << 10), "{left}");
    }
}
