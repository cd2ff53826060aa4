//! The server's description of itself at login.
//!
//! HELLO's reply contains it. A server without HELLO (before Redis 6) is asked for `INFO server`, whose text has the
//! version and the mode.

use redis_protocol::resp3::types::BytesFrame;

use crate::resp::{Protocol, decode};
use crate::telemetry::printable;

/// A server, as its login reply described it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerInfo {
    /// `redis`, `valkey` or another name it gives itself.
    pub server: String,
    /// Its version (`7.0.15`); empty if it would not say.
    pub version: String,
    /// `standalone`, `cluster` or `sentinel`; empty if it would not say.
    pub mode: String,
    /// `master` or `replica`, at the time of the login; empty without HELLO.
    pub role: String,
    /// Loaded modules.
    pub modules: Vec<Module>,
    /// It has HELLO, and with it RESP3.
    pub hello: bool,
}

/// A module that the server has loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name (`ReJSON`).
    pub name: String,
    /// Its version as modules count it: one number (20609 is 2.6.9).
    pub version: i64,
    /// The file it was loaded from; said since 7.0.
    pub path: Option<String>,
    /// The arguments it was loaded with; said since 7.0.
    pub args: Option<Vec<String>>,
}

/// A HELLO reply, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) info: ServerInfo,
    /// The protocol that the connection speaks from here on.
    pub(super) protocol: i64,
    /// The connection's client id.
    pub(super) id: Option<u64>,
}

impl Greeting {
    /// Reads a map (RESP3) or a flat array (RESP2); fields that are not known, or not of their kind, are skipped.
    pub(super) fn read(frame: &[u8], protocol: Protocol) -> Option<Self> {
        let mut greeting =
            Self { info: ServerInfo { hello: true, ..ServerInfo::default() }, protocol: 0, id: None };
        for (key, value) in pairs(decode(frame, protocol).ok()?)? {
            let info = &mut greeting.info;
            match key.as_str() {
                "server" => info.server = text(&value).unwrap_or_default(),
                "version" => info.version = text(&value).unwrap_or_default(),
                "proto" => greeting.protocol = number(&value)?,
                "id" => greeting.id = number(&value).and_then(|n| u64::try_from(n).ok()),
                "mode" => info.mode = text(&value).unwrap_or_default(),
                "role" => info.role = text(&value).unwrap_or_default(),
                "modules" => info.modules = modules(value),
                _ => {}
            }
        }
        Some(greeting)
    }
}

impl ServerInfo {
    /// Whether it was a replica at the login; `None` if it would not say.
    #[must_use]
    pub fn is_replica(&self) -> Option<bool> {
        match self.role.as_str() {
            "" => None,
            role => Some(role != "master"),
        }
    }

    /// Reads the text of `INFO server`.
    pub(super) fn from_info(text: &str) -> Self {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(|value| printable(value.trim_end().as_bytes()))
        };
        // Valkey reports `redis_version` 7.2.4 to clients, and its own version in another field.
        let valkey = field("valkey_version");
        Self {
            server: field("server_name").unwrap_or_else(|| "redis".to_owned()),
            version: valkey.or_else(|| field("redis_version")).unwrap_or_default(),
            mode: field("server_mode").or_else(|| field("redis_mode")).unwrap_or_default(),
            role: String::new(),
            modules: Vec::new(),
            hello: false,
        }
    }
}

/// Key and value of a map, or of an array that stands for one.
fn pairs(frame: BytesFrame) -> Option<Vec<(String, BytesFrame)>> {
    match frame {
        BytesFrame::Map { data, .. } => {
            data.into_iter().map(|(key, value)| Some((text(&key)?, value))).collect()
        }
        BytesFrame::Array { data, .. } => {
            let mut items = data.into_iter();
            let mut pairs = Vec::with_capacity(items.len() / 2);
            while let Some(key) = items.next() {
                pairs.push((text(&key)?, items.next()?));
            }
            Some(pairs)
        }
        _ => None, // the crate's enum: no other type holds pairs
    }
}

