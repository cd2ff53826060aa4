//! One worker's knowledge of the server, from logins and from its own queries.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use crate::downstream::identity::{AdminCommands, AuthOptions};
use crate::pool::Pool;
use crate::resp::{MAX_ARGUMENTS, MAX_ARGUMENTS_OLD};
use crate::session::{ALWAYS_TAKEN, LoadedModule, Placement, Policy, RowFormat, ServerFacts};
use crate::upstream::MissingCapabilities;

/// How long the server's limit on arguments is believed before a client is told of it.
const FRESH: Duration = Duration::from_secs(1);
/// Commands of no table of ours whose place is remembered.
const MAX_PLACEMENTS: usize = 1024;
/// Users remembered who may use transactions.
const MAX_USERS: usize = 4096;

/// The server as one worker knows it.
pub(in crate::downstream) struct ServerView {
    pool: Rc<Pool>,
    /// A cluster is served as if it were one server.
    is_cluster: bool,
    policy: Cell<Policy>,
    /// Most arguments of one request that it takes.
    max_arguments: Cell<u32>,
    /// Where commands that are in no table of ours may run.
    placements: RefCell<HashMap<Vec<u8>, Placement>>,
    /// Users who may MULTI and EXEC, so that blocking calls can be tried.
    may_try: RefCell<HashSet<u64>>,
    /// How it writes a row of CLIENT LIST, by the version that was asked.
    row_format: RefCell<Option<(String, RowFormat)>>,
    /// When a client last had it asked for its limit on arguments.
    limit_asked: Cell<Option<Instant>>,
}

impl ServerView {
    pub(super) fn new(pool: Rc<Pool>, auth: &AuthOptions, has_pubsub_hub: bool) -> Self {
        let refuse_admin = auth.admin_commands == AdminCommands::Refuse;
        Self {
            is_cluster: pool.shared.connector.is_of_cluster(),
            pool,
            policy: Cell::new(Policy { refuse_admin, pubsub_hub: has_pubsub_hub, ..Policy::default() }),
            max_arguments: Cell::new(MAX_ARGUMENTS_OLD),
            placements: RefCell::default(),
            may_try: RefCell::default(),
            row_format: RefCell::default(),
            limit_asked: Cell::new(None),
        }
    }

    /// Whether commands that reach beyond the own connection are refused (`auth.admin_commands`).
    pub(in crate::downstream) fn refuse_admin(&self, refuse_admin: bool) {
        self.policy.set(Policy { refuse_admin, ..self.policy.get() });
    }

    pub(in crate::downstream) fn policy(&self) -> Policy {
        self.policy.get()
    }

    pub(in crate::downstream) fn max_arguments(&self) -> u32 {
        self.max_arguments.get()
    }

    /// Learns from the last login what the server is.
    pub(in crate::downstream) fn learn_from_login(&self) {
        if let Some(server) = self.pool.shared.connector.server() {
            let mut policy = self.policy.get();
            policy.cluster = server.mode == "cluster" && !self.is_cluster;
            policy.readonly = !self.is_cluster && (policy.cluster || server.server == "valkey");
            let major = server.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
            let is_old = major.is_none_or(|major| major < 7);
            // Before 7.0 an invalidation may come inside a reply, which would be somebody else's on a lane.
            policy.tracked_lanes = !is_old;
            self.policy.set(policy);
            self.max_arguments.set(if is_old { MAX_ARGUMENTS_OLD } else { MAX_ARGUMENTS });
        }
    }

    /// What HELLO says of the server, as it was at the last login.
    pub(in crate::downstream) fn facts(&self) -> Option<ServerFacts> {
        let server = self.pool.shared.connector.server()?;
        Some(ServerFacts {
            server: server.server.clone(),
            version: server.version.clone(),
            mode: if self.is_cluster { "standalone".to_owned() } else { server.mode.clone() },
            role: server.role.clone(),
            modules: server
                .modules
                .iter()
                .map(|module| LoadedModule {
                    name: module.name.clone(),
                    version: module.version,
                    path: module.path.clone(),
                    args: module.args.clone(),
                })
                .collect(),
        })
    }

    /// The capabilities that the server, or a user, lacks.
    pub(in crate::downstream) fn missing_capabilities(&self) -> &MissingCapabilities {
        self.pool.shared.connector.missing_capabilities()
    }

    /// Where the command `name` may run, if the server has been asked.
    pub(in crate::downstream) fn placement_of(&self, name: &[u8]) -> Option<Placement> {
        if name.len() > ALWAYS_TAKEN {
            // No command is called so, and the question would end the connection it is asked on.
            return Some(Placement::Once);
        }
        self.placements.borrow().get(name).copied()
    }

    pub(in crate::downstream) fn remember_placement(&self, name: &[u8], placement: Placement) {
        let mut known = self.placements.borrow_mut();
        if known.len() < MAX_PLACEMENTS {
            known.insert(name.to_vec(), placement);
        }
    }

    /// Whether `user` is known to be allowed transactions.
    pub(in crate::downstream) fn may_try(&self, user: u64) -> bool {
        self.may_try.borrow().contains(&user)
    }

    pub(in crate::downstream) fn remember_may_try(&self, user: u64) {
        let mut known = self.may_try.borrow_mut();
        if known.len() < MAX_USERS {
            known.insert(user);
        }
    }

    pub(in crate::downstream) fn forget_may_try(&self, user: u64) {
        self.may_try.borrow_mut().remove(&user);
    }

    /// How the server of `version` writes a row of CLIENT LIST, if that is known.
    pub(in crate::downstream) fn row_format(&self, version: &str) -> Option<RowFormat> {
        let known = self.row_format.borrow();
        known.as_ref().filter(|(of, _)| of == version).map(|(_, format)| format.clone())
    }

    pub(in crate::downstream) fn remember_row_format(&self, version: String, format: RowFormat) {
        self.row_format.replace(Some((version, format)));
    }

    /// Whether the server's limit on arguments was asked for so lately that it is believed.
    pub(in crate::downstream) fn is_limit_fresh(&self) -> bool {
        self.limit_asked.get().is_some_and(|asked| asked.elapsed() < FRESH)
    }

    pub(in crate::downstream) fn limit_was_asked(&self) {
        self.limit_asked.set(Some(Instant::now()));
    }
}
