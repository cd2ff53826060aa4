//! File, environment and flags, merged and checked into the options owned by the parts they configure.
//!
//! Precedence: flag, then environment, then file, then default. Nothing else in the program reads a file, a variable or
//! a flag, and nothing here is global: `proxy` hands each part its own options. Everything that is wrong is reported at
//! once, each with the place it came from, and nothing is started (exit code 64).

mod address;
mod check;
mod endpoint;
mod error;
mod exposure;
mod itself;
mod key;
mod keys;
mod settings;
mod source;
mod text;
mod url;
mod users;
mod value;

#[cfg(test)]
mod reference_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

pub use error::{ConfigError, Origin};
pub use itself::own_listener;
pub use key::Effect;
pub use settings::{Config, Exposure, Flags, fewer_cpus_than};
pub(crate) use url::apply as parse_url;
#[cfg(any(test, fuzzing))]
pub(crate) use url::show as show_url;
#[cfg(any(test, fuzzing))]
pub(crate) use users::parse_alone as parse_users;
pub use users::{outlasting, read_users, secret_in};
pub use value::parse_duration as duration;

use key::Key;
use keys::KEYS;
use source::{CONFIG_VARIABLE, Layers};

/// Where a configuration comes from: the command line and the environment of this process, and the file that they name. No
/// `Debug`: they may hold passwords.
#[derive(Clone, Default)]
pub struct Sources {
    flags: Flags,
    environment: Vec<(OsString, OsString)>,
    /// Set at run time.
    set: BTreeMap<&'static str, String>,
}

impl Sources {
    /// These flags, and these variables.
    pub fn new(flags: Flags, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        Self { flags, environment: environment.into_iter().collect(), set: BTreeMap::new() }
    }

    /// The file that is read, if one is named.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        file_named(&self.flags, &self.environment).map(|(path, _)| path)
    }

    /// The same with one key set otherwise, which wins over all others.
    ///
    /// # Errors
    /// There is no such key, or it takes effect with a restart only.
    pub fn with(&self, key: &str, value: &str) -> Result<Self, String> {
        let Some(known) = source::find(key) else {
            let nearest = text::nearest(KEYS.iter().map(|key| key.path), key);
            return Err(format!(
                "unknown key \"{}\"; the nearest known key is \"{nearest}\"",
                text::shown(key)
            ));
        };
        if known.effect == Effect::Restart {
            return Err(format!("\"{}\" takes effect with a restart only", known.path));
        }
        let mut with = self.clone();
        with.set.insert(known.path, value.to_owned());
        Ok(with)
    }

    /// Merges and checks what the command line, the environment and the file say now.
    ///
    /// # Errors
    /// Everything that is wrong, at least one; all of it is for the operator to mend.
    pub fn load(&self) -> Result<Loaded, Vec<ConfigError>> {
        let mut layers = Layers::default();
        if let Some((path, origin)) = file_named(&self.flags, &self.environment) {
            match fs::read_to_string(&path) {
                Ok(text) => layers.file(&path, &text),
                Err(source) => layers.errors.push(ConfigError::Unreadable { path, origin, source }),
            }
        }
        layers.environment(self.environment.iter().cloned());
        layers.flags(&self.flags);
        layers.commands(&self.set);
        Loaded::from_layers(layers)
    }
}

/// A configuration, and where each value of it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    origins: BTreeMap<&'static str, Origin>,
}

/// One key with its value.
#[derive(Clone, Debug)]
pub struct Setting {
    /// `section.key`.
    pub key: &'static str,
    /// The value as TOML, credentials as `***`; `None` where nothing is set.
    pub value: Option<String>,
    /// The default in the same form.
    pub default: Option<String>,
    /// Where the value came from.
    pub origin: Origin,
    /// How a change takes effect.
    pub effect: Effect,
}

/// One key that two configurations do not agree on.
#[derive(Clone, Debug)]
pub struct Change {
    /// `section.key`.
    pub key: &'static str,
    /// The value before as TOML, credentials as `***`.
    pub from: Option<String>,
    /// The value after it.
    pub to: Option<String>,
    /// How it takes effect.
    pub effect: Effect,
}

