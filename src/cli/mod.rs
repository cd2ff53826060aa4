//! The command line: which subcommand, with which settings, and what its exit code is.
//!
//! stdout carries only what a command was asked for; everything else goes to stderr. Exit codes are part of the
//! interface: 0 done, 1 failed, 64 a configuration the operator must mend (`EX_USAGE` of sysexits.h), 75 a drain that
//! cut commands in flight.

mod admin_port;
mod check;
mod cleanup;
pub mod commands;
mod config;
mod convert;
mod fields;
mod hash_password;
mod manual;
mod operate;
mod output;
mod overview;
mod sentinels;
mod settings;
mod size;
mod status;
mod terminal;
mod watch;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::{Config, Sources};
use crate::hygiene::check::Level;
use output::{fail, print};
use settings::{Settings, load};

/// Exit code for a wrong flag, key, variable or value.
const BAD_CONFIGURATION: u8 = 64;

/// PgBouncer for Redis: any number of clients over a small, bounded set of upstream connections.
#[derive(Parser)]
#[command(name = "redbouncer", version, args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    running: Running,
}

const AFTER_HELP: &str = "Precedence: flag, then environment (REDBOUNCER_SECTION__KEY, and REDBOUNCER_UPSTREAM, \
    REDBOUNCER_LISTEN, REDBOUNCER_ADMIN, REDBOUNCER_CONFIG), then file, then default. Every key: docs/reference/configuration.md.";

const CHECK_HELP: &str = "Exit codes: 0 redbouncer can serve (perhaps with warnings), 1 it cannot, 64 the configuration is \
    invalid. See docs/reference/command-line.md.";

const CLEANUP_HELP: &str = "Never killed: this connection, those of a running redbouncer, and (without --include) replicas, masters, \
    MONITOR, subscribers and blocked clients. Exit codes: 0 listed, or killed the selected connections; 1 the server \
    cannot be reached, is too slow, refuses, or failed midway; 64 wrong arguments. See docs/reference/command-line.md.";

const SIZE_HELP: &str = "Exit codes: 0 printed, 1 the server cannot be reached or the file cannot be read, 64 wrong arguments. \
    See docs/guides/sizing.md.";

const CONVERT_HELP: &str = "Exit codes: 0 converted, 1 some settings cannot be converted (listed on stderr and at the end of the \
    output), 64 the file cannot be used. The output contains the passwords of the file. See docs/guides/migrating.md.";

#[derive(Subcommand)]
enum Command {
    /// Run the proxy (also without a subcommand)
    Run(Running),
    /// Show the state of a running proxy on one screen; --admin or the configuration has its address
    Status {
        #[command(flatten)]
        shown: Box<status::Shown>,
        #[command(flatten, next_help_heading = "Settings")]
        settings: Settings,
    },
    /// Test the connection to the server and the server's settings, and print remedies
    #[command(after_help = CHECK_HELP)]
    Check {
        #[command(flatten)]
        settings: Settings,
        /// Print JSON instead of a listing
        #[arg(long, conflicts_with = "running")]
        json: bool,
        /// Query /ready (or /live) of the running proxy at --admin or admin.address instead: exit code 0 if it returns 200, else
        /// 1. A health check for containers
        #[arg(long = "self", value_name = "PAGE", num_args = 0..=1, require_equals = true, default_missing_value = "ready")]
        running: Option<check::OwnPage>,
    },
    /// List the connections on the server, and kill selected ones; a dry run unless --yes is given
    #[command(after_help = CLEANUP_HELP)]
    Cleanup {
        #[command(flatten)]
        arguments: Box<cleanup::Arguments>,
        #[command(flatten, next_help_heading = "Settings")]
        settings: Settings,
    },
    /// Count the connections on the server, and compute how many they need with redbouncer
    #[command(after_help = SIZE_HELP)]
    Size {
        #[command(flatten)]
        arguments: size::Arguments,
        #[command(flatten, next_help_heading = "Settings")]
        settings: Settings,
    },
    /// Convert a configuration file of twemproxy or predixy
    #[command(after_help = CONVERT_HELP)]
    Convert(convert::Arguments),
    /// Print the completions for a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in the format of man(1)
    Man {
        /// Print the page of this subcommand
        command: Option<String>,
        /// Write the pages of all subcommands into this directory instead
        #[arg(long, value_name = "DIRECTORY", conflicts_with = "command")]
        directory: Option<PathBuf>,
    },
    /// Check or show a configuration without running anything
    Config {
        #[command(subcommand)]
        command: config::ConfigCommand,
    },
    /// Read a password from the terminal or stdin and print its hash for the users file
    HashPassword {
        /// SHA-256 without a salt, for long random secrets only, instead of Argon2id
        #[arg(long)]
        sha256: bool,
    },
    #[command(flatten)]
    Act(operate::Act),
    /// Print the route of each Redis command, and the reason for it
    Commands {
        /// Print JSON instead of a listing
        #[arg(long)]
        json: bool,
    },
}

