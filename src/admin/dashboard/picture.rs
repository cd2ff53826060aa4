//! What the page shows, made from `/status`: bounded, however many clients there are.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::telemetry::printable;

/// So many connections are shown as cells.
const CELLS: usize = 500;
/// So many rows are in the other listings.
const ROWS: usize = 8;
/// The members of `/status` that are shown as they are.
const KEPT: [&str; 10] = [
    "version",
    "state",
    "paused",
    "listen",
    "upstream",
    "connections",
    "pools",
    "permits",
    "standing_leases",
    "waits",
];

/// The picture of `status`. Every text in it is fit to be shown: names are what clients call themselves.
pub(super) fn picture(mut status: Value) -> Value {
    let clients = rows(status["clients"].take());
    let mut cells = rows(status["upstreams"].take());
    let count = cells.len();
    cells.truncate(CELLS);
    for cell in &mut cells {
        if let Some(row) = holder(cell, &clients) {
            cell["now"] = row.clone();
        }
    }
    let mut shown: Map<_, _> =
        KEPT.iter().filter_map(|name| Some(((*name).to_owned(), status.get_mut(*name)?.take()))).collect();
    shown.insert("cells".to_owned(), json!({ "count": count, "rows": cells }));
    shown.insert("lanes".to_owned(), lanes(&status["lanes"]));
    shown.insert(
        "memory".to_owned(),
        json!({ "used": status["memory"]["clients"], "max": status["memory"]["max"] }),
    );
    shown.insert("clients".to_owned(), listings(&clients));
    let mut shown = Value::Object(shown);
    make_printable(&mut shown);
    shown
}

fn rows(value: Value) -> Vec<Value> {
    match value {
        Value::Array(rows) => rows,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => Vec::new(),
    }
}

fn text<'a>(row: &'a Value, member: &str) -> &'a str {
    row[member].as_str().unwrap_or_default()
}

fn number(row: &Value, member: &str) -> u64 {
    row[member].as_u64().unwrap_or_default()
}

/// The client that holds a connection alone, as it is now; `None` for what many share, and where it has just gone.
fn holder<'a>(cell: &Value, clients: &'a [Value]) -> Option<&'a Value> {
    let id = cell["client"]["id"].as_u64()?;
    clients.iter().find(|client| number(client, "id") == id)
}

/// The lanes of all users together.
fn lanes(rows: &Value) -> Value {
    let sum = |member| -> u64 { rows.as_array().into_iter().flatten().map(|row| number(row, member)).sum() };
    json!({ "sessions": sum("sessions"), "outstanding": sum("outstanding") })
}

/// Clients counted, grouped, and the few that matter most.
fn listings(clients: &[Value]) -> Value {
    let waits = |client: &&Value| text(client, "place").starts_with("waits for");
    let mut waiting: Vec<_> = clients.iter().filter(waits).collect();
    let waiting_count = waiting.len();
    waiting.sort_by_key(|client| std::cmp::Reverse(number(client, "idle")));
    let mut largest: Vec<_> = clients.iter().filter(|client| number(client, "memory") > 0).collect();
    largest.sort_by_key(|client| std::cmp::Reverse((number(client, "memory"), number(client, "id"))));
    let first = |rows: Vec<&Value>| rows.into_iter().take(ROWS).cloned().collect::<Vec<_>>();
    json!({
        "count": clients.len(),
        "blocked": hubs(clients, "blocking hub"),
        "subscribed": hubs(clients, "pubsub hub"),
        "waiting": { "count": waiting_count, "rows": first(waiting) },
        "largest": first(largest),
        "by_name": groups(clients, |client| text(client, "name")),
        "by_library": groups(clients, |client| text(client, "library")),
        "by_address": groups(clients, |client| address(text(client, "peer"))),
    })
}

/// The clients of each hub: each user has one.
fn hubs(clients: &[Value], place: &str) -> Value {
    let in_hub: Vec<_> = clients.iter().filter(|client| text(client, "place") == place).collect();
    groups(in_hub, |client| text(client, "user"))
}

