//! What `redbouncer status` says of Redis Sentinel: one line, and a problem where Sentinels are missing.

use serde_json::Value;

use super::fields::{human, number, text};
use super::output::counted;

/// `upstream.sentinel` of `/status` as a line: the master, since when, how many Sentinels name it, the last failover.
/// `None`: the proxy follows no Sentinels.
pub(super) fn line(sentinel: &Value) -> Option<String> {
    let all = sentinel["sentinels"].as_array()?;
    let master = &sentinel["master"];
    let named = all.iter().filter(|row| !master.is_null() && row["names"] == *master).count();
    let named = format!("named by {named} of {}", counted(all.len(), "Sentinel"));
    let mut line = match master.as_str() {
        None => format!("sentinel {}: no master", text(&sentinel["service"])),
        Some(_) => {
            let since = human(number(&sentinel["master_seconds"]));
            format!("sentinel {}: {} for {since}, {named}", text(&sentinel["service"]), text(master))
        }
    };
    if let Some(ago) = sentinel["last_failover"]["seconds_ago"].as_u64() {
        let last = &sentinel["last_failover"];
        let took = last["took_seconds"].as_f64().unwrap_or_default();
        line += &format!("; last failover {} ago from {}, took {took:.1}s", human(ago), text(&last["from"]));
    }
    Some(line)
}

/// The Sentinels that do not answer.
pub(super) fn problem(sentinel: &Value) -> Option<String> {
    let all = sentinel["sentinels"].as_array()?;
    let missing: Vec<_> = all.iter().filter(|row| row["state"] != "connected").collect();
    let first = missing.first()?;
    let reason =
        first["reason"].as_str().map(|_| format!(" ({})", text(&first["reason"]))).unwrap_or_default();
    Some(format!(
        "{} of {} not connected, first {}{reason}: redbouncer check",
        missing.len(),
        counted(all.len(), "Sentinel"),
        text(&first["address"]),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_master_the_sentinels_and_the_last_failover_are_one_line() {
        let of = |state: &str, names: &str| json!({ "address": "s:26379", "state": state, "names": names, "reason": null });
        let mut shown = json!({
            "service": "main", "master": "a:1", "master_seconds": 120, "last_failover": null,
            "sentinels": [of("connected", "a:1"), of("connected", "a:1"), of("connected", "b:1")],
        });
        assert_eq!(line(&shown).as_deref(), Some("sentinel main: a:1 for 2m, named by 2 of 3 Sentinels"));
        assert_eq!(problem(&shown), None);
        shown["last_failover"] = json!({ "from": "b:1", "seconds_ago": 120, "took_seconds": 2.34 });
        let said = line(&shown).unwrap_or_default();
        assert!(said.ends_with("; last failover 2m ago from b:1, took 2.3s"), "{said}");
        shown["sentinels"][1] = json!({ "address": "s:1", "state": "unreachable", "names": null, "reason": "connection refused" });
        let said = problem(&shown);
        assert_eq!(
            said.as_deref(),
            Some("1 of 3 Sentinels not connected, first s:1 (connection refused): redbouncer check")
        );
        shown["master"] = json!(null);
        assert!(line(&shown).unwrap_or_default().starts_with("sentinel main: no master"));
        assert_eq!((line(&json!(null)), problem(&json!(null))), (None, None));
    }
}
