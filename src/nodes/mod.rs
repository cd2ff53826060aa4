//! The nodes of a cluster: what all workers know of them, and the pool that one worker has for each.
//!
//! A node is a server of its own: it has a cap, a connector and a health of its own, and nothing is opened to it before a client
//! needs it. The map of the slots is kept by the main thread and read by all workers. One node is home: its pool is the one that
//! a worker has without a cluster, too, and serves what any node can answer.

mod ask;
mod pools;
mod registry;

pub use ask::{ask_for_slots, find_slots};
pub use pools::NodePools;
pub use registry::{NodeServer, Nodes};
