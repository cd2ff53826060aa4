//! Redis Sentinel: who is the master of a service, and who says so.
//!
//! [`Council`] decides (pure), one `link` for each Sentinel carries its bytes, [`Sentinels`] keeps both. A Sentinel that was cut
//! off for a while names a master of the past, and one that hears of a failover first names one that may not have been
//! promoted yet: so the majority decides, by the newest configuration, and [`verify`] asks the server itself.

mod answer;
mod council;
mod find;
mod link;
mod sentinels;
mod verify;

pub use council::{Council, MemberRow, MemberState, Naming, Verdict};
pub use find::{Found, find, located};
pub use sentinels::Sentinels;
pub use verify::{NotTheMaster, verify};
