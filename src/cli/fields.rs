//! Members of `/status` as text.

use std::time::Duration;

use serde_json::Value;

use crate::pool::HumanDuration;
use crate::telemetry::printable;

/// A number; 0 if it is absent.
pub(super) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// A text without control characters; `-` if it is absent or empty.
pub(super) fn text(value: &Value) -> String {
    match value.as_str().unwrap_or_default() {
        "" => "-".to_owned(),
        text => printable(text.as_bytes()),
    }
}

/// A duration.
pub(super) fn human(seconds: u64) -> String {
    if seconds == 0 { "0s".to_owned() } else { HumanDuration(Duration::from_secs(seconds)).to_string() }
}
