//! `redbouncer cleanup`: lists the connections on the server, and kills selected ones.

mod report;

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};
use ipnet::IpNet;
use tokio::time::Instant;

use super::output::{fail, print};
use super::terminal;
use crate::config::{self, Config};
use crate::hygiene::cleanup::{Include, Wanted, groups, select};
use crate::hygiene::{Swept, Visit, VisitError, sweep};
use crate::session::Listed;
use crate::upstream::sentinel::located;
use crate::upstream::{Connector, DialError, UpstreamOptions};
use report::{Found, as_json, listing, outcome};

/// The name of our connection. It is not that of a proxy's connection, so no rule treats it as one.
const NAME: &str = "redbouncer-cleanup";
/// How long a place on a full server is waited for, and how often it is asked for.
const FOR_A_PLACE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(50);
/// Below this number, progress is not shown.
const LONG: usize = 100;

/// The selection. A connection must match every given filter; without filters, connections are only listed.
#[derive(Args)]
#[command(group = ArgGroup::new("wish").multiple(true).args(["idle", "age", "name", "addr", "user", "orphans"]))]
pub(super) struct Arguments {
    /// Idle for at least this long (30s, 5m, 1h)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    idle: Option<Duration>,
    /// Connected for at least this long
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    age: Option<Duration>,
    /// With a CLIENT SETNAME that matches this pattern (web-*)
    #[arg(long, value_name = "GLOB")]
    name: Option<String>,
    /// From this address or network (10.0.0.7, 10.0.0.0/24)
    #[arg(long, value_name = "CIDR", value_parser = network)]
    addr: Option<IpNet>,
    /// Logged in as this user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Left by a dead redbouncer
    #[arg(long)]
    orphans: bool,
    /// Kinds that are otherwise never killed (unclear: the server does not show the kind)
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    include: Vec<Kind>,
    /// Kill the selected connections; without it, only list them
    #[arg(long, requires = "wish")]
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
    Unclear,
}

impl From<Kind> for Include {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Replicas => Self::Replicas,
            Kind::Masters => Self::Masters,
            Kind::Monitors => Self::Monitors,
            Kind::Subscribers => Self::Subscribers,
            Kind::Blocked => Self::Blocked,
            Kind::Unclear => Self::Unclear,
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

/// Visits the server, prints what is there, and takes away what is wanted away.
///
/// # Errors
/// The server cannot be reached, or does not let us look.
pub(super) async fn run(config: &Config, arguments: Arguments) -> Result<ExitCode, VisitError> {
    let wanted = Wanted {
        idle: arguments.idle,
        age: arguments.age,
        name: arguments.name,
        addr: arguments.addr,
        user: arguments.user,
        orphans: arguments.orphans,
        include: arguments.include.into_iter().map(Include::from).collect(),
    };
    let mut visit = enter(&config.upstream).await?;
    let limit = visit.limit().await?;
    let mut listed = Instant::now();
    let mut rows = visit.list_to_judge().await?;
    let mine: HashSet<u64> = rows.iter().filter(|row| visit.is_own(row)).map(|row| row.id).collect();
    let is_own = |row: &Listed| mine.contains(&row.id);
    let orphan_after = config.hygiene.orphan_after;
    let first = select(&rows, is_own, &wanted, orphan_after);
    let earlier = (arguments.yes && first.is_uncertain()).then_some(first.orphans);
    if earlier.is_some() {
        look_again_in(config.naming.heartbeat).await;
        listed = Instant::now();
        rows = visit.list_to_judge().await?;
    }
    let mut selection = select(&rows, is_own, &wanted, orphan_after);
    if let Some(earlier) = &earlier {
        selection.confirm(earlier);
    }
    let found = Found {
        upstream: config.upstream_shown(),
        connections: rows.len(),
        limit,
        groups: groups(&rows, &selection),
        selection,
        only_shown: wanted.is_nothing(),
    };
    if !arguments.json {
        print(&listing(&found, terminal::width()));
    }
    let swept = match arguments.yes {
        false => None,
        true => {
            let chosen = &found.selection.chosen;
            let choose = |rows: &[Listed]| {
                select(rows, is_own, &wanted, orphan_after).chosen.iter().map(|row| row.id).collect()
            };
            Some(sweep(&mut visit, chosen, listed, choose, progress(chosen.len())).await)
        }
    };
    let printed = print(&if arguments.json {
        terminal::json(&as_json(&found, swept.as_ref()))
    } else {
        outcome(&found, swept.as_ref(), terminal::text_width())
    });
    let all = found.selection.chosen.len();
    Ok(match swept {
        Some(Swept { stopped: Some(wrong), killed, escaped, .. }) => {
            fail(&format!("redbouncer: stopped after {} of {all}: {wrong}\n", killed + escaped), 1)
        }
        Some(Swept { stopped: None, .. }) | None => printed,
    })
}

/// Connects. A server at its limit is the one that needs this most: a place there is waited for.
async fn enter(options: &UpstreamOptions) -> Result<Visit, VisitError> {
    if options.is_cluster() {
        return Err(VisitError::Cluster);
    }
    let options = &located(options, NAME).await?;
    let connector = Connector::new(options)?;
    let end = Instant::now() + FOR_A_PLACE;
    let mut told = false;
    loop {
        match Visit::over(&connector, options, NAME).await {
            Err(VisitError::Dial(full @ DialError::MaxClients { .. })) if Instant::now() < end => {
                if !told {
                    told = true;
                    let seconds = FOR_A_PLACE.as_secs();
                    // stderr may be closed; that is no reason not to wait.
                    let _ = writeln!(io::stderr(), "redbouncer: {full}; waiting {seconds} s for one");
                }
                tokio::time::sleep(AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

/// An instance without a lane and without a control connection may be between two of them.
async fn look_again_in(heartbeat: Duration) {
    // stderr may be closed; that is no reason not to wait.
    let _ = writeln!(
        io::stderr(),
        "redbouncer: an instance that looks dead has neither a lane nor a control connection; listing again in \
         {heartbeat:?}"
    );
    tokio::time::sleep(heartbeat).await;
}

/// Shows the progress on a terminal.
fn progress(all: usize) -> impl FnMut(usize) {
    let shown = all > LONG && io::stderr().is_terminal();
    move |done| {
        if shown {
            let end = if done == all { "\n" } else { "" };
            // A closed terminal does not stop the cleanup.
            let _ = write!(io::stderr(), "\r{done} of {all}{end}");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_network_of_one() {
        assert_eq!(network("10.0.0.7").unwrap().to_string(), "10.0.0.7/32");
        assert_eq!(network("2001:db8::/32").unwrap().to_string(), "2001:db8::/32");
        assert!(network("example.com").is_err());
    }
}
