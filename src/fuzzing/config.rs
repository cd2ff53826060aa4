//! What an operator writes: the server's URL and the users file.

use crate::config::{parse_url, parse_users, show_url};
use crate::upstream::{Secret, UpstreamOptions};

/// A URL is refused or understood; understood, it is shown without its password, and what is shown means the same.
pub fn url(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut options = UpstreamOptions::default();
    if parse_url(&text, &mut options).is_err() {
        return;
    }
    let shown = show_url(&options);
    if options.password.is_some() {
        let password = Some(Secret::new("another"));
        let other = UpstreamOptions { password, ..options.clone() };
        assert_eq!(shown, show_url(&other), "the password is no part of what is shown");
    }
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if options.username.as_deref().is_none_or(is_plain) {
        let mut again = UpstreamOptions::default();
        parse_url(&shown, &mut again).unwrap_or_else(|wrong| panic!("{shown}: {wrong}"));
        again.password.clone_from(&options.password);
        assert_eq!(again, options, "{shown}");
    }
}

/// A users file is refused, each fault with its line, or lets somebody in.
pub fn users(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse_users(text) {
        Ok(users) => {
            assert!(!users.is_empty());
            assert!(users.iter().all(|user| !user.hashes.is_empty()), "who has no password cannot log in");
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            assert!(errors.iter().all(|error| error.starts_with("users.toml:")), "{errors:?}");
            let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
            for error in errors {
                let line = error.split(':').nth(1).and_then(|line| line.parse::<usize>().ok());
                assert!(
                    line.is_none_or(|line| (1..=lines).contains(&line)),
                    "{error} in a file of {lines} lines"
                );
            }
        }
    }
}
