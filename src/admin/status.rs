//! `/status`: who holds what, as JSON. The listing is the pool's own state, so it cannot disagree with it.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::pool::{Holding, KindUse, LaneRow, NodeBudget, Paused, Shared, Tracked};
use crate::session::{ClientRow, UserRow};
use crate::upstream::sentinel::MemberRow;
use crate::upstream::topology::Followed;

/// So many of the clients that hold most are shown.
const LARGEST: usize = 5;

/// What the workers and the directory list.
#[derive(Debug)]
pub struct Rows {
    /// The lanes of each user and key.
    pub lanes: Vec<LaneRow>,
    /// The users.
    pub users: Vec<UserRow>,
    /// The clients, by id.
    pub clients: Vec<ClientRow>,
}

/// The whole picture at one moment. `listening`: the addresses of clients, and whether with TLS. `budgets`: of all servers.
#[must_use]
pub fn status(
    state: &str,
    listening: &[(String, bool)],
    server: &Value,
    shared: &Shared,
    budgets: &[NodeBudget],
    rows: &Rows,
) -> Value {
    let Rows { lanes, users, clients } = rows;
    let budget = &shared.budget;
    let holdings: Vec<_> = budgets
        .iter()
        .flat_map(|of| of.budget.holdings().into_iter().map(|row| (of.node.as_deref(), row)))
        .collect();
    let longest = budgets.iter().filter_map(|of| of.budget.longest_lease()).min_by_key(|row| row.since);
    let mut counts = BTreeMap::new();
    for (_, row) in &holdings {
        *counts.entry((row.kind.label(), row.phase.label())).or_insert(0_usize) += 1;
    }
    let pools: Vec<_> = counts
        .into_iter()
        .map(|((kind, phase), connections)| json!({ "kind": kind, "phase": phase, "connections": connections }))
        .collect();
    let waiting = NodeBudget::pressure(budgets);
    let (standing, standing_max) = budget.standing();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "state": state,
        "listen": listening.iter().map(url).collect::<Vec<_>>(),
        "upstream": server,
        "connections": { "held": holdings.len(), "max": NodeBudget::cap(budgets) },
        "pools": pools,
        "permits": budget.kinds().iter().map(permits).collect::<Vec<_>>(),
        "memory": memory(shared, clients),
        "standing_leases": { "held": standing, "max": standing_max },
        "paused": shared.pause.paused().map(|paused| paused_since(&paused)),
        "waits": {
            "lanes": waiting.lanes,
            "leases": waiting.leases,
            "blocking": waiting.blocking,
            "standing": waiting.standing,
            "paused": shared.pause.waiting(),
        },
        "refused": budget.refused_clients().map(|refused| {
            json!({ "clients": refused.clients, "last_seconds_ago": refused.at.elapsed().as_secs() })
        }),
        "lanes": lanes.iter().map(lane).collect::<Vec<_>>(),
        "users": users.iter().map(user).collect::<Vec<_>>(),
        "longest_lease": longest.as_ref().map(|row| upstream(None, row)),
        "upstreams": holdings.iter().map(|(node, row)| upstream(*node, row)).collect::<Vec<_>>(),
        "clients": clients.iter().map(client).collect::<Vec<_>>(),
    })
}

/// The Sentinels, what they say, and the last failover.
#[must_use]
pub fn sentinels(followed: &Followed) -> Value {
    let sentinel = |row: &MemberRow| {
        json!({
            "address": row.address.to_string(),
            "state": row.state.label(),
            "reason": row.reason,
            "names": row.names.as_ref().map(|(master, _)| master.to_string()),
            "epoch": row.names.as_ref().map(|(_, epoch)| epoch),
        })
    };
    let last = followed.last_failover.as_ref();
    json!({
        "service": followed.service,
        "master": followed.master.as_ref().map(|(master, _)| master.to_string()),
        "master_seconds": followed.master.as_ref().map(|(_, since)| since.elapsed().as_secs()),
        "sentinels": followed.sentinels.iter().map(sentinel).collect::<Vec<_>>(),
        "last_failover": last.map(|last| json!({
            "from": last.from.to_string(),
            "seconds_ago": last.at.elapsed().as_secs(),
            "took_seconds": last.took.as_secs_f64(),
        })),
    })
}

