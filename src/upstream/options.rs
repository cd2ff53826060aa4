//! Options of upstream connections: the server, its credentials, and the timeouts of each step.
//!
//! The values are checked: a `Duration` is in range, a URL is parsed, a password is a [`Secret`]. The `config` module
//! creates them from text; this module only reads them and does not know their source.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::host_port::HostPort;

/// How to reach the Redis server and how patient to be with it (`[upstream]`).
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamOptions {
    /// Host name or address, without brackets for IPv6.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// TLS from the first byte (`rediss://`).
    pub tls: bool,
    /// The ACL user of the login; `None` is the server's `default` user.
    pub username: Option<String>,
    /// The password of that user; `None` sends no AUTH.
    pub password: Option<Secret>,
    /// The file that it was read from.
    pub password_file: Option<PathBuf>,
    /// The database a client begins in.
    pub database: u32,
    /// Bound on TCP, TLS and login together.
    pub connect_timeout: Duration,
    /// The shortest wait before a failed dial is repeated.
    pub backoff_min: Duration,
    /// The longest wait before a failed dial is repeated.
    pub backoff_max: Duration,
    /// How long a login is repeated while the server answers `-LOADING`.
    pub loading_retry: Duration,
    /// How long a client waits for one reply before it gets an error; `None` waits as long as the client does.
    pub command_timeout: Option<Duration>,
    /// A lane with commands in flight that receives nothing for this long is condemned.
    pub stall_timeout: Duration,
    /// Maximum number of new upstream connections per second.
    pub connect_rate: u32,
    /// Treatment of clients whose commands were written but not answered when a connection was lost.
    pub on_loss: OnLoss,
    /// Certificates and names, used when `tls` is set.
    pub tls_options: TlsOptions,
    /// How long a closing connection discards incoming data before it is reset.
    pub close_timeout: Duration,
    /// How long the server's host may leave sent data unacknowledged. Not below [`Keepalive::total`].
    pub user_timeout: Duration,
    /// TCP keepalive of an idle connection.
    pub keepalive: Keepalive,
    /// How often the server's name is resolved again while connections live.
    pub resolve_interval: Duration,
    /// How long a command that surely did not run waits for a master.
    pub failover_wait: Duration,
    /// How long connections to a replaced master wait for outstanding replies.
    pub switch_grace: Duration,
    /// Addresses that servers announce and that are reached otherwise from here.
    pub addresses: Vec<Reachable>,
    /// The Sentinels that know where the server is. Then [`Self::host`] is empty until they have been asked.
    pub service: Option<SentinelService>,
    /// How to talk to them.
    pub sentinel: SentinelOptions,
    /// Nodes of a cluster that are asked for its slots first; none: it is no cluster. Then [`Self::host`] is empty.
    pub nodes: Vec<HostPort>,
    /// How often the cluster is asked for its slots while nothing suggests that they have changed.
    pub refresh_interval: Duration,
}

/// The part of [`UpstreamOptions`] that is read while connections are open, small enough to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamTimes {
    /// As in [`UpstreamOptions`].
    pub database: u32,
    /// As in [`UpstreamOptions`].
    pub connect_timeout: Duration,
    /// As in [`UpstreamOptions`].
    pub backoff_min: Duration,
    /// As in [`UpstreamOptions`].
    pub backoff_max: Duration,
    /// As in [`UpstreamOptions`].
    pub loading_retry: Duration,
    /// As in [`UpstreamOptions`].
    pub command_timeout: Option<Duration>,
    /// As in [`UpstreamOptions`].
    pub stall_timeout: Duration,
    /// As in [`UpstreamOptions`].
    pub close_timeout: Duration,
    /// As in [`UpstreamOptions`].
    pub on_loss: OnLoss,
    /// As in [`UpstreamOptions`].
    pub resolve_interval: Duration,
    /// As in [`UpstreamOptions`].
    pub failover_wait: Duration,
    /// Another server takes the place of one that is lost: Sentinels, or a cluster, say which.
    pub has_sentinels: bool,
    /// As in [`UpstreamOptions`].
    pub switch_grace: Duration,
}

