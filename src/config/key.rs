//! What one key is: its name, what it takes, and which field of [`Config`] it stands for.
//!
//! Reading a value, showing it, naming its type in an error and in `docs/reference/configuration.md` all come from here, so the
//! four cannot disagree.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::value::{self, Given, Wrong};
use super::{Config, address};
use crate::upstream::Reachable;

/// One key: a row of [`KEYS`](super::keys::KEYS).
pub(super) struct Key {
    /// `section.key`, as in a file with a dotted key.
    pub(super) path: &'static str,
    /// Its type, and the field that it sets.
    pub(super) field: Field,
    /// The reason that is appended to "expected …" when a value is refused; empty if none is needed.
    pub(super) because: &'static str,
    /// How a change takes effect while redbouncer runs.
    pub(super) effect: Effect,
}

/// How a change of a key takes effect while redbouncer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// At once.
    Live,
    /// For connections that are opened from then on.
    NewConnections,
    /// With the next start.
    Restart,
}

impl Effect {
    /// The text in listings and in the reference.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::NewConnections => "new connections",
            Self::Restart => "restart",
        }
    }
}

/// The type of a key, with its field. One accessor serves reading and writing.
pub(super) enum Field {
    Duration(fn(&mut Config) -> &mut Duration, RangeInclusive<Duration>),
    /// Zero stands for `None`.
    OptionalDuration(fn(&mut Config) -> &mut Option<Duration>, RangeInclusive<Duration>),
    /// TCP keepalive times, which the kernel counts in whole seconds.
    Seconds(fn(&mut Config) -> &mut Duration, RangeInclusive<Duration>),
    /// Bytes, with the least value.
    Size(fn(&mut Config) -> &mut usize, usize),
    Count(fn(&mut Config) -> &mut usize, RangeInclusive<u32>),
    SmallCount(fn(&mut Config) -> &mut u32, RangeInclusive<u32>),
    Switch(fn(&mut Config) -> &mut bool),
    /// A file or a name; empty text stands for `None`.
    Path(fn(&mut Config) -> &mut Option<std::path::PathBuf>),
    OptionalText(fn(&mut Config) -> &mut Option<String>),
    /// `host:port` each, and `unix:/path` as well if `true`.
    Addresses(fn(&mut Config) -> &mut Vec<String>, bool),
    /// Names of hosts.
    Names(fn(&mut Config) -> &mut Vec<String>),
    /// Names of users.
    Users(fn(&mut Config) -> &mut Vec<String>),
    OptionalAddress(fn(&mut Config) -> &mut Option<String>),
    /// `announced=reachable`, each `host:port`.
    Reachable(fn(&mut Config) -> &mut Vec<Reachable>),
    /// Text with rules of its own: what it takes, how it is taken, how it is shown (`None`: not set).
    Text {
        form: &'static str,
        put: fn(&mut Config, &str) -> Result<(), Wrong>,
        show: fn(&Config) -> Option<String>,
        /// Takes the value over from another configuration.
        copy: fn(&mut Config, &Config),
    },
}

impl Key {
    pub(super) const fn new(path: &'static str, field: Field) -> Self {
        Self { path, field, because: "", effect: Effect::Restart }
    }

    pub(super) const fn live(self) -> Self {
        Self { path: self.path, field: self.field, because: self.because, effect: Effect::Live }
    }

    pub(super) const fn new_connections(self) -> Self {
        Self { path: self.path, field: self.field, because: self.because, effect: Effect::NewConnections }
    }

    pub(super) const fn because(self, because: &'static str) -> Self {
        Self { path: self.path, field: self.field, because, effect: self.effect }
    }

