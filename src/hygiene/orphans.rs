//! Finds orphaned connections in the rows of one CLIENT LIST. Pure.
//!
//! Ages and idle times are the server's own, so clocks need not agree.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::pool::Kind;
use crate::session::Listed;
use crate::telemetry::Reap;
use crate::upstream::Instance;

/// An orphaned connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan<'a> {
    /// Its row.
    pub row: &'a Listed,
    /// Why it is one.
    pub why: Reap,
    /// Its instance has a lane or a control connection, which would have shown life. Without one it may be between two
    /// of them, and has to be found dead again before anything is done about it.
    pub certain: bool,
}

/// The instance that searches for orphans, and its own connections.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// The instance.
    pub instance: &'a Instance,
    /// The client ids of its connections, before the listing was asked for or after it came. `None` where the server
    /// does not tell them: then none of its own is judged.
    pub ids: Option<&'a HashSet<u64>>,
    /// A connection younger than this may still be on its way into `ids`.
    pub youth: Duration,
}

/// Finds the orphans among `rows`, a complete CLIENT LIST.
///
/// - Of another instance: all its connections, if it has shown no activity for `after`. Otherwise none: its silent
///   connections may be in use (a blocked lease may be silent for hours).
/// - Of this instance: those that it no longer holds.
/// - No other connection: one without a name of ours is never an orphan.
#[must_use]
pub fn orphans<'a>(rows: &'a [Listed], own: Option<Own<'_>>, after: Duration) -> Vec<Orphan<'a>> {
    let mut instances: HashMap<Instance, Vec<(&Listed, &str)>> = HashMap::new();
    for row in rows {
        if let Some((instance, kind)) = Instance::and_kind_of(&row.name) {
            instances.entry(instance).or_default().push((row, kind));
        }
    }
    let mut found = Vec::new();
    for (instance, rows) in instances {
        match own.filter(|own| *own.instance == instance) {
            Some(Own { ids: None, .. }) => {}
            Some(Own { ids: Some(ids), youth, .. }) => {
                let left = rows.into_iter().filter(|(row, _)| !ids.contains(&row.id) && row.age >= youth);
                found.extend(left.map(|(row, _)| Orphan { row, why: Reap::LeftBehind, certain: true }));
            }
            None => {
                let (silence, certain) = silence(&rows);
                let dead = rows.into_iter().filter(|_| silence >= after);
                found.extend(dead.map(|(row, _)| Orphan { row, why: Reap::DeadInstance, certain }));
            }
        }
    }
    found.sort_by_key(|orphan| orphan.row.id);
    found
}

