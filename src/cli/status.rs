//! `redbouncer status`: asks a running proxy for `/status` and prints it for people.
//!
//! Without a flag it is one screen ([`overview`]), with `--clients` the list of clients. The listing of `--all` follows the shape of
//! the JSON and knows none of its names, so whatever the proxy reports appears there without a change: an object is aligned
//! names and values, a list of objects is a table.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use hyper::StatusCode;
use serde_json::{Map, Value};

use super::admin_port::{self, AdminPortError};
use super::operate::Target;
use super::output::counted;
use super::overview::overview;
use super::terminal;
use crate::admin::AdminOptions;
use crate::command::glob;
use crate::config;
use crate::telemetry::printable;

/// The options of the output.
#[derive(Args)]
pub(super) struct Shown {
    /// Update the screen every second; sort, filter and kill clients with keys
    #[arg(long, conflicts_with_all = ["all", "clients", "json"])]
    pub(super) watch: bool,
    #[command(flatten)]
    pub(super) target: Target,
    /// Print the proxy's JSON
    #[arg(long, conflicts_with_all = ["all", "clients"])]
    json: bool,
    /// List everything that the proxy reports
    #[arg(long, conflicts_with = "clients")]
    all: bool,
    /// List the clients; the flags below select some of them
    #[arg(long)]
    clients: bool,
    /// With a CLIENT SETNAME that matches this pattern (web-*)
    #[arg(long, value_name = "GLOB", requires = "clients")]
    name: Option<String>,
    /// With an address that begins with this
    #[arg(long, value_name = "ADDRESS", requires = "clients")]
    addr: Option<String>,
    /// Logged in as this user
    #[arg(long, value_name = "NAME", requires = "clients")]
    user: Option<String>,
    /// With this place, such as WATCH or "blocking hub"
    #[arg(long, value_name = "PLACE", requires = "clients")]
    place: Option<String>,
    /// Idle for at least this long (30s, 5m, 1h)
    #[arg(long, value_name = "DURATION", requires = "clients", value_parser = duration)]
    idle: Option<Duration>,
    /// Maximum number of clients to list
    #[arg(long, value_name = "N", requires = "clients")]
    limit: Option<usize>,
}

fn duration(text: &str) -> Result<Duration, String> {
    config::duration(text).ok_or_else(|| "a number and ms, s, m, h or d, such as 60s".to_owned())
}

impl Shown {
    /// `body` as it is to be shown.
    pub(super) fn text(&self, body: &Value) -> String {
        match (self.json, self.all, self.clients) {
            (true, ..) => terminal::json(body),
            (_, true, _) => listing(body),
            (_, _, true) => self.list(body["clients"].as_array().map_or(&[], Vec::as_slice)),
            (false, false, false) => overview(body),
        }
    }

    fn list(&self, clients: &[Value]) -> String {
        let fits: Vec<_> = clients.iter().filter(|client| self.fits(client)).cloned().collect();
        let shown = &fits[..fits.len().min(self.limit.unwrap_or(usize::MAX))];
        let mut out = String::new();
        if !shown.is_empty() {
            array(shown, 0, &mut out);
        }
        let _ = writeln!(out, "{} of {}", shown.len(), counted(clients.len(), "client"));
        out
    }

    fn fits(&self, client: &Value) -> bool {
        let word = |field: &str| client[field].as_str().unwrap_or_default();
        let is =
            |wanted: &Option<String>, field: &str| wanted.as_ref().is_none_or(|wanted| wanted == word(field));
        self.name.as_ref().is_none_or(|pattern| glob::matches(pattern.as_bytes(), word("name").as_bytes()))
            && self.addr.as_ref().is_none_or(|address| word("peer").starts_with(address.as_str()))
            && is(&self.user, "user")
            && is(&self.place, "place")
            && self
                .idle
                .is_none_or(|idle| client["idle"].as_u64().is_some_and(|seconds| seconds >= idle.as_secs()))
    }
}

/// Fetches `/status` from the proxy of `options`.
pub(super) fn fetch(options: &AdminOptions) -> Result<Value, AdminPortError> {
    let page = admin_port::get(options, "/status")?;
    if page.status != StatusCode::OK {
        return Err(AdminPortError::Refused { url: page.url, status: page.status });
    }
    serde_json::from_slice(&page.body).map_err(|wrong| AdminPortError::Body {
        url: page.url,
        wrong: format!("the answer is not JSON: {wrong}"),
    })
}

