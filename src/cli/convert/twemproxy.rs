//! twemproxy's `nutcracker.yml`: the keys of its README and of `conf.c`.

use yaml_rust2::yaml::Hash;
use yaml_rust2::{Yaml, YamlLoader};

use super::conversion::{Conversion, host_and_port, milliseconds, url};
use super::error::ConvertError;

/// Keys that only say which of several servers has a key of the data.
const PLACEMENT: [&str; 3] = ["hash", "hash_tag", "distribution"];
/// Keys that only say when one of several servers is left out.
const EJECTION: [&str; 3] = ["auto_eject_hosts", "server_retry_timeout", "server_failure_limit"];
/// Connections to the server by default: the default of `pool.max_connections`.
const CONNECTIONS: i64 = 8;

/// The pools of a configuration, by name.
pub(super) struct Pools(Vec<(String, Hash)>);

impl Pools {
    /// Reads the file.
    ///
    /// # Errors
    /// It is no YAML, or has no pools.
    pub(super) fn read(text: &str) -> Result<Self, ConvertError> {
        let documents =
            YamlLoader::load_from_str(text).map_err(|wrong| ConvertError::Yaml(wrong.to_string()))?;
        let Some(Yaml::Hash(pools)) = documents.into_iter().next() else { return Err(ConvertError::NoPools) };
        let pool = |(name, pool): (Yaml, Yaml)| match (scalar(&name), pool) {
            (Some(name), Yaml::Hash(pool)) => Ok((name, pool)),
            _ => Err(ConvertError::NoPools),
        };
        Ok(Self(pools.into_iter().map(pool).collect::<Result<_, _>>()?))
    }

    /// The pool with this name, or the only one.
    ///
    /// # Errors
    /// There is no such pool, or there are several.
    pub(super) fn choose(&self, name: Option<&str>) -> Result<(&str, Conversion), ConvertError> {
        let names = || self.0.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let chosen = match (name, &self.0[..]) {
            (None, [one]) => one,
            (None, []) => return Err(ConvertError::NoPools),
            (None, _) => return Err(ConvertError::SeveralPools(names())),
            (Some(wanted), all) => all
                .iter()
                .find(|(name, _)| name == wanted)
                .ok_or_else(|| ConvertError::NoSuchPool { wanted: wanted.to_owned(), names: names() })?,
        };
        Ok((&chosen.0, convert(&chosen.1)))
    }
}

fn convert(pool: &Hash) -> Conversion {
    let mut out = Conversion::default();
    let value = |key: &str| pool.get(&Yaml::String(key.to_owned()));
    if !matches!(value("redis"), Some(Yaml::Boolean(true))) {
        out.refuse("redis: true is missing: the pool is for memcached, which redbouncer does not speak.");
    }
    server(&mut out, value("servers"), value("redis_db").and_then(Yaml::as_i64).unwrap_or(0));
    for (key, value) in pool {
        let Some(key) = scalar(key) else {
            out.refuse("A key that is no text.");
            continue;
        };
        let number = value.as_i64().and_then(|number| u64::try_from(number).ok());
        match (key.as_str(), number) {
            ("redis" | "servers" | "redis_db", _) => {}
            ("listen", _) => listen(&mut out, &scalar(value).unwrap_or_default()),
            ("redis_auth", _) => {
                out.set("upstream", "password", scalar(value).unwrap_or_default(), "redis_auth");
                out.remark(
                    "redis_auth is also the password of the clients. On loopback and Unix sockets redbouncer asks for none; \
                     elsewhere the server checks what clients log in with (auth.mode).",
                );
            }
            ("timeout", Some(number)) => {
                out.set("upstream", "command_timeout", milliseconds(number), "timeout");
                out.set("upstream", "connect_timeout", milliseconds(number.max(100)), "timeout, at least 100ms");
            }
            ("backlog", Some(_)) => out.set("listen", "backlog", value.as_i64().unwrap_or_default(), "backlog"),
            ("client_connections", Some(0)) => {}
            ("client_connections", Some(_)) => {
                out.set("client", "max", value.as_i64().unwrap_or_default(), "client_connections");
            }
            ("server_connections", Some(_)) => connections(&mut out, value.as_i64().unwrap_or_default()),
            ("preconnect", _) => out.remark("preconnect: redbouncer logs in at the start, and on demand."),
            ("tcpkeepalive", _) => {
                out.remark("tcpkeepalive: always on (client.keepalive_idle, upstream.keepalive_idle).");
            }
            ("reuse_port" | "reuseport", _) => {
                out.remark("reuse_port: during a replacement, a service manager can keep the socket (LISTEN_FDS).");
            }
            (name, _) if PLACEMENT.contains(&name) => {
                out.remark(format!("{name}: there is one server, so nothing is distributed."));
            }
            (name, _) if EJECTION.contains(&name) => out.remark(format!(
                "{name}: there is one server, so none is left out. Failed connects are repeated (upstream.backoff_max)."
            )),
            (name, _) => out.refuse(format!("{name}: unknown, or not a value that twemproxy takes.")),
        }
    }
    out
}

