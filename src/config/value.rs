//! Text to values and back: durations, sizes, numbers, switches, lists.
//!
//! A file gives typed TOML, a variable or a flag gives text; both end here, so `8`, `"8"` and `REDBOUNCER_…=8` mean the
//! same. What cannot be read is described without being repeated unless it is plainly harmless: a password pasted into
//! the wrong place must not come back in an error.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

/// The mistake in a value, as the end of a sentence that began with the key.
pub(super) type Wrong = String;

/// A value as its source gave it. No `Debug`: it may hold a password.
#[derive(Clone)]
pub(super) enum Given {
    Text(String),
    Number(i64),
    Switch(bool),
    List(Vec<Given>),
    /// Something no key takes, by its TOML name.
    Other(&'static str),
}

impl Given {
    /// A value from a file.
    pub(super) fn from_toml(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
                Ok(number) => Self::Number(number),
                Err(_) => Self::Other("a number out of range"),
            },
            DeValue::Boolean(on) => Self::Switch(*on),
            DeValue::Array(items) => Self::List(items.iter().map(|i| Self::from_toml(i.get_ref())).collect()),
            DeValue::Float(_) => Self::Other("a number with a fraction"),
            DeValue::Datetime(_) => Self::Other("a date"),
            DeValue::Table(_) => Self::Other("a section"),
        }
    }

    /// A value from a variable or a flag: a quoted string or a list in TOML's form, else the text as it is.
    pub(super) fn from_text(text: &str) -> Self {
        match DeValue::parse(text).as_ref().map(|value| value.get_ref()) {
            Ok(value @ (DeValue::String(_) | DeValue::Array(_))) => Self::from_toml(value),
            _ => Self::Text(text.to_owned()),
        }
    }

    pub(super) fn text(&self) -> Result<String, Wrong> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::Number(number) => Ok(number.to_string()),
            Self::Switch(_) | Self::List(_) | Self::Other(_) => Err(self.found()),
        }
    }

    pub(super) fn switch(&self) -> Result<bool, Wrong> {
        match self {
            Self::Switch(on) => Ok(*on),
            Self::Text(text) => text.trim().parse().map_err(|_| self.found()),
            Self::Number(_) | Self::List(_) | Self::Other(_) => Err(self.found()),
        }
    }

    pub(super) fn count(&self, range: &RangeInclusive<u32>) -> Result<u32, Wrong> {
        let number = match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok(),
            Self::Switch(_) | Self::List(_) | Self::Other(_) => None,
        };
        number.and_then(|n| u32::try_from(n).ok()).filter(|n| range.contains(n)).ok_or_else(|| self.found())
    }

    pub(super) fn size(&self, least: usize) -> Result<usize, Wrong> {
        let bytes = match self {
            Self::Number(number) => usize::try_from(*number).ok(),
            Self::Text(text) => parse_size(text),
            Self::Switch(_) | Self::List(_) | Self::Other(_) => None,
        };
        bytes.filter(|b| (least..=MOST_BYTES).contains(b)).ok_or_else(|| self.found())
    }

    /// Zero needs no unit; everything else does, because nobody remembers which unit a bare number would have.
    pub(super) fn duration(&self) -> Result<Duration, Wrong> {
        match self {
            Self::Number(0) => Ok(Duration::ZERO),
            Self::Number(number) => Err(format!("found {number} without a unit")),
            Self::Text(text) => parse_duration(text).ok_or_else(|| self.found()),
            Self::Switch(_) | Self::List(_) | Self::Other(_) => Err(self.found()),
        }
    }

    /// A list, or text with commas. Blank items are dropped, so a trailing comma does no harm.
    pub(super) fn list(&self) -> Result<Vec<String>, Wrong> {
        let items: Vec<String> = match self {
            Self::Text(text) => text.split(',').map(str::to_owned).collect(),
            Self::List(items) => items.iter().map(Self::text).collect::<Result<_, _>>()?,
            Self::Number(_) | Self::Switch(_) | Self::Other(_) => return Err(self.found()),
        };
        Ok(items.iter().map(|i| i.trim().to_owned()).filter(|i| !i.is_empty()).collect())
    }

    /// "found …": the value itself only if it is short and made of letters, digits and signs no URL or secret needs.
    pub(super) fn found(&self) -> Wrong {
        match self {
            Self::Text(text) if text.is_empty() => "found nothing".to_owned(),
            Self::Text(text) if is_harmless(text) => format!("found \"{text}\""),
            Self::Text(_) => "found other text".to_owned(),
            Self::Number(number) => format!("found {number}"),
            Self::Switch(on) => format!("found {on}"),
            Self::List(_) => "found a list".to_owned(),
            Self::Other(what) => format!("found {what}"),
        }
    }
}

/// Whether text may be repeated in an error: nothing that looks like a URL or a long random string.
pub(super) fn is_harmless(text: &str) -> bool {
    text.len() <= 24 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b" ._-+".contains(&b))
}

/// One bound for every size, far above any sensible one, so that sums of sizes cannot overflow.
const MOST_BYTES: usize = 1 << 40;

