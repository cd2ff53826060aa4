//! How far the input of a client could be run, and why not further.

use super::pending::PendingCommand;
use crate::telemetry::ClientClose;

/// Why the fast path stops.
#[derive(Debug)]
pub(in crate::downstream) enum Next {
    /// A command needs more than a lane that is there. Boxed: the task of every client has room for one.
    Slow(Box<PendingCommand>),
    /// It has announced more than the server took when it was last asked ([`Client::ask_for_limit`]).
    AskForLimit,
    /// A subscriber has closed its side, and what was published before may not have come.
    CatchUp,
    /// It asks for keys by prefix, and no lane tells it of them.
    AskForPrefixes,
    /// In a cluster, commands did not run where they were sent: they are to be sent again.
    Mend,
    /// It is a subscriber that may go to the process that takes over.
    Depart,
    /// Another worker goes on with it.
    Moved,
    /// The client is to be closed.
    Close(ClientClose),
}

/// How far the input could be run.
pub(in crate::downstream) enum Progress {
    /// More bytes are needed; at least this many of the command that has begun.
    Hungry(usize),
    /// Something else must happen first, and will wake us: replies, or room in the lane.
    Waiting,
    /// Others are to be served first.
    Later,
    /// See [`Next`].
    Stop(Next),
}

/// What is done with a frame. `Ok`: it is done with, this many bytes. `Err`: stop, after this many bytes.
pub(super) type Taken = Result<usize, (usize, Progress)>;
