//! The users file: who may log in with `auth.mode = "static"`.
//!
//! A file of its own, because it is not a fixed set of keys: one section for each user, readable by whoever may see
//! hashes, and read again by itself. Everything wrong in it is reported at once, each with its line and no value.

use std::fs;
use std::path::Path;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::text::{nearest, shown, syntax};
use super::value::{Given, Wrong, choose, show_duration};
use crate::downstream::{Cost, PasswordHash, StaticUser, toll};
use crate::session::{Right, Rights};
use crate::upstream::{CredentialSource, Identity, Secret};

/// The keys of a user's section.
const KEYS: [&str; 8] = [
    "password",
    "upstream_user",
    "upstream_password",
    "upstream_password_file",
    "upstream_password_env",
    "max_clients",
    "max_connections",
    "commands",
];

/// Reads the users file.
///
/// # Errors
/// All that is wrong with it, each with file and line. Where there is no such file its name is not repeated: it may be
/// anything, pasted into the wrong place.
pub fn read_users(path: &Path) -> Result<Vec<StaticUser>, Vec<String>> {
    let text = fs::read_to_string(path).map_err(|wrong| vec![format!("the file cannot be read: {wrong}")])?;
    parse(&path.display().to_string(), &text, &secret_in)
}

/// KiB that Argon2 passes over in a second on a slow machine; one of our day does several times as many.
const KIB_PER_SECOND: u64 = 256 << 10;

/// Why a login that fails could outlast `login_timeout`, if it could: all hashes that it is held against may take half of
/// that, the other half being for the one in front of it.
#[must_use]
pub fn outlasting(users: &[StaticUser], login_timeout: Duration) -> Option<String> {
    let passed: u64 = toll(users).into_iter().map(Cost::kib_passed).sum();
    let takes = Duration::from_millis(passed.saturating_mul(1000) / KIB_PER_SECOND);
    (takes > login_timeout / 2).then(|| {
        let most = u64::try_from(login_timeout.as_millis() / 2).unwrap_or(u64::MAX) * KIB_PER_SECOND / 1000;
        format!(
            "a login may take {} with these Argon2 hashes, where half of client.login_timeout is {} (m × t is {passed} for \
             one of each kind, at {KIB_PER_SECOND} a second on a slow machine): use smaller parameters, m × t of {most} at \
             the most in all, or raise client.login_timeout",
            show_duration(takes),
            show_duration(login_timeout / 2)
        )
    })
}

/// How a file that holds a password is read.
type ReadSecret<'a> = &'a dyn Fn(&Path) -> Result<Secret, Wrong>;

/// Reads `text` as a users file, where no file that it names can be read.
#[cfg(any(test, fuzzing))]
pub(crate) fn parse_alone(text: &str) -> Result<Vec<StaticUser>, Vec<String>> {
    parse("users.toml", text, &|_| Err("the file cannot be read".to_owned()))
}

fn parse(file: &str, text: &str, read_secret: ReadSecret<'_>) -> Result<Vec<StaticUser>, Vec<String>> {
    let line = |offset: usize| 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
    let table = match DeTable::parse(text) {
        Ok(table) => table,
        Err(wrong) => {
            let line = line(wrong.span().map_or(0, |span| span.start));
            return Err(vec![format!("{file}:{line}: not valid TOML: {}", syntax(wrong.message()))]);
        }
    };
    let (mut users, mut errors) = (Vec::new(), Vec::new());
    for (name, value) in table.get_ref().iter() {
        let at = line(name.span().start);
        let (name, mut wrong) = (name.get_ref(), Vec::new());
        match value.get_ref() {
            DeValue::Table(section) => {
                let mut complain = |offset: Option<usize>, text| wrong.push((offset.map_or(at, line), text));
                let user = user(name, section, read_secret, &mut complain);
                users.extend(user);
            }
            _ => wrong.push((at, "expected a section for each user, such as [app]".to_owned())),
        }
        let name = shown(name);
        let named = wrong.into_iter().map(|(line, text)| (line, format!("user \"{name}\": {text}")));
        errors.extend(named);
    }
    if users.is_empty() && errors.is_empty() {
        return Err(vec![format!("{file}: no users: nobody could log in")]);
    }
    if errors.is_empty() {
        return Ok(users);
    }
    // The parser returns sections and keys by name; errors are sorted by line for the reader of the file.
    errors.sort_by_key(|(line, _)| *line);
    Err(errors.into_iter().map(|(line, text)| format!("{file}:{line}: {text}")).collect())
}

