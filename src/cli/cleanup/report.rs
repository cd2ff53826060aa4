//! The output: a table, or JSON.

use std::time::Duration;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};
use serde_json::{Value, json};

use crate::cli::output::counted;
use crate::cli::terminal;
use crate::hygiene::Swept;
use crate::hygiene::cleanup::{Group, Selection, Spared};
use crate::telemetry::printable;

/// The columns of the table; so many of them are numbers.
const HEAD: [&str; 7] = ["count", "chosen", "oldest", "idle", "address", "name", "library"];

const NUMBERS: usize = 4;

/// Addresses of IPv4 are not broken.
const WHOLE: usize = 15;

/// Unicode's mark for a place where a line may be broken; taken out again before anything is printed.
const BREAK: char = '\u{200b}';

/// The result of the listing.
pub(super) struct Found<'a> {
    pub(super) upstream: String,
    pub(super) connections: usize,
    pub(super) limit: Option<usize>,
    pub(super) groups: Vec<Group>,
    pub(super) selection: Selection<'a>,
    /// No filter is given.
    pub(super) only_shown: bool,
}

/// The connections.
pub(super) fn listing(found: &Found<'_>, width: usize) -> String {
    let limit = found.limit.map_or_else(String::new, |limit| format!(" of {limit}"));
    let head = format!(
        "{}{limit} on {}, this one included",
        counted(found.connections, "connection"),
        found.upstream
    );
    format!("{}\n\n{}\n", textwrap::fill(&head, terminal::lines(width)), table(&found.groups, width))
}

/// The outcome, one line for each fact.
pub(super) fn outcome(found: &Found<'_>, swept: Option<&Swept>, width: usize) -> String {
    let selection = &found.selection;
    let chosen = selection.chosen.len();
    let mut lines = match swept {
        Some(swept) => {
            let escaped = match swept.escaped {
                0 => String::new(),
                escaped => format!(" ({escaped} had closed, or no longer matched)"),
            };
            let after = swept.after.map_or_else(|| "unknown".to_owned(), |after| after.to_string());
            vec![
                format!("killed {} of {chosen}{escaped}", swept.killed),
                format!("connections: {} before, {after} after", found.connections),
            ]
        }
        None if found.only_shown => {
            vec![
                "no connections are selected: use --idle, --age, --name, --addr, --user or --orphans"
                    .to_owned(),
            ]
        }
        None => vec![format!("{chosen} of {} would be killed; add --yes to kill them", found.connections)],
    };
    lines.extend(selection.spared.iter().map(|(why, count)| match why {
        Spared::Live => format!("not killed: {count} selected, of a running redbouncer"),
        Spared::Kind(kind) => {
            let word = kind.word();
            format!("not killed: {count} selected, {word} (add --include {word} to kill them)")
        }
    }));
    if found.only_shown && !selection.orphans.is_empty() {
        lines.push(format!(
            "of dead instances of redbouncer: {} (select them with --orphans)",
            selection.orphans.len()
        ));
    }
    lines.iter().map(|line| format!("{}\n", textwrap::fill(line, terminal::lines(width)))).collect()
}

