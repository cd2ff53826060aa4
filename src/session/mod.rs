//! What one client has done so far, and where its next command goes.
//!
//! Pure: no socket, no task, no clock. [`Session::route`] decides from the session and the command alone, and
//! [`answer`](answers) makes the replies that need no server, so both can be tested by the million.

pub mod answers;
mod block;
mod caching;
mod endpoint;
mod failed;
mod hello;
mod kill;
mod lease;
mod listed;
mod listen;
mod placement;
mod policy;
mod queued;
mod route;
mod row;
mod state;
mod text;
pub mod tracking;
mod transaction;

pub use answers::{LoadedModule, ServerFacts};
pub use block::{Block, find_block};
pub use endpoint::Endpoint;
pub use failed::{ABORTED, UNGUARDED};
pub use hello::{Credentials, Hello};
pub use kill::{Filter, killing_nobody, listing_somebody, unblocking_nobody};
pub use lease::{Beside, Expect, LeaseState, Plan, Received};
pub use listed::Listed;
pub use listen::{Listen, Subscriptions};
pub use placement::{Described, Placement};
pub use policy::{Policy, Right, Rights};
pub use queued::Member;
pub use route::{ALWAYS_TAKEN, Pin, Route};
pub use row::{ClientRow, Flags, RowFormat, UserRow};
pub use state::{FIRST_CLIENT_ID, Failed, Library, ReplyMode, Session, User};
pub use tracking::{Reads, Redirect, Tracking};
pub use transaction::Transaction;
