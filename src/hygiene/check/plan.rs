//! What is examined.

use std::time::Duration;

use crate::hygiene::HygieneOptions;
use crate::hygiene::fleet::FleetOptions;
use crate::upstream::UpstreamOptions;

/// How the server lists us while we look: no name of a proxy's connection, so that no rule takes it for one.
pub(super) const NAME: &str = "redbouncer-check";

/// What a proxy would be set to.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// How to reach the server.
    pub upstream: &'a UpstreamOptions,
    /// When connections count as orphans.
    pub hygiene: &'a HygieneOptions,
    /// `hygiene.name`: what a running proxy of this configuration calls itself.
    pub name: &'a str,
    /// `hygiene.heartbeat`
    pub heartbeat: Duration,
    /// `pool.max_connections`
    pub cap: usize,
    /// `[fleet]`
    pub fleet: &'a FleetOptions,
    /// Every client has to log in: then a proxy can do without credentials of its own.
    pub clients_log_in: bool,
}
