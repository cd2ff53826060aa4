//! Errors of takeovers.

use std::io;
use std::path::PathBuf;

/// A failed takeover. The old process continues to serve.
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
    /// The other process runs as a user that is neither ours nor root.
    #[error("the other process runs as user {uid}; expected user {expected} or root")]
    ForeignUser {
        /// Its user.
        uid: u32,
        /// Our user.
        expected: u32,
    },
    /// It has refused.
    #[error("the running process refuses: {0}")]
    Refused(String),
    /// It requires a feature that this version lacks.
    #[error("{0}")]
    Incompatible(String),
    /// It has closed the connection or exited.
    #[error("the other process has ended the takeover")]
    Closed,
    /// It has not continued in time.
    #[error("the other process did not continue within 10 seconds (expected message: {0})")]
    TimedOut(&'static str),
    /// It has sent an unexpected message.
    #[error("the other process has sent an unexpected message: {0}")]
    Unexpected(String),
    /// The new process cannot use the server with its configuration.
    #[error("the server was not reached within 10 seconds: {0}")]
    Server(String),
    /// The operating system refuses.
    #[error("the operating system refuses: {0}")]
    System(#[from] io::Error),
}
