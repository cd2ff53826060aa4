//! MULTI, EXEC, WATCH: atomic, in order, with Redis's words, and nothing held a moment longer than needed.

use std::time::Duration;

use crate::harness::{Client, PATIENCE, PairedServers, Reply, Stage, Value, encode, until};

on_both!(
    a_transaction_in_one_write_is_executed,
    a_transaction_cut_into_segments_is_executed,
    a_transaction_waits_for_its_exec,
    a_discarded_transaction_does_nothing,
    a_queueing_error_aborts_the_transaction,
    an_error_in_a_member_leaves_the_others,
    a_watched_key_that_changed_aborts_with_nil,
    a_watched_key_that_stayed_lets_exec_pass,
    unwatch_forgets_the_keys,
    a_watch_sees_the_change_of_any_other_client,
    a_watch_spans_a_read_between,
    a_select_inside_a_transaction_counts_from_exec_on,
    a_discarded_select_changes_nothing,
    transactions_of_many_clients_do_not_mix,
    a_session_command_inside_a_transaction_is_queued,
    blocking_commands_do_not_block_inside,
    a_watching_client_that_leaves_watches_no_more,
);

#[test]
fn transactions_are_answered_in_the_servers_words() {
    let twins = PairedServers::start();
    let script = [
        "MULTI",
        "MULTI",
        "EXEC",
        "EXEC",
        "DISCARD",
        "MULTI",
        "WATCH a",
        "EXEC",
        "MULTI",
        "NOSUCH",
        "SET a 1",
        "EXEC",
        "MULTI",
        "GET",
        "EXEC",
        "MULTI",
        "SET a b",
        "INCR a",
        "GET a",
        "EXEC",
        "MULTI",
        "EXEC",
        "MULTI",
        "DISCARD",
        "WATCH",
        "WATCH a",
        "UNWATCH",
        "UNWATCH x",
        "EXEC x",
        "MULTI x",
        "DISCARD x",
        "MULTI",
        "UNWATCH",
        "PING",
        "ECHO in",
        "EXEC",
        "MULTI",
        "LRANGE a 0 1",
        "EXEC",
        "WATCH a",
        "SET a c",
        "MULTI",
        "GET a",
        "EXEC",
        "WATCH a b",
        "MULTI",
        "GET a",
        "DISCARD",
        "MULTI",
        "GET a",
        "EXEC",
        "MULTI",
        "BLPOP none 0",
        "EXEC",
        "MULTI",
        "SELECT 1",
        "SET other 1",
        "EXEC",
        "GET other",
        "SELECT 0",
        "GET other",
        "MULTI",
        "SELECT 99",
        "EXEC",
        "GET a",
        "MULTI",
        "RESET",
        "EXEC",
    ];
    twins.agree(&script);
    let in_resp3: Vec<&str> = std::iter::once("HELLO 3").chain(script).collect();
    twins.agree(&in_resp3);
}

fn pipeline(commands: &[&str]) -> Vec<u8> {
    commands.iter().flat_map(|command| encode(&command.split(' ').collect::<Vec<_>>())).collect()
}

fn a_transaction_in_one_write_is_executed(stage: &Stage) {
    let mut client = stage.connect();
    for round in 1..=50 {
        let replies = client.pipeline(&["MULTI", "INCR n", "ECHO x", "EXEC", "GET n"]);
        assert_eq!(replies[0].text(), "OK");
        assert_eq!(replies[1].text(), "QUEUED");
        assert_eq!(replies[2].text(), "QUEUED");
        assert_eq!(replies[3].items(), [Value::Int(round), Value::bulk("x")]);
        assert_eq!(replies[4].text(), round.to_string());
    }
}

