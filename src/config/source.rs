//! The layers a value can come from: file, environment, flags. Each later one wins over the earlier ones.
//!
//! A layer only finds keys and remembers where each stood; whether a value is right is decided once, by the key, after
//! the layers are merged. So a wrong value that is overridden does no harm, and an unknown key always does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::Flags;
use super::error::{ConfigError, Origin};
use super::key::Key;
use super::keys::KEYS;
use super::text::{nearest, shown, syntax};
use super::value::Given;

/// The prefix of all our variables.
const PREFIX: &str = "REDBOUNCER_";

/// The variable that names the file.
pub(super) const CONFIG_VARIABLE: &str = "REDBOUNCER_CONFIG";

/// Short names for common settings.
const SHORT: [(&str, &str); 3] = [
    ("REDBOUNCER_UPSTREAM", "upstream.url"),
    ("REDBOUNCER_LISTEN", "listen.addresses"),
    ("REDBOUNCER_ADMIN", "admin.address"),
];

/// The values given so far and what was wrong on the way. No `Debug`: values may hold passwords.
#[derive(Default)]
pub(super) struct Layers {
    values: BTreeMap<&'static str, (Given, Origin)>,
    pub(super) errors: Vec<ConfigError>,
}

impl Layers {
    /// The value of a key, if a layer gave one.
    pub(super) fn given(&self, key: &Key) -> Option<&(Given, Origin)> {
        self.values.get(key.path)
    }