/// A path with permissions behind it, or a host and a port.
fn listen(out: &mut Conversion, text: &str) {
    let mut words = text.split_whitespace();
    let address = words.next().unwrap_or_default();
    if address.starts_with('/') {
        out.set("listen", "addresses", vec![format!("unix:{address}")], "listen");
        if let Some(mode) = words.next() {
            out.set("listen", "unix_mode", mode.trim_start_matches('0'), "the permissions in listen");
        }
    } else {
        out.set("listen", "addresses", vec![address.to_owned()], "listen");
    }
}

/// `host:port:weight name`, once.
fn server(out: &mut Conversion, servers: Option<&Yaml>, database: i64) {
    let servers: Vec<String> =
        servers.and_then(Yaml::as_vec).into_iter().flatten().filter_map(scalar).collect();
    let [server] = &servers[..] else {
        // Empty, so that redbouncer refuses to start with it.
        out.set("upstream", "url", "", "servers: to be decided");
        return out.refuse(match servers.len() {
            0 => "servers: there is none.".to_owned(),
            count => format!(
                "servers: keys are distributed over {count} servers, and redbouncer has one. Choose one server for all data, or \
                 run one redbouncer for each of them and distribute in the client."
            ),
        });
    };
    let place = server.split_whitespace().next().unwrap_or_default();
    let without_weight = place.rsplit_once(':').map(|(address, _)| address);
    let database = u32::try_from(database).unwrap_or_default();
    match without_weight.and_then(host_and_port) {
        Some((host, port)) if !host.starts_with('/') => {
            out.set("upstream", "url", url(host, port, database), "servers, and redis_db where it is not 0");
        }
        Some(_) | None => {
            out.set("upstream", "url", "", "servers: to be decided");
            out.refuse("servers: not host:port:weight. redbouncer connects to servers by TCP only.");
        }
    }
}

/// twemproxy's connections carry no blocking calls and no subscribers, so its number may be too small.
fn connections(out: &mut Conversion, count: i64) {
    if count > CONNECTIONS {
        out.set("pool", "max_connections", count, "server_connections");
    } else {
        out.remark(format!(
            "server_connections: pool.max_connections stays at its default, {CONNECTIONS}, which also covers blocking calls, \
             subscribers and transactions (redbouncer size computes it)."
        ));
    }
}

/// A text, a number or a truth value, as text.
fn scalar(value: &Yaml) -> Option<String> {
    match value {
        Yaml::String(text) | Yaml::Real(text) => Some(text.clone()),
        Yaml::Integer(number) => Some(number.to_string()),
        Yaml::Boolean(truth) => Some(truth.to_string()),
        Yaml::Array(_) | Yaml::Hash(_) | Yaml::Alias(_) | Yaml::Null | Yaml::BadValue => None,
    }
}
