//! Rules that need more than one key.

use super::Config;
use super::error::ConfigError;
use super::itself::{literal_addresses, own_listener};
use super::source::Layers;
use super::users;
use super::value::show_duration;
use crate::downstream::{AuthMode, ClientAuth};

/// Reports contradictions between keys whose values are valid by themselves.
pub(super) fn check(config: &Config, layers: &mut Layers) {
    budget(config, layers);
    fleet(config, layers);
    orders(config, layers);
    heartbeat(config, layers);
    probes(config, layers);
    credentials(config, layers);
    tls(config, layers);
    sentinels(config, layers);
    cluster(config, layers);
    listed_users(config, layers);
    listen(config, layers);
    itself(config, layers);
}

/// A proxy that is its own server would dial itself until no place is left: what an unset variable in an image does that
/// listens where Redis does.
fn itself(config: &Config, layers: &mut Layers) {
    if config.upstream.is_unlocated() {
        return;
    }
    let Some(address) = own_listener(config, &literal_addresses(&config.upstream.host)) else { return };
    let key =
        if config.listen.addresses.contains(address) { "listen.addresses" } else { "listen.tls.addresses" };
    let wrong = format!(
        "redbouncer would connect to itself: it would listen on {address} and connect to {}: set the Redis server's address",
        super::url::show(&config.upstream)
    );
    conflict(layers, (key, "upstream.url"), wrong);
}

/// Clients need a way in, and TLS a certificate.
fn listen(config: &Config, layers: &mut Layers) {
    let (listen, tls) = (&config.listen, &config.listen.tls);
    if listen.addresses.is_empty() && tls.addresses.is_empty() {
        let wrong = "no address: expected host:port, such as \"127.0.0.1:6380\", in one of them".to_owned();
        conflict(layers, ("listen.addresses", "listen.tls.addresses"), wrong);
    }
    let twice =
        tls.addresses.iter().find(|address| listen.addresses.contains(address) && !address.ends_with(":0"));
    if let Some(address) = twice {
        conflict(layers, ("listen.addresses", "listen.tls.addresses"), format!("{address} is in both"));
    }
    for (key, set) in [("listen.tls.cert", tls.cert.is_some()), ("listen.tls.key", tls.key.is_some())] {
        if set == tls.addresses.is_empty() {
            let wrong = "TLS needs an address, a certificate and its key: all of them or none".to_owned();
            conflict(layers, ("listen.tls.addresses", key), wrong);
        }
    }
    if tls.client_ca.is_some() != (tls.client_auth != ClientAuth::Off) {
        let wrong = "set both, or neither of them".to_owned();
        conflict(layers, ("listen.tls.client_auth", "listen.tls.client_ca"), wrong);
    }
}

/// Every worker owns a lane and its hubs outright, beside the control connection and one that is open to leases.
fn budget(config: &Config, layers: &mut Layers) {
    let (max, workers) = (config.pool.max_connections, config.workers);
    let least = 2 + 3 * workers;
    if workers > 1 && max < least {
        conflict(
            layers,
            ("pool.max_connections", "listen.workers"),
            format!(
                "{workers} workers need at least {least} connections (2 + 3 × workers, because lanes and hubs are not \
                 shared between workers), but the limit is {max}; raise pool.max_connections or lower listen.workers"
            ),
        );
    }
}

/// The first instance must be able to have its minimum.
fn fleet(config: &Config, layers: &mut Layers) {
    let fleet = &config.fleet;
    let least = fleet.minimum + fleet.headroom;
    if fleet.is_on() && fleet.total < least {
        let wrong = format!(
            "the total must be 0 or at least fleet.minimum + fleet.headroom ({least}): every instance needs its minimum, and \
             no instance claims the headroom"
        );
        conflict(layers, ("fleet.total_connections", "fleet.minimum"), wrong);
    }
    if fleet.is_on() && config.pool.max_connections < fleet.minimum {
        let wrong = "every instance claims its minimum, but pool.max_connections is smaller".to_owned();
        conflict(layers, ("fleet.minimum", "pool.max_connections"), wrong);
    }
}

/// A minimum must not exceed its maximum.
fn orders(config: &Config, layers: &mut Layers) {
    let Config { upstream, blocking, client, .. } = config;
    let pairs = [
        ("upstream.backoff_min", "upstream.backoff_max", upstream.backoff_min <= upstream.backoff_max),
        ("blocking.retry_min", "blocking.retry_max", blocking.retry_min <= blocking.retry_max),
        (
            "client.output_soft_limit",
            "client.output_hard_limit",
            client.output_soft_limit <= client.output_hard_limit,
        ),
    ];
    for (low, high, in_order) in pairs {
        if !in_order {
            conflict(layers, (low, high), "the first must not be greater than the second".to_owned());
        }
    }
}

/// A proxy that is late with a heartbeat or two is not dead.
fn heartbeat(config: &Config, layers: &mut Layers) {
    if config.hygiene.orphan_after < 3 * config.naming.heartbeat {
        conflict(
            layers,
            ("hygiene.heartbeat", "hygiene.orphan_after"),
            "the second must be at least three times the first; otherwise running instances look dead"
                .to_owned(),
        );
    }
}

