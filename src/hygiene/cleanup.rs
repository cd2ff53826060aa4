//! Selects the connections that `redbouncer cleanup` kills, and groups them for its listing. Pure.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::orphans;
use crate::command::glob;
use crate::session::Listed;
use crate::upstream::Instance;

/// Connections that are left alone unless they are asked for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Include {
    /// The server's replicas (flag `S`).
    Replicas,
    /// The server's own master (flag `M`).
    Masters,
    /// MONITOR (flag `O`).
    Monitors,
    /// Subscribers.
    Subscribers,
    /// Clients blocked in a command (flag `b`).
    Blocked,
    /// Whose flags the server does not show: it may be any of these.
    Unclear,
}

impl Include {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Replicas, Self::Masters, Self::Monitors, Self::Subscribers, Self::Blocked, Self::Unclear];

    /// The word on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Replicas => "replicas",
            Self::Masters => "masters",
            Self::Monitors => "monitors",
            Self::Subscribers => "subscribers",
            Self::Blocked => "blocked",
            Self::Unclear => "unclear",
        }
    }

    fn is(self, row: &Listed) -> bool {
        match self {
            Self::Replicas => row.flags.contains('S'),
            Self::Masters => row.flags.contains('M'),
            Self::Monitors => row.flags.contains('O'),
            Self::Subscribers => row.subscriptions > 0 || row.flags.contains('P'),
            Self::Blocked => row.flags.contains('b'),
            Self::Unclear => row.flags.is_empty(),
        }
    }
}

/// The selection: a connection must match every given filter. Without a filter, no connection is selected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Idle for at least this long.
    pub idle: Option<Duration>,
    /// Connected for at least this long.
    pub age: Option<Duration>,
    /// Whose name fits this pattern, as Redis has them.
    pub name: Option<String>,
    /// From there.
    pub addr: Option<IpNet>,
    /// Logged in as this user.
    pub user: Option<String>,
    /// Of dead instances of redbouncer.
    pub orphans: bool,
    /// These too, where they fit.
    pub include: Vec<Include>,
}

impl Wanted {
    /// Whether no filter is given.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self { include: self.include.clone(), ..Self::default() }
    }

    fn fits(&self, row: &Listed, is_orphan: bool) -> bool {
        self.idle.is_none_or(|idle| row.idle >= idle)
            && self.age.is_none_or(|age| row.age >= age)
            && self.name.as_ref().is_none_or(|pattern| is_called(row, pattern))
            && self.addr.is_none_or(|net| host(row).is_some_and(|ip| net.contains(&ip)))
            && self.user.as_ref().is_none_or(|user| *user == row.user)
            && (!self.orphans || is_orphan)
    }
}

/// Whether a connection's name matches `pattern`. Unlike a channel's, no name at all matches `*`.
fn is_called(row: &Listed, pattern: &str) -> bool {
    let is_any = pattern.bytes().all(|byte| byte == b'*');
    row.name.is_empty() && is_any || glob::matches(pattern.as_bytes(), row.name.as_bytes())
}

/// Why a connection that fits is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spared {
    /// A living redbouncer's.
    Live,
    /// One of these, and not asked for.
    Kind(Include),
}

/// The outcome for the connections of one listing.
#[derive(Clone, Debug, Default)]
pub struct Selection<'a> {
    /// To be taken away.
    pub chosen: Vec<&'a Listed>,
    /// How many fit and are left alone, by reason.
    pub spared: BTreeMap<Spared, usize>,
    /// The client ids of those that dead instances of redbouncer left.
    pub orphans: HashSet<u64>,
    /// Selected connections whose instance may be between two of its active connections. They are killed only if a
    /// listing one heartbeat later gives the same result.
    pub uncertain: HashSet<u64>,
}

impl Selection<'_> {
    /// Whether a second listing is needed before the selected connections may be killed.
    #[must_use]
    pub fn is_uncertain(&self) -> bool {
        self.chosen.iter().any(|row| self.uncertain.contains(&row.id))
    }

    /// Removes the connections that an earlier listing had not found orphaned.
    pub fn confirm(&mut self, earlier: &HashSet<u64>) {
        self.chosen.retain(|row| !self.uncertain.contains(&row.id) || earlier.contains(&row.id));
    }
}