const SIZES: [(&str, usize); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

fn parse_size(text: &str) -> Option<usize> {
    let (number, unit) = split_unit(text)?;
    let factor = if unit.is_empty() { 1 } else { SIZES.iter().find(|(name, _)| *name == unit)?.1 };
    usize::try_from(number).ok()?.checked_mul(factor)
}

/// `64MiB`, `1GiB`; plain bytes where no unit divides.
pub(super) fn show_size(bytes: usize) -> String {
    match SIZES.iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) if *factor > 1 => format!("{}{unit}", bytes / factor),
        _ => bytes.to_string(),
    }
}

/// Reads a duration as settings have it: `250ms`, `90s`, `5m`, `1h`, `7d`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs);
    match unit {
        "" if number == 0 => Some(Duration::ZERO),
        "ms" => Some(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        "d" => seconds(86_400),
        _ => None,
    }
}

/// `250ms`, `90s`, `1h`: whole hours, else whole seconds, else milliseconds.
pub(super) fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if duration.is_zero() {
        "0".to_owned()
    } else if duration.subsec_nanos() > 0 {
        format!("{}ms", duration.as_millis())
    } else if seconds.is_multiple_of(3600) {
        format!("{}h", seconds / 3600)
    } else {
        format!("{seconds}s")
    }
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// The value that a word stands for, or the words there are.
pub(super) fn choose<T: Copy>(words: &[(&str, T)], text: &str) -> Result<T, Wrong> {
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let all: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        format!("expected {}, {}", all.join(" or "), Given::Text(text.to_owned()).found())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn duration(text: &str) -> Result<Duration, Wrong> {
        Given::from_text(text).duration()
    }

    #[test]
    fn durations_have_a_unit_unless_they_are_zero() {
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(duration("2s").unwrap(), Duration::from_secs(2));
        assert_eq!(duration("5m").unwrap(), Duration::from_secs(300));
        assert_eq!(duration("1h").unwrap(), Duration::from_secs(3600));
        assert_eq!(duration("7d").unwrap(), Duration::from_secs(604_800));
        assert_eq!(duration("0").unwrap(), Duration::ZERO);
        assert_eq!(duration("\"2s\"").unwrap(), Duration::from_secs(2));
        for bad in ["5", "s", "", "1.5s", "-1s", "2 weeks", "99999999999999999999s", "9999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Given::Number(5).duration().unwrap_err(), "found 5 without a unit");
    }

    #[test]
    fn sizes_are_binary_units_or_plain_bytes() {
        let size = |text: &str| Given::from_text(text).size(0);
        assert_eq!(size("64MiB").unwrap(), 64 << 20);
        assert_eq!(size("1GiB").unwrap(), 1 << 30);
        assert_eq!(size("16KiB").unwrap(), 16 << 10);
        assert_eq!(size("512B").unwrap(), 512);
        assert_eq!(size("4096").unwrap(), 4096);
        for bad in ["64MB", "64mb", "-1", "", "1.5GiB", "99999999999GiB", "18446744073709551615"] {
            assert!(size(bad).is_err(), "{bad:?}");
        }
        assert!(Given::Number(10).size(11).is_err());
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        for ms in [1, 50, 999, 1000, 1500, 59_000, 60_000, 90_000, 3_600_000, 5_400_000, 86_400_000] {
            let duration = Duration::from_millis(ms);
            assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
        }
        for bytes in [0, 1, 1000, 1024, 1025, 3 << 20, 512 << 20, 1 << 30, 5 << 30] {
            assert_eq!(parse_size(&show_size(bytes)), Some(bytes));
        }
    }

    #[test]
    fn lists_are_toml_or_separated_by_commas() {
        let list = |text: &str| Given::from_text(text).list();
        assert_eq!(list("a:1, b:2,").unwrap(), ["a:1", "b:2"]);
        assert_eq!(list("['a:1', \"b:2\"]").unwrap(), ["a:1", "b:2"]);
        assert_eq!(list("a:1").unwrap(), ["a:1"]);
        assert!(list("").unwrap().is_empty());
    }

    #[test]
    fn numbers_and_switches_may_come_as_text() {
        assert_eq!(Given::from_text(" 8 ").count(&(1..=9)).unwrap(), 8);
        for bad in ["0", "10", "-1", "x", "1e3", "", "4294967296"] {
            assert!(Given::from_text(bad).count(&(1..=9)).is_err(), "{bad:?}");
        }
        assert!(Given::from_text("true").switch().unwrap());
        assert!(!Given::Switch(false).switch().unwrap());
        assert!(Given::from_text("yes").switch().is_err());
        assert_eq!(Given::from_text("123").text().unwrap(), "123");
    }

    #[test]
    fn a_value_that_may_be_a_secret_is_not_repeated() {
        assert_eq!(Given::from_text("5 bananas").found(), "found \"5 bananas\"");
        for secret in ["redis://:hunter2@h", "k8ZkXw0PqLm3Rt7VbNc9YhJd2", "pass:word", "p@ss"] {
            assert!(!Given::from_text(secret).found().contains(secret));
        }
    }
}