/// An address as clients write it.
fn url((address, tls): &(String, bool)) -> String {
    match (address.starts_with("unix:"), tls) {
        (true, _) => address.clone(),
        (false, true) => format!("rediss://{address}"),
        (false, false) => format!("redis://{address}"),
    }
}

/// The sum, its bound (`null` for none), and who holds most.
fn memory(shared: &Shared, clients: &[ClientRow]) -> Value {
    let mut largest: Vec<_> = clients.iter().filter(|row| row.memory > 0).collect();
    largest.sort_by_key(|row| std::cmp::Reverse(row.memory));
    let shown = largest.iter().take(LARGEST).map(|row| {
        json!({
            "id": row.id,
            "peer": row.peer.to_string(),
            "name": row.name,
            "user": row.user,
            "command": row.command,
            "memory": row.memory,
        })
    });
    json!({
        "clients": shared.memory.used(),
        "max": shared.memory.bound(),
        "largest": shown.collect::<Vec<_>>(),
    })
}

/// Since when new commands wait, and for how long they still do; `null`: until PROXY RESUME.
fn paused_since(paused: &Paused) -> Value {
    json!({
        "seconds": paused.since.elapsed().as_secs(),
        "seconds_left": paused.until.map(|until| until.saturating_duration_since(Instant::now()).as_secs_f64()),
    })
}

/// How many connections of a kind there are and may be.
#[must_use]
pub fn permits(of: &KindUse) -> Value {
    json!({
        "kind": of.kind.label(),
        "held": of.held,
        "max": of.max,
        "reserved": of.reserved,
        "full": of.is_full(),
    })
}

/// One connection, and the client that holds it alone. `node`: to which node of a cluster it is.
fn upstream(node: Option<&str>, row: &Holding) -> Value {
    let mut shown = json!({
        "kind": row.kind.label(),
        "phase": row.phase.label(),
        "seconds": row.since.elapsed().as_secs(),
        "server_id": row.id,
        "local_port": row.local_port,
        "holder": row.holder(),
    });
    if let Some(node) = node {
        shown["node"] = json!(node);
    }
    if let Some(client) = row.client() {
        shown["client"] = json!({
            "id": client.id,
            "name": client.name,
            "address": client.peer.to_string(),
            "user": client.user(),
            "pin": client.pin,
            "command": client.command(),
        });
    }
    shown
}

fn lane(row: &LaneRow) -> Value {
    json!({
        "user": row.user,
        "database": row.key.database,
        "protocol": row.key.protocol.number(),
        "tracked": row.key.tracked != Tracked::No,
        "lanes": row.lanes,
        "sessions": row.sessions,
        "outstanding": row.outstanding,
    })
}

/// A bound that is not set is `null`.
fn user(row: &UserRow) -> Value {
    json!({
        "name": row.name,
        "clients": row.clients,
        "max_clients": row.max_clients,
        "connections": row.connections,
        "max_connections": row.max_connections,
    })
}

fn client(row: &ClientRow) -> Value {
    let library = format!("{} {}", row.lib_name, row.lib_ver).trim().to_owned();
    json!({
        "id": row.id,
        "peer": row.peer.to_string(),
        "via": row.transport,
        "name": row.name,
        "library": row.lib_name,
        "user": row.user,
        "library": library,
        "database": row.database,
        "age": row.age.as_secs(),
        "idle": row.idle.as_secs(),
        "command": row.command,
        "place": row.place,
        "unsent": row.output,
        "memory": row.memory,
    })
}