    /// `pool` of `pool.linger`, `upstream.tls` of `upstream.tls.ca`.
    pub(super) fn section(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// `REDBOUNCER_POOL__LINGER`.
    pub(super) fn variable(&self) -> String {
        format!("REDBOUNCER_{}", self.path.replace('.', "__").to_ascii_uppercase())
    }

    /// Checks a value and stores it.
    pub(super) fn put(&self, config: &mut Config, given: &Given) -> Result<(), Wrong> {
        let duration = |range: &RangeInclusive<Duration>| {
            given.duration().and_then(|d| if range.contains(&d) { Ok(d) } else { Err(given.found()) })
        };
        let whole = |d: Duration| if d.subsec_nanos() == 0 { Ok(d) } else { Err(given.found()) };
        let text = || self.explain(given.text());
        let set = |text: String| Some(text).filter(|t| !t.is_empty());
        match &self.field {
            Field::Duration(of, range) => store(of(config), self.explain(duration(range))),
            Field::OptionalDuration(of, _) if given.duration() == Ok(Duration::ZERO) => {
                store(of(config), Ok(None))
            }
            Field::OptionalDuration(of, range) => store(of(config), self.explain(duration(range).map(Some))),
            Field::Seconds(of, range) => store(of(config), self.explain(duration(range).and_then(whole))),
            Field::Size(of, least) => store(of(config), self.explain(given.size(*least))),
            Field::Count(of, range) => {
                store(of(config), self.explain(given.count(range).map(|n| n as usize)))
            }
            Field::SmallCount(of, range) => store(of(config), self.explain(given.count(range))),
            Field::Switch(of) => store(of(config), self.explain(given.switch())),
            // A URL in the wrong place has its password in it.
            Field::Path(of) => match text()? {
                url if url.contains("://") => Err(self.wrong("found a URL")),
                path => store(of(config), Ok(set(path).map(Into::into))),
            },
            Field::OptionalText(of) => store(of(config), text().map(set)),
            Field::Addresses(of, unix) => store(
                of(config),
                self.explain(given.list()).and_then(|texts| address::parse_all(&texts, *unix)),
            ),
            Field::Names(of) => store(
                of(config),
                self.explain(given.list()).and_then(|names| {
                    let wrong = names.iter().find(|name| !address::is_name(name));
                    wrong.map_or(Ok(()), |_| Err(self.wrong("found something else"))).map(|()| names)
                }),
            ),
            Field::Users(of) => store(
                of(config),
                self.explain(given.list()).and_then(|names| {
                    let is_user =
                        |name: &String| !name.contains("://") && !name.contains(char::is_whitespace);
                    if names.iter().all(is_user) {
                        Ok(names)
                    } else {
                        Err(self.wrong("found something else"))
                    }
                }),
            ),
            Field::OptionalAddress(of) => {
                store(of(config), text().and_then(|t| set(t).map(|t| address::parse(&t)).transpose()))
            }
            Field::Reachable(of) => store(
                of(config),
                self.explain(given.list()).and_then(|rows| {
                    let rows: Option<Vec<_>> = rows.iter().map(|row| address::reachable(row)).collect();
                    rows.ok_or_else(|| self.wrong("found something else"))
                }),
            ),
            Field::Text { put, .. } => put(config, &text()?),
        }
    }

    /// The value as TOML, credentials as `***`; `None` where nothing is set.
    pub(super) fn show(&self, config: &Config) -> Option<String> {
        // The accessors want `&mut`; a copy is cheap beside a second set of accessors that could name another field.
        let mut copy = config.clone();
        let quoted = |text: &str| toml::Value::from(text).to_string();
        Some(match &self.field {
            Field::Duration(of, _) | Field::Seconds(of, _) => quoted(&value::show_duration(*of(&mut copy))),
            Field::OptionalDuration(of, _) => {
                quoted(&value::show_duration(of(&mut copy).unwrap_or_default()))
            }
            Field::Size(of, _) => quoted(&value::show_size(*of(&mut copy))),
            Field::Count(of, _) => of(&mut copy).to_string(),
            Field::SmallCount(of, _) => of(&mut copy).to_string(),
            Field::Switch(of) => of(&mut copy).to_string(),
            Field::Path(of) => quoted(&of(&mut copy).as_ref()?.to_string_lossy()),
            Field::OptionalText(of) | Field::OptionalAddress(of) => quoted(of(&mut copy).as_ref()?),
            Field::Addresses(of, _) | Field::Names(of) | Field::Users(of) => {
                format!("[{}]", of(&mut copy).iter().map(|a| quoted(a)).collect::<Vec<_>>().join(", "))
            }
            Field::Reachable(of) => {
                let rows = of(&mut copy).iter().map(|row| quoted(&format!("{}={}", row.announced, row.at)));
                format!("[{}]", rows.collect::<Vec<_>>().join(", "))
            }
            Field::Text { show, .. } => quoted(&show(config)?),
        })
    }

    /// Takes the value over from another configuration.
    pub(super) fn copy(&self, to: &mut Config, from: &Config) {
        let mut from = from.clone();
        match &self.field {
            Field::Duration(of, _) | Field::Seconds(of, _) => *of(to) = *of(&mut from),
            Field::OptionalDuration(of, _) => *of(to) = *of(&mut from),
            Field::Size(of, _) => *of(to) = *of(&mut from),
            Field::Count(of, _) => *of(to) = *of(&mut from),
            Field::SmallCount(of, _) => *of(to) = *of(&mut from),
            Field::Switch(of) => *of(to) = *of(&mut from),
            Field::Path(of) => *of(to) = of(&mut from).take(),
            Field::OptionalText(of) | Field::OptionalAddress(of) => *of(to) = of(&mut from).take(),
            Field::Addresses(of, _) | Field::Names(of) | Field::Users(of) => {
                *of(to) = std::mem::take(of(&mut from));
            }
            Field::Reachable(of) => *of(to) = std::mem::take(of(&mut from)),
            Field::Text { copy, .. } => copy(to, &from),
        }
    }

    /// Whether two configurations agree on it.
    pub(super) fn is_same(&self, one: &Config, other: &Config) -> bool {
        let mut copy = one.clone();
        self.copy(&mut copy, other);
        copy == *one
    }

    /// The type of the key as text, for errors and for the reference.
    pub(super) fn form(&self) -> String {
        let between = |range: &RangeInclusive<Duration>| {
            format!("{} to {}", value::show_duration(*range.start()), value::show_duration(*range.end()))
        };
        match &self.field {
            Field::Duration(_, range) => format!("duration, {}", between(range)),
            Field::OptionalDuration(_, range) => format!("duration, {}, or 0 for none", between(range)),
            Field::Seconds(_, range) => format!("duration in whole seconds, {}", between(range)),
            Field::Size(_, least) => format!("size, {} or more", value::show_size(*least)),
            Field::Count(_, range) | Field::SmallCount(_, range) => {
                format!("whole number, {} to {}", range.start(), range.end())
            }
            Field::Switch(_) => "true or false".to_owned(),
            Field::Path(_) => "path of a file".to_owned(),
            Field::OptionalText(_) => "text".to_owned(),
            Field::Names(_) => "list of host names".to_owned(),
            Field::Users(_) => "list of user names".to_owned(),
            Field::Addresses(_, true) => "list of host:port or unix:/path".to_owned(),
            Field::Addresses(_, false) => "list of host:port".to_owned(),
            Field::OptionalAddress(_) => "host:port, or \"\" for none".to_owned(),
            Field::Reachable(_) => "list of announced=reachable, each host:port".to_owned(),
            Field::Text { form, .. } => (*form).to_owned(),
        }
    }

    fn explain<T>(&self, checked: Result<T, Wrong>) -> Result<T, Wrong> {
        checked.map_err(|found| self.wrong(&found))
    }

    /// "expected …, found …", with an example where the form needs one.
    fn wrong(&self, found: &str) -> Wrong {
        let example = match &self.field {
            Field::Duration(..) | Field::OptionalDuration(..) => " (such as \"250ms\", \"2s\", \"1h\")",
            Field::Seconds(..) => " (such as \"10s\")",
            Field::Size(..) => " (such as \"16KiB\", \"64MiB\", \"1GiB\")",
            Field::Addresses(..) | Field::OptionalAddress(_) => " (such as \"127.0.0.1:6380\")",
            Field::Names(_) => " (such as \"proxy.example.com\")",
            Field::Users(_) => " (such as \"operator\")",
            Field::Reachable(_) => " (such as \"10.0.0.5:6379=redis.example.com:6379\")",
            Field::Count(..)
            | Field::SmallCount(..)
            | Field::Switch(_)
            | Field::Path(_)
            | Field::OptionalText(_)
            | Field::Text { .. } => "",
        };
        let because = if self.because.is_empty() { String::new() } else { format!(": {}", self.because) };
        format!("expected {}{example}, {found}{because}", self.form())
    }
}

/// Stores a checked value; a refused value leaves the slot unchanged.
pub(super) fn store<T>(slot: &mut T, checked: Result<T, Wrong>) -> Result<(), Wrong> {
    *slot = checked?;
    Ok(())
}
