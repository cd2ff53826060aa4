//! What a client is owed and its socket has not taken: replies copied behind one another, published messages shared
//! with everybody else who gets them.

use std::collections::VecDeque;
use std::io;

use bytes::{Buf, Bytes, BytesMut};

/// An emptied buffer larger than this is given back.
const KEEP: usize = 4 << 10;

/// Unsent bytes, in order: first `chunks`, then `tail`.
#[derive(Debug, Default)]
pub(super) struct Out {
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
}

impl Out {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes unsent; shared ones count in full, as they would for the server's output buffer limits.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Appends a copy of `bytes`.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        self.tail.extend_from_slice(bytes);
    }

    /// Appends `bytes` without copying them.
    pub(super) fn share(&mut self, bytes: Bytes) {
        if !self.tail.is_empty() {
            self.chunks.push_back(self.tail.split().freeze());
        }
        self.len += bytes.len();
        self.chunks.push_back(bytes);
    }

    /// Writes what `write`, the socket, takes now; returns how much that was.
    ///
    /// # Errors
    /// As the socket: `WouldBlock` when it takes no more now.
    pub(super) fn write_by(&mut self, write: impl Fn(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        let written = match self.chunks.front_mut() {
            Some(chunk) => {
                let written = write(chunk)?;
                chunk.advance(written);
                if chunk.is_empty() {
                    self.chunks.pop_front();
                }
                written
            }
            None => {
                let written = write(&self.tail)?;
                self.tail.advance(written);
                written
            }
        };
        self.len -= written;
        Ok(written)
    }

    /// Gives idle memory back.
    pub(super) fn shrink(&mut self) {
        if self.tail.capacity() > KEEP {
            self.tail = BytesMut::new();
        } else {
            // `advance` leaves the buffer at its end: clearing lets it start again at the front of its memory.
            self.tail.clear();
        }
        if self.chunks.capacity() > 0 {
            self.chunks = VecDeque::new();
        }
    }

    /// Forgets everything: the client is gone.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
