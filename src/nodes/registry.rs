//! What all threads know of the cluster: the map of its slots, which node is home, and each node's server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::cluster::SlotMap;
use crate::pool::{Budget, DialRateLimiter, Health, Homes, Hubs, Liveness, MAX_BULK, NodeBudget, Shared};
use crate::upstream::{Connector, HostPort, PreparedTarget};

/// What a client has been told of one slot is newer than a map that was asked for within this time.
const FRESH: Duration = Duration::from_secs(2);

/// What all workers' pools of one node share.
#[derive(Clone, Debug)]
pub struct NodeServer {
    /// The cap of this node.
    pub budget: Arc<Budget>,
    /// How to dial it.
    pub connector: Arc<Connector>,
    homes: Arc<Homes>,
    dial_rate: Arc<DialRateLimiter>,
    health: Arc<Health>,
    liveness: Arc<Liveness>,
    max_bulk: Arc<AtomicU64>,
}

impl NodeServer {
    /// A node that nothing is open to. `blocking`: there may be a blocking hub. A pub/sub hub is with the home node only.
    #[must_use]
    pub fn new(connector: Connector, cap: usize, workers: usize, connect_rate: u32, blocking: bool) -> Self {
        Self {
            budget: Budget::new(cap, workers, Hubs { blocking, pubsub: false }),
            connector: Arc::new(connector),
            homes: Homes::new(1),
            dial_rate: Arc::new(DialRateLimiter::new(connect_rate)),
            health: Arc::default(),
            liveness: Arc::default(),
            max_bulk: Arc::new(AtomicU64::new(MAX_BULK)),
        }
    }

    /// What a worker's pool of this node shares, with all that is not the node's own taken from `home`.
    pub(super) fn shared(&self, home: &Shared) -> Shared {
        let own = self.clone();
        Shared {
            budget: own.budget,
            homes: own.homes,
            connector: own.connector,
            dial_rate: own.dial_rate,
            health: own.health,
            liveness: own.liveness,
            max_bulk: own.max_bulk,
            ..home.clone()
        }
    }
}

/// What was last found out.
#[derive(Default)]
struct Published {
    map: Arc<SlotMap>,
    home: Option<HostPort>,
    servers: BTreeMap<HostPort, NodeServer>,
    /// When a node has last told of the slots.
    told: Option<Instant>,
    /// Slots that have moved since, as clients were told.
    patches: Vec<(u16, HostPort, Instant)>,
}

/// The cluster, as all threads know it.
pub struct Nodes {
    published: RwLock<Published>,
    /// Grows with each change of what is published.
    version: AtomicU64,
    /// How many times the slots have begun to be asked for.
    begun: AtomicU64,
    /// The last of these that is over.
    over: watch::Sender<u64>,
    doubt: Notify,
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nodes").field("map", &self.published.read().map).finish_non_exhaustive()
    }
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            published: RwLock::default(),
            version: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            over: watch::Sender::new(0),
            doubt: Notify::new(),
        }
    }
}

impl Nodes {
    /// Grows when the map or the home node changes.
    #[inline]
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The map, and which node is home.
    pub fn look(&self) -> (Arc<SlotMap>, Option<HostPort>) {
        let published = self.published.read();
        (Arc::clone(&published.map), published.home.clone())
    }

    /// How long ago a node has told of the slots. `None`: none has yet.
    #[must_use]
    pub fn map_age(&self) -> Option<Duration> {
        self.published.read().told.map(|told| told.elapsed())
    }

    /// The server of a node that the cluster has named.
    pub(super) fn server(&self, node: &HostPort) -> Option<NodeServer> {
        self.published.read().servers.get(node).cloned()
    }

