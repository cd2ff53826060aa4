//! Decimal numbers exactly as Redis reads them.
//!
//! `string2ll` (Redis's `util.c`) accepts one spelling per number: no plus, no leading zero, no blank, nothing
//! beyond 64 bits. Being as strict keeps a frame's meaning the same on both sides of the proxy.

/// The longest text of a 64-bit number: a sign and 19 digits.
const LONGEST: usize = 20;

/// Reads the one spelling Redis accepts; `None` for everything else.
pub(super) fn string2ll(text: &[u8]) -> Option<i64> {
    if text == b"0" {
        return Some(0);
    }
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if !matches!(digits.first(), Some(b'1'..=b'9')) || text.len() > LONGEST {
        return None;
    }
    let mut value: i64 = 0;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        // Summed below zero, because i64::MIN has no positive counterpart.
        value = value.checked_mul(10)?.checked_sub(i64::from(digit))?;
    }
    if negative { Some(value) } else { value.checked_neg() }
}

/// Reads `<marker><1 to 9 digits>\r\n` at the start of `bytes`: the number and how many bytes it took.
///
/// This is the hot path's common case and nothing else: `None` says only that the careful path has to look
/// (the line is incomplete, odd or wrong).
#[inline(always)]
pub(super) fn header(bytes: &[u8], marker: u8) -> Option<(u32, usize)> {
    let [first, digit, rest @ ..] = bytes else { return None };
    let mut value = u32::from(digit.wrapping_sub(b'0'));
    if *first != marker || value > 9 {
        return None;
    }
    let leading_zero = value == 0;
    for (index, &byte) in rest.iter().take(9).enumerate() {
        let digit = u32::from(byte.wrapping_sub(b'0'));
        if digit > 9 {
            let ends = byte == b'\r' && rest.get(index + 1) == Some(&b'\n');
            return if ends { Some((value, index + 4)) } else { None };
        }
        if leading_zero || index == 8 {
            return None;
        }
        value = value * 10 + digit;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_spelling() {
        for (text, value) in [
            ("0", Some(0)),
            ("1", Some(1)),
            ("-1", Some(-1)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("-9223372036854775809", None),
            ("99999999999999999999", None),
            ("", None),
            ("-", None),
            ("+1", None),
            ("01", None),
            ("00", None),
            ("-0", None),
            ("-01", None),
            (" 1", None),
            ("1 ", None),
            ("1a", None),
            ("--1", None),
            ("1\0", None),
        ] {
            assert_eq!(string2ll(text.as_bytes()), value, "{text:?}");
        }
    }

    #[test]
    fn a_plain_header_is_read_at_once_and_any_other_is_left_to_the_careful_path() {
        for (bytes, expected) in [
            ("$0\r\n", Some((0, 4))),
            ("$3\r\nfoo\r\n", Some((3, 4))),
            ("$64\r\n", Some((64, 5))),
            ("$536870912\r\n", Some((536_870_912, 12))),
            ("$999999999\r\n", Some((999_999_999, 12))),
            ("$1000000000\r\n", None),
            ("$3\r", None),
            ("$3", None),
            ("$", None),
            ("", None),
            ("*3\r\n", None),
            ("$03\r\n", None),
            ("$-1\r\n", None),
            ("$3\rx", None),
            ("$3x\r\n", None),
            ("$\r\n", None),
        ] {
            assert_eq!(header(bytes.as_bytes(), b'$'), expected, "{bytes:?}");
        }
    }
}
