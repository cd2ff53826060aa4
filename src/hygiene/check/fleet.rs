//! Whether what all instances share fits in the server's limit, and is enough for all of them.

use super::Findings;
use crate::hygiene::fleet::{FleetOptions, members, used};
use crate::session::Listed;

/// `taken` of `limit` connections are there, `rows` of them listed.
pub(super) fn total(
    fleet: &FleetOptions,
    rows: Option<&[Listed]>,
    limit: usize,
    taken: usize,
    findings: &mut Findings,
) {
    let FleetOptions { total, minimum, .. } = *fleet;
    let Some(rows) = rows else {
        findings.warning(
            "fleet",
            &format!("fleet.total_connections {total} cannot be shared without CLIENT LIST"),
            &format!("each instance uses fleet.minimum ({minimum}): allow CLIENT LIST and CLIENT SETNAME (ACL: +client|list +client|setname)"),
        );
        return;
    };
    let members = members(rows);
    let ours: usize = members.iter().map(|member| member.rows).sum();
    let others = taken.saturating_sub(ours);
    let text = format!(
        "fleet.total_connections {total} of {limit} connections of the server; {} instances use {} of it, other clients have {others}",
        members.len(),
        used(&members),
    );
    if total + others > limit {
        findings.warning(
            "fleet",
            &text,
            "all instances and the other clients together exceed the limit of the server: lower fleet.total_connections",
        );
    } else if (members.len() + 1) * minimum > fleet.claimable() {
        findings.warning(
            "fleet",
            &text,
            &format!(
                "one more instance would leave less than fleet.minimum ({minimum}) for each: raise fleet.total_connections, or \
                 run fewer instances"
            ),
        );
    } else {
        findings.ok("fleet", &text);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn judged(total: usize, limit: usize, instances: usize, others: usize) -> Option<Level> {
        let fleet = FleetOptions { total, ..FleetOptions::default() };
        let name = |at: usize| format!("id={at} name=redbouncer:web:{at:08x}:control:4");
        let rows: Vec<Listed> = (1..=instances).filter_map(|at| Listed::parse(&name(at))).collect();
        let mut findings = Findings::default();
        self::total(&fleet, Some(&rows), limit, instances + others, &mut findings);
        findings.iter().next().map(|finding| finding.level)
    }

    #[test]
    fn the_total_has_to_fit_beside_other_clients_and_to_be_enough_for_one_more_instance() {
        assert_eq!(judged(100, 120, 5, 20), Some(Level::Ok));
        assert_eq!(judged(100, 120, 5, 21), Some(Level::Warning), "it does not fit");
        assert_eq!(judged(26, 1_000, 5, 0), Some(Level::Ok));
        assert_eq!(judged(25, 1_000, 5, 0), Some(Level::Warning), "24 for six, two of 25 are nobody's");
    }

    #[test]
    fn without_a_listing_it_cannot_be_shared() {
        let mut findings = Findings::default();
        total(&FleetOptions { total: 40, ..FleetOptions::default() }, None, 100, 3, &mut findings);
        assert_eq!(findings.iter().next().map(|finding| finding.level), Some(Level::Warning));
    }
}