/// A host is not given up sooner for data than for silence. Where TCP_USER_TIMEOUT has to be used, Linux also ends a
/// connection at the first unanswered probe that is due after it, however many are allowed.
fn probes(config: &Config, layers: &mut Layers) {
    let Config { upstream, client, .. } = config;
    let sides = [
        (("upstream.user_timeout", "upstream.keepalive_idle"), upstream.user_timeout, &upstream.keepalive),
        (("client.user_timeout", "client.keepalive_idle"), client.user_timeout, &client.keepalive),
    ];
    for (keys, user_timeout, keepalive) in sides {
        let total = keepalive.total();
        if user_timeout < total {
            let wrong = format!(
                "the first must not be below keepalive_idle + keepalive_interval × keepalive_count ({}), or one lost \
                 probe would end a living connection",
                show_duration(total)
            );
            conflict(layers, keys, wrong);
        }
    }
}

/// A user without a password logs in nowhere; more likely the URL's password stands in the place of the user.
fn credentials(config: &Config, layers: &mut Layers) {
    if config.upstream.username.is_some() && config.upstream.password.is_none() {
        conflict(
            layers,
            ("upstream.url", "upstream.password_file"),
            "the URL has a user but no password; a password without a user is redis://:password@host"
                .to_owned(),
        );
    }
}

/// Users that are listed and not used would be taken for a lock that is not there.
fn listed_users(config: &Config, layers: &mut Layers) {
    let (is_static, listed) = (config.auth.mode == AuthMode::Static, config.auth.users_file.is_some());
    if is_static != listed {
        let wrong = if is_static {
            "\"static\" needs auth.users_file"
        } else {
            "auth.users_file is used only with auth.mode = \"static\""
        };
        conflict(layers, ("auth.mode", "auth.users_file"), wrong.to_owned());
    }
    if let Some(wrong) = users::outlasting(&config.auth.users, config.client.login_timeout) {
        conflict(layers, ("auth.users_file", "client.login_timeout"), wrong);
    }
}

fn tls(config: &Config, layers: &mut Layers) {
    let tls = &config.upstream.tls_options;
    if tls.cert.is_some() != tls.key.is_some() {
        let wrong = "set both the certificate and its key, or neither".to_owned();
        conflict(layers, ("upstream.tls.cert", "upstream.tls.key"), wrong);
    }
    let given = [
        ("upstream.tls.ca", tls.ca.is_some()),
        ("upstream.tls.server_name", tls.server_name.is_some()),
        ("upstream.tls.cert", tls.cert.is_some()),
        ("upstream.tls.key", tls.key.is_some()),
        ("upstream.tls.insecure", tls.insecure),
    ];
    let is_used = config.upstream.tls || config.upstream.sentinel.tls == Some(true);
    for (key, _) in given.iter().filter(|(_, set)| *set && !is_used) {
        let wrong = "upstream.tls is set, but the URL begins with redis:// instead of rediss://".to_owned();
        conflict(layers, ("upstream.url", key), wrong);
    }
}

/// What is said to Sentinels needs some, and a user there a password.
fn sentinels(config: &Config, layers: &mut Layers) {
    let sentinel = &config.upstream.sentinel;
    let given = [
        ("upstream.sentinel.username", sentinel.username.is_some()),
        ("upstream.sentinel.password", sentinel.password.is_some() && sentinel.password_file.is_none()),
        ("upstream.sentinel.password_file", sentinel.password_file.is_some()),
        ("upstream.sentinel.tls", sentinel.tls.is_some()),
    ];
    for (key, _) in given.iter().filter(|(_, set)| *set && config.upstream.service.is_none()) {
        let wrong = "upstream.sentinel is set, but the URL does not begin with redis-sentinel://".to_owned();
        conflict(layers, ("upstream.url", key), wrong);
    }
    if sentinel.username.is_some() && sentinel.password.is_none() {
        let wrong = "the Sentinels' user has no password".to_owned();
        conflict(layers, ("upstream.sentinel.username", "upstream.sentinel.password_file"), wrong);
    }
}

/// Settings that work only with a single server are refused rather than ignored.
fn cluster(config: &Config, layers: &mut Layers) {
    if !config.upstream.is_cluster() {
        return;
    }
    let given = [
        ("upstream.command_timeout", config.upstream.command_timeout.is_some()),
        ("fleet.total_connections", config.fleet.is_on()),
        ("log.slow_command", config.log.slow_command.is_some()),
        ("takeover.socket", config.takeover.socket.is_some()),
    ];
    for (key, _) in given.iter().filter(|(_, set)| *set) {
        let wrong = "the second is not supported with a cluster".to_owned();
        conflict(layers, ("upstream.url", key), wrong);
    }
    if 2 * config.workers > config.pool.max_connections {
        let wrong = "with a cluster the second must be at least twice the first, because every worker needs its own lanes to each node";
        conflict(layers, ("listen.workers", "pool.max_connections"), wrong.to_owned());
    }
}

fn conflict(layers: &mut Layers, keys: (&'static str, &'static str), wrong: String) {
    let (first, second) = (layers.origin(keys.0), layers.origin(keys.1));
    layers.errors.push(ConfigError::Conflict { keys, first, second, wrong });
}
