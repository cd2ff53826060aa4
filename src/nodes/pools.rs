//! One worker's pool of each node.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::registry::Nodes;
use crate::cluster::SlotMap;
use crate::pool::Pool;
use crate::upstream::HostPort;

/// The pools of one worker.
pub struct NodePools {
    nodes: Arc<Nodes>,
    /// The pool of the home node, whichever that is.
    home: Rc<Pool>,
    /// The others that were ever needed.
    pools: RefCell<BTreeMap<HostPort, Rc<Pool>>>,
    seen: RefCell<Seen>,
}

/// What was published when it was last looked at.
#[derive(Default)]
struct Seen {
    version: u64,
    map: Arc<SlotMap>,
    home: Option<HostPort>,
    /// In the order of the map's masters, as far as they were needed.
    owners: Vec<Option<Rc<Pool>>>,
}

impl std::fmt::Debug for NodePools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodePools").field("pools", &self.pools.borrow().len()).finish_non_exhaustive()
    }
}

impl NodePools {
    /// The pools of a worker whose pool of the home node is `home`.
    #[must_use]
    pub fn new(nodes: Arc<Nodes>, home: Rc<Pool>) -> Self {
        Self { nodes, home, pools: RefCell::default(), seen: RefCell::default() }
    }

    /// What all workers know.
    #[must_use]
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// The pool of the home node.
    #[must_use]
    pub fn home(&self) -> &Rc<Pool> {
        &self.home
    }

    /// The pool of the node that owns `slot`. `None`: nobody owns it.
    #[must_use]
    pub fn owner(&self, slot: u16) -> Option<Rc<Pool>> {
        self.look();
        let mut seen = self.seen.borrow_mut();
        let at = seen.map.owner(slot)?;
        if let Some(Some(pool)) = seen.owners.get(at) {
            return Some(Rc::clone(pool));
        }
        let pool = self.pool_at(seen.map.masters().get(at)?, seen.home.as_ref())?;
        if let Some(owner) = seen.owners.get_mut(at) {
            *owner = Some(Rc::clone(&pool));
        }
        Some(pool)
    }

    /// The pool of `node`. `None`: the cluster has never named it.
    #[must_use]
    pub fn at(&self, node: &HostPort) -> Option<Rc<Pool>> {
        self.look();
        self.pool_at(node, self.seen.borrow().home.as_ref())
    }

    /// Which node `pool` is of. `None`: there is no home node yet.
    #[must_use]
    pub fn node_of(&self, pool: &Rc<Pool>) -> Option<HostPort> {
        self.look();
        if Rc::ptr_eq(pool, &self.home) {
            return self.seen.borrow().home.clone();
        }
        let pools = self.pools.borrow();
        pools.iter().find(|(_, other)| Rc::ptr_eq(other, pool)).map(|(node, _)| node.clone())
    }

    /// The pools that were ever needed, without that of the home node.
    #[must_use]
    pub fn others(&self) -> Vec<Rc<Pool>> {
        self.pools.borrow().values().cloned().collect()
    }

    /// Those of them whose nodes own no slot any more, or have become home.
    #[must_use]
    pub fn deposed(&self) -> Vec<Rc<Pool>> {
        self.look();
        let seen = self.seen.borrow();
        let is_master =
            |node: &HostPort| seen.map.lowest_slot(node).is_some() && seen.home.as_ref() != Some(node);
        let pools = self.pools.borrow();
        pools.iter().filter(|(node, _)| !is_master(node)).map(|(_, pool)| Rc::clone(pool)).collect()
    }

    /// Grows when the map or the home node changes.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.nodes.version()
    }

    fn pool_at(&self, node: &HostPort, home: Option<&HostPort>) -> Option<Rc<Pool>> {
        if home == Some(node) {
            return Some(Rc::clone(&self.home));
        }
        if let Some(pool) = self.pools.borrow().get(node) {
            return Some(Rc::clone(pool));
        }
        let server = self.nodes.server(node)?;
        let pool = Pool::new(server.shared(&self.home.shared), self.home.tasks().clone());
        self.pools.borrow_mut().insert(node.clone(), Rc::clone(&pool));
        Some(pool)
    }

    /// Looks at what is published, if that has changed.
    fn look(&self) {
        let version = self.nodes.version();
        if self.seen.borrow().version == version {
            return;
        }
        let (map, home) = self.nodes.look();
        let owners = vec![None; map.masters().len()];
        self.seen.replace(Seen { version, map, home, owners });
    }
}