/// Selects among `rows`, the whole of one CLIENT LIST. Never the row that `is_own` knows, never a connection of a living
/// redbouncer.
#[must_use]
pub fn select<'a>(
    rows: &'a [Listed],
    is_own: impl Fn(&Listed) -> bool,
    wanted: &Wanted,
    orphan_after: Duration,
) -> Selection<'a> {
    let found = orphans(rows, None, orphan_after);
    let mut selection = Selection {
        orphans: found.iter().map(|orphan| orphan.row.id).collect(),
        uncertain: found.iter().filter(|orphan| !orphan.certain).map(|orphan| orphan.row.id).collect(),
        ..Selection::default()
    };
    if wanted.is_nothing() {
        return selection;
    }
    for row in rows.iter().filter(|row| !is_own(row)) {
        let is_orphan = selection.orphans.contains(&row.id);
        if !wanted.fits(row, is_orphan) {
            continue;
        }
        let kind = Include::ALL.into_iter().find(|kind| kind.is(row) && !wanted.include.contains(kind));
        let spared = match kind {
            _ if Instance::of(&row.name).is_some() && !is_orphan => Some(Spared::Live),
            // No client waits for a blocked lease or a hub of a dead proxy.
            Some(Include::Blocked | Include::Subscribers | Include::Monitors | Include::Unclear)
                if is_orphan =>
            {
                None
            }
            Some(kind) => Some(Spared::Kind(kind)),
            None => None,
        };
        match spared {
            Some(why) => *selection.spared.entry(why).or_default() += 1,
            None => selection.chosen.push(row),
        }
    }
    selection
}

/// Connections that belong together: from one host, under one name, of one library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The host they come from, without the port.
    pub host: String,
    /// Their name; of redbouncer's connections the instance.
    pub name: String,
    /// Library and version, where the server knows them.
    pub library: String,
    /// How many.
    pub count: usize,
    /// How many of them are to be taken away.
    pub chosen: usize,
    /// How many of them a dead redbouncer left.
    pub orphans: usize,
    /// The oldest one's age.
    pub oldest: Duration,
    /// The longest idle one's idle time.
    pub idlest: Duration,
}

/// Groups `rows`: first those of which most are to be taken away, then the largest.
#[must_use]
pub fn groups(rows: &[Listed], selection: &Selection<'_>) -> Vec<Group> {
    let chosen: HashSet<u64> = selection.chosen.iter().map(|row| row.id).collect();
    let mut groups: BTreeMap<(String, String, String), Group> = BTreeMap::new();
    for row in rows {
        let host = host(row).map_or_else(|| without_port(&row.addr).to_owned(), |ip| ip.to_string());
        let name = match Instance::of(&row.name) {
            Some(instance) => instance.to_string().trim_end_matches(':').to_owned(),
            None => row.name.clone(),
        };
        let library = [row.lib_name.as_str(), row.lib_ver.as_str()].join(" ").trim().to_owned();
        let group = groups.entry((host.clone(), name.clone(), library.clone())).or_insert(Group {
            host,
            name,
            library,
            count: 0,
            chosen: 0,
            orphans: 0,
            oldest: Duration::ZERO,
            idlest: Duration::ZERO,
        });
        group.count += 1;
        group.chosen += usize::from(chosen.contains(&row.id));
        group.orphans += usize::from(selection.orphans.contains(&row.id));
        group.oldest = group.oldest.max(row.age);
        group.idlest = group.idlest.max(row.idle);
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse((group.chosen, group.count, group.idlest)));
    groups
}

