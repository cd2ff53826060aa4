//! The state of a running proxy on one screen, from its `/status`: the overall state, the pool, leases, waiting
//! requests, groups of clients, and problems.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::Value;

use super::fields::{human, number, text};
use super::output::counted;
use super::sentinels;

/// Holders and groups that are shown of each.
const SHOWN: usize = 10;
/// A lease that is held for longer is named as a problem, in seconds.
const LONG: u64 = 30;
/// Age in seconds after which an event is no longer shown as a problem.
const RECENT: u64 = 60;
/// Of the bound on memory, in percent: more is a problem.
const NEAR: u64 = 80;
/// A blocking call is meant to last.
const BLOCKING_CALL: &str = "blocking call";

/// The plural of a connection kind of `/status`.
fn plural(kind: &str) -> &str {
    match kind {
        "shared" => "lanes",
        "leased" => "leases",
        "blocking" => "blocking hubs",
        "pubsub" => "pub/sub hubs",
        other => other,
    }
}

/// A count with its noun; the singular drops the "s".
fn so_many(count: u64, plural: &str) -> String {
    format!("{count} {}", if count == 1 { plural.strip_suffix('s').unwrap_or(plural) } else { plural })
}

fn rows<'a>(status: &'a Value, list: &str) -> &'a [Value] {
    status[list].as_array().map_or(&[], Vec::as_slice)
}

/// The connections that one client holds alone, longest first.
pub(super) fn holders(status: &Value) -> Vec<&Value> {
    let mut holders: Vec<_> =
        rows(status, "upstreams").iter().filter(|row| row["client"].is_object()).collect();
    holders.sort_by_key(|row| std::cmp::Reverse(number(&row["seconds"])));
    holders
}

/// The whole screen.
pub(super) fn overview(status: &Value) -> String {
    let problems = problems(status);
    let mut out = format!("{}\n\n", verdict(status, &problems));
    for line in summary(status) {
        let _ = writeln!(out, "{line}");
    }
    let holders = holders(status);
    if !holders.is_empty() {
        let _ = writeln!(out, "\nleases, longest first");
        let mut lines = vec![HOLDER.map(str::to_owned)];
        lines.extend(holders.iter().take(SHOWN).map(|row| holder(row)));
        out.push_str(&table(&lines));
        more(&mut out, holders.len(), "lease");
    }
    let groups = groups(status);
    if !groups.is_empty() {
        let _ = writeln!(out, "\nclients by name and library");
        let mut lines = vec![["clients", "blocked", "leases", "idle", "name", "library"].map(str::to_owned)];
        lines.extend(groups.iter().take(SHOWN).cloned());
        out.push_str(&table(&lines));
        more(&mut out, groups.len(), "group");
    }
    if !problems.is_empty() {
        let _ = writeln!(out, "\nproblems");
        for problem in &problems {
            let _ = writeln!(out, "  {problem}");
        }
    }
    out
}

fn more(out: &mut String, all: usize, what: &str) {
    if let Some(others) = all.checked_sub(SHOWN).filter(|others| *others > 0) {
        let _ = writeln!(out, "  and {} more", counted(others, what));
    }
}

/// The first line: the overall state.
pub(super) fn verdict(status: &Value, problems: &[String]) -> String {
    let clients = counted(rows(status, "clients").len(), "client");
    let (held, max) = (number(&status["connections"]["held"]), number(&status["connections"]["max"]));
    let carried = format!("{clients} over {held} of {max} connections");
    let upstream = &status["upstream"];
    if status["state"] == "stopping" {
        format!("STOPPING: {carried}")
    } else if let Some(seconds) = upstream["unreachable_seconds"].as_u64() {
        format!("SERVER AWAY for {}: {}", human(seconds), text(&upstream["unreachable_reason"]))
    } else if let Some(seconds) = upstream["login_refused_seconds"].as_u64() {
        format!("LOGIN REFUSED for {}: {}", human(seconds), text(&upstream["login_refused_reason"]))
    } else if status["state"] == "paused" {
        let waiting =
            counted(usize::try_from(number(&status["waits"]["paused"])).unwrap_or_default(), "client");
        format!("PAUSED for {}: {waiting} waiting", human(number(&status["paused"]["seconds"])))
    } else if problems.is_empty() {
        format!("OK: {carried}")
    } else {
        format!("ATTENTION: {}; {carried}", counted(problems.len(), "problem"))
    }
}