/// One section. What is wrong goes to `complain`, with its place where it has one.
fn user(
    name: &str,
    section: &DeTable<'_>,
    read_secret: ReadSecret<'_>,
    complain: &mut dyn FnMut(Option<usize>, Wrong),
) -> Option<StaticUser> {
    let mut user = StaticUser {
        name: name.to_owned(),
        hashes: Vec::new(),
        upstream: None,
        max_clients: None,
        max_connections: None,
        rights: Rights::ALL,
    };
    let (mut upstream_user, mut upstream_passwords) = (None, Vec::new());
    for (key, value) in section.iter() {
        let at = Some(key.span().start);
        let (key, given) = (key.get_ref().as_ref(), Given::from_toml(value.get_ref()));
        let done = match key {
            "password" => hashes(&given).map(|hashes| user.hashes = hashes),
            "upstream_user" => filled(&given).map(|text| upstream_user = Some(text)),
            "upstream_password" => filled(&given).map(|text| upstream_passwords.push(Secret::new(text))),
            "upstream_password_file" => filled(&given)
                .and_then(|path| read_secret(Path::new(&path)))
                .map(|secret| upstream_passwords.push(secret)),
            "upstream_password_env" => {
                filled(&given).and_then(|name| secret_of(&name)).map(|secret| upstream_passwords.push(secret))
            }
            "max_clients" => most(&given).map(|most| user.max_clients = Some(most)),
            "max_connections" => most(&given).map(|most| user.max_connections = Some(most)),
            "commands" => rights(&given).map(|rights| user.rights = rights),
            _ => Err(format!("not known; the nearest known key is \"{}\"", nearest(KEYS.into_iter(), key))),
        };
        if let Err(wrong) = done {
            complain(at, format!("\"{}\": {wrong}", shown(key)));
        }
    }
    if user.hashes.is_empty() && !section.iter().any(|(key, _)| key.get_ref() == "password") {
        complain(None, "no \"password\": nobody could log in".to_owned());
    }
    if upstream_passwords.len() > 1 {
        complain(None, "more than one upstream password; leave all but one out".to_owned());
    }
    user.upstream = match (upstream_user, upstream_passwords.pop()) {
        (None, None) => None,
        (username, Some(password)) => {
            Some(Identity { username, password: Some(password), source: CredentialSource::UsersFile })
        }
        (Some(_), None) => {
            let forms = "upstream_password, upstream_password_file or upstream_password_env";
            complain(None, format!("\"upstream_user\" without a password: {forms} is missing"));
            None
        }
    };
    Some(user)
}

fn filled(given: &Given) -> Result<String, Wrong> {
    let text = given.text().map_err(|found| format!("expected text, {found}"))?;
    if text.is_empty() { Err("expected text, found nothing".to_owned()) } else { Ok(text) }
}

/// One hash, or several of which any lets the user in.
fn hashes(given: &Given) -> Result<Vec<PasswordHash>, Wrong> {
    let texts = match given {
        Given::List(items) => items.iter().map(filled).collect::<Result<Vec<_>, _>>()?,
        one => vec![filled(one)?],
    };
    if texts.is_empty() {
        return Err("an empty list: nobody could log in".to_owned());
    }
    texts.iter().map(|text| PasswordHash::parse(text).map_err(str::to_owned)).collect()
}

fn most(given: &Given) -> Result<usize, Wrong> {
    let number = given.count(&(1..=1_000_000));
    number
        .map(|most| most as usize)
        .map_err(|found| format!("expected a whole number, 1 to 1000000, {found}"))
}

fn rights(given: &Given) -> Result<Rights, Wrong> {
    let words = given.list().map_err(|found| format!("expected a list of words, {found}"))?;
    words.iter().try_fold(Rights::NONE, |rights, word| Ok(rights.with(choose(&Right::WORDS, word)?)))
}

/// Reads a password from a file; one line break at the end, which editors add, does not belong to it.
///
/// # Errors
/// What is wrong with the file. The path is not repeated: the commonest mistake is to write the password itself.
pub fn secret_in(path: &Path) -> Result<Secret, Wrong> {
    let mut bytes = fs::read(path).map_err(|wrong| format!("the file cannot be read: {wrong}"))?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        bytes.pop_if(|last| *last == b'\r');
    }
    if bytes.is_empty() { Err("the file is empty".to_owned()) } else { Ok(Secret::new(bytes)) }
}

