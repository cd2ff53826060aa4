//! The whole way from file, environment and flags to checked options.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::downstream::AuthMode;
use crate::upstream::{OnLoss, Secret};

/// A command line, an environment and a file, for one load.
#[derive(Default)]
struct Given<'a> {
    file: Option<&'a str>,
    environment: &'a [(&'a str, &'a str)],
    flags: Flags,
}

impl Given<'_> {
    fn load(self) -> Result<Config, Vec<ConfigError>> {
        let mut file = tempfile::Builder::new().prefix("redbouncer").suffix(".toml").tempfile().unwrap();
        let mut flags = self.flags;
        if let Some(text) = self.file {
            file.write_all(text.as_bytes()).unwrap();
            flags.config = Some(file.path().to_owned());
        }
        Config::load(&flags, self.environment.iter().map(|(name, value)| (name.into(), value.into())))
    }
}

fn file(text: &str) -> Result<Config, Vec<ConfigError>> {
    Given { file: Some(text), ..Given::default() }.load()
}

fn environment(variables: &[(&str, &str)]) -> Result<Config, Vec<ConfigError>> {
    Given { environment: variables, ..Given::default() }.load()
}

fn set(settings: &[&str]) -> Result<Config, Vec<ConfigError>> {
    let flags = Flags { set: settings.iter().map(|s| (*s).to_owned()).collect(), ..Flags::default() };
    Given { flags, ..Given::default() }.load()
}

/// The one error of a load that must fail.
fn error(result: Result<Config, Vec<ConfigError>>) -> String {
    let errors = result.expect_err("it loads");
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].to_string()
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

#[test]
fn without_any_source_everything_has_its_default() {
    assert_eq!(Given::default().load().unwrap(), Config::default());
    assert_eq!(file("").unwrap(), Config::default());
}

#[test]
fn a_flag_wins_over_the_environment_which_wins_over_the_file() {
    let text = "[pool]\nmax_connections = 10\nlinger = \"3s\"\nidle_timeout = \"10s\"\n";
    let variables = [("REDBOUNCER_POOL__MAX_CONNECTIONS", "11"), ("REDBOUNCER_POOL__LINGER", "4s")];
    let flags = Flags { max_connections: Some("12".to_owned()), ..Flags::default() };
    let config = Given { file: Some(text), environment: &variables, flags }.load().unwrap();
    assert_eq!(config.pool.max_connections, 12);
    assert_eq!(config.pool.linger, Duration::from_secs(4));
    assert_eq!(config.pool.idle_timeout, Duration::from_secs(10));
    assert_eq!(config.pool.wait_timeout, Duration::from_secs(2));
}

#[test]
fn a_wrong_value_that_is_overridden_does_no_harm() {
    let text = "[pool]\nlinger = \"soon\"\n";
    let config =
        Given { file: Some(text), environment: &[("REDBOUNCER_POOL__LINGER", "4s")], ..Given::default() };
    assert_eq!(config.load().unwrap().pool.linger, Duration::from_secs(4));
}

#[test]
fn the_three_short_variables_set_what_their_flags_set() {
    let config = environment(&[
        ("REDBOUNCER_UPSTREAM", "redis://redis:7000"),
        ("REDBOUNCER_LISTEN", "0.0.0.0:6380,[::1]:6381"),
        ("REDBOUNCER_ADMIN", ""),
    ])
    .unwrap();
    assert_eq!((config.upstream.host.as_str(), config.upstream.port), ("redis", 7000));
    assert_eq!(config.listen.addresses, ["0.0.0.0:6380", "[::1]:6381"]);
    assert_eq!(config.admin.address, None);

    let flags = Flags {
        upstream: Some("redis://redis:7000".to_owned()),
        listen: vec!["0.0.0.0:6380".to_owned(), "[::1]:6381".to_owned()],
        admin: Some(String::new()),
        ..Flags::default()
    };
    assert_eq!(Given { flags, ..Given::default() }.load().unwrap(), config);
}

