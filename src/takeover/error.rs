//! Why a takeover fails.

use std::io;
use std::path::PathBuf;

/// Why a takeover fails. The old process goes on serving.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// The socket cannot be reached or opened.
    #[error("takeover.socket {}: {source}", path.display())]
    Socket {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The other end belongs to a user that is neither ours nor root.
    #[error("the other process runs as user {uid}; expected user {expected} or root")]
    ForeignUser {
        /// Its user.
        uid: u32,
        /// Our own.
        expected: u32,
    },
    /// It has said no.
    #[error("the running process refuses: {0}")]
    Refused(String),
    /// It needs what this version does not know.
    #[error("{0}")]
    Incompatible(String),
    /// It has closed the connection, or ended.
    #[error("the other process has ended the takeover")]
    Closed,
    /// It has not gone on.
    #[error("the other process did not continue within 10 seconds (expected message: {0})")]
    TimedOut(&'static str),
    /// It has said what does not belong here.
    #[error("the other process has sent an unexpected message: {0}")]
    Unexpected(String),
    /// The new process cannot use the server with its configuration.
    #[error("the server was not reached within 10 seconds: {0}")]
    Server(String),
    /// The operating system refuses.
    #[error("the operating system refuses: {0}")]
    System(#[from] io::Error),
}
