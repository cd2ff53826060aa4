//! Who is connected, and whether there is room for us.

use super::{Findings, Plan, fleet};
use crate::hygiene::{Visit, VisitError, info_field, orphans};
use crate::session::Listed;
use crate::upstream::Instance;

/// A proxy does its work with so many: control, a lane, one hub and a lease.
const LEAST: usize = 4;

/// The idle ones by age, and the orphans. Returns the listing, where there is one.
pub(super) async fn connections(
    plan: Plan<'_>,
    visit: &mut Visit,
    findings: &mut Findings,
) -> Result<Option<Vec<Listed>>, VisitError> {
    let rows = match visit.list_to_judge().await {
        Ok(rows) => rows,
        Err(VisitError::Refused { words, .. }) => {
            findings.warning(
                "connections",
                &format!("CLIENT LIST is refused: {words}"),
                "orphans of dead proxies cannot be found: allow CLIENT LIST and CLIENT KILL (ACL: +client|list \
                 +client|kill), or leave them to the server's own keepalive",
            );
            return Ok(None);
        }
        Err(slow @ VisitError::Slow { .. }) => {
            findings.warning("connections", &slow.to_string(), "see SLOWLOG GET, and run the check again");
            return Ok(None);
        }
        Err(
            broken @ (VisitError::Broken { .. }
            | VisitError::Dial(_)
            | VisitError::Tls(_)
            | VisitError::Cluster),
        ) => {
            return Err(broken);
        }
    };
    let (ages, long) = ages(&rows);
    let advice = if long > 0 { "redbouncer cleanup --idle 10m lists the long idle connections" } else { "" };
    findings.note("idle", &ages, advice);
    match orphans(&rows, None, plan.hygiene.orphan_after).len() {
        0 => findings.ok("orphans", "no connection of a dead redbouncer"),
        count => findings.warning(
            "orphans",
            &format!("{count} connections belong to dead instances of redbouncer"),
            "redbouncer cleanup --orphans lists them, and with --yes kills them; a running redbouncer kills them too",
        ),
    }
    Ok(Some(rows))
}

/// How many connections have been idle for how long, in words, and how many for more than ten minutes.
fn ages(rows: &[Listed]) -> (String, usize) {
    let between =
        |least: u64, most: u64| rows.iter().filter(|row| (least..most).contains(&row.idle.as_secs())).count();
    let long = between(600, u64::MAX);
    let text = format!(
        "connections by idle time: under 10 s {}, under 1 m {}, under 10 m {}, under 1 h {}, longer {}",
        between(0, 10),
        between(10, 60),
        between(60, 600),
        between(600, 3_600),
        between(3_600, u64::MAX),
    );
    (text, long)
}

/// How many connections the server allows, how many there are, and whether ours fit in.
pub(super) async fn places(
    plan: Plan<'_>,
    rows: Option<&[Listed]>,
    visit: &mut Visit,
    findings: &mut Findings,
) -> Result<(), VisitError> {
    let info = visit.ask(&["INFO", "clients"]).await?;
    // INFO leaves replicas out, which count under the limit, too.
    let counted: Option<usize> = info_field(&info, "connected_clients").and_then(|count| count.parse().ok());
    let (Some(limit), Some(taken)) = (visit.limit().await?, counted.max(rows.map(<[Listed]>::len))) else {
        findings.warning(
            "places",
            "the server does not report its connection limit",
            "check the limit of your plan: 2 × pool.max_connections × the number of proxies, plus all other clients, must be \
             below it",
        );
        return Ok(());
    };
    // The check itself will be gone.
    let taken = taken.saturating_sub(1);
    let of_name = |row: &&Listed| Instance::of(&row.name).is_some_and(|instance| instance.name == plan.name);
    let ours = rows.map_or(0, |rows| rows.iter().filter(of_name).count());
    room(plan, limit, taken, ours.min(taken), findings);
    if plan.fleet.is_on() {
        fleet::total(plan.fleet, rows, limit, taken, findings);
    }
    Ok(())
}

