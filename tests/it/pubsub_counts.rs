//! What is counted and listed of subscribers: as if every client were connected to the server itself.

use crate::harness::{Client, PATIENCE, Relay, Reply, Server, Stage, Value, Version, encode, until};

/// A subscriber that has had all its confirmations.
fn listens(stage: &Stage, commands: &[&str]) -> Client {
    let mut client = stage.connect();
    confirmed(&mut client, commands);
    client
}

fn confirmed(client: &mut Client, commands: &[&str]) {
    for command in commands {
        client.start(command);
        for _ in 1..command.split(' ').count() {
            assert!(client.reply().items()[0].text().contains("subscribe"));
        }
    }
}

/// A reply's text, with the order of an array of names taken out.
fn shown(reply: &Reply) -> String {
    match &reply.value {
        Value::List(items) if items.iter().all(|item| matches!(item, Value::Bulk(_))) => {
            let mut names: Vec<_> = items.iter().map(Value::text).collect();
            names.sort();
            format!("{names:?}")
        }
        value => format!("{value:?}"),
    }
}

const QUESTIONS: [&str; 14] = [
    "PUBLISH news x",
    "PUBLISH weather x",
    "PUBLISH nobody x",
    "PUBSUB NUMSUB news weather sport nobody",
    "PUBSUB NUMSUB",
    "PUBSUB CHANNELS",
    "PUBSUB CHANNELS n*",
    "PUBSUB CHANNELS [sw]*",
    "PUBSUB NUMPAT",
    "PUBSUB NUMPAT x",
    "PUBSUB SHARDNUMSUB news shard",
    "PUBSUB SHARDCHANNELS",
    "PUBSUB SHARDCHANNELS s*",
    "SPUBLISH shard x",
];

