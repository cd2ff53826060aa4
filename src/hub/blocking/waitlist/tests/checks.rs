//! Calls on keys that are known to be empty, when the server has come to have something against them.

use super::*;

impl Bench {
    fn let_pass(&mut self, time: Duration) {
        self.now += time;
        let now = self.now;
        self.waitlist.expire(now);
    }
}

fn error_of(desk: &Desk) -> Option<String> {
    match &*desk.ended.borrow() {
        Some(End::Error(words) | End::Close(words, _)) => Some(String::from_utf8_lossy(words).into_owned()),
        Some(End::Nil | End::Unserved(_) | End::Fallback | End::Redirected(..)) | None => None,
    }
}

const FRESH: Duration = Duration::from_millis(250);

#[test]
fn calls_on_an_empty_key_ask_once_in_a_while_for_all_of_them() {
    let mut bench = Bench::new();
    let _older = bench.arrive("BLPOP k0 0", None);
    bench.settle();
    for key in 1..50 {
        let (id, _) = bench.arrive(&format!("BLPOP k{key} 0"), None);
        bench.settle();
        bench.waitlist.gone(id);
    }
    let before = bench.model.commands;
    for round in 0..10_000 {
        let (id, _) = bench.arrive(&format!("BLPOP k{} 0", round % 50), None);
        bench.exchange();
        bench.waitlist.gone(id);
        bench.let_pass(Duration::from_millis(1));
    }
    // Ten seconds: four tries for the form each second, and ten for the keys.
    let commands = bench.model.commands - before;
    assert!(commands <= 3 * 14 * 10 + 10, "{commands}");
    assert!(commands >= 3 * 10 * 5, "{commands}");
}

#[test]
fn a_call_that_comes_after_a_right_was_withdrawn_is_told_and_so_are_those_that_were_believed() {
    let mut bench = Bench::new();
    let (_, older) = bench.arrive("BLPOP k 0", None);
    bench.settle();
    bench.let_pass(FRESH / 2);
    // It came after the last good answer, so a server would have told it.
    bench.model.refusal = Some("NOPERM this user has no permissions to run the 'blpop' command");
    let (_, believed) = bench.arrive("BLPOP k 0", None);
    bench.settle();
    bench.now += FRESH;
    let (_, late) = bench.arrive("BLPOP k 0", None);
    bench.settle();
    assert!(error_of(&late).is_some_and(|words| words.starts_with("-NOPERM")));
    assert!(error_of(&believed).is_some_and(|words| words.starts_with("-NOPERM")));
    assert_eq!(*older.ended.borrow(), None);
    // Nothing of it is remembered when the right is given back.
    bench.model.refusal = None;
    let (_, again) = bench.arrive("BLPOP k 0", None);
    bench.settle();
    assert_eq!(*again.ended.borrow(), None);
}

#[test]
fn whoever_waits_is_told_of_a_demotion_as_soon_as_anybody_is() {
    for by_a_call in [true, false] {
        let mut bench = Bench::new();
        let (_, list) = bench.arrive("BLPOP k 0", None);
        let (_, reader) = bench.arrive("XREAD BLOCK 0 STREAMS s 5-0", None);
        bench.settle();
        bench.now += FRESH;
        bench.model.refusal = Some("READONLY You can't write against a read only replica.");
        if by_a_call {
            let (_, late) = bench.arrive("BLPOP other 0", None);
            bench.settle();
            assert!(error_of(&late).is_some_and(|words| words.starts_with("-READONLY")));
        } else {
            bench.waitlist.sweep();
            bench.settle();
        }
        for waiter in [list, reader] {
            assert!(error_of(&waiter).is_some_and(|words| words.starts_with("-UNBLOCKED")), "{by_a_call}");
        }
        assert_eq!(bench.waitlist.given_up(), Some(GiveUp::Moved));
    }
}

/// ROLE alone had said that the server was a master: the connection was left, and the reader waited on.
#[test]
fn a_reader_is_told_of_a_demotion_that_the_first_write_meets() {
    let mut bench = Bench::new();
    let (_, reader) = bench.arrive("XREAD BLOCK 0 STREAMS s 5-0", None);
    bench.settle();
    bench.waitlist.sweep();
    bench.settle();
    bench.model.refusal = Some("READONLY You can't write against a read only replica.");
    let (_, late) = bench.arrive("BLPOP k 0", None);
    bench.settle();
    assert!(error_of(&late).is_some_and(|words| words.starts_with("-READONLY")));
    assert!(error_of(&reader).is_some_and(|words| words.starts_with("-UNBLOCKED")));
}

#[test]
fn readers_that_wait_since_before_a_demotion_are_told_and_later_ones_are_not() {
    let mut bench = Bench::new();
    let (_, early) = bench.arrive("XREAD BLOCK 0 STREAMS s 5-0", None);
    bench.settle();
    bench.waitlist.sweep();
    bench.settle();
    bench.model.refusal = Some("READONLY You can't write against a read only replica.");
    bench.now += FRESH;
    let (_, late) = bench.arrive("XREAD BLOCK 0 STREAMS other 5-0", None);
    bench.settle();
    bench.waitlist.sweep();
    bench.settle();
    assert!(error_of(&early).is_some_and(|words| words.starts_with("-UNBLOCKED")));
    assert_eq!(*late.ended.borrow(), None);
    assert_eq!(bench.waitlist.given_up(), Some(GiveUp::Moved));
}

/// The first call of a client on a replica took the connection away from the others each time.
#[test]
fn a_server_that_was_a_replica_all_the_time_is_left_once_at_most() {
    let mut bench = Bench::new();
    let (_, reader) = bench.arrive("XREAD BLOCK 0 STREAMS s 5-0", None);
    bench.settle();
    bench.model.refusal = Some("READONLY You can't write against a read only replica.");
    let mut left = 0;
    for _ in 0..5 {
        let (_, client) = bench.arrive("BLPOP k 0", None);
        bench.settle();
        assert!(error_of(&client).is_some_and(|words| words.starts_with("-READONLY")));
        if bench.waitlist.given_up().is_some() {
            left += 1;
            bench.waitlist.disconnected();
            bench.waitlist.connected(0);
            bench.settle();
        }
    }
    assert_eq!(left, 1);
    assert_eq!(*reader.ended.borrow(), None);
}

#[test]
fn the_one_that_asks_for_all_takes_nothing_from_those_before_it() {
    let mut bench = Bench::new();
    let (_, older) = bench.arrive("BLPOP k 0", None);
    bench.settle();
    bench.now += FRESH;
    let (_, asks) = bench.arrive("BLPOP k 0", None);
    // Pushed before its call runs, and before the word of it is read.
    bench.push("k", &["x"]);
    bench.settle();
    assert_eq!(*older.got.borrow(), [element("k", "x")]);
    assert!(asks.got.borrow().is_empty());
    bench.push("k", &["y"]);
    bench.settle();
    assert_eq!(*asks.got.borrow(), [element("k", "y")]);
}