/// The JSON as an aligned listing.
pub(super) fn listing(body: &Value) -> String {
    let mut out = String::new();
    match body {
        Value::Object(members) => object(members, 0, &mut out),
        Value::Array(items) => array(items, 0, &mut out),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            out.push_str(&cell(body));
            out.push('\n');
        }
    }
    out
}

/// Plain members first, aligned; then each nested one under its name.
fn object(members: &Map<String, Value>, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    let (plain, nested): (Vec<_>, Vec<_>) = members.iter().partition(|(_, value)| is_plain(value));
    let width = plain.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, value) in &plain {
        let _ = writeln!(out, "{indent}{:width$}  {}", shown(name), cell(value));
    }
    for (name, value) in nested {
        if depth == 0 && !out.is_empty() {
            out.push('\n');
        }
        let _ = writeln!(out, "{indent}{}", shown(name));
        match value {
            Value::Object(members) => object(members, depth + 1, out),
            Value::Array(items) => array(items, depth + 1, out),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

/// A list of objects: one row each, one column per name that any of them has. Anything else: one line each.
fn array(items: &[Value], depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    let rows: Option<Vec<&Map<String, Value>>> = items.iter().map(Value::as_object).collect();
    let Some(rows) = rows else {
        for item in items {
            let _ = writeln!(out, "{indent}{}", cell(item));
        }
        return;
    };
    let mut columns: Vec<&str> = Vec::new();
    for name in rows.iter().flat_map(|row| row.keys()) {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    let mut lines: Vec<Vec<String>> = vec![columns.iter().map(|name| shown(name)).collect()];
    lines.extend(
        rows.iter().map(|row| {
            columns.iter().map(|name| row.get(*name).map_or_else(|| "-".to_owned(), cell)).collect()
        }),
    );
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| {
            lines.iter().filter_map(|line| line.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
        })
        .collect();
    for line in &lines {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(out, "{indent}{}", cells.join("  ").trim_end());
    }
}

/// Values that fit on the line of their name: scalars, empty collections, and lists of scalars.
fn is_plain(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.is_empty(),
        Value::Array(items) => items.iter().all(|item| !item.is_object() && !item.is_array()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(on) => if *on { "yes" } else { "no" }.to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => shown(text),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(members) if members.is_empty() => "none".to_owned(),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| format!("{}={}", shown(name), cell(value)))
            .collect::<Vec<_>>()
            .join(" "),
    }
}

fn shown(text: &str) -> String {
    printable(text.as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use crate::cli::admin_port::tests::serve_once;

    use super::*;

    #[test]
    fn the_proxy_is_asked_for_its_status() {
        let (options, served) = serve_once("HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{\"clients\": 3}");
        assert_eq!(fetch(&options).unwrap(), json!({"clients": 3}));
        let request = served.join().unwrap();
        assert!(request.starts_with("GET /status HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("host: {}", options.address.unwrap())), "{request}");
    }

    #[test]
    fn an_answer_that_ends_with_the_connection_is_read_whole() {
        let (options, served) = serve_once("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"clients\": 3}");
        assert_eq!(fetch(&options).unwrap(), json!({"clients": 3}));
        served.join().unwrap();
    }

    #[test]
    fn what_is_no_status_is_said() {
        for (response, said) in [
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "404"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "not JSON"),
            ("-ERR unknown command\r\n", "/status: "),
            ("", "/status: "),
        ] {
            let (options, served) = serve_once(response);
            let wrong = fetch(&options).unwrap_err().to_string();
            assert!(wrong.contains(said), "{wrong}");
            served.join().unwrap();
        }
    }

    #[test]
    fn the_listing_is_aligned() {
        let body = json!({
            "ready": true,
            "uptime_seconds": 41,
            "listen": ["127.0.0.1:6380", "[::1]:6380"],
            "budget": {"cap": 8, "in_use": 3, "reason": null},
            "clients": [
                {"id": 1, "name": "web"},
                {"id": 1_000, "name": "", "pin": "WATCH"},
            ],
            "waits": [],
        });
        let expected = "\
listen          127.0.0.1:6380, [::1]:6380
ready           yes
uptime_seconds  41
waits           none

budget
  cap     8
  in_use  3
  reason  -

clients
  id    name  pin
  1     web   -
  1000  -     WATCH
";
        assert_eq!(listing(&body), expected);
    }

    #[test]
    fn a_client_cannot_steer_the_terminal_by_its_name() {
        let text = listing(&json!({"clients": [{"name": "\u{1b}[2Jx\n"}]}));
        assert!(!text.contains('\u{1b}') && text.contains("\\u{1b}[2Jx\\u{a}"), "{text}");
    }
}