/// For how long an instance with these connections has shown no life, and whether it has one that would have.
///
/// `idle=` begins anew when the server *writes*, too, and it writes to dead subscribers, to monitors, to watchers of keys
/// and to blocked calls as long as the kernel takes it. To a lane and to the control connection it writes nothing but
/// replies, and an instance keeps one of them active. So these decide; where there are none, any connection does.
fn silence(rows: &[(&Listed, &str)]) -> (Duration, bool) {
    let decides = |kind: &str| [Kind::Lane, Kind::Control].iter().any(|known| known.label() == kind);
    let deciding = rows.iter().filter(|(_, kind)| decides(kind)).map(|(row, _)| row.idle).min();
    let any = rows.iter().map(|(row, _)| row.idle).min();
    (deciding.or(any).unwrap_or_default(), deciding.is_some())
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

    fn found(rows: &[Listed], own: Option<Own<'_>>) -> Vec<(u64, Reap)> {
        orphans(rows, own, AFTER).iter().map(|orphan| (orphan.row.id, orphan.why)).collect()
    }

    fn ids(rows: &[Listed]) -> Vec<u64> {
        found(rows, None).into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn an_instance_is_dead_when_none_of_its_connections_was_active() {
        let rows = [
            row(1, "redbouncer:a:00000001:shared", 100, 60),
            row(2, "redbouncer:a:00000001:leased", 90, 90),
            row(3, "redbouncer:b:00000002:shared", 100, 59),
            row(4, "redbouncer:b:00000002:leased", 9_000, 9_000),
        ];
        assert_eq!(found(&rows, None), [(1, Reap::DeadInstance), (2, Reap::DeadInstance)]);
        assert!(orphans(&rows, None, AFTER).iter().all(|orphan| orphan.certain));
    }

    #[test]
    fn silent_leases_are_the_business_of_an_instance_whose_control_connection_is_active() {
        let rows = [
            row(1, "redbouncer:a:00000001:leased", 9_000, 9_000),
            row(2, "redbouncer:a:00000001:blocking", 9_000, 9_000),
            row(3, "redbouncer:a:00000001:control", 9_000, 14),
            // The control connection of an instance that shares a total has a fifth part in its name.
            row(4, "redbouncer:b:00000002:leased", 9_000, 9_000),
            row(5, "redbouncer:b:00000002:control:6+", 9_000, 14),
        ];
        assert!(ids(&rows).is_empty());
        let dead = [
            row(4, "redbouncer:b:00000002:leased", 9_000, 1),
            row(5, "redbouncer:b:00000002:control:6+", 9_000, 60),
        ];
        assert_eq!(ids(&dead), [4, 5]);
        assert!(orphans(&dead, None, AFTER).iter().all(|orphan| orphan.certain));
    }

    #[test]
    fn what_the_server_writes_to_a_dead_subscriber_keeps_nobody_alive() {
        let rows = [
            row(1, "redbouncer:a:00000001:pubsub", 9_000, 0),
            row(2, "redbouncer:a:00000001:blocking", 9_000, 0),
            row(3, "redbouncer:a:00000001:leased", 9_000, 0),
            row(4, "redbouncer:a:00000001:shared", 9_000, 60),
        ];
        assert_eq!(ids(&rows), [1, 2, 3, 4]);
    }

    #[test]
    fn without_a_lane_and_without_control_any_activity_is_life() {
        let rows = [
            row(1, "redbouncer:a:00000001:pubsub", 9_000, 3),
            row(2, "redbouncer:a:00000001:leased", 9_000, 9_000),
            row(3, "redbouncer:b:00000002:leased", 9_000, 9_000),
        ];
        assert_eq!(ids(&rows), [3]);
        assert!(!orphans(&rows, None, AFTER)[0].certain, "it may be between two lanes");
    }

    #[test]
    fn runs_under_one_name_are_judged_apart() {
        let rows =
            [row(1, "redbouncer:a:00000001:shared", 100, 70), row(2, "redbouncer:a:00000002:shared", 100, 0)];
        assert_eq!(ids(&rows), [1]);
    }

    #[test]
    fn what_does_not_bear_our_name_is_never_judged() {
        let names = [
            "",
            "redbouncer",
            "redbouncer:a:shared",
            "redbouncer:a:0000000g:shared",
            "redbouncer:a:00000001:",
            "redbouncer:a:00000001:shared:x",
            "myredbouncer:a:00000001:shared",
            "bull:cXVldWU=",
        ];
        let rows: Vec<_> = (1..).zip(names).map(|(id, name)| row(id, name, 9_000, 9_000)).collect();
        assert!(ids(&rows).is_empty());
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
        assert_eq!(found(&rows, Some(own)), [(2, Reap::LeftBehind)]);
        let nothing_is_dialled = Own { youth: Duration::ZERO, ..own };
        assert_eq!(found(&rows, Some(nothing_is_dialled)), [(2, Reap::LeftBehind), (3, Reap::LeftBehind)]);
        assert_eq!(found(&rows, Some(Own { ids: None, ..own })), []);
    }

    /// Listings as servers of each kind write them: a live instance, a dead one with a subscriber that is still written
    /// to, a worker of an application, a replica.
    #[test]
    fn the_rows_of_every_kind_of_server_are_judged_alike() {
        // The fields of redis-server 6.2.14, 7.0.15 and valkey-server 8.1.8; then those alone that the documents of every
        // version and provider have, Redis Cloud's among them.
        let forms = [
            "id={id} addr=10.0.0.1:{id} laddr=10.0.0.9:6379 fd=8 name={name} age={age} idle={idle} flags={flags} db=0 sub={sub} psub=0 multi=-1 qbuf=0 qbuf-free=0 argv-mem=0 obl=0 oll=0 omem=0 tot-mem=17048 events=r cmd={cmd} user=default redir=-1",
            "id={id} addr=10.0.0.1:{id} laddr=10.0.0.9:6379 fd=8 name={name} age={age} idle={idle} flags={flags} db=0 sub={sub} psub=0 ssub=0 multi=-1 qbuf=0 qbuf-free=20474 argv-mem=0 multi-mem=0 rbs=1024 rbp=0 obl=0 oll=0 omem=0 tot-mem=22272 events=r cmd={cmd} user=default redir=-1 resp=2",
            "id={id} addr=10.0.0.1:{id} laddr=10.0.0.9:6379 fd=10 name={name} age={age} idle={idle} flags={flags} capa= db=0 sub={sub} psub=0 ssub=0 multi=-1 watch=0 qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=1032 rbp=0 obl=0 oll=0 omem=0 tot-mem=1552 events=r cmd={cmd} user=default redir=-1 resp=2 lib-name= lib-ver= tot-net-in=20 tot-net-out=5 tot-cmds=1",
            "id={id} addr=10.0.0.1:{id} fd=25 name={name} age={age} idle={idle} flags={flags} db=0 sub={sub} psub=0 multi=-1 qbuf=0 qbuf-free=0 obl=0 oll=0 omem=0 events=r cmd={cmd}",
        ];
        let clients = [
            (5, "redbouncer:web-1:0123abcd:shared", 700, 3, "N", 0, "ping"),
            (6, "redbouncer:web-1:0123abcd:leased", 690, 688, "b", 0, "blpop"),
            (7, "redbouncer:web-2:89abcdef:control", 900, 61, "N", 0, "ping"),
            (8, "redbouncer:web-2:89abcdef:pubsub", 900, 0, "P", 4, "subscribe"),
            (9, "bull:worker", 5_000, 4_000, "b", 0, "bzpopmin"),
            (10, "", 86_400, 1, "S", 0, "replconf"),
        ];
        for form in forms {
            let mut text = String::new();
            for (id, name, age, idle, flags, sub, cmd) in clients {
                let mut line = form.replace("{name}", name).replace("{flags}", flags).replace("{cmd}", cmd);
                for (field, value) in [("{id}", id), ("{age}", age), ("{idle}", idle), ("{sub}", sub)] {
                    line = line.replace(field, &value.to_string());
                }
                text += &line;
                text += "\n";
            }
            let rows = Listed::parse_all(text.as_bytes());
            assert_eq!(rows.len(), clients.len());
            assert_eq!(ids(&rows), [7, 8], "{form}");
        }
    }
}
