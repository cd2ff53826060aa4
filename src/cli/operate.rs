//! `redbouncer kill`, `pause`, `resume`, `reconnect`, `log`, `hubs`, `shutdown`: PROXY commands, sent to a running proxy as any
//! client would send them.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};

use super::output::{counted, fail, print};
use crate::config::{self, Config, Flags};
use crate::resp;
use crate::telemetry::printable;
use crate::upstream::{Connector, DialError, Secret, UpstreamOptions, UpstreamStream};

/// How the proxy lists us.
const NAME: &[u8] = b"redbouncer-cli";
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The password towards the proxy, as `redis-cli` knows it.
const PASSWORD: &str = "REDISCLI_AUTH";
/// A flag, key, variable or value that the operator must mend.
const BAD_CONFIGURATION: u8 = 64;

const EXPOSED: &str = "redbouncer: the password given by --url stands in the list of processes, where every user of this host can \
                       read it: use --password-file or the environment variable REDISCLI_AUTH instead\n";

/// What is done to a running proxy.
#[derive(Subcommand)]
pub(super) enum Act {
    /// Close clients of a running proxy: those that fit everything given
    Kill {
        #[command(flatten)]
        filters: Filters,
        #[command(flatten)]
        reach: Box<Reach>,
    },
    /// Let new commands of all clients wait, while the server is replaced
    Pause {
        /// End by itself after this long (500ms, 30s); without it at `redbouncer resume`
        #[arg(value_name = "DURATION", value_parser = milliseconds)]
        time: Option<u64>,
        #[command(flatten)]
        reach: Box<Reach>,
    },
    /// End a pause
    Resume(Box<Reach>),
    /// Renew the upstream connections of a running proxy as they become free
    Reconnect(Box<Reach>),
    /// Tell or set what a running proxy logs, until its next start
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
    /// Whose CLIENT SETNAME is this
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// From this address and port
    #[arg(long, value_name = "HOST:PORT")]
    addr: Option<String>,
    /// Logged in as this user
    #[arg(long = "client-user", value_name = "NAME")]
    as_user: Option<String>,
    /// Idle for at least this long (30s, 5m, 1h)
    #[arg(long, value_name = "DURATION", value_parser = milliseconds)]
    idle: Option<u64>,
    /// Who holds the connection with this id in the server's CLIENT LIST
    #[arg(long, value_name = "ID")]
    connection: Option<u64>,
}

/// Where the proxy is, and who asks.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct Reach {
    /// The running proxy, redis[s]://user@host:port [default: the first of its listen.addresses]
    #[arg(long, value_name = "URL")]
    pub(super) url: Option<String>,
    /// Log in as this user; the password is read from --password-file or the variable REDISCLI_AUTH
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// A file with the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The proxy's configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any key of the proxy's configuration; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl Reach {
    /// The proxy at `url`, asked by whom the environment says.
    pub(super) fn at(url: Option<String>) -> Self {
        Self { url, ..Self::default() }
    }
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub(super) enum OperateError {
    /// What is to be mended in flags, variables or files.
    #[error("{0}")]
    Usage(String),
    /// The proxy cannot be reached.
    #[error("{0}")]
    Dial(#[from] DialError),
    /// The connection broke off, or no answer came in time.
    #[error("the proxy did not answer: {0}")]
    Broken(io::Error),
    /// Its own words.
    #[error("{0}")]
    Refused(String),
    /// This process could not start a runtime.
    #[error("cannot start: {0}")]
    Runtime(#[from] io::Error),
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
            // PROXY KILL counts whole seconds; less than one is met by everybody.
            ("IDLE", number(self.idle.map(|ms| ms.div_ceil(1000)))),
            ("CONNECTION", number(self.connection)),
        ];
        all.into_iter().filter_map(|(word, value)| Some([word.to_owned(), value?])).flatten().collect()
    }
}

/// A reply in words.
type Said = fn(&[u8]) -> String;

/// Does what is asked for.
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
        Act::Reconnect(reach) => (reach, vec!["RECONNECT".to_owned()], |reply| {
            let count = usize::try_from(resp::integer(reply).unwrap_or_default()).unwrap_or_default();
            format!("{} renewed as they become free\n", counted(count, "connection"))
        }),
        Act::Log { level, reach } => {
            let words = [Some("LOG".to_owned()), level].into_iter().flatten().collect();
            (reach, words, |reply| if reply == b"+OK\r\n" { String::new() } else { lines(reply) })
        }
        Act::Hubs(reach) => (reach, vec!["HUBS".to_owned()], lines),
        Act::Shutdown(reach) => (reach, vec!["SHUTDOWN".to_owned()], |_| "stopping\n".to_owned()),
    };
    match send(&reach, &words) {
        Ok(reply) => print(&said(&reply)),
        Err(OperateError::Usage(wrong)) => fail(&wrong, BAD_CONFIGURATION),
        Err(wrong) => fail(&format!("redbouncer: {wrong}\n"), 1),
    }
}