fn a_transaction_cut_into_segments_is_executed(stage: &Stage) {
    let whole = pipeline(&["MULTI", "INCR n", "EXEC", "ECHO behind"]);
    let mut other = stage.connect();
    for cut in 1..whole.len() {
        let mut client = stage.connect();
        client.send(&whole[..cut]);
        assert_eq!(other.call("PING").text(), "PONG");
        client.send(&whole[cut..]);
        assert_eq!(client.reply().text(), "OK", "cut at {cut}");
        assert_eq!(client.reply().text(), "QUEUED");
        assert_eq!(client.reply().items(), [Value::Int(i64::try_from(cut).unwrap())]);
        assert_eq!(client.reply().text(), "behind");
    }
}

fn a_transaction_waits_for_its_exec(stage: &Stage) {
    let mut client = stage.connect();
    let mut other = stage.connect();
    assert_eq!(client.call("MULTI").text(), "OK");
    assert_eq!(client.call("SET slow 1").text(), "QUEUED");
    assert!(other.call("GET slow").is_nil());
    assert_eq!(client.call("SET slow 2").text(), "QUEUED");
    assert_eq!(client.call("EXEC").items().len(), 2);
    assert_eq!(other.call("GET slow").text(), "2");
}

fn a_discarded_transaction_does_nothing(stage: &Stage) {
    let mut client = stage.connect();
    let replies = client.pipeline(&["MULTI", "SET gone 1", "DISCARD", "EXISTS gone"]);
    assert_eq!(replies[2].text(), "OK");
    assert_eq!(replies[3].int(), 0);
    for command in ["MULTI", "SET gone 1", "DISCARD"] {
        client.call(command);
    }
    assert_eq!(client.call("EXISTS gone").int(), 0);
}

fn a_queueing_error_aborts_the_transaction(stage: &Stage) {
    let mut client = stage.connect();
    let abort = "EXECABORT Transaction discarded because of previous errors.";
    let replies = client.pipeline(&["MULTI", "SET kept 1", "NOSUCH", "EXEC", "EXISTS kept"]);
    assert!(replies[2].error().starts_with("ERR unknown command 'NOSUCH'"), "{:?}", replies[2]);
    assert_eq!(replies[3].error(), abort);
    assert_eq!(replies[4].int(), 0);
    client.call("MULTI");
    assert_eq!(client.call("GET").error(), "ERR wrong number of arguments for 'get' command");
    assert_eq!(client.call("EXEC").error(), abort);
    assert_eq!(client.call("EXEC").error(), "ERR EXEC without MULTI");
}

fn an_error_in_a_member_leaves_the_others(stage: &Stage) {
    let mut client = stage.connect();
    let replies = client.pipeline(&["MULTI", "SET text abc", "INCR text", "SET after 1", "EXEC"]);
    let items = replies[4].items();
    assert_eq!(items[0], Value::Simple("OK".into()));
    assert_eq!(items[1], Value::Error("ERR value is not an integer or out of range".into()));
    assert_eq!(items[2], Value::Simple("OK".into()));
    assert_eq!(client.call("GET after").text(), "1");
}

fn a_watched_key_that_changed_aborts_with_nil(stage: &Stage) {
    for resp3 in [false, true] {
        let mut client = if resp3 { stage.connect_resp3() } else { stage.connect() };
        let mut other = stage.connect();
        assert_eq!(client.call("WATCH w").text(), "OK");
        other.call("INCR w");
        client.call("MULTI");
        client.call("SET w mine");
        assert_eq!(client.call("EXEC").raw, if resp3 { &b"_\r\n"[..] } else { &b"*-1\r\n"[..] });
        assert_ne!(client.call("GET w").text(), "mine");
        // The watch is over: the next transaction passes.
        let replies = client.pipeline(&["MULTI", "GET w", "EXEC"]);
        assert_eq!(replies[2].items().len(), 1);
    }
}

fn a_watched_key_that_stayed_lets_exec_pass(stage: &Stage) {
    let mut client = stage.connect();
    let mut other = stage.connect();
    client.call("WATCH a b");
    other.call("SET c 1");
    let replies = client.pipeline(&["MULTI", "SET a 1", "EXEC"]);
    assert_eq!(replies[2].items(), [Value::Simple("OK".into())]);
}

