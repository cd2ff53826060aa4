//! Requests on their way to a server, kept behind that until their replies are in.
//!
//! What has been written is not copied for that: it stays in the buffer that it was written from, which begins anew when
//! every reply is in. Where that never happens, buffers follow one another, and each goes when the last request that has
//! begun in it is answered. Requests are found again by their place, the number of requests before them; so the path of a
//! request that is answered has nothing to note.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::limits::RequestLimits;
use super::request::{RequestScanner, RequestStep};
use super::spares;

/// The length of a chunk of copied bytes, about.
const CHUNK: usize = 64 << 10;
/// Up to this length copied bytes take no whole chunk.
const GROWS: usize = 4 << 10;
/// Requests shorter than this are copied: the entry for a reference would take as much again.
const SHORT: usize = 1 << 10;
/// Above this many bytes the oldest that have been written are kept no longer.
const KEPT: usize = 1 << 20;

/// Requests in order: first `chunks`, then `tail`.
#[derive(Debug, Default)]
pub struct Outgoing {
    chunks: VecDeque<Chunk>,
    /// Which of them is being written; behind the last one: the tail.
    writing: usize,
    /// How much of it is written.
    written: usize,
    tail: BytesMut,
    tail_begins: Begins,
    unwritten: usize,
    /// The length of all chunks.
    chunked: usize,
}

#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    is_copy: bool,
    begins: Begins,
    /// The place of the first request of which nothing lies here.
    end: u64,
}

/// Where the first request begins that begins in a chunk, or in what follows it.
#[derive(Clone, Copy, Debug, Default)]
struct Begins {
    /// Bytes before it, of those before.
    at: usize,
    place: u64,
}