impl UpstreamOptions {
    /// The same for the server that Sentinels, or a node of its own kind, announce as `announced`.
    #[must_use]
    pub fn at(&self, announced: &HostPort) -> Self {
        let HostPort { host, port } = self.reachable(announced).clone();
        Self { host, port, ..self.clone() }
    }

    /// Where a server that is announced as `announced` is reached from here (`upstream.addresses`).
    #[must_use]
    pub fn reachable<'a>(&'a self, announced: &'a HostPort) -> &'a HostPort {
        let mapped = self.addresses.iter().find(|row| row.announced == *announced);
        mapped.map_or(announced, |row| &row.at)
    }

    /// Whether where the server is has to be asked of Sentinels, or of a cluster, first.
    #[must_use]
    pub fn is_unlocated(&self) -> bool {
        (self.service.is_some() || self.is_cluster()) && self.host.is_empty()
    }

    /// Whether it is a cluster.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        !self.nodes.is_empty()
    }

    /// The part that is read while connections are open.
    #[must_use]
    pub fn times(&self) -> UpstreamTimes {
        UpstreamTimes {
            database: self.database,
            connect_timeout: self.connect_timeout,
            backoff_min: self.backoff_min,
            backoff_max: self.backoff_max,
            loading_retry: self.loading_retry,
            command_timeout: self.command_timeout,
            stall_timeout: self.stall_timeout,
            close_timeout: self.close_timeout,
            on_loss: self.on_loss,
            resolve_interval: self.resolve_interval,
            failover_wait: self.failover_wait,
            has_sentinels: self.service.is_some() || self.is_cluster(),
            switch_grace: self.switch_grace,
        }
    }
}

impl Default for UpstreamOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 6379,
            tls: false,
            username: None,
            password: None,
            password_file: None,
            database: 0,
            connect_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            loading_retry: Duration::from_secs(10),
            command_timeout: None,
            stall_timeout: Duration::from_secs(60),
            connect_rate: 20,
            on_loss: OnLoss::Close,
            tls_options: TlsOptions::default(),
            close_timeout: Duration::from_secs(5),
            // Upstream connections are few, so frequent probes are cheap. A heartbeat in flight to a lost server delays
            // the probes, so the detection times add up.
            user_timeout: Duration::from_secs(12),
            keepalive: Keepalive::default(),
            resolve_interval: Duration::from_secs(15),
            failover_wait: Duration::from_secs(10),
            switch_grace: Duration::from_secs(1),
            addresses: Vec::new(),
            service: None,
            sentinel: SentinelOptions::default(),
            nodes: Vec::new(),
            refresh_interval: Duration::from_secs(30),
        }
    }
}

/// The port of a Sentinel whose URL names none.
pub const SENTINEL_PORT: u16 = 26379;

/// The service of a `redis-sentinel://` URL, and the Sentinels that are asked about it first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentinelService {
    /// The Sentinels of the URL, at least one.
    pub sentinels: Vec<HostPort>,
    /// The service name of the master (`sentinel monitor <name>`).
    pub name: String,
}

/// How to talk to Sentinels: never with the credentials of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentinelOptions {
    /// The ACL user there; `None` is the `default` user.
    pub username: Option<String>,
    /// Its password; `None` sends no AUTH.
    pub password: Option<Secret>,
    /// The file that it was read from.
    pub password_file: Option<PathBuf>,
    /// Whether with TLS; `None`: as to the server.
    pub tls: Option<bool>,
    /// How often each Sentinel is asked for the master, besides after signs of a change.
    pub poll: Duration,
}

impl Default for SentinelOptions {
    fn default() -> Self {
        Self { username: None, password: None, password_file: None, tls: None, poll: Duration::from_secs(10) }
    }
}

