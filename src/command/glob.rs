//! Patterns as PSUBSCRIBE has them: `*`, `?`, `[abc]`, `[^a-z]`, and `\` before any of these (`stringmatchlen` in redis
//! `util.c`).
//!
//! Redis's own reading of odd patterns is kept: a class that is never closed ends with the pattern, a reversed range
//! counts as written the other way round, and only the empty pattern matches the empty text.

/// Whether `text` matches `pattern`. Takes time proportional to the product of their lengths at the worst.
#[must_use]
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // Redis does not look at the pattern when there is no text: not even `*` matches it.
    if text.is_empty() {
        return pattern.is_empty();
    }
    let (mut at, mut read) = (0, 0);
    // Where to go on after a mismatch: behind the last `*`, one byte of the text further.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(at) == Some(&b'*') {
            at += 1;
            star = Some((at, read));
            continue;
        }
        let step = match (pattern.get(at), text.get(read)) {
            (None, None) => return true,
            (Some(_), Some(byte)) => one(pattern, at, *byte),
            (None, Some(_)) | (Some(_), None) => None,
        };
        match (step, star) {
            (Some(next), _) => {
                at = next;
                read += 1;
            }
            (None, Some((behind, from))) if from < text.len() => {
                at = behind;
                read = from + 1;
                star = Some((behind, from + 1));
            }
            (None, _) => return false,
        }
    }
}

/// Matches one byte against the part of the pattern that begins at `at`; where the next part begins.
fn one(pattern: &[u8], at: usize, byte: u8) -> Option<usize> {
    match pattern.get(at)? {
        b'?' => Some(at + 1),
        b'[' => class(pattern, at + 1, byte),
        b'\\' if at + 1 < pattern.len() => (pattern.get(at + 1) == Some(&byte)).then_some(at + 2),
        plain => (*plain == byte).then_some(at + 1),
    }
}

fn class(pattern: &[u8], mut at: usize, byte: u8) -> Option<usize> {
    let not = pattern.get(at) == Some(&b'^');
    at += usize::from(not);
    let mut found = false;
    loop {
        match (pattern.get(at), pattern.get(at + 1), pattern.get(at + 2)) {
            (Some(b'\\'), Some(escaped), _) => {
                found |= *escaped == byte;
                at += 2;
            }
            (Some(b']'), ..) => {
                at += 1;
                break;
            }
            (None, ..) => break,
            (Some(from), Some(b'-'), Some(to)) => {
                let (low, high) = if from <= to { (from, to) } else { (to, from) };
                found |= (low..=high).contains(&&byte);
                at += 3;
            }
            (Some(plain), ..) => {
                found |= *plain == byte;
                at += 1;
            }
        }
    }
    (found != not).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_as_in_redis() {
        let yes: [(&str, &str); 14] = [
            ("", ""),
            ("*", "anything"),
            ("news.*", "news.art"),
            ("h?llo", "hello"),
            ("h[ae]llo", "hallo"),
            ("h[^e]llo", "hbllo"),
            ("h[a-c]llo", "hbllo"),
            ("h[c-a]llo", "hbllo"),
            ("a*b*c", "a12b34c"),
            ("a**c", "abc"),
            ("\\*", "*"),
            ("[\\]]", "]"),
            ("a[bc", "ab"),
            ("a\\", "a\\"),
        ];
        let no = [
            ("", "a"),
            ("a", ""),
            ("*", ""),
            ("**", ""),
            ("h?llo", "hllo"),
            ("a*b", "a"),
            ("\\*", "x"),
            ("[^a]", "a"),
            ("a[b", "ac"),
        ];
        for (pattern, text) in yes {
            assert!(matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        for (pattern, text) in no {
            assert!(!matches(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = "a*".repeat(30) + "b";
        assert!(!matches(pattern.as_bytes(), "a".repeat(2_000).as_bytes()));
    }
}