#[test]
fn every_source_can_set_every_shape_of_value() {
    let text = r#"
        [listen]
        addresses = ["127.0.0.1:0"]
        protected_mode = false
        [upstream]
        url = "rediss://h/2"
        on_loss = "error"
        command_timeout = "5s"
        tls.ca = "/ca.pem"
        [client]
        request_limit = 1048576
        idle_timeout = 0
        [auth]
        mode = "passthrough"
        [hygiene]
        name = "web-1"
    "#;
    let from_file = file(text).unwrap();
    let from_flags = set(&[
        "listen.addresses=127.0.0.1:0",
        "listen.protected_mode=false",
        "upstream.url=rediss://h/2",
        "upstream.on_loss=\"error\"",
        "upstream.command_timeout=5s",
        "upstream.tls.ca=/ca.pem",
        "client.request_limit=1MiB",
        "client.idle_timeout=0",
        "auth.mode=passthrough",
        "hygiene.name=web-1",
    ])
    .unwrap();
    let from_environment = environment(&[
        ("REDBOUNCER_LISTEN__ADDRESSES", "[\"127.0.0.1:0\"]"),
        ("REDBOUNCER_LISTEN__PROTECTED_MODE", "false"),
        ("REDBOUNCER_UPSTREAM__URL", "rediss://h/2"),
        ("REDBOUNCER_UPSTREAM__ON_LOSS", "error"),
        ("REDBOUNCER_UPSTREAM__COMMAND_TIMEOUT", "5000ms"),
        ("REDBOUNCER_UPSTREAM__TLS__CA", "/ca.pem"),
        ("REDBOUNCER_CLIENT__REQUEST_LIMIT", "1048576"),
        ("REDBOUNCER_CLIENT__IDLE_TIMEOUT", "0"),
        ("REDBOUNCER_AUTH__MODE", "passthrough"),
        ("REDBOUNCER_HYGIENE__NAME", "web-1"),
    ])
    .unwrap();
    assert_eq!(from_file, from_flags);
    assert_eq!(from_file, from_environment);
    assert_eq!(from_file.upstream.on_loss, OnLoss::Error);
    assert_eq!(from_file.upstream.command_timeout, Some(Duration::from_secs(5)));
    assert_eq!(from_file.auth.mode, AuthMode::Passthrough);
    assert_eq!(from_file.client.request_limit, 1 << 20);
    assert!(!from_file.listen.protected_mode);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
    let text = "[pool]\nlinger = \"1s\"\n\nmax_conections = 8\n";
    assert_says(&error(file(text)), &["\"pool.max_conections\"", ".toml:4", "\"pool.max_connections\""]);
    assert_says(&error(file("workers = 2")), &["\"workers\"", ".toml:1", "\"listen.workers\""]);
    assert_says(&error(set(&["pool.lingr=1s"])), &["\"pool.lingr\"", "flag --set", "\"pool.linger\""]);
    let variable = error(environment(&[("REDBOUNCER_POOL__LINGR", "1s")]));
    assert_says(&variable, &["REDBOUNCER_POOL__LINGR", "REDBOUNCER_POOL__LINGER"]);
    let variable = error(environment(&[("REDBOUNCER_UPSTREAN", "redis://:hunter2@h")]));
    assert_says(&variable, &["REDBOUNCER_UPSTREAN;", "is REDBOUNCER_UPSTREAM"]);
}

#[test]
fn a_section_for_a_feature_that_does_not_exist_is_refused() {
    for section in ["dashboard", "cleanup", "clients", "pool.tls"] {
        assert_says(&error(file(&format!("[{section}]\n"))), &[&format!("[{section}]"), ".toml:1"]);
    }
    assert!(file("[pool]\n[upstream.tls]\n").is_ok());
}

#[test]
fn variables_of_others_and_of_kubernetes_are_left_alone() {
    let config = environment(&[
        ("PATH", "/bin"),
        ("REDBOUNCER_SERVICE_HOST", "10.0.0.1"),
        ("REDBOUNCER_PORT", "tcp://10.0.0.1:6380"),
        ("REDBOUNCER_PORT_6380_TCP_ADDR", "10.0.0.1"),
    ]);
    assert_eq!(config.unwrap(), Config::default());
}

