//! Open files: the limit is raised at the start, and clients leave a reserve of them.
//!
//! Every connection is an open file. Where the limit is smaller than `client.max` asks for, the last files must not go to
//! clients: without one, no upstream connection can be dialled and no admin page answered. So fewer clients are
//! admitted, and those beyond are refused in words, as at `client.max`.

use crate::config::Config;

/// Files for what is neither a client nor an upstream connection: the admin port's connections, listeners, the
/// runtimes' own, files that are read anew (certificates, users), name lookups.
const OWN: usize = 128;
/// The runtime of one worker: its epoll instance and what wakes it.
const PER_WORKER: usize = 8;

/// Raises the soft limit of open files to the hard one; returns for how many clients and peers that have not logged in there
/// are files, and says so where `client.max` are more.
pub(super) fn clients_that_fit(config: &Config) -> usize {
    let limit = match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be read or raised");
            return usize::MAX;
        }
    };
    let reserve = OWN + PER_WORKER * config.workers + config.pool.max_connections;
    let fit = fitting(reserve, limit);
    if fit < config.client.max {
        tracing::warn!(
            open_files = limit,
            reserve,
            clients = fit,
            client_max = config.client.max,
            "the limit of open files (ulimit -n, LimitNOFILE) admits fewer clients than client.max"
        );
    }
    fit
}

/// At least one client is admitted, however small the limit is.
fn fitting(reserve: usize, limit: usize) -> usize {
    limit.saturating_sub(reserve).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_the_reserve_leaves() {
        assert_eq!(fitting(150, 1024), 874);
        assert_eq!(fitting(150, 100), 1);
    }
}
