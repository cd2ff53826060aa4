//! PROXY TOPOLOGY: the server that commands go to and the Sentinels that name it, or the nodes of a cluster.

use std::fmt::Write as _;

use crate::cluster::SLOTS;
use crate::downstream::client::Client;
use crate::nodes::Nodes;
use crate::pool::{HumanDuration, NodeBudget};

impl Client {
    /// The server without a cluster, as PROXY TOPOLOGY lists it.
    pub(super) fn listed_server(&self) -> Option<String> {
        let connector = &self.context.pool.shared.connector;
        let named = connector.topology().followed().and_then(|followed| followed.master);
        let named = named.map(|(master, _)| master.to_string());
        named.or_else(|| connector.address().map(|address| address.to_string()))
    }

    /// The server and the Sentinels, a line each.
    pub(super) fn topology(&self) -> String {
        if let Some(nodes) = &self.context.nodes {
            return cluster(nodes.nodes(), &self.context.budgets());
        }
        let shared = &self.context.pool.shared;
        let connector = &shared.connector;
        let followed = connector.topology().followed();
        let named = followed.as_ref().and_then(|followed| followed.master.as_ref());
        let node = self.listed_server().unwrap_or_else(|| "-".to_owned());
        let server = connector.server();
        let said = server.as_ref().map_or("", |server| server.role.as_str());
        let role = match shared.mastership.demoted_for() {
            Some(_) => "replica",
            None if said.is_empty() => "unknown",
            None => said,
        };
        let connections = shared.budget.held();
        let mut text = format!("node={node} role={role} connections={connections}");
        if let Some((_, since)) = named {
            let _ = write!(text, " age={}", HumanDuration(since.elapsed()));
        }
        if let Some(demoted) = shared.mastership.demoted_for() {
            let _ = write!(text, " demoted={}", HumanDuration(demoted));
        }
        text.push('\n');
        let Some(followed) = followed else { return text };
        for row in &followed.sentinels {
            let _ = write!(text, "sentinel={} state={}", row.address, row.state.label());
            if let Some((master, epoch)) = &row.names {
                let _ = write!(text, " master={master} epoch={epoch}");
            }
            if let Some(reason) = &row.reason {
                let _ = write!(text, " reason={}", reason.replace([' ', '\n'], "-"));
            }
            text.push('\n');
        }
        if let Some(last) = &followed.last_failover {
            let (ago, took) = (HumanDuration(last.at.elapsed()), HumanDuration(last.took));
            let _ = writeln!(text, "failover from={} ago={ago} took={took}", last.from);
        }
        text
    }
}

/// The masters of a cluster, and the nodes that owned slots before and are still connected to.
fn cluster(nodes: &Nodes, budgets: &[NodeBudget]) -> String {
    let (map, home) = nodes.look();
    let mut text = String::new();
    for (node, _) in nodes.servers() {
        let name = node.to_string();
        let own: Vec<_> = budgets.iter().filter(|of| of.node.as_ref() == Some(&name)).collect();
        let slots = map.masters().iter().position(|master| *master == node).map_or(0, |at| map.owned_by(at));
        let connections: usize = own.iter().map(|of| of.budget.held()).sum();
        if slots == 0 && connections == 0 {
            continue;
        }
        let role = if slots > 0 { "master" } else { "former" };
        let _ = write!(text, "node={name} role={role} slots={slots} connections={connections}");
        if let Some(serving) = own.iter().find(|of| of.serves) {
            let _ = write!(text, " max={}", serving.budget.cap());
        }
        text.push_str(if home.as_ref() == Some(&node) { " home=yes\n" } else { " home=no\n" });
    }
    let uncovered = usize::from(SLOTS) - map.covered();
    let age = nodes.map_age().map_or_else(|| "-".to_owned(), |age| HumanDuration(age).to_string());
    let _ = writeln!(text, "slots uncovered={uncovered} age={age}");
    text
}