    /// Where the value of `path` came from.
    pub(super) fn origin(&self, path: &str) -> Origin {
        self.values.get(path).map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    /// Reads a TOML file's text.
    pub(super) fn file(&mut self, path: &Path, text: &str) {
        let at = |offset: usize| {
            let line = 1 + text.bytes().take(offset).filter(|b| *b == b'\n').count();
            Origin::File { path: path.to_owned(), line }
        };
        match DeTable::parse(text) {
            Ok(table) => self.table("", table.get_ref(), &at),
            Err(wrong) => {
                // Not `Display`: it quotes the line, and the line may hold the password.
                let origin = at(wrong.span().map_or(0, |span| span.start));
                self.errors.push(ConfigError::Syntax { origin, message: syntax(wrong.message()) });
            }
        }
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>, at: &dyn Fn(usize) -> Origin) {
        for (name, value) in table.iter() {
            let path = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            let origin = at(name.span().start);
            match (find(&path), value.get_ref()) {
                (Some(key), value) => self.put(key.path, Given::from_toml(value), origin),
                (None, DeValue::Table(inner)) if is_section(&path) => self.table(&path, inner, at),
                (None, DeValue::Table(_)) => {
                    let nearest = nearest(KEYS.iter().map(Key::section), &path);
                    self.errors.push(ConfigError::UnknownSection { section: shown(&path), nearest, origin });
                }
                (None, _) => self.unknown(&path, origin),
            }
        }
    }

    /// Takes every variable that begins with `REDBOUNCER_`.
    pub(super) fn environment(&mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) {
        let mut known: Vec<(String, &'static str)> =
            SHORT.iter().map(|(n, path)| ((*n).to_owned(), *path)).collect();
        known.extend(KEYS.iter().map(|key| (key.variable(), key.path)));
        for (name, value) in variables {
            let Some(name) =
                name.to_str().filter(|name| name.starts_with(PREFIX) && *name != CONFIG_VARIABLE)
            else {
                continue;
            };
            let key = known.iter().find(|(variable, _)| variable == name);
            match (key, value.to_str()) {
                (Some((_, path)), Some(text)) => {
                    self.put(path, Given::from_text(text), Origin::Environment(name.to_owned()));
                }
                (Some(_), None) => self.errors.push(ConfigError::NotText { name: name.to_owned() }),
                (None, value) if is_service_link(name, value.unwrap_or_default()) => {}
                (None, _) => {
                    let names = known.iter().map(|(variable, _)| variable.as_str()).chain([CONFIG_VARIABLE]);
                    let nearest = nearest(names, name).to_owned();
                    self.errors.push(ConfigError::UnknownVariable { name: shown(name), nearest });
                }
            }
        }
    }

    /// Takes the command line.
    pub(super) fn flags(&mut self, flags: &Flags) {
        let named = [
            ("--upstream", "upstream.url", &flags.upstream),
            ("--admin", "admin.address", &flags.admin),
            ("--max-connections", "pool.max_connections", &flags.max_connections),
            ("--workers", "listen.workers", &flags.workers),
        ];
        for (flag, path, value) in named {
            if let Some(text) = value {
                self.put(path, Given::from_text(text), Origin::Flag(flag.to_owned()));
            }
        }
        if !flags.listen.is_empty() {
            let addresses = Given::from_text(&flags.listen.join(","));
            self.put("listen.addresses", addresses, Origin::Flag("--listen".to_owned()));
        }
        for setting in &flags.set {
            let Some((path, text)) = setting.split_once('=') else {
                self.errors.push(ConfigError::NotASetting);
                continue;
            };
            let path = path.trim();
            let origin = Origin::Flag(format!("--set {}", shown(path)));
            match find(path) {
                Some(key) => self.put(key.path, Given::from_text(text), origin),
                None if is_path(path) => self.unknown(path, Origin::Flag("--set".to_owned())),
                // Not a key at all: perhaps a URL with a password in it.
                None => self.errors.push(ConfigError::NotASetting),
            }
        }
    }

    /// Applies values set at run time.
    pub(super) fn commands(&mut self, set: &BTreeMap<&'static str, String>) {
        for (path, text) in set {
            self.put(path, Given::from_text(text), Origin::Command);
        }
    }

    /// Layers that know only where values came from.
    pub(super) fn of_origins(origins: &BTreeMap<&'static str, Origin>) -> Self {
        let values = origins.iter().map(|(path, origin)| (*path, (Given::Other("known"), origin.clone())));
        Self { values: values.collect(), errors: Vec::new() }
    }

    fn put(&mut self, path: &'static str, given: Given, origin: Origin) {
        if let Some((_, earlier)) = self.values.get(path)
            && earlier.is_level_with(&origin)
        {
            let first = earlier.clone();
            self.errors.push(ConfigError::Twice { key: path, first, second: origin });
            return;
        }
        self.values.insert(path, (given, origin));
    }

    fn unknown(&mut self, path: &str, origin: Origin) {
        let nearest = nearest(KEYS.iter().map(|key| key.path), path);
        self.errors.push(ConfigError::UnknownKey { key: shown(path), nearest, origin });
    }
}

pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

fn is_section(path: &str) -> bool {
    KEYS.iter().any(|key| key.section() == path)
}

fn is_path(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Whether Kubernetes made this variable: for a Service called `redbouncer` (or `redbouncer-…`) it puts
/// `REDBOUNCER_SERVICE_HOST`, `REDBOUNCER_PORT=tcp://…`, `REDBOUNCER_PORT_6380_TCP_ADDR` and the like into every pod of
/// the namespace (kubernetes.io, "Accessing the Service", environment variables). They are nobody's mistake.
fn is_service_link(name: &str, value: &str) -> bool {
    const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
    let is_url = PROTOCOLS.iter().any(|p| value.starts_with(&format!("{}://", p.to_ascii_lowercase())));
    let after_port = name.rsplit_once("_PORT_").map(|(_, rest)| rest.split('_').collect::<Vec<_>>());
    let is_port_detail = match after_port.as_deref() {
        Some([port, protocol, rest @ ..]) => {
            port.bytes().all(|b| b.is_ascii_digit())
                && PROTOCOLS.contains(protocol)
                && matches!(rest, [] | ["PROTO" | "PORT" | "ADDR"])
        }
        Some(_) | None => false,
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && is_url)
        || is_port_detail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_the_one_that_was_meant() {
        let key = |asked: &str| nearest(KEYS.iter().map(|key| key.path), asked);
        assert_eq!(key("pool.max_conections"), "pool.max_connections");
        assert_eq!(key("max_connections"), "pool.max_connections");
        assert_eq!(key("upstream.max_connections"), "pool.max_connections");
        assert_eq!(key("workers"), "listen.workers");
        assert_eq!(key("pool.workers"), "listen.workers");
        assert_eq!(key("listen.address"), "listen.addresses");
        assert_eq!(key("upstream.tls.certificate"), "upstream.tls.cert");
        assert_eq!(key("upstream.ca"), "upstream.tls.ca");
        assert_eq!(key("log.lvl"), "log.level");
        let section = |asked: &str| nearest(KEYS.iter().map(Key::section), asked);
        assert_eq!(section("clients"), "client");
        assert_eq!(section("upstream.tsl"), "upstream.tls");
        assert_eq!(section("listen.ssl"), "listen.tls");
    }

    #[test]
    fn variables_that_kubernetes_makes_are_nobodys_mistake() {
        for (name, value) in [
            ("REDBOUNCER_SERVICE_HOST", "10.0.0.1"),
            ("REDBOUNCER_SERVICE_PORT", "6380"),
            ("REDBOUNCER_SERVICE_PORT_REDIS", "6380"),
            ("REDBOUNCER_PORT", "tcp://10.0.0.1:6380"),
            ("REDBOUNCER_PORT_6380_TCP", "tcp://10.0.0.1:6380"),
            ("REDBOUNCER_PORT_6380_TCP_ADDR", "10.0.0.1"),
            ("REDBOUNCER_PORT_6380_TCP_PROTO", "tcp"),
            ("REDBOUNCER_ADMIN_SERVICE_HOST", "10.0.0.1"),
            ("REDBOUNCER_ADMIN_PORT", "tcp://10.0.0.1:9380"),
        ] {
            assert!(is_service_link(name, value), "{name}={value}");
        }
        for (name, value) in [
            ("REDBOUNCER_PORT", "6380"),
            ("REDBOUNCER_PORT_6380", "x"),
            ("REDBOUNCER_MAX_CONNECTIONS", "8"),
            ("REDBOUNCER_UPSTREAM__HOST", "h"),
        ] {
            assert!(!is_service_link(name, value), "{name}={value}");
        }
    }
}
