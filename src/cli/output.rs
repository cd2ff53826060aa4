//! What is written to stdout and stderr, and the exit code that goes with it.

use std::io::{self, Write};
use std::process::ExitCode;

/// Writes the answer to stdout. A reader that has gone (`| head`) is no failure.
pub(super) fn print(text: &str) -> ExitCode {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(wrong) if wrong.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}

/// `1 failure`, `2 failures`.
pub(super) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

pub(super) fn fail(text: &str, code: u8) -> ExitCode {
    // stderr is the last resort: if it cannot be written to, the exit code still says it.
    let _ = io::stderr().lock().write_all(text.as_bytes());
    ExitCode::from(code)
}
