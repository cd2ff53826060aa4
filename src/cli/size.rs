//! `redbouncer size`: how many connections there are, and how many they need with redbouncer.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::output::{counted, print};
use super::terminal;
use crate::config::Config;
use crate::hygiene::sizing::{Estimate, Use};
use crate::hygiene::{Visit, VisitError};
use crate::session::Listed;
use crate::telemetry::printable;
use crate::upstream::Connector;
use crate::upstream::sentinel::located;

/// The name of our connection.
const NAME: &str = "redbouncer-size";
/// The first major version with blocking hubs.
const WITH_HUBS: u32 = 7;

/// Where the listing comes from, and how the answer is printed.
#[derive(Args)]
pub(super) struct Arguments {
    /// Read the output of CLIENT LIST from this file, or from - for stdin, instead of asking the server
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print JSON instead of a text
    #[arg(long)]
    json: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SizeError {
    /// The server cannot be asked.
    #[error(transparent)]
    Visit(#[from] VisitError),
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// There is nothing to judge by.
    #[error("{path} has no row of CLIENT LIST (id=… addr=…)")]
    Empty {
        /// The file.
        path: String,
    },
}

/// The listing and its source.
struct Found {
    place: String,
    /// `redis 7.0.15`, where a server was asked.
    server: Option<String>,
    major: Option<u32>,
    limit: Option<usize>,
    estimate: Estimate,
}

/// Counts, and prints what follows.
///
/// # Errors
/// There is no listing.
pub(super) async fn run(config: &Config, arguments: Arguments) -> Result<ExitCode, SizeError> {
    let found = match &arguments.file {
        Some(path) => in_file(path, config.workers)?,
        None => on_server(config).await?,
    };
    Ok(print(&if arguments.json {
        terminal::json(&as_json(&found))
    } else {
        text(&found, terminal::text_width())
    }))
}

async fn on_server(config: &Config) -> Result<Found, SizeError> {
    if config.upstream.is_cluster() {
        return Err(VisitError::Cluster.into());
    }
    let upstream = located(&config.upstream, NAME).await.map_err(VisitError::from)?;
    let connector = Connector::new(&upstream).map_err(VisitError::from)?;
    let mut visit = Visit::over(&connector, &upstream, NAME).await?;
    let limit = visit.limit().await?;
    let rows = visit.list().await?;
    let (name, version) = (&visit.server.server, &visit.server.version);
    let major = version.split('.').next().and_then(|major| major.parse().ok());
    Ok(Found {
        place: format!("on {}", config.upstream_shown()),
        server: Some(printable(format!("{name} {version}").trim().as_bytes())),
        major,
        limit,
        estimate: Estimate::of(&rows, |row| visit.is_own(row), major, config.workers),
    })
}

fn in_file(path: &Path, workers: usize) -> Result<Found, SizeError> {
    let mut bytes = Vec::new();
    let read = match path.to_str() {
        Some("-") => io::stdin().lock().read_to_end(&mut bytes).map(drop),
        _ => fs::read(path).map(|read| bytes = read),
    };
    let shown = path.display().to_string();
    read.map_err(|source| SizeError::Read { path: shown.clone(), source })?;
    let rows = Listed::parse_all(&bytes);
    if rows.is_empty() {
        return Err(SizeError::Empty { path: shown });
    }
    let estimate = Estimate::of(&rows, |_| false, None, workers);
    Ok(Found { place: format!("in {shown}"), server: None, major: None, limit: None, estimate })
}

fn text(found: &Found, width: usize) -> String {
    let estimate = &found.estimate;
    let all: usize = estimate.uses.values().sum();
    let server = found.server.as_ref().map_or_else(String::new, |server| format!(" ({server})"));
    let limit = found.limit.map_or_else(String::new, |limit| format!(", of at most {limit}"));
    let head = format!("{}{limit} {}{server}", counted(all, "connection"), found.place);
    let uses = Use::ALL.into_iter().filter(|kind| estimate.count(*kind) > 0);
    let uses = uses.map(|kind| (estimate.count(kind), meaning(kind).to_owned()));
    let clients = counted(estimate.clients(), "client");
    let mut out = format!("{}\n\n{}", fill(&head, width), table(uses));
    out += &format!("\nWith redbouncer, {clients} need at most\n\n{}", table(needs(estimate)));
    let suggested = estimate.max_connections();
    out += &format!("\n{}\n", fill(&format!("pool.max_connections = {suggested}"), width));
    for note in notes(found) {
        out += &format!("{}\n", fill(&note, width));
    }
    out
}

fn fill(text: &str, width: usize) -> String {
    textwrap::fill(text, terminal::lines(width))
}

fn table(rows: impl IntoIterator<Item = (usize, String)>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (count, what) in rows {
        table.add_row([count.to_string(), what]);
    }
    if let Some(column) = table.column_mut(0) {
        column.set_padding((2, 2)).set_cell_alignment(CellAlignment::Right);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_padding((0, 0));
    }
    if table.is_empty() { "  none\n".to_owned() } else { format!("{}\n", table.trim_fmt()) }
}

/// The use of a connection.
fn meaning(kind: Use) -> &'static str {
    match kind {
        Use::Ordinary => "idle, or with ordinary commands",
        Use::Blocked => "blocked (BLPOP, BZPOPMIN, XREAD BLOCK and the like)",
        Use::Subscribed => "subscribed",
        Use::Transaction => "in a transaction (MULTI, WATCH)",
        Use::Standing => "with MONITOR, or CLIENT TRACKING that needs a connection",
        Use::Redbouncer => "of a redbouncer: not counted below",
        Use::Replication => "replicas or the master: not counted below",
    }
}

/// The parts of the suggestion, each with its reason.
fn needs(estimate: &Estimate) -> Vec<(usize, String)> {
    let users = |count| counted(count, "user");
    let (groups, workers) = (estimate.groups, estimate.workers);
    let combinations = counted(groups, "combination");
    let mut lanes = format!("lanes: {combinations} of user, database, RESP version and tracking");
    let mut hubs = ["blocking hub", "pub/sub hub"].map(str::to_owned);
    if workers > 1 {
        lanes += &format!(", for each of {workers} workers");
        hubs = hubs.map(|hub| format!("{hub} for each of {workers} workers"));
    } else if groups < estimate.lanes() {
        lanes += ", at least 2";
    }
    let [blocking, pubsub] = hubs;
    let shared = |count, what: &str, of| match count {
        0 => format!("no {what} client at the moment"),
        _ => format!("{} of {}", counted(count, &format!("{what} client")), users(of)),
    };
    let blocked = shared(estimate.count(Use::Blocked), "blocked", estimate.blocking_users);
    let subscribed = shared(estimate.count(Use::Subscribed), "subscribed", estimate.subscribing_users);
    let open = counted(estimate.count(Use::Transaction), "transaction");
    let mut rows = vec![
        (1, "control connection".to_owned()),
        (estimate.lanes(), lanes),
        (estimate.blocking_hubs(), format!("{blocking}: {blocked}")),
        (estimate.pubsub_hubs(), format!("{pubsub}: {subscribed}")),
        (estimate.transactions(), format!("for transactions: {open} open at the moment")),
    ];
    if estimate.count(Use::Standing) > 0 {
        rows.push((estimate.count(Use::Standing), "one for each MONITOR and CLIENT TRACKING".to_owned()));
    }
    rows
}

fn notes(found: &Found) -> Vec<String> {
    let Found { major, limit, estimate, .. } = found;
    let suggested = estimate.max_connections();
    let mut notes = vec![
        "This is one moment. Raise the number if more transactions with WATCH, or with MULTI sent command by command, are \
         open at the same time."
            .to_owned(),
    ];
    notes.push(match limit {
        Some(limit) if 2 * suggested > *limit => format!(
            "Two instances run during a deployment: 2 × {suggested} is more than the {limit} connections of the server."
        ),
        Some(limit) => format!("Two instances run during a deployment: 2 × {suggested} of {limit} connections."),
        None => format!("Two instances run during a deployment: the server must allow 2 × {suggested} connections."),
    });
    if estimate.count(Use::Blocked) > 0 && major.is_some_and(|major| major < WITH_HUBS) {
        notes.push(
            "Blocking hubs need Redis 7.0: on this server, blocked clients are tried on lanes or take a lease."
                .to_owned(),
        );
    }
    if estimate.count(Use::Redbouncer) > 0 {
        notes.push(
            "A redbouncer is running already. Its clients are listed by redbouncer itself: --upstream with its address."
                .to_owned(),
        );
    }
    notes
}

fn as_json(found: &Found) -> Value {
    let estimate = &found.estimate;
    let word = |kind| match kind {
        Use::Ordinary => "ordinary",
        Use::Blocked => "blocked",
        Use::Subscribed => "subscribed",
        Use::Transaction => "transaction",
        Use::Standing => "standing",
        Use::Redbouncer => "redbouncer",
        Use::Replication => "replication",
    };
    let uses = Use::ALL.map(|kind| (word(kind).to_owned(), json!(estimate.count(kind))));
    json!({
        "server": found.server,
        "limit": found.limit,
        "connections": serde_json::Map::from_iter(uses),
        "clients": estimate.clients(),
        "needed": {
            "control": 1,
            "lanes": estimate.lanes(),
            "blocking_hubs": estimate.blocking_hubs(),
            "pubsub_hubs": estimate.pubsub_hubs(),
            "standing": estimate.count(Use::Standing),
            "transactions": estimate.transactions(),
        },
        "max_connections": estimate.max_connections(),
    })
}
