//! The Sentinels: whether each answers, and whom they name.

use super::plan::NAME;
use super::{Findings, Plan};
use crate::upstream::UpstreamOptions;
use crate::upstream::sentinel::{Found, MemberState, find};

/// Fewer cannot agree on a master when one of them is lost.
const ENOUGH: usize = 3;
const SUBJECT: &str = "sentinels";

/// The server that is to be looked at: that of the URL, or the one that the Sentinels name. `None`: they name none.
pub(super) async fn locate(plan: Plan<'_>, findings: &mut Findings) -> Option<UpstreamOptions> {
    let options = plan.upstream;
    let (Some(found), Some(service)) = (find(options, NAME).await, &options.service) else {
        return Some(options.clone());
    };
    each(&found, findings);
    let known = found.sentinels.len();
    let Some(naming) = found.master else {
        findings.failure(
            SUBJECT,
            &format!("they do not agree on a master of {}: more than half of {known} must name the same one", service.name),
            "check the name of the service (redis-cli -p 26379 SENTINEL MASTERS), and that this host can reach the Sentinels",
        );
        return None;
    };
    let (votes, master, at) = (naming.votes, &naming.master, options.reachable(&naming.master));
    let mapped = if at == master { String::new() } else { format!(", reached at {at}") };
    let text = format!("{votes} of {known} name {master} as the master of {}{mapped}", service.name);
    if naming.is_by_majority() {
        findings.ok(SUBJECT, &text);
    } else {
        findings.warning(
            SUBJECT,
            &text,
            "fewer than half answer: redbouncer does not leave a working master on their word",
        );
    }
    if known < ENOUGH {
        findings.warning(
            SUBJECT,
            &format!("there are {known}"),
            "run three or more: with fewer, no majority is left when one is lost, and no failover happens",
        );
    }
    Some(options.at(&naming.master))
}

/// Those that do not answer.
fn each(found: &Found, findings: &mut Findings) {
    for row in &found.sentinels {
        let why = row.reason.as_deref().unwrap_or("no answer");
        let advice = match row.state {
            MemberState::Connected => continue,
            MemberState::Connecting | MemberState::Unreachable => {
                "check that it is running, and that this host can reach it; map announced addresses that are not reachable in upstream.addresses"
            }
            MemberState::Refused => "check upstream.sentinel.username, .password and .tls",
            MemberState::UnknownService => {
                "the name after the / in upstream.url must be that of `sentinel monitor`"
            }
        };
        findings.warning(SUBJECT, &format!("{}: {why}", row.address), advice);
    }
}
