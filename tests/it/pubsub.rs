//! Publish and subscribe: confirmations, messages, counts, and what a subscribed client may say.

use std::collections::BTreeSet;

use crate::harness::{Client, PATIENCE, PairedServers, Reply, Server, Stage, Value, Version, until};

on_both!(
    a_subscriber_gets_messages_in_order,
    a_pattern_gets_what_matches,
    a_shard_channel_gets_its_messages,
    both_a_channel_and_a_pattern_are_told,
    publish_counts_the_receivers,
    unsubscribing_from_everything_names_every_channel,
    unsubscribing_from_nothing_answers_once,
    after_the_last_unsubscription_every_command_is_allowed_again,
    pushes_stand_between_replies_in_resp3,
    a_resp3_subscriber_may_run_any_command,
    a_subscriber_that_leaves_is_forgotten,
    quit_and_reset_end_a_subscription,
    a_subscription_inside_a_transaction_is_confirmed_in_exec,
    channels_are_common_to_all_databases,
    a_big_message_arrives_whole,
);

#[test]
fn a_subscribed_resp2_client_is_answered_in_the_servers_words() {
    let twins = PairedServers::start();
    twins.agree(&[
        "SUBSCRIBE",
        "UNSUBSCRIBE",
        "PUNSUBSCRIBE",
        "SUNSUBSCRIBE",
        "UNSUBSCRIBE none",
        "SUBSCRIBE a",
        "GET x",
        "PING",
        "PING hi",
        "SUBSCRIBE b a => 2",
        "SET a b",
        "HELLO 3",
        "CLIENT ID",
        "ECHO a",
        "MULTI",
        "NOSUCH x",
        "GET",
        "UNSUBSCRIBE c",
        "UNSUBSCRIBE b",
        "PSUBSCRIBE p* q* => 2",
        "PUNSUBSCRIBE p* q* => 2",
        "UNSUBSCRIBE a",
        "PING",
        "GET x",
        "SSUBSCRIBE s",
        "PING",
        "SUNSUBSCRIBE s",
        "PSUBSCRIBE p*",
        "RESET",
        "PING",
        "SUBSCRIBE one two one => 3",
        "UNSUBSCRIBE one one => 2",
        "QUIT",
    ]);
}

#[test]
fn a_subscribed_resp3_client_is_answered_in_the_servers_words() {
    let twins = PairedServers::start();
    twins.agree(&[
        "HELLO 3",
        "UNSUBSCRIBE",
        "SUBSCRIBE a",
        "PING",
        "PING x",
        "GET x",
        "SET x 1",
        "PUBLISH nobody hi",
        "SUBSCRIBE b c => 2",
        "CLIENT GETNAME",
        "UNSUBSCRIBE c b => 2",
        "PSUBSCRIBE p*",
        "SSUBSCRIBE s",
        "PUNSUBSCRIBE p*",
        "SUNSUBSCRIBE s",
        "UNSUBSCRIBE a",
        "ECHO done",
    ]);
}

/// What follows HELLO 2 in one write came before its reply, and ran.
#[test]
fn a_subscriber_that_goes_back_to_resp2_may_do_no_more_than_others() {
    let twins = PairedServers::start();
    for first in ["PING", "WATCH s", "CLIENT NO-TOUCH off"] {
        twins.agree(&[
            "HELLO 3",
            first,
            "PSUBSCRIBE n",
            "SET x 1",
            "HELLO 2",
            "ZADD z 1 a",
            "GET x",
            "PUBLISH c x",
            "PING",
            "MULTI",
            "PUNSUBSCRIBE n",
            "ZADD z 1 a",
        ]);
        twins.agree(&["DEL z"]);
    }
}

/// The texts of a confirmation or message.
#[track_caller]
fn texts(reply: &Reply) -> Vec<String> {
    reply.items().iter().map(|item| if *item == Value::Nil { "nil".into() } else { item.text() }).collect()
}

