//! Passing a client to another process, and its arrival there.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{BlockedCall, Client, Subscriber};
use crate::downstream::context::Stage;
use crate::downstream::identity::AuthMode;
use crate::downstream::moved::{
    Blocked, ClientDescription, Leaving, Login, MovedClient, Subscribed, Tracked,
};
use crate::hub::Withdrawn;
use crate::pool::{News, Reader};
use crate::resp::{Protocol, RequestScanner};
use crate::session::{Failed, Listen};

/// One that has sent more of a command that is not whole stays until it is; one with more bytes of prefixes stays, too.
const MOST_INPUT: usize = 64 << 10;

/// The names of a subscriber that has more bytes of them stay here with it.
const MOST_NAMES: usize = 1 << 20;

impl Client {
    /// Passes the client to the process that takes over, if it can move now. `true`: it no longer belongs to this
    /// process, which must not read from it or write to it.
    pub(in crate::downstream) fn moves(&self) -> bool {
        let Some(way) = self.context.way_out() else { return false };
        let Ok(place) = way.sender.try_reserve() else { return false };
        if self.session.borrow().listens > 0 || self.subscriber.borrow().is_some() {
            return false;
        }
        let Some(login) = self.shown_login() else { return false };
        let Some(mut description) = self.described(login) else { return false };
        let Some(socket) = self.outbound.socket().duplicate() else { return false };
        let Some(has_forgotten) = self.forgets_by_name() else { return false };
        description.tracked.iter_mut().for_each(|tracked| tracked.has_forgotten = has_forgotten);
        place.send(Leaving::Client(MovedClient { description, socket }));
        true
    }

    /// Tells it by name to forget what it has last read. Whether that is all that it may have cached, so that the new process
    /// need not tell it to forget everything, of which libraries make different things while they wait for a reply. `None`: the
    /// kernel has not taken all of it.
    fn forgets_by_name(&self) -> Option<bool> {
        let mut is_all = false;
        if self.hears_invalidations() {
            let (keys, are_all) = self.context.pool.last_read_by(self.id());
            is_all = are_all && !self.has_missed.get();
            if !keys.is_empty() {
                // At once: no reply has begun, and what is kept back for a subscriber comes later.
                self.send(&News::of(Some(keys)).frame);
            }
        }
        (!self.has_unsent()).then_some(is_all)
    }

    /// Whether it may go with its blocking call to the process that takes over.
    pub(in crate::downstream) fn may_move_blocked(&self, call: &BlockedCall) -> bool {
        let takes =
            || self.context.way_out().is_some_and(|way| way.accepts.blocked && !way.sender.is_closed());
        self.context.stage.get() == Stage::Leaving
            && takes()
            && call.is_alone()
            && self.subscriber.borrow().is_none()
            && self.outbound.socket().is_plain()
            && !self.has_more()
            && !self.has_unsent()
    }

    /// Passes the client with its blocking call to the process that takes over, if `withdraw` can take the call from
    /// its queue. `true`: it no longer belongs to this process.
    pub(in crate::downstream) fn moves_blocked(
        &self,
        call: &BlockedCall,
        (waited, muted): (Duration, bool),
        withdraw: impl FnOnce() -> Option<Withdrawn>,
    ) -> bool {
        let Some(way) = self.context.way_out().filter(|_| self.may_move_blocked(call)) else { return false };
        let Ok(place) = way.sender.try_reserve() else { return false };
        let Some(mut description) = self.shown_login().and_then(|login| self.described(login)) else {
            return false;
        };
        let Some(socket) = self.outbound.socket().duplicate() else { return false };
        let Some(has_forgotten) = self.forgets_by_name() else { return false };
        description.tracked.iter_mut().for_each(|tracked| tracked.has_forgotten = has_forgotten);
        let Some(Withdrawn { request, has_looked }) = withdraw() else { return false };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(waited);
        description.blocked = Some(Blocked { request: request.to_vec(), waited, since, has_looked, muted });
        place.send(Leaving::Client(MovedClient { description, socket }));
        true
    }

    /// Whether it is a subscriber that may be announced to the process that takes over.
    pub(in crate::downstream) fn is_to_be_announced(&self) -> bool {
        let takes = self.context.way_out().is_some_and(|way| {
            let accepts =
                way.accepts.subscribers && (way.accepts.tracking_subscribers || !self.has_tracked.get());
            accepts && !way.sender.is_closed()
        });
        let subscriber = self.subscriber.borrow();
        let may_move = |own: &Rc<Subscriber>| own.may_move(Instant::now()) && own.size() <= MOST_NAMES;
        takes
            && subscriber.as_ref().is_some_and(may_move)
            && !self.has_more()
            && self.outbound.socket().is_plain()
            && self.context.departures.may_begin(self.id())
    }

