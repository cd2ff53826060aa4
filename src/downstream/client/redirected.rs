//! Invalidations that go to another client (`CLIENT TRACKING ON REDIRECT`), and a client that is told for others.
//!
//! Only a client of the same user can be told: another user's could be flooded, or told keys that it may not see.

use std::rc::{Rc, Weak};
use std::sync::Arc;

use bytes::BytesMut;

use super::Client;
use crate::downstream::redirection::{Changed, Inbox};
use crate::pool::{News, Slice};
use crate::resp::{Protocol, encode};

/// Where RESP2 clients are told (`TrackingChannelName` in redis `tracking.c`).
const CHANNEL: &[u8] = b"__redis__:invalidate";

impl Client {
    fn user_id(&self) -> Option<u64> {
        self.session.borrow().user.as_ref().map(|user| user.id)
    }

    /// Tells `news` to whoever is told for this client.
    pub(in crate::downstream) fn tell(&self, news: &News) {
        let redirect = self.session.borrow().tracking.as_ref().and_then(|tracking| tracking.redirect);
        let Some(redirect) = redirect else {
            if self.attachment.is_moving() {
                // At once: no reply has begun, and what is kept back until a subscriber has gone is not sent then.
                self.send(&news.frame);
            } else {
                self.send_push(news.frame.clone());
            }
            return;
        };
        let inbox = self.user_id().and_then(|user| self.context.redirections.of(self.id(), user));
        if let Some(inbox) = inbox {
            return inbox.put(&news.keys);
        }
        // As `sendTrackingMessage` in redis `tracking.c`: each time, and only where there are pushes.
        if let Some(tracking) = &mut self.session.borrow_mut().tracking {
            tracking.redirect = Some(redirect.broken());
        }
        if self.protocol() == Protocol::Resp3 {
            let mut out = BytesMut::new();
            encode::push(&mut out, Protocol::Resp3, 2);
            encode::bulk(&mut out, b"tracking-redir-broken");
            encode::integer(&mut out, i64::try_from(redirect.id).unwrap_or(i64::MAX));
            self.send_push(out.freeze());
        }
    }

    /// The client with this id as one that is told for others, if it is one of the same user, on any worker.
    pub(in crate::downstream) async fn inbox_of(&self, id: u64) -> Option<Arc<Inbox>> {
        let user = self.user_id()?;
        self.context.workers.inbox(id, user).await
    }

    /// Where others of `user` may have what they are to be told go to this client. `None`: it is not theirs, or it ends.
    pub(super) fn inbox_for(self: Rc<Self>, user: u64) -> Option<Arc<Inbox>> {
        if self.user_id() != Some(user) || self.outbound.is_closed() || self.close_reason().is_some() {
            return None;
        }
        let (inbox, is_new) = self.context.redirections.inbox(self.id(), user);
        if is_new {
            let (client, from) = (Rc::downgrade(&self), Arc::clone(&inbox));
            self.context.pool.tasks().spawn_local(tell_for_others(client, from));
        }
        Some(inbox)
    }

    /// It is told what a client has sent to it. One that speaks RESP2 and is not subscribed to anything is told nothing, as by the
    /// server.
    fn is_told(&self, changed: Changed) {
        match self.protocol() {
            Protocol::Resp3 => self.send_push(News::of(changed).frame),
            Protocol::Resp2 if self.listed_flags().listens() => {
                let mut out = BytesMut::new();
                encode::array(&mut out, 3);
                encode::bulk(&mut out, b"message");
                encode::bulk(&mut out, CHANNEL);
                match changed {
                    Some(keys) => {
                        encode::array(&mut out, keys.len());
                        keys.iter().for_each(|key| encode::bulk(&mut out, key));
                    }
                    None => encode::null(&mut out, Protocol::Resp2),
                }
                self.send_push(out.freeze());
            }
            Protocol::Resp2 => {}
        }
    }
}

/// Passes on what comes into the inbox of a client, until that is closed.
async fn tell_for_others(client: Weak<Client>, inbox: Arc<Inbox>) {
    loop {
        inbox.filled().await;
        let Some(all) = inbox.take() else { return };
        let mut slice = Slice::begin();
        for changed in all {
            let Some(client) = client.upgrade() else { return };
            client.is_told(changed);
            drop(client);
            slice.breathe().await;
        }
    }
}
