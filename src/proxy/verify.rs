//! The login of `upstream.url`, tried before any client needs it, and again as long as it does not succeed.
//!
//! A wrong address or password is in the log at once. A proxy that is not ready gets no clients, so it has to find out by
//! itself when the server is there, or lets it in.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::downstream::Directory;
use crate::pool::{LaneKey, Pool, Tracked, Unavailable};
use crate::resp::Protocol;

/// Between two tries at a server that has never answered.
const NOT_REACHED: Duration = Duration::from_secs(2);
/// Between two logins that the server refuses: it may write each of them into a log of its own.
const REFUSED: Duration = Duration::from_secs(5);

/// Runs on the first worker, until it is aborted.
pub(super) async fn verify_upstream(pool: Rc<Pool>, directory: Arc<Directory>) {
    first_login(&pool, &directory).await;
    loop {
        let health = &pool.shared.health;
        let pause = match (health.refused(), health.has_reached()) {
            (Some(_), _) => Some(REFUSED),
            (None, false) => Some(NOT_REACHED),
            (None, true) => None,
        };
        match pause {
            // Late or woken: it is time.
            Some(pause) => drop(tokio::time::timeout(pause, health.login_wanted()).await),
            None => health.login_wanted().await,
        }
        let (key, identity) = own(&pool, &directory);
        // What comes of it is noted where the dial is made.
        drop(pool.check_login(key, &identity, pool.wait_deadline()).await);
    }
}

async fn first_login(pool: &Rc<Pool>, directory: &Directory) {
    let (key, identity) = own(pool, directory);
    let group = pool.group(key, &identity);
    let _session = group.attach();
    match pool.lane_ready(&group, pool.wait_deadline()).await {
        Ok(()) => {
            if let Some(server) = pool.shared.connector.server() {
                tracing::info!(server = %server.server, version = %server.version, mode = %server.mode, "upstream reached");
            }
        }
        Err(Unavailable::Stopping) => {}
        Err(why) => {
            tracing::error!(reason = %why, "the server cannot be used yet; commands wait and then fail");
        }
    }
}

fn own(pool: &Pool, directory: &Directory) -> (LaneKey, Arc<crate::upstream::Identity>) {
    let (user, identity) = directory.own_identity();
    let database = pool.shared.upstream.get().database;
    let key = LaneKey { user, database, protocol: Protocol::Resp2, readonly: false, tracked: Tracked::No };
    (key, identity)
}