/// The host of `addr=`; `None` for a Unix socket. IPv6 stands there with or without brackets.
fn host(row: &Listed) -> Option<IpAddr> {
    let host = without_port(&row.addr);
    host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn without_port(addr: &str) -> &str {
    addr.rsplit_once(':').map_or(addr, |(host, _)| host)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(60);

    fn row(id: u64, text: &str) -> Listed {
        Listed::parse(&format!("id={id} {text}")).unwrap()
    }

    fn rows() -> Vec<Listed> {
        vec![
            row(1, "addr=10.0.0.1:1 name= age=9 idle=0 flags=N user=default"),
            row(2, "addr=10.0.0.1:2 name=web age=999 idle=90 flags=N user=web lib-name=ioredis lib-ver=5.1"),
            row(3, "addr=10.0.1.9:3 name=web age=999 idle=90 flags=b user=web"),
            row(4, "addr=10.0.1.9:4 name= age=999 idle=900 flags=S user=default"),
            row(5, "addr=[2001:db8::5]:5 name= age=999 idle=900 flags=P sub=1 user=default"),
            row(6, "addr=/tmp/redis.sock:0 name= age=999 idle=900 flags=O user=default"),
            row(7, "addr=10.0.0.7:7 name=redbouncer:a:00000001:shared age=999 idle=5 flags=N user=default"),
            row(8, "addr=10.0.0.7:8 name=redbouncer:a:00000001:leased age=999 idle=900 flags=b user=default"),
            row(9, "addr=10.0.0.8:9 name=redbouncer:a:00000002:leased age=999 idle=900 flags=b user=default"),
        ]
    }

    fn chosen(wanted: &Wanted) -> Vec<u64> {
        select(&rows(), |row| row.id == 1, wanted, AFTER).chosen.iter().map(|row| row.id).collect()
    }

    #[test]
    fn nothing_is_chosen_unless_something_is_wanted() {
        assert_eq!(chosen(&Wanted::default()), Vec::<u64>::new());
        assert_eq!(
            chosen(&Wanted { include: Include::ALL.to_vec(), ..Wanted::default() }),
            Vec::<u64>::new()
        );
    }

    #[test]
    fn every_filter_has_to_fit() {
        let idle = Wanted { idle: Some(Duration::from_secs(60)), ..Wanted::default() };
        assert_eq!(chosen(&idle), [2, 9]);
        assert_eq!(chosen(&Wanted { name: Some("w?b".to_owned()), ..idle.clone() }), [2]);
        assert_eq!(chosen(&Wanted { user: Some("default".to_owned()), ..idle.clone() }), [9]);
        let addr = "10.0.0.0/28".parse().ok();
        assert_eq!(chosen(&Wanted { addr, ..idle.clone() }), [2, 9]);
        assert_eq!(chosen(&Wanted { age: Some(Duration::from_secs(1_000)), ..idle }), Vec::<u64>::new());
    }

    #[test]
    fn special_connections_are_taken_only_when_they_are_asked_for() {
        let idle = Wanted { idle: Some(Duration::from_secs(60)), ..Wanted::default() };
        let with = |include| chosen(&Wanted { include: vec![include], ..idle.clone() });
        assert_eq!(with(Include::Blocked), [2, 3, 9]);
        assert_eq!(with(Include::Replicas), [2, 4, 9]);
        assert_eq!(with(Include::Subscribers), [2, 5, 9]);
        assert_eq!(with(Include::Monitors), [2, 6, 9]);
        let all = Wanted { include: Include::ALL.to_vec(), ..idle };
        assert_eq!(chosen(&all), [2, 3, 4, 5, 6, 9], "never a living redbouncer's");
        let named = Wanted { name: Some("*".to_owned()), ..all };
        assert_eq!(chosen(&named), [2, 3, 4, 5, 6, 9], "no name is a name, too");
    }

    #[test]
    fn what_is_left_alone_is_counted_by_its_reason() {
        let idle = Wanted { idle: Some(Duration::from_secs(60)), ..Wanted::default() };
        let spared = select(&rows(), |row| row.id == 1, &idle, AFTER).spared;
        let kinds = [Include::Replicas, Include::Monitors, Include::Subscribers, Include::Blocked];
        let mut expected: BTreeMap<_, _> = kinds.map(|kind| (Spared::Kind(kind), 1)).into();
        expected.insert(Spared::Live, 1);
        assert_eq!(spared, expected);
    }

    /// A row without a field matches no filter on that field.
    #[test]
    fn what_a_server_does_not_show_is_no_reason_to_kill() {
        let rows =
            [row(1, "addr=10.0.0.1:1"), row(2, "addr=10.0.0.1:2 flags=N"), row(3, "flags=N age=9 idle=9")];
        let ids = |wanted: &Wanted| -> Vec<u64> {
            select(&rows, |_| false, wanted, AFTER).chosen.iter().map(|row| row.id).collect()
        };
        let second = Some(Duration::from_secs(1));
        assert_eq!(ids(&Wanted { idle: second, ..Wanted::default() }), [3]);
        assert_eq!(ids(&Wanted { age: second, ..Wanted::default() }), [3]);
        assert_eq!(ids(&Wanted { user: Some("default".to_owned()), ..Wanted::default() }), Vec::<u64>::new());
        let here = Wanted { addr: "10.0.0.0/8".parse().ok(), ..Wanted::default() };
        assert_eq!(ids(&here), [2], "without flags it may be a replica");
        assert_eq!(ids(&Wanted { include: vec![Include::Unclear], ..here }), [1, 2]);
    }

    #[test]
    fn ipv6_and_mapped_addresses_are_in_their_networks() {
        let rows = [
            row(1, "addr=[2001:db8::5]:5 flags=N"),
            row(2, "addr=2001:db8::6:5 flags=N"),
            row(3, "addr=[::ffff:10.0.0.9]:5 flags=N"),
            row(4, "addr=[fe80::1%eth0]:5 flags=N"),
        ];
        let ids = |net: &str| -> Vec<u64> {
            let wanted = Wanted { addr: net.parse().ok(), ..Wanted::default() };
            select(&rows, |_| false, &wanted, AFTER).chosen.iter().map(|row| row.id).collect()
        };
        assert_eq!(ids("2001:db8::/32"), [1, 2]);
        assert_eq!(ids("10.0.0.0/24"), [3]);
        let shown = groups(&rows, &Selection::default());
        assert!(shown.iter().any(|group| group.host == "[fe80::1%eth0]"), "{shown:?}");
    }

    #[test]
    fn orphans_are_those_of_dead_instances() {
        assert_eq!(chosen(&Wanted { orphans: true, ..Wanted::default() }), [9]);
    }

    #[test]
    fn an_instance_that_may_be_between_two_lanes_is_looked_at_twice() {
        let rows = [
            row(1, "name=redbouncer:a:00000001:leased age=999 idle=900 flags=b"),
            row(2, "name=redbouncer:b:00000002:leased age=999 idle=900 flags=b"),
            row(3, "name=redbouncer:c:00000003:shared age=999 idle=900 flags=N"),
        ];
        let wanted = Wanted { orphans: true, ..Wanted::default() };
        let mut selection = select(&rows, |_| false, &wanted, AFTER);
        assert!(selection.is_uncertain());
        selection.confirm(&HashSet::from([2]));
        let chosen: Vec<u64> = selection.chosen.iter().map(|row| row.id).collect();
        assert_eq!(chosen, [2, 3], "a lane that is silent for so long is certain");
        assert!(!select(&rows[2..], |_| false, &wanted, AFTER).is_uncertain());
    }

    #[test]
    fn groups_say_where_from_which_name_and_which_library() {
        let rows = rows();
        let wanted = Wanted { orphans: true, ..Wanted::default() };
        let groups = groups(&rows, &select(&rows, |_| false, &wanted, AFTER));
        let hosts: Vec<&str> = groups[..2].iter().map(|group| group.host.as_str()).collect();
        assert_eq!(hosts, ["10.0.0.8", "10.0.0.7"], "what is chosen comes first, then the largest");
        let live = &groups[1];
        assert_eq!((live.count, live.name.as_str()), (2, "redbouncer:a:00000001"));
        assert_eq!((live.oldest.as_secs(), live.idlest.as_secs(), live.orphans), (999, 900, 0));
        let web = groups.iter().find(|group| group.library == "ioredis 5.1").unwrap();
        assert_eq!((web.name.as_str(), web.count), ("web", 1));
        let dead = groups.iter().find(|group| group.host == "10.0.0.8").unwrap();
        assert_eq!((dead.orphans, dead.chosen), (1, 1));
        assert!(groups.iter().any(|group| group.host == "/tmp/redis.sock"));
        assert!(groups.iter().any(|group| group.host == "2001:db8::5"));
    }
}
