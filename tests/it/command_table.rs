//! The command table against a running server's `COMMAND`.
//!
//! The table decides what may share a connection, so a command that a server knows and the table does not, or that
//! the two describe differently, must be noticed here and not by a user. Every exception is named with its reason.

use std::collections::BTreeSet;

use redbouncer::command::{Class, Keys, READS, Row, classify, find, key_positions, rows};
use redbouncer::resp::Request;

use crate::harness::{Client, Server, Stage, Value, Version, encode};

/// Commands of servers without a row, and why.
const WITHOUT_ROW: &[(&str, &str)] =
    &[("host:", "Redis 6.2: closes here as there"), ("post", "Redis 6.2: closes here as there")];

/// Rows whose arity is wider than Redis 7.0's, because later versions take more words.
const WIDER: &[(&str, &str)] = &[
    ("cluster|replicate", "NO ONE, Valkey 9"),
    ("command|getkeys", "a command of one word, since 7.2"),
    ("command|getkeysandflags", "a command of one word, since 7.2"),
    ("pfdebug", "Redis 6.2"),
    ("script|debug", "the name of an engine, Valkey 9"),
    ("zrank", "WITHSCORE, since 7.2"),
    ("zrevrank", "WITHSCORE, since 7.2"),
];

/// Commands that the server calls `admin` and that are not subject to policy.
const ADMIN_WITHOUT_POLICY: &[(&str, &str)] = &[
    ("client|list", "answered by us; asks, changes nothing"),
    ("client|no-evict", "about the own connection, acknowledged by us"),
    ("psync", "refused anyway"),
    ("replconf", "refused anyway"),
    ("sync", "refused anyway"),
];

/// Commands subject to policy that the server does not call `admin`.
const POLICY_WITHOUT_ADMIN: &[(&str, &str)] = &[
    ("flushall", "empties databases that the session has not selected"),
    ("function|kill", "kills the function of whoever runs one"),
    ("migrate", "has the server connect elsewhere"),
    ("script|kill", "kills the script of whoever runs one"),
    ("swapdb", "swaps data under the clients of two databases"),
];

/// Commands that the server calls `blocking` and that are not routed as blocking calls. Redis 7.0 has none.
const BLOCKING_ELSEWHERE: &[(&str, &str)] = &[("blmovem", "a lease: its options are not taken apart")];

/// What a server says about one command.
struct Known {
    name: String,
    arity: i64,
    flags: BTreeSet<String>,
    keys: (i64, i64, i64),
    container: bool,
}

impl Known {
    fn has(&self, flag: &str) -> bool {
        self.flags.contains(flag)
    }

    fn row(&self) -> &'static Row {
        find(&self.name).unwrap_or_else(|| panic!("no row for {}", self.name))
    }
}

/// Every command and subcommand of the server.
fn known(server: &Server) -> Vec<Known> {
    let mut found = Vec::new();
    for command in server.call("COMMAND").items() {
        collect(command, &mut found);
    }
    assert!(found.len() > 200, "only {} commands", found.len());
    found
}

fn collect(command: &Value, found: &mut Vec<Known>) {
    let parts = command.items();
    let number = |at: usize| match parts[at] {
        Value::Int(number) => number,
        _ => panic!("no number in {command:?}"),
    };
    // Subcommands are told since Redis 7.0.
    let inner = parts.get(9).map_or(&[][..], Value::items);
    found.push(Known {
        name: parts[0].text(),
        arity: number(1),
        flags: parts[2].items().iter().map(Value::text).collect(),
        keys: (number(3), number(4), number(5)),
        container: !inner.is_empty(),
    });
    for subcommand in inner {
        collect(subcommand, found);
    }
}

fn is_in(list: &[(&str, &str)], name: &str) -> bool {
    list.iter().any(|(listed, _)| *listed == name)
}

/// The keys of a request as our table finds them.
fn our_keys(words: &[&str]) -> Vec<String> {
    let bytes = encode(words);
    let request = Request::parse(&bytes).unwrap();
    let row = classify(&request).row.unwrap_or_else(|| panic!("no row for {words:?}"));
    key_positions(row, &request).into_iter().map(|at| words[at].to_owned()).collect()
}

