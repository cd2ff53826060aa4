//! `redbouncer cleanup`: shows who is connected to the server, and takes away what is wanted away.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::config::{self, Config};
use crate::hygiene::cleanup::{Group, Include, Selection, Spared, Wanted, groups, select};
use crate::hygiene::{Visit, VisitError};
use crate::session::Listed;

/// How the server lists us: no name of a proxy's connection, so no rule takes it for one.
const NAME: &str = "redbouncer-cleanup";
/// The table is read on a terminal.
const WIDTH: usize = 80;

/// What to take away. Everything that is given has to fit; with nothing given, connections are only shown.
#[derive(Args)]
pub(super) struct Arguments {
    /// Idle for at least this long (30s, 5m, 1h)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    idle: Option<Duration>,
    /// Connected for at least this long
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    age: Option<Duration>,
    /// Whose CLIENT SETNAME fits this pattern (web-*)
    #[arg(long, value_name = "GLOB")]
    name: Option<String>,
    /// From this address or network (10.0.0.7, 10.0.0.0/24)
    #[arg(long, value_name = "CIDR", value_parser = network)]
    addr: Option<IpNet>,
    /// Logged in as this user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Left by a redbouncer that is dead
    #[arg(long)]
    orphans: bool,
    /// These too, which are left alone otherwise
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    include: Vec<Kind>,
    /// Kill what fits; without it nothing is killed
    #[arg(long)]
    yes: bool,
    /// Print JSON instead of a listing
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Replicas,
    Masters,
    Monitors,
    Subscribers,
    Blocked,
}

impl From<Kind> for Include {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Replicas => Self::Replicas,
            Kind::Masters => Self::Masters,
            Kind::Monitors => Self::Monitors,
            Kind::Subscribers => Self::Subscribers,
            Kind::Blocked => Self::Blocked,
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    config::duration(text).ok_or_else(|| "a number and ms, s, m, h or d, such as 60s".to_owned())
}

/// A network, or one address.
fn network(text: &str) -> Result<IpNet, String> {
    let one = || text.parse().ok().map(|ip: std::net::IpAddr| IpNet::from(ip.to_canonical()));
    text.parse().ok().or_else(one).ok_or_else(|| "an address or a network, such as 10.0.0.0/24".to_owned())
}

/// What was found and done.
struct Outcome {
    before: usize,
    limit: Option<usize>,
    /// With `--yes`: how many were killed, and how many connections there are now.
    killed: Option<(usize, usize)>,
}

/// Visits the server and returns what is to be printed.
///
/// # Errors
/// The server cannot be reached or refuses; nothing more is killed then.
pub(super) async fn run(config: &Config, arguments: Arguments) -> Result<String, VisitError> {
    let wanted = Wanted {
        idle: arguments.idle,
        age: arguments.age,
        name: arguments.name,
        addr: arguments.addr,
        user: arguments.user,
        orphans: arguments.orphans,
        include: arguments.include.into_iter().map(Include::from).collect(),
    };
    let mut visit = Visit::begin(&config.upstream, NAME).await?;
    let rows = visit.list().await?;
    let limit = visit.limit().await?;
    let own = visit.id;
    let is_own = |row: &Listed| own.map_or(row.name == NAME, |id| row.id == id);
    let selection = select(&rows, is_own, &wanted, config.hygiene.orphan_after);
    let mut outcome = Outcome { before: rows.len(), limit, killed: None };
    if arguments.yes {
        let killed = visit.kill(&selection.chosen, progress(selection.chosen.len())).await?;
        outcome.killed = Some((killed, visit.list().await?.len()));
    }
    let upstream = config.upstream_shown();
    let groups = groups(&rows, &selection);
    Ok(if arguments.json {
        format!("{:#}\n", as_json(&upstream, &groups, &selection, &outcome))
    } else {
        listing(&upstream, &groups, &selection, &outcome, wanted.is_nothing())
    })
}

/// Says on a terminal how far it is.
fn progress(all: usize) -> impl FnMut(usize) {
    let shown = all > 100 && io::stderr().is_terminal();
    move |done| {
        if shown {
            let end = if done == all { "\n" } else { "" };
            // A terminal that is gone is no reason to stop.
            let _ = write!(io::stderr(), "\r{done} of {all}{end}");
        }
    }
}

fn listing(
    upstream: &str,
    groups: &[Group],
    selection: &Selection<'_>,
    outcome: &Outcome,
    only_shown: bool,
) -> String {
    let limit = outcome.limit.map_or_else(String::new, |limit| format!(" of {limit} that it allows"));
    let mut out = format!("{} connections{limit} on {upstream}\n\n", outcome.before);
    table(groups, &mut out);
    out.push('\n');
    let chosen = selection.chosen.len();
    match outcome.killed {
        Some((killed, after)) => {
            let _ = writeln!(
                out,
                "killed {killed} of {chosen}; connections before: {}, now: {after}",
                outcome.before
            );
        }
        None if only_shown => {
            out.push_str(
                "nothing is wanted away: say what with --idle, --age, --name, --addr, --user or --orphans\n",
            );
        }
        None => {
            let _ = writeln!(out, "{chosen} would be killed; nothing was: add --yes");
        }
    }
    for (why, count) in &selection.spared {
        let _ = match why {
            Spared::Live => writeln!(out, "{count} that fit are a living redbouncer's: left alone"),
            Spared::Kind(kind) => {
                let word = kind.word();
                writeln!(out, "{count} that fit are {word}: left alone without --include {word}")
            }
        };
    }
    if only_shown && !selection.orphans.is_empty() {
        let _ =
            writeln!(out, "{} were left by a redbouncer that is dead: --orphans", selection.orphans.len());
    }
    out
}

