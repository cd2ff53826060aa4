//! `upstream.url`: `redis://user:password@host:port/database`, or `rediss://` for TLS; with Sentinels
//! `redis-sentinel://user:password@host:port,host:port/service/database`, or `rediss-sentinel://`; for a cluster
//! `redis-cluster://user:password@host:port,host:port`, or `rediss-cluster://`.
//!
//! The URL holds a password, so no error repeats any of it. Providers hand out passwords with every kind of sign in
//! them; user and password are percent-decoded, and the error for a URL that was cut short by such a sign says so.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::Url;

use super::value::Wrong;
use crate::upstream::{HostPort, SENTINEL_PORT, Secret, SentinelService, UpstreamOptions};

/// The highest database number a Redis server can be configured to have (`databases` is an int).
const LAST_DATABASE: u32 = i32::MAX as u32;

const SCHEME: &str = "it must begin with redis://, redis-sentinel:// or redis-cluster:// (rediss://, rediss-sentinel:// or rediss-cluster:// for TLS)";
/// Characters that are percent-encoded in the name of a service.
const NON_ALPHANUMERIC_OF_A_NAME: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const SENTINELS: &str = "the form is redis-sentinel://user:password@host:port,host:port/service/database";
const NODES: &str = "the form is redis-cluster://user:password@host:port,host:port";
const ENCODE: &str =
    "if the password contains one of / ? # @ % it must be percent-encoded (%2F %3F %23 %40 %25)";

/// The parts of a URL of any scheme.
struct Parts {
    tls: bool,
    host: String,
    port: u16,
    service: Option<SentinelService>,
    nodes: Vec<HostPort>,
    username: String,
    password: Vec<u8>,
    database: u32,
}

/// Takes the URL apart into `options`; whatever it does not name goes back to its default.
pub(crate) fn apply(text: &str, options: &mut UpstreamOptions) -> Result<(), Wrong> {
    let text = text.trim();
    let Some((scheme, rest)) = text.split_once("://") else { return Err(SCHEME.to_owned()) };
    let parts = match scheme.to_ascii_lowercase().as_str() {
        "redis" => of_server(text, rest, false)?,
        "rediss" => of_server(text, rest, true)?,
        "redis-sentinel" | "redis+sentinel" => of_sentinels(rest, false)?,
        "rediss-sentinel" | "rediss+sentinel" => of_sentinels(rest, true)?,
        "redis-cluster" | "redis+cluster" => of_nodes(rest, false)?,
        "rediss-cluster" | "rediss+cluster" => of_nodes(rest, true)?,
        _ => return Err(SCHEME.to_owned()),
    };
    options.database = parts.database;
    options.tls = parts.tls;
    options.host = parts.host;
    options.port = parts.port;
    options.service = parts.service;
    options.nodes = parts.nodes;
    options.username = Some(parts.username).filter(|user| !user.is_empty());
    options.password = Some(parts.password).filter(|password| !password.is_empty()).map(Secret::new);
    Ok(())
}

/// A URL that names the server itself; `rest` is what follows its scheme.
fn of_server(text: &str, rest: &str, tls: bool) -> Result<Parts, Wrong> {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let hosts = authority.rsplit('@').next().unwrap_or_default();
    if hosts.contains(',') {
        return Err(
            "it names several hosts: for Sentinels write redis-sentinel://host,host/service, for a cluster \
                    redis-cluster://host,host; otherwise name the one server"
                .to_owned(),
        );
    }
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
    let (username, password) = login(url.username(), url.password().unwrap_or_default())?;
    let database = database(url.path())?;
    Ok(Parts {
        tls,
        host: host.to_owned(),
        port,
        service: None,
        nodes: Vec::new(),
        username,
        password,
        database,
    })
}

/// A URL that names Sentinels. The `url` crate refuses several hosts, so it is taken apart here.
fn of_sentinels(rest: &str, tls: bool) -> Result<Parts, Wrong> {
    let Several { username, password, hosts, path } = several(rest)?;
    let sentinels = listed(hosts, SENTINEL_PORT)
        .ok_or_else(|| format!("one of its Sentinels is not written host:port; {SENTINELS}; {ENCODE}"))?;
    if sentinels.is_empty() {
        return Err(format!("it names no Sentinel; {SENTINELS}"));
    }
    let (name, number) = path.split_once('/').unwrap_or((path, ""));
    let name = percent_decode_str(name).decode_utf8().unwrap_or_default().into_owned();
    if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!(
            "it names no service, which is what the Sentinels call the master (sentinel monitor); {SENTINELS}"
        ));
    }
    let database = database(number)?;
    let service = Some(SentinelService { sentinels, name });
    Ok(Parts {
        tls,
        host: String::new(),
        port: 6379,
        service,
        nodes: Vec::new(),
        username,
        password,
        database,
    })
}

/// A URL that names nodes of a cluster. A cluster has one database.
fn of_nodes(rest: &str, tls: bool) -> Result<Parts, Wrong> {
    let Several { username, password, hosts, path } = several(rest)?;
    let nodes = listed(hosts, 6379)
        .ok_or_else(|| format!("one of its nodes is not written host:port; {NODES}; {ENCODE}"))?;
    if nodes.is_empty() {
        return Err(format!("it names no node; {NODES}; {ENCODE}"));
    }
    if !path.is_empty() {
        return Err(format!("a cluster has one database: nothing may follow the nodes; {NODES}; {ENCODE}"));
    }
    Ok(Parts { tls, host: String::new(), port: 6379, service: None, nodes, username, password, database: 0 })
}

