//! Text of clients and servers, made safe for logs and terminals.

/// `bytes` as text in which every sign that a terminal or a reader of logs might obey is an escape (`\u{1b}`): control
/// characters, line separators, and those that change the direction of a line (Unicode's `Bidi_Control`).
///
/// For one line: a line end is escaped as well. What is not UTF-8 becomes U+FFFD.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for sign in String::from_utf8_lossy(bytes).chars() {
        if is_obeyed(sign) {
            out.extend(sign.escape_unicode());
        } else {
            out.push(sign);
        }
    }
    out
}

/// Whether a terminal or a reader of lines may do something for `sign` instead of showing it.
#[must_use]
pub fn is_obeyed(sign: char) -> bool {
    sign.is_control()
        || matches!(sign, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(printable(b"\x1b[31mred\r\n"), "\\u{1b}[31mred\\u{d}\\u{a}");
        assert_eq!(printable("\u{9b}2J\u{202e}x".as_bytes()), "\\u{9b}2J\\u{202e}x");
        assert_eq!(printable(b"\x7f\xff"), "\\u{7f}\u{fffd}");
        assert_eq!(printable("Größe 5 €".as_bytes()), "Größe 5 €");
    }
}