fn subscriber(stage: &Stage, command: &str) -> Client {
    let mut client = stage.connect();
    client.start(command);
    for _ in command.split(' ').skip(1) {
        client.reply();
    }
    client
}

fn a_subscriber_gets_messages_in_order(stage: &Stage) {
    let mut one = subscriber(stage, "SUBSCRIBE news sport");
    let mut two = subscriber(stage, "SUBSCRIBE sport");
    let mut publisher = stage.connect();
    for number in 0..200 {
        publisher.start(&format!("PUBLISH news n{number}"));
        publisher.start(&format!("PUBLISH sport s{number}"));
    }
    for _ in 0..200 {
        assert_eq!(publisher.reply().int(), 1);
        assert_eq!(publisher.reply().int(), 2);
    }
    for number in 0..200 {
        assert_eq!(texts(&one.reply()), ["message", "news", &format!("n{number}")]);
        assert_eq!(texts(&one.reply()), ["message", "sport", &format!("s{number}")]);
        assert_eq!(texts(&two.reply()), ["message", "sport", &format!("s{number}")]);
    }
}

fn a_pattern_gets_what_matches(stage: &Stage) {
    let mut client = subscriber(stage, "PSUBSCRIBE news.*");
    let mut publisher = stage.connect();
    assert_eq!(publisher.call("PUBLISH other x").int(), 0);
    assert_eq!(publisher.call("PUBLISH news.today x").int(), 1);
    assert_eq!(texts(&client.reply()), ["pmessage", "news.*", "news.today", "x"]);
}

fn a_shard_channel_gets_its_messages(stage: &Stage) {
    let mut client = subscriber(stage, "SSUBSCRIBE shard");
    let mut publisher = stage.connect();
    assert_eq!(publisher.call("SPUBLISH shard x").int(), 1);
    assert_eq!(texts(&client.reply()), ["smessage", "shard", "x"]);
    assert_eq!(publisher.call("PUBLISH shard x").int(), 0);
}

fn both_a_channel_and_a_pattern_are_told(stage: &Stage) {
    let mut client = subscriber(stage, "SUBSCRIBE news.today");
    client.start("PSUBSCRIBE news.*");
    assert_eq!(texts(&client.reply()), ["psubscribe", "news.*", "2"]);
    stage.connect().call("PUBLISH news.today x");
    let got: BTreeSet<String> =
        [client.reply(), client.reply()].iter().map(|reply| texts(reply)[0].clone()).collect();
    assert_eq!(got, BTreeSet::from(["message".to_owned(), "pmessage".to_owned()]));
}

fn publish_counts_the_receivers(stage: &Stage) {
    let mut publisher = stage.connect();
    assert_eq!(publisher.call("PUBLISH c x").int(), 0);
    let one = subscriber(stage, "SUBSCRIBE c");
    assert_eq!(publisher.call("PUBLISH c x").int(), 1);
    let _two = subscriber(stage, "SUBSCRIBE c");
    let _pattern = subscriber(stage, "PSUBSCRIBE c*");
    assert_eq!(publisher.call("PUBLISH c x").int(), 3);
    drop(one);
    until("the one that left is no longer counted", PATIENCE, || publisher.call("PUBLISH c x").int() == 2);
}

fn unsubscribing_from_everything_names_every_channel(stage: &Stage) {
    for hello in ["HELLO 2", "HELLO 3"] {
        let mut client = stage.connect();
        client.call(hello);
        client.start("SUBSCRIBE a b c");
        for count in 1..=3 {
            assert_eq!(client.reply().items()[2], Value::Int(count));
        }
        client.start("UNSUBSCRIBE");
        let mut named = BTreeSet::new();
        for left in [2, 1, 0] {
            let reply = client.reply();
            assert_eq!(reply.items()[2], Value::Int(left));
            named.insert(reply.items()[1].text());
        }
        assert_eq!(named, ["a", "b", "c"].map(str::to_owned).into());
        assert_eq!(client.call("ECHO free").text(), "free");
    }
}

