//! A client's task from its first byte to its last.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::progress::Next;
use crate::downstream::client::{Attachment, Client};
use crate::downstream::moved::{Announced, Blocked, Subscribed};
use crate::pool::{Slice, go_on_later};
use crate::telemetry::{ClientClose, client_closed, printable, seconds};

/// How long the last reply to a client that is being closed may take to leave.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The task of one client: serves it until it is closed.
///
/// Two pointers, so that with what tokio keeps of a task it takes 128 bytes, and not 256, while it waits for the next command.
pub(in crate::downstream) struct ClientTask {
    client: Rc<Client>,
    /// A command that the fast path cannot finish, or the end.
    work: Option<Box<Work>>,
}

/// Something that is awaited.
struct Work(Pin<Box<dyn Future<Output = After>>>);

const _: () = assert!(size_of::<ClientTask>() <= 2 * size_of::<usize>());

/// What follows.
enum After {
    /// The next command, or the end.
    Command(Result<(), ClientClose>),
    /// Nothing: the client is closed.
    Nothing,
}

impl ClientTask {
    pub(in crate::downstream) fn new(client: Rc<Client>) -> Self {
        Self { client, work: None }
    }

    /// A subscriber that another process has announced.
    pub(in crate::downstream) fn subscribed(
        client: Rc<Client>,
        subscribed: Subscribed,
        announced: Announced,
    ) -> Self {
        let arriving = Rc::clone(&client);
        let work = Box::pin(async move { After::Command(arriving.arrive(subscribed, announced).await) });
        Self { client, work: Some(Box::new(Work(work))) }
    }

    /// A client whose blocking call has begun in another process.
    pub(in crate::downstream) fn blocked(client: Rc<Client>, call: Blocked) -> Self {
        let waiting = Rc::clone(&client);
        let work = Box::pin(async move { After::Command(waiting.goes_on_blocked(call).await) });
        Self { client, work: Some(Box::new(Work(work))) }
    }

    /// What is to be done for `step`.
    fn work(&self, step: Next) -> Pin<Box<dyn Future<Output = After>>> {
        let client = Rc::clone(&self.client);
        match step {
            Next::Close(reason) => Box::pin(async move {
                client.finish(reason).await;
                After::Nothing
            }),
            // Nothing of it is here any more.
            Next::Moved => Box::pin(async { After::Nothing }),
            Next::AskForLimit => Box::pin(async move { After::Command(client.ask_for_limit().await) }),
            Next::AskForPrefixes => {
                Box::pin(async move { After::Command(client.asks_for_prefixes_again().await) })
            }
            Next::Depart => Box::pin(async move { After::Command(client.depart().await) }),
            Next::Mend => Box::pin(async move { After::Command(client.mend().await) }),
            Next::CatchUp => Box::pin(async move { After::Command(client.catch_up().await) }),
            Next::Slow(taken) => Box::pin(async move {
                let _answers = client.attachment.enter(Attachment::Answering);
                After::Command(client.dispatch(*taken).await)
            }),
        }
    }
}

impl Future for ClientTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut slice: Option<Slice> = None;
        loop {
            let step = match &mut self.work {
                None => ready!(self.client.poll_fast(cx)),
                Some(work) => {
                    let after = ready!(work.0.as_mut().poll(cx));
                    self.work = None;
                    match after {
                        After::Nothing => return Poll::Ready(()),
                        After::Command(Err(reason)) => Next::Close(reason),
                        After::Command(Ok(())) if slice.get_or_insert_with(Slice::begin).is_over() => {
                            go_on_later(cx);
                            return Poll::Pending;
                        }
                        After::Command(Ok(())) => continue,
                    }
                }
            };
            let work = self.work(step);
            self.work = Some(Box::new(Work(work)));
        }
    }
}

impl Client {
    async fn finish(&self, reason: ClientClose) {
        let state = self.context.place_left(self.id()).unwrap_or_else(|| self.place_shown());
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
            ClientClose::TakenOver
            | ClientClose::ClientLost
            | ClientClose::Http
            | ClientClose::PlainOnTls
            | ClientClose::TlsFailed
            | ClientClose::TlsTimeout
            | ClientClose::RequestLimit
            | ClientClose::OutputLimit
            | ClientClose::Memory
            | ClientClose::IdleTimeout
            | ClientClose::LeaseIdle
            | ClientClose::LoginTimeout
            | ClientClose::GaveWay
            | ClientClose::HalfCommand => false,
        };
        if speaks_last && self.has_unsent() {
            let _ = tokio::time::timeout(LAST_WORDS, poll_fn(|cx| self.poll_flush(cx))).await;
        }
        self.leave_group();
        self.leave_trackers();
        if reason == ClientClose::TakenOver {
            self.let_go();
        } else {
            self.shut();
        }
        self.leave_subscriptions_in_slices().await;
        self.context.forget(self.id());
        client_closed(reason);
        if reason.is_by_the_server() {
            self.context.pool.shared.health.loses_a_client();
        }
        self.log_close(reason, state);
    }

    fn log_close(&self, reason: ClientClose, state: &'static str) {
        let session = self.session.borrow();
        let name = printable(&session.name);
        let user = session.user.as_ref().map_or("", |user| &user.name);
        let (client, peer, reason, age_seconds) =
            (self.id(), &self.peer, reason, seconds(self.connected_for()));
        match reason {
            ClientClose::ClientEof | ClientClose::Quit | ClientClose::Shutdown | ClientClose::TakenOver => {
                tracing::debug!(client, %peer, name, user, state, reason = reason.label(), age_seconds, "client closed");
            }
            _ => {
                tracing::info!(client, %peer, name, user, state, reason = reason.label(), age_seconds, "client closed");
            }
        }
    }
}
