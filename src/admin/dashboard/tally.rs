//! Counters since the start and in the last 15 minutes, read from the exporter's own text, so that they are those of `/metrics`.

use std::collections::VecDeque;

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

/// So many minutes back `recent` reaches.
const MINUTES: usize = 15;

/// One count for all commands: which they are is no use in an incident, and there are hundreds.
const COMMANDS: &str = "commands";

/// The counters that the page shows, without the prefix that all have, and the word by which the page asks for them. Their
/// labels have closed sets of values, so that what is kept is bounded.
const FAMILIES: [(&str, &str); 13] = [
    ("commands_total", COMMANDS),
    ("clients_accepted_total", "accepted"),
    ("clients_closed_total", "clients_closed"),
    ("upstream_closed_total", "upstream_closed"),
    ("upstream_release_seconds_bucket", "release_seconds"),
    ("orphans_killed_total", "orphans_killed"),
    ("orphan_rounds_total", "orphan_rounds"),
    ("leases_total", "leases"),
    ("pool_full_total", "pool_full"),
    ("logins_total", "logins"),
    ("elements_undelivered_total", "undelivered"),
    ("command_errors_total", "command_errors"),
    ("log_lines_dropped_total", "log_lines_dropped"),
];

/// The counters now, and once a minute before.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// By family and labels; the position is the same in all of `minutes`.
    now: IndexMap<(&'static str, String), f64>,
    minutes: VecDeque<Vec<f64>>,
}

impl Tally {
    /// Takes the values in `text`, which is in Prometheus' text format.
    pub(super) fn read(&mut self, text: &str) {
        let mut commands = 0.0;
        for (family, labels, value) in text.lines().filter_map(series) {
            if family == COMMANDS {
                commands += value;
            } else {
                self.now.insert((family, labels), value);
            }
        }
        self.now.insert((COMMANDS, String::new()), commands);
    }

    /// A minute has passed.
    pub(super) fn end_minute(&mut self) {
        if self.minutes.len() >= MINUTES {
            self.minutes.pop_front();
        }
        self.minutes.push_back(self.now.values().copied().collect());
    }

    /// By family: labels, the count since the start, and since 15 minutes ago.
    pub(super) fn rows(&self) -> Value {
        let mut families = Map::new();
        for (at, ((family, labels), value)) in self.now.iter().enumerate() {
            // A series that was not there had counted nothing.
            let before = self.minutes.front().and_then(|minute| minute.get(at)).copied().unwrap_or(0.0);
            let rows = families.entry(*family).or_insert_with(|| json!([]));
            if let Value::Array(rows) = rows {
                rows.push(json!([labels, whole(*value), whole(value - before)]));
            }
        }
        Value::Object(families)
    }
}

/// A count as a whole number.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counters are not negative and below 2^53"
)]
fn whole(value: f64) -> u64 {
    value.max(0.0) as u64
}

/// One line of the text: the family, the values of its labels with a space between them, and the value.
fn series(line: &str) -> Option<(&'static str, String, f64)> {
    let (name, value) = line.strip_prefix("redbouncer_")?.rsplit_once(' ')?;
    let (name, labels) = name.split_once('{').unwrap_or((name, ""));
    let (_, family) = FAMILIES.into_iter().find(|(family, _)| *family == name)?;
    // Values of these labels contain no quotes.
    let values: Vec<_> = labels.split('"').skip(1).step_by(2).collect();
    Some((family, values.join(" "), value.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_since_the_start_and_since_fifteen_minutes_ago() {
        let mut tally = Tally::default();
        for minute in 1..=20 {
            tally.read(&format!(
                "# HELP redbouncer_pool_full_total x\nredbouncer_pool_full_total {minute}\nother_total 7\n\
                 redbouncer_commands_total{{command=\"get\"}} 2\nredbouncer_commands_total{{command=\"set\"}} {minute}\n\
                 redbouncer_command_errors_total{{origin=\"server\",kind=\"ERR\"}} 3\n"
            ));
            tally.end_minute();
        }
        let rows = tally.rows();
        assert_eq!(rows["pool_full"], json!([["", 20, 14]]));
        assert_eq!(rows["command_errors"], json!([["server ERR", 3, 0]]));
        assert_eq!(rows["commands"], json!([["", 22, 14]]));
        assert_eq!(rows.as_object().map(Map::len), Some(3));
    }

    #[test]
    fn a_series_that_comes_later_has_counted_nothing_before() {
        let mut tally = Tally::default();
        tally.read("redbouncer_pool_full_total 1\n");
        tally.end_minute();
        tally.read("redbouncer_pool_full_total 1\nredbouncer_leases_total{pin=\"own connection\"} 5\n");
        assert_eq!(tally.rows()["leases"], json!([["own connection", 5, 5]]));
    }
}