/// Sends `PROXY` and these words. Returns the reply, which is no error.
pub(super) fn send(reach: &Reach, words: &[String]) -> Result<Vec<u8>, OperateError> {
    let options = target(reach)?;
    let connector =
        Connector::new(&options).map_err(|wrong| OperateError::Usage(usage(&wrong.to_string())))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Without what a login to a server asks: that would wait while the proxy is paused.
        let mut stream = connector.open().await?;
        if let Some(password) = &options.password {
            let user = options.username.as_deref().unwrap_or("default").as_bytes();
            ask(&mut stream, &[b"AUTH", user, password.expose()]).await?;
        }
        ask(&mut stream, &[b"CLIENT", b"SETNAME", NAME]).await?;
        let words: Vec<&[u8]> =
            [&b"PROXY"[..]].into_iter().chain(words.iter().map(String::as_bytes)).collect();
        ask(&mut stream, &words).await
    })
}

/// The reply to one command, which is no error.
async fn ask(stream: &mut UpstreamStream, words: &[&[u8]]) -> Result<Vec<u8>, OperateError> {
    let answer = tokio::time::timeout(PATIENCE, stream.command(words)).await;
    let reply =
        answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(OperateError::Broken)?;
    match resp::error_text(&reply) {
        Some(text) => Err(OperateError::Refused(printable(text))),
        None => Ok(reply.to_vec()),
    }
}

fn usage(wrong: &str) -> String {
    format!("redbouncer: {wrong}\n")
}

/// The proxy as a server to connect to.
fn target(reach: &Reach) -> Result<UpstreamOptions, OperateError> {
    let mut options = UpstreamOptions::default();
    match &reach.url {
        Some(url) => {
            config::parse_url(url, &mut options)
                .map_err(|wrong| OperateError::Usage(usage(&format!("--url: {wrong}"))))?;
            if options.password.is_some() {
                // stderr is for people; that it is closed changes nothing.
                let _ = fail(EXPOSED, 0);
            }
        }
        None => listener(&configuration(reach)?, &mut options)?,
    }
    if reach.user.is_some() {
        options.username.clone_from(&reach.user);
    }
    match &reach.password_file {
        Some(path) => {
            let wrong = |wrong| OperateError::Usage(usage(&format!("--password-file: {wrong}")));
            options.password = Some(config::secret_in(path).map_err(wrong)?);
        }
        None => {
            let of_environment = std::env::var(PASSWORD).ok().filter(|password| !password.is_empty());
            options.password = options.password.take().or_else(|| of_environment.map(Secret::new));
        }
    }
    Ok(options)
}

fn configuration(reach: &Reach) -> Result<Config, OperateError> {
    let flags = Flags { config: reach.config.clone(), set: reach.set.clone(), ..Flags::default() };
    Config::load(&flags, std::env::vars_os()).map_err(|errors| {
        let mut text = String::new();
        for wrong in errors {
            let _ = writeln!(text, "redbouncer: configuration: {wrong}");
        }
        OperateError::Usage(text)
    })
}

/// The first TCP listener of the configuration.
fn listener(config: &Config, options: &mut UpstreamOptions) -> Result<(), OperateError> {
    let tcp = |addresses: &[String]| addresses.iter().find(|address| !address.starts_with("unix:")).cloned();
    let plain = tcp(&config.listen.addresses);
    options.tls = plain.is_none();
    let address = plain.or_else(|| tcp(&config.listen.tls.addresses));
    let none = || OperateError::Usage(usage("the proxy listens on no TCP address; name one with --url"));
    let address = address.ok_or_else(none)?;
    let (host, port) = address.rsplit_once(':').ok_or_else(none)?;
    options.port = port.parse().unwrap_or_default();
    if options.port == 0 {
        let text =
            format!("{address} leaves the port to the system; name the one the proxy reported, with --url");
        return Err(OperateError::Usage(usage(&text)));
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    // A wildcard address is reached by loopback.
    let loopback = match address.parse::<SocketAddr>().map(|address| address.ip()) {
        Ok(IpAddr::V4(ip)) if ip.is_unspecified() => Some("127.0.0.1"),
        Ok(IpAddr::V6(ip)) if ip.is_unspecified() => Some("::1"),
        Ok(_) | Err(_) => None,
    };
    loopback.unwrap_or(host).clone_into(&mut options.host);
    // Its own certificate, which nobody else may have signed.
    options.tls_options.ca = config.listen.tls.cert.clone().filter(|_| options.tls);
    Ok(())
}

/// The lines of an array of bulks.
fn lines(reply: &[u8]) -> String {
    let mut text = String::new();
    for line in resp::elements(reply).into_iter().flatten() {
        let _ = writeln!(text, "{}", printable(resp::bulk(line).unwrap_or_default()));
    }
    text
}
