//! `redbouncer config`: checks and shows a configuration without running the proxy.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::settings::{Settings, load};
use super::{output, terminal};
use crate::config::{Flags, Loaded, Origin, Setting, Sources};
use crate::downstream::ServerTls;
use crate::telemetry::printable;
use crate::upstream::Connector;

/// The subcommands of `config`.
#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Check a configuration and the files it names; exit code 64 and all mistakes if it cannot be used
    Check {
        /// The configuration file, instead of --config
        file: Option<PathBuf>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Show every key: value, default, how a change takes effect, and where the value comes from
    Show {
        #[command(flatten)]
        settings: Settings,
        /// Only keys that are set somewhere
        #[arg(long)]
        changed: bool,
        /// Print JSON instead of a listing
        #[arg(long)]
        json: bool,
    },
}

/// Answers on stdout, or says all that is wrong.
///
/// # Errors
/// The lines for stderr; the configuration cannot be used.
pub(super) fn run(command: ConfigCommand) -> Result<String, String> {
    match command {
        ConfigCommand::Check { file, settings } => {
            let mut flags = Flags::from(settings);
            flags.config = file.or(flags.config);
            check(&load(&Sources::new(flags, std::env::vars_os()))?)
        }
        ConfigCommand::Show { settings, changed, json } => {
            let loaded = load(&Sources::new(settings.into(), std::env::vars_os()))?;
            let shown = loaded.settings().filter(|setting| !changed || is_set(setting));
            let shown: Vec<_> = shown.collect();
            Ok(if json { terminal::json(&shown.iter().map(object).collect()) } else { listing(&shown) })
        }
    }
}

/// The checks of the start that need no network.
fn check(loaded: &Loaded) -> Result<String, String> {
    let config = &loaded.config;
    let upstream = Connector::new(&config.upstream).map(|_| ());
    let listen = ServerTls::new(&config.listen.tls).map(|_| ());
    let wrong: Vec<_> = [upstream, listen].into_iter().filter_map(Result::err).collect();
    if !wrong.is_empty() {
        let lines = wrong.iter().map(|wrong| format!("redbouncer: configuration: {wrong}\n"));
        return Err(lines.collect());
    }
    let mut text: String = config.exposed.iter().map(|exposed| format!("warning: {exposed}\n")).collect();
    let set = output::counted(loaded.settings().filter(is_set).count(), "key");
    let _ = writeln!(text, "the configuration can be used: {set} set");
    Ok(text)
}

fn is_set(setting: &Setting) -> bool {
    setting.origin != Origin::Default
}

fn object(setting: &Setting) -> Value {
    json!({
        "key": setting.key,
        "value": setting.value,
        "default": setting.default,
        "source": setting.origin.to_string(),
        "changes": setting.effect.label(),
    })
}

/// One line for each key; the last column is as long as it is.
fn listing(settings: &[Setting]) -> String {
    let cell = |value: &Option<String>| {
        value.as_deref().map_or_else(|| "-".to_owned(), |text| printable(text.as_bytes()))
    };
    let mut rows = vec![["key", "value", "default", "changes", "source"].map(str::to_owned)];
    rows.extend(settings.iter().map(|setting| {
        let source = printable(setting.origin.to_string().as_bytes());
        [
            setting.key.to_owned(),
            cell(&setting.value),
            cell(&setting.default),
            setting.effect.label().to_owned(),
            source,
        ]
    }));
    output::columns(&rows)
}
