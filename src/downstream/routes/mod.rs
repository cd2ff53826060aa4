//! Where a client's commands go: over a lane at once (`pipeline`), or by `dispatch` to what has to wait for something.

mod accept;
mod batch;
mod blocking;
mod counted;
mod dispatch;
mod held;
mod lease;
mod listings;
mod login;
mod misplaced;
mod moving;
mod nodes;
mod pending;
mod pipeline;
mod progress;
mod proxy_acts;
mod proxy_commands;
mod proxy_config;
mod proxy_topology;
mod queued;
mod rights;
mod slow_command;
mod subscriptions;
mod task;
#[cfg(feature = "otlp")]
mod traced;
mod tracking;
mod unserved;

pub(in crate::downstream) use task::ClientTask;
