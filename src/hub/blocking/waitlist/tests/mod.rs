//! The waitlist before a small model of a server: lists, streams and tracking, nothing else, so that thousands of schedules run
//! in a second and every one can be checked against what must always hold.

use super::bench::{Bench, Desk, Model, element};
use super::*;
use crate::command::blocking;
use crate::hub::driver::HubProtocol as _;
use crate::resp::{Request, encode};

mod checks;
mod growth;
mod wakes;

#[test]
fn the_longest_waiter_is_served_first_and_the_rest_go_on_waiting() {
    let mut bench = Bench::new();
    let waiters: Vec<_> = (0..3).map(|_| bench.arrive("BLPOP k 0", None).1).collect();
    bench.settle();
    bench.push("k", &["a", "b"]);
    bench.settle();
    assert_eq!(*waiters[0].got.borrow(), [element("k", "a")]);
    assert_eq!(*waiters[1].got.borrow(), [element("k", "b")]);
    assert!(waiters[2].got.borrow().is_empty());
    bench.push("k", &["c"]);
    bench.settle();
    assert_eq!(*waiters[2].got.borrow(), [element("k", "c")]);
}

#[test]
fn coming_back_to_a_key_known_to_be_empty_costs_nothing_upstream() {
    let mut bench = Bench::new();
    let _first = bench.arrive("BLPOP k 0", None);
    bench.settle();
    let before = bench.model.commands;
    for _ in 0..100 {
        let (id, _) = bench.arrive("BLPOP k 0", None);
        bench.waitlist.gone(id);
    }
    bench.settle();
    assert_eq!(bench.model.commands, before);
}

#[test]
fn a_burst_on_one_key_is_served_in_two_round_trips() {
    let mut bench = Bench::new();
    let waiters: Vec<_> = (0..50).map(|_| bench.arrive("BLPOP k 0", None).1).collect();
    bench.settle();
    let values: Vec<String> = (0..50).map(|value| value.to_string()).collect();
    bench.push("k", &values.iter().map(String::as_str).collect::<Vec<_>>());
    for _ in 0..2 {
        bench.read();
        bench.server_runs();
    }
    bench.read();
    assert!(waiters.iter().all(|waiter| waiter.got.borrow().len() == 1));
}

#[test]
fn an_element_of_a_client_that_died_in_its_try_goes_to_the_next_with_the_same_call() {
    let mut bench = Bench::new();
    let (_, first) = bench.arrive("BLPOP k 7", None);
    let (_, other_call) = bench.arrive("BLPOP k other 7", None);
    let (_, same_call) = bench.arrive("blpop k 9", None);
    bench.settle();
    bench.push("k", &["a"]);
    bench.read();
    bench.server_runs();
    // Between the reply and the write.
    first.dead.set(true);
    bench.settle();
    assert!(other_call.got.borrow().is_empty());
    assert_eq!(*same_call.got.borrow(), [element("k", "a")]);
    assert!(bench.back.borrow().is_empty());
}

#[test]
fn with_nobody_to_hand_it_to_an_element_goes_back() {
    let mut bench = Bench::new();
    let (id, _) = bench.arrive("BLPOP k 0", None);
    bench.settle();
    bench.push("k", &["a"]);
    bench.read();
    bench.server_runs();
    bench.waitlist.gone(id);
    bench.settle();
    assert_eq!(*bench.back.borrow(), ["LPUSH k a"]);
    assert_eq!(bench.waitlist.waiting(), 0);
}

#[test]
fn time_that_runs_out_with_nothing_in_flight_is_nil_at_once() {
    let mut bench = Bench::new();
    let (_, waiter) = bench.arrive("BLPOP k 1", Some(Duration::from_secs(1)));
    bench.settle();
    let before = bench.model.commands;
    bench.now += Duration::from_secs(1);
    bench.waitlist.expire(bench.now);
    assert_eq!(*waiter.ended.borrow(), Some(End::Nil));
    bench.settle();
    assert_eq!(bench.model.commands, before);
}