fn unwatch_forgets_the_keys(stage: &Stage) {
    let mut client = stage.connect();
    let mut other = stage.connect();
    client.call("WATCH w");
    client.call("UNWATCH");
    other.call("SET w 1");
    let replies = client.pipeline(&["MULTI", "SET w 2", "EXEC"]);
    assert_eq!(replies[2].items().len(), 1);
    // DISCARD forgets them too.
    client.call("WATCH w");
    client.call("MULTI");
    client.call("DISCARD");
    other.call("SET w 3");
    let replies = client.pipeline(&["MULTI", "SET w 4", "EXEC"]);
    assert_eq!(replies[2].items().len(), 1);
}

fn a_watch_sees_the_change_of_any_other_client(stage: &Stage) {
    let mut watchers: Vec<Client> = (0..3).map(|_| stage.connect()).collect();
    for watcher in &mut watchers {
        assert_eq!(watcher.call("WATCH shared").text(), "OK");
    }
    // Optimistic locking: of three that read the same value exactly one may write.
    let mut winners = 0;
    for watcher in &mut watchers {
        let replies = watcher.pipeline(&["MULTI", "INCR shared", "EXEC"]);
        winners += usize::from(!replies[2].is_nil());
    }
    assert_eq!(winners, 1);
    assert_eq!(stage.server.call("GET shared").text(), "1");
}

fn a_watch_spans_a_read_between(stage: &Stage) {
    let mut client = stage.connect();
    client.call("SET balance 10");
    let replies =
        client.pipeline(&["WATCH balance", "GET balance", "MULTI", "DECR balance", "EXEC", "GET balance"]);
    let texts: Vec<String> = replies.iter().map(|reply| reply.raw.escape_ascii().to_string()).collect();
    assert_eq!(
        texts,
        [
            "+OK\\r\\n",
            "$2\\r\\n10\\r\\n",
            "+OK\\r\\n",
            "+QUEUED\\r\\n",
            "*1\\r\\n:9\\r\\n",
            "$1\\r\\n9\\r\\n"
        ]
    );
}

fn a_select_inside_a_transaction_counts_from_exec_on(stage: &Stage) {
    let mut client = stage.connect();
    let replies = client.pipeline(&["SET k zero", "MULTI", "SELECT 2", "SET k two", "EXEC", "GET k"]);
    assert_eq!(replies[4].items().len(), 2);
    assert_eq!(replies[5].text(), "two");
    assert_eq!(stage.connect().call("GET k").text(), "zero");
    assert_eq!(client.call("SELECT 0").text(), "OK");
    assert_eq!(client.call("GET k").text(), "zero");
}

fn a_discarded_select_changes_nothing(stage: &Stage) {
    let mut client = stage.connect();
    client.call("SET k zero");
    for command in ["MULTI", "SELECT 2", "DISCARD"] {
        client.call(command);
    }
    assert_eq!(client.call("GET k").text(), "zero");
    let replies = client.pipeline(&["MULTI", "SELECT 2", "NOSUCH", "EXEC", "GET k"]);
    assert!(replies[3].is_error());
    assert_eq!(replies[4].text(), "zero");
    let mut other = stage.connect();
    client.call("WATCH k");
    other.call("SET k changed");
    let replies = client.pipeline(&["MULTI", "SELECT 2", "EXEC", "GET k"]);
    assert!(replies[2].is_nil());
    assert_eq!(replies[3].text(), "changed");
}

fn transactions_of_many_clients_do_not_mix(stage: &Stage) {
    let mut clients: Vec<Client> = (0..20).map(|_| stage.connect()).collect();
    for round in 0..20 {
        for (number, client) in clients.iter_mut().enumerate() {
            let mark = format!("{number}:{round}");
            client.send(pipeline(&[
                "MULTI",
                &format!("ECHO {mark}"),
                &format!("SET own:{number} {round}"),
                "EXEC",
            ]));
            client.start(&format!("GET own:{number}"));
        }
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.reply().text(), "OK");
            assert_eq!(client.reply().text(), "QUEUED");
            assert_eq!(client.reply().text(), "QUEUED");
            let done = client.reply();
            assert_eq!(done.items(), [Value::bulk(&format!("{number}:{round}")), Value::Simple("OK".into())]);
            assert_eq!(client.reply().text(), round.to_string());
        }
    }
}