#[test]
fn every_command_of_the_server_has_a_row() {
    let server = Server::start();
    let known = known(&server);
    for command in &known {
        assert_ne!(find(&command.name).is_some(), is_in(WITHOUT_ROW, &command.name), "{}", command.name);
    }
}

#[test]
fn a_request_for_any_command_of_the_server_finds_its_own_row() {
    let server = Server::start();
    for command in known(&server) {
        let words: Vec<&str> = command.name.split('|').collect();
        let bytes = encode(&words);
        let asked = classify(&Request::parse(&bytes).unwrap());
        assert_eq!(asked.row.map(|row| row.name), Some(command.name.as_str()));
    }
}

#[test]
fn arity_agrees_with_the_server() {
    let server = Server::start();
    for command in known(&server) {
        let ours = i64::from(command.row().arity);
        if is_in(WIDER, &command.name) {
            assert!(ours < 0 && -ours <= command.arity.abs(), "{}", command.name);
        } else {
            assert_eq!(ours, command.arity, "{}", command.name);
        }
    }
}

/// The table is one for all: older servers know less, newer ones (and Valkey) have commands and words of their own.
#[test]
fn every_server_at_hand_agrees_with_the_table() {
    let mut wrong = Vec::new();
    for version in Version::all() {
        let server = Server::start_version(&version, &[]);
        for command in known(&server) {
            let mut differs =
                |what: String| wrong.push(format!("{}: {}: {what}", version.name, command.name));
            let Some(row) = find(&command.name) else {
                if is_in(WITHOUT_ROW, &command.name) {
                    continue;
                }
                differs("has no row".to_owned());
                continue;
            };
            // Ours is the widest of all versions: what the server accepts is never refused here.
            let accepts = |argc: i64| row.accepts(usize::try_from(argc).unwrap());
            if !accepts(command.arity.abs()) || command.arity < 0 && row.arity > 0 {
                differs(format!("arity {} there, {} here", command.arity, row.arity));
            }
            let ours = match row.keys {
                Keys::None => Some((0, 0, 0)),
                Keys::Range { first, last, step } => Some((first.into(), last.into(), step.into())),
                // The server may have a range for what stands first, and more behind it.
                Keys::Special => None,
            };
            // Before 7.0 a container tells the keys of its subcommands.
            let is_told = !command.has("movablekeys") && !container_of_old(&version, &command.name);
            if is_told && ours.is_some_and(|ours| ours != command.keys) {
                differs(format!("keys {:?} there, {:?} here", command.keys, row.keys));
            }
            let holds = matches!(row.class, Class::Blocking(_) | Class::Wait | Class::Lease);
            if command.has("blocking") && !holds {
                differs(format!("blocks there and is {:?} here", row.class));
            }
            let passes = matches!(row.class, Class::Pass | Class::Publish | Class::PubSub);
            if command.has("pubsub") && command.has("noscript") && passes {
                differs(format!("subscribes there and is {:?} here", row.class));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A script may call what the server does not call `noscript`. Which commands subject to policy these are cannot be told from
/// a script's text, so the page says it.
#[test]
fn what_scripts_reach_past_the_policy_is_documented() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/guides/users.md")).unwrap();
    let (_, section) = page.split_once("## Commands that scripts can call").expect("the section");
    let (_, list) = section.split_once("\n\nWith ").expect("the list");
    let list = list.split("\n\n").next().unwrap();
    let documented: BTreeSet<&str> = list.split('`').skip(1).step_by(2).collect();
    let mut reached = BTreeSet::new();
    for version in Version::all() {
        let server = Server::start_version(&version, &[]);
        for command in known(&server) {
            let is_policy = find(&command.name).is_some_and(|row| row.policy);
            if is_policy && !command.container && !command.has("noscript") {
                reached.insert(command.name.split('|').next().unwrap().to_ascii_uppercase());
            }
        }
    }
    for name in &reached {
        assert!(documented.contains(name.as_str()), "{name}: {reached:?}");
    }
    assert!(documented.contains("EVAL") && documented.contains("SLOWLOG"), "{documented:?}");
    // It is so.
    let stage = Stage::proxied_with(&["auth.admin_commands=refuse"]);
    let mut client = stage.connect();
    assert!(client.call("FLUSHALL").error().contains("refused by auth.admin_commands"));
    assert_eq!(client.call("EVAL return(redis.call('flushall')) 0").text(), "OK");
    assert!(client.call("EVAL return(redis.call('config','get','x')) 0").is_error());
}

/// Whether a server without rows for subcommands speaks of them all in one.
fn container_of_old(version: &Version, name: &str) -> bool {
    version.name.contains("-6.") && rows().iter().any(|row| row.name.starts_with(&format!("{name}|")))
}

#[test]
fn what_only_reads_is_what_servers_call_a_read() {
    /// Commands that neither read keys nor write.
    const WITHOUT_KEYS: [&str; 6] = ["echo", "info", "lastsave", "ping", "role", "time"];
    /// Reads that may be held all the same.
    const HELD: [&str; 8] =
        ["eval_ro", "evalsha_ro", "fcall_ro", "lolwut", "memory", "object", "pfcount", "xinfo"];
    assert!(READS.is_sorted());
    for version in Version::all() {
        for command in known(&Server::start_version(&version, &[])) {
            let name = &*command.name.to_ascii_lowercase();
            let listed = READS.contains(&name);
            if is_in(WITHOUT_ROW, name) || HELD.contains(&name) {
                continue;
            }
            let reads = command.has("readonly") || WITHOUT_KEYS.contains(&name);
            assert_eq!(listed, reads, "{}: {name}", version.name);
            assert!(!listed || !command.has("write") && !command.has("may_replicate"), "{name}");
        }
    }
}

#[test]
fn key_positions_agree_with_the_server() {
    let server = Server::start();
    for command in known(&server) {
        let row = command.row();
        if command.has("movablekeys") {
            assert_eq!(row.keys, Keys::Special, "{}", command.name);
            continue;
        }
        let ours = match row.keys {
            Keys::None => (0, 0, 0),
            Keys::Range { first, last, step } => (first.into(), last.into(), step.into()),
            Keys::Special => panic!("the server says where the keys of {} are", command.name),
        };
        assert_eq!(ours, command.keys, "{}", command.name);
    }
}

#[test]
fn keys_of_requests_agree_with_command_getkeys() {
    let server = Server::start();
    let mut client = server.probe();
    let lines = [
        "GET a",
        "MSET a 1 b 2",
        "BITOP AND d a b",
        "BLPOP a b 0",
        "BLMOVE a b LEFT RIGHT 0",
        "XINFO STREAM s",
        "OBJECT ENCODING a",
        "EVAL return 2 a b c",
        "EVALSHA_RO abc 1 a",
        "FCALL f 1 a b",
        "BLMPOP 0 2 a b LEFT COUNT 2",
        "LMPOP 2 a b RIGHT",
        "BZMPOP 0 1 a MIN",
        "ZMPOP 1 a MAX COUNT 9",
        "SINTERCARD 2 a b LIMIT 1",
        "ZUNION 2 a b WITHSCORES",
        "ZDIFF 1 a",
        "ZINTERCARD 2 a b",
        "ZUNIONSTORE d 2 a b WEIGHTS 1 2",
        "ZDIFFSTORE d 1 a",
        "XREAD COUNT 2 BLOCK 0 STREAMS a b 0 0",
        "XREADGROUP GROUP g c NOACK STREAMS a >",
        "SORT a",
        "SORT a BY w_* STORE d",
        "SORT_RO a GET x",
        "GEORADIUS g 1 1 1 km STOREDIST d",
        "GEORADIUSBYMEMBER g m 1 km STORE d",
        "MIGRATE h 1 a 0 10",
    ];
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let question: Vec<&str> = ["COMMAND", "GETKEYS"].into_iter().chain(words.iter().copied()).collect();
        let reply = client.ask(&question);
        let theirs: Vec<String> = reply.items().iter().map(Value::text).collect();
        assert_eq!(our_keys(&words), theirs, "{line}");
    }
    let many = ["MIGRATE", "h", "1", "", "0", "10", "KEYS", "a", "b"];
    let question: Vec<&str> = ["COMMAND", "GETKEYS"].into_iter().chain(many).collect();
    let theirs: Vec<String> = client.ask(&question).items().iter().map(Value::text).collect();
    assert_eq!(our_keys(&many), theirs);
}

#[test]
fn what_blocks_on_the_server_is_not_sent_over_a_lane() {
    let server = Server::start();
    for command in known(&server).iter().filter(|command| command.has("blocking")) {
        match command.row().class {
            Class::Blocking(_) | Class::Wait => assert!(!is_in(BLOCKING_ELSEWHERE, &command.name)),
            other => {
                assert!(is_in(BLOCKING_ELSEWHERE, &command.name), "{} is {other:?}", command.name);
                assert_eq!(other, Class::Lease);
            }
        }
    }
    // And the other way round: what we take for blocking is marked so, WAIT excepted (marked since 7.2).
    let marked: BTreeSet<String> = known(&server)
        .into_iter()
        .filter(|command| command.has("blocking"))
        .map(|command| command.name)
        .collect();
    for row in rows() {
        assert!(!matches!(row.class, Class::Blocking(_)) || marked.contains(row.name), "{}", row.name);
    }
}

#[test]
fn what_subscribes_on_the_server_is_not_sent_over_a_lane() {
    let server = Server::start();
    let mut subscribing = 0;
    for command in known(&server).iter().filter(|command| command.has("pubsub")) {
        // PUBLISH and the PUBSUB subcommands have the flag too; scripts may run those.
        let subscribes = command.has("noscript");
        let class = command.row().class;
        let listens = matches!(
            class,
            Class::Subscribe
                | Class::Unsubscribe
                | Class::PSubscribe
                | Class::PUnsubscribe
                | Class::SSubscribe
                | Class::SUnsubscribe
        );
        assert_eq!(listens, subscribes, "{} is {class:?}", command.name);
        if !subscribes {
            assert!(
                matches!(class, Class::Publish | Class::PubSub | Class::Pass),
                "{} is {class:?}",
                command.name
            );
        }
        subscribing += usize::from(subscribes);
    }
    assert_eq!(subscribing, 6);
}

#[test]
fn policy_follows_the_server_s_admin_flag_but_for_named_exceptions() {
    let server = Server::start();
    for command in known(&server).iter().filter(|command| !command.container) {
        let name = &command.name;
        let policy = command.row().policy;
        if command.has("admin") {
            assert_ne!(policy, is_in(ADMIN_WITHOUT_POLICY, name), "{name}");
        } else {
            assert_eq!(policy, is_in(POLICY_WITHOUT_ADMIN, name), "{name}");
        }
    }
}

#[test]
fn what_the_server_keeps_out_of_transactions_is_kept_off_lanes_too() {
    let server = Server::start();
    for command in known(&server).iter().filter(|command| command.has("no_multi")) {
        let class = command.row().class;
        let plain = matches!(class, Class::Pass);
        // SAVE answers -ERR inside MULTI, which changes nothing on the connection.
        assert!(!plain || command.name == "save", "{} is {class:?}", command.name);
    }
}

#[test]
fn subcommands_of_the_server_stand_under_their_container() {
    let server = Server::start();
    for command in known(&server).iter().filter(|command| command.container) {
        let class = command.row().class;
        let unlisted = [command.name.as_str(), "no-such-subcommand"];
        let bytes = encode(&unlisted);
        let asked = classify(&Request::parse(&bytes).unwrap());
        assert_eq!(asked.row.map(|row| row.name), Some(command.name.as_str()));
        // Never a lane without a question: COMMAND only describes commands, whatever its subcommand.
        let expected = matches!(class, Class::Unknown | Class::ClientUnknown | Class::Lease)
            || command.name == "command";
        assert!(expected, "{} is {class:?}", command.name);
        assert_eq!(asked.class, class);
    }
}

#[test]
fn an_unlisted_subcommand_is_an_error_of_the_server_too() {
    let server = Server::start();
    let mut client: Client = server.probe();
    for command in known(&server).iter().filter(|command| command.container) {
        let reply = client.ask(&[command.name.as_str(), "no-such-subcommand"]);
        assert!(reply.error().contains("unknown subcommand"), "{}: {reply:?}", command.name);
        let alone = client.ask(&[command.name.as_str()]);
        assert!(alone.is_error() || command.name == "command", "{}: {alone:?}", command.name);
    }
}
