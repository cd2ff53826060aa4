//! Timeouts as they stand in a request.

use std::time::Duration;

use super::Timeout;

/// Above it (68 years) versions differ in their limits.
const MOST_SECONDS: u64 = i32::MAX as u64;

/// Seconds, with a fraction perhaps. None: every version answers with an error, because it is negative.
pub(super) fn seconds(text: &[u8]) -> Option<Timeout> {
    if is_negative(text) {
        return None;
    }
    let (whole, fraction) = match text.iter().position(|&byte| byte == b'.') {
        Some(dot) => {
            let fraction = text.get(dot + 1..).unwrap_or_default();
            (text.get(..dot).unwrap_or_default(), Some(fraction))
        }
        None => (text, None),
    };
    let parsed = digits(whole).zip(fraction.map_or(Some(0), nanoseconds));
    Some(match parsed {
        Some((seconds, nanoseconds)) if seconds < MOST_SECONDS => {
            let exact = Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds);
            if exact.is_zero() {
                Timeout::Forever
            } else if exact < Duration::from_millis(1) {
                // For ever in Redis 6, which cut it to 0; one millisecond in Redis 7.
                Timeout::Unclear
            } else {
                Timeout::After(rounded_up(exact))
            }
        }
        Some(_) | None => Timeout::Unclear,
    })
}

/// Whole milliseconds, as XREAD and XREADGROUP take them. None: an error on every version.
pub(super) fn milliseconds(text: &[u8]) -> Option<Timeout> {
    if is_negative(text) {
        return None;
    }
    Some(match digits(text) {
        // The server reads integers strictly: a leading zero is an error there.
        Some(_) if text.len() > 1 && text.starts_with(b"0") => Timeout::Unclear,
        Some(0) => Timeout::Forever,
        Some(millis) if millis < MOST_SECONDS * 1000 => Timeout::After(Duration::from_millis(millis)),
        Some(_) | None => Timeout::Unclear,
    })
}

/// A minus before a digit, and not only zeros: plainly negative.
fn is_negative(text: &[u8]) -> bool {
    match text.strip_prefix(b"-") {
        Some(rest) => {
            rest.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.')
                && rest.first().is_some_and(u8::is_ascii_digit)
                && rest.iter().filter(|byte| **byte == b'.').count() <= 1
                && rest.iter().any(|byte| (b'1'..=b'9').contains(byte))
        }
        None => false,
    }
}

/// At least one digit, nothing else, and not so many that the number would be out of range anyway.
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 15 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0')))
}

/// A fraction of a second, cut to nanoseconds but never to zero when it is not.
fn nanoseconds(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 30 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut value = 0;
    for place in 0..9 {
        value = value * 10 + u64::from(text.get(place).map_or(0, |digit| digit - b'0'));
    }
    let more = text.iter().skip(9).any(|digit| *digit != b'0');
    Some(value + u64::from(more))
}

fn rounded_up(exact: Duration) -> Duration {
    let nanos = exact.subsec_nanos().next_multiple_of(1_000_000);
    Duration::from_secs(exact.as_secs()) + Duration::from_nanos(u64::from(nanos))
}
