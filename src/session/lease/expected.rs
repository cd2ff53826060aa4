//! The expected replies to commands on a lease, and their handling.

use bytes::Bytes;

use crate::session::queued::Member;
use crate::session::{Hello, Listen, answers};

/// The expected reply to a command sent on the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// One reply that changes nothing.
    Reply,
    /// That of a command which may leave state on the connection that is not modelled here, unless it is an error.
    State,
    /// That of PUBLISH, or of a question about subscribers: this request's, whose count is corrected.
    Counted(Bytes),
    /// A blocking call's: it may take as long as it likes.
    Blocking,
    /// MULTI's.
    Multi,
    /// EXEC's.
    Exec,
    /// DISCARD's.
    Discard,
    /// WATCH's.
    Watch,
    /// UNWATCH's.
    Unwatch,
    /// SELECT's.
    Select(u32),
    /// CLIENT TRACKING ON or OFF.
    Tracking(bool),
    /// CLIENT NO-TOUCH on or off.
    NoTouch(bool),
    /// MONITOR's +OK.
    Monitor,
    /// Confirmations, `left` of them; `None`: one for each subscription, at least one.
    Confirm(Listen, Option<usize>),
    /// The reply to our own PUBLISH before WAIT: kept back unless it is an error, which WAIT's reply then gives way to.
    WaitPublish,
    /// WAIT's or WAITAOF's.
    Wait,
    /// HELLO's reply, replaced by ours.
    Hello(Hello),
    /// The server's refusal of a command made to be refused: this is sent instead.
    Instead(Bytes),
    /// +QUEUED, or a refusal, of what this is in the open transaction.
    Queued(Member),
}

impl Expect {
    /// Bytes of requests and replies that are kept for it.
    pub(super) fn kept(&self) -> usize {
        match self {
            Self::Counted(bytes) | Self::Instead(bytes) => bytes.len(),
            Self::Queued(member) => member.kept(),
            Self::Reply
            | Self::State
            | Self::Blocking
            | Self::Multi
            | Self::Exec
            | Self::Discard
            | Self::Watch
            | Self::Unwatch
            | Self::Select(_)
            | Self::Tracking(_)
            | Self::NoTouch(_)
            | Self::Monitor
            | Self::Confirm(..)
            | Self::WaitPublish
            | Self::Wait
            | Self::Hello(_) => 0,
        }
    }

    /// Whether the meaning of later commands may change with this reply.
    pub(super) fn is_unsettling(&self) -> bool {
        matches!(self, Self::Multi | Self::Confirm(..))
    }
}

/// The handling of a frame from upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// It belongs to the client.
    Forward,
    /// A published message or a confirmation: it belongs to the client in any reply mode (`CLIENT_PUSHING` in redis
    /// `pubsub.c`).
    Message,
    /// It stays here.
    Swallow,
    /// The client gets this instead.
    Instead(Bytes),
    /// The client gets the reply to this request instead, which is made beside the connection; then
    /// [`LeaseState::has_answered`] is to be called.
    Beside(Bytes),
    /// Nothing waits for it: the connection cannot be trusted any more.
    Desync,
}

/// Queries besides the lease and its session.
pub trait Beside {
    /// The known facts about the server.
    fn facts(&self) -> answers::ServerFacts;
    /// The reply to `request` with our hubs taken out of its count and their clients put in; `None`: it stays.
    fn counted(&self, request: &[u8], reply: &[u8]) -> Option<Bytes>;
}
