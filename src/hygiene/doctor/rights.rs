//! What the user may do, probed without touching anything but our own connection.

use super::Findings;
use crate::hygiene::{Visit, VisitError};
use crate::resp;
use crate::upstream::UpstreamOptions;

/// No client has this id: a probe that is allowed finds nobody.
const NOBODY: &str = "9223372036854775807";

/// One probe: what is asked, and what redbouncer does without it.
struct Probe {
    words: &'static [&'static str],
    without: &'static str,
}

const PROBES: [Probe; 11] = [
    Probe { words: &["CLIENT", "LIST"], without: "orphans are not found" },
    Probe { words: &["CLIENT", "KILL", "ID", NOBODY], without: "orphans are not killed" },
    Probe {
        words: &["CLIENT", "UNBLOCK", NOBODY],
        without: "clients cannot unblock each other; nothing else needs it",
    },
    Probe {
        words: &["CLIENT", "SETNAME", super::NAME],
        without: "connections have no name, so orphans cannot be told from others",
    },
    Probe {
        words: &["CLIENT", "TRACKING", "OFF"],
        without: "no blocking hub: blocking calls are tried on lanes or take a lease",
    },
    Probe { words: &["HELLO", "3"], without: "no RESP3, and no blocking hub" },
    Probe { words: &["HELLO", "2"], without: "clients that begin with HELLO are answered all the same" },
    Probe {
        words: &["CONFIG", "GET", "proto-max-bulk-len"],
        without: "the default is taken for the longest bulk (512 MB)",
    },
    Probe {
        words: &["COMMAND", "INFO", "GET"],
        without: "commands that are not in redbouncer's table take a lease",
    },
    Probe { words: &["INFO", "server"], without: "the server's version may stay unknown" },
    // The last one: it logs out.
    Probe { words: &["RESET"], without: "clients' RESET works all the same" },
];

/// Asks for each, and says what is missing.
pub(super) async fn probe(
    options: &UpstreamOptions,
    visit: &mut Visit,
    findings: &mut Findings,
) -> Result<(), VisitError> {
    let mut allowed = Vec::new();
    let mut refused = 0;
    let database = if options.database == 0 { "1" } else { "0" };
    let select = [Probe {
        words: if database == "1" { &["SELECT", "1"] } else { &["SELECT", "0"] },
        without: "clients are bound to one database",
    }];
    for Probe { words, without } in select.iter().chain(&PROBES) {
        let reply = visit.ask(words).await?;
        let shown = match words {
            ["CLIENT" | "CONFIG" | "COMMAND", sub, ..] => format!("{} {sub}", words[0]),
            _ => words.join(" "),
        };
        // An error that speaks of something else than rights and existence was an answer of the command itself.
        let refusal = resp::error_text(&reply).map(String::from_utf8_lossy);
        match refusal.filter(|text| is_refusal(text)) {
            None => allowed.push(shown),
            Some(text) => {
                refused += 1;
                findings.warning(
                    "rights",
                    &format!("{shown} is refused: {text}"),
                    &format!("without it: {without}"),
                );
            }
        }
    }
    if refused == 0 {
        findings.ok("rights", &format!("allowed: {}", allowed.join(", ")));
    }
    Ok(())
}

fn is_refusal(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let code = text.split(' ').next().unwrap_or_default();
    matches!(code, "NOPERM" | "NOPROTO" | "NOAUTH")
        || ["unknown command", "unknown subcommand", "out of range", "not allowed", "disabled"]
            .iter()
            .any(|words| lower.contains(words))
}
