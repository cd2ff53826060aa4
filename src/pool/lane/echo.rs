//! The PING by which a lane finds out that the server has miscounted its replies.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::Lane;
use super::slot::{Gathered, Slot};
use crate::resp::{self, encode};

/// After this many commands an echo is asked for before its time.
const ECHO_AFTER: u32 = 10_000;

impl Lane {
    /// Asks for an echo of a word that nobody else asks for, which shows that replies are still counted right.
    pub(in crate::pool) fn ask_for_an_echo(&self, now: Instant) {
        let number = RandomState::new().hash_one(now);
        let nonce = Bytes::from(format!("redbouncer:{number:016x}"));
        let mut ping = BytesMut::new();
        encode::command(&mut ping, &[b"PING", &nonce]);
        self.append(|written, place| written.append(&ping, place, 1), 1, now);
        self.echo_asked.set(now);
        self.since_echo.set(0);
        self.echo.replace(Some(nonce.clone()));
        self.fifo.borrow_mut().push_back(Slot::Whole {
            owner: None,
            left: 1,
            frames: Vec::new(),
            partial: BytesMut::new(),
            gathered: Gathered::default(),
            since: now,
            then: None,
            nonce: Some(nonce),
            is_block: false,
        });
    }

    /// Whether `reply`, which is for another slot, is the echo that is outstanding.
    pub(super) fn is_echo(&self, reply: &[u8], slot: &Slot) -> bool {
        let echo = self.echo.borrow();
        echo.as_ref().is_some_and(|word| {
            resp::bulk(reply) == Some(word) && !matches!(slot, Slot::Whole { nonce: Some(_), .. })
        })
    }

    /// Whether `reply`, the beginning of a reply that is for another slot, may turn out to be the echo that is outstanding.
    pub(super) fn is_begun_echo(&self, reply: &[u8], slot: &Slot) -> bool {
        let echo = self.echo.borrow();
        echo.as_ref().is_some_and(|word| {
            let mut frame = BytesMut::new();
            encode::bulk(&mut frame, word);
            frame.starts_with(reply) && !matches!(slot, Slot::Whole { nonce: Some(_), .. })
        })
    }

    /// Whether the next echo is due: the lane has been silent for `limit`, or has carried commands for as long, or very
    /// many.
    pub(in crate::pool) fn wants_an_echo(&self, limit: Duration, now: Instant) -> bool {
        let carried = self.since_echo.get();
        let is_long_ago = now.saturating_duration_since(self.echo_asked.get()) >= limit;
        self.is_silent(limit, now) || carried >= ECHO_AFTER || carried > 0 && is_long_ago
    }
}
