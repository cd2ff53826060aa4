//! Redis Cluster, as far as it can be decided without a connection: which slot a key belongs to, which node owns it, where a
//! request goes, and what an error of a node proves.
//!
//! Nothing in this room knows a socket, a task or a clock. The rules are those of the cluster specification
//! (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>) and of redis `cluster.c`.

mod cursor;
mod gather;
mod info;
mod map;
mod migrating;
mod place;
mod redirect;
mod slot;
mod unit;
mod vote;

pub use cursor::{MOST_MASTERS, scan_of, scanned};
pub use gather::{Gather, Part, gathered, parts};
pub use info::as_standalone;
pub use map::{SLOTS, SlotMap};
pub use migrating::is_migrating;
pub use place::{CROSS_SLOT, Place, about_one_node, place};
pub use redirect::Redirect;
pub use slot::{slot_of, tag_of};
pub use unit::{BlockPlace, block_place, block_redirect, commands};
pub use vote::elect;
