//! Why there is no configuration.

use std::io;

/// Why there is no configuration. None of them repeats a value: it may be a password.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConvertError {
    /// The name does not tell, and the flag is missing.
    #[error("{path}: unknown format; use --from twemproxy or --from predixy")]
    UnknownFormat {
        /// The file.
        path: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// twemproxy's file is no YAML.
    #[error("not valid YAML: {0}")]
    Yaml(String),
    /// It is, but has not the form.
    #[error("no pool: twemproxy's file has a name for each pool, with its settings below")]
    NoPools,
    /// One has to be chosen.
    #[error("several pools: convert each separately, with --pool and one of {0}")]
    SeveralPools(String),
    /// Another one has to be chosen.
    #[error("no pool is named {wanted:?}; the pools are {names}")]
    NoSuchPool {
        /// The requested pool.
        wanted: String,
        /// The existing pools.
        names: String,
    },
    /// predixy's file has not the form.
    #[error("{path}, line {line}: {what}")]
    Predixy {
        /// The file.
        path: String,
        /// Where in it.
        line: usize,
        /// The mistake.
        what: &'static str,
    },
}
