//! Wakes that find nothing, the pace that follows them, and what other calls ask meanwhile.

use super::*;

impl Bench {
    fn add(&mut self, key: &str) -> u64 {
        let mut told = BytesMut::new();
        let id = self.model.add(key, &mut told);
        self.wire.extend_from_slice(&told);
        id
    }

    fn clear(&mut self, key: &str) {
        let mut told = BytesMut::new();
        self.model.clear(key, &mut told);
        self.wire.extend_from_slice(&told);
    }

    /// Wakes without an element, until one is put off.
    fn lose(&mut self, key: &str, stream: bool) {
        for _ in 0..200 {
            if stream {
                self.add(key);
            } else {
                self.push(key, &["taken by others"]);
            }
            self.clear(key);
            self.exchange();
            if self.waitlist.spots.iter().any(|(_, spot)| spot.not_before.is_some()) {
                // Over with it, so that the next one is put off.
                let at = self.waitlist.next_timer().unwrap();
                self.now = at;
                self.waitlist.expire(at);
                self.exchange();
                return;
            }
        }
        panic!("no wake is put off");
    }

    fn is_delayed(&self) -> bool {
        self.waitlist.spots.iter().any(|(_, spot)| spot.not_before.is_some())
    }
}

fn entry(reply: &Desk) -> Vec<String> {
    let got = reply.got.borrow();
    let ids = got.iter().flat_map(|reply| reply.split("\r\n").filter(|word| word.ends_with("-0")));
    ids.map(str::to_owned).collect()
}

/// XREAD and XREADGROUP slept until the next sweep: the newcomer's XLEN was taken for an answer to their wake.
#[test]
fn a_newcomer_on_a_stream_takes_nobodys_wake() {
    for newcomer in ["XREAD BLOCK 0 STREAMS s 1000-0", "XREADGROUP GROUP other c BLOCK 0 STREAMS s >"] {
        let mut bench = Bench::new();
        let (_, reader) = bench.arrive("XREAD BLOCK 0 STREAMS s 200-0", None);
        let (_, member) = bench.arrive("XREADGROUP GROUP g c BLOCK 0 STREAMS s >", None);
        let stream = bench.model.streams.entry("s".to_owned()).or_default();
        stream.groups.insert("g".to_owned(), 500);
        stream.groups.insert("other".to_owned(), 2_000);
        bench.settle();
        bench.lose("s", true);
        bench.model.streams.get_mut("s").unwrap().last = 600;
        let id = bench.add("s");
        bench.read();
        assert!(bench.is_delayed(), "{newcomer}");
        let (_, late) = bench.arrive(newcomer, None);
        bench.settle();
        assert_eq!(entry(&reader), [format!("{id}-0")], "{newcomer}");
        assert_eq!(entry(&member), [format!("{id}-0")], "{newcomer}");
        assert!(late.got.borrow().is_empty(), "{newcomer}");
    }
}

/// A call whose time ended within the delay of a wake got nil, with elements in the list.
#[test]
fn no_time_ends_with_nil_while_a_wake_is_put_off() {
    let brief = Some(Duration::from_micros(100));
    for (call, stream) in [("BLPOP k 1", false), ("XREAD BLOCK 1 STREAMS k 500-0", true)] {
        // It arrives before the wake, and behind it.
        for before in [true, false] {
            let mut bench = Bench::new();
            let _older =
                bench.arrive(if stream { "XREAD BLOCK 0 STREAMS k 900-0" } else { "BLPOP k 0" }, None);
            bench.settle();
            bench.lose("k", stream);
            let early = before.then(|| bench.arrive(call, brief));
            bench.exchange();
            if stream {
                bench.model.streams.get_mut("k").unwrap().last = 600;
                bench.add("k");
            } else {
                bench.push("k", &["x", "y"]);
            }
            bench.read();
            assert!(bench.is_delayed() || !before, "{call}");
            let (_, waiter) = early.unwrap_or_else(|| bench.arrive(call, brief));
            bench.now += Duration::from_micros(100);
            bench.waitlist.expire(bench.now);
            assert_eq!(*waiter.ended.borrow(), None, "{call} {before}");
            bench.settle();
            assert_eq!(waiter.got.borrow().len(), 1, "{call} {before}");
        }
    }
}