/// A URL with several hosts, taken apart.
struct Several<'a> {
    username: String,
    password: Vec<u8>,
    hosts: &'a str,
    path: &'a str,
}

fn several(rest: &str) -> Result<Several<'_>, Wrong> {
    if rest.contains(['?', '#']) {
        return Err(format!("it has a part after ? or #: options belong to their own keys, and {ENCODE}"));
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user_info, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, word) = user_info.split_once(':').unwrap_or((user_info, ""));
    let (username, password) = login(user, word)?;
    Ok(Several { username, password, hosts, path })
}

/// Hosts with or without a port, none twice. `None`: one is written otherwise.
fn listed(hosts: &str, port: u16) -> Option<Vec<HostPort>> {
    let mut found: Vec<HostPort> = Vec::new();
    for text in hosts.split(',').filter(|text| !text.is_empty()) {
        let host = HostPort::parse(text, Some(port))?;
        if !found.contains(&host) {
            found.push(host);
        }
    }
    Some(found)
}

/// User and password, percent-decoded.
fn login(user: &str, password: &str) -> Result<(String, Vec<u8>), Wrong> {
    let user = percent_decode_str(user)
        .decode_utf8()
        .map_err(|_| "its user name is not UTF-8 after percent-decoding".to_owned())?;
    Ok((user.into_owned(), percent_decode_str(password).collect()))
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
    let joined = |hosts: &[HostPort]| {
        let hosts: Vec<_> = hosts.iter().map(ToString::to_string).collect();
        hosts.join(",")
    };
    match &options.service {
        None if options.is_cluster() => format!("{scheme}-cluster://{login}{}", joined(&options.nodes)),
        None => format!("{scheme}://{login}{host}:{}{database}", options.port),
        Some(SentinelService { sentinels, name }) => {
            let name = utf8_percent_encode(name, NON_ALPHANUMERIC_OF_A_NAME);
            format!("{scheme}-sentinel://{login}{}/{name}{database}", joined(sentinels))
        }
    }
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
    fn sentinels_are_a_list_with_a_service_behind_it() {
        let options = parse("rediss+sentinel://ada:s%2Fq@s1,s2:26380,[::1]/main/3").unwrap();
        let service = options.service.clone().unwrap();
        let shown: Vec<_> = service.sentinels.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["s1:26379", "s2:26380", "[::1]:26379"]);
        assert_eq!((service.name.as_str(), options.database, options.tls), ("main", 3, true));
        assert_eq!((options.host.as_str(), options.username.as_deref()), ("", Some("ada")));
        assert_eq!(password(&options), Some(&b"s/q"[..]));
        assert!(options.is_unlocated());
        assert_eq!(show(&options), "rediss-sentinel://ada:***@s1:26379,s2:26380,[::1]:26379/main/3");
        assert_eq!(
            show(&parse("redis-sentinel://s1,s1/my%2Fone").unwrap()),
            "redis-sentinel://s1:26379/my%2Fone"
        );
        // Another URL takes nothing over.
        let mut again = options;
        apply("redis://h", &mut again).unwrap();
        assert_eq!(again, parse("redis://h").unwrap());
    }

    #[test]
    fn nodes_of_a_cluster_are_a_list() {
        let options = parse("rediss-cluster://ada:s%2Fq@n1,n2:7000,[::1]").unwrap();
        let shown: Vec<_> = options.nodes.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["n1:6379", "n2:7000", "[::1]:6379"]);
        assert!(options.tls && options.is_cluster() && options.is_unlocated());
        assert_eq!((options.username.as_deref(), password(&options)), (Some("ada"), Some(&b"s/q"[..])));
        assert_eq!(show(&options), "rediss-cluster://ada:***@n1:6379,n2:7000,[::1]:6379");
        assert_eq!(show(&parse("redis+cluster://n1,n1/").unwrap()), "redis-cluster://n1:6379");
        let mut again = options;
        apply("redis://h", &mut again).unwrap();
        assert_eq!(again, parse("redis://h").unwrap());
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(parse("redis-cluster://").unwrap_err().contains("names no node"));
        assert!(parse("redis-cluster://n1/0").unwrap_err().contains("one database"));
        assert!(parse("redis-sentinel://s1,s2").unwrap_err().contains("names no service"));
        assert!(parse("redis-sentinel:///main").unwrap_err().contains("names no Sentinel"));
        assert!(parse("redis://a,b").unwrap_err().contains("several hosts"));
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
            "redis://:hunter2@a,b",
            "redis://:hunter2@a:1,b:2/0",
            "redis-sentinel://:hunter2@a,b",
            "redis-sentinel://:hunter2@a,b/",
            "redis-sentinel://:hunter2@/main",
            "redis-sentinel://:hunter2@a:0/main",
            "redis-sentinel://:hunter2@a:b/main",
            "redis-sentinel://:hunter2@a/main/x",
            "redis-sentinel://:hunter2@a/main/0/1",
            "redis-sentinel://:hunter2@a/ma%20in",
            "redis-sentinel://:hunter2@a/main?db=1",
            "redis-sentinel://:hunt/er2@a/main",
            "redis-cluster://:hunter2@",
            "redis-cluster://:hunter2@a/1",
            "redis-cluster://:hunter2@a:b",
            "redis-cluster://:hunt/er2@a",
            "redis-cluster://:hunter2@a?db=1",
        ] {
            let wrong = parse(bad).unwrap_err();
            assert!(!wrong.contains("hunt") && !wrong.contains("er2"), "{bad}: {wrong}");
        }
    }
}
