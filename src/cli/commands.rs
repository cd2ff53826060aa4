//! `redbouncer commands`: prints the command table as text or JSON.
//!
//! It is the table that routes commands, so the output cannot differ from the behaviour.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::command::{Keys, ROUTES, Row, rows};

/// Widest line, in columns.
const WIDTH: usize = 100;

/// The table as text: the meaning of the routes, then every command by name.
pub fn render() -> String {
    let rows = by_name();
    let name_width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let route_width = ROUTES.iter().map(|(route, _)| route.len()).max().unwrap_or(0);

    let mut out = String::from("Routes\n\n");
    for (route, meaning) in ROUTES {
        columns(&mut out, &[("", 0), (route, route_width)], meaning);
    }
    out.push_str(
        "\nCommands (policy: reaches beyond the own connection, subject to auth.admin_commands)\n\n",
    );
    let head = [("command", name_width), ("route", route_width), ("policy", 6)];
    columns(&mut out, &head, "why");
    for row in rows {
        let name = row.name.replace('|', " ").to_ascii_uppercase();
        let policy = if row.policy { "policy" } else { "" };
        let cells = [(name.as_str(), name_width), (row.class.route(), route_width), (policy, 6)];
        columns(&mut out, &cells, row.why);
    }
    out
}

/// The table as JSON: an array of objects, by name.
pub fn render_json() -> String {
    let rows: Value = by_name().into_iter().map(object).collect();
    format!("{rows:#}\n")
}

fn by_name() -> Vec<&'static Row> {
    let mut rows: Vec<&Row> = rows().iter().collect();
    rows.sort_by_key(|row| row.name.replace('|', " "));
    rows
}

fn object(row: &Row) -> Value {
    let keys = match row.keys {
        Keys::None => Value::Null,
        Keys::Range { first, last, step } => json!({ "first": first, "last": last, "step": step }),
        Keys::Special => json!("by arguments"),
    };
    json!({
        "name": row.name,
        "arity": row.arity,
        "route": row.class.route(),
        "policy": row.policy,
        "keys": keys,
        "why": row.why,
    })
}

/// One line of padded cells and a text, which goes on below itself where it does not fit.
fn columns(out: &mut String, cells: &[(&str, usize)], text: &str) {
    let mut indent = 0;
    for (cell, width) in cells {
        // Writing to a String cannot fail.
        let _ = write!(out, "{cell:<width$}  ");
        indent += width + 2;
    }
    let mut used = indent;
    for (i, word) in text.split(' ').enumerate() {
        let len = word.chars().count();
        if i > 0 && used + 1 + len > WIDTH {
            let _ = write!(out, "\n{:indent$}", "");
            used = indent;
        } else if i > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += len;
    }
    out.push('\n');
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_text_fits_into_a_hundred_columns() {
        for line in render().lines() {
            assert!(line.chars().count() <= WIDTH, "{line:?}");
            assert_eq!(line, line.trim_end());
        }
    }

    #[test]
    fn the_text_has_every_command_with_its_route() {
        let text = render();
        for row in rows() {
            let name = row.name.replace('|', " ").to_ascii_uppercase();
            let line = text.lines().find(|line| line.starts_with(&format!("{name}  "))).expect(&name);
            assert!(line.contains(row.class.route()), "{line:?}");
            assert_eq!(line.contains("  policy  "), row.policy, "{line:?}");
        }
    }

    #[test]
    fn the_json_has_every_command() {
        let parsed: Value = serde_json::from_str(&render_json()).unwrap();
        let objects = parsed.as_array().unwrap();
        assert_eq!(objects.len(), rows().len());
        let of = |name: &str| objects.iter().find(|object| object["name"] == name).unwrap().clone();
        assert_eq!(of("get")["route"], "lane");
        assert_eq!(of("client|kill")["policy"], true);
        assert_eq!(of("mset")["keys"], json!({ "first": 1, "last": -1, "step": 2 }));
        assert_eq!(of("multi")["keys"], Value::Null);
    }
}
