//! How one process takes the place of another: the Unix socket between them, and what they say on it.
//!
//! The new process connects, says which version of the protocol it speaks, gets a part of the upstream connections, then the
//! listening sockets. Until it has confirmed that it serves, the old one can go on as if nothing had happened. What either of
//! them does with what it is told is the business of `proxy`.

mod error;
mod link;
mod message;
mod options;
mod socket;

pub use error::TakeoverError;
pub use link::Link;
pub use message::{CAPABILITIES, Greeting, Message, VERSION};
pub use options::TakeoverOptions;
pub use socket::{TakeoverSocket, connect};

use std::time::Duration;

/// How long either process waits for the other one's next step.
pub const STEP: Duration = Duration::from_secs(10);