/// The arguments of the proxy.
#[derive(Args)]
struct Running {
    #[command(flatten)]
    settings: Settings,
    /// Replace the redbouncer that listens at takeover.socket without refusing a connection; if there is none, start as usual
    #[arg(long)]
    takeover: bool,
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match Cli::try_parse_from(&arguments) {
        Ok(cli) => run(cli),
        Err(wrong) => usage(&wrong, &arguments),
    }
}

fn run(cli: Cli) -> ExitCode {
    match cli.command {
        None => run_proxy(cli.running),
        Some(Command::Run(running)) => run_proxy(running),
        Some(Command::Status { settings, shown }) => {
            with_config(settings, |config| match status::fetch(&config.admin) {
                Ok(_) if shown.watch => match watch::run(&config, &shown.target) {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(wrong) => fail(&format!("redbouncer: {wrong}\n"), 1),
                },
                Ok(body) => print(&shown.text(&body)),
                Err(wrong) => fail(&format!("redbouncer: {wrong}\n"), 1),
            })
        }
        Some(Command::Check { settings, running: Some(page), .. }) => {
            with_config(settings, |config| match check::running(&config.admin, page) {
                Ok(text) => print(&text),
                Err(wrong) => fail(&format!("redbouncer: {wrong}\n"), 1),
            })
        }
        Some(Command::Check { settings, json, running: None }) => check(settings, json),
        Some(Command::Cleanup { settings, arguments }) => {
            with_config(settings, |config| match block_on(cleanup::run(&config, *arguments)) {
                Ok(Ok(code)) => code,
                Ok(Err(wrong)) => fail(&format!("redbouncer: {wrong}\n"), 1),
                Err(wrong) => fail(&format!("redbouncer: cannot start: {wrong}\n"), 1),
            })
        }
        Some(Command::Size { settings, arguments }) => size(settings, arguments),
        Some(Command::Convert(arguments)) => convert::run(&arguments),
        Some(Command::Completions { shell }) => manual::completions(shell, Cli::command()),
        Some(Command::Man { command, directory }) => {
            manual::man(Cli::command(), command.as_deref(), directory.as_deref())
        }
        Some(Command::Config { command }) => match config::run(command) {
            Ok(text) => print(&text),
            Err(lines) => fail(&lines, BAD_CONFIGURATION),
        },
        Some(Command::HashPassword { sha256 }) => match hash_password::run(sha256) {
            Ok(line) => print(&line),
            Err(wrong) => fail(&format!("redbouncer: {wrong}\n"), 1),
        },
        Some(Command::Act(act)) => operate::run(act),
        Some(Command::Commands { json: true }) => print(&commands::render_json()),
        Some(Command::Commands { json: false }) => print(&commands::render()),
    }
}

fn check(settings: Settings, json: bool) -> ExitCode {
    let (findings, code) = match Config::load(&settings.into(), std::env::vars_os()) {
        Err(errors) => (check::unusable(&errors), BAD_CONFIGURATION),
        Ok(config) => match block_on(check::run(&config)) {
            Ok(findings) => {
                let code = u8::from(findings.worst() == Level::Failure);
                (findings, code)
            }
            Err(wrong) => return fail(&format!("redbouncer: cannot start: {wrong}\n"), 1),
        },
    };
    let text = if json {
        terminal::json(&check::as_json(&findings))
    } else {
        check::listing(&findings, terminal::text_width())
    };
    match print(&text) {
        ExitCode::SUCCESS => ExitCode::from(code),
        broken => broken,
    }
}

