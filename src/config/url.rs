//! `upstream.url`: `redis://user:password@host:port/database`, or `rediss://` for TLS.
//!
//! The URL holds a password, so no error repeats any of it. Providers hand out passwords with every kind of sign in
//! them; user and password are percent-decoded, and the error for a URL that was cut short by such a sign says so.

use percent_encoding::percent_decode_str;
use url::Url;

use super::value::Wrong;
use crate::upstream::{Secret, UpstreamOptions};

/// The highest database number a Redis server can be configured to have (`databases` is an int).
const LAST_DATABASE: u32 = i32::MAX as u32;

const SCHEME: &str = "it must begin with redis:// (or rediss:// for TLS)";
const ENCODE: &str =
    "if the password contains one of / ? # @ % it must be percent-encoded (%2F %3F %23 %40 %25)";

/// Takes the URL apart into `options`; whatever it does not name goes back to its default.
pub(crate) fn apply(text: &str, options: &mut UpstreamOptions) -> Result<(), Wrong> {
    let text = text.trim();
    let tls = match text.split_once("://") {
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("redis") => false,
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("rediss") => true,
        Some(_) | None => return Err(SCHEME.to_owned()),
    };
    let url = Url::parse(text).map_err(|wrong| format!("not a URL: {wrong}; {ENCODE}"))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("it has a part after ? or #: options belong to their own keys, and {ENCODE}"));
    }
    let host = url.host_str().map(|h| h.trim_start_matches('[').trim_end_matches(']')).unwrap_or_default();
    if host.is_empty() {
        return Err(format!("it names no host; {ENCODE}"));
    }
    if host.contains('%') {
        return Err(format!("its host contains a percent sign; {ENCODE}"));
    }
    let port = url.port().unwrap_or(6379);
    if port == 0 {
        return Err("its port is 0".to_owned());
    }
    let username = percent_decode_str(url.username())
        .decode_utf8()
        .map_err(|_| "its user name is not UTF-8 after percent-decoding".to_owned())?;
    let password: Vec<u8> = percent_decode_str(url.password().unwrap_or_default()).collect();

    options.database = database(url.path())?;
    options.tls = tls;
    options.host = host.to_owned();
    options.port = port;
    options.username = Some(username.into_owned()).filter(|u| !u.is_empty());
    options.password = Some(password).filter(|p| !p.is_empty()).map(Secret::new);
    Ok(())
}

fn database(path: &str) -> Result<u32, Wrong> {
    let digits = path.strip_prefix('/').unwrap_or(path);
    if digits.is_empty() {
        return Ok(0);
    }
    let number = if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None };
    number
        .filter(|n| *n <= LAST_DATABASE)
        .ok_or_else(|| format!("what follows the host must be a database number, such as /0; {ENCODE}"))
}

/// The URL as it may be printed: with `***` for the password.
pub(crate) fn show(options: &UpstreamOptions) -> String {
    let scheme = if options.tls { "rediss" } else { "redis" };
    let login = match (&options.username, &options.password) {
        (None, None) => String::new(),
        (Some(user), None) => format!("{user}@"),
        (user, Some(_)) => format!("{}:***@", user.as_deref().unwrap_or_default()),
    };
    let host = if options.host.contains(':') { format!("[{}]", options.host) } else { options.host.clone() };
    let database = if options.database == 0 { String::new() } else { format!("/{}", options.database) };
    format!("{scheme}://{login}{host}:{}{database}", options.port)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<UpstreamOptions, Wrong> {
        let mut options = UpstreamOptions::default();
        apply(text, &mut options).map(|()| options)
    }

    fn password(options: &UpstreamOptions) -> Option<&[u8]> {
        options.password.as_ref().map(Secret::expose)
    }

    #[test]
    fn every_part_is_read() {
        let options = parse("rediss://ada:secret@redis.example:7000/3").unwrap();
        assert_eq!((options.host.as_str(), options.port, options.tls), ("redis.example", 7000, true));
        assert_eq!((options.username.as_deref(), options.database), (Some("ada"), 3));
        assert_eq!(password(&options), Some(&b"secret"[..]));
        assert_eq!(show(&options), "rediss://ada:***@redis.example:7000/3");
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let options = parse("redis://h").unwrap();
        assert_eq!(options, UpstreamOptions { host: "h".to_owned(), ..UpstreamOptions::default() });
        assert_eq!(parse("redis://h/").unwrap().database, 0);
        assert_eq!(parse("REDIS://h").unwrap().port, 6379);
        assert_eq!(password(&parse("redis://:only@h").unwrap()), Some(&b"only"[..]));
        assert_eq!(parse("redis://:only@h").unwrap().username, None);
    }

    #[test]
    fn user_and_password_are_percent_decoded() {
        let options = parse("redis://a%40b:p%2Fq%23%25%ff+@h").unwrap();
        assert_eq!(options.username.as_deref(), Some("a@b"));
        assert_eq!(password(&options), Some(&b"p/q#%\xff+"[..]));
    }

    #[test]
    fn an_ipv6_host_stands_in_brackets() {
        let options = parse("redis://[::1]:7000/1").unwrap();
        assert_eq!((options.host.as_str(), options.port), ("::1", 7000));
        assert_eq!(show(&options), "redis://[::1]:7000/1");
    }

    #[test]
    fn a_wrong_url_is_refused_without_being_repeated() {
        for bad in [
            "http://u:hunter2@h",
            "u:hunter2@h:6379",
            "hunter2",
            "",
            "redis://:hunter2@",
            "redis://",
            "redis:///0",
            "redis://:hunter2@h:port",
            "redis://:hunter2@h:0",
            "redis://:hunter2@h:99999",
            "redis://:hunter2@h/db",
            "redis://:hunter2@h/-1",
            "redis://:hunter2@h/+1",
            "redis://:hunter2@h/0/1",
            "redis://:hunter2@h/99999999999",
            "redis://:hunter2@h?ssl=true",
            "redis://:hunter2@h#x",
            "redis://:hunt#er2@h",
            "redis://:hunt/er2@h",
            "redis://:hunt?er2@h",
            "redis://:%@h%2",
            "redis://%ff:hunter2@h",
            "unix:///hunter2.sock",
        ] {
            let wrong = parse(bad).unwrap_err();
            assert!(!wrong.contains("hunt") && !wrong.contains("er2"), "{bad}: {wrong}");
        }
    }
}
