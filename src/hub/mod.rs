//! Hubs: one upstream connection that serves many sessions which wait or listen.
//!
//! A blocked client and a subscriber hold nothing upstream of their own. Each worker has hubs of its own, one for each user
//! who needs one; only what PUBLISH is corrected by ([`Audience`]) is common to all workers.

mod blocking;
mod driver;
mod give_back;
mod hub_row;
mod options;
mod pubsub;

#[cfg(any(test, fuzzing))]
pub(crate) use blocking::waitlist_property;
pub use blocking::{Arrival, BlockingHubs, End, Seat, Unblock, Waiting, Withdrawn};
pub use give_back::{GiveBack, fate};
pub use hub_row::HubRow;
pub use options::{BlockingOptions, PubSubOptions, Resubscribe};
pub use pubsub::{Asking, Audience, DIVIDER, Listener, Message, PubSubHubs, Station};
