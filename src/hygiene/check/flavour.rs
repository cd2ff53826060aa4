//! Which server it is, by what it says about itself: pure.

use crate::hygiene::info_field;
use crate::upstream::ServerInfo;

/// A server program and its version.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flavour {
    pub(super) program: Program,
    pub(super) version: String,
}

/// A server program.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Program {
    Redis,
    Valkey,
    Dragonfly,
    KeyDb,
    /// It calls itself so.
    Other(String),
}

impl Program {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Redis => "Redis",
            Self::Valkey => "Valkey",
            Self::Dragonfly => "Dragonfly",
            Self::KeyDb => "KeyDB",
            Self::Other(name) => name,
        }
    }
}

impl Flavour {
    /// Reads INFO's reply (which may be a refusal) and what the login was told. The forks call themselves "redis" for
    /// their clients' sake, so what only they say goes first: `dragonfly_version`, KeyDB's `mvcc_depth`, and
    /// `valkey_version` beside the Redis version that Valkey keeps for its clients.
    pub(super) fn of(info: &[u8], known: &ServerInfo) -> Self {
        let field = |name: &str| info_field(info, name).map(str::to_owned);
        let is_keydb =
            || field("mvcc_depth").is_some() || field("executable").is_some_and(|p| p.contains("keydb"));
        let said = |field: Option<String>| field.unwrap_or_else(|| known.version.clone());
        if let Some(version) = field("dragonfly_version") {
            let version = version.trim_start_matches("df-").trim_start_matches('v').to_owned();
            return Self { program: Program::Dragonfly, version };
        }
        if is_keydb() {
            return Self { program: Program::KeyDb, version: said(field("redis_version")) };
        }
        match known.server.as_str() {
            "valkey" => Self { program: Program::Valkey, version: said(field("valkey_version")) },
            _ if field("valkey_version").is_some() => {
                Self { program: Program::Valkey, version: said(field("valkey_version")) }
            }
            "redis" | "" => Self { program: Program::Redis, version: said(field("redis_version")) },
            other => Self { program: Program::Other(other.to_owned()), version: known.version.clone() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flavour(server: &str, info: &str) -> (String, String) {
        let known =
            ServerInfo { server: server.to_owned(), version: "7.0.15".to_owned(), ..ServerInfo::default() };
        let reply = format!("${}\r\n{info}\r\n", info.len());
        let Flavour { program, version } = Flavour::of(reply.as_bytes(), &known);
        (program.name().to_owned(), version)
    }

    #[test]
    fn the_forks_are_told_from_redis() {
        let is = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        assert_eq!(flavour("redis", "# Server\r\nredis_version:7.0.15\r\n"), is("Redis", "7.0.15"));
        let valkey = "# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.8\r\n";
        assert_eq!(flavour("valkey", valkey), is("Valkey", "8.1.8"));
        assert_eq!(flavour("redis", valkey), is("Valkey", "8.1.8"));
        let dragonfly =
            "# Server\r\nredis_version:7.4.0\r\ndragonfly_version:df-v1.31.0\r\nredis_mode:standalone\r\n";
        assert_eq!(flavour("redis", dragonfly), is("Dragonfly", "1.31.0"));
        let keydb = "# Server\r\nredis_version:6.3.4\r\n\r\n# KeyDB\r\nvariant:community\r\nmvcc_depth:0\r\n";
        assert_eq!(flavour("redis", keydb), is("KeyDB", "6.3.4"));
        assert_eq!(flavour("kvrocks", ""), is("kvrocks", "7.0.15"));
    }

    #[test]
    fn a_server_without_info_is_what_it_said_at_the_login() {
        let known =
            ServerInfo { server: "redis".to_owned(), version: "7.0.15".to_owned(), ..ServerInfo::default() };
        let flavour = Flavour::of(b"-NOPERM no permissions\r\n", &known);
        assert_eq!(flavour, Flavour { program: Program::Redis, version: "7.0.15".to_owned() });
    }
}
