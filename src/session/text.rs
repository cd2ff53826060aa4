//! Parsing and printing of words and numbers as on the server.

/// Bytes made fit for one line of an error that a client gets: blanks for what is no sign, as Redis has them for line ends.
#[must_use]
pub fn one_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace(|c: char| c.is_control(), " ")
}

/// A decimal number as redis's `string2ll` reads it.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let value: i64 = text.parse().ok()?;
    (value.to_string() == text).then_some(value)
}

/// Whether a name may be given to a connection (`clientSetName`: printable ASCII without the space).
#[must_use]
pub fn is_plain_name(name: &[u8]) -> bool {
    name.iter().all(|byte| (b'!'..=b'~').contains(byte))
}