/// `ours` of the `taken` connections are of a proxy called as this one is to be: they count as its own.
fn room(plan: Plan<'_>, limit: usize, taken: usize, ours: usize, findings: &mut Findings) {
    let cap = plan.cap;
    let free = limit.saturating_sub(taken - ours);
    let share = match 100 * cap / limit.max(1) {
        0 => "less than 1".to_owned(),
        percent => percent.to_string(),
    };
    let own = if ours > 0 {
        format!(" ({ours} by redbouncer instances named {})", plan.name)
    } else {
        String::new()
    };
    let text = format!(
        "{taken} of {limit} connections are in use{own}; pool.max_connections {cap} is {share} % of the limit"
    );
    if free < LEAST.min(cap) {
        findings.failure(
            "places",
            &text,
            "too few connections are left: redbouncer cleanup lists the connections and can kill idle ones",
        );
    } else if free < cap {
        findings.warning(
            "places",
            &text,
            &format!(
                "only {free} are left for redbouncer, and the server refuses further ones. redbouncer cleanup lists the \
                 connections"
            ),
        );
    } else if 2 * cap > limit {
        findings.warning(
            "places",
            &text,
            &format!(
                "during a deployment the old and the new proxy overlap: 2 × {cap} × the number of proxies, plus all other \
                 clients, must be below {limit}. Lower pool.max_connections, or raise the limit"
            ),
        );
    } else {
        findings.ok("places", &text);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Finding, Level};
    use super::*;
    use crate::hygiene::HygieneOptions;
    use crate::hygiene::fleet::FleetOptions;
    use crate::upstream::UpstreamOptions;

    fn judged(limit: usize, taken: usize, ours: usize) -> (Level, String) {
        let (upstream, hygiene) = (UpstreamOptions::default(), HygieneOptions::default());
        let plan = Plan {
            upstream: &upstream,
            hygiene: &hygiene,
            name: "web",
            heartbeat: Duration::from_secs(15),
            cap: 8,
            fleet: &FleetOptions::default(),
            clients_log_in: false,
        };
        let mut findings = Findings::default();
        room(plan, limit, taken, ours, &mut findings);
        let Finding { level, text, advice, .. } =
            findings.iter().next().cloned().unwrap_or_else(|| unreachable!());
        (level, format!("{text} {advice}"))
    }

    #[test]
    fn room_is_judged_by_what_is_left_and_by_the_overlap_of_a_deployment() {
        assert_eq!(judged(100, 50, 0).0, Level::Ok);
        assert_eq!(judged(16, 3, 0).0, Level::Ok);
        assert_eq!(judged(15, 3, 0).0, Level::Warning);
        assert!(judged(15, 3, 0).1.contains("2 × 8"));
        assert_eq!(judged(20, 13, 0).0, Level::Warning);
        assert!(judged(20, 13, 0).1.contains("only 7 are left"));
        assert_eq!(judged(20, 17, 0).0, Level::Failure);
        assert_eq!(judged(20, 25, 0).0, Level::Failure);
    }

    #[test]
    fn a_running_proxy_of_the_same_name_takes_no_room_from_itself() {
        assert_eq!(judged(20, 17, 8).0, Level::Ok);
        assert!(judged(20, 17, 8).1.contains("8 by redbouncer instances named web"));
    }

    #[test]
    fn every_connection_is_in_one_age() {
        let rows: Vec<Listed> = [0, 9, 10, 59, 60, 599, 600, 3_599, 3_600, 900_000]
            .iter()
            .filter_map(|idle| Listed::parse(&format!("id=1 idle={idle}")))
            .collect();
        let text = "connections by idle time: under 10 s 2, under 1 m 2, under 10 m 2, under 1 h 2, longer 2";
        assert_eq!(ages(&rows), (text.to_owned(), 4));
    }
}
