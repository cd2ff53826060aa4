//! `redbouncer status`: asks a running proxy for `/status` and prints it for people.
//!
//! The listing follows the shape of the JSON and knows none of its names, so whatever the proxy reports appears here
//! without a change: an object is aligned names and values, a list of objects is a table.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value};
use tokio::net::TcpStream;

use crate::admin::AdminOptions;
use crate::telemetry::printable;

/// The answer comes from the same host or network and is made from memory: later than this means stuck.
const DEADLINE: Duration = Duration::from_secs(5);

/// 10,000 clients at a few hundred bytes each, several times over.
const LARGEST_BODY: usize = 64 << 20;

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub(super) enum StatusError {
    /// The configuration switches the listener off.
    #[error("the admin listener is switched off (admin.address is empty); name one with --admin")]
    Off,
    /// The configuration leaves the port to the system.
    #[error("{0} leaves the port to the system; name the one the proxy reported, with --admin")]
    PortUnknown(String),
    /// Nobody listens there, or not as far as we can see.
    #[error(
        "cannot connect to http://{address}: {source}; is the proxy running there? (--admin names another address)"
    )]
    Connect {
        /// Where we tried.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Too late.
    #[error("http://{0}/status did not answer within 5s")]
    Late(String),
    /// An answer, but not from a proxy of ours.
    #[error("http://{address}/status answered {status}; is that a redbouncer?")]
    Refused {
        /// Whom we asked.
        address: String,
        /// What it said.
        status: StatusCode,
    },
    /// The exchange broke off.
    #[error("http://{address}/status: {source}")]
    Http {
        /// Whom we asked.
        address: String,
        /// What hyper said.
        source: hyper::Error,
    },
    /// The body could not be read.
    #[error("http://{address}/status: {wrong}")]
    Body {
        /// Whom we asked.
        address: String,
        /// Too long, broken off, or not JSON.
        wrong: String,
    },
    /// This process could not start a runtime.
    #[error("cannot start: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Asks the proxy that `options` describe.
pub(super) fn fetch(options: &AdminOptions) -> Result<Value, StatusError> {
    let address = reachable(options.address.as_deref().ok_or(StatusError::Off)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match tokio::time::timeout(DEADLINE, exchange(&address)).await {
            Ok(answer) => answer,
            Err(_) => Err(StatusError::Late(address.clone())),
        }
    })
}

/// Where a client finds the listener: a wildcard address is reached by loopback.
fn reachable(address: &str) -> Result<String, StatusError> {
    match address.parse::<SocketAddr>() {
        Ok(socket) if socket.ip().is_unspecified() && socket.port() > 0 => {
            let loopback = match socket.ip() {
                IpAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
                IpAddr::V6(_) => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
            };
            Ok(SocketAddr::new(loopback, socket.port()).to_string())
        }
        Ok(_) | Err(_) if address.ends_with(":0") => Err(StatusError::PortUnknown(address.to_owned())),
        Ok(_) | Err(_) => Ok(address.to_owned()),
    }
}

async fn exchange(address: &str) -> Result<Value, StatusError> {
    let to = || address.to_owned();
    let stream =
        TcpStream::connect(address).await.map_err(|source| StatusError::Connect { address: to(), source })?;
    let http = |source| StatusError::Http { address: to(), source };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let request =
        Request::get("/status").header(header::HOST, address).header(header::ACCEPT, "application/json");
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|wrong| StatusError::Body { address: to(), wrong: wrong.to_string() })?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(http)?;
        if response.status() != StatusCode::OK {
            return Err(StatusError::Refused { address: to(), status: response.status() });
        }
        let body = Limited::new(response.into_body(), LARGEST_BODY).collect().await.map_err(|wrong| {
            let wrong = match wrong.downcast_ref::<LengthLimitError>() {
                Some(_) => "the answer is longer than 64MiB".to_owned(),
                None => wrong.to_string(),
            };
            StatusError::Body { address: to(), wrong }
        })?;
        serde_json::from_slice(&body.to_bytes()).map_err(|wrong| StatusError::Body {
            address: to(),
            wrong: format!("the answer is not JSON: {wrong}"),
        })
    };
    tokio::pin!(answer);
    // The connection moves the bytes; it may end before the answer is taken apart.
    tokio::select! {
        answer = &mut answer => answer,
        _ = connection => answer.await,
    }
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

/// What fits on its name's line: values, empty collections, and lists of values.
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
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use serde_json::json;

    use super::*;

    /// Answers one request with `response` and returns what was asked.
    fn serve_once(response: &'static str) -> (AdminOptions, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Some(listener.local_addr().unwrap().to_string());
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(response.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        (AdminOptions { address, ..AdminOptions::default() }, served)
    }

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
    fn an_address_nobody_listens_on_is_named() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let wrong = fetch(&AdminOptions { address: Some(address.clone()), ..AdminOptions::default() })
            .unwrap_err()
            .to_string();
        assert!(wrong.contains(&address) && wrong.contains("--admin"), "{wrong}");
        assert!(matches!(
            fetch(&AdminOptions { address: None, ..AdminOptions::default() }),
            Err(StatusError::Off)
        ));
    }

    #[test]
    fn a_wildcard_listener_is_reached_by_loopback() {
        assert_eq!(reachable("0.0.0.0:9380").unwrap(), "127.0.0.1:9380");
        assert_eq!(reachable("[::]:9380").unwrap(), "[::1]:9380");
        assert_eq!(reachable("10.1.2.3:9380").unwrap(), "10.1.2.3:9380");
        assert_eq!(reachable("proxy.example:9380").unwrap(), "proxy.example:9380");
        assert!(matches!(reachable("127.0.0.1:0"), Err(StatusError::PortUnknown(_))));
        assert!(matches!(reachable("0.0.0.0:0"), Err(StatusError::PortUnknown(_))));
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
