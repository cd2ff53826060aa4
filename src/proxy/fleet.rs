//! What the proxy shows of the instances that share connections with it.

use serde_json::{Value, json};

pub(super) use crate::hygiene::fleet::FleetTerms;
use crate::hygiene::fleet::{FleetOptions, Member, used};
use crate::pool::Budget;
use crate::telemetry::publish_gauge;
use crate::upstream::Instance;

/// The cap becomes a part of what all instances share, where they do.
pub(super) fn join(options: &FleetOptions, budget: &Budget) {
    if options.is_on() {
        budget.share_total(options.total);
    }
}

/// The gauges; none where nothing is shared.
pub(super) fn publish(terms: &FleetTerms, budget: &Budget) {
    let Some(fleet) = budget.fleet() else { return };
    let picture = terms.board.picture();
    publish_gauge("redbouncer_fleet_claim", &[], picture.claim);
    let share = if fleet.is_certain { fleet.share.saturating_sub(1) } else { 0 };
    publish_gauge("redbouncer_fleet_share", &[], share);
    publish_gauge("redbouncer_fleet_instances", &[], picture.members.len());
}

/// As `/status` shows it; `null` where nothing is shared.
pub(super) fn status(terms: &FleetTerms, me: &Instance) -> Value {
    if !terms.options.is_on() {
        return Value::Null;
    }
    let picture = terms.board.picture();
    json!({
        "state": picture.state.label(),
        "total": terms.options.total,
        "headroom": terms.options.headroom,
        "minimum": terms.options.minimum,
        "used": used(&picture.members),
        "claim": picture.claim,
        "wanted": picture.wanted,
        "fair": picture.fair,
        "instances": picture.members.iter().map(|member| instance(member, me)).collect::<Vec<_>>(),
    })
}

fn instance(member: &Member, me: &Instance) -> Value {
    json!({
        "name": member.instance.name,
        "boot": member.instance.boot,
        "address": member.address,
        "claim": member.registered.map(|registered| registered.claim),
        "wants": member.wants(),
        "leaves": member.leaves(),
        "rows": member.rows,
        "self": member.instance == *me,
    })
}
