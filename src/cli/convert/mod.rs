//! `redbouncer convert`: the configuration of twemproxy or predixy as one of redbouncer.
//!
//! What has no equivalent is a comment. What cannot be converted is on stderr too, and the exit code is 1: then an operator has to
//! decide something before redbouncer can take over.

mod conversion;
mod error;
mod predixy;
mod predixy_text;
mod twemproxy;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::output::{fail, print};
use crate::config::Config;
use conversion::Conversion;
use error::ConvertError;

/// Something cannot be converted.
const NOT_ALL: u8 = 1;
/// The file cannot be used, or another argument is needed.
const UNUSABLE: u8 = 64;

/// Which file, and of which program.
#[derive(Args)]
pub(super) struct Arguments {
    /// The configuration file of the other program
    file: PathBuf,
    /// The other program [default: twemproxy for .yml and .yaml, predixy for .conf]
    #[arg(long, value_enum)]
    from: Option<Format>,
    /// The pool of twemproxy to convert, if there are several; each needs its own redbouncer
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
}

/// Programs whose configuration can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Twemproxy,
    Predixy,
}

/// Converts a file and prints the result.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match convert(arguments) {
        Ok((source, conversion)) => report(&source, conversion),
        Err(wrong) => fail(&format!("redbouncer: {wrong}\n"), UNUSABLE),
    }
}

fn convert(arguments: &Arguments) -> Result<(String, Conversion), ConvertError> {
    let path = &arguments.file;
    let shown = path.display().to_string();
    let format = arguments.from.or_else(|| by_name(path));
    let format = format.ok_or_else(|| ConvertError::UnknownFormat { path: shown.clone() })?;
    let text =
        fs::read_to_string(path).map_err(|source| ConvertError::Read { path: shown.clone(), source })?;
    match format {
        Format::Twemproxy => {
            let pools = twemproxy::Pools::read(&text)?;
            let (name, conversion) = pools.choose(arguments.pool.as_deref())?;
            Ok((format!("{shown} (twemproxy, pool {name:?})"), conversion))
        }
        Format::Predixy => Ok((format!("{shown} (predixy)"), predixy::convert(path, &text)?)),
    }
}

fn by_name(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()? {
        "yml" | "yaml" => Some(Format::Twemproxy),
        "conf" => Some(Format::Predixy),
        _ => None,
    }
}

/// Prints the configuration on stdout, and settings that need a decision on stderr.
fn report(source: &str, mut conversion: Conversion) -> ExitCode {
    // Settings that need a decision would only repeat the errors.
    if conversion.refused().is_empty()
        && let Err(errors) = Config::from_text(Path::new("the result"), &conversion.render(source))
    {
        errors
            .iter()
            .for_each(|wrong| conversion.refuse(format!("A value that redbouncer does not take: {wrong}.")));
    }
    let printed = print(&conversion.render(source));
    let lines: String =
        conversion.refused().iter().map(|line| format!("redbouncer: not converted: {line}\n")).collect();
    if lines.is_empty() { printed } else { fail(&lines, NOT_ALL) }
}
