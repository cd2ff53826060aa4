//! `redbouncer kill`, `pause`, `resume`, `reconnect`, `reload`, `log`, `hubs`, `shutdown`: PROXY commands, sent to a running proxy as
//! any client would send them.

mod call;
mod reach;

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{ArgGroup, Args, Subcommand};

use super::output::{counted, fail, print};
use crate::config;
use crate::resp;
use crate::telemetry::printable;

pub(super) use call::send;
use reach::Reach;
pub(super) use reach::{OperateError, Target, Way};

/// Exit code for a wrong flag, key, variable or value.
const BAD_CONFIGURATION: u8 = 64;

/// The commands for a running proxy.
#[derive(Subcommand)]
pub(super) enum Act {
    /// Close the clients of a running proxy that match all filters
    Kill {
        #[command(flatten)]
        filters: Filters,
        #[command(flatten)]
        reach: Box<Reach>,
    },
    /// Make new commands of all clients wait, for example while you replace the server
    Pause {
        /// Resume after this time (500ms, 30s); without it, at `redbouncer resume`
        #[arg(value_name = "DURATION", value_parser = milliseconds)]
        time: Option<u64>,
        #[command(flatten)]
        reach: Box<Reach>,
    },
    /// End a pause
    Resume(Box<Reach>),
    /// Renew the upstream connections of a running proxy as they become free
    Reconnect {
        /// With a cluster, only the connections to this node, HOST:PORT as `PROXY TOPOLOGY` lists it
        node: Option<String>,
        #[command(flatten)]
        reach: Box<Reach>,
    },
    /// Reload the configuration of a running proxy, as SIGHUP does, and print the changes
    Reload(Box<Reach>),
    /// Show or set the log level of a running proxy, until its next start
    Log {
        /// error, warn, info, debug, trace, off, or a filter
        level: Option<String>,
        #[command(flatten)]
        reach: Box<Reach>,
    },
    /// List the blocking hubs and pub/sub hubs of a running proxy
    Hubs(Box<Reach>),
    /// Stop a running proxy, as SIGTERM does
    Shutdown(Box<Reach>),
}

/// Which clients; all that is given has to fit.
#[derive(Args)]
#[command(group = ArgGroup::new("filter").multiple(true).required(true).args(["id", "name", "addr", "as_user", "idle", "connection"]))]
pub(super) struct Filters {
    /// The client with this CLIENT ID
    #[arg(long)]
    id: Option<u64>,
    /// Clients with this CLIENT SETNAME
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The client with this address and port
    #[arg(long, value_name = "HOST:PORT")]
    addr: Option<String>,
    /// Logged in as this user
    #[arg(long = "client-user", value_name = "NAME")]
    as_user: Option<String>,
    /// Idle for at least this long (30s, 5m, 1h)
    #[arg(long, value_name = "DURATION", value_parser = milliseconds)]
    idle: Option<u64>,
    /// The client that holds the connection with this id in the server's CLIENT LIST
    #[arg(long, value_name = "ID")]
    connection: Option<u64>,
}

fn milliseconds(text: &str) -> Result<u64, String> {
    let time = config::duration(text).ok_or_else(|| "a number and ms, s, m or h, such as 30s".to_owned())?;
    u64::try_from(time.as_millis()).map_err(|_| "too long".to_owned())
}

impl Filters {
    fn words(&self) -> Vec<String> {
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        let all = [
            ("ID", number(self.id)),
            ("NAME", self.name.clone()),
            ("ADDR", self.addr.clone()),
            ("USER", self.as_user.clone()),
            // PROXY KILL takes whole seconds; less than one would match every client.
            ("IDLE", number(self.idle.map(|ms| ms.div_ceil(1000)))),
            ("CONNECTION", number(self.connection)),
        ];
        all.into_iter().filter_map(|(word, value)| Some([word.to_owned(), value?])).flatten().collect()
    }
}

/// Formats a reply.
type Said = fn(&[u8]) -> String;

/// Runs the command.
pub(super) fn run(act: Act) -> ExitCode {
    let (reach, words, said): (_, Vec<String>, Said) = match act {
        Act::Kill { filters, reach } => {
            let words = [vec!["KILL".to_owned()], filters.words()].concat();
            (reach, words, |reply| {
                let count = resp::integer(reply).unwrap_or_default();
                format!("closed {}\n", counted(usize::try_from(count).unwrap_or_default(), "client"))
            })
        }
        Act::Pause { time, reach } => {
            let words = [Some("PAUSE".to_owned()), time.map(|ms| ms.to_string())].into_iter().flatten();
            (reach, words.collect(), |_| "paused: new commands wait\n".to_owned())
        }
        Act::Resume(reach) => (reach, vec!["RESUME".to_owned()], |_| "resumed\n".to_owned()),
        Act::Reconnect { node, reach } => {
            let words = [Some("RECONNECT".to_owned()), node].into_iter().flatten().collect();
            (reach, words, |reply| {
                let count = usize::try_from(resp::integer(reply).unwrap_or_default()).unwrap_or_default();
                format!("{} renewed as they become free\n", counted(count, "connection"))
            })
        }
        Act::Reload(reach) => (reach, vec!["RELOAD".to_owned()], lines),
        Act::Log { level, reach } => {
            let words = [Some("LOG".to_owned()), level].into_iter().flatten().collect();
            (reach, words, |reply| if reply == b"+OK\r\n" { String::new() } else { lines(reply) })
        }
        Act::Hubs(reach) => (reach, vec!["HUBS".to_owned()], lines),
        Act::Shutdown(reach) => (reach, vec!["SHUTDOWN".to_owned()], |_| "stopping\n".to_owned()),
    };
    match reach.way().and_then(|way| send(&way, &words)) {
        Ok(reply) => print(&said(&reply)),
        Err(OperateError::Usage(wrong)) => fail(&wrong, BAD_CONFIGURATION),
        Err(wrong) => fail(&format!("redbouncer: {wrong}\n"), 1),
    }
}

/// The lines of an array of bulks.
fn lines(reply: &[u8]) -> String {
    let mut text = String::new();
    for line in resp::elements(reply).into_iter().flatten() {
        let _ = writeln!(text, "{}", printable(resp::bulk(line).unwrap_or_default()));
    }
    text
}
