//! Asks a server that Sentinels name whether its role is master. They may name it before it has been promoted.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::resp::{self, Protocol};
use crate::telemetry::printable;
use crate::upstream::{Connector, DialError, HostPort, Identity, Login, TlsSetupError, UpstreamOptions};

/// On the dial and on the answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a server is not followed.
#[derive(Debug, thiserror::Error)]
pub enum NotTheMaster {
    /// It cannot be reached.
    #[error(transparent)]
    Unreachable(#[from] DialError),
    /// The files of `upstream.tls` cannot be used.
    #[error(transparent)]
    Files(#[from] TlsSetupError),
    /// Its role is not master.
    #[error("its role is {0}")]
    Role(String),
    /// It does not report its role.
    #[error("it does not answer ROLE")]
    Silent,
}

/// Asks the server that is announced as `announced` for its role, on a connection that is closed again. `name` is how that is
/// called there.
///
/// # Errors
/// It is not the master, or not yet.
pub async fn verify(
    options: &UpstreamOptions,
    announced: &HostPort,
    identity: Arc<Identity>,
    name: String,
) -> Result<(), NotTheMaster> {
    let connect_timeout = options.connect_timeout.min(PATIENCE);
    let options = UpstreamOptions { connect_timeout, loading_retry: Duration::ZERO, ..options.at(announced) };
    let connector = match tokio::task::spawn_blocking(move || Connector::quietly(&options)).await {
        Ok(connector) => connector?,
        Err(_) => return Err(NotTheMaster::Silent),
    };
    let login =
        Login { identity, database: 0, protocol: Protocol::Resp2, name, readonly: false, tracking: false };
    let dialled = connector.dial(&login).await;
    let mut established = match dialled {
        Ok(established) => established,
        // Users log in themselves: it has answered, and says no more.
        Err(DialError::Login { text }) if login.identity.password.is_none() && text.starts_with("NOAUTH") => {
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let role = match established.server.role.as_str() {
        "" => {
            let asked = timeout(PATIENCE, established.stream.command(&[b"ROLE"])).await;
            let Ok(Ok(reply)) = asked else { return Err(NotTheMaster::Silent) };
            let first = resp::elements(&reply).and_then(|mut words| resp::bulk(words.next()?));
            // Without the right to ask, redbouncer relies on the Sentinels.
            first.map_or_else(|| "master".to_owned(), printable)
        }
        role => role.to_owned(),
    };
    if role == "master" { Ok(()) } else { Err(NotTheMaster::Role(role)) }
}
