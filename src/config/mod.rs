//! File, environment and flags, merged and checked into the options owned by the parts they configure.
//!
//! Precedence: flag, then environment, then file, then default. Nothing else in the program reads a file, a variable or
//! a flag, and nothing here is global: `proxy` hands each part its own options. Everything that is wrong is reported at
//! once, each with the place it came from, and nothing is started (exit code 64).

mod address;
mod check;
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

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

pub use error::{ConfigError, Origin};
pub use itself::own_listener;
pub use settings::{Config, Exposure, Flags};
#[cfg(any(test, fuzzing))]
pub(crate) use url::{apply as parse_url, show as show_url};
#[cfg(any(test, fuzzing))]
pub(crate) use users::parse_alone as parse_users;
pub use users::{outlasting, read_users, secret_in};
pub use value::parse_duration as duration;

use keys::KEYS;
use source::{CONFIG_VARIABLE, Layers};

impl Config {
    /// Merges and checks what the command line, the environment and the file say.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, at least one; all of it is for the operator to mend.
    pub fn load(
        flags: &Flags,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Vec<ConfigError>> {
        let environment: Vec<_> = environment.into_iter().collect();
        let mut layers = Layers::default();
        if let Some((path, origin)) = file_named(flags, &environment) {
            match fs::read_to_string(&path) {
                Ok(text) => layers.file(&path, &text),
                Err(source) => layers.errors.push(ConfigError::Unreadable { path, origin, source }),
            }
        }
        layers.environment(environment);
        layers.flags(flags);
        Self::from_layers(layers)
    }

    /// Checks the text of a file by itself, without environment and flags; `path` is what errors call it.
    ///
    /// # Errors
    ///
    /// Everything that is wrong.
    pub fn from_text(path: &Path, text: &str) -> Result<Self, Vec<ConfigError>> {
        let mut layers = Layers::default();
        layers.file(path, text);
        Self::from_layers(layers)
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

    fn from_layers(mut layers: Layers) -> Result<Self, Vec<ConfigError>> {
        let mut config = Self::default();
        for key in KEYS {
            if let Some((given, origin)) = layers.given(key)
                && let Err(wrong) = key.put(&mut config, given)
            {
                let origin = origin.clone();
                layers.errors.push(ConfigError::Invalid { key: key.path, origin, wrong });
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
        Ok(config)
    }
}

/// The file to read, if one is named. None is read by being there: a proxy started in the wrong directory would
/// otherwise serve with somebody else's settings.
fn file_named(flags: &Flags, environment: &[(OsString, OsString)]) -> Option<(PathBuf, Origin)> {
    let by_flag = flags.config.clone().map(|path| (path, Origin::Flag("--config".to_owned())));
    by_flag.or_else(|| {
        let (_, path) =
            environment.iter().find(|(name, path)| name == CONFIG_VARIABLE && !path.is_empty())?;
        Some((Path::new(path).to_owned(), Origin::Environment(CONFIG_VARIABLE.to_owned())))
    })
}
