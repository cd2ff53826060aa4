//! Bytes on their way to a socket that does not take them now: short ones copied behind one another, long ones by
//! reference.
//!
//! A copy of a long request or reply would double what is held for a client. Copied bytes lie in chunks of bounded
//! length, so that what has been sent is given back while the rest waits.

use std::collections::VecDeque;
use std::io;

use bytes::{Buf, Bytes, BytesMut};

use super::spares;

/// The length of a chunk of copied bytes, about.
const CHUNK: usize = 64 << 10;
/// Up to this length copied bytes take no whole chunk.
const GROWS: usize = 4 << 10;
/// Bytes shorter than this are copied: the entry for a reference would take as much again.
const SHORT: usize = 1 << 10;

/// Unsent bytes, in order: first `chunks`, then `tail`.
#[derive(Debug, Default)]
pub struct Unsent {
    chunks: VecDeque<Chunk>,
    tail: BytesMut,
    len: usize,
    /// How many of them are copies.
    copied: usize,
}

#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    is_copy: bool,
}

impl Unsent {
    /// Whether all has been sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes unsent; shared ones count in full, as they would for the server's output buffer limits.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes unsent that were copied here.
    #[must_use]
    pub fn copied(&self) -> usize {
        self.copied
    }

    /// Appends a copy of `bytes`.
    pub fn append(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len();
        self.copied += bytes.len();
        while !bytes.is_empty() {
            if self.tail.len() >= CHUNK {
                self.end_chunk();
            }
            let (now, rest) = bytes.split_at(bytes.len().min(CHUNK - self.tail.len()));
            self.make_room(now.len());
            self.tail.extend_from_slice(now);
            bytes = rest;
        }
    }

    /// What is not short takes a whole chunk: growing step by step gives back a buffer with each.
    fn make_room(&mut self, more: usize) {
        let len = self.tail.len() + more;
        // Room that `advance` has left at the front is taken first.
        if self.tail.try_reclaim(more) {
            return;
        }
        if len > GROWS || !self.chunks.is_empty() {
            let mut chunk = spares::take(CHUNK).unwrap_or_else(|| BytesMut::with_capacity(CHUNK));
            chunk.extend_from_slice(&self.tail);
            spares::give(std::mem::replace(&mut self.tail, chunk));
        }
    }

    /// Appends `bytes`; long ones are not copied.
    pub fn share(&mut self, bytes: Bytes) {
        if bytes.len() < SHORT {
            return self.append(&bytes);
        }
        self.end_chunk();
        self.len += bytes.len();
        self.chunks.push_back(Chunk { bytes, is_copy: false });
    }

    fn end_chunk(&mut self) {
        if !self.tail.is_empty() {
            let bytes = std::mem::take(&mut self.tail).freeze();
            self.chunks.push_back(Chunk { bytes, is_copy: true });
        }
    }

    /// The bytes to be sent next: some, unless all has been sent.
    #[must_use]
    pub fn front(&self) -> &[u8] {
        self.chunks.front().map_or(&self.tail, |chunk| &chunk.bytes)
    }

    /// `sent` bytes of [`Self::front`] have been sent.
    pub fn advance(&mut self, sent: usize) {
        self.len -= sent;
        match self.chunks.front_mut() {
            Some(chunk) => {
                chunk.bytes.advance(sent);
                self.copied -= if chunk.is_copy { sent } else { 0 };
                if chunk.bytes.is_empty() {
                    self.end_front();
                }
            }
            None => {
                self.tail.advance(sent);
                self.copied -= sent;
            }
        }
    }

    /// The first chunk has been sent.
    fn end_front(&mut self) {
        if let Some(Chunk { bytes, is_copy: true }) = self.chunks.pop_front() {
            spares::give_bytes(bytes);
        }
    }

    /// Removes the oldest chunk.
    pub fn pop(&mut self) -> Option<Bytes> {
        self.end_chunk();
        let chunk = self.chunks.pop_front()?;
        self.len -= chunk.bytes.len();
        self.copied -= if chunk.is_copy { chunk.bytes.len() } else { 0 };
        Some(chunk.bytes)
    }