/// The pool, the permits, the waiting requests and the clients, one line each.
pub(super) fn summary(status: &Value) -> Vec<String> {
    let kinds = rows(status, "permits");
    let listed = |what: &str| -> String {
        let some = kinds.iter().filter(|of| number(&of[what]) > 0);
        let words: Vec<_> = some
            .map(|of| so_many(number(&of[what]), plural(of["kind"].as_str().unwrap_or_default())))
            .collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    };
    let connections = &status["connections"];
    let permits: Vec<_> = kinds
        .iter()
        .map(|of| {
            let full = if of["full"] == true && of["kind"] != "control" { " (full)" } else { "" };
            let kind = plural(of["kind"].as_str().unwrap_or_default());
            format!("{kind} {} of {}{full}", number(&of["held"]), number(&of["max"]))
        })
        .collect();
    let waits: Vec<_> = status["waits"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, count)| number(count) > 0)
        .map(|(what, count)| so_many(number(count), what))
        .collect();
    let clients = rows(status, "clients");
    let mut places = BTreeMap::new();
    for client in clients {
        *places.entry(text(&client["place"])).or_insert(0_usize) += 1;
    }
    let places: Vec<_> = places.into_iter().map(|(place, count)| format!("{count} {place}")).collect();
    let mut lines = vec![
        format!(
            "pool     {} of {}: {}",
            number(&connections["held"]),
            number(&connections["max"]),
            listed("held")
        ),
        format!("reserved {}", listed("reserved")),
        format!("permits  {}", permits.join(", ")),
        format!("waiting  {}", if waits.is_empty() { "none".to_owned() } else { waits.join(", ") }),
        format!(
            "clients  {}: {}",
            clients.len(),
            if places.is_empty() { "none".to_owned() } else { places.join(", ") }
        ),
    ];
    lines.extend(fleet(&status["fleet"]));
    lines.extend(sentinels::line(&status["upstream"]["sentinel"]));
    lines
}

/// The instances that share connections, where they do.
fn fleet(fleet: &Value) -> Option<String> {
    let instances = fleet["instances"].as_array()?;
    Some(format!(
        "fleet    {} of {} by {}; here {}, wanted {}, fair {}",
        number(&fleet["used"]),
        number(&fleet["total"]),
        counted(instances.len(), "instance"),
        number(&fleet["claim"]),
        number(&fleet["wanted"]),
        number(&fleet["fair"]),
    ))
}

/// The heads of [`holder`]'s columns.
pub(super) const HOLDER: [&str; 8] =
    ["held", "reason", "client", "name", "user", "address", "command", "server id"];

/// One lease, as its columns.
pub(super) fn holder(row: &Value) -> [String; 8] {
    let client = &row["client"];
    [
        human(number(&row["seconds"])),
        text(&client["pin"]),
        number(&client["id"]).to_string(),
        text(&client["name"]),
        text(&client["user"]),
        text(&client["address"]),
        text(&client["command"]),
        row["server_id"].as_u64().map_or_else(|| "-".to_owned(), |id| id.to_string()),
    ]
}

/// Names that differ in numbers only are one group's.
fn pattern(name: &str) -> String {
    let mut pattern = String::new();
    for sign in name.chars() {
        match sign {
            '0'..='9' if pattern.ends_with('*') => {}
            '0'..='9' => pattern.push('*'),
            sign => pattern.push(sign),
        }
    }
    pattern
}

/// Clients in groups, the largest first: how many, blocked, with leases, the longest idle, name, library.
fn groups(status: &Value) -> Vec<[String; 6]> {
    let alone: BTreeSet<u64> = holders(status).iter().map(|row| number(&row["client"]["id"])).collect();
    let mut groups: BTreeMap<(String, String), [u64; 4]> = BTreeMap::new();
    for client in rows(status, "clients") {
        let key = (pattern(&text(&client["name"])), text(&client["library"]));
        let [count, blocked, leases, idle] = groups.entry(key).or_default();
        let place = client["place"].as_str().unwrap_or_default();
        *count += 1;
        *blocked += u64::from(matches!(place, "blocking hub" | BLOCKING_CALL));
        *leases += u64::from(alone.contains(&number(&client["id"])));
        *idle = number(&client["idle"]).max(*idle);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, counts)| std::cmp::Reverse(counts[0]));
    groups
        .into_iter()
        .map(|((name, library), [count, blocked, leases, idle])| {
            [count.to_string(), blocked.to_string(), leases.to_string(), human(idle), name, library]
        })
        .collect()
}

