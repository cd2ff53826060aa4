//! Every key there is, one row each, in the order of `config.toml` and `docs/reference/configuration.md`.
//!
//! Defaults are not here: they stand beside the fields, in the options of the part that owns them. Bounds are: they keep
//! out values that would switch a safeguard off by accident or that the kernel would refuse later.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::key::{Field, Key, store};
use super::value::{Given, Wrong, choose, show_duration, show_size};
use super::{Config, endpoint, url, users};
use crate::downstream::{AdminCommands, AuthMode, ClientAuth, MemoryMax, OutputLimit};
use crate::hub::Resubscribe;
use crate::telemetry::logging::{self, LogFormat};
use crate::upstream::{NameOptions, OnLoss, Secret};

const ZERO: Duration = Duration::ZERO;
const MS: Duration = Duration::from_millis(1);
const TENTH: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the kernel takes for TCP_KEEPIDLE and TCP_KEEPINTVL is up to 32,767 s; an hour is already too long to be of use.
const KEEPALIVE: RangeInclusive<Duration> = SECOND..=HOUR;
/// TCP_KEEPCNT (`man 7 tcp`) is up to 127.
const PROBES: RangeInclusive<u32> = 1..=127;

pub(super) static KEYS: &[Key] = &[
    // [listen]
    Key::new("listen.addresses", Field::Addresses(|c| &mut c.listen.addresses, true)),
    Key::new("listen.workers", Field::Count(|c| &mut c.workers, 1..=64)),
    Key::new("listen.backlog", Field::SmallCount(|c| &mut c.listen.backlog, 1..=65_535)),
    Key::new("listen.protected_mode", Field::Switch(|c| &mut c.listen.protected_mode)).live(),
    Key::new("listen.unix_mode", UNIX_MODE),
    // [listen.tls]
    Key::new("listen.tls.addresses", Field::Addresses(|c| &mut c.listen.tls.addresses, false)),
    Key::new("listen.tls.cert", Field::Path(|c| &mut c.listen.tls.cert)).new_connections(),
    Key::new("listen.tls.key", Field::Path(|c| &mut c.listen.tls.key)).new_connections(),
    Key::new("listen.tls.client_auth", CLIENT_AUTH).new_connections(),
    Key::new("listen.tls.client_ca", Field::Path(|c| &mut c.listen.tls.client_ca)).new_connections(),
    // [upstream]
    Key::new("upstream.url", URL).live(),
    Key::new("upstream.password", PASSWORD).new_connections(),
    Key::new("upstream.password_file", PASSWORD_FILE).new_connections(),
    Key::new("upstream.connect_timeout", Field::Duration(|c| &mut c.upstream.connect_timeout, TENTH..=HOUR)).live(),
    Key::new("upstream.backoff_min", Field::Duration(|c| &mut c.upstream.backoff_min, MS..=HOUR)).live(),
    Key::new("upstream.backoff_max", Field::Duration(|c| &mut c.upstream.backoff_max, MS..=HOUR)).live(),
    Key::new("upstream.connect_rate", Field::SmallCount(|c| &mut c.upstream.connect_rate, 1..=100_000)).live(),
    Key::new("upstream.loading_retry", Field::Duration(|c| &mut c.upstream.loading_retry, ZERO..=HOUR)).live(),
    Key::new("upstream.command_timeout", Field::OptionalDuration(|c| &mut c.upstream.command_timeout, MS..=DAY)).live(),
    Key::new("upstream.stall_timeout", Field::Duration(|c| &mut c.upstream.stall_timeout, SECOND..=DAY)).live(),
    Key::new("upstream.close_timeout", Field::Duration(|c| &mut c.upstream.close_timeout, TENTH..=MINUTE)).live(),
    Key::new("upstream.on_loss", ON_LOSS).live(),
    Key::new("upstream.user_timeout", Field::Duration(|c| &mut c.upstream.user_timeout, SECOND..=HOUR)).new_connections(),
    Key::new("upstream.keepalive_idle", Field::Seconds(|c| &mut c.upstream.keepalive.idle, KEEPALIVE)).new_connections(),
    Key::new("upstream.keepalive_interval", Field::Seconds(|c| &mut c.upstream.keepalive.interval, KEEPALIVE)).new_connections(),
    Key::new("upstream.keepalive_count", Field::SmallCount(|c| &mut c.upstream.keepalive.count, PROBES)).new_connections(),
    Key::new("upstream.resolve_interval", Field::Duration(|c| &mut c.upstream.resolve_interval, SECOND..=DAY)).live(),
    Key::new("upstream.failover_wait", Field::Duration(|c| &mut c.upstream.failover_wait, ZERO..=HOUR)).live(),
    Key::new("upstream.switch_grace", Field::Duration(|c| &mut c.upstream.switch_grace, ZERO..=MINUTE)).live(),
    Key::new("upstream.addresses", Field::Reachable(|c| &mut c.upstream.addresses)).live(),
    // [upstream.tls]
    Key::new("upstream.tls.ca", Field::Path(|c| &mut c.upstream.tls_options.ca)).new_connections(),
    Key::new("upstream.tls.server_name", Field::OptionalText(|c| &mut c.upstream.tls_options.server_name)).new_connections(),
    Key::new("upstream.tls.cert", Field::Path(|c| &mut c.upstream.tls_options.cert)).new_connections(),
    Key::new("upstream.tls.key", Field::Path(|c| &mut c.upstream.tls_options.key)).new_connections(),
    Key::new("upstream.tls.insecure", Field::Switch(|c| &mut c.upstream.tls_options.insecure)).new_connections(),
    // [upstream.sentinel]
    Key::new("upstream.sentinel.username", Field::OptionalText(|c| &mut c.upstream.sentinel.username)).live(),
    Key::new("upstream.sentinel.password", SENTINEL_PASSWORD).live(),
    Key::new("upstream.sentinel.password_file", SENTINEL_PASSWORD_FILE).live(),
    Key::new("upstream.sentinel.tls", SENTINEL_TLS).live(),
    Key::new("upstream.sentinel.poll", Field::Duration(|c| &mut c.upstream.sentinel.poll, SECOND..=HOUR)).live(),
    // [upstream.cluster]
    Key::new(
        "upstream.cluster.refresh_interval",
        Field::Duration(|c| &mut c.upstream.refresh_interval, SECOND..=HOUR),
    ).live(),
    // [pool]
    Key::new("pool.max_connections", Field::Count(|c| &mut c.pool.max_connections, 4..=65_535)).live().because(
        "one connection is the control connection, one is the lane that commands share, and blocking calls and \
         subscriptions need one each",
    ),
    Key::new("pool.lanes_per_key", Field::Count(|c| &mut c.pool.lanes_per_key, 1..=64)).live(),
    Key::new("pool.wait_timeout", Field::Duration(|c| &mut c.pool.wait_timeout, MS..=HOUR)).live(),
    Key::new("pool.idle_timeout", Field::Duration(|c| &mut c.pool.idle_timeout, TENTH..=DAY)).live(),
    Key::new("pool.linger", Field::Duration(|c| &mut c.pool.linger, ZERO..=DAY)).live(),
    Key::new("pool.max_lifetime", Field::Duration(|c| &mut c.pool.max_lifetime, SECOND..=MONTH)).live(),
    Key::new(
        "pool.lease_idle_timeout",
        Field::OptionalDuration(|c| &mut c.pool.lease_idle_timeout, TENTH..=DAY),
    ).live(),
    Key::new("pool.min_turn", Field::Duration(|c| &mut c.pool.min_turn, MS..=MINUTE)).live(),
    // [fleet]
    Key::new("fleet.total_connections", Field::Count(|c| &mut c.fleet.total, 0..=1_000_000)),
    Key::new("fleet.headroom", Field::Count(|c| &mut c.fleet.headroom, 0..=65_535)),
    Key::new("fleet.minimum", Field::Count(|c| &mut c.fleet.minimum, 3..=65_535)).because(
        "one connection is the control connection, one is the lane that commands share, and one is for everything else",
    ),
    Key::new("fleet.interval", Field::Duration(|c| &mut c.fleet.interval, TENTH..=HOUR)),
    // [client]
    Key::new("client.max", Field::Count(|c| &mut c.client.max, 1..=1_000_000)).live(),
    Key::new("client.max_unauthenticated", Field::Count(|c| &mut c.client.max_unauthenticated, 1..=1_000_000)).live(),
    Key::new("client.max_per_address", Field::Count(|c| &mut c.client.max_per_address, 0..=1_000_000)).live(),
    Key::new("client.idle_timeout", Field::OptionalDuration(|c| &mut c.client.idle_timeout, SECOND..=MONTH)).live(),
    Key::new("client.login_timeout", Field::Duration(|c| &mut c.client.login_timeout, TENTH..=HOUR)).live(),
    Key::new("client.half_command_timeout", Field::Duration(|c| &mut c.client.half_command_timeout, TENTH..=HOUR)).live(),
    Key::new("client.request_limit", Field::Size(|c| &mut c.client.request_limit, 64 << 10)).live(),
    Key::new("client.memory_max", MEMORY_MAX).live(),
    Key::new("client.pipeline_limit", Field::Count(|c| &mut c.client.pipeline_limit, 1..=1_000_000)).live(),
    Key::new("client.output_soft_limit", Field::Size(|c| &mut c.client.output_soft_limit, 16 << 10)).live(),
    Key::new("client.output_hard_limit", Field::Size(|c| &mut c.client.output_hard_limit, 16 << 10)).live(),
    Key::new("client.output_buffer_limit", OUTPUT_BUFFER_LIMIT).live(),
    Key::new("client.user_timeout", Field::Duration(|c| &mut c.client.user_timeout, SECOND..=HOUR)).new_connections(),
    Key::new(
        "client.user_timeout_backpressured",
        Field::OptionalDuration(|c| &mut c.client.user_timeout_backpressured, SECOND..=HOUR),
    ),
    Key::new("client.keepalive_idle", Field::Seconds(|c| &mut c.client.keepalive.idle, KEEPALIVE)).new_connections(),
    Key::new("client.keepalive_interval", Field::Seconds(|c| &mut c.client.keepalive.interval, KEEPALIVE)).new_connections(),
    Key::new("client.keepalive_count", Field::SmallCount(|c| &mut c.client.keepalive.count, PROBES)).new_connections(),
    // [blocking]
    Key::new("blocking.hub", Field::Switch(|c| &mut c.blocking.hub)),
    Key::new("blocking.give_back", Field::Switch(|c| &mut c.blocking.give_back)).live(),
    Key::new("blocking.retry_min", Field::Duration(|c| &mut c.blocking.retry_min, MS..=MINUTE)).live(),
    Key::new("blocking.retry_max", Field::Duration(|c| &mut c.blocking.retry_max, MS..=MINUTE)).live(),
    Key::new("blocking.grace", Field::Duration(|c| &mut c.blocking.grace, ZERO..=MINUTE)).new_connections(),
    // [pubsub]
    Key::new("pubsub.hub", Field::Switch(|c| &mut c.pubsub.hub)),
    Key::new("pubsub.resubscribe", RESUBSCRIBE).new_connections(),
    // [hygiene]
    Key::new("hygiene.name", NAME),
    Key::new("hygiene.heartbeat", Field::Duration(|c| &mut c.naming.heartbeat, SECOND..=HOUR)),
    Key::new("hygiene.reap", Field::Switch(|c| &mut c.hygiene.reap)).live(),
    Key::new("hygiene.orphan_after", Field::Duration(|c| &mut c.hygiene.orphan_after, SECOND..=DAY)).live(),
    Key::new("hygiene.interval", Field::Duration(|c| &mut c.hygiene.interval, SECOND..=DAY)).live(),
    // [auth]
    Key::new("auth.mode", AUTH_MODE),
    Key::new("auth.users_file", USERS_FILE),
    Key::new("auth.admin_commands", ADMIN_COMMANDS).live(),
    Key::new("auth.cache_ttl", Field::Duration(|c| &mut c.auth.cache_ttl, ZERO..=DAY)).live(),
    // [admin]
    Key::new("admin.address", Field::OptionalAddress(|c| &mut c.admin.address)),
    Key::new("admin.hosts", Field::Names(|c| &mut c.admin.hosts)).live(),
    Key::new("admin.ready_needs_login", Field::Switch(|c| &mut c.admin.ready_needs_login)).live(),
    Key::new("admin.users", Field::Users(|c| &mut c.admin.users)).live(),
    // [config]
    Key::new("config.watch", Field::Switch(|c| &mut c.watch)).live(),
    // [shutdown]
    Key::new("shutdown.delay", Field::Duration(|c| &mut c.shutdown.delay, ZERO..=HOUR)).live(),
    Key::new("shutdown.drain_timeout", Field::Duration(|c| &mut c.shutdown.drain_timeout, ZERO..=HOUR)).live(),
    // [takeover]
    Key::new("takeover.socket", Field::Path(|c| &mut c.takeover.socket)),
    Key::new("takeover.client_timeout", Field::Duration(|c| &mut c.takeover.client_timeout, ZERO..=MONTH)).live(),
    // [log]
    Key::new("log.level", LOG_LEVEL).live(),
    Key::new("log.format", LOG_FORMAT).live(),
    Key::new("log.long_lease", Field::OptionalDuration(|c| &mut c.log.long_lease, TENTH..=DAY)).live(),
    Key::new("log.slow_command", Field::OptionalDuration(|c| &mut c.log.slow_command, MS..=DAY)).live(),
    // [tracing]
    Key::new("tracing.otlp_endpoint", OTLP_ENDPOINT),
    Key::new("tracing.sample", Field::SmallCount(|c| &mut c.tracing.sample, 1..=1_000_000)).live(),
];