#[test]
fn a_wrong_value_is_named_with_its_place_and_what_would_be_right() {
    let text = "[upstream]\nconnect_timeout = 5\n";
    assert_says(
        &error(file(text)),
        &["\"upstream.connect_timeout\"", ".toml:2", "100ms to 1h", "5 without a unit"],
    );
    let wrong = error(environment(&[("REDBOUNCER_AUTH__ADMIN_COMMANDS", "deny")]));
    assert_says(&wrong, &["REDBOUNCER_AUTH__ADMIN_COMMANDS", "\"pass\" or \"refuse\"", "found \"deny\""]);
    let flags = Flags { workers: Some("many".to_owned()), ..Flags::default() };
    let wrong = error(Given { flags, ..Given::default() }.load());
    assert_says(&wrong, &["listen.workers", "flag --workers", "whole number, 1 to 64", "found \"many\""]);
    assert_says(&error(set(&["log.level=inof"])), &["log.level", "found \"inof\"", "info"]);
    assert_says(&error(set(&["hygiene.name=a:b"])), &["hygiene.name", "letters"]);
    assert_says(&error(set(&["listen.addresses=6380"])), &["host:port", "found \"6380\""]);
    assert_says(&error(set(&["upstream.keepalive_idle=1500ms"])), &["whole seconds"]);
    assert_says(&error(file("[pool.max_connections]\nx = 1")), &["pool.max_connections", "found a section"]);
    assert_says(&error(set(&["pool.max_connections"])), &["section.key=value"]);
}

#[test]
fn everything_that_is_wrong_is_reported_at_once() {
    let text = "[pool]\nlinger = 5\nsize = 3\n[log]\nformat = \"xml\"\n";
    let errors = Given { file: Some(text), environment: &[("REDBOUNCER_X", "1")], ..Given::default() }.load();
    assert_eq!(errors.unwrap_err().len(), 4);
}

#[test]
fn a_key_set_twice_in_one_place_is_refused() {
    let wrong = error(environment(&[
        ("REDBOUNCER_UPSTREAM", "redis://a"),
        ("REDBOUNCER_UPSTREAM__URL", "redis://b"),
    ]));
    assert_says(&wrong, &["upstream.url", "REDBOUNCER_UPSTREAM ", "REDBOUNCER_UPSTREAM__URL"]);
    let flags =
        Flags { workers: Some("2".to_owned()), set: vec!["listen.workers=3".to_owned()], ..Flags::default() };
    let wrong = error(Given { flags, ..Given::default() }.load());
    assert_says(&wrong, &["listen.workers", "--workers", "--set listen.workers"]);
}

#[test]
fn a_file_that_is_missing_or_not_toml_is_an_error() {
    let flags = Flags { config: Some("/nowhere/redbouncer.toml".into()), ..Flags::default() };
    let wrong = error(Given { flags, ..Given::default() }.load());
    assert_says(&wrong, &["/nowhere/redbouncer.toml", "No such file", "--config"]);
    let wrong = error(environment(&[("REDBOUNCER_CONFIG", "/nowhere/else.toml")]));
    assert_says(&wrong, &["/nowhere/else.toml", "REDBOUNCER_CONFIG"]);
    assert_says(&error(file("[pool]\nlinger = \n")), &[".toml:2", "TOML"]);
}

#[test]
fn the_file_named_by_the_flag_is_read_instead_of_the_variables() {
    let mut other = tempfile::NamedTempFile::new().unwrap();
    other.write_all(b"[listen]\nworkers = \"none\"").unwrap();
    let path = other.path().to_str().unwrap();
    let text = Some("[listen]\nbacklog = 7");
    let given = Given { file: text, environment: &[("REDBOUNCER_CONFIG", path)], ..Given::default() };
    assert_eq!(given.load().unwrap().listen.backlog, 7);
    assert!(environment(&[("REDBOUNCER_CONFIG", path)]).is_err());
}

#[test]
fn a_cap_too_small_for_the_floors_is_explained() {
    for cap in ["0", "1", "3"] {
        let wrong = error(set(&[&format!("pool.max_connections={cap}")]));
        assert_says(&wrong, &["pool.max_connections", "4 to", "control connection", "lane"]);
    }
    assert!(set(&["pool.max_connections=4"]).is_ok());
    let wrong = error(set(&["pool.max_connections=7", "listen.workers=2"]));
    assert_says(&wrong, &["pool.max_connections", "listen.workers", "2 workers need at least 8"]);
    assert!(set(&["pool.max_connections=8", "listen.workers=2"]).is_ok());
    assert_says(&error(set(&["listen.workers=3"])), &["at least 11", "limit is 8", "(default)"]);
}

