//! Which of the server's connections nobody owns any more: a pure judgement over the rows of one CLIENT LIST.
//!
//! Ages and idle times are the server's own, so clocks need not agree.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::session::Listed;
use crate::telemetry::Reap;
use crate::upstream::Instance;

/// A connection that nobody owns any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan<'a> {
    /// Its row.
    pub row: &'a Listed,
    /// Why it is one.
    pub why: Reap,
}

/// The instance that judges, and what it knows of its own connections.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// Who it is.
    pub instance: &'a Instance,
    /// The client ids of its connections, before the listing was asked for or after it came. `None` where the server
    /// does not tell them: then none of its own is judged.
    pub ids: Option<&'a HashSet<u64>>,
    /// A connection younger than this may still be on its way into `ids`.
    pub youth: Duration,
}

/// Finds the orphans among `rows`, the whole of one CLIENT LIST.
///
/// - Of another instance: all its connections, when none of them was active for `after`. One active connection shows
///   that the instance lives, and then the idle ones are its own business (a blocked lease may be silent for hours).
/// - Of the judging instance itself: those that it does not hold any more.
/// - Nothing else: a connection without one of our names is never judged.
#[must_use]
pub fn orphans<'a>(rows: &'a [Listed], own: Option<Own<'_>>, after: Duration) -> Vec<Orphan<'a>> {
    let mut instances: HashMap<Instance, Vec<&Listed>> = HashMap::new();
    for row in rows {
        if let Some(instance) = Instance::of(&row.name) {
            instances.entry(instance).or_default().push(row);
        }
    }
    let mut found = Vec::new();
    for (instance, rows) in instances {
        match own.filter(|own| *own.instance == instance) {
            Some(Own { ids: None, .. }) => {}
            Some(Own { ids: Some(ids), youth, .. }) => {
                let left = rows.into_iter().filter(|row| !ids.contains(&row.id) && row.age >= youth);
                found.extend(left.map(|row| Orphan { row, why: Reap::LeftBehind }));
            }
            None if rows.iter().all(|row| row.idle >= after) => {
                found.extend(rows.into_iter().map(|row| Orphan { row, why: Reap::DeadInstance }));
            }
            None => {}
        }
    }
    found.sort_by_key(|orphan| orphan.row.id);
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(60);

    fn row(id: u64, name: &str, age: u64, idle: u64) -> Listed {
        Listed::parse(&format!("id={id} addr=10.0.0.1:{id} name={name} age={age} idle={idle} flags=N"))
            .unwrap()
    }

    fn ids(rows: &[Listed], own: Option<Own<'_>>) -> Vec<(u64, Reap)> {
        orphans(rows, own, AFTER).iter().map(|orphan| (orphan.row.id, orphan.why)).collect()
    }

    #[test]
    fn an_instance_is_dead_when_none_of_its_connections_was_active() {
        let rows = [
            row(1, "redbouncer:a:00000001:shared", 100, 60),
            row(2, "redbouncer:a:00000001:leased", 90, 90),
            row(3, "redbouncer:b:00000002:shared", 100, 59),
            row(4, "redbouncer:b:00000002:leased", 9_000, 9_000),
        ];
        assert_eq!(ids(&rows, None), [(1, Reap::DeadInstance), (2, Reap::DeadInstance)]);
    }

    #[test]
    fn runs_under_one_name_are_judged_apart() {
        let rows =
            [row(1, "redbouncer:a:00000001:shared", 100, 70), row(2, "redbouncer:a:00000002:shared", 100, 0)];
        assert_eq!(ids(&rows, None), [(1, Reap::DeadInstance)]);
    }

    #[test]
    fn what_does_not_bear_our_name_is_never_judged() {
        let rows = [
            row(1, "", 9_000, 9_000),
            row(2, "redbouncer", 9_000, 9_000),
            row(3, "redbouncer:a:shared", 9_000, 9_000),
            row(4, "bull:cXVldWU=", 9_000, 9_000),
        ];
        assert_eq!(ids(&rows, None), []);
    }

    #[test]
    fn of_the_own_connections_those_are_left_behind_that_are_not_held_any_more() {
        let instance = Instance { name: "a".to_owned(), boot: "00000001".to_owned() };
        let rows = [
            row(1, "redbouncer:a:00000001:shared", 9_000, 9_000),
            row(2, "redbouncer:a:00000001:leased", 30, 25),
            row(3, "redbouncer:a:00000001:leased", 3, 3),
        ];
        let held = HashSet::from([1]);
        let own = Own { instance: &instance, ids: Some(&held), youth: Duration::from_secs(20) };
        assert_eq!(ids(&rows, Some(own)), [(2, Reap::LeftBehind)]);
        assert_eq!(ids(&rows, Some(Own { ids: None, ..own })), []);
    }
}