const UNIX_MODE: Field = Field::Text {
    form: "permissions in octal, \"600\" to \"777\"",
    put: |c, text| {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| (0o600..=0o777).contains(mode));
        store(
            &mut c.listen.unix_mode,
            mode.ok_or_else(|| {
                format!(
                    "expected permissions in octal, such as \"700\" or \"770\", {}",
                    Given::Text(text.to_owned()).found()
                )
            }),
        )
    },
    show: |c| Some(format!("{:o}", c.listen.unix_mode)),
    copy: |to, from| to.listen.unix_mode = from.listen.unix_mode,
};

const CLIENT_AUTH: Field = Field::Text {
    form: "\"off\", \"optional\" or \"required\"",
    put: |c, text| store(&mut c.listen.tls.client_auth, choose(&ClientAuth::WORDS, text)),
    show: |c| word(&ClientAuth::WORDS, &c.listen.tls.client_auth),
    copy: |to, from| to.listen.tls.client_auth = from.listen.tls.client_auth,
};

const URL: Field = Field::Text {
    form: "redis://user:password@host:port/database, redis-sentinel://user:password@host:port,host:port/service/database or redis-cluster://user:password@host:port,host:port; rediss… for TLS",
    put: |c, text| url::apply(text, &mut c.upstream),
    show: |c| Some(url::show(&c.upstream)),
    // A password that the URL holds is the one of `upstream.password` here.
    copy: |to, from| {
        let (to, from) = (&mut to.upstream, &from.upstream);
        (to.host, to.port, to.tls) = (from.host.clone(), from.port, from.tls);
        (to.username, to.database) = (from.username.clone(), from.database);
        to.service.clone_from(&from.service);
        to.nodes.clone_from(&from.nodes);
    },
};