    /// The node of the cluster that is called `name`.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<HostPort> {
        self.published.read().servers.keys().find(|node| node.to_string() == name).cloned()
    }

    /// All nodes that were ever named.
    pub fn servers(&self) -> Vec<(HostPort, NodeServer)> {
        let published = self.published.read();
        published.servers.iter().map(|(node, server)| (node.clone(), server.clone())).collect()
    }

    /// The budgets of all nodes. The first one is `home`, of whichever node is home; that node may have another one, with
    /// connections from before it was home.
    #[must_use]
    pub fn budgets(&self, home: &Arc<Budget>) -> Vec<NodeBudget> {
        let published = self.published.read();
        let own = NodeBudget {
            node: published.home.as_ref().map(HostPort::to_string),
            budget: Arc::clone(home),
            serves: true,
        };
        let others = published.servers.iter().map(|(node, server)| NodeBudget {
            node: Some(node.to_string()),
            budget: Arc::clone(&server.budget),
            serves: published.map.lowest_slot(node).is_some() && published.home.as_ref() != Some(node),
        });
        std::iter::once(own).chain(others).collect()
    }

    /// Nodes in `map` that have no server here yet.
    pub fn without_server(&self, map: &SlotMap) -> Vec<HostPort> {
        let published = self.published.read();
        map.known().filter(|node| !published.servers.contains_key(*node)).cloned().collect()
    }

    /// What was found out: `map`, and servers for the nodes that are new in it. What clients were told a moment ago stands.
    /// Returns whether the map is another one than before.
    pub fn publish(&self, map: SlotMap, new: impl IntoIterator<Item = (HostPort, NodeServer)>) -> bool {
        let mut published = self.published.write();
        published.told = Some(Instant::now());
        published.servers.extend(new);
        published.patches.retain(|(_, _, since)| since.elapsed() < FRESH);
        let patched = published
            .patches
            .iter()
            .fold(map, |map, (slot, node, _)| map.patched(*slot, node).unwrap_or(map));
        if *published.map == patched {
            return false;
        }
        published.map = Arc::new(patched);
        self.version.fetch_add(1, Ordering::Release);
        true
    }

    /// This node is home from now on.
    pub fn set_home(&self, home: HostPort) {
        self.published.write().home = Some(home);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// A node says that `slot` belongs to `node`. `false`: the cluster has never named that node.
    pub fn patch(&self, slot: u16, node: &HostPort) -> bool {
        let mut published = self.published.write();
        if !published.map.knows(node) || !published.servers.contains_key(node) {
            return false;
        }
        if let Some(patched) = published.map.patched(slot, node) {
            published.map = Arc::new(patched);
            published.patches.retain(|(of, _, since)| *of != slot && since.elapsed() < FRESH);
            published.patches.push((slot, node.clone(), Instant::now()));
            self.version.fetch_add(1, Ordering::Release);
        }
        true
    }

    /// Something suggests that the map is of the past: it is asked for again, soon.
    pub fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Waits until the map is doubted; at once if it was since the last time.
    pub async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// The slots begin to be asked for. To be ended by [`Self::has_asked`].
    pub fn asks(&self) {
        self.begun.fetch_add(1, Ordering::AcqRel);
    }

    /// What was found out is published.
    pub fn has_asked(&self) {
        self.over.send_replace(self.begun.load(Ordering::Acquire));
    }

    /// Waits until the slots have been asked for, in a question that begins after this call.
    pub async fn asked_anew(&self) {
        let before = self.begun.load(Ordering::Acquire);
        self.doubt();
        let mut over = self.over.subscribe();
        // The sender lives as long as this.
        drop(over.wait_for(|number| *number > before).await);
    }

    /// Another cap for each node.
    pub fn resize(&self, cap: usize) {
        for server in self.published.read().servers.values() {
            server.budget.resize(cap);
        }
    }

    /// Another way to dial `node`, for new connections.
    pub fn replace(&self, node: &HostPort, prepared: PreparedTarget) {
        if let Some(server) = self.server(node) {
            server.connector.replace(prepared, false);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::upstream::UpstreamOptions;

    fn node(text: &str) -> HostPort {
        HostPort::parse(text, None).unwrap()
    }

    fn map(rows: &[(u16, u16, &str)]) -> SlotMap {
        let mut out = format!("*{}\r\n", rows.len());
        for (first, last, port) in rows {
            out += &format!("*3\r\n:{first}\r\n:{last}\r\n*2\r\n$1\r\nh\r\n:{port}\r\n");
        }
        SlotMap::read(out.as_bytes(), &node("h:1")).unwrap()
    }

    fn server() -> NodeServer {
        NodeServer::new(Connector::quietly(&UpstreamOptions::default()).unwrap(), 8, 1, 20, true)
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_client_was_told_outlives_a_map_of_the_past() {
        let nodes = Nodes::default();
        let former = map(&[(0, 9, "1"), (10, 16_383, "2")]);
        assert!(nodes.publish(former.clone(), [(node("h:1"), server()), (node("h:2"), server())]));
        assert!(!nodes.publish(former.clone(), []));
        assert!(nodes.patch(3, &node("h:2")));
        assert!(!nodes.patch(3, &node("h:3")));
        nodes.publish(former.clone(), []);
        assert_eq!(nodes.look().0.owner_of(3), Some(&node("h:2")));
        tokio::time::advance(FRESH).await;
        assert!(nodes.publish(former, []));
        assert_eq!(nodes.look().0.owner_of(3), Some(&node("h:1")));
    }

    #[tokio::test]
    async fn a_question_that_had_begun_before_does_not_count() {
        let nodes = Arc::new(Nodes::default());
        nodes.asks();
        let waits = tokio::spawn({
            let nodes = Arc::clone(&nodes);
            async move { nodes.asked_anew().await }
        });
        nodes.doubted().await;
        nodes.has_asked();
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        nodes.asks();
        nodes.has_asked();
        waits.await.unwrap();
    }
}
