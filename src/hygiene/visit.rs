//! A visit to the server by one connection of its own: for `cleanup` and `check`, beside any running proxy.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use crate::resp::{self, Protocol, encode};
use crate::session::Listed;
use crate::telemetry::printable;
use crate::upstream::{
    Connector, DialError, Identity, Login, ServerInfo, TlsSetupError, UpstreamOptions, UpstreamStream,
};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A server that does not answer a PING within this time has not read the others' commands either: everyone looks idle.
const PROMPT: Duration = Duration::from_secs(1);

/// Why a visit came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum VisitError {
    /// A certificate that cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// The server cannot be reached, or refuses the login.
    #[error("{0}")]
    Dial(#[from] DialError),
    /// There is no one server.
    #[error("upstream.url names a cluster; use the URL of one node, such as redis://host:port")]
    Cluster,
    /// The connection broke off.
    #[error("the server did not answer {command}: {source}")]
    Broken {
        /// What was asked.
        command: String,
        /// What the socket says.
        source: io::Error,
    },
    /// The server's own refusal.
    #[error("{command} is refused: {words}")]
    Refused {
        /// What was asked.
        command: String,
        /// Its words.
        words: String,
    },
    /// It was busy with something else until now.
    #[error(
        "the server took {took:.1?} to answer PING; it read no commands during this time, so all connections look idle"
    )]
    Slow {
        /// The time to its answer.
        took: Duration,
    },
}

/// A connection of its own.
#[derive(Debug)]
pub struct Visit {
    stream: UpstreamStream,
    /// The server's description of itself.
    pub server: Arc<ServerInfo>,
    /// Our client id, if the server reports it.
    id: Option<u64>,
    /// Our local address.
    local: SocketAddr,
    name: String,
}

impl Visit {
    /// Connects and logs in as the configuration says; `name` is how the server lists us.
    ///
    /// # Errors
    /// What stands in the way.
    pub async fn over(
        connector: &Connector,
        options: &UpstreamOptions,
        name: &str,
    ) -> Result<Self, VisitError> {
        let identity = Arc::new(Identity::of_url(options));
        let login = Login {
            identity,
            database: options.database,
            protocol: Protocol::Resp2,
            name: name.to_owned(),
            readonly: false,
            tracking: false,
        };
        let established = connector.dial(&login).await?;
        let (stream, server) = (established.stream, established.server);
        Ok(Self { stream, server, id: established.id, local: established.local, name: login.name })
    }

    /// The server's certificates as DER, its own first; none without TLS.
    #[must_use]
    pub fn certificates(&self) -> Vec<Vec<u8>> {
        self.stream.certificates()
    }

    /// Whether `row` is this very connection. Where the server does not tell ids, whatever may be it, is.
    #[must_use]
    pub fn is_own(&self, row: &Listed) -> bool {
        match self.id {
            Some(id) => row.id == id,
            None => row.name == self.name || row.addr == self.local.to_string(),
        }
    }

    /// The whole reply to one command, an error reply included.
    ///
    /// # Errors
    /// The connection broke off, or no answer within 10 s.
    pub async fn ask(&mut self, words: &[&str]) -> Result<Bytes, VisitError> {
        let bytes: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let answer = tokio::time::timeout(PATIENCE, self.stream.command(&bytes)).await;
        answer
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| VisitError::Broken { command: shown(words), source })
    }

    /// The reply to one command.
    ///
    /// # Errors
    /// As [`Self::ask`], and the server's refusal.
    pub async fn expect(&mut self, words: &[&str]) -> Result<Bytes, VisitError> {
        let reply = self.ask(words).await?;
        match resp::error_text(&reply) {
            Some(text) => Err(VisitError::Refused { command: shown(words), words: printable(text) }),
            None => Ok(reply),
        }
    }

    /// All connections to the server, as it shows them now.
    ///
    /// # Errors
    /// As [`Self::expect`].
    pub async fn list(&mut self) -> Result<Vec<Listed>, VisitError> {
        let reply = self.expect(&["CLIENT", "LIST"]).await?;
        Ok(Listed::parse_all(resp::bulk(&reply).unwrap_or_default()))
    }

    /// The same, fit to judge by: behind a prompt answer to PING, because idle times that a stalled server shows are its
    /// own. (A refused PING is an answer, too.)
    ///
    /// # Errors
    /// As [`Self::list`], and [`VisitError::Slow`].
    pub async fn list_to_judge(&mut self) -> Result<Vec<Listed>, VisitError> {
        let asked = Instant::now();
        self.ask(&["PING"]).await?;
        match asked.elapsed() {
            took if took > PROMPT => Err(VisitError::Slow { took }),
            _ => self.list().await,
        }
    }

    /// The server's connection limit: `maxclients`, from INFO, or from CONFIG on servers before 6.2 (where the field
    /// was added). `None` if neither has it.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn limit(&mut self) -> Result<Option<usize>, VisitError> {
        let info = self.ask(&["INFO", "clients"]).await?;
        if let Some(limit) = info_field(&info, "maxclients") {
            return Ok(limit.parse().ok());
        }
        let answer = self.ask(&["CONFIG", "GET", "maxclients"]).await?;
        Ok(config_value(&answer).and_then(|limit| limit.parse().ok()))
    }

    /// Kills `rows`, in one write, each by id and address together. Returns how many of them still existed, and the
    /// error that stopped it before the last one.
    pub async fn kill(&mut self, rows: &[&Listed]) -> (usize, Option<VisitError>) {
        let mut requests = BytesMut::new();
        for row in rows {
            let id = row.id.to_string();
            let words: [&[u8]; 6] = [b"CLIENT", b"KILL", b"ID", id.as_bytes(), b"ADDR", row.addr.as_bytes()];
            encode::command(&mut requests, &words);
        }
        let command = || "CLIENT KILL".to_owned();
        let answers = tokio::time::timeout(PATIENCE, self.stream.ask_all(&requests, rows.len())).await;
        let answers = match answers.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(answers) => answers,
            Err(source) => return (0, Some(VisitError::Broken { command: command(), source })),
        };
        let killed = answers.iter().filter(|answer| resp::integer(answer).is_some_and(|count| count > 0));
        let refusal = answers.iter().find_map(|answer| resp::error_text(answer));
        let refused = |text| VisitError::Refused { command: command(), words: printable(text) };
        (killed.count(), refusal.map(refused))
    }
}

/// One field of an INFO reply.
#[must_use]
pub fn info_field<'a>(reply: &'a [u8], field: &str) -> Option<&'a str> {
    let text = std::str::from_utf8(resp::bulk(reply)?).ok()?;
    text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).map(str::trim_end)
}

/// The value in a reply to CONFIG GET of one name.
#[must_use]
pub fn config_value(reply: &[u8]) -> Option<&str> {
    std::str::from_utf8(resp::bulk(resp::elements(reply)?.nth(1)?)?).ok()
}

fn shown(words: &[&str]) -> String {
    words.iter().take(2).copied().collect::<Vec<_>>().join(" ")
}