const PASSWORD_FILE: Field = Field::Text {
    form: "path of a file",
    put: read_password,
    // Perhaps the password itself was written there: the name is not shown.
    show: |c| c.upstream.password_file.as_ref().map(|_| "***".to_owned()),
    copy: |to, from| to.upstream.password_file.clone_from(&from.upstream.password_file),
};

const PASSWORD: Field = Field::Text {
    form: "text",
    put: |c, text| {
        if text.is_empty() {
            return Ok(());
        }
        only_password(c)?;
        c.upstream.password = Some(Secret::new(text));
        Ok(())
    },
    show: |c| c.upstream.password.as_ref().map(|_| "***".to_owned()),
    copy: |to, from| to.upstream.password.clone_from(&from.upstream.password),
};

fn read_password(config: &mut Config, path: &str) -> Result<(), Wrong> {
    if path.is_empty() {
        return Ok(());
    }
    only_password(config)?;
    config.upstream.password = Some(users::secret_in(Path::new(path))?);
    config.upstream.password_file = Some(path.into());
    Ok(())
}

/// The keys are read in the order of the table, the URL first.
fn only_password(config: &Config) -> Result<(), Wrong> {
    match config.upstream.password {
        None => Ok(()),
        Some(_) => {
            Err("upstream.url or upstream.password also has a password; remove one of them".to_owned())
        }
    }
}

