//! The lane over which the server tells of what is read over others: one for all such lanes of a user.

use std::rc::Rc;

use super::{Group, Lane, LaneKey, Pool, SessionGuard, Tracked, Unavailable};
use crate::resp::Protocol;

/// What a server that does not tell client ids cannot do.
const NO_ID: &str =
    "ERR redbouncer: CLIENT TRACKING with REDIRECT needs a server that tells the ids of its clients";

/// A telling lane, its id on the server, and what keeps it.
pub(super) struct Hearing {
    pub(super) lane: Rc<Lane>,
    pub(super) id: u64,
    /// Held for as long as a lane is told over it.
    pub(super) session: SessionGuard,
}

impl Pool {
    /// The telling lane for the lanes of `group`, opened where there is none. `None`: they need none.
    ///
    /// # Errors
    /// As [`Self::lane_ready`].
    pub(super) async fn hearing_for(self: &Rc<Self>, group: &Group) -> Result<Option<Hearing>, Unavailable> {
        let key = group.key();
        if !key.tracked.is_redirected() {
            return Ok(None);
        }
        let tracked = Tracked::ForOthers;
        let key =
            LaneKey { user: key.user, database: 0, protocol: Protocol::Resp3, readonly: false, tracked };
        let hearing = self.group(key, group.identity());
        let session = hearing.attach();
        let deadline = self.wait_deadline();
        loop {
            self.lane_ready(&hearing, deadline).await?;
            if let Some(lane) = hearing.lane() {
                let id = lane.id_on_server().ok_or_else(|| Unavailable::SelectRefused(NO_ID.to_owned()))?;
                return Ok(Some(Hearing { lane, id, session }));
            }
        }
    }
}