fn size(settings: Settings, arguments: size::Arguments) -> ExitCode {
    with_config(settings, |config| match block_on(size::run(&config, arguments)) {
        Ok(Ok(code)) => code,
        Ok(Err(wrong)) => fail(&format!("redbouncer: {wrong}\n"), 1),
        Err(wrong) => fail(&format!("redbouncer: cannot start: {wrong}\n"), 1),
    })
}

fn block_on<T>(task: impl Future<Output = T>) -> io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(task))
}

fn run_proxy(Running { settings, takeover }: Running) -> ExitCode {
    let sources = Sources::new(settings.into(), std::env::vars_os());
    match load(&sources) {
        Ok(loaded) if takeover && loaded.config.takeover.socket.is_none() => {
            fail("redbouncer: --takeover needs takeover.socket\n", BAD_CONFIGURATION)
        }
        Ok(loaded) => crate::proxy::run(sources, loaded, takeover),
        Err(lines) => fail(&lines, BAD_CONFIGURATION),
    }
}

fn with_config(settings: Settings, act: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    match load(&Sources::new(settings.into(), std::env::vars_os())) {
        Ok(loaded) => act(loaded.config),
        Err(lines) => fail(&lines, BAD_CONFIGURATION),
    }
}

/// Help and version are successful output; everything else is a mistake in the arguments.
fn usage(wrong: &clap::Error, arguments: &[OsString]) -> ExitCode {
    match wrong.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            print(&format!("{}\n", wrong.render().to_string().trim_end()))
        }
        _ => fail(&without_urls(&wrong.render().to_string(), arguments), BAD_CONFIGURATION),
    }
}

/// clap repeats an argument it did not expect, and a URL in the wrong place has its password in it.
fn without_urls(text: &str, arguments: &[OsString]) -> String {
    let texts = arguments.iter().skip(1).map(|argument| argument.to_string_lossy());
    texts.fold(text.to_owned(), |text, argument| {
        let values = [Some(argument.as_ref()), argument.split_once('=').map(|(_, value)| value)];
        let secret = |value: &&str| value.contains("://") || value.contains('@');
        values.into_iter().flatten().filter(secret).fold(text, |text, value| text.replace(value, "***"))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::config::Flags;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    fn complaint(line: &str) -> String {
        let arguments: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let wrong = Cli::try_parse_from(&arguments).err().unwrap();
        without_urls(&wrong.render().to_string(), &arguments)
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_may_be_left_out() {
        let flags = "--listen a:1 --listen b:2 --upstream redis://h --admin c:3 --config f --max-connections 9 \
                     --workers 2 --set pool.linger=2s --set log.level=debug";
        let bare: Flags = parse(&format!("redbouncer {flags}")).unwrap().running.settings.into();
        let Some(Command::Run(running)) = parse(&format!("redbouncer run {flags}")).unwrap().command else {
            panic!("not run");
        };
        for flags in [bare, running.settings.into()] {
            assert_eq!(flags.listen, ["a:1", "b:2"]);
            assert_eq!(flags.upstream.as_deref(), Some("redis://h"));
            assert_eq!(flags.admin.as_deref(), Some("c:3"));
            assert_eq!(flags.config, Some("f".into()));
            assert_eq!(flags.max_connections.as_deref(), Some("9"));
            assert_eq!(flags.workers.as_deref(), Some("2"));
            assert_eq!(flags.set, ["pool.linger=2s", "log.level=debug"]);
        }
    }

    #[test]
    fn an_unknown_flag_is_named_with_the_nearest_known_one() {
        let text = complaint("redbouncer --max-conections 8");
        assert!(text.contains("'--max-conections'") && text.contains("'--max-connections'"), "{text}");
    }

    #[test]
    fn a_url_in_the_wrong_place_is_not_repeated() {
        for line in [
            "redbouncer redis://:hunter2@h",
            "redbouncer run redis://:hunter2@h",
            "redbouncer --upsteam redis://:hunter2@h",
            "redbouncer --upsteam=redis://:hunter2@h",
            "redbouncer status --json=redis://:hunter2@h",
            "redbouncer commands :hunter2@h",
        ] {
            let text = complaint(line);
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