const SENTINEL_PASSWORD: Field = Field::Text {
    form: "text",
    put: |c, text| {
        if !text.is_empty() {
            c.upstream.sentinel.password = Some(Secret::new(text));
        }
        Ok(())
    },
    show: |c| c.upstream.sentinel.password.as_ref().map(|_| "***".to_owned()),
    copy: |to, from| to.upstream.sentinel.password.clone_from(&from.upstream.sentinel.password),
};

const SENTINEL_PASSWORD_FILE: Field = Field::Text {
    form: "path of a file",
    put: |c, path| {
        if path.is_empty() {
            return Ok(());
        }
        let sentinel = &mut c.upstream.sentinel;
        if sentinel.password.is_some() {
            return Err("upstream.sentinel.password is also set; remove one of them".to_owned());
        }
        sentinel.password = Some(users::secret_in(Path::new(path))?);
        sentinel.password_file = Some(path.into());
        Ok(())
    },
    show: |c| c.upstream.sentinel.password_file.as_ref().map(|_| "***".to_owned()),
    copy: |to, from| to.upstream.sentinel.password_file.clone_from(&from.upstream.sentinel.password_file),
};

/// By the scheme of `upstream.url`, or overridden.
const SENTINEL_TLS_WORDS: [(&str, Option<bool>); 3] =
    [("auto", None), ("on", Some(true)), ("off", Some(false))];

