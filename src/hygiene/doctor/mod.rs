//! `redbouncer check`: can a proxy serve from here, and how well would it? One finding after the other, each with what
//! to do about it, as far as the server lets us look.

mod finding;
mod lookout;
mod rights;
mod way;

pub use finding::{Finding, Findings, Level};

use super::{HygieneOptions, Visit};
use crate::upstream::UpstreamOptions;

/// How the server lists us while we look: no name of a proxy's connection, so that no rule takes it for one.
const NAME: &str = "redbouncer-check";

/// What a proxy would be set to.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// How to reach the server.
    pub upstream: &'a UpstreamOptions,
    /// When connections count as orphans.
    pub hygiene: &'a HygieneOptions,
    /// `pool.max_connections`
    pub cap: usize,
}

/// Looks at the way to the server and at the server itself. Changes nothing there but its own connection's state.
pub async fn examine(plan: Plan<'_>) -> Findings {
    let mut findings = Findings::default();
    let Some(mut visit) = way::travel(plan.upstream, &mut findings).await else { return findings };
    // A connection that breaks off here is a finding of its own; what was found before stands.
    if let Err(broken) = look(plan, &mut visit, &mut findings).await {
        findings.failure(
            "connection",
            &broken.to_string(),
            "the connection worked and then broke off: look at the server's log, at firewalls and at timeouts between",
        );
    }
    findings
}

async fn look(plan: Plan<'_>, visit: &mut Visit, findings: &mut Findings) -> Result<(), super::VisitError> {
    lookout::round_trip(visit, findings).await?;
    lookout::flavour(visit, findings).await?;
    lookout::places(plan, visit, findings).await?;
    lookout::settings(visit, findings).await?;
    lookout::connections(plan, visit, findings).await?;
    rights::probe(plan.upstream, visit, findings).await
}
