//! What calls with many keys cost, in counted steps: words walked over and looks at spots; and what is kept of them.

use std::fmt::Write as _;

use super::super::watched_key::LOOKS;
use super::*;
use crate::resp::WALKED;

const KEPT: usize = 10_000;

fn call(command: &str, keys: usize) -> String {
    let mut words = command.to_owned();
    (0..keys).for_each(|i| write!(words, " k{i}").unwrap());
    match command.split(' ').next() {
        Some("BLPOP") => words + " 0",
        _ => (0..keys)
            .fold(words, |words, _| words + if command.starts_with("XREADGROUP") { " >" } else { " 0-0" }),
    }
}

/// The steps of a call's whole life: it arrives, waits, is woken in vain, woken and served.
fn steps(command: &str, keys: usize) -> u64 {
    let mut bench = Bench::new();
    let before = WALKED.get() + LOOKS.get();
    let (_, desk) = bench.arrive(&call(command, keys), None);
    bench.settle();
    let last = format!("k{}", keys - 1);
    for serves in [false, true] {
        let mut told = BytesMut::new();
        if serves && command.starts_with("BLPOP") {
            bench.model.push(&last, &["x"], &mut told);
        } else if serves {
            bench.model.add(&last, &mut told);
        } else {
            bench.model.clear(&last, &mut told);
        }
        bench.wire.extend_from_slice(&told);
        bench.settle();
    }
    assert_eq!(desk.got.borrow().len(), 1, "{command}");
    WALKED.get() + LOOKS.get() - before
}

#[test]
fn a_call_with_ten_times_the_keys_costs_ten_times_the_steps() {
    for command in ["BLPOP", "XREAD BLOCK 0 STREAMS", "XREADGROUP GROUP g c BLOCK 0 STREAMS"] {
        let (few, many) = (steps(command, 100), steps(command, 1_000));
        assert!(many <= few * 11, "{command}: {few} steps for 100 keys, {many} for 1,000");
    }
}

#[test]
fn positions_are_found_in_one_walk_of_the_request() {
    let walked = |keys: usize| {
        let words = call("XREAD BLOCK 0 STREAMS", keys).replace("0-0", "$");
        let mut frame = BytesMut::new();
        encode::command(&mut frame, &words.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        let request = Request::parse(&frame).unwrap();
        let call = blocking::parse(&request, crate::command::Blocking::XRead).unwrap();
        let before = WALKED.get();
        assert_eq!(call.floating(&request).len(), keys);
        WALKED.get() - before
    };
    assert!(walked(1_000) <= walked(100) * 11, "{} words for 1,000 keys", walked(1_000));
}

/// They left while their keys were being asked about: then nothing was forgotten any more.
#[test]
fn of_keys_that_nobody_waits_for_no_more_are_kept_than_are_meant() {
    let mut bench = Bench::new();
    let (id, _) = bench.arrive(&call("BLPOP", 3 * KEPT), None);
    bench.waitlist.gone(id);
    bench.settle();
    assert_eq!(bench.waitlist.watched(), KEPT);
    let (id, _) = bench.arrive(&call("BLPOP", 2 * KEPT), None);
    bench.settle();
    assert_eq!(bench.waitlist.watched(), 3 * KEPT);
    bench.waitlist.gone(id);
    assert_eq!(bench.waitlist.watched(), KEPT);
}
