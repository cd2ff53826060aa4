//! `redbouncer hash-password`: a password to the hash that a users file holds.
//!
//! The password comes from stdin or the terminal, never from the command line, where every user of the host could read it.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::downstream::PasswordHash;

/// Maximum length of a password; a longer input is probably a file by mistake.
const LONGEST: usize = 4096;

/// Why there is no hash.
#[derive(Debug, thiserror::Error)]
pub(super) enum HashError {
    /// Nothing came, or too much.
    #[error("{0}")]
    Password(&'static str),
    /// The terminal or stdin failed.
    #[error("cannot read the password: {0}")]
    Read(#[from] io::Error),
    /// The operating system has no random numbers, or no memory.
    #[error("cannot make a hash: {0}")]
    Hash(String),
}

/// The hash of the password that is typed or piped in, as a line for `password` in the users file.
pub(super) fn run(sha256: bool) -> Result<String, HashError> {
    let stdin = io::stdin();
    let password = if stdin.is_terminal() { asked_twice(&stdin)? } else { first_line(&mut stdin.lock())? };
    let hash = if sha256 {
        PasswordHash::sha256_text(&password)
    } else {
        PasswordHash::argon2_text(&password).map_err(HashError::Hash)?
    };
    Ok(format!("{hash}\n"))
}

fn asked_twice(stdin: &io::Stdin) -> Result<Zeroizing<Vec<u8>>, HashError> {
    let first = asked(stdin, "Password: ")?;
    let second = asked(stdin, "Again: ")?;
    if first == second { Ok(first) } else { Err(HashError::Password("the two passwords differ")) }
}

/// Asks on stderr, since stdout is for the hash. Nothing that is typed is shown.
fn asked(stdin: &io::Stdin, prompt: &str) -> Result<Zeroizing<Vec<u8>>, HashError> {
    let mut stderr = io::stderr().lock();
    write!(stderr, "{prompt}")?;
    stderr.flush()?;
    let before = tcgetattr(stdin).map_err(io::Error::from)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(stdin, OptionalActions::Now, &silent).map_err(io::Error::from)?;
    let line = first_line(&mut stdin.lock());
    tcsetattr(stdin, OptionalActions::Now, &before).map_err(io::Error::from)?;
    writeln!(stderr)?;
    line
}

/// The first line without its end.
fn first_line(input: &mut impl BufRead) -> Result<Zeroizing<Vec<u8>>, HashError> {
    let mut line = Zeroizing::new(Vec::with_capacity(LONGEST + 2));
    input.by_ref().take(LONGEST as u64 + 2).read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
        line.pop_if(|last| *last == b'\r');
    }
    match line.len() {
        0 => Err(HashError::Password("no password: type one, or pipe one in")),
        length if length > LONGEST => Err(HashError::Password("a password has at most 4096 bytes")),
        _ => Ok(line),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_password() {
        let read = |text: &str| first_line(&mut text.as_bytes()).map(|line| line.to_vec());
        assert_eq!(read("sesame\n").unwrap(), b"sesame");
        assert_eq!(read("sesame\r\nmore\n").unwrap(), b"sesame");
        assert_eq!(read(" sesame ").unwrap(), b" sesame ");
        assert!(read("").is_err() && read("\n").is_err());
        assert!(read(&"x".repeat(LONGEST)).is_ok() && read(&"x".repeat(LONGEST + 1)).is_err());
    }
}