impl Outgoing {
    /// Whether all has been written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.unwritten == 0
    }

    /// Bytes that have not been written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.unwritten
    }

    /// Appends a copy of `requests`: `count` of them, the first of which is at `place`.
    pub fn append(&mut self, requests: &[u8], place: u64, count: u32) {
        self.unwritten += requests.len();
        if self.tail.capacity() - self.tail.len() >= requests.len() {
            self.tail.extend_from_slice(requests);
        } else {
            self.append_in_chunks(requests, place + u64::from(count));
        }
    }

    #[cold]
    fn append_in_chunks(&mut self, mut bytes: &[u8], end: u64) {
        while !bytes.is_empty() {
            if self.tail.len() >= CHUNK {
                self.end_chunk(end, bytes.len());
            }
            let (now, rest) = bytes.split_at(bytes.len().min(CHUNK - self.tail.len()));
            self.make_room(now.len());
            self.tail.extend_from_slice(now);
            bytes = rest;
        }
    }

    /// What is not short takes a whole chunk: growing step by step gives back a buffer with each.
    fn make_room(&mut self, more: usize) {
        if self.tail.capacity() - self.tail.len() < more
            && (self.tail.len() + more > GROWS || !self.chunks.is_empty())
        {
            let mut chunk = spares::take(CHUNK).unwrap_or_else(|| BytesMut::with_capacity(CHUNK));
            chunk.extend_from_slice(&self.tail);
            spares::give(std::mem::replace(&mut self.tail, chunk));
        }
    }

    /// The same for `requests` that are not copied if they are long.
    pub fn share(&mut self, requests: Bytes, place: u64, count: u32) {
        if requests.len() < SHORT {
            return self.append(&requests, place, count);
        }
        if !self.tail.is_empty() {
            self.end_chunk(place, 0);
        }
        let end = place + u64::from(count);
        self.unwritten += requests.len();
        self.chunked += requests.len();
        self.chunks.push_back(Chunk {
            bytes: requests,
            is_copy: false,
            begins: Begins { at: 0, place },
            end,
        });
        self.tail_begins = Begins { at: 0, place: end };
    }

    /// What follows goes into another chunk: first `rest` bytes of requests before `end`.
    fn end_chunk(&mut self, end: u64, rest: usize) {
        let bytes = std::mem::take(&mut self.tail).freeze();
        self.chunked += bytes.len();
        self.chunks.push_back(Chunk { bytes, is_copy: true, begins: self.tail_begins, end });
        self.tail_begins = Begins { at: rest, place: end };
        // All of it may be written already, and be kept.
        self.skip_written();
    }

    /// Goes on to the next chunk when one is written, so that there is something in [`Buf::chunk`] while anything remains.
    fn skip_written(&mut self) -> bool {
        let is_written = self.chunks.get(self.writing).is_some_and(|chunk| self.written >= chunk.bytes.len());
        if is_written {
            self.writing += 1;
            self.written = 0;
        }
        is_written
    }

    fn drop_first(&mut self) {
        let Some(Chunk { bytes, is_copy, .. }) = self.chunks.pop_front() else { return };
        self.writing -= 1;
        self.chunked -= bytes.len();
        if is_copy {
            spares::give_bytes(bytes);
        }
    }

    /// Everything is written, and answered; the next request is at `place`. A buffer larger than `keep` is given back.
    pub fn settle(&mut self, place: u64, keep: usize) {
        self.tail.clear();
        self.written = 0;
        self.tail_begins = Begins { at: 0, place };
        if !self.chunks.is_empty() || self.tail.capacity() > keep {
            self.writing = self.chunks.len();
            while !self.chunks.is_empty() {
                self.drop_first();
            }
            self.chunks = VecDeque::new();
            if self.tail.capacity() > keep {
                spares::give(std::mem::take(&mut self.tail));
            }
        }
    }

    /// All requests before `place` are answered.
    pub fn are_answered(&mut self, place: u64) {
        while self.writing > 0 && self.chunks.front().is_some_and(|chunk| chunk.end <= place) {
            self.drop_first();
        }
    }

    /// The requests from `place` on, as far as they are kept.
    #[must_use]
    pub fn kept_from(&self, place: u64) -> Kept {
        let begins = self.chunks.iter().map(|chunk| chunk.begins).chain([self.tail_begins]);
        let from = begins.enumerate().take_while(|(_, begins)| begins.place <= place).last();
        let Some((first, begins)) = from else { return Kept::default() };
        let mut bytes = BytesMut::new();
        for chunk in self.chunks.iter().skip(first) {
            bytes.extend_from_slice(&chunk.bytes);
        }
        bytes.extend_from_slice(&self.tail);
        let mut bytes = bytes.freeze();
        bytes.advance(begins.at.min(bytes.len()));
        let mut kept = Kept { bytes, scanner: RequestScanner::default() };
        if kept.take((place - begins.place) as usize).is_none() && place > begins.place {
            return Kept::default();
        }
        kept
    }

    /// Drops all data, because the connection is lost.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Buf for Outgoing {
    fn remaining(&self) -> usize {
        self.unwritten
    }

    fn chunk(&self) -> &[u8] {
        let writing = if self.writing < self.chunks.len() {
            &self.chunks[self.writing].bytes[..]
        } else {
            &self.tail[..]
        };
        writing.get(self.written..).unwrap_or_default()
    }

    fn advance(&mut self, written: usize) {
        self.unwritten -= written;
        self.written += written;
        if self.skip_written() {
            while self.writing > 0 && self.chunked > KEPT {
                self.drop_first();
            }
        }
    }
}

/// Requests that are kept, from some place on.
#[derive(Debug, Default)]
pub struct Kept {
    bytes: Bytes,
    scanner: RequestScanner,
}