/// At most 80 columns: names are shortened to what is left of them.
fn table(groups: &[Group], out: &mut String) {
    let widest = |text: fn(&Group) -> usize, head: usize, most: usize| {
        groups.iter().map(text).max().unwrap_or(0).max(head).min(most)
    };
    let host = widest(|group| group.host.chars().count(), 7, 24);
    let library = widest(|group| group.library.chars().count(), 7, 16);
    let name = WIDTH - (6 + 1 + 5 + 1 + 6 + 1 + 6 + 2 + host + 2 + 2 + library);
    let _ = writeln!(
        out,
        "{:>6} {:>5} {:>6} {:>6}  {:host$}  {:name$}  library",
        "count", "away", "oldest", "idle", "address", "name"
    );
    for group in groups {
        let mut shown = group.name.clone();
        if shown.is_empty() {
            "-".clone_into(&mut shown);
        }
        let line = format!(
            "{:>6} {:>5} {:>6} {:>6}  {:host$}  {:name$}  {}",
            group.count,
            group.chosen,
            short(group.oldest),
            short(group.idlest),
            fitted(&group.host, host),
            fitted(&shown, name),
            fitted(&group.library, library),
        );
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// The end of a long text says more than its beginning: a boot id, a port, a version.
fn fitted(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let tail: String = text.chars().skip(length - (width - 1)).collect();
    format!("…{tail}")
}

/// `41s`, `12m`, `5h`, `9d`.
fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn as_json(upstream: &str, groups: &[Group], selection: &Selection<'_>, outcome: &Outcome) -> Value {
    let groups: Vec<Value> = groups
        .iter()
        .map(|group| {
            json!({
                "address": group.host,
                "name": group.name,
                "library": group.library,
                "count": group.count,
                "chosen": group.chosen,
                "orphans": group.orphans,
                "oldest_seconds": group.oldest.as_secs(),
                "longest_idle_seconds": group.idlest.as_secs(),
            })
        })
        .collect();
    let chosen: Vec<Value> = selection
        .chosen
        .iter()
        .map(|row| {
            json!({
                "id": row.id,
                "addr": row.addr,
                "name": row.name,
                "user": row.user,
                "age_seconds": row.age.as_secs(),
                "idle_seconds": row.idle.as_secs(),
            })
        })
        .collect();
    let spared: serde_json::Map<String, Value> = selection
        .spared
        .iter()
        .map(|(why, count)| {
            let word = match why {
                Spared::Live => "living_redbouncer",
                Spared::Kind(kind) => kind.word(),
            };
            (word.to_owned(), json!(count))
        })
        .collect();
    json!({
        "upstream": upstream,
        "connections": outcome.before,
        "limit": outcome.limit,
        "groups": groups,
        "chosen": chosen,
        "left_alone": spared,
        "orphans": selection.orphans.len(),
        "killed": outcome.killed.map(|(killed, _)| killed),
        "connections_after": outcome.killed.map(|(_, after)| after),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn group(host: &str, name: &str, library: &str) -> Group {
        Group {
            host: host.to_owned(),
            name: name.to_owned(),
            library: library.to_owned(),
            count: 10_000,
            chosen: 9_999,
            orphans: 0,
            oldest: Duration::from_secs(900_000),
            idlest: Duration::from_secs(7_199),
        }
    }

    #[test]
    fn the_table_fits_80_columns_whatever_it_holds() {
        let long = "redbouncer:a-very-long-host-name-of-some-cloud.internal.example.com:0123abcd";
        let rows = [
            group("2001:db8:1234:5678:9abc:def0:1234:5678", long, "a-library-with-a-long-name 12.34.56-beta"),
            group("10.0.0.1", "", ""),
            group("10.0.0.1", "é".repeat(90).as_str(), "redis-py 5.0"),
        ];
        for rows in [&rows[..], &rows[1..2]] {
            let mut out = String::new();
            table(rows, &mut out);
            assert!(out.lines().all(|line| line.chars().count() <= WIDTH), "{out}");
            assert_eq!(out.lines().count(), rows.len() + 1);
        }
        let mut out = String::new();
        table(&rows, &mut out);
        assert!(out.contains(":0123abcd") && out.contains("119m") && out.contains("10d"), "{out}");
    }

    #[test]
    fn an_address_is_a_network_of_one() {
        assert_eq!(network("10.0.0.7").unwrap().to_string(), "10.0.0.7/32");
        assert_eq!(network("2001:db8::/32").unwrap().to_string(), "2001:db8::/32");
        assert!(network("example.com").is_err());
    }
}
