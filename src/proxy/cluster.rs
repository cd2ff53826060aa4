//! Follows the slots of a cluster: asked for at the start, from time to time, and whenever something suggests that they have moved.
//!
//! Whoever doubts the map says so ([`Nodes::doubt`]); one question at a time is on its way. On a doubt three nodes are asked at
//! once and the answers compared ([`elect`]), because a node that was cut off gives a map of the past.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::admin;
use crate::cluster::{SLOTS, SlotMap, elect};
use crate::downstream::Workers;
use crate::nodes::{NodeServer, Nodes, ask_for_slots, find_slots};
use crate::pool::{Holder, Kind, NodeBudget, Shared, Who};
use crate::telemetry::publish_gauge;
use crate::upstream::{HostPort, Identity, PreparedTarget, UpstreamOptions};

/// Nodes that are asked at once when the map is doubted.
const VOTERS: usize = 3;
/// Between the beginnings of two questions.
const SPACING: Duration = Duration::from_millis(100);
/// The same when asking so often has changed nothing for [`EPISODE`].
const LONGEST_SPACING: Duration = Duration::from_secs(5);
/// How long a failover may take.
const EPISODE: Duration = Duration::from_secs(20);
/// How often it is said that no node answers.
const REPEAT: Duration = Duration::from_secs(10);

/// Follows the slots while the process lives.
pub(super) struct ClusterFollower {
    shared: Shared,
    nodes: Arc<Nodes>,
    workers: Workers,
    /// How many threads serve clients.
    threads: usize,
    /// Blocking calls wait in hubs.
    has_hub: bool,
    /// Since when the map has been doubted without a change.
    episode: Option<Instant>,
    spacing: Duration,
    /// Masters, and slots without one, as last said.
    told: Option<(usize, usize)>,
    /// When it was last said that no node answers.
    silent: Option<Instant>,
}

impl ClusterFollower {
    pub(super) fn new(
        shared: Shared,
        nodes: Arc<Nodes>,
        workers: Workers,
        (threads, has_hub): (usize, bool),
    ) -> Self {
        Self {
            shared,
            nodes,
            workers,
            threads,
            has_hub,
            episode: None,
            spacing: SPACING,
            told: None,
            silent: None,
        }
    }