/// Asks all questions in every situation that a client can be in.
fn answers(stage: &Stage, questions: &[&'static str]) -> Vec<String> {
    let mut all = Vec::new();
    let situations: [&[&str]; 4] = [&[], &["WATCH k"], &["HELLO 3"], &["HELLO 3", "CLIENT TRACKING ON"]];
    for before in situations {
        let mut client = stage.connect();
        before.iter().for_each(|command| drop(client.call(command)));
        for question in questions {
            all.push(format!("{before:?} {question}: {}", shown(&client.call(question))));
        }
        // Inside MULTI, command by command and in one write, among other members.
        let members: Vec<&str> =
            questions.iter().copied().filter(|question| !question.ends_with("NUMPAT x")).collect();
        client.call("MULTI");
        for (at, question) in members.iter().enumerate() {
            client.call(&format!("SET k{at} v"));
            client.call(question);
        }
        let one_by_one = client.call("EXEC");
        let mut block = encode(&["MULTI"]);
        for (at, question) in members.iter().enumerate() {
            block.extend(encode(&["SET", &format!("k{at}"), "v"]));
            block.extend(encode(&question.split(' ').collect::<Vec<_>>()));
        }
        block.extend(encode(&["EXEC"]));
        block.extend(encode(&["PING"]));
        client.send(&block);
        for _ in 0..=2 * members.len() {
            client.reply();
        }
        let in_one_write = client.reply();
        for (way, reply) in [("one by one", one_by_one), ("in one write", in_one_write)] {
            for (value, at) in reply.items().iter().zip(0..) {
                let asked = members.get(at / 2).copied().filter(|_| at % 2 == 1).unwrap_or("SET");
                let value = Reply { raw: bytes::Bytes::new(), value: value.clone() };
                all.push(format!("{before:?} {way} {asked}: {}", shown(&value)));
            }
        }
        assert_eq!(client.reply().text(), "PONG");
    }
    all
}

#[test]
fn every_count_and_list_of_subscribers_is_that_of_a_direct_connection() {
    for version in Version::all() {
        let start = || Server::start_version(&version, &[]);
        let direct = Stage::before_none(start());
        let ways: [&[&str]; 3] =
            [&[], &["listen.workers=2"], &["pubsub.hub=false", "pool.max_connections=24"]];
        let proxied = ways.map(|settings| Stage::before(start(), settings));
        let is_old = !version.has_hub();
        let asked = QUESTIONS.into_iter().filter(|question| !is_old || *question != "SPUBLISH shard x");
        let questions: Vec<&str> = asked.collect();
        let play = |stage: &Stage| {
            let subscribers: [&[&str]; 6] = [
                &["SUBSCRIBE news weather"],
                &["SUBSCRIBE news", "PSUBSCRIBE n* w*"],
                &["SUBSCRIBE news", "PSUBSCRIBE n*"],
                &["PSUBSCRIBE [mn]ews"],
                &["SUBSCRIBE weather"],
                &["SUBSCRIBE sport"],
            ];
            let mut listening: Vec<Client> =
                subscribers.iter().map(|commands| listens(stage, commands)).collect();
            if !is_old {
                listening.push(listens(stage, &["SSUBSCRIBE shard news"]));
                listening.push(listens(stage, &["SSUBSCRIBE shard"]));
            }
            // One that is not ours, and shares a name with nobody or with some.
            let mut foreign = Client::connect(stage.server.address());
            confirmed(&mut foreign, &["SUBSCRIBE news foreign", "PSUBSCRIBE n* f*"]);
            let answers = answers(stage, &questions);
            drop((listening, foreign));
            answers
        };
        let expected = play(&direct);
        assert!(expected.iter().any(|line| line.contains("\"foreign\"")), "{expected:#?}");
        for (stage, settings) in proxied.iter().zip(ways) {
            for (got, wanted) in play(stage).iter().zip(&expected) {
                assert_eq!(got, wanted, "{} {settings:?}", version.name);
            }
        }
    }
}

#[test]
fn a_name_is_listed_and_counted_no_longer_than_somebody_listens() {
    let server = Server::start();
    let relay = Relay::to(server.address());
    let proxy = crate::harness::Proxy::launch(&format!("redis://{}", relay.address()), &[]).unwrap();
    // Our own UNSUBSCRIBE is on its way when the question is asked.
    relay.delay(std::time::Duration::from_millis(10));
    let mut asking = proxy.connect();
    let mut steady = proxy.connect();
    confirmed(&mut steady, &["SUBSCRIBE steady", "PSUBSCRIBE s*"]);
    let mut foreign = Client::connect(server.address());
    confirmed(&mut foreign, &["SUBSCRIBE shared"]);
    for _ in 0..20 {
        let mut client = proxy.connect();
        confirmed(&mut client, &["SUBSCRIBE own shared", "PSUBSCRIBE o*"]);
        assert_eq!(shown(&asking.call("PUBSUB CHANNELS")), r#"["own", "shared", "steady"]"#);
        assert_eq!(asking.call("PUBSUB NUMPAT").int(), 2);
        confirmed(&mut client, &["UNSUBSCRIBE own shared", "PUNSUBSCRIBE o*"]);
        assert_eq!(shown(&asking.call("PUBSUB CHANNELS")), r#"["shared", "steady"]"#);
        assert_eq!(asking.call("PUBSUB NUMPAT").int(), 1);
        let counts = asking.call("PUBSUB NUMSUB own shared");
        assert_eq!((&counts.items()[1], &counts.items()[3]), (&Value::Int(0), &Value::Int(1)));
    }
    drop((steady, foreign));
    until("all have gone", PATIENCE, || shown(&asking.call("PUBSUB CHANNELS")) == "[]");
    assert_eq!(asking.call("PUBSUB NUMPAT").int(), 0);
}

#[test]
fn a_lost_hub_counts_those_who_stay_in_silence() {
    let stage = Stage::proxied_with(&["pubsub.resubscribe=silent"]);
    let _listening = listens(&stage, &["SUBSCRIBE news", "PSUBSCRIBE n*"]);
    let mut asking = stage.connect();
    for _ in 0..5 {
        stage.server.call("CLIENT KILL TYPE pubsub");
        assert_eq!(shown(&asking.call("PUBSUB CHANNELS n*")), r#"["news"]"#);
        assert_eq!(shown(&asking.call("PUBSUB CHANNELS x*")), "[]");
        assert_eq!(asking.call("PUBSUB NUMPAT").int(), 1);
        assert_eq!(asking.call("PUBSUB NUMSUB news").items()[1], Value::Int(1));
    }
}

#[test]
fn patterns_match_channels_as_they_do_on_every_server() {
    let mut patterns: Vec<String> = Vec::new();
    let parts = [
        "*", "?", "a", "b", "[ab]", "[^a]", "[a-c]", "[c-a]", "\\a", "\\", "[", "]", "[]", "[^", "-",
        "[a\\]b]",
    ];
    for first in parts {
        patterns.push(first.to_owned());
        for second in parts {
            patterns.push(format!("{first}{second}"));
            for third in ["*", "?", "a", "]", "\\"] {
                patterns.push(format!("{first}{second}{third}"));
            }
        }
    }
    patterns.push(String::new());
    patterns.sort();
    patterns.dedup();
    let channels =
        ["", "a", "b", "ab", "ba", "aab", "abc", "*", "?", "[", "]", "\\", "-", "a]", "[a", "a\\", "d"];
    for version in Version::all() {
        let server = Server::start_version(&version, &[]);
        let mut listening = Client::connect(server.address());
        let mut words = vec!["PSUBSCRIBE".to_owned()];
        words.extend(patterns.iter().cloned());
        listening.send(encode(&words));
        patterns.iter().for_each(|_| drop(listening.reply()));
        let mut publisher = Client::connect(server.address());
        for channel in channels {
            let heard = publisher.ask(&["PUBLISH", channel, "x"]).int();
            let mut by_server: Vec<String> =
                (0..heard).map(|_| listening.reply().items()[1].text()).collect();
            by_server.sort();
            let ours: Vec<String> = patterns
                .iter()
                .filter(|pattern| redbouncer::command::glob::matches(pattern.as_bytes(), channel.as_bytes()))
                .cloned()
                .collect();
            assert_eq!(ours, by_server, "{} {channel:?}", version.name);
        }
    }
}

#[test]
fn a_subscriber_of_every_pattern_does_not_count_for_the_channel_without_a_name() {
    for stage in [Stage::direct(), Stage::proxied()] {
        let _all = [(); 3].map(|()| listens(&stage, &["PSUBSCRIBE *"]));
        let mut none = stage.connect();
        none.send(encode(&["PSUBSCRIBE", ""]));
        none.reply();
        let mut client = stage.connect();
        assert_eq!(client.ask(&["PUBLISH", "", "x"]).int(), 1);
        assert_eq!(client.ask(&["PUBLISH", "x", "x"]).int(), 3);
    }
}
