//! A visit to the server by one connection of its own: for `cleanup` and `check`, beside any running proxy.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::resp::{self, Protocol, encode};
use crate::session::Listed;
use crate::upstream::{
    Connector, DialError, Identity, Login, ServerInfo, TlsSetupError, UpstreamOptions, UpstreamStream,
};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Kills that are sent at once.
const CHUNK: usize = 100;

/// Why a visit came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum VisitError {
    /// A certificate that cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// The server cannot be reached, or refuses the login.
    #[error("{0}")]
    Dial(#[from] DialError),
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
}

/// A connection of its own.
#[derive(Debug)]
pub struct Visit {
    stream: UpstreamStream,
    /// What the server said about itself.
    pub server: Arc<ServerInfo>,
    /// Our client id there, where the server tells.
    pub id: Option<u64>,
}

impl Visit {
    /// Connects and logs in as the configuration says; `name` is how the server lists us.
    ///
    /// # Errors
    /// What stands in the way.
    pub async fn begin(options: &UpstreamOptions, name: &str) -> Result<Self, VisitError> {
        let identity = Arc::new(Identity {
            username: options.username.clone(),
            password: options.password.clone(),
            of_client: false,
        });
        let login = Login {
            identity,
            database: options.database,
            protocol: Protocol::Resp2,
            name: name.to_owned(),
            readonly: false,
        };
        let established = Connector::new(options)?.dial(&login).await?;
        Ok(Self { stream: established.stream, server: established.server, id: established.id })
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
            Some(text) => Err(VisitError::Refused {
                command: shown(words),
                words: String::from_utf8_lossy(text).into_owned(),
            }),
            None => Ok(reply),
        }
    }

    /// All connections to the server.
    ///
    /// # Errors
    /// As [`Self::expect`].
    pub async fn list(&mut self) -> Result<Vec<Listed>, VisitError> {
        let reply = self.expect(&["CLIENT", "LIST"]).await?;
        Ok(Listed::parse_all(resp::bulk(&reply).unwrap_or_default()))
    }

    /// How many connections the server allows: `maxclients`, from INFO, or from CONFIG on servers before 6.2 (where the
    /// field came). `None` where neither says.
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

    /// Kills `rows`, each by id and address together, and returns how many of them were still there. `progress` hears
    /// after every hundred how many have been asked for.
    ///
    /// # Errors
    /// As [`Self::expect`]; those before the refused one are killed.
    pub async fn kill(
        &mut self,
        rows: &[&Listed],
        mut progress: impl FnMut(usize),
    ) -> Result<usize, VisitError> {
        let mut killed = 0;
        for (at, chunk) in rows.chunks(CHUNK).enumerate() {
            let mut requests = BytesMut::new();
            for row in chunk {
                let id = row.id.to_string();
                let words: [&[u8]; 6] =
                    [b"CLIENT", b"KILL", b"ID", id.as_bytes(), b"ADDR", row.addr.as_bytes()];
                encode::command(&mut requests, &words);
            }
            let broken = |source| VisitError::Broken { command: "CLIENT KILL".to_owned(), source };
            let answers = tokio::time::timeout(PATIENCE, self.stream.ask_all(&requests, chunk.len())).await;
            for answer in answers.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(broken)? {
                if let Some(text) = resp::error_text(&answer) {
                    let words = String::from_utf8_lossy(text).into_owned();
                    return Err(VisitError::Refused { command: "CLIENT KILL".to_owned(), words });
                }
                killed += usize::from(resp::integer(&answer).unwrap_or_default() > 0);
            }
            progress(at * CHUNK + chunk.len());
        }
        Ok(killed)
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
