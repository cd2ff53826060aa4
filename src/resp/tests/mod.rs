//! Tests of the framing: what Redis 7.0.15 was seen to do, what the types promise, and random frames against
//! `redis-protocol`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod properties;
mod replies;
mod requests;
mod views;

use super::{RequestError, RequestLimits, RequestScanner, RequestStep};

/// What an unauthenticated client may send.
fn unauthenticated() -> RequestLimits {
    RequestLimits { authenticated: false, ..RequestLimits::default() }
}

/// One look at `bytes` by a new scanner.
fn scan(bytes: &[u8]) -> Result<RequestStep, RequestError> {
    RequestScanner::default().step(bytes, &RequestLimits::default())
}
