//! Output for terminals: the width of listings, and JSON without control characters.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use serde_json::Value;
use textwrap::{Options, WordSplitter};

use crate::telemetry::is_obeyed;

/// Narrower than this no listing is readable, and wider than this no sentence.
const READABLE: RangeInclusive<usize> = 40..=100;

/// The width of the terminal; 80 without one, in a pipe or a file.
pub(super) fn width() -> usize {
    textwrap::termwidth().max(*READABLE.start())
}

/// The same, for sentences.
pub(super) fn text_width() -> usize {
    width().min(*READABLE.end())
}

/// Lines of at most `width` columns, broken between words only: flags and names can be copied.
pub(super) fn lines<'a>(width: usize) -> Options<'a> {
    Options::new(width).word_splitter(WordSplitter::NoHyphenation)
}

/// JSON with all control characters escaped. The library escapes only the first 32.
pub(super) fn json(value: &Value) -> String {
    let mut out = String::new();
    for sign in format!("{value:#}").chars() {
        // Nothing of the kind stands outside of strings, but for line ends. All of them are below U+10000.
        if sign != '\n' && is_obeyed(sign) {
            let _ = write!(out, "\\u{:04x}", u32::from(sign));
        } else {
            out.push(sign);
        }
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_for_a_terminal_says_the_same_without_a_sign_that_it_obeys() {
        let value = serde_json::json!({ "a\u{9b}": ["\u{1b}\u{7f}\u{202e}", "ö"] });
        let shown = json(&value);
        assert!(!shown.chars().any(|sign| sign != '\n' && is_obeyed(sign)), "{shown:?}");
        assert_eq!(serde_json::from_str::<Value>(&shown).ok(), Some(value));
    }
}