#[test]
fn time_that_runs_out_in_a_try_waits_for_its_answer_but_not_for_ever() {
    for answered in [true, false] {
        let mut bench = Bench::new();
        let (_, waiter) = bench.arrive("BLPOP k 1", Some(Duration::from_secs(1)));
        bench.settle();
        bench.push("k", &["a"]);
        bench.read();
        bench.server_runs();
        bench.now += Duration::from_secs(1);
        bench.waitlist.expire(bench.now);
        assert_eq!(*waiter.ended.borrow(), None);
        if answered {
            bench.read();
            assert_eq!(*waiter.got.borrow(), [element("k", "a")]);
        } else {
            bench.now += Duration::from_millis(200);
            bench.waitlist.expire(bench.now);
            assert_eq!(*waiter.ended.borrow(), Some(End::Nil));
            bench.settle();
            assert_eq!(*bench.back.borrow(), ["LPUSH k a"]);
        }
    }
}

#[test]
fn a_key_that_became_another_type_is_left_out_and_the_others_are_still_waited_for() {
    let mut bench = Bench::new();
    let (_, waiter) = bench.arrive("BLPOP a b 0", None);
    bench.settle();
    bench.model.strings.insert("a".to_owned());
    let mut told = BytesMut::new();
    bench.model.changed("a", &mut told);
    bench.wire.extend_from_slice(&told);
    bench.settle();
    assert_eq!(*waiter.ended.borrow(), None);
    bench.push("b", &["x"]);
    bench.settle();
    assert_eq!(*waiter.got.borrow(), [element("b", "x")]);
    // Who comes now is told, as by the server.
    let (_, late) = bench.arrive("BLPOP a b 0", None);
    bench.settle();
    assert!(matches!(&*late.ended.borrow(), Some(End::Error(words)) if words.starts_with(b"-WRONGTYPE")));
}

#[test]
fn a_lost_connection_closes_only_those_in_a_try() {
    let mut bench = Bench::new();
    let (_, tried) = bench.arrive("BLPOP a 0", None);
    let (_, quiet) = bench.arrive("BLPOP b 0", None);
    bench.settle();
    bench.push("a", &["x"]);
    bench.read();
    bench.waitlist.disconnected();
    assert!(matches!(&*tried.ended.borrow(), Some(End::Close(..))));
    assert_eq!(*quiet.ended.borrow(), None);
    assert_eq!(bench.waitlist.waiting(), 1, "the closed one is forgotten");
    bench.wire.clear();
    bench.model = Model::default();
    bench.push("b", &["y"]);
    bench.waitlist.connected(0);
    bench.settle();
    assert_eq!(*quiet.got.borrow(), [element("b", "y")]);
}

/// XREADGROUP BLOCK 10 on a missing key got nil instead of NOGROUP when the hub had yet to be dialled.
#[test]
fn a_call_whose_time_ends_before_the_connection_is_there_still_learns_what_there_is() {
    let brief = Some(Duration::from_millis(10));
    let mut bench = Bench::new();
    bench.waitlist.disconnected();
    bench.model.lists.entry("full".to_owned()).or_default().push_back("x".to_owned());
    let (_, served) = bench.arrive("BLPOP full 0.01", brief);
    let (_, empty) = bench.arrive("BLPOP empty 0.01", brief);
    bench.now += Duration::from_millis(50);
    bench.waitlist.expire(bench.now);
    assert_eq!(*empty.ended.borrow(), None);
    bench.waitlist.connected(0);
    bench.settle();
    assert_eq!(*served.got.borrow(), [element("full", "x")]);
    assert_eq!(*empty.ended.borrow(), Some(End::Nil));
    // For so long, and no longer.
    bench.waitlist.disconnected();
    let (_, late) = bench.arrive("BLPOP late 0.01", brief);
    bench.now += Duration::from_millis(50);
    bench.waitlist.expire(bench.now);
    bench.now += Duration::from_millis(200);
    bench.waitlist.expire(bench.now);
    assert_eq!(*late.ended.borrow(), Some(End::Nil));
}

