//! The commands of a client whose server is a cluster.
//!
//! `accept` sends what can be sent at once, `answers` looks at the replies, and `resend` sends again what a reply has proved not to
//! have run, on the node that it belongs to.

mod accept;
mod answers;
mod lease;
mod parts;
mod resend;