impl Loaded {
    /// Every key, in the order of the reference.
    pub fn settings(&self) -> impl Iterator<Item = Setting> {
        let default = Config::default();
        KEYS.iter().map(move |key| Setting {
            key: key.path,
            value: key.show(&self.config),
            default: key.show(&default),
            origin: self.origins.get(key.path).cloned().unwrap_or(Origin::Default),
            effect: key.effect,
        })
    }

    /// What is in effect when `new` has been read while `self` is in effect, and the keys that have changed: those that need a
    /// restart keep their value.
    ///
    /// # Errors
    /// What is wrong between a new value and one that stays.
    pub fn merge(&self, new: Self) -> Result<(Self, Vec<Change>), Vec<ConfigError>> {
        let changed: Vec<_> = KEYS.iter().filter(|key| !key.is_same(&self.config, &new.config)).collect();
        let change = |key: &&Key| Change {
            key: key.path,
            from: key.show(&self.config),
            to: key.show(&new.config),
            effect: key.effect,
        };
        let changes = changed.iter().map(change).collect();
        let mut merged = new;
        for key in changed.iter().filter(|key| key.effect == Effect::Restart) {
            key.copy(&mut merged.config, &self.config);
            match self.origins.get(key.path) {
                Some(origin) => drop(merged.origins.insert(key.path, origin.clone())),
                None => drop(merged.origins.remove(key.path)),
            }
        }
        let mut layers = Layers::of_origins(&merged.origins);
        check::check(&merged.config, &mut layers);
        if layers.errors.is_empty() { Ok((merged, changes)) } else { Err(layers.errors) }
    }

    fn from_layers(mut layers: Layers) -> Result<Self, Vec<ConfigError>> {
        let mut config = Config::default();
        let mut origins = BTreeMap::new();
        for key in KEYS {
            let Some((given, origin)) = layers.given(key) else { continue };
            let origin = origin.clone();
            if let Err(wrong) = key.put(&mut config, given) {
                layers.errors.push(ConfigError::Invalid { key: key.path, origin, wrong });
            } else {
                origins.insert(key.path, origin);
            }
        }
        // With a wrong value replaced by its default, what it would conflict with is guesswork.
        if layers.errors.is_empty() {
            check::check(&config, &mut layers);
        }
        if !layers.errors.is_empty() {
            return Err(layers.errors);
        }
        config.exposed = exposure::found(&config, &layers);
        Ok(Self { config, origins })
    }
}

impl Config {
    /// As [`Sources::load`], where nothing is to be read again.
    ///
    /// # Errors
    /// As [`Sources::load`].
    pub fn load(
        flags: &Flags,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Vec<ConfigError>> {
        Sources::new(flags.clone(), environment).load().map(|loaded| loaded.config)
    }

    /// Checks the text of a file by itself, without environment and flags; `path` is what errors call it.
    ///
    /// # Errors
    ///
    /// Everything that is wrong.
    pub fn from_text(path: &Path, text: &str) -> Result<Self, Vec<ConfigError>> {
        let mut layers = Layers::default();
        layers.file(path, text);
        Loaded::from_layers(layers).map(|loaded| loaded.config)
    }

    /// Every key with its value as TOML, credentials as `***`; `None` where nothing is set.
    pub fn settings(&self) -> impl Iterator<Item = (&'static str, Option<String>)> {
        KEYS.iter().map(|key| (key.path, key.show(self)))
    }

    /// The server's URL as it may be printed: with `***` for the password.
    #[must_use]
    pub fn upstream_shown(&self) -> String {
        url::show(&self.upstream)
    }
}

/// The file to read, if one is named. There is no default file, because a proxy started in the wrong directory would
/// use another configuration.
fn file_named(flags: &Flags, environment: &[(OsString, OsString)]) -> Option<(PathBuf, Origin)> {
    let by_flag = flags.config.clone().map(|path| (path, Origin::Flag("--config".to_owned())));
    by_flag.or_else(|| {
        let (_, path) =
            environment.iter().find(|(name, path)| name == CONFIG_VARIABLE && !path.is_empty())?;
        Some((Path::new(path).to_owned(), Origin::Environment(CONFIG_VARIABLE.to_owned())))
    })
}