#[test]
fn a_shared_total_has_room_for_the_minimum_and_the_headroom() {
    let wrong = error(set(&["fleet.total_connections=5"]));
    assert_says(&wrong, &["fleet.total_connections", "fleet.minimum", "at least", "(6)"]);
    assert!(set(&["fleet.total_connections=6"]).is_ok());
    assert!(set(&["fleet.total_connections=5", "fleet.headroom=1"]).is_ok());
    let wrong = error(set(&["fleet.total_connections=40", "fleet.minimum=9"]));
    assert_says(&wrong, &["fleet.minimum", "pool.max_connections"]);
    assert!(set(&["fleet.minimum=9"]).is_ok(), "nothing is shared");
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    assert_says(&error(set(&["upstream.backoff_min=3s"])), &["upstream.backoff_min", "upstream.backoff_max"]);
    assert_says(&error(set(&["blocking.retry_max=50ms"])), &["blocking.retry_min"]);
    assert_says(&error(set(&["client.output_hard_limit=64KiB"])), &["client.output_soft_limit"]);
    assert_says(&error(set(&["upstream.tls.insecure=true"])), &["rediss://"]);
    let cert_alone = ["upstream.url=rediss://h", "upstream.tls.cert=/c"];
    assert_says(&error(set(&cert_alone)), &["upstream.tls.cert", "upstream.tls.key", "set both"]);
    assert_says(&error(set(&["upstream.url=redis://hunter2@h"])), &["redis://:password@host"]);
}

#[test]
fn a_password_file_gives_the_password_without_its_line_break() {
    for (written, read) in
        [("s3cret\n", "s3cret"), ("s3cret\r\n", "s3cret"), (" s3cret ", " s3cret "), ("a\n\n", "a\n")]
    {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(written.as_bytes()).unwrap();
        let setting = format!("upstream.password_file={}", file.path().display());
        let config = set(&["upstream.url=redis://ada@h", &setting]).unwrap();
        assert_eq!(config.upstream.password.as_ref().map(Secret::expose), Some(read.as_bytes()));
        assert_eq!(config.upstream.username.as_deref(), Some("ada"));
    }
    let empty = tempfile::NamedTempFile::new().unwrap();
    assert_says(&error(set(&[&format!("upstream.password_file={}", empty.path().display())])), &["empty"]);
    let both = ["upstream.url=redis://:hunter2@h", "upstream.password_file=/dev/null"];
    assert_says(&error(set(&both)), &["upstream.password_file", "upstream.url"]);
}

/// No error, `Debug` or printed setting shows a password, wherever it was written.
#[test]
fn a_password_is_shown_nowhere() {
    const PASSWORD: &str = "hunter2";
    const URL: &str = "redis://ada:hunter2@h";
    let shown = |result: Result<Config, Vec<ConfigError>>| match result {
        Ok(config) => format!("{config:?} {config:#?} {:?}", config.settings().collect::<Vec<_>>()),
        Err(errors) => errors.iter().map(|e| format!("{e} {e:?} {e:#?}")).collect(),
    };
    let mut texts = vec![shown(set(&[&format!("upstream.url={URL}")]))];
    assert_says(&texts[0], &["redis://ada:***@h:6379"]);

    for key in Config::default().settings().map(|(path, _)| path) {
        texts.push(shown(set(&[&format!("{key}={URL}")])));
        texts.push(shown(set(&[&format!("{key}=[\"{URL}\"]")])));
        let variable = format!("REDBOUNCER_{}", key.replace('.', "__").to_uppercase());
        texts.push(shown(environment(&[(&variable, URL)])));
        texts.push(shown(file(&format!("{key} = \"{URL}\""))));
        texts.push(shown(file(&format!("{key} = {{ x = \"{URL}\" }}"))));
    }
    for wrong in ["?tls=1", "/x", ":port", "#", "/1/2", ":0"] {
        texts.push(shown(set(&[&format!("upstream.url={URL}{wrong}")])));
    }
    for setting in [URL, "redis://ada:hunter2@h?x=1", "upstream.urll=redis://ada:hunter2@h"] {
        texts.push(shown(set(&[setting])));
    }
    texts.push(shown(environment(&[("REDBOUNCER_URL", URL)])));
    texts.push(shown(set(&["upstream.password_file=hunter2"])));
    for text in texts {
        assert!(!text.contains(PASSWORD), "{text}");
    }
}

