//! Whether those who have logged in may still be here: the server is asked again for every user with clients, once in
//! `auth.cache_ttl`.
//!
//! Redis ends the connections of a user that is deleted, but not of one that is switched off or given another password;
//! and of all of them it knows only ours. So each user's name and secret are tried again by one login of a moment, under
//! the budget. The server's refusal ends what the user has here; a network that fails says nothing about anybody.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::downstream::identity::Directory;
use crate::downstream::workers::Workers;
use crate::pool::{LaneKey, Pool, Tracked, Unavailable};
use crate::resp::Protocol;

/// How often it is looked who is due.
const LOOK: Duration = Duration::from_millis(250);
/// After a look that did not get an answer.
const PAUSE: Duration = Duration::from_secs(2);

/// Runs on the first worker, until it is aborted.
pub(in crate::downstream) async fn recheck(pool: Rc<Pool>, directory: Arc<Directory>, workers: Workers) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        for (offer, account, identity) in directory.due() {
            // Any database will do: the login is over before one is selected.
            let key = LaneKey {
                user: account.user.id,
                database: 0,
                protocol: Protocol::Resp2,
                readonly: false,
                tracked: Tracked::No,
            };
            match pool.check_login(key, &identity, pool.wait_deadline()).await {
                Ok(()) | Err(Unavailable::SelectRefused(_)) => offer.let_in(),
                Err(Unavailable::LoginRefused(_) | Unavailable::NoAuth) => {
                    workers.revoke(&directory, account).await;
                }
                Err(
                    Unavailable::Full(_)
                    | Unavailable::Down(_)
                    | Unavailable::Busy(_)
                    | Unavailable::Unanswered
                    | Unavailable::Stopping,
                ) => {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
