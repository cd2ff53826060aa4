//! How a client goes on in another process, and how it arrives there.

use std::rc::Rc;

use bytes::BytesMut;
use tokio::time::Instant;

use super::Client;
use crate::downstream::identity::AuthMode;
use crate::downstream::moved::{ClientDescription, Login, MovedClient};
use crate::resp::{Protocol, RequestScanner};
use crate::session::Failed;

/// One that has sent more of a command that is not whole stays until it is.
const MOST_INPUT: usize = 64 << 10;

impl Client {
    /// Sends it to the process that takes over, if it can move now. `true`: it is not ours any more, and nothing more may be
    /// read from it or written to it.
    pub(in crate::downstream) fn moves(&self) -> bool {
        let Some(way) = self.context.way_out() else { return false };
        let Ok(place) = way.try_reserve() else { return false };
        let Some(description) = self.described() else { return false };
        let Some(socket) = self.outbound.socket().duplicate() else { return false };
        place.send(MovedClient { description, socket });
        true
    }

    /// What it has set. `None`: there is more than can be carried over.
    fn described(&self) -> Option<ClientDescription> {
        let session = self.session.borrow();
        let has_more = session.user.is_none()
            || session.tracking.is_some()
            || self.has_tracked.get()
            || session.listens > 0
            || self.subscriber.borrow().is_some()
            || session.failed != Failed::Nothing
            || self.outbound.has_ended_input()
            || self.inbound.len() > MOST_INPUT;
        if has_more {
            return None;
        }
        let login = match self.identified.shown_secret() {
            None => None,
            // The users file of the other process may be another one.
            Some(_) if self.context.auth.mode == AuthMode::Static => return None,
            Some(identity) => {
                let secret = identity.password.as_ref()?;
                Some(Login::new(identity.username.clone(), secret.expose()))
            }
        };
        let (knows_greeting, knows_scripts) = self.learned.known();
        Some(ClientDescription {
            id: self.id(),
            peer: (&self.peer).into(),
            trusted: self.identified.trusted,
            login,
            database: session.database,
            resp3: session.protocol == Protocol::Resp3,
            readonly: session.readonly,
            replies: session.replies.into(),
            name: session.name.to_vec(),
            library: session
                .library
                .as_ref()
                .map(|library| (library.name.to_vec(), library.version.to_vec())),
            no_evict: session.no_evict,
            knows_greeting,
            knows_scripts,
            input: self.inbound.with(|begun| begun.buffer.to_vec()).unwrap_or_default(),
            age: self.connected_for(),
            idle: self.inbound.last_input().elapsed(),
        })
    }

    /// It has come from another process.
    pub(in crate::downstream) fn arrives(self: &Rc<Self>, description: &ClientDescription) {
        let age = u64::try_from(description.age.as_micros()).unwrap_or(u64::MAX);
        self.opened.set(self.context.now().wrapping_sub(age));
        if let Some(then) = Instant::now().checked_sub(description.idle) {
            self.inbound.had_input(then);
        }
        if !description.input.is_empty() {
            let input = BytesMut::from(description.input.as_slice());
            self.inbound.keep(&input, RequestScanner::default(), self.outbound.account());
        }
        let change = || self.context.pool.shared.connector.server_change();
        if description.knows_greeting {
            self.learned.greets(change);
        }
        if description.knows_scripts {
            self.learned.uses_scripts(change);
            self.learned.has_sent();
        }
    }

    /// It is another process's: nothing here holds anything for it any more, and its connection stays open.
    pub(in crate::downstream) fn let_go(&self) {
        self.outbound.let_go();
        self.identified.leave();
        self.inbound.discard();
        self.outbound.drop_queue();
    }
}