fn a_session_command_inside_a_transaction_is_queued(stage: &Stage) {
    let mut client = stage.connect();
    let replies =
        client.pipeline(&["MULTI", "SET k v", "CLIENT SETNAME inner", "EXEC", "CLIENT GETNAME", "EXISTS k"]);
    assert_eq!(replies[2].text(), "QUEUED");
    assert_eq!(replies[3].items().len(), 2);
    assert_eq!((replies[4].text().as_str(), replies[5].int()), ("inner", 1));
}

fn blocking_commands_do_not_block_inside(stage: &Stage) {
    let mut client = stage.connect();
    let replies = client.pipeline(&[
        "MULTI",
        "BLPOP none 0",
        "BZPOPMIN none 0",
        "XREAD BLOCK 0 STREAMS none $",
        "EXEC",
    ]);
    assert_eq!(replies[4].items(), [Value::Nil, Value::Nil, Value::Nil]);
}

fn a_watching_client_that_leaves_watches_no_more(stage: &Stage) {
    let resting = {
        let mut client = stage.connect();
        client.call("PING");
        client
    };
    let leaver = {
        let mut client = stage.connect();
        client.call("WATCH w");
        client.call("MULTI");
        client.call("SET w leaver");
        client
    };
    leaver.reset();
    let mut next = stage.connect();
    assert_eq!(next.call("GET w").raw, &b"$-1\r\n"[..]);
    assert_eq!(next.call("EXEC").error(), "ERR EXEC without MULTI");
    drop(resting);
}

/// The server's own count of clients that are inside MULTI or watch a key.
fn held(stage: &Stage) -> usize {
    stage.server.rows().iter().filter(|row| !row.get("name").is_empty() && row.get("multi") != "-1").count()
}

#[test]
fn a_watch_holds_one_connection_and_gives_it_back_after_exec() {
    let stage = Stage::proxied();
    let mut lane = stage.connect();
    lane.call("PING");
    let resting = stage.server.clients();
    let mut client = stage.connect();
    client.call("WATCH w");
    until("the watch has a connection of its own", PATIENCE, || stage.server.clients() == resting + 1);
    client.call("MULTI");
    client.call("INCR w");
    assert_eq!(client.call("EXEC").items().len(), 1);
    until("it is given back", Duration::from_secs(3), || stage.server.clients() == resting);
    assert_eq!(client.call("GET w").text(), "1");
}

#[test]
fn whole_transactions_share_the_lane() {
    let stage = Stage::proxied();
    let mut clients: Vec<Client> = (0..30).map(|_| stage.connect()).collect();
    for round in 1..=5 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(pipeline(&["MULTI", &format!("INCR c:{number}"), "EXEC"]));
        }
        for client in &mut clients {
            client.reply();
            client.reply();
            assert_eq!(client.reply().items(), [Value::Int(round)]);
        }
        let rows = stage.server.rows();
        assert!(
            rows.len() <= 4,
            "30 clients with whole transactions on {} connections: {rows:?}",
            rows.len()
        );
    }
    assert_eq!(held(&stage), 0);
}

#[test]
fn more_open_transactions_than_connections_wait_their_turn() {
    let stage = Stage::proxied_with(&["pool.wait_timeout=10s"]);
    let address = stage.address();
    let threads: Vec<_> = (0..24)
        .map(|number| {
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                for round in 1..=5_i64 {
                    let key = format!("turn:{number}");
                    for command in
                        [format!("WATCH {key}"), format!("GET {key}"), "MULTI".into(), format!("INCR {key}")]
                    {
                        let reply: Reply = client.call(&command);
                        assert!(!reply.is_error(), "{command}: {reply:?}");
                    }
                    assert_eq!(client.call("EXEC").items(), [Value::Int(round)]);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("every transaction got its turn");
    }
}