impl Kept {
    /// Whether all has been taken out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes the next `count` requests out, as one piece. `None`: they are not all here.
    pub fn take(&mut self, count: usize) -> Option<Bytes> {
        let limits =
            RequestLimits { max_bulk: u64::MAX, max_request: usize::MAX, ..RequestLimits::default() };
        let mut len = 0;
        for _ in 0..count {
            match self.scanner.step(&self.bytes[len..], &limits) {
                Ok(RequestStep::Request(shape)) => len += shape.len,
                Ok(RequestStep::Nothing { .. } | RequestStep::Incomplete { .. }) | Err(_) => {
                    *self = Self::default();
                    return None;
                }
            }
        }
        (len > 0).then(|| self.bytes.split_to(len))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::resp::encode;

    fn request(number: u64, len: usize) -> Bytes {
        encode::one_command(&[b"SET", number.to_string().as_bytes(), &vec![b'v'; len]])
    }

    /// Writes `len` bytes, fewer if there are not so many.
    fn write(outgoing: &mut Outgoing, mut len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while len > 0 && outgoing.has_remaining() {
            let now = outgoing.chunk().len().min(len);
            assert!(now > 0, "a write of nothing counts as a connection that is closed");
            all.extend_from_slice(&outgoing.chunk()[..now]);
            outgoing.advance(now);
            len -= now;
        }
        all
    }

    #[test]
    fn what_is_written_is_what_was_appended_and_is_found_again_until_it_is_answered() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut outgoing = Outgoing::default();
        let mut requests = Vec::new();
        let (mut expected, mut written) = (Vec::new(), Vec::new());
        let mut answered = 0_u64;
        for _ in 0..3_000 {
            let place = requests.len() as u64;
            let count = 1 + random.u32(..4);
            let len = [3, 40, 900, 5_000, 70_000][random.usize(..5).min(random.usize(..5))];
            let batch: Vec<Bytes> = (0..count).map(|at| request(place + u64::from(at), len)).collect();
            let bytes = Bytes::from(batch.concat());
            expected.extend_from_slice(&bytes);
            requests.extend(batch);
            if random.bool() {
                outgoing.append(&bytes, place, count);
            } else {
                outgoing.share(bytes, place, count);
            }
            let all = random.u8(..5) == 0;
            let len = if all { usize::MAX } else { random.usize(..20_000) };
            written.extend(write(&mut outgoing, len));
            assert_eq!(outgoing.is_empty(), expected.len() == written.len());
            if all && random.bool() {
                answered = requests.len() as u64;
                outgoing.settle(answered, CHUNK);
            } else if outgoing.is_empty() {
                answered += random.u64(..=requests.len() as u64 - answered);
                outgoing.are_answered(answered);
            }
            if outgoing.chunked <= KEPT / 2 {
                let from = answered + random.u64(..=requests.len() as u64 - answered);
                let mut kept = outgoing.kept_from(from);
                for request in &requests[from as usize..] {
                    assert_eq!(kept.take(1).unwrap(), request, "from {from} of {}", requests.len());
                }
                assert!(kept.take(1).is_none());
            }
        }
        written.extend(write(&mut outgoing, usize::MAX));
        assert!(written == expected);
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_latest_is_found() {
        let mut outgoing = Outgoing::default();
        for place in 0..200 {
            outgoing.share(request(place, 20_000), place, 1);
            let _ = write(&mut outgoing, usize::MAX);
            assert!(outgoing.chunked <= KEPT, "{}", outgoing.chunked);
        }
        assert!(outgoing.kept_from(0).take(1).is_none());
        assert_eq!(outgoing.kept_from(199).take(1).unwrap(), request(199, 20_000));
        outgoing.share(request(200, 2 * KEPT), 200, 1);
        assert_eq!(outgoing.kept_from(200).take(1).unwrap().len(), request(200, 2 * KEPT).len());
        let _ = write(&mut outgoing, usize::MAX);
        assert!(outgoing.kept_from(200).take(1).is_none(), "one so long is not kept");
        outgoing.append(&request(201, 3), 201, 1);
        assert_eq!(outgoing.kept_from(201).take(1).unwrap(), request(201, 3));
    }
}