    /// Writes what `write`, the socket, takes now; returns how much that was.
    ///
    /// # Errors
    /// As the socket: `WouldBlock` when it takes no more now.
    pub fn write_by(&mut self, write: impl FnOnce(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        let written = write(self.front())?;
        self.advance(written);
        Ok(written)
    }

    /// Gives idle memory back, when all has been sent: a buffer larger than `keep`.
    pub fn shrink(&mut self, keep: usize) {
        self.tail.clear();
        // `advance` has left the buffer at its end, where it has no capacity: what was sent is room again.
        if self.tail.try_reclaim(keep + 1) {
            spares::give(std::mem::take(&mut self.tail));
        }
        if self.chunks.capacity() > 0 {
            self.chunks = VecDeque::new();
        }
    }

    /// Drops all data, because the connection is lost.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Buf for Unsent {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.front()
    }

    fn advance(&mut self, sent: usize) {
        Unsent::advance(self, sent);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn drained(mut unsent: Unsent, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !unsent.is_empty() {
            let took = unsent
                .write_by(|bytes| {
                    let took = bytes.len().min(step);
                    all.extend_from_slice(&bytes[..took]);
                    Ok(took)
                })
                .unwrap();
            assert!(took > 0);
        }
        assert_eq!((unsent.len(), unsent.copied()), (0, 0));
        all
    }

    #[test]
    fn bytes_leave_in_the_order_they_came_in() {
        for step in [1, 7, 5_000, usize::MAX] {
            let (mut unsent, mut expected) = (Unsent::default(), Vec::new());
            for number in 0..40_u8 {
                let long = vec![number; usize::from(number) * 100];
                unsent.append(&[number, 1]);
                expected.extend_from_slice(&[number, 1]);
                expected.extend_from_slice(&long);
                unsent.share(long.into());
            }
            assert_eq!(unsent.len(), expected.len());
            assert!(drained(unsent, step) == expected, "{step}");
        }
    }

    #[test]
    fn only_copies_count_as_copied_and_short_bytes_are_copied() {
        let mut unsent = Unsent::default();
        unsent.append(&[0; 10]);
        unsent.share(Bytes::from(vec![0; 20]));
        unsent.share(Bytes::from(vec![0; 5_000]));
        unsent.append(&[0; 5]);
        assert_eq!((unsent.len(), unsent.copied()), (5_035, 35));
        unsent.advance(30);
        unsent.advance(4_999);
        assert_eq!((unsent.len(), unsent.copied()), (6, 5));
    }

    #[test]
    fn what_has_been_sent_is_given_back_while_the_rest_waits() {
        let mut unsent = Unsent::default();
        for _ in 0..1_000 {
            unsent.append(&[0; 1_000]);
        }
        let chunks = unsent.chunks.len();
        assert!(chunks > 10, "{chunks}");
        let all = unsent.len();
        while unsent.len() > all / 2 {
            unsent.advance(unsent.front().len());
        }
        assert!(unsent.chunks.len() <= chunks / 2 + 1, "{}", unsent.chunks.len());
    }

    #[test]
    fn a_chunk_that_has_been_sent_is_used_again() {
        let (mut unsent, mut other) = (Unsent::default(), Unsent::default());
        unsent.append(&[0; CHUNK + 1]);
        let first = unsent.front().as_ptr();
        unsent.advance(CHUNK);
        other.append(&[0; CHUNK]);
        assert_eq!(other.front().as_ptr(), first);
        other.advance(CHUNK);
        other.shrink(CHUNK - 1);
        assert!(!other.tail.try_reclaim(1), "an idle one keeps nothing");
        unsent.append(&[0; CHUNK]);
        unsent.advance(CHUNK);
        assert_eq!(unsent.front().as_ptr(), first);
    }

    #[test]
    fn room_that_has_been_sent_is_taken_before_a_new_chunk() {
        let mut unsent = Unsent::default();
        unsent.append(&[0; CHUNK - 10]);
        let first = unsent.front().as_ptr();
        unsent.advance(CHUNK - 20);
        unsent.append(&[0; CHUNK / 2]);
        assert_eq!((unsent.front().as_ptr(), unsent.len()), (first, CHUNK / 2 + 10));
    }
}
