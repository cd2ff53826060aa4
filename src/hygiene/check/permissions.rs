//! What the user may do, probed without touching anything but our own connection.

use super::Findings;
use crate::hygiene::{Visit, VisitError};
use crate::resp;
use crate::telemetry::printable;
use crate::upstream::UpstreamOptions;

/// No client has this id: a probe that is allowed finds nobody.
const NOBODY: &str = "9223372036854775807";
/// A refusal's text is the server's, so its length is nobody's promise.
const LONGEST: usize = 160;

/// One probe.
struct Probe {
    words: &'static [&'static str],
    /// Whether redbouncer is the worse for a refusal.
    matters: bool,
    /// What it does then.
    without: &'static str,
}

const fn matters(words: &'static [&'static str], without: &'static str) -> Probe {
    Probe { words, matters: true, without }
}

const fn spare(words: &'static [&'static str], without: &'static str) -> Probe {
    Probe { words, matters: false, without }
}

const PROBES: [Probe; 15] = [
    spare(&["PING"], "heartbeats get an error as reply, which is sufficient"),
    matters(&["CLIENT", "LIST"], "orphans are not found"),
    matters(&["CLIENT", "KILL", "ID", NOBODY], "orphans are not killed"),
    matters(
        &["CLIENT", "SETNAME", super::plan::NAME],
        "connections have no name, so those of a dead proxy cannot be identified",
    ),
    matters(
        &["CLIENT", "TRACKING", "OFF"],
        "no blocking hub: each blocking call is tried on a lane or takes a lease",
    ),
    matters(&["HELLO", "3"], "no RESP3 and no blocking hub"),
    spare(&["HELLO", "2"], "redbouncer answers HELLO itself"),
    spare(&["CLIENT", "UNBLOCK", NOBODY], "clients that send it get the server's error"),
    spare(&["CLIENT", "ID"], "connections that redbouncer no longer holds cannot be killed"),
    spare(
        &["CONFIG", "GET", "proto-max-bulk-len"],
        "redbouncer assumes 512 MB as the maximum size of a value",
    ),
    spare(&["COMMAND", "INFO", "GET"], "commands that are not in redbouncer's table take a lease"),
    spare(&["INFO", "server"], "the server's version may stay unknown"),
    matters(&["MULTI"], "no blocking hub, and no transactions"),
    // Ends what MULTI began.
    matters(&["DISCARD"], "transactions cannot be discarded"),
    // The last one: it logs out.
    spare(&["RESET"], "redbouncer answers RESET itself"),
];

const SELECT_1: Probe = spare(&["SELECT", "1"], "clients have only one database");
const SELECT_0: Probe = spare(&["SELECT", "0"], "clients have only one database");

/// Asks for each, and says what is missing.
pub(super) async fn probe(
    options: &UpstreamOptions,
    visit: &mut Visit,
    findings: &mut Findings,
) -> Result<(), VisitError> {
    let mut allowed = Vec::new();
    let select = if options.database == 0 { SELECT_1 } else { SELECT_0 };
    for Probe { words, matters, without } in [select].iter().chain(&PROBES) {
        let reply = visit.ask(words).await?;
        let shown = shown(words);
        let Some(refusal) = resp::error_text(&reply).filter(|text| !is_answer(text)) else {
            allowed.push(shown);
            continue;
        };
        let refusal: String = printable(refusal).chars().take(LONGEST).collect();
        let text = format!("{shown} is refused: {refusal}");
        if *matters {
            findings.warning("rights", &text, &format!("without it: {without}"));
        } else {
            findings.note("rights", &text, &format!("not needed: {without}"));
        }
    }
    findings.ok("rights", &format!("allowed: {}", allowed.join(", ")));
    Ok(())
}

/// The command as it is called: with its subcommand or version, without what it was asked for.
fn shown(words: &[&str]) -> String {
    let telling = match words[0] {
        "CLIENT" | "CONFIG" | "COMMAND" | "HELLO" => 2,
        _ => 1,
    };
    words[..telling].join(" ")
}

/// An error of a command that was allowed: it looked, and found nobody.
fn is_answer(text: &[u8]) -> bool {
    String::from_utf8_lossy(text).to_ascii_lowercase().contains("no such client")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_probe_could_harm_anybody() {
        for Probe { words, .. } in &PROBES {
            let harmless = match words {
                ["CLIENT", "KILL", "ID", id] | ["CLIENT", "UNBLOCK", id] => *id == NOBODY,
                ["CLIENT", sub, ..] => ["LIST", "SETNAME", "TRACKING", "ID"].contains(sub),
                ["CONFIG", sub, ..] => *sub == "GET",
                [word, ..] => {
                    ["PING", "MULTI", "DISCARD", "HELLO", "COMMAND", "INFO", "RESET"].contains(word)
                }
                [] => false,
            };
            assert!(harmless, "{words:?}");
        }
        let last = PROBES.last().map(|probe| probe.words);
        assert_eq!(last, Some(&["RESET"][..]), "it logs out, so nothing may follow it");
    }
}