/// The host of a peer.
fn address(peer: &str) -> &str {
    if peer.starts_with("unix:") { peer } else { peer.rsplit_once(':').map_or(peer, |(host, _)| host) }
}

/// The largest groups of clients by `key`, and how many clients are in the others.
fn groups<'a>(clients: impl IntoIterator<Item = &'a Value>, key: impl Fn(&'a Value) -> &'a str) -> Value {
    let mut found: HashMap<&str, (u64, u64)> = HashMap::new();
    for client in clients {
        let (count, memory) = found.entry(key(client)).or_default();
        *count += 1;
        *memory += number(client, "memory");
    }
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_unstable_by(|(a, (many, _)), (b, (more, _))| (more, a).cmp(&(many, b)));
    let others = found.iter().skip(ROWS).map(|(_, (count, _))| count).sum::<u64>();
    let groups = found.len();
    let rows: Vec<_> =
        found.into_iter().take(ROWS).map(|(key, (count, memory))| json!([key, count, memory])).collect();
    json!({ "groups": groups, "rows": rows, "others": others })
}

/// Escapes what a reader could be misled by, in every text.
fn make_printable(value: &mut Value) {
    match value {
        Value::String(text) => *text = printable(text.as_bytes()),
        Value::Array(items) => items.iter_mut().for_each(make_printable),
        Value::Object(members) => members.values_mut().for_each(make_printable),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(id: u64, name: &str, place: &str) -> Value {
        json!({
            "id": id, "peer": format!("10.0.0.{}:50{id}", id % 3), "name": name, "user": "default", "library": "ioredis",
            "place": place, "idle": id, "memory": id * 10,
        })
    }

    #[test]
    fn a_cell_shows_its_client() {
        let status = json!({
            "upstreams": [
                { "kind": "leased", "client": { "id": 8, "pin": "WATCH" } },
                { "kind": "leased", "client": { "id": 9, "pin": "WATCH" } },
                { "kind": "shared", "holder": "lane of database 0" },
            ],
            "clients": [client(6, "cart", "lane"), client(7, "", "MULTI"), client(8, "cart", "WATCH")],
        });
        let cells = &picture(status)["cells"]["rows"];
        assert_eq!(cells[0]["now"]["id"], 8);
        assert_eq!(cells[0]["client"]["pin"], "WATCH");
        assert!(cells[1]["now"].is_null(), "its client has just gone");
        assert!(cells[2]["now"].is_null());
    }

    #[test]
    fn many_clients_are_a_few_rows() {
        let mut clients: Vec<_> =
            (1..=3000).map(|id| client(id, &format!("job-{}", id % 100), "lane")).collect();
        clients.extend((3001..=3030).map(|id| client(id, "", "waits for a lease")));
        clients.extend((3031..=3100).map(|id| client(id, "worker", "blocking hub")));
        let shown = picture(json!({ "clients": clients }));
        assert_eq!(shown["clients"]["count"], 3100);
        assert_eq!(
            shown["clients"]["blocked"],
            json!({ "groups": 1, "rows": [["default", 70, 2_145_850]], "others": 0 })
        );
        assert_eq!(shown["clients"]["waiting"]["count"], 30);
        assert_eq!(shown["clients"]["waiting"]["rows"][0]["id"], 3030, "who waits longest comes first");
        assert_eq!(shown["clients"]["largest"][0]["id"], 3100);
        assert_eq!(shown["clients"]["by_name"]["rows"][0][0], "worker");
        assert_eq!(shown["clients"]["by_address"]["rows"][0][1], 1034);
        assert!(shown.to_string().len() < 10_000);
    }

    #[test]
    fn names_are_escaped() {
        let shown = picture(json!({ "clients": [client(1, "a\u{202e}b\n<b>", "waits for a lane")] }));
        assert_eq!(shown["clients"]["waiting"]["rows"][0]["name"], "a\\u{202e}b\\u{a}<b>");
    }
}
