//! A client's task from its first byte to its last.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use super::pipeline::Step;
use crate::downstream::client::{Attachment, Client};
use crate::pool::Slice;
use crate::telemetry::{ClientClose, client_closed};

/// How long the last reply to a client that is being closed may take to leave.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Client {
    /// Serves the client until it is closed.
    pub(in crate::downstream) async fn run(self: Rc<Self>) {
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
                    if let Err(reason) = Box::pin(self.catch_up()).await {
                        break reason;
                    }
                }
                Step::Slow(taken) => {
                    let answers = self.attachment.enter(Attachment::Answering);
                    // Boxed, so that an idle client does not carry the room that waiting takes.
                    let done = Box::pin(self.dispatch(*taken)).await;
                    drop(answers);
                    if let Err(reason) = done {
                        break reason;
                    }
                    slice.breathe().await;
                }
            }
        };
        Box::pin(self.finish(reason)).await;
    }

    async fn finish(&self, reason: ClientClose) {
        self.attachment.close(reason);
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
        self.leave_group();
        self.leave_trackers();
        self.shut();
        self.leave_subscriptions_in_slices().await;
        self.context.forget(self.id);
        client_closed(reason);
        let age = self.connected_for();
        match reason {
            ClientClose::ClientEof | ClientClose::Quit | ClientClose::Shutdown => {
                tracing::debug!(client = self.id, peer = %self.peer, reason = reason.label(), ?age, "client closed");
            }
            _ => {
                tracing::info!(client = self.id, peer = %self.peer, reason = reason.label(), ?age, "client closed");
            }
        }
    }
}
