//! Text of errors: names from the input, and the nearest known name.

use crate::telemetry::printable;

/// A name from the input, shortened and without characters that would disturb a terminal or a log line.
pub(super) fn shown(text: &str) -> String {
    printable(text.as_bytes()).chars().take(80).collect()
}

/// The parser's message without its quotes, which may be part of a value.
pub(super) fn syntax(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

/// The most similar name. The part after the last dot counts twice: a key in the wrong section is the commonest slip.
pub(super) fn nearest<'a>(names: impl Iterator<Item = &'a str>, asked: &str) -> &'a str {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let likeness = |name: &str| {
        strsim::jaro_winkler(&name.to_ascii_lowercase(), &asked.to_ascii_lowercase())
            + strsim::normalized_damerau_levenshtein(&last(name), &last(asked))
    };
    names.map(|name| (likeness(name), name)).max_by(|a, b| a.0.total_cmp(&b.0)).map_or("", |(_, name)| name)
}