#[test]
fn what_tracking_does_not_tell_is_found_by_the_sweep() {
    let mut bench = Bench::new();
    let (_, waiter) = bench.arrive("BLPOP k 0", None);
    bench.settle();
    // As SWAPDB does it: nobody is told.
    bench.model.lists.entry("k".to_owned()).or_default().push_back("a".to_owned());
    bench.settle();
    assert!(waiter.got.borrow().is_empty());
    bench.waitlist.sweep();
    bench.settle();
    assert_eq!(*waiter.got.borrow(), [element("k", "a")]);
}

#[test]
fn another_database_is_asked_for_before_anything_runs_in_it() {
    let mut bench = Bench::new();
    let _here = bench.arrive("BLPOP k 0", None);
    let _there = bench.arrive_in("BLPOP k 0", None, 5);
    let written = bench.waitlist.out().clone();
    let text = String::from_utf8_lossy(&written).into_owned();
    assert_eq!(text.matches("BLPOP").count(), 1, "{text}");
    assert!(text.ends_with("*2\r\n$6\r\nSELECT\r\n$1\r\n5\r\n"), "{text}");
    bench.server_runs();
    bench.read();
    let written = bench.waitlist.out().clone();
    let text = String::from_utf8_lossy(&written).into_owned();
    assert_eq!(text.matches("BLPOP").count(), 1, "{text}");
}

/// Random schedules: every value pushed ends in exactly one place, and nobody waits on a key that has something.
#[test]
fn in_ten_thousand_schedules_nothing_is_lost_doubled_or_overlooked() {
    for seed in 0..10_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bench = Bench::new();
        let mut desks: Vec<(u64, Rc<Desk>)> = Vec::new();
        let mut pushed = 0;
        for _ in 0..random.usize(5..40) {
            match random.usize(0..10) {
                0..=3 => {
                    let keys = ["a", "b", "c"];
                    let some: Vec<&str> = (0..random.usize(1..3)).map(|_| keys[random.usize(0..3)]).collect();
                    let timeout = random.bool().then(|| Duration::from_millis(random.u64(1..500)));
                    desks.push(bench.arrive(&format!("BLPOP {} 5", some.join(" ")), timeout));
                }
                4 | 5 => {
                    let key = ["a", "b", "c"][random.usize(0..3)];
                    let values: Vec<String> =
                        (0..random.usize(1..4)).map(|i| format!("v{}", pushed + i)).collect();
                    pushed += values.len();
                    bench.push(key, &values.iter().map(String::as_str).collect::<Vec<_>>());
                }
                6 => bench.server_runs(),
                7 => bench.read(),
                8 => {
                    bench.now += Duration::from_millis(random.u64(1..200));
                    let now = bench.now;
                    bench.waitlist.expire(now);
                }
                _ if desks.is_empty() => {}
                _ => {
                    let (id, desk) = &desks[random.usize(0..desks.len())];
                    desk.dead.set(true);
                    bench.waitlist.gone(*id);
                }
            }
        }
        bench.settle();
        let mut found: Vec<String> = desks
            .iter()
            .flat_map(|(_, desk)| desk.got.borrow().clone())
            .map(|reply| reply.split("\r\n").nth(4).unwrap().to_owned())
            .collect();
        found.extend(bench.back.borrow().iter().map(|back| back.split(' ').nth(2).unwrap().to_owned()));
        for list in bench.model.lists.values() {
            found.extend(list.iter().cloned());
        }
        found.sort();
        let mut all: Vec<String> = (0..pushed).map(|value| format!("v{value}")).collect();
        all.sort();
        assert_eq!(found, all, "seed {seed}");
        assert!(desks.iter().all(|(_, desk)| desk.got.borrow().len() <= 1), "seed {seed}");
        for (at, spot) in bench.waitlist.spots.iter() {
            let name = String::from_utf8_lossy(&spot.name).into_owned();
            let full = bench.model.lists.get(&name).is_some_and(|list| !list.is_empty());
            assert!(spot.queue.is_empty() || !full, "seed {seed}: spot {at} ({name}) is waited for and full");
        }
    }
}