    /// A subscriber, and the channel that is to divide its messages, for the process that takes over.
    pub(in crate::downstream) fn announced(&self, divider: String) -> Option<MovedClient> {
        let subscriber = self.subscriber.borrow().clone()?;
        let names = |listen| subscriber.names(listen).iter().map(|name| name.to_vec()).collect();
        let subscribed = Subscribed {
            channels: names(Listen::Channels),
            patterns: names(Listen::Patterns),
            shards: names(Listen::Shards),
            divider,
        };
        let description =
            ClientDescription { subscribed: Some(subscribed), ..self.described(self.shown_login()?)? };
        let socket = self.outbound.socket().duplicate()?;
        Some(MovedClient { description, socket })
    }

    /// Whether there is more than can be carried over to another process.
    fn has_more(&self) -> bool {
        self.has_more_than_a_session() || self.shown_login().is_none()
    }

    /// Whether there is more than its session and its subscriptions.
    fn has_more_than_a_session(&self) -> bool {
        let session = self.session.borrow();
        let accepts = self.context.way_out().map(|way| way.accepts).unwrap_or_default();
        let prefixes = session.tracking.as_ref().and_then(|tracking| tracking.prefixes.as_ref());
        let is_short = |all: &BTreeSet<Bytes>| all.iter().map(Bytes::len).sum::<usize>() <= MOST_INPUT;
        session.user.is_none()
            || prefixes.is_some_and(|all| !accepts.tracking_prefixes || !is_short(all))
            || self.has_tracked.get() && !accepts.tracking
            || session.tracking.as_ref().is_some_and(|tracking| tracking.redirect.is_some())
            || self.context.redirections.is_target(self.id())
            || session.failed != Failed::Nothing
            || self.outbound.has_ended_input()
            || self.inbound.len() > MOST_INPUT
    }

    /// The credentials of its login, if it had to log in. `None`: they have no meaning in another process.
    fn shown_login(&self) -> Option<Option<Login>> {
        match self.identified.shown_secret() {
            None => Some(None),
            // The users file of the other process may be another one.
            Some(_) if self.context.auth.mode == AuthMode::Static => None,
            Some(identity) => {
                let secret = identity.password.as_ref()?;
                Some(Some(Login::new(identity.username.clone(), secret.expose())))
            }
        }
    }

    /// Its session state. `None`: some of it cannot be passed.
    pub(super) fn described(&self, login: Option<Login>) -> Option<ClientDescription> {
        if self.has_more_than_a_session() {
            return None;
        }
        let session = self.session.borrow();
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
            input: self.input(),
            age: self.connected_for(),
            idle: self.inbound.last_input().elapsed(),
            subscribed: None,
            blocked: None,
            tracked: self.has_tracked.get().then(|| Tracked::of(session.tracking.as_deref())),
        })
    }

    /// The bytes that it has sent and that were not executed.
    fn input(&self) -> Vec<u8> {
        self.inbound.with(|begun| begun.buffer.to_vec()).unwrap_or_default()
    }

    /// An announced client goes now, unless it has begun to leave or holds what was not written. `true`: it is not ours any more.
    pub(in crate::downstream) fn is_given(&self, place: mpsc::Permit<'_, Leaving>) -> bool {
        if self.has_unsent() || self.close_reason().is_some() || self.has_ended_input() {
            return false;
        }
        let Some(has_forgotten) = self.forgets_by_name() else { return false };
        place.send(Leaving::Given { client: self.id(), input: self.input(), has_forgotten });
        true
    }

    /// It has been announced by another process, which still has it.
    pub(in crate::downstream) fn belongs_to_another(&self) {
        self.outbound.leaves_to_another();
    }

    /// Data for it is written by this process once it owns the client.
    pub(in crate::downstream) fn hears_again(&self) {
        self.outbound.holds_pushes();
    }

    /// This process owns the client now, with this input; `has_forgotten`: its cache is invalidated.
    pub(in crate::downstream) fn is_received(&self, input: &[u8], has_forgotten: bool) {
        self.inbound.discard();
        if !input.is_empty() {
            self.inbound.keep(input, RequestScanner::default(), self.outbound.account());
        }
        self.outbound.set_mid_reply(false);
        if self.has_tracked.get() && !has_forgotten {
            // What has changed on the way, nobody has told it.
            self.hears(&News::of(None));
        }
    }

    /// It has come from another process, or has been announced by it.
    pub(in crate::downstream) fn arrives(self: &Rc<Self>, description: &ClientDescription) {
        let age = u64::try_from(description.age.as_micros()).unwrap_or(u64::MAX);
        self.opened.set(self.context.now().wrapping_sub(age));
        if let Some(then) = Instant::now().checked_sub(description.idle) {
            self.inbound.had_input(then);
        }
        if !description.input.is_empty() {
            self.inbound.keep(&description.input, RequestScanner::default(), self.outbound.account());
        }
        if description.tracked.is_some() {
            self.has_tracked.set(true);
        }
        let keeps = description.tracked.as_ref().is_some_and(|tracked| !tracked.has_forgotten);
        if keeps && description.subscribed.is_none() {
            // What has changed on the way, nobody has told it. A subscriber is told when it is ours.
            self.hears(&News::of(None));
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
        // Further data is dropped.
        self.outbound.set_mid_reply(false);
    }
}
