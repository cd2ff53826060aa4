//! CLIENT UNBLOCK says what became of the call.

use std::time::{Duration, Instant};

use crate::harness::{PATIENCE, Proxy, Relay, Server, Stage, until};
use crate::hub::{quiet, wait_for_blocked};

/// It said 1 in a fifth of the races in which the element was delivered.
#[test]
fn an_unblock_beside_a_push_says_whether_the_element_was_delivered() {
    for settings in [&[][..], &["blocking.hub=false"][..]] {
        let server = Server::start();
        let relay = Relay::to(server.address());
        let proxy = Proxy::launch(&format!("redis://{}", relay.address()), settings).unwrap();
        relay.delay(Duration::from_millis(2));
        let (mut client, mut control, mut pusher) = (proxy.connect(), proxy.connect(), server.probe());
        let id = client.call("CLIENT ID").int();
        let (mut delivered, mut unblocked) = (0, 0);
        for round in 0..60_u64 {
            client.start("BLPOP k 0");
            wait_for_blocked(proxy.address(), 1);
            let start = Instant::now();
            pusher.call(&format!("RPUSH k {round}"));
            // From before the word of it comes until after it is delivered.
            until("a moment of the race", PATIENCE, || {
                start.elapsed() >= Duration::from_micros(round % 20 * 400)
            });
            control.start(&format!("CLIENT UNBLOCK {id}"));
            let (reply, said) = (client.reply(), control.reply().int());
            let is_delivered = !reply.is_nil();
            assert_eq!(said, i64::from(!is_delivered), "round {round}: {reply:?}");
            if is_delivered {
                delivered += 1;
            } else {
                unblocked += 1;
                until("the element is there", PATIENCE, || pusher.call("LPOP k").text() == round.to_string());
            }
        }
        println!("{settings:?}: {delivered} delivered, {unblocked} unblocked");
        assert!(delivered > 0, "{settings:?}");
    }
}

/// It waited out the pause behind a BLPOP that was held.
#[test]
fn a_reader_of_a_stream_does_not_wait_behind_a_held_try() {
    let stage = Stage::proxied();
    let (mut client, mut reader, mut pusher) = (stage.connect(), stage.connect(), stage.server.probe());
    pusher.call("XADD s 5-0 f v");
    assert!(client.call("BLPOP k 0.01").is_nil());
    assert!(!reader.call("XREAD BLOCK 10 STREAMS s 0").is_nil());
    pusher.call("CLIENT PAUSE 20000 WRITE");
    client.start("BLPOP not:yet:known 0");
    client.expect_silence(Duration::from_millis(50));
    for call in ["XREAD BLOCK 0 STREAMS s 0", "XREAD BLOCK 100 STREAMS s 5-0"] {
        let start = Instant::now();
        let reply = reader.call(call);
        assert_eq!(reply.is_nil(), call.ends_with("5-0"), "{call}: {reply:?}");
        assert!(start.elapsed() < Duration::from_secs(5), "{call}: {:?}", start.elapsed());
    }
    pusher.call("CLIENT UNPAUSE");
    pusher.call("RPUSH not:yet:known x");
    assert_eq!(client.reply().items()[1].text(), "x");
}

/// While the server keeps a try back, nobody knows what becomes of it: not for ever.
#[test]
fn an_unblock_inside_a_try_that_is_held_ends_the_wait_in_time() {
    let stage = Stage::proxied();
    let (mut client, mut control, mut pusher) = (stage.connect(), stage.connect(), stage.server.probe());
    let id = client.call("CLIENT ID").int();
    client.start("BLPOP k 0");
    wait_for_blocked(stage.address(), 1);
    quiet(&stage.server);
    control.call("PING");
    // Pushed, but the try is held.
    pusher.call("MULTI");
    pusher.call("RPUSH k x");
    pusher.call("CLIENT PAUSE 2000 WRITE");
    pusher.call("EXEC");
    let start = Instant::now();
    control.start(&format!("CLIENT UNBLOCK {id} ERROR"));
    assert_eq!(client.reply().error(), "UNBLOCKED client unblocked via CLIENT UNBLOCK");
    assert_eq!(control.reply().int(), 1);
    assert!(start.elapsed() < Duration::from_millis(1_500), "{:?}", start.elapsed());
    // What the try brings goes back.
    until("the element is there", PATIENCE, || pusher.call("LLEN k").int() == 1 && !stage.server.is_busy());
}
