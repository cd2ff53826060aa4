//! `redbouncer man` and `redbouncer completions`: made from the definition of the command line, so that they cannot differ from it.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::output::{fail, print};

/// Sections of the page of the whole program, each with terms and their meanings.
const SECTIONS: [(&str, &[(&str, &str)]); 4] = [
    (
        "EXIT STATUS",
        &[
            ("0", "Done; the proxy was stopped and has finished what it was asked."),
            ("1", "Failed; the last line on stderr says why."),
            ("64", "The configuration or an argument is wrong. All mistakes are on stderr."),
            ("75", "The proxy was stopped, and commands in flight were cut."),
        ],
    ),
    (
        "SIGNALS",
        &[
            ("SIGTERM, SIGINT", "Drain and stop. A second one stops at once."),
            ("SIGHUP", "Read the configuration, certificates, passwords and the users file again."),
        ],
    ),
    (
        "ENVIRONMENT",
        &[
            ("REDBOUNCER_CONFIG", "The configuration file."),
            ("REDBOUNCER_UPSTREAM, REDBOUNCER_LISTEN, REDBOUNCER_ADMIN", "As the flags of the same names."),
            (
                "REDBOUNCER_SECTION__KEY",
                "Any key of the configuration, such as REDBOUNCER_POOL__MAX_CONNECTIONS.",
            ),
            ("NOTIFY_SOCKET, WATCHDOG_USEC, LISTEN_FDS", "Set by a service manager such as systemd."),
        ],
    ),
    (
        "FILES",
        &[
            ("/etc/redbouncer/config.toml", "The configuration of the service of the Debian package."),
            ("/etc/default/redbouncer", "Variables for this service."),
        ],
    ),
];

/// Prints the completions for `shell`.
pub(super) fn completions(shell: Shell, mut command: Command) -> ExitCode {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "redbouncer", &mut text);
    print(&String::from_utf8_lossy(&text))
}

/// Prints the page of `name`, or of the whole program; with `directory` writes the pages of all there.
pub(super) fn man(command: Command, name: Option<&str>, directory: Option<&Path>) -> ExitCode {
    let pages = match pages(command) {
        Ok(pages) => pages,
        Err(wrong) => return fail(&format!("redbouncer: {wrong}\n"), 1),
    };
    if let Some(directory) = directory {
        for (title, text) in &pages {
            let path = directory.join(format!("{title}.1"));
            if let Err(wrong) = fs::write(&path, text) {
                return fail(&format!("redbouncer: cannot write {}: {wrong}\n", path.display()), 1);
            }
        }
        return ExitCode::SUCCESS;
    }
    let title = name.map_or_else(|| "redbouncer".to_owned(), |name| format!("redbouncer-{name}"));
    match pages.iter().find(|(known, _)| *known == title) {
        Some((_, text)) => print(text),
        None => fail(&format!("redbouncer: no subcommand is named {:?}\n", name.unwrap_or_default()), 64),
    }
}

/// The title and text of every page, that of the whole program first.
fn pages(command: Command) -> io::Result<Vec<(String, String)>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = vec![("redbouncer".to_owned(), page(&command, "redbouncer", true)?)];
    for subcommand in command.get_subcommands() {
        let title = format!("redbouncer-{}", subcommand.get_name());
        let text = page(subcommand, &title, false)?;
        pages.push((title, text));
    }
    Ok(pages)
}

fn page(command: &Command, title: &str, whole: bool) -> io::Result<String> {
    let mut text = Vec::new();
    let source = format!("redbouncer {}", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone()).title(title).source(source).render(&mut text)?;
    if whole {
        let mut roff = Roff::new();
        for (heading, terms) in SECTIONS {
            roff.control("SH", [heading]);
            for (term, meaning) in terms {
                roff.control("TP", []);
                roff.text([bold(*term)]);
                roff.text([roman(*meaning)]);
            }
        }
        roff.to_writer(&mut text)?;
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::{Arg, arg};

    use super::*;

    #[test]
    fn every_subcommand_has_a_page_that_the_first_one_names() {
        let check = Command::new("check").about("Examine").arg(arg!(--json "Print JSON"));
        let command =
            Command::new("redbouncer").about("A pooler").subcommand(check).arg(Arg::new("x").long("set"));
        let pages = pages(command).unwrap();
        let titles: Vec<&str> = pages.iter().map(|(title, _)| title.as_str()).collect();
        assert_eq!(titles, ["redbouncer", "redbouncer-check"]);
        assert!(pages[0].1.contains("redbouncer\\-check(1)"), "{}", pages[0].1);
        assert!(
            pages[0].1.contains(".SH \"EXIT STATUS\"") && pages[0].1.contains(".SH OPTIONS"),
            "{}",
            pages[0].1
        );
        assert!(pages[1].1.contains("\\-\\-json"), "{}", pages[1].1);
    }
}
