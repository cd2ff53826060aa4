//! Properties that hold for any input: the bodies of the fuzz targets in `fuzz/`, and of the short form in the unit tests.
//!
//! Each function takes a target's input and panics where a property does not hold. They are compiled for the tests and
//! under `cargo fuzz`, which sets `cfg(fuzzing)`, so a released library has none of them. The input is a program in
//! bytes ([`Input`]): whatever it holds means something, and a prefix of it means the same as before, so that the
//! fuzzer's changes and the minimiser's cuts stay close to what they began with.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a property that fails is a panic

mod config;
mod input;
mod lease;
mod lease_server;
mod proxy;
mod proxy_server;
mod resp;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use config::{url, users};
pub(crate) use input::Input;
pub use lease::lease;
pub use proxy::proxy;
pub use resp::{inline, replies, requests};

/// The waitlist of the blocking hub, before a small model of a server and before one that answers anything.
pub fn waitlist(data: &[u8]) {
    crate::hub::waitlist_property(data);
}

/// A property as a function of bytes.
pub type Property = fn(&[u8]);

/// Every target by the name of its corpus.
pub const TARGETS: [(&str, Property); 8] = [
    ("requests", requests),
    ("replies", replies),
    ("inline", inline),
    ("url", url),
    ("users", users),
    ("waitlist", waitlist),
    ("lease", lease),
    ("proxy", proxy),
];
