//! The cluster: whether its slots are known and served, and whether each of its nodes can be reached.

use std::sync::Arc;

use super::plan::NAME;
use super::{Findings, Plan};
use crate::cluster::{SLOTS, SlotMap};
use crate::nodes::{ask_for_slots, find_slots};
use crate::upstream::{Connector, HostPort, Identity, UpstreamOptions};

const SUBJECT: &str = "cluster";

/// The node that is looked at beyond this: the owner of the first slot. `None`: no node tells of slots.
pub(super) async fn locate(plan: Plan<'_>, findings: &mut Findings) -> Option<UpstreamOptions> {
    let options = plan.upstream;
    let identity = Arc::new(Identity::of_url(options));
    let map = match find_slots(options, Arc::clone(&identity), NAME).await {
        Ok(map) => map,
        Err(failures) => {
            for (node, why) in failures {
                let advice = "check that it is a running cluster node, and that this host can reach it";
                findings.failure(SUBJECT, &format!("{node}: {why}"), advice);
            }
            return None;
        }
    };
    coverage(&map, findings);
    for node in map.masters() {
        if let Err(why) = reach(options, node, &map, Arc::clone(&identity)).await {
            let advice = "check that this host can reach it; map announced addresses that are not reachable in upstream.addresses";
            findings.failure(SUBJECT, &format!("{node}: {why}"), advice);
        }
    }
    map.masters().first().map(|node| options.at(node))
}

fn coverage(map: &SlotMap, findings: &mut Findings) {
    let (masters, uncovered) = (map.masters().len(), usize::from(SLOTS) - map.covered());
    if uncovered == 0 {
        findings.ok(
            SUBJECT,
            &format!("{masters} masters serve all slots; the following lines are about the first"),
        );
    } else {
        let advice = "commands for their keys fail: redis-cli --cluster check";
        findings.warning(SUBJECT, &format!("{uncovered} of {SLOTS} slots have no node"), advice);
    }
}

/// Whether `node` can be reached, and says the same.
async fn reach(
    options: &UpstreamOptions,
    node: &HostPort,
    map: &SlotMap,
    identity: Arc<Identity>,
) -> Result<(), String> {
    let at = options.at(node);
    let connector = tokio::task::spawn_blocking(move || Connector::quietly(&at)).await;
    let connector = connector.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let own = ask_for_slots(&connector, node, identity, NAME.to_owned()).await?;
    if own == *map { Ok(()) } else { Err("it has a different slot map".to_owned()) }
}