fn unsubscribing_from_nothing_answers_once(stage: &Stage) {
    let mut client = stage.connect();
    assert_eq!(client.call("UNSUBSCRIBE").raw, &b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n"[..]);
    assert_eq!(client.call("PUNSUBSCRIBE").raw, &b"*3\r\n$12\r\npunsubscribe\r\n$-1\r\n:0\r\n"[..]);
    let mut client = stage.connect_resp3();
    assert_eq!(client.call("UNSUBSCRIBE").raw, &b">3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n"[..]);
}

fn after_the_last_unsubscription_every_command_is_allowed_again(stage: &Stage) {
    let mut client = subscriber(stage, "SUBSCRIBE a");
    assert!(client.call("SET k v").error().starts_with("ERR Can't execute 'set'"));
    assert_eq!(texts(&client.call("UNSUBSCRIBE a")), ["unsubscribe", "a", "0"]);
    assert_eq!(client.call("SET k v").text(), "OK");
    // All of it in one write.
    let replies = client.pipeline(&["SUBSCRIBE a", "PING", "UNSUBSCRIBE a", "GET k", "PING"]);
    assert_eq!(texts(&replies[1]), ["pong", ""]);
    assert_eq!(replies[3].text(), "v");
    assert_eq!(replies[4].text(), "PONG");
}

fn pushes_stand_between_replies_in_resp3(stage: &Stage) {
    let mut client = stage.connect_resp3();
    assert!(client.call("SUBSCRIBE c").is_push());
    let mut publisher = stage.connect();
    for number in 0..100 {
        publisher.start(&format!("PUBLISH c {number}"));
        client.start(&format!("ECHO e{number}"));
    }
    let (mut echoes, mut messages) = (Vec::new(), Vec::new());
    while echoes.len() + messages.len() < 200 {
        let reply = client.reply();
        if reply.is_push() { messages.push(texts(&reply)[2].clone()) } else { echoes.push(reply.text()) }
    }
    assert_eq!(echoes, (0..100).map(|number| format!("e{number}")).collect::<Vec<_>>());
    assert_eq!(messages, (0..100).map(|number| number.to_string()).collect::<Vec<_>>());
}

fn a_resp3_subscriber_may_run_any_command(stage: &Stage) {
    let mut client = stage.connect_resp3();
    client.call("SUBSCRIBE c");
    assert_eq!(client.call("SET k v").text(), "OK");
    assert_eq!(client.call("GET k").text(), "v");
    assert_eq!(client.call("SELECT 1").text(), "OK");
    assert!(client.call("GET k").is_nil());
    assert_eq!(client.call("CLIENT SETNAME sub").text(), "OK");
    assert_eq!(client.call("CLIENT GETNAME").text(), "sub");
    assert!(client.call("BLPOP none 0.02").is_nil());
    let replies = client.pipeline(&["MULTI", "INCR n", "EXEC"]);
    assert_eq!(replies[2].items(), [Value::Int(1)]);
    stage.connect().call("PUBLISH c still");
    assert_eq!(texts(&client.reply()), ["message", "c", "still"]);
}

fn a_subscriber_that_leaves_is_forgotten(stage: &Stage) {
    let one = subscriber(stage, "SUBSCRIBE gone");
    let two = subscriber(stage, "PSUBSCRIBE gone*");
    assert_eq!(stage.server.call("PUBSUB NUMSUB gone").items()[1], Value::Int(1));
    assert_eq!(stage.server.call("PUBSUB NUMPAT").int(), 1);
    one.reset();
    drop(two);
    until("the server knows no subscriber", PATIENCE, || {
        stage.server.call("PUBSUB NUMSUB gone").items()[1] == Value::Int(0)
            && stage.server.call("PUBSUB NUMPAT").int() == 0
    });
}

fn quit_and_reset_end_a_subscription(stage: &Stage) {
    let mut quits = subscriber(stage, "SUBSCRIBE c");
    assert_eq!(quits.call("QUIT").text(), "OK");
    quits.expect_end(PATIENCE);
    let mut resets = subscriber(stage, "SUBSCRIBE c");
    assert_eq!(resets.call("RESET").text(), "RESET");
    assert_eq!(resets.call("ECHO free").text(), "free");
    until("nobody is subscribed", PATIENCE, || stage.connect().call("PUBLISH c x").int() == 0);
}

fn a_subscription_inside_a_transaction_is_confirmed_in_exec(stage: &Stage) {
    let mut client = stage.connect();
    let replies = client.pipeline(&["MULTI", "SET k v", "SUBSCRIBE c", "EXEC"]);
    // The proxy may refuse it (then EXEC aborts) or take a lease; it must never let it into a shared connection.
    if replies[2].is_error() {
        assert!(stage.is_proxied(), "{:?}", replies[2]);
        assert!(replies[3].error().starts_with("EXECABORT"), "{:?}", replies[3]);
        return;
    }
    assert_eq!(replies[3].items()[1].items()[0].text(), "subscribe");
    stage.connect().call("PUBLISH c x");
    assert_eq!(texts(&client.reply()), ["message", "c", "x"]);
}

fn channels_are_common_to_all_databases(stage: &Stage) {
    let mut client = stage.connect();
    client.call("SELECT 3");
    client.call("SUBSCRIBE c");
    let mut publisher = stage.connect();
    publisher.call("SELECT 7");
    assert_eq!(publisher.call("PUBLISH c x").int(), 1);
    assert_eq!(texts(&client.reply()), ["message", "c", "x"]);
    client.call("UNSUBSCRIBE c");
    client.call("SET k 3");
    publisher.call("SELECT 3");
    assert_eq!(publisher.call("GET k").text(), "3");
}

fn a_big_message_arrives_whole(stage: &Stage) {
    let mut client = subscriber(stage, "SUBSCRIBE c");
    let payload = "x".repeat(3 << 20);
    let mut publisher = stage.connect();
    assert_eq!(publisher.ask(&["PUBLISH", "c", &payload]).int(), 1);
    assert!(client.reply().items()[2].text() == payload);
}

#[test]
fn what_is_in_no_table_is_refused_to_a_resp2_subscriber_and_never_run() {
    let questions = [
        "NOSUCH",
        "nosuch a b",
        "XSET k v",
        "xset k",
        "XPUSH k v",
        "PUBSUB NOSUCH",
        "XINFO NOSUCH k",
        "FUNCTION NOSUCH",
    ];
    let renamed = ["--rename-command", "SET", "XSET", "--rename-command", "RPUSH", "XPUSH"];
    for version in Version::all() {
        let start = || Server::start_version(&version, &renamed);
        let mut stages = vec![Stage::before_none(start()), Stage::before(start(), &[])];
        stages.push(Stage::before(start(), &["pubsub.hub=false"]));
        let mut expected = Vec::new();
        for stage in &stages {
            for held in [None, Some("WATCH w")] {
                let mut client = stage.connect();
                held.map(|command| client.call(command));
                client.call("SUBSCRIBE c");
                for question in questions {
                    client.start(question);
                }
                client.start("PING");
                let answers: Vec<String> =
                    questions.iter().map(|_| client.reply().error().to_owned()).collect();
                assert_eq!(client.reply().items()[0].text(), "pong");
                // The list of what is allowed has grown: ours is that of 7.0.
                let known: Vec<String> =
                    answers.iter().map(|text| text.split(": only (P").next().unwrap().to_owned()).collect();
                if expected.is_empty() {
                    expected.clone_from(&known);
                }
                assert_eq!(known, expected, "{} {held:?} {}", version.name, stage.is_proxied());
                assert_eq!(stage.server.call("EXISTS k").int(), 0, "{}", version.name);
            }
        }
        assert!(expected.iter().filter(|text| text.contains("Can't execute")).count() >= 2, "{expected:?}");
    }
}