#[test]
fn a_newcomer_on_a_list_ends_the_delay_for_all() {
    let mut bench = Bench::new();
    let (_, older) = bench.arrive("BLPOP k 0", None);
    bench.settle();
    bench.lose("k", false);
    bench.push("k", &["x"]);
    bench.read();
    assert!(bench.is_delayed());
    let (_, late) = bench.arrive("BLPOP k 0", None);
    bench.exchange();
    assert_eq!(*older.got.borrow(), [element("k", "x")]);
    assert!(late.got.borrow().is_empty());
}

/// What is put off costs at most one try each millisecond, and a wake that finds something ends it.
#[test]
fn a_key_whose_wakes_find_nothing_is_tried_at_a_pace() {
    let mut bench = Bench::new();
    let _waiter = bench.arrive("BLPOP k 0", None);
    bench.settle();
    let (start, before) = (bench.now, bench.model.commands);
    for _ in 0..500 {
        bench.push("k", &["x"]);
        bench.clear("k");
        bench.settle();
    }
    let (took, commands) = (bench.now - start, bench.model.commands - before);
    assert!(took > Duration::from_millis(450), "{commands} commands in {took:?}");
    assert!(took < Duration::from_millis(1_100), "{commands} commands in {took:?}");
    // A second waiter, so that the spot stays.
    let (_, other) = bench.arrive("BLPOP k 0", None);
    bench.push("k", &["a", "b"]);
    bench.settle();
    assert_eq!(*other.got.borrow(), [element("k", "b")]);
    let _third = bench.arrive("BLPOP k 0", None);
    bench.settle();
    bench.push("k", &["c"]);
    bench.read();
    assert!(!bench.is_delayed());
}

/// The key of the same name in another database: its writes wake us, too, and nothing tells them apart. Ten thousand
/// writes in as many milliseconds delayed each try by 10 ms, later by 100.
#[test]
fn wakes_by_another_database_delay_a_key_by_a_millisecond_at_most() {
    let mut bench = Bench::new();
    let _waiter = bench.arrive("BLPOP k 0", None);
    bench.settle();
    for gap in [Duration::from_micros(100), Duration::from_millis(2)] {
        let mut worst = Duration::ZERO;
        bench.now += Duration::from_secs(1);
        for _ in 0..2_000 {
            let mut told = BytesMut::new();
            bench.model.changed("k", &mut told);
            bench.wire.extend_from_slice(&told);
            let start = bench.now;
            bench.exchange();
            if bench.is_delayed() {
                bench.now = bench.waitlist.next_timer().unwrap();
                worst = worst.max(bench.now - start);
                bench.waitlist.expire(bench.now);
                bench.exchange();
            }
            bench.now += gap;
        }
        let bound = if gap < Duration::from_millis(1) { Duration::from_millis(1) } else { Duration::ZERO };
        assert!(worst <= bound, "{worst:?}");
    }
}

/// What was read for the keys that were left was taken for what was read for others.
#[test]
fn a_call_for_some_of_its_streams_says_nothing_of_the_ids_of_others() {
    let mut bench = Bench::new();
    let (_, _several) = bench.arrive("XREAD BLOCK 0 STREAMS a b c 5-0 5-0 0-0", None);
    bench.settle();
    bench.model.streams.entry("a".to_owned()).or_default().last = 2;
    let mut told = BytesMut::new();
    for _ in 0..2 {
        bench.model.add("a", &mut told);
    }
    bench.wire.extend_from_slice(&told);
    bench.settle();
    let at = bench.waitlist.spots.named(b"b")[0];
    bench.waitlist.spots.at_mut(at).unwrap().known = KeyState::OtherType;
    let mut told = BytesMut::new();
    bench.model.changed("c", &mut told);
    bench.wire.extend_from_slice(&told);
    bench.settle();
    // 3-0 and 4-0 are in `a`, which the call above did not ask for.
    let (_, first) = bench.arrive("XREAD BLOCK 0 STREAMS a 4-0", None);
    bench.settle();
    assert!(first.got.borrow().is_empty());
    let (_, late) = bench.arrive("XREAD BLOCK 0 STREAMS a 2-0", None);
    bench.settle();
    assert_eq!(entry(&late), ["3-0", "4-0"]);
}