/// The modules of a HELLO reply; one that is described in an unknown way is left out.
fn modules(frame: BytesFrame) -> Vec<Module> {
    let BytesFrame::Array { data, .. } = frame else { return Vec::new() };
    let read = |frame| {
        let fields = pairs(frame)?;
        let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        let args = field("args").and_then(|frame| match frame {
            BytesFrame::Array { data, .. } => data.iter().map(text).collect(),
            _ => None, // the crate's enum: no other type is a list
        });
        Some(Module {
            name: text(field("name")?)?,
            version: number(field("ver")?)?,
            path: field("path").and_then(text),
            args,
        })
    };
    data.into_iter().filter_map(read).collect()
}

fn text(frame: &BytesFrame) -> Option<String> {
    match frame {
        BytesFrame::BlobString { data, .. }
        | BytesFrame::SimpleString { data, .. }
        | BytesFrame::VerbatimString { data, .. } => Some(printable(data)),
        _ => None, // the crate's enum: no other type is a text
    }
}

fn number(frame: &BytesFrame) -> Option<i64> {
    match frame {
        BytesFrame::Number { data, .. } => Some(*data),
        _ => None, // the crate's enum: no other type is a whole number
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_hello_reply_say_the_same() {
        let fields = "$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$2\r\nid\r\n:4\r\n\
                      $4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n";
        let module = "$4\r\nname\r\n$6\r\nReJSON\r\n$3\r\nver\r\n:20609\r\n$4\r\npath\r\n$1\r\n/\r\n";
        let two = format!("*14\r\n{fields}$5\r\nproto\r\n:2\r\n$7\r\nmodules\r\n*1\r\n*6\r\n{module}");
        let three = format!("%7\r\n{fields}$5\r\nproto\r\n:3\r\n$7\r\nmodules\r\n*1\r\n%3\r\n{module}");
        let two = Greeting::read(two.as_bytes(), Protocol::Resp2).unwrap();
        let three = Greeting::read(three.as_bytes(), Protocol::Resp3).unwrap();
        assert_eq!((two.protocol, three.protocol), (2, 3));
        assert_eq!((two.id, &two.info), (three.id, &three.info));
        assert_eq!(two.id, Some(4));
        assert_eq!(
            two.info,
            ServerInfo {
                server: "redis".into(),
                version: "7.0.15".into(),
                mode: "standalone".into(),
                role: "master".into(),
                modules: vec![Module {
                    name: "ReJSON".into(),
                    version: 20609,
                    path: Some("/".into()),
                    args: None
                }],
                hello: true,
            }
        );
    }

    #[test]
    fn fields_of_later_versions_are_skipped() {
        let reply = "%3\r\n$5\r\nproto\r\n:3\r\n$4\r\nzone\r\n*1\r\n#t\r\n$7\r\nversion\r\n$2\r\n99\r\n";
        let greeting = Greeting::read(reply.as_bytes(), Protocol::Resp3).unwrap();
        assert_eq!((greeting.protocol, greeting.info.version.as_str()), (3, "99"));
    }

    #[test]
    fn what_is_no_map_is_no_greeting() {
        for reply in ["+OK\r\n", "*1\r\n$5\r\nproto\r\n", "*2\r\n:1\r\n:2\r\n", "_\r\n"] {
            assert_eq!(Greeting::read(reply.as_bytes(), Protocol::Resp3), None, "{reply:?}");
        }
    }

    #[test]
    fn info_tells_redis_from_valkey() {
        let redis = ServerInfo::from_info("# Server\r\nredis_version:5.0.14\r\nredis_mode:standalone\r\n");
        assert_eq!((redis.server.as_str(), redis.version.as_str()), ("redis", "5.0.14"));
        assert_eq!((redis.mode.as_str(), redis.hello), ("standalone", false));
        let valkey = ServerInfo::from_info(
            "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\nserver_mode:cluster\r\n",
        );
        assert_eq!((valkey.server.as_str(), valkey.version.as_str()), ("valkey", "8.0.1"));
        assert_eq!(valkey.mode, "cluster");
    }
}
