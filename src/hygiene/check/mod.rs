//! `redbouncer check`: can a proxy serve from here, and how well would it? One finding after the other, each with what
//! to do about it, as far as the server lets us look.

mod capacity;
mod certificate;
mod cluster;
mod dial;
mod dial_advice;
mod finding;
mod flavour;
mod fleet;
mod permissions;
mod plan;
mod sentinels;
mod server;

pub use finding::{Finding, Findings, Level};
pub use plan::Plan;

use super::{Visit, VisitError};

/// Looks at the way to the server and at the server itself. Changes nothing there but its own connection's state.
pub async fn examine(plan: Plan<'_>) -> Findings {
    let mut findings = Findings::default();
    let located = match plan.upstream.is_cluster() {
        true => cluster::locate(plan, &mut findings).await,
        false => sentinels::locate(plan, &mut findings).await,
    };
    let Some(upstream) = located else { return findings };
    let plan = Plan { upstream: &upstream, ..plan };
    let Some(mut visit) = dial::travel(plan, &mut findings).await else { return findings };
    // A connection that breaks off here is a finding of its own; what was found before stands.
    if let Err(broken) = look(plan, &mut visit, &mut findings).await {
        findings.failure(
            "connection",
            &broken.to_string(),
            "the connection was lost: check the server's log, firewalls and timeouts on the way",
        );
    }
    findings
}

/// Looks at the certificate that clients are shown, DER, our own first.
pub fn examine_own_certificate(file: &[Vec<u8>], findings: &mut Findings) {
    certificate::of_ours(file, findings);
}

async fn look(plan: Plan<'_>, visit: &mut Visit, findings: &mut Findings) -> Result<(), VisitError> {
    if !server::round_trip(visit, findings).await? {
        return Ok(());
    }
    server::server(visit, findings).await?;
    let rows = capacity::connections(plan, visit, findings).await?;
    capacity::places(plan, rows.as_deref(), visit, findings).await?;
    server::settings(plan, visit, findings).await?;
    permissions::probe(plan.upstream, visit, findings).await
}
