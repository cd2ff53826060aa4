//! A client's task from its first byte to its last.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::client::Client;
use super::drive::Step;
use crate::pool::Slice;
use crate::telemetry::{ClientClose, client_closed};

/// How long the last reply to a client that is being closed may take to leave.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often a client's worker looks after it.
const AGE: Duration = Duration::from_secs(1);

impl Client {
    /// Serves the client until it is closed.
    pub(super) async fn run(self: Rc<Self>) {
        let mut slice = Slice::begin();
        let reason = loop {
            match poll_fn(|cx| self.poll_fast(cx)).await {
                Step::Close(reason) => break reason,
                Step::AskForLimit => {
                    if let Err(reason) = Box::pin(self.ask_for_limit()).await {
                        break reason;
                    }
                }
                Step::CatchUp => {
                    self.in_slow_path.set(true);
                    let done = Box::pin(self.catch_up()).await;
                    self.in_slow_path.set(false);
                    if let Err(reason) = done {
                        break reason;
                    }
                }
                Step::Slow(taken) => {
                    self.busy.set(true);
                    self.in_slow_path.set(true);
                    // Boxed, so that an idle client does not carry the room that waiting takes.
                    let done = Box::pin(self.slow(*taken)).await;
                    self.busy.set(false);
                    self.in_slow_path.set(false);
                    if let Err(reason) = done {
                        break reason;
                    }
                    slice.breathe().await;
                }
            }
        };
        Box::pin(self.close(reason)).await;
    }

    async fn close(&self, reason: ClientClose) {
        let speaks_last = match reason {
            ClientClose::Quit
            | ClientClose::Killed
            | ClientClose::ProtocolError
            | ClientClose::TlsOnPlain
            | ClientClose::ServerChanged
            | ClientClose::CommandTimeout
            | ClientClose::LoginRevoked
            | ClientClose::Denied
            | ClientClose::TooMany
            | ClientClose::TooManyFromAddress
            | ClientClose::Shutdown
            | ClientClose::NoUpstream
            | ClientClose::StateRefused
            | ClientClose::UpstreamLost
            | ClientClose::LeaseLost
            | ClientClose::SubscriptionLost
            | ClientClose::ClientEof => true,
            ClientClose::ClientLost
            | ClientClose::Http
            | ClientClose::PlainOnTls
            | ClientClose::TlsFailed
            | ClientClose::TlsTimeout
            | ClientClose::RequestLimit
            | ClientClose::OutputLimit
            | ClientClose::Memory
            | ClientClose::IdleTimeout
            | ClientClose::LoginTimeout
            | ClientClose::GaveWay
            | ClientClose::HalfCommand => false,
        };
        if speaks_last && self.has_unsent() {
            let _ = tokio::time::timeout(LAST_WORDS, poll_fn(|cx| self.poll_flush(cx))).await;
        }
        self.closed.set(true);
        self.waker.borrow_mut().take();
        self.leave_group();
        self.leave_trackers();
        // Slots in lanes may hold this client until their replies have come; its socket is closed now.
        self.socket.close();
        self.membership.take();
        self.admission.take();
        self.leave_subscriptions_in_slices().await;
        self.holds_nothing();
        self.worker.forget(self);
        client_closed(reason);
        let age = self.opened.elapsed();
        match reason {
            ClientClose::ClientEof | ClientClose::Quit | ClientClose::Shutdown => {
                tracing::debug!(client = self.id, peer = %self.peer, reason = reason.label(), ?age, "client closed");
            }
            _ => {
                tracing::info!(client = self.id, peer = %self.peer, reason = reason.label(), ?age, "client closed");
            }
        }
    }

    /// Every second: whether the host is still there, and the limits that time sets: a login, a command begun, silence.
    pub(super) fn age(&self, now: Instant) {
        let heard = now.saturating_duration_since(self.last_input.get()) < AGE;
        if self.socket.has_vanished(heard, now) {
            return self.doom(ClientClose::ClientLost);
        }
        if self.over_soft_since.get().is_some() {
            self.check_subscriber_limits(self.out.borrow().len() + self.held_back());
        }
        let options = &self.worker.options;
        let idle = self.idle(now);
        let logged_in = self.session.borrow().user.is_some();
        let flags = self.listed_flags();
        let listens = flags.blocked
            || flags.monitor
            || flags.tracking
            || flags.channels + flags.patterns + flags.shards > 0;
        if !logged_in && now.saturating_duration_since(self.opened) > options.login_timeout {
            self.doom(ClientClose::LoginTimeout);
        } else if !self.is_busy()
            && !flags.blocked
            && self.read_ahead() > 0
            && idle > options.half_command_timeout
        {
            self.doom(ClientClose::HalfCommand);
        } else if let Some(limit) = options.idle_timeout
            && idle > limit
            && !listens
            && !self.is_busy()
        {
            self.doom(ClientClose::IdleTimeout);
        }
    }
}