/// The name of the variable is not repeated either.
fn secret_of(variable: &str) -> Result<Secret, Wrong> {
    match std::env::var(variable) {
        Ok(text) if !text.is_empty() => Ok(Secret::new(text)),
        Ok(_) | Err(std::env::VarError::NotPresent) => {
            Err("there is no such environment variable".to_owned())
        }
        Err(std::env::VarError::NotUnicode(_)) => Err("the environment variable is not UTF-8".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    const SHA: &str = "#d0c04f4b1951e4aeaaec8223ed2039e542f3aae805a6fa7f6d794e5afff5d272";

    fn errors(text: &str) -> Vec<String> {
        parse("users.toml", text, &secret_in).unwrap_err()
    }

    #[test]
    fn a_user_has_all_that_can_be_said_of_it() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "s3cret").unwrap();
        let text = format!(
            "[app]\npassword = [\"{SHA}\", \"{SHA}\"]\nupstream_user = \"worker\"\nupstream_password_file = {:?}\n\
             max_clients = 200\nmax_connections = 3\ncommands = [\"data\", \"blocking\"]\n\n[default]\npassword = \"{SHA}\"\n",
            file.path()
        );
        let users = parse("users.toml", &text, &secret_in).unwrap();
        let app = users.iter().find(|user| user.name == "app").unwrap();
        assert_eq!(app.hashes.len(), 2);
        let upstream = app.upstream.clone().unwrap();
        assert_eq!(upstream.username.as_deref(), Some("worker"));
        assert_eq!(upstream.password, Some(Secret::new("s3cret")));
        assert_eq!((app.max_clients, app.max_connections), (Some(200), Some(3)));
        assert_eq!(app.rights, Rights::NONE.with(Right::Data).with(Right::Blocking));
        let default = users.iter().find(|user| user.name == "default").unwrap();
        assert_eq!(default.upstream, None);
        assert_eq!(default.rights, Rights::ALL);
        assert!(!format!("{users:?}").contains("s3cret"));
    }

    #[test]
    fn everything_wrong_is_told_with_its_line_and_without_its_value() {
        let text = "[app]\npasword = \"hunter2\"\n\n[web]\npassword = \"hunter2\"\ncommands = [\"dta\"]\nmax_clients = 0\n\
                    upstream_user = \"x\"\n\n[both]\npassword = \"hunter2\"\nupstream_password = \"hunter2\"\nupstream_password_env = \"hunter2\"\n";
        let errors = errors(text);
        let all = errors.join("\n");
        for part in [
            "users.toml:2: user \"app\": \"pasword\": not known; the nearest known key is \"password\"",
            "users.toml:1: user \"app\": no \"password\"",
            "users.toml:5: user \"web\": \"password\": expected a hash",
            "users.toml:6: user \"web\": \"commands\": expected \"data\" or",
            "users.toml:7: user \"web\": \"max_clients\": expected a whole number",
            "users.toml:4: user \"web\": \"upstream_user\" without a password",
            "users.toml:13: user \"both\": \"upstream_password_env\": there is no such environment variable",
        ] {
            assert!(all.contains(part), "{part:?} is missing in:\n{all}");
        }
        assert!(!all.contains("hunter2"), "{all}");
        let line = |error: &String| error.split(':').nth(1).unwrap().parse::<usize>().unwrap();
        assert!(errors.is_sorted_by_key(line), "{all}");
    }

    #[test]
    fn hashes_that_could_outlast_a_login_are_told_with_the_figure() {
        let hash = |m: u32, t: u32| {
            format!(
                "\"$argon2id$v=19$m={m},t={t},p=1$c2FsdHNhbHRzYWx0$/R9hXoGbAiwKP+ntM3ojEFnB6i6+iZ89I2MLejgbnBI\""
            )
        };
        let users = |sections: &[String]| {
            let text: String = sections
                .iter()
                .enumerate()
                .map(|(number, hash)| format!("[u{number}]\npassword = {hash}\n"))
                .collect();
            parse("users.toml", &text, &secret_in).unwrap()
        };
        let ten = Duration::from_secs(10);
        // A hundred users with equal hashes cost one.
        assert_eq!(outlasting(&users(&vec![hash(262_144, 5); 100]), ten), None);
        let wrong = outlasting(&users(&[hash(262_144, 64)]), ten).unwrap();
        assert!(wrong.contains("may take 64s") && wrong.contains("1310720"), "{wrong}");
        assert_eq!(outlasting(&users(&[hash(262_144, 64)]), Duration::from_secs(128)), None);
        // Each kind costs everybody, and so does each hash of one user.
        assert!(outlasting(&users(&[hash(262_144, 3), hash(262_143, 3)]), ten).is_some());
        assert!(outlasting(&users(&[format!("[{0}, {0}]", hash(262_144, 3))]), ten).is_some());
    }

    #[test]
    fn a_file_that_lets_nobody_in_is_wrong() {
        assert_eq!(errors(""), ["users.toml: no users: nobody could log in"]);
        assert_eq!(
            errors("app = 1"),
            ["users.toml:1: user \"app\": expected a section for each user, such as [app]"]
        );
        assert_eq!(errors("[app]\npassword = [").len(), 1);
    }
}