/// An address that servers announce of each other, and where it can be reached from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reachable {
    /// As it is announced.
    pub announced: HostPort,
    /// Where to dial instead.
    pub at: HostPort,
}

/// Treatment of a client when the connection with its unanswered command is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLoss {
    /// The client is closed, as a direct connection would have been, so its library's own recovery runs.
    #[default]
    Close,
    /// Each unanswered command on a lane gets an error; the client stays.
    Error,
}

impl OnLoss {
    /// The configuration values.
    pub const WORDS: [(&'static str, Self); 2] = [("close", Self::Close), ("error", Self::Error)];
}

/// TLS towards the server (`[upstream.tls]`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// A PEM file of certificate authorities trusted beside the system's and Mozilla's.
    pub ca: Option<PathBuf>,
    /// The name to verify and to send as SNI instead of the URL's host.
    pub server_name: Option<String>,
    /// Our certificate chain (PEM), for servers that require one.
    pub cert: Option<PathBuf>,
    /// The private key of `cert` (PEM).
    pub key: Option<PathBuf>,
    /// Accept any certificate: encrypted, but not protected against an attacker in between.
    pub insecure: bool,
}

/// TCP keepalive: a silent peer is dead after `idle + interval × count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Unanswered probes until the connection is dead.
    pub count: u32,
}

impl Keepalive {
    /// How long a silent peer may be dead before it is given up.
    pub fn total(&self) -> Duration {
        self.idle + self.interval * self.count
    }
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(5), interval: Duration::from_secs(2), count: 3 }
    }
}

/// How this instance names itself in the server's `CLIENT LIST` (`[hygiene]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameOptions {
    /// The instance's name: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// How often upstream connections show activity in the server's `CLIENT LIST`.
    pub heartbeat: Duration,
}

impl Default for NameOptions {
    fn default() -> Self {
        Self { name: Self::host_name(), heartbeat: Duration::from_secs(15) }
    }
}

impl NameOptions {
    /// The longest name, as for a host name's label.
    pub const MAX_LEN: usize = 63;

    /// Whether `name` may stand between the colons of `redbouncer:<name>:<boot id>:<kind>`.
    pub fn is_valid(name: &str) -> bool {
        !name.is_empty() && name.len() <= Self::MAX_LEN && name.bytes().all(Self::is_plain)
    }

    /// The host's name, with characters that a connection name cannot contain replaced by `-`.
    fn host_name() -> String {
        let host = gethostname::gethostname();
        let plain: String = host
            .to_string_lossy()
            .chars()
            .take(Self::MAX_LEN)
            .map(|c| if u8::try_from(c).is_ok_and(Self::is_plain) { c } else { '-' })
            .collect();
        if plain.is_empty() { "redbouncer".to_owned() } else { plain }
    }

    fn is_plain(byte: u8) -> bool {
        byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
    }
}

/// A password. Overwritten when its last clone is dropped; `Debug` shows `***`; compared in constant time.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// Takes the bytes over; no other copy should remain.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes.into())))
    }

    /// The bytes, for writing a login or hashing; never for a log.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose().ct_eq(other.expose()).into()
    }
}

impl Eq for Secret {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let options = UpstreamOptions { password: Some(Secret::new("hunter2")), ..Default::default() };
        let shown = format!("{options:?} {options:#?}");
        assert!(!shown.contains("hunter2") && shown.contains("***"), "{shown}");
    }

    #[test]
    fn secrets_are_equal_by_their_bytes() {
        assert_eq!(Secret::new("a"), Secret::new("a"));
        assert_ne!(Secret::new("a"), Secret::new("b"));
        assert_ne!(Secret::new("a"), Secret::new("ab"));
    }

    #[test]
    fn the_default_name_may_stand_in_a_connection_name() {
        assert!(NameOptions::is_valid(&NameOptions::default().name));
        for bad in ["", "a:b", "a b", "a\nb", "é"] {
            assert!(!NameOptions::is_valid(bad), "{bad:?}");
        }
    }
}