    /// Runs until nobody changes the settings any more: to the end of the process.
    pub(super) async fn run(mut self, mut settings: watch::Receiver<UpstreamOptions>) {
        let mut options = settings.borrow_and_update().clone();
        let mut voters = VOTERS;
        loop {
            let begun = Instant::now();
            self.nodes.asks();
            let changed = self.refresh(&options, voters).await;
            self.nodes.has_asked();
            self.pace(changed);
            let is_whole = self.nodes.look().0.covered() == usize::from(SLOTS);
            let interval = options.refresh_interval.mul_f64(0.8 + 0.4 * fastrand::f64());
            let next = begun + if is_whole { interval } else { self.spacing };
            let doubted = async {
                tokio::select! {
                    () = self.nodes.doubted() => {}
                    () = self.shared.health.doubted() => {}
                }
            };
            tokio::select! {
                biased;
                changed = settings.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    options = settings.borrow_and_update().clone();
                    self.take(&options).await;
                    voters = 1;
                }
                () = doubted => {
                    self.episode.get_or_insert_with(Instant::now);
                    voters = VOTERS;
                }
                () = sleep_until(next) => {
                    self.episode = None;
                    voters = if is_whole { 1 } else { VOTERS };
                }
            }
            sleep_until(begun + self.spacing).await;
        }
    }

    /// How soon it may be asked again.
    fn pace(&mut self, changed: bool) {
        let is_vain = !changed && self.episode.is_some_and(|since| since.elapsed() >= EPISODE);
        if changed {
            self.episode = None;
        }
        self.spacing = if is_vain { (self.spacing * 2).min(LONGEST_SPACING) } else { SPACING };
    }

    /// Other settings, for new connections to nodes that are known.
    async fn take(&self, options: &UpstreamOptions) {
        for (node, _) in self.nodes.servers() {
            let at = options.at(&node);
            let prepared = tokio::task::spawn_blocking(move || PreparedTarget::quietly(&at)).await;
            // Files that cannot be used were told of when the settings were read.
            if let Ok(Ok(prepared)) = prepared {
                self.nodes.replace(&node, prepared);
            }
        }
        let Some(home) = self.nodes.look().1 else { return };
        let at = options.at(&home);
        let prepared = tokio::task::spawn_blocking(move || PreparedTarget::quietly(&at)).await;
        if let Ok(Ok(prepared)) = prepared {
            self.shared.connector.replace(prepared, false);
        }
    }

    /// Asks so many nodes, and publishes what they say. Returns whether the map has changed.
    async fn refresh(&mut self, options: &UpstreamOptions, voters: usize) -> bool {
        let (current, home) = self.nodes.look();
        let mut maps = self.ask_known(voters, home.as_ref()).await;
        if let [one] = &maps[..]
            && *one != *current
            && voters < VOTERS
        {
            // Another map than before is not believed to one node.
            maps = self.ask_known(VOTERS, None).await;
        }
        let mut failures = Vec::new();
        if maps.is_empty() {
            let (identity, name) = self.who_asks();
            let found = find_slots(options, identity, &name).await;
            maps.extend(found.map_err(|why| failures = why).ok());
        }
        let Some(map) = elect(&maps).map(|at| maps.swap_remove(at)) else {
            self.tell_of_silence(&failures);
            outcome("unanswered");
            return false;
        };
        self.silent = None;
        let new = self.servers_for(options, &map).await;
        let changed = self.nodes.publish(map, new);
        outcome(if changed { "changed" } else { "same" });
        if changed {
            self.tell();
        }
        self.find_home(options).await;
        changed
    }

    /// Asks `count` of the nodes that are known, `first` among them. A connection for the question is within each node's cap; a
    /// node that has none left is not asked.
    async fn ask_known(&self, count: usize, first: Option<&HostPort>) -> Vec<SlotMap> {
        let mut servers = self.nodes.servers();
        fastrand::shuffle(&mut servers);
        servers.sort_by_key(|(node, _)| first != Some(node));
        let known: BTreeSet<_> = self.nodes.look().0.known().cloned().collect();
        let mut questions = Vec::new();
        for (node, server) in servers.into_iter().filter(|(node, _)| known.contains(node)) {
            let home = self.nodes.look().1;
            let budget = if home.as_ref() == Some(&node) { &self.shared.budget } else { &server.budget };
            let holder = Holder { user: 0, address: None, who: Who::Words("question for the slots") };
            let Some(permit) = budget.try_acquire(Kind::Control, holder) else { continue };
            permit.dials();
            let (identity, name) = self.who_asks();
            questions.push(tokio::task::spawn_local(async move {
                let answer = ask_for_slots(&server.connector, &node, identity, name).await;
                drop(permit);
                answer.map_err(|why| tracing::debug!(%node, why, "a node does not tell of its slots"))
            }));
            if questions.len() == count {
                break;
            }
        }
        let mut maps = Vec::new();
        for question in questions {
            maps.extend(question.await.ok().and_then(Result::ok).filter(|map| map.covered() > 0));
        }
        maps
    }

    /// As whom, and by which name of the connection.
    fn who_asks(&self) -> (Arc<Identity>, String) {
        (self.shared.connector.own_identity(), self.shared.instance.connection("slots"))
    }

    /// Servers for nodes that are new in `map`. Nothing is dialled yet.
    async fn servers_for(&self, options: &UpstreamOptions, map: &SlotMap) -> Vec<(HostPort, NodeServer)> {
        let mut servers = Vec::new();
        for node in self.nodes.without_server(map) {
            let at = options.at(&node);
            let home = Arc::clone(&self.shared.connector);
            let connector = tokio::task::spawn_blocking(move || home.beside(&at)).await;
            match connector {
                Ok(Ok(connector)) => {
                    let (cap, rate) = (self.shared.budget.cap(), options.connect_rate);
                    servers.push((node, NodeServer::new(connector, cap, self.threads, rate, self.has_hub)));
                }
                Ok(Err(error)) => tracing::error!(%node, %error, "a node cannot be used"),
                Err(error) => tracing::error!(%node, %error, "a node cannot be used"),
            }
        }
        servers
    }

    /// Finds a home node, where there is none or it owns no slots any more: then the owner of what it had is home.
    async fn find_home(&self, options: &UpstreamOptions) {
        let (map, former) = self.nodes.look();
        if former.as_ref().is_some_and(|home| map.lowest_slot(home).is_some()) {
            return;
        }
        let masters = || map.masters().iter().filter(|node| map.lowest_slot(node).is_some());
        // Different for each instance, and the same after a change of other nodes.
        let weight = |node: &HostPort| {
            let mut hasher = DefaultHasher::new();
            (&self.shared.instance.boot, node).hash(&mut hasher);
            hasher.finish()
        };
        let Some(home) = masters().max_by_key(|node| weight(node)).cloned() else { return };
        let at = options.at(&home);
        let prepared = tokio::task::spawn_blocking(move || PreparedTarget::quietly(&at)).await;
        let Ok(Ok(prepared)) = prepared else { return };
        self.shared.connector.replace(prepared, true);
        self.nodes.set_home(home.clone());
        let Some(former) = former else { return };
        self.shared.health.server_has_moved();
        tracing::warn!(from = %former, to = %home, "the home node no longer owns slots; another node takes its place");
        let (workers, grace) = (self.workers.clone(), options.switch_grace);
        tokio::task::spawn_local(async move { workers.switch_master(grace).await });
    }

    fn tell(&mut self) {
        let map = self.nodes.look().0;
        let masters = map.masters().iter().filter(|node| map.lowest_slot(node).is_some()).count();
        let uncovered = usize::from(SLOTS) - map.covered();
        let is_news = self.told.replace((masters, uncovered)) != Some((masters, uncovered));
        if !is_news {
            tracing::debug!(masters, uncovered, "slots of the cluster have moved");
        } else if uncovered == 0 {
            tracing::info!(masters, "the slots of the cluster are known");
        } else {
            tracing::warn!(masters, uncovered, "some slots of the cluster have no node");
        }
        let replicas = map.known().count() - masters;
        publish_gauge("redbouncer_nodes", &[("role", "master")], masters);
        publish_gauge("redbouncer_nodes", &[("role", "replica")], replicas);
        publish_gauge("redbouncer_slots_uncovered", &[], uncovered);
    }

    fn tell_of_silence(&mut self, failures: &[(HostPort, String)]) {
        if self.silent.is_some_and(|at| at.elapsed() < REPEAT) {
            return;
        }
        self.silent = Some(Instant::now());
        let reasons: Vec<_> = failures.iter().map(|(node, why)| format!("{node}: {why}")).collect();
        let nodes = reasons.join("; ");
        tracing::error!(nodes, "no node of the cluster returns its slots; the last slot map stays in use");
    }
}