const SENTINEL_TLS: Field = Field::Text {
    form: "\"auto\", \"on\" or \"off\"",
    put: |c, text| store(&mut c.upstream.sentinel.tls, choose(&SENTINEL_TLS_WORDS, text)),
    show: |c| word(&SENTINEL_TLS_WORDS, &c.upstream.sentinel.tls),
    copy: |to, from| to.upstream.sentinel.tls = from.upstream.sentinel.tls,
};

const USERS_FILE: Field = Field::Text {
    form: "path of a file",
    put: |c, text| {
        if text.is_empty() {
            return Ok(());
        }
        c.auth.users = users::read_users(Path::new(text)).map_err(|wrong| wrong.join("; "))?;
        c.auth.users_file = Some(text.into());
        Ok(())
    },
    show: |c| c.auth.users_file.as_ref().map(|path| path.to_string_lossy().into_owned()),
    // The contents of the file are reloaded separately.
    copy: |to, from| to.auth.users_file.clone_from(&from.auth.users_file),
};

const ON_LOSS: Field = Field::Text {
    form: "\"close\" or \"error\"",
    put: |c, text| store(&mut c.upstream.on_loss, choose(&OnLoss::WORDS, text)),
    show: |c| word(&OnLoss::WORDS, &c.upstream.on_loss),
    copy: |to, from| to.upstream.on_loss = from.upstream.on_loss,
};

/// A smaller limit would not hold one read of each of a few clients.
const LEAST_MEMORY: usize = 1 << 20;

const MEMORY_MAX: Field = Field::Text {
    form: "a share of the memory, \"1%\" to \"100%\", or a size of 1MiB or more, or 0 for none",
    put: |c, text| {
        let given = Given::Text(text.to_owned());
        let memory_max = match text.trim().strip_suffix('%') {
            Some(number) => {
                let percent = number.parse().ok().filter(|percent| (1..=100).contains(percent));
                percent.map(MemoryMax::Percent)
            }
            None => {
                given.size(0).ok().filter(|size| *size == 0 || *size >= LEAST_MEMORY).map(MemoryMax::Size)
            }
        };
        store(
            &mut c.client.memory_max,
            memory_max.ok_or_else(|| {
                format!("expected \"1%\" to \"100%\", 0, or a size of 1MiB or more, {}", given.found())
            }),
        )
    },
    show: |c| {
        Some(match c.client.memory_max {
            MemoryMax::Percent(percent) => format!("{percent}%"),
            MemoryMax::Size(bytes) => show_size(bytes),
        })
    },
    copy: |to, from| to.client.memory_max = from.client.memory_max,
};

