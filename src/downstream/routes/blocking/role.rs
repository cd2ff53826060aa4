//! Whether the server of a call that only reads has become a replica. A replica runs `XREAD`, so no try of it is refused,
//! where a direct client that was blocked would have been told (see `command::blocking::DEMOTED`).

use std::convert::Infallible;
use std::rc::Rc;

use bytes::Bytes;
use tokio::time::Instant;

use super::waiter::{State, Waiter};
use crate::command::Blocking;
use crate::command::blocking::DEMOTED;
use crate::pool::{Lane, Lost};
use crate::resp::{self, encode};

impl Waiter {
    /// Asks for the server's role over `lane`, at most once in a heartbeat, if no try would show that it has changed.
    pub(super) fn ask_for_the_role(self: &Rc<Self>, lane: &Lane, now: Instant) {
        let heartbeat = self.client.context.pool.shared.heartbeat;
        let is_soon = self.role.asked.get().is_some_and(|at| now.saturating_duration_since(at) < heartbeat);
        if self.call.command != Blocking::XRead || self.role.is_refused.get() || is_soon {
            return;
        }
        self.role.asked.set(Some(now));
        let waiter = Rc::clone(self);
        let then = move |frames: Result<Vec<Bytes>, Lost>| {
            let Ok(frames) = frames else { return };
            let first = frames.first().and_then(|frame| resp::bulk(resp::elements(frame)?.next()?));
            waiter.told_role(first);
        };
        lane.exchange(&encode::one_command(&[b"ROLE"]), 1, now, Box::new(then));
    }

    /// The same while it blocks on a lease, which it may have been given after the server had become a replica.
    pub(super) async fn watch_the_role(self: &Rc<Self>) -> Infallible {
        loop {
            if let Some(lane) = self.client.current_group().and_then(|group| group.lane()) {
                self.ask_for_the_role(&lane, Instant::now());
            }
            tokio::time::sleep(self.client.context.pool.shared.heartbeat).await;
        }
    }

    /// The first element of the answer to ROLE; `None`: an error.
    fn told_role(&self, role: Option<&[u8]>) {
        match role {
            Some(b"master") => self.role.was_master.set(true),
            Some(b"slave") if self.role.was_master.get() && self.state.get() != State::Done => {
                self.refused(DEMOTED);
                self.changed.notify_one();
            }
            Some(_) => {}
            None => self.role.is_refused.set(true),
        }
    }
}