/// The nodes that own slots, for `/status`. `budgets` are those of [`Nodes::budgets`].
pub(super) fn status(nodes: &Nodes, budgets: &[NodeBudget]) -> Value {
    let (map, home_node) = nodes.look();
    let row = |(at, node): (usize, &HostPort)| {
        let (slots, name) = (map.owned_by(at), node.to_string());
        let own = || budgets.iter().filter(|of| of.node.as_ref() == Some(&name));
        let serving = own().find(|of| of.serves);
        (slots > 0).then(|| {
            json!({
                "node": name,
                "slots": slots,
                "home": home_node.as_ref() == Some(node),
                "connections": own().map(|of| of.budget.held()).sum::<usize>(),
                "max": serving.map(|of| of.budget.cap()),
                "permits": serving.map(|of| of.budget.kinds().iter().map(admin::permits).collect::<Vec<_>>()),
            })
        })
    };
    let masters: Vec<_> = map.masters().iter().enumerate().filter_map(row).collect();
    json!({
        "masters": masters,
        "slots_uncovered": usize::from(SLOTS) - map.covered(),
        "map_seconds": nodes.map_age().map(|age| age.as_secs()),
    })
}

/// Counts a question.
fn outcome(outcome: &'static str) {
    metrics::counter!("redbouncer_map_refreshes_total", "outcome" => outcome).increment(1);
}
