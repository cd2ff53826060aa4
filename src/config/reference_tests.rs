//! Holds `config.toml`, `docs/reference/configuration.md` and the code's defaults to each other: whichever drifts, fails.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::keys::KEYS;
use super::*;

const FILE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml"));
const REFERENCE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/configuration.md"));

/// One `key = value` line of `config.toml`.
struct Line {
    path: String,
    value: String,
    commented: bool,
}

/// Prose never looks like `# word = `, so every such line is a key.
fn lines() -> Vec<Line> {
    let mut section = "";
    let mut lines = Vec::new();
    for line in FILE.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name;
        }
        let (text, commented) = line.strip_prefix("# ").map_or((line, false), |text| (text, true));
        if let Some((name, value)) = text.split_once(" = ")
            && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        {
            lines.push(Line { path: format!("{section}.{name}"), value: value.to_owned(), commented });
        }
    }
    lines
}

/// The key's default as TOML; `None` where there is none or where it differs from host to host.
fn default_of(path: &str) -> Option<String> {
    let (_, value) = Config::default().settings().find(|(known, _)| *known == path).expect(path);
    value.filter(|_| path != "hygiene.name")
}

#[test]
fn config_toml_has_every_key_once_in_the_order_of_the_table() {
    let written: Vec<String> = lines().into_iter().map(|line| line.path).collect();
    let known: Vec<&str> = KEYS.iter().map(|key| key.path).collect();
    assert_eq!(written, known);
}

#[test]
fn config_toml_shows_the_defaults() {
    for Line { path, value, commented } in lines() {
        assert_eq!(
            commented,
            default_of(&path).is_none(),
            "{path}: commented out if and only if it has no default"
        );
        if let Some(default) = default_of(&path) {
            assert_eq!(value, default, "{path}");
        }
    }
}

#[test]
fn config_toml_as_it_is_changes_nothing() {
    let mut layers = Layers::default();
    layers.file(Path::new("config.toml"), FILE);
    assert_eq!(Loaded::from_layers(layers).unwrap().config, Config::default());
}

#[test]
fn the_examples_in_config_toml_are_accepted() {
    let password = tempfile::NamedTempFile::new().unwrap();
    fs::write(password.path(), "secret").unwrap();
    let users = tempfile::NamedTempFile::new().unwrap();
    fs::write(users.path(), format!("[app]\npassword = \"#{}\"", "0".repeat(64))).unwrap();
    // One password is enough, and users go with the mode that looks at them.
    let passwords = ["upstream.password", "upstream.sentinel.password"];
    let examples =
        lines().into_iter().filter(|line| line.commented && !passwords.contains(&line.path.as_str()));
    let mut set: Vec<String> = examples.map(|line| format!("{}={}", line.path, line.value)).collect();
    for key in ["upstream.password_file", "upstream.sentinel.password_file"] {
        let file = set.iter_mut().find(|setting| setting.starts_with(&format!("{key}="))).unwrap();
        *file = format!("{key}={}", password.path().display());
    }
    let file = set.iter_mut().find(|setting| setting.starts_with("auth.users_file=")).unwrap();
    *file = format!("auth.users_file={}", users.path().display());
    let mode = set.iter_mut().find(|setting| setting.starts_with("auth.mode=")).unwrap();
    *mode = "auth.mode=static".to_owned();
    let rest = [
        "upstream.url=rediss-sentinel://h/main",
        "listen.tls.addresses=h:1",
        "listen.tls.client_auth=required",
    ];
    set.extend(rest.map(str::to_owned));
    Config::load(&Flags { set, ..Flags::default() }, []).unwrap();
}

#[test]
fn every_key_of_config_toml_is_explained_above_it() {
    let lines: Vec<&str> = FILE.lines().collect();
    let is_key =
        |line: &str| line.trim_start_matches("# ").split_once(" = ").is_some_and(|(n, _)| !n.contains(' '));
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| is_key(line)) {
        // Keys that belong together share the comment above the first of them.
        let above = lines[..at].iter().rev().find(|line| !is_key(line)).unwrap();
        assert!(above.starts_with("# "), "{line}");
    }
}

/// One row of the tables in `docs/reference/configuration.md`: its cells.
fn rows() -> Vec<(String, Vec<String>)> {
    let mut section = String::new();
    let mut rows = Vec::new();
    for line in REFERENCE.lines() {
        if let Some(name) = line.strip_prefix("## `[").and_then(|l| l.strip_suffix("]`")) {
            section = name.to_owned();
        }
        let row = line.strip_prefix("| `").and_then(|line| line.strip_suffix(" |"));
        if let Some(row) = row.filter(|_| !section.is_empty()) {
            let cells: Vec<String> = format!("`{row}").split(" | ").map(str::to_owned).collect();
            rows.push((section.clone(), cells));
        }
    }
    rows
}

#[test]
fn the_reference_has_every_key_once_in_the_order_of_the_table() {
    let written: Vec<String> =
        rows().iter().map(|(section, c)| format!("{section}.{}", c[0].replace('`', ""))).collect();
    let known: Vec<&str> = KEYS.iter().map(|key| key.path).collect();
    assert_eq!(written, known);
}

#[test]
fn the_reference_gives_type_default_and_variable_of_every_key() {
    for (key, (_, cells)) in KEYS.iter().zip(rows()) {
        let [_, form, default, variable, effect, meaning, consequence] = cells.as_slice() else {
            panic!("{}: {} cells", key.path, cells.len());
        };
        assert_eq!(*form, key.form(), "{}", key.path);
        let known = match (key.path, default_of(key.path)) {
            (_, Some(value)) => format!("`{value}`"),
            ("hygiene.name", None) => "the host's name".to_owned(),
            (_, None) => "not set".to_owned(),
        };
        assert_eq!(*default, known, "{}", key.path);
        assert_eq!(*variable, format!("`{}`", key.variable()), "{}", key.path);
        assert_eq!(*effect, key.effect.label(), "{}", key.path);
        assert!(meaning.len() > 10 && consequence.len() > 10, "{}", key.path);
    }
}

#[test]
fn every_bound_admits_the_default() {
    for (path, value) in Config::default().settings() {
        if let Some(value) = value.filter(|_| !path.ends_with("password_file")) {
            let flags = Flags { set: vec![format!("{path}={value}")], ..Flags::default() };
            assert_eq!(Config::load(&flags, []).unwrap(), Config::default(), "{path}");
        }
    }
}
