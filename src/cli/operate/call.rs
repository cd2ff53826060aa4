//! The conversation with a running proxy: one command, its reply.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use super::reach::{OperateError, Place, Way};
use crate::resp;
use crate::telemetry::printable;
use crate::upstream::{Connector, ask_by};

/// The name of our connection in the proxy's listings.
const NAME: &[u8] = b"redbouncer-cli";
/// How long one answer may take. A reload reads files, which may lie on a slow disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection, whatever carries it.
trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// Sends `PROXY` with these arguments. Returns the reply, which is no error.
pub(in crate::cli) fn send(way: &Way, words: &[String]) -> Result<Vec<u8>, OperateError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stream = open(&way.place).await?;
        // Sends only the commands that the proxy requires, because the other commands of a login would wait while the
        // proxy is paused.
        if let Some(password) = &way.password {
            let user = way.user.as_deref().unwrap_or("default").as_bytes();
            ask(&mut stream, &[b"AUTH", user, password.expose()]).await?;
        }
        ask(&mut stream, &[b"CLIENT", b"SETNAME", NAME]).await?;
        let words: Vec<&[u8]> =
            [&b"PROXY"[..]].into_iter().chain(words.iter().map(String::as_bytes)).collect();
        ask(&mut stream, &words).await
    })
}

async fn open(place: &Place) -> Result<Box<dyn Stream>, OperateError> {
    match place {
        Place::Network(options) => {
            let unusable = |wrong| OperateError::usage(&format!("{wrong}"));
            let connector = Connector::new(options).map_err(unusable)?;
            Ok(Box::new(connector.open().await?))
        }
        Place::Unix(path) => Ok(Box::new(open_unix(path).await?)),
    }
}

async fn open_unix(path: &Path) -> Result<UnixStream, OperateError> {
    let opened = tokio::time::timeout(PATIENCE, UnixStream::connect(path)).await;
    let opened = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    opened.map_err(|source| OperateError::Unix { path: path.to_owned(), source })
}

/// The reply to one command, which is no error.
async fn ask(stream: &mut Box<dyn Stream>, words: &[&[u8]]) -> Result<Vec<u8>, OperateError> {
    let answer = tokio::time::timeout(PATIENCE, ask_by(stream, words)).await;
    let reply =
        answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(OperateError::Broken)?;
    match resp::error_text(&reply) {
        Some(text) => Err(OperateError::Refused(printable(text))),
        None => Ok(reply.to_vec()),
    }
}