const OUTPUT_BUFFER_LIMIT: Field = Field::Text {
    form: "\"hard soft time\", two sizes and a duration, such as \"32MiB 8MiB 60s\"",
    put: |c, text| {
        let parts: Vec<_> = text.split_whitespace().map(|part| Given::Text(part.to_owned())).collect();
        let [hard, soft, soft_for] = parts.as_slice() else {
            return Err(format!(
                "expected a hard limit, a soft limit and its time, {}",
                Given::Text(text.to_owned()).found()
            ));
        };
        let limit = OutputLimit { hard: hard.size(1)?, soft: soft.size(1)?, soft_for: soft_for.duration()? };
        if limit.soft > limit.hard {
            return Err("the hard limit, which comes first, must not be below the soft one".to_owned());
        }
        c.client.output_buffer_limit = limit;
        Ok(())
    },
    show: |c| {
        let OutputLimit { hard, soft, soft_for } = c.client.output_buffer_limit;
        Some(format!("{} {} {}", show_size(hard), show_size(soft), show_duration(soft_for)))
    },
    copy: |to, from| to.client.output_buffer_limit = from.client.output_buffer_limit,
};

const RESUBSCRIBE: Field = Field::Text {
    form: "\"close\" or \"silent\"",
    put: |c, text| store(&mut c.pubsub.resubscribe, choose(&Resubscribe::WORDS, text)),
    show: |c| word(&Resubscribe::WORDS, &c.pubsub.resubscribe),
    copy: |to, from| to.pubsub.resubscribe = from.pubsub.resubscribe,
};

const AUTH_MODE: Field = Field::Text {
    form: "\"open\", \"passthrough\" or \"static\", or \"\" to decide by address",
    put: |c, text| {
        let unset = text.is_empty();
        store(&mut c.auth.mode, if unset { Ok(AuthMode::Unset) } else { choose(&AuthMode::WORDS, text) })
    },
    show: |c| word(&AuthMode::WORDS, &c.auth.mode),
    copy: |to, from| to.auth.mode = from.auth.mode,
};

const ADMIN_COMMANDS: Field = Field::Text {
    form: "\"pass\" or \"refuse\"",
    put: |c, text| store(&mut c.auth.admin_commands, choose(&AdminCommands::WORDS, text)),
    show: |c| word(&AdminCommands::WORDS, &c.auth.admin_commands),
    copy: |to, from| to.auth.admin_commands = from.auth.admin_commands,
};

const LOG_FORMAT: Field = Field::Text {
    form: "\"text\" or \"json\"",
    put: |c, text| store(&mut c.log.format, choose(&LogFormat::WORDS, text)),
    show: |c| word(&LogFormat::WORDS, &c.log.format),
    copy: |to, from| to.log.format = from.log.format,
};

const LOG_LEVEL: Field = Field::Text {
    form: "\"error\", \"warn\", \"info\", \"debug\", \"trace\", \"off\", or a filter such as \"info,redbouncer::pool=debug\"",
    put: |c, text| {
        if !logging::is_level(text) {
            let found = Given::Text(text.to_owned()).found();
            return Err(format!(
                "expected a level (error, warn, info, debug, trace, off) or a filter, {found}"
            ));
        }
        c.log.level = text.to_owned();
        Ok(())
    },
    show: |c| Some(c.log.level.clone()),
    copy: |to, from| to.log.level.clone_from(&from.log.level),
};

const OTLP_ENDPOINT: Field = Field::Text {
    form: "http://host:port/path, or https:// for TLS, or \"\" for none",
    put: |c, text| {
        let endpoint = Some(text).filter(|text| !text.is_empty()).map(endpoint::parse).transpose();
        store(&mut c.tracing.otlp_endpoint, endpoint)
    },
    show: |c| c.tracing.otlp_endpoint.clone(),
    copy: |to, from| to.tracing.otlp_endpoint.clone_from(&from.tracing.otlp_endpoint),
};

const NAME: Field = Field::Text {
    form: "letters, digits and . _ -, at most 63, or \"\" for the host's name",
    put: |c, text| {
        if text.is_empty() {
            return Ok(());
        }
        if !NameOptions::is_valid(text) {
            let found = Given::Text(text.to_owned()).found();
            return Err(format!(
                "expected at most {} letters, digits and . _ -, {found}",
                NameOptions::MAX_LEN
            ));
        }
        c.naming.name = text.to_owned();
        Ok(())
    },
    show: |c| Some(c.naming.name.clone()),
    copy: |to, from| to.naming.name.clone_from(&from.naming.name),
};

/// The configuration value of `value`, if it has one.
fn word<T: PartialEq>(words: &[(&str, T)], value: &T) -> Option<String> {
    words.iter().find(|(_, v)| v == value).map(|(word, _)| (*word).to_owned())
}
