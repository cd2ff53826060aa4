//! The control connection: what no client's command may delay.
//!
//! `SCRIPT KILL` must overtake the script it kills, and a listing must not wait behind a slow command. One connection,
//! dialled when it is needed, logged in as whoever asks, closed when it has been idle.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Kind, LaneKey, Permit, Pool, Tracked, Unavailable};
use crate::resp::Protocol;
use crate::telemetry::UpstreamClose;
use crate::upstream::{Identity, UpstreamStream};

/// Replies on the control connection come at once; a server that takes longer is not going to answer soon.
const PATIENCE: Duration = Duration::from_secs(5);

/// The control connection of a pool, when it is open.
#[derive(Debug, Default)]
pub struct Control {
    open: Option<Open>,
    /// How many there have been.
    dialled: u64,
}

#[derive(Debug)]
struct Open {
    user: u64,
    protocol: Protocol,
    stream: UpstreamStream,
    permit: Permit,
    /// Of the connector when it was dialled.
    generation: u64,
    used: Instant,
    /// When somebody last needed it: what looks for orphans every now and then does without.
    needed: Instant,
}

impl Control {
    /// Asks the server as `identity` and returns its reply, whole.
    ///
    /// # Errors
    /// When the connection cannot be had or does not answer.
    pub async fn ask(
        &mut self,
        pool: &Rc<Pool>,
        user: u64,
        identity: &Arc<Identity>,
        protocol: Protocol,
        request: &Bytes,
    ) -> Result<Bytes, Unavailable> {
        self.reach(pool, user, identity, protocol).await?;
        self.exchange(request, 1).await.map(|mut replies| replies.pop().unwrap_or_default())
    }

    /// Opens the connection as `identity`, if it is not open already.
    ///
    /// # Errors
    /// It cannot be had.
    pub async fn reach(
        &mut self,
        pool: &Rc<Pool>,
        user: u64,
        identity: &Arc<Identity>,
        protocol: Protocol,
    ) -> Result<(), Unavailable> {
        let fits = self
            .open
            .as_ref()
            .is_some_and(|open| open.user == user && open.protocol == protocol && open.stream.is_quiet());
        if !fits {
            let quiet = self.open.as_ref().is_some_and(|open| open.stream.is_quiet());
            self.close(pool, if quiet { UpstreamClose::Turn } else { UpstreamClose::Lost }).await;
            self.open = Some(self.dial(pool, user, identity, protocol).await?);
            self.dialled += 1;
        }
        Ok(())
    }

    /// Asks `count` questions at once on the connection that is open, and returns the replies.
    ///
    /// # Errors
    /// When it does not answer; then it is closed.
    pub async fn exchange(&mut self, requests: &[u8], count: usize) -> Result<Vec<Bytes>, Unavailable> {
        let Some(mut open) = self.open.take() else { return Err(Unavailable::Stopping) };
        let answer = tokio::time::timeout(PATIENCE, open.stream.ask_all(requests, count)).await;
        match answer {
            Ok(Ok(replies)) => {
                open.used = Instant::now();
                self.open = Some(open);
                Ok(replies)
            }
            // Half an exchange: the connection is dropped with it.
            Ok(Err(_)) | Err(_) => {
                let reason = UpstreamClose::Lost;
                open.permit.closes(reason);
                tracing::warn!(
                    kind = Kind::Control.label(),
                    reason = reason.label(),
                    "no answer on the control connection"
                );
                Err(Unavailable::Unanswered)
            }
        }
    }

    async fn dial(
        &self,
        pool: &Rc<Pool>,
        user: u64,
        identity: &Arc<Identity>,
        protocol: Protocol,
    ) -> Result<Open, Unavailable> {
        let budget = &pool.shared.budget;
        let Some(permit) = budget.try_acquire(Kind::Control, "control") else {
            return Err(pool.away().unwrap_or_else(|| {
                Unavailable::Full(budget.full_text(Kind::Control, user, Duration::ZERO))
            }));
        };
        let key = LaneKey { user, database: 0, protocol, readonly: false, tracked: Tracked::No };
        let dialled = pool.dial_for(&permit, key, identity).await;
        let stream = dialled.map_err(|error| Unavailable::of(&error))?;
        let now = Instant::now();
        let generation = pool.shared.connector.generation();
        Ok(Open { user, protocol, stream, permit, generation, used: now, needed: now })
    }

    /// Which of all control connections that there have been this is; `None` while there is none, or nothing more is to be said
    /// on it.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        self.open.as_ref().filter(|open| open.stream.is_quiet()).map(|_| self.dialled)
    }

    /// As whom it is logged in, and in which protocol.
    #[must_use]
    pub fn speaks_as(&self) -> Option<(u64, Protocol)> {
        self.open.as_ref().map(|open| (open.user, open.protocol))
    }

    /// Whether there is a connection.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Closes the connection if it is logged in as `user`.
    pub async fn close_for(&mut self, pool: &Rc<Pool>, user: u64) {
        if self.open.as_ref().is_some_and(|open| open.user == user) {
            self.close(pool, UpstreamClose::LoginRevoked).await;
        }
    }

    /// Drops a connection to a server that is the master no more: it may not answer.
    pub fn leave_deposed(&mut self, pool: &Pool) {
        let current = pool.shared.connector.generation();
        if let Some(open) = self.open.take_if(|open| open.generation != current) {
            open.permit.closes(UpstreamClose::Deposed);
        }
    }

    /// Its client id on the server, where that tells.
    #[must_use]
    pub fn client_id(&self) -> Option<u64> {
        self.open.as_ref()?.permit.client_id()
    }

    /// How long ago it was last used; `None` while there is no connection.
    #[must_use]
    pub fn idle(&self) -> Option<Duration> {
        self.open.as_ref().map(|open| open.used.elapsed())
    }

    /// Somebody has needed it now.
    pub fn was_needed(&mut self) {
        if let Some(open) = &mut self.open {
            open.needed = Instant::now();
        }
    }

    /// Closes the connection when nobody has needed it for `limit` and it registers nothing; beside others not before it would have had to show that
    /// we live.
    pub async fn age(&mut self, pool: &Rc<Pool>, limit: Duration) {
        if pool.shared.budget.fleet().is_some() {
            // It registers what this instance claims.
            return;
        }
        let alone = pool.shared.budget.held() == 1;
        let limit = if alone { limit } else { limit.max(2 * pool.shared.heartbeat) };
        if self.open.as_ref().is_some_and(|open| open.needed.elapsed() >= limit) {
            self.close(pool, UpstreamClose::Idle).await;
        }
    }

    /// Closes the connection and waits until its permit is back: the next dial needs it.
    pub async fn close(&mut self, pool: &Rc<Pool>, reason: UpstreamClose) {
        if let Some(open) = self.open.take() {
            pool.close_now(open.stream, open.permit, reason).await;
        }
    }
}