/// The groups, a row each, never wider than `width`: what is longer goes on in the next line, so nothing is lost.
fn table(groups: &[Group], width: usize) -> String {
    let widest_host = groups.iter().map(|group| group.host.len()).max().unwrap_or(0);
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(u16::try_from(width).unwrap_or(u16::MAX))
        .set_header(HEAD);
    for group in groups {
        let shown = |text: &str| if text.is_empty() { "-".to_owned() } else { breakable(text) };
        let dead = if group.orphans > 0 { format!(" {BREAK}(dead)") } else { String::new() };
        table.add_row([
            group.count.to_string(),
            group.chosen.to_string(),
            short(group.oldest),
            short(group.idlest),
            shown(&group.host),
            shown(&group.name) + &dead,
            shown(&group.library),
        ]);
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_delimiter(BREAK).set_padding((0, if at + 1 < HEAD.len() { 2 } else { 0 }));
        if at < NUMBERS {
            column.set_cell_alignment(CellAlignment::Right);
        }
        if at < NUMBERS || (at == NUMBERS && widest_host <= WHOLE) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    format!("{}\n", table.trim_fmt().replace(BREAK, ""))
}

/// Text fit for a terminal, with places to break it: behind spaces and what separates the parts of names and addresses.
fn breakable(text: &str) -> String {
    let mut out = String::new();
    for sign in printable(text.as_bytes()).chars().filter(|sign| *sign != BREAK) {
        out.push(sign);
        if [' ', ':', '.', '/', '@'].contains(&sign) {
            out.push(BREAK);
        }
    }
    out
}

/// `41s`, `12m`, `5h`, `9d`.
fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

pub(super) fn as_json(found: &Found<'_>, swept: Option<&Swept>) -> Value {
    let Found { upstream, connections, limit, groups, selection, only_shown: _ } = found;
    let groups: Vec<Value> = groups
        .iter()
        .map(|group| {
            json!({
                "address": group.host,
                "name": group.name,
                "library": group.library,
                "count": group.count,
                "chosen": group.chosen,
                "orphans": group.orphans,
                "oldest_seconds": group.oldest.as_secs(),
                "longest_idle_seconds": group.idlest.as_secs(),
            })
        })
        .collect();
    let chosen: Vec<Value> = selection
        .chosen
        .iter()
        .map(|row| {
            json!({
                "id": row.id,
                "addr": row.addr,
                "name": row.name,
                "user": row.user,
                "age_seconds": row.age.as_secs(),
                "idle_seconds": row.idle.as_secs(),
            })
        })
        .collect();
    let spared: serde_json::Map<String, Value> = selection
        .spared
        .iter()
        .map(|(why, count)| {
            let word = match why {
                Spared::Live => "living_redbouncer",
                Spared::Kind(kind) => kind.word(),
            };
            (word.to_owned(), json!(count))
        })
        .collect();
    json!({
        "upstream": upstream,
        "connections": connections,
        "limit": limit,
        "groups": groups,
        "chosen": chosen,
        "left_alone": spared,
        "orphans": selection.orphans.len(),
        "dry_run": swept.is_none(),
        "killed": swept.map(|swept| swept.killed),
        "connections_after": swept.and_then(|swept| swept.after),
        "stopped": swept.and_then(|swept| swept.stopped.as_ref()).map(ToString::to_string),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn group(host: &str, name: &str, library: &str) -> Group {
        Group {
            host: host.to_owned(),
            name: name.to_owned(),
            library: library.to_owned(),
            count: 10_000,
            chosen: 9_999,
            orphans: 0,
            oldest: Duration::from_secs(900_000),
            idlest: Duration::from_secs(7_199),
        }
    }

    /// Without blanks and line breaks: what is wrapped can be found again.
    fn joined(text: &str) -> String {
        text.split_whitespace().collect()
    }

    #[test]
    fn the_table_fits_the_width_whatever_it_holds_and_loses_nothing() {
        let long = "redbouncer:a-very-long-host-name-of-some-cloud.internal.example.com:0123abcd";
        let rows = [
            group("2001:db8:1234:5678:9abc:def0:1234:5678", long, "a-library-with-a-long-name 12.34.56-beta"),
            group("10.0.0.1", "", ""),
            group("10.0.0.1", "語".repeat(90).as_str(), "redis-py 5.0"),
        ];
        for width in [60, 80, 100, 160, 300] {
            for rows in [&rows[..], &rows[1..2], &[]] {
                let out = table(rows, width);
                let widest = out.lines().map(textwrap::core::display_width).max().unwrap();
                assert!(widest <= width, "{widest} of {width}:\n{out}");
                assert!(out.lines().all(|line| line == line.trim_end()), "{out}");
            }
        }
        let wide = table(&rows[..1], 300);
        assert!(wide.contains(long) && wide.lines().count() == 2, "{wide}");
        let narrow = table(&rows, 80);
        for part in ["119m", "10d", "10000"] {
            assert!(narrow.contains(part), "{narrow}");
        }
        // A column read downwards has the whole of its text.
        let column = |from: usize, to: usize| -> String {
            narrow.lines().skip(1).map(|line| line.get(from..to.min(line.len())).unwrap_or("")).collect()
        };
        assert!(
            (0..80).any(|from| (from + 1..=80).any(|to| joined(&column(from, to)).contains(long))),
            "{narrow}"
        );
    }

    #[test]
    fn what_a_client_calls_itself_does_nothing_to_the_terminal() {
        let out = table(&[group("10.0.0.1", "a\u{1b}[2Jb\u{7}", "\r\nx")], 80);
        assert!(out.chars().all(|sign| sign == '\n' || !sign.is_control()), "{out:?}");
    }
}
