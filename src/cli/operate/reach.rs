//! The address of a running proxy and the login, from flags, variables and the proxy's configuration.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::output::fail;
use crate::config::{self, Config, Flags};
use crate::downstream::UNIX;
use crate::upstream::{DialError, Secret, UpstreamOptions};

/// The password towards the proxy, as `redis-cli` knows it.
const PASSWORD: &str = "REDISCLI_AUTH";

const EXPOSED: &str = "redbouncer: the password in --url is visible to every user of this host in the process list: \
                       use --password-file or the environment variable REDISCLI_AUTH instead\n";

/// The address of the proxy, by URL or by its configuration, and the login.
#[derive(Args)]
pub(in crate::cli) struct Reach {
    #[command(flatten)]
    target: Target,
    /// Log in as this user; the password is read from --password-file or the variable REDISCLI_AUTH
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The address of the proxy for clients, as its configuration has it; host:port or unix:/path
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,
    /// The proxy's configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any key of the proxy's configuration; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

/// The proxy by its URL, and the options of a connection to it.
#[derive(Args, Clone)]
pub(in crate::cli) struct Target {
    /// The running proxy, redis[s]://user@host:port or unix:/path [default: the first of its listen.addresses]
    #[arg(long, value_name = "URL")]
    pub(in crate::cli) url: Option<String>,
    /// A file with the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Authorities (PEM) of the proxy's certificate, in addition to public ones [default: listen.tls.cert]
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// A client certificate (PEM), if the proxy requires one
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

/// How to reach a proxy: all of it is known.
pub(in crate::cli) struct Way {
    pub(super) place: Place,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
}

/// Where it listens.
pub(super) enum Place {
    /// By TCP or TLS: as a server to connect to.
    Network(Box<UpstreamOptions>),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum OperateError {
    /// A mistake in flags, variables or files.
    #[error("{0}")]
    Usage(String),
    /// The proxy cannot be reached.
    #[error("{0}; check that redbouncer is running, or use --url with its address")]
    Dial(#[from] DialError),
    /// Nor by its socket.
    #[error("{}: {source}; check that redbouncer is running, or use --url with its address", path.display())]
    Unix {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The connection broke off, or no answer came in time.
    #[error("the proxy did not answer: {0}")]
    Broken(io::Error),
    /// The proxy's error.
    #[error("{0}")]
    Refused(String),
    /// This process could not start a runtime.
    #[error("cannot start: {0}")]
    Runtime(#[from] io::Error),
}

impl OperateError {
    pub(super) fn usage(wrong: &str) -> Self {
        Self::Usage(format!("redbouncer: {wrong}\n"))
    }
}

impl Reach {
    /// The proxy, found by the flags, or else by the configuration.
    pub(super) fn way(&self) -> Result<Way, OperateError> {
        let mut way = match &self.target.url {
            Some(url) => self.target.way_to(url, None)?,
            None => {
                let config = self.configuration()?;
                self.target.way_to(&listener(&config)?, config.listen.tls.cert.as_deref())?
            }
        };
        way.user = self.user.clone().or(way.user);
        Ok(way)
    }

    fn configuration(&self) -> Result<Config, OperateError> {
        let flags = Flags {
            config: self.config.clone(),
            listen: self.listen.clone(),
            set: self.set.clone(),
            ..Flags::default()
        };
        Config::load(&flags, std::env::vars_os()).map_err(|errors| {
            let mut text = String::new();
            for wrong in errors {
                let _ = writeln!(text, "redbouncer: configuration: {wrong}");
            }
            OperateError::Usage(text)
        })
    }
}

impl Target {
    /// The proxy at `url`, asked by whom URL, flags and variables say. `own` is the certificate that it shows, where that is known.
    pub(in crate::cli) fn way_to(&self, url: &str, own: Option<&Path>) -> Result<Way, OperateError> {
        let mut options = UpstreamOptions::default();
        let place = match url.strip_prefix(UNIX) {
            Some(path) => Place::Unix(path.into()),
            None => {
                config::parse_url(url, &mut options)
                    .map_err(|wrong| OperateError::usage(&format!("--url: {wrong}; or unix:/path")))?;
                // The proxy's own certificate, which may be self-signed.
                options.tls_options.ca =
                    self.cacert.clone().or_else(|| own.map(Path::to_owned)).filter(|_| options.tls);
                options.tls_options.cert.clone_from(&self.cert);
                options.tls_options.key.clone_from(&self.key);
                Place::Network(Box::new(options.clone()))
            }
        };
        Ok(Way { place, user: options.username, password: self.password(options.password)? })
    }

    /// The password from the URL `given`, a file or the environment.
    fn password(&self, given: Option<Secret>) -> Result<Option<Secret>, OperateError> {
        if given.is_some() {
            // stderr is for people; that it is closed changes nothing.
            let _ = fail(EXPOSED, 0);
        }
        if let Some(path) = &self.password_file {
            let wrong = |wrong| OperateError::usage(&format!("--password-file: {wrong}"));
            return config::secret_in(path).map(Some).map_err(wrong);
        }
        let of_environment = std::env::var(PASSWORD).ok().filter(|password| !password.is_empty());
        Ok(given.or_else(|| of_environment.map(Secret::new)))
    }
}

/// The first listener of the configuration with an address that is known, as a URL; one with TLS if there is no other.
fn listener(config: &Config) -> Result<String, OperateError> {
    let is_known = |address: &&String| !address.ends_with(":0");
    let (plain, tls) = (&config.listen.addresses, &config.listen.tls.addresses);
    if let Some(address) = plain.iter().find(is_known) {
        let is_unix = address.starts_with(UNIX);
        return Ok(if is_unix { address.clone() } else { format!("redis://{}", reachable(address)) });
    }
    if let Some(address) = tls.iter().find(is_known) {
        return Ok(format!("rediss://{}", reachable(address)));
    }
    let address = plain.iter().chain(tls).next().map_or("", String::as_str);
    Err(OperateError::usage(&format!(
        "{address} leaves the port to the system; name the one the proxy reported, with --url"
    )))
}

/// Where a client finds a listener: a wildcard address is reached by loopback.
fn reachable(address: &str) -> String {
    match address.parse::<SocketAddr>() {
        Ok(socket) if socket.ip().is_unspecified() => match socket.ip() {
            IpAddr::V4(_) => format!("127.0.0.1:{}", socket.port()),
            IpAddr::V6(_) => format!("[::1]:{}", socket.port()),
        },
        Ok(_) | Err(_) => address.to_owned(),
    }
}
