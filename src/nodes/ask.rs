//! `CLUSTER SLOTS`, asked of one node on a connection that is closed again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::cluster::SlotMap;
use crate::resp::{self, Protocol};
use crate::telemetry::printable;
use crate::upstream::{Connector, HostPort, Identity, Login, UpstreamOptions};

/// How long one node is waited for. Those that are lost must not keep the others from being asked.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks the node at `asked`, which `connector` dials. `name` is how the connection is called there.
///
/// # Errors
/// Why there is no map: for people.
pub async fn ask_for_slots(
    connector: &Connector,
    asked: &HostPort,
    identity: Arc<Identity>,
    name: String,
) -> Result<SlotMap, String> {
    let login =
        Login { identity, database: 0, protocol: Protocol::Resp2, name, readonly: false, tracking: false };
    let question = async {
        let mut established = connector.dial(&login).await.map_err(|error| error.to_string())?;
        let answer = established.stream.command(&[b"CLUSTER", b"SLOTS"]).await;
        answer.map_err(|error| format!("CLUSTER SLOTS: {error}"))
    };
    let Ok(answer) = timeout(PATIENCE, question).await else {
        return Err(format!("no answer within {PATIENCE:?}"));
    };
    let answer = answer?;
    if let Some(text) = resp::error_text(&answer) {
        return Err(format!("CLUSTER SLOTS: {}", printable(text)));
    }
    SlotMap::read(&answer, asked).ok_or_else(|| "it does not answer CLUSTER SLOTS as a node does".to_owned())
}

/// Asks the nodes of the URL, one after the other, until one tells of slots.
///
/// # Errors
/// What each of them says: for people.
pub async fn find_slots(
    options: &UpstreamOptions,
    identity: Arc<Identity>,
    name: &str,
) -> Result<SlotMap, Vec<(HostPort, String)>> {
    let mut failures = Vec::new();
    for node in &options.nodes {
        let at = options.at(node);
        let connector = tokio::task::spawn_blocking(move || Connector::quietly(&at)).await;
        let asked = match connector {
            Ok(Ok(connector)) => {
                ask_for_slots(&connector, node, Arc::clone(&identity), name.to_owned()).await
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match asked {
            Ok(map) if map.covered() > 0 => return Ok(map),
            Ok(_) => failures.push((node.clone(), "its cluster has no slots".to_owned())),
            Err(why) => failures.push((node.clone(), why)),
        }
    }
    Err(failures)
}
