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
            &format!("they do not agree on a master of {}: more than half of {known} must name the same", service.name),
            "is the service called so there (redis-cli -p 26379 SENTINEL MASTERS), and can this host reach the Sentinels?",
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
            "fewer than half answer: a working master is not left on their word",
        );
    }
    if known < ENOUGH {
        findings.warning(
            SUBJECT,
            &format!("there are {known}"),
            "run three or more: of fewer, no majority is left when one of them is lost, and there is no failover",
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
                "is it running, and can this host reach it? An address that is announced and not reachable: upstream.addresses"
            }
            MemberState::Refused => "upstream.sentinel.username, .password and .tls are for the Sentinels",
            MemberState::UnknownService => {
                "the name behind the / of upstream.url is that of `sentinel monitor` there"
            }
        };
        findings.warning(SUBJECT, &format!("{}: {why}", row.address), advice);
    }
}