proptest! {
    /// TOML errors quote the line they complain about in their long form; ours never do.
    #[test]
    fn a_damaged_file_never_shows_its_password(cut in 0usize..46, sign in "[\"'\\\\=\\n\\[\\]{}#,. \u{0}é]") {
        let mut text = "[upstream]\nurl = \"redis://:hunter2@h:6379/0\"\nurl".to_owned();
        prop_assume!(text.is_char_boundary(cut));
        text.insert_str(cut, &sign);
        if let Err(errors) = file(&text) {
            for wrong in errors {
                let shown = format!("{wrong} {wrong:?}");
                prop_assert!(!shown.contains("hunt") && !shown.contains("ter2"), "{}", shown);
            }
        }
    }

    /// What a key shows, it also takes, and it means the same.
    #[test]
    fn every_shown_setting_can_be_set_again(max in 8usize..1000, linger in 0u64..100_000, limit in 65_536usize..1 << 30) {
        let mut config = Config::default();
        config.pool.max_connections = max;
        config.pool.linger = Duration::from_millis(linger);
        config.client.request_limit = limit;
        let settings: Vec<String> =
            config.settings().filter_map(|(path, value)| Some(format!("{path}={}", value?))).collect();
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        prop_assert_eq!(set(&settings).unwrap(), config);
    }
}

#[test]
fn a_user_timeout_that_would_cut_keepalive_short_is_an_error() {
    for (side, short, total) in [("upstream", "10s", "11s"), ("client", "10s", "11s")] {
        let said = error(set(&[&format!("{side}.user_timeout={short}")]));
        assert_says(&said, &[&format!("{side}.user_timeout"), &format!("{side}.keepalive_idle"), total]);
    }
    set(&["client.user_timeout=6s", "client.keepalive_idle=3s", "client.keepalive_interval=1s"]).unwrap();
}

/// A file with these permissions.
fn file_of(mode: u32, text: &str) -> tempfile::NamedTempFile {
    use std::os::unix::fs::PermissionsExt;
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    file
}

#[test]
fn a_password_on_the_command_line_is_exposed_and_one_in_the_environment_is_not() {
    let exposed =
        |given: Given<'_>| given.load().unwrap().exposed.iter().map(ToString::to_string).collect::<Vec<_>>();
    let by_flag = |upstream: &str| Given {
        flags: Flags { upstream: Some(upstream.to_owned()), ..Flags::default() },
        ..Given::default()
    };
    let told = exposed(by_flag("redis://:hunter2@h"));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("--upstream") && !told[0].contains("hunter2"), "{told:?}");
    for setting in ["upstream.url=redis://u:hunter2@h", "upstream.password=hunter2"] {
        let flags = Flags { set: vec![setting.to_owned()], ..Flags::default() };
        let told = exposed(Given { flags, ..Given::default() });
        assert!(told.len() == 1 && told[0].contains("--set upstream."), "{told:?}");
    }
    assert!(exposed(by_flag("redis://h")).is_empty());
    for variable in
        [("REDBOUNCER_UPSTREAM", "redis://:hunter2@h"), ("REDBOUNCER_UPSTREAM__PASSWORD", "hunter2")]
    {
        assert!(exposed(Given { environment: &[variable], ..Given::default() }).is_empty(), "{variable:?}");
    }
    let secret = file_of(0o600, "hunter2");
    let environment = [("REDBOUNCER_UPSTREAM__PASSWORD_FILE", secret.path().to_str().unwrap())];
    assert!(exposed(Given { environment: &environment, ..by_flag("redis://h") }).is_empty());
}

#[test]
fn files_with_secrets_that_others_may_read_are_exposed() {
    let hash = "#d0c04f4b1951e4aeaaec8223ed2039e542f3aae805a6fa7f6d794e5afff5d272";
    for (mode, told) in [(0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
        let users = file_of(mode, &format!("[app]\npassword = \"{hash}\"\n"));
        let secret = file_of(mode, "hunter2");
        let config = file_of(mode, "[upstream]\nurl = \"redis://:hunter2@h\"\n");
        let path = |file: &tempfile::NamedTempFile| file.path().to_str().unwrap().to_owned();
        let exposed = |settings: &[String], config: Option<&tempfile::NamedTempFile>| {
            let flags = Flags {
                set: settings.to_vec(),
                config: config.map(|file| file.path().to_owned()),
                ..Flags::default()
            };
            Given { flags, ..Given::default() }.load().unwrap().exposed
        };
        let users_file = ["auth.mode=static".to_owned(), format!("auth.users_file={}", path(&users))];
        let all = [
            (exposed(&users_file, None), "auth.users_file", &users),
            (
                exposed(&[format!("upstream.password_file={}", path(&secret))], None),
                "upstream.password_file",
                &secret,
            ),
            (exposed(&[], Some(&config)), "upstream.url", &config),
        ];
        for (found, key, file) in all {
            let expected = Exposure::File { key, path: file.path().to_owned() };
            assert_eq!(found, if told { vec![expected] } else { Vec::new() }, "{key} {mode:o}");
        }
    }
}
