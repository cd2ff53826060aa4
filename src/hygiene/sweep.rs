//! Kills the selected connections in batches of a hundred, always by a fresh listing: a connection that was idle a
//! minute ago may be active now.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::{Visit, VisitError};
use crate::session::Listed;

/// The maximum age of a usable listing.
const FRESH: Duration = Duration::from_secs(5);
/// Kills that are sent at once.
const CHUNK: usize = 100;

/// The outcome for the selected connections.
#[derive(Debug, Default)]
pub struct Swept {
    /// How many were killed.
    pub killed: usize,
    /// The number of connections that had closed or no longer matched.
    pub escaped: usize,
    /// The number of connections afterwards, if the server reported it.
    pub after: Option<usize>,
    /// The error that stopped the sweep; the remaining connections are not killed.
    pub stopped: Option<VisitError>,
}

/// Kills `chosen`, which was taken from a listing at `listed`. `choose` is asked again, for the ids it would choose among
/// the rows of a new listing, whenever that one has grown old. `progress` hears how many are done.
pub async fn sweep(
    visit: &mut Visit,
    chosen: &[&Listed],
    mut listed: Instant,
    choose: impl Fn(&[Listed]) -> HashSet<u64>,
    mut progress: impl FnMut(usize),
) -> Swept {
    let mut swept = Swept::default();
    let mut still: Option<HashSet<u64>> = None;
    for (at, chunk) in chosen.chunks(CHUNK).enumerate() {
        if listed.elapsed() > FRESH {
            listed = Instant::now();
            match visit.list_to_judge().await {
                Ok(rows) => still = Some(choose(&rows)),
                Err(wrong) => {
                    swept.stopped = Some(wrong);
                    break;
                }
            }
        }
        let fits = |row: &&Listed| still.as_ref().is_none_or(|ids| ids.contains(&row.id));
        let rows: Vec<&Listed> = chunk.iter().copied().filter(fits).collect();
        let (killed, stopped) = visit.kill(&rows).await;
        swept.killed += killed;
        if stopped.is_some() {
            swept.stopped = stopped;
            break;
        }
        swept.escaped += chunk.len() - killed;
        progress(at * CHUNK + chunk.len());
    }
    // After a refusal the connection still works. After an I/O error a reply would belong to an earlier command.
    if !matches!(swept.stopped, Some(VisitError::Broken { .. })) {
        swept.after = visit.list().await.ok().map(|rows| rows.len());
    }
    swept
}
