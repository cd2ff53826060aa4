//! How wide a listing may be.

use std::ops::RangeInclusive;

use textwrap::{Options, WordSplitter};

/// Narrower than this no listing is readable, and wider than this no sentence.
const READABLE: RangeInclusive<usize> = 40..=100;

/// The columns of the terminal that is looked at; 80 where there is none, in a pipe or a file.
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