/// The problems, with their remedies.
pub(super) fn problems(status: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let waits = &status["waits"];
    let (lanes, leases) = (number(&waits["lanes"]), number(&waits["leases"]));
    if lanes + leases > 0 {
        let waiting = [(leases, "lease"), (lanes, "lane")].into_iter().filter(|(count, _)| *count > 0);
        let waiting: Vec<_> = waiting
            .map(|(count, what)| {
                let verb = if count == 1 { "waits" } else { "wait" };
                format!("{} {verb} for a {what}", so_many(count, "clients"))
            })
            .collect();
        found.push(format!(
            "{}: close a holder (redbouncer kill), or raise pool.max_connections",
            waiting.join(" and ")
        ));
    }
    let refused = &status["refused"];
    if let Some(ago) = refused["last_seconds_ago"].as_u64().filter(|ago| *ago < RECENT) {
        found.push(format!(
            "{} got the full-pool error, the last one {} ago: close a holder (redbouncer kill), or raise pool.max_connections",
            so_many(number(&refused["clients"]), "clients"),
            human(ago)
        ));
    }
    let long = holders(status).into_iter().filter(|row| row["client"]["pin"] != BLOCKING_CALL);
    let long: Vec<_> = long.filter(|row| number(&row["seconds"]) >= LONG).collect();
    if let Some(row) = long.first() {
        let (client, held) = (&row["client"], human(number(&row["seconds"])));
        let (pin, name, id) = (text(&client["pin"]), text(&client["name"]), number(&client["id"]));
        let others = if long.len() > 1 { format!(" ({} more)", long.len() - 1) } else { String::new() };
        found.push(format!(
            "{pin} held for {held} by client {id}, name {name}{others}: redbouncer kill --id {id}"
        ));
    }
    if let Some(seconds) = status["upstream"]["unreachable_seconds"].as_u64() {
        found.push(format!("the server has not been reached for {}: redbouncer check", human(seconds)));
    }
    if let Some(seconds) = status["upstream"]["login_refused_seconds"].as_u64() {
        found.push(format!(
            "the server has refused the login of upstream.url for {}: redbouncer check",
            human(seconds)
        ));
    }
    if status["fleet"]["state"] == "unlisted" {
        found.push(
            "the server refuses to list the instances, so fleet.minimum is used: redbouncer check".to_owned(),
        );
    }
    found.extend(sentinels::problem(&status["upstream"]["sentinel"]));
    let memory = &status["memory"];
    let (used, max) = (number(&memory["clients"]), number(&memory["max"]));
    if max > 0 && used.saturating_mul(100) >= max.saturating_mul(NEAR) {
        found.push(format!("clients hold {} % of client.memory_max", used * 100 / max));
    }
    found
}

/// Columns, aligned; the first line is the head.
pub(super) fn table<const N: usize>(lines: &[[String; N]]) -> String {
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for line in lines {
        let cells: Vec<_> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(out, "  {}", cells.join("  ").trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(clients: usize) -> Value {
        let clients: Vec<_> = (0..clients)
            .map(|at| {
                json!({ "id": at, "name": format!("worker:{at}"), "library": "ioredis 5.8.2", "place": "blocking hub", "idle": at })
            })
            .collect();
        json!({
            "state": "serving",
            "connections": { "held": 5, "max": 8 },
            "permits": [
                { "kind": "control", "held": 1, "max": 1, "reserved": 0, "full": true },
                { "kind": "shared", "held": 1, "max": 2, "reserved": 1, "full": false },
                { "kind": "leased", "held": 3, "max": 3, "reserved": 0, "full": true },
            ],
            "waits": { "lanes": 0, "leases": 2, "paused": 0 },
            "memory": { "clients": 9, "max": 10 },
            "upstreams": [
                { "kind": "shared", "seconds": 900 },
                { "kind": "leased", "seconds": 3, "server_id": 8, "client": { "id": 12, "pin": "MULTI", "name": "" } },
                { "kind": "leased", "seconds": 41, "server_id": 9, "client": { "id": 11, "pin": "WATCH", "name": "web\u{1b}" } },
            ],
            "clients": clients,
        })
    }

    #[test]
    fn two_thousand_clients_are_one_screen() {
        let text = overview(&status(2_000));
        assert!(text.lines().count() <= 24, "{text}");
        assert!(text.starts_with("ATTENTION: 3 problems; 2000 clients over 5 of 8 connections\n"), "{text}");
        assert!(text.contains("permits  control 1 of 1, lanes 1 of 2, leases 3 of 3 (full)\n"), "{text}");
        assert!(text.contains("reserved 1 lane\n") && text.contains("waiting  2 leases\n"), "{text}");
        assert!(text.contains("  2000     2000     2       33m   worker:*  ioredis 5.8.2\n"), "{text}");
        let longest = text.find("41s").zip(text.find("3s    MULTI"));
        assert!(longest.is_some_and(|(first, second)| first < second), "{text}");
        assert!(text.contains("redbouncer kill --id 11") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn the_verdict_says_the_worst_first() {
        let of = |change: fn(&mut Value)| {
            let mut status = status(1);
            status["waits"] = json!({});
            status["upstreams"] = json!([]);
            status["memory"] = Value::Null;
            change(&mut status);
            verdict(&status, &problems(&status))
        };
        assert_eq!(of(|_| {}), "OK: 1 client over 5 of 8 connections");
        let paused = |status: &mut Value| {
            status["state"] = json!("paused");
            status["paused"] = json!({ "seconds": 12 });
            status["waits"] = json!({ "paused": 3 });
        };
        assert_eq!(of(paused), "PAUSED for 12s: 3 clients waiting");
        let away = |status: &mut Value| {
            status["upstream"] =
                json!({ "unreachable_seconds": 5, "unreachable_reason": "connection refused" });
        };
        assert_eq!(of(away), "SERVER AWAY for 5s: connection refused");
        let refused = |status: &mut Value| {
            status["upstream"] =
                json!({ "up": false, "login_refused_seconds": 5, "login_refused_reason": "WRONGPASS" });
        };
        assert_eq!(of(refused), "LOGIN REFUSED for 5s: WRONGPASS");
        assert_eq!(
            of(|status| status["state"] = json!("stopping")),
            "STOPPING: 1 client over 5 of 8 connections"
        );
    }
}
