//! Lanes that are told of changes over another lane (`CLIENT TRACKING ON REDIRECT`), because they speak RESP2, or because their
//! clients are told over another connection, too.
//!
//! Between two connections there is no order, so the place of what is told among the replies is not known. All readers of a key
//! are told, also those whose reply is still to come. A reader is forgotten only if the server had certainly run its last read
//! before: an answer over the telling lane shows it, to a PING that was sent when the reply to that read was there.

use std::rc::{Rc, Weak};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::redirection::Redirection;
use super::{Lane, Then};
use crate::pool::tracker::Tracked;
use crate::resp::{self, encode};
use crate::telemetry::UpstreamClose;

impl Lane {
    /// The server is to tell of what is read here over `hearing`, which has the id `id` there.
    pub(in crate::pool) fn is_told_over(self: &Rc<Self>, hearing: &Rc<Self>, id: u64) {
        self.redirection.hearing.replace(Some((Rc::clone(hearing), id)));
        let mut others = hearing.redirection.others.borrow_mut();
        others.retain(|other| other.strong_count() > 0);
        others.push(Rc::downgrade(self));
        if self.key().tracked == Tracked::RedirectedReads {
            let lane = Rc::downgrade(self);
            self.asks_to_be_told(Box::new(move |answer| {
                let is_refused = answer.is_ok_and(|frames| frames.iter().any(|frame| resp::is_error(frame)));
                if let Some(lane) = lane.upgrade().filter(|_| is_refused) {
                    // Its readers will be told to forget everything, behind all replies.
                    lane.leave(UpstreamClose::Unfit);
                }
            }));
        }
    }

    /// Asks the server for it, again if it was asked before.
    pub fn asks_to_be_told(&self, then: Then) {
        let Some(id) = self.told_over() else { return };
        let mut command = BytesMut::new();
        let id = id.to_string();
        encode::command(&mut command, &[b"CLIENT", b"TRACKING", b"ON", b"REDIRECT", id.as_bytes()]);
        self.exchange(&command, 1, Instant::now(), then);
    }

    /// The id of the connection over which it is told, if that is another one.
    pub(super) fn told_over(&self) -> Option<u64> {
        self.redirection.hearing.borrow().as_ref().map(|(_, id)| *id)
    }

    /// The lane over which it is told of changes: this one, or another.
    #[must_use]
    pub fn telling_lane(self: &Rc<Self>) -> Rc<Self> {
        let hearing = self.redirection.hearing.borrow();
        hearing.as_ref().map_or_else(|| Rc::clone(self), |(hearing, _)| Rc::clone(hearing))
    }

    /// The id of its connection on the server.
    pub(in crate::pool) fn id_on_server(&self) -> Option<u64> {
        self.permit.borrow().as_ref().and_then(|permit| permit.client_id())
    }

    /// Whether lanes count on what comes over this one.
    pub(super) fn hears_for_others(&self) -> bool {
        self.redirection.others.borrow().iter().any(|other| other.strong_count() > 0)
    }

    /// Whether the server may send it what is no reply.
    pub(super) fn may_be_told(&self) -> bool {
        self.tracker.borrow().is_some() || self.key().tracked == Tracked::ForOthers
    }

    /// A push has come that is not for this lane's own readers. `None`: it is; `false`: it is none that a lane may get.
    pub(super) fn tell_others(&self, push: &[u8]) -> Option<bool> {
        if self.key().tracked.is_redirected() {
            // `tracking-redir-broken`: the telling lane ends, and so does this one.
            return Some(true);
        }
        if self.key().tracked != Tracked::ForOthers {
            return None;
        }
        let others: Vec<_> = self.redirection.others.borrow().iter().filter_map(Weak::upgrade).collect();
        let mut is_known = true;
        for other in others {
            other.redirection.has_told.set(true);
            if let Some(tracker) = other.tracker() {
                is_known &= tracker.receive_beside(push, other.redirection.settled.get());
            }
        }
        Some(is_known)
    }

    /// After news has come the telling lane is asked for an answer: what comes behind that is of writes behind all reads whose
    /// replies are here now. One question at a time.
    pub(super) fn settle(&self) {
        let Redirection { hearing, settled, is_settling, has_told, .. } = &self.redirection;
        let hearing = hearing.borrow();
        let Some((hearing, _)) = hearing.as_ref().filter(|_| has_told.get() && !is_settling.get()) else {
            return;
        };
        has_told.set(false);
        is_settling.set(true);
        let (settled, is_settling, answered) = (Rc::clone(settled), Rc::clone(is_settling), self.answered());
        let then = move |answer: Result<Vec<Bytes>, super::Lost>| {
            is_settling.set(false);
            if answer.is_ok() {
                settled.set(answered);
            }
        };
        hearing.exchange(&encode::one_command(&[b"PING"]), 1, Instant::now(), Box::new(then));
    }

    /// Nothing more is told over this lane: the lanes that were told over it are of no use. Their readers forget everything now
    /// and, when the last replies have come, once more.
    pub(super) fn end_redirections(&self) {
        for other in self.redirection.others.take().iter().filter_map(Weak::upgrade) {
            other.leave(UpstreamClose::Unfit);
            if let Some(tracker) = other.tracker() {
                tracker.tell_all(None);
            }
        }
    }
}
