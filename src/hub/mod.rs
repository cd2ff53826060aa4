//! Hubs: one upstream connection that serves many sessions which wait or listen.
//!
//! A blocked client and a subscriber hold nothing upstream of their own. Hubs live on the first worker.

mod options;

pub use options::{BlockingOptions, PubSubOptions, Resubscribe};