/// A call in another database got nil before the server had said whether that database may be used.
#[test]
fn no_time_ends_with_nil_before_the_database_is_known() {
    let mut bench = Bench::new();
    bench.model.lists.entry("k".to_owned()).or_default().push_back("x".to_owned());
    let (_, waiter) = bench.arrive_in("BLPOP k 1", Some(Duration::from_millis(1)), 5);
    bench.now += Duration::from_millis(1);
    bench.waitlist.expire(bench.now);
    assert_eq!(*waiter.ended.borrow(), None);
    bench.settle();
    assert_eq!(*waiter.got.borrow(), [element("k", "x")]);
}

/// Readers, groups and lists under foreign consumers, trims and pauses: when all has come to rest nobody waits for what
/// is there.
#[test]
fn in_three_thousand_schedules_with_empty_wakes_nobody_is_overlooked() {
    for seed in 0..3_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bench = Bench::new();
        let mut desks: Vec<(String, u64, Rc<Desk>)> = Vec::new();
        for key in ["s", "t"] {
            let stream = bench.model.streams.entry(key.to_owned()).or_default();
            stream.groups = [("g".to_owned(), 0), ("h".to_owned(), 0)].into();
        }
        for _ in 0..random.usize(10..60) {
            let stream = ["s", "t"][random.usize(0..2)];
            match random.usize(0..12) {
                0..=2 => {
                    let (s, t) = (bench.model.streams["s"].last, bench.model.streams["t"].last);
                    let call = match random.usize(0..6) {
                        0 | 1 => format!("XREAD BLOCK 0 STREAMS s {}-0", s.saturating_sub(random.u64(0..3))),
                        2 => format!("XREAD BLOCK 0 STREAMS s t {s}-0 {t}-0"),
                        3 => format!("XREADGROUP GROUP g c BLOCK 0 STREAMS {stream} >"),
                        4 => format!("XREADGROUP GROUP h c BLOCK 0 STREAMS {stream} >"),
                        _ => "BLPOP k 0".to_owned(),
                    };
                    let timeout =
                        (random.usize(0..4) == 0).then(|| Duration::from_millis(random.u64(1..300)));
                    let (id, desk) = bench.arrive(&call, timeout);
                    desks.push((call, id, desk));
                }
                3 => drop(bench.add(stream)),
                4 => bench.push("k", &["x"]),
                // Empty wakes, of which nothing is left.
                5..=7 => {
                    let key = ["s", "t", "k"][random.usize(0..3)];
                    for _ in 0..random.usize(1..40) {
                        if key == "k" {
                            bench.push(key, &["taken by others"]);
                        } else if random.bool() {
                            bench.add(key);
                        }
                        bench.clear(key);
                        bench.exchange();
                    }
                }
                8 => bench.server_runs(),
                9 => bench.read(),
                _ => {
                    bench.now += Duration::from_millis(random.u64(0..4));
                    let now = bench.now;
                    bench.waitlist.expire(now);
                }
            }
        }
        bench.settle();
        for (call, id, desk) in &desks {
            if !desk.got.borrow().is_empty() || desk.ended.borrow().is_some() {
                continue;
            }
            assert!(bench.waitlist.waiters.contains_key(id), "seed {seed}: {call} is forgotten");
            let words: Vec<&str> = call.split(' ').collect();
            let there =
                |key: &str, after: u64| bench.model.streams[key].entries.range(after + 1..).count() > 0;
            let id = |word: &str| word.trim_end_matches("-0").parse::<u64>().unwrap();
            let missed = match words[..] {
                ["XREAD", _, _, _, key, after] => there(key, id(after)),
                ["XREAD", _, _, _, one, other, a, b] => there(one, id(a)) || there(other, id(b)),
                ["XREADGROUP", _, group, _, _, _, _, key, _] => {
                    there(key, bench.model.streams[key].groups[group])
                }
                _ => bench.model.lists.get("k").is_some_and(|list| !list.is_empty()),
            };
            assert!(!missed, "seed {seed}: {call} waits for what is there");
        }
    }
}
