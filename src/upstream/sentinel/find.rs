//! Where the master is now, asked once: for commands that run beside a proxy.

use tokio::task::LocalSet;
use tokio::time::{Instant, timeout_at};

use super::council::{MemberRow, Naming, Verdict};
use super::link::PATIENCE;
use super::sentinels::Sentinels;
use crate::upstream::{DialError, UpstreamOptions};

/// The answers of the Sentinels.
#[derive(Debug)]
pub struct Found {
    /// The master that enough Sentinels agree on.
    pub master: Option<Naming>,
    /// Each of them.
    pub sentinels: Vec<MemberRow>,
}

/// Asks all Sentinels of `options`, those included that they list. `name` is how the connections are called there. `None`: the
/// URL names none.
pub async fn find(options: &UpstreamOptions, name: &str) -> Option<Found> {
    let tasks = LocalSet::new();
    tasks.run_until(async { ask(Sentinels::start(options, name.to_owned())?).await }).await
}

async fn ask(mut sentinels: Sentinels) -> Option<Found> {
    // Those that are listed are asked after the others.
    let end = Instant::now() + 2 * PATIENCE;
    while !sentinels.is_complete() && Instant::now() < end {
        // The end is looked at above.
        let _ = timeout_at(end, sentinels.changed()).await;
    }
    let master = match sentinels.verdict_in_the_end() {
        Verdict::Follow(naming) => Some(naming),
        Verdict::Stay => None,
    };
    Some(Found { master, sentinels: sentinels.rows() })
}

/// `options` with the address of the master where Sentinels know it.
///
/// # Errors
/// They name none.
pub async fn located(options: &UpstreamOptions, name: &str) -> Result<UpstreamOptions, DialError> {
    match (find(options, name).await, &options.service) {
        (Some(Found { master: Some(naming), .. }), _) => Ok(options.at(&naming.master)),
        (Some(_), Some(service)) => {
            Err(DialError::NoMaster { service: service.name.clone(), after: 2 * PATIENCE })
        }
        (Some(_) | None, _) => Ok(options.clone()),
    }
}
