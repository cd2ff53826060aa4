//! `/status`: who holds what, as JSON. The listing is the pool's own state, so it cannot disagree with it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::pool::{LaneRow, Shared, Tracked};
use crate::session::{ClientRow, UserRow};

/// So many of the clients that hold most are shown.
const LARGEST: usize = 5;

/// The whole picture at one moment. `listening`: the addresses of clients, and whether with TLS.
#[must_use]
pub fn status(
    state: &str,
    listening: &[(String, bool)],
    upstream: &Value,
    shared: &Shared,
    lanes: &[LaneRow],
    users: &[UserRow],
    clients: &[ClientRow],
) -> Value {
    let budget = &shared.budget;
    let holdings = budget.holdings();
    let mut counts = BTreeMap::new();
    for row in &holdings {
        *counts.entry((row.kind.label(), row.phase.label())).or_insert(0_usize) += 1;
    }
    let pools: Vec<_> = counts
        .into_iter()
        .map(|((kind, phase), connections)| json!({ "kind": kind, "phase": phase, "connections": connections }))
        .collect();
    let upstreams: Vec<_> = holdings
        .iter()
        .map(|row| {
            json!({
                "kind": row.kind.label(),
                "phase": row.phase.label(),
                "seconds": row.since.elapsed().as_secs(),
                "holder": row.holder,
            })
        })
        .collect();
    let waiting = budget.pressure();
    let (standing, standing_max) = budget.standing();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "state": state,
        "listen": listening.iter().map(url).collect::<Vec<_>>(),
        "upstream": upstream,
        "connections": { "held": holdings.len(), "max": budget.cap() },
        "pools": pools,
        "memory": memory(shared, clients),
        "standing_leases": { "held": standing, "max": standing_max },
        "waits": {
            "lanes": waiting.lanes,
            "leases": waiting.leases,
            "blocking": waiting.blocking,
            "standing": waiting.standing,
        },
        "lanes": lanes.iter().map(lane).collect::<Vec<_>>(),
        "users": users.iter().map(user).collect::<Vec<_>>(),
        "upstreams": upstreams,
        "clients": clients.iter().map(client).collect::<Vec<_>>(),
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
    json!({
        "id": row.id,
        "peer": row.peer.to_string(),
        "via": row.transport,
        "name": row.name,
        "user": row.user,
        "database": row.database,
        "age": row.age.as_secs(),
        "idle": row.idle.as_secs(),
        "command": row.command,
        "place": row.place,
        "unsent": row.output,
        "memory": row.memory,
    })
}
