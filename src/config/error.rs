//! What can be wrong with a configuration, and where it came from.
//!
//! All of it is the operator's to mend (exit code 64), so every text names the key, the place and what would be right.
//! None repeats a value that may hold a credential.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where a value came from. The order is the precedence: later wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The default.
    Default,
    /// A line of the configuration file, counted from 1.
    File {
        /// As given by `--config` or `REDBOUNCER_CONFIG`.
        path: PathBuf,
        /// Where the key stands.
        line: usize,
    },
    /// An environment variable, by name.
    Environment(String),
    /// A flag: `--listen`, `--set pool.linger`.
    Flag(String),
    /// `PROXY CONFIG SET`.
    Command,
}

impl Origin {
    /// Whether both come from the same kind of place, so that neither overrides the other.
    pub(super) fn is_level_with(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Command => f.write_str("PROXY CONFIG SET"),
        }
    }
}

/// One thing that is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The named file is missing or cannot be read.
    #[error("{path}: {source} (named by {origin})")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The source of the name.
        origin: Origin,
        /// The system's error.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{origin}: not valid TOML: {message}")]
    Syntax {
        /// File and line.
        origin: Origin,
        /// The parser's message, without the text of the line.
        message: String,
    },
    /// A key that does not exist.
    #[error("unknown key \"{key}\" ({origin}); the nearest known key is \"{nearest}\"")]
    UnknownKey {
        /// As written.
        key: String,
        /// The most similar key.
        nearest: &'static str,
        /// Where it is written.
        origin: Origin,
    },
    /// A section of the file that does not exist.
    #[error("unknown section [{section}] ({origin}); the nearest known section is [{nearest}]")]
    UnknownSection {
        /// As written.
        section: String,
        /// The most similar section.
        nearest: &'static str,
        /// Where it is written.
        origin: Origin,
    },
    /// An environment variable that begins with `REDBOUNCER_` and sets nothing.
    #[error("unknown environment variable {name}; the nearest known one is {nearest}")]
    UnknownVariable {
        /// Its name.
        name: String,
        /// The most similar variable.
        nearest: String,
    },
    /// An environment variable whose value is not UTF-8.
    #[error("environment variable {name}: its value is not UTF-8")]
    NotText {
        /// Its name.
        name: String,
    },
    /// A `--set` that is not `section.key=value`.
    #[error("flag --set: expected section.key=value, such as --set pool.max_connections=8")]
    NotASetting,
    /// The same key twice at the same level of precedence.
    #[error("\"{key}\" is set twice: by {first} and by {second}")]
    Twice {
        /// The key.
        key: &'static str,
        /// One place.
        first: Origin,
        /// The other.
        second: Origin,
    },
    /// A value that its key does not take.
    #[error("\"{key}\" ({origin}): {wrong}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// Where its value came from.
        origin: Origin,
        /// The expected and the found value.
        wrong: String,
    },
    /// Values that are each allowed but not together.
    #[error("{first_key} ({first}) and {second_key} ({second}): {wrong}", first_key = .keys.0, second_key = .keys.1)]
    Conflict {
        /// The two keys.
        keys: (&'static str, &'static str),
        /// Where the first one's value came from.
        first: Origin,
        /// Where the second one's value came from.
        second: Origin,
        /// Why they exclude each other.
        wrong: String,
    },
}
