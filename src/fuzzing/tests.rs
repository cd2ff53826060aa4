//! The short form of `make fuzz`: the minimised corpora, and random changes of them for a moment.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::{Property, TARGETS};

/// How long each target's inputs are changed at random; `REDBOUNCER_FUZZ_MS` says otherwise.
const MOMENT: Duration = Duration::from_millis(500);
/// The longest input that is made here.
const LONGEST: usize = 2048;
/// What a random change may put in.
const WORDS: [&[u8]; 14] = [
    b"\r\n",
    b"*1\r\n",
    b"*2\r\n",
    b"$3\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"|1\r\n",
    b"%1\r\n",
    b">2\r\n",
    b"_\r\n",
    b"\"",
    b"\\x",
    b"9223372036854775807",
    b"-ERR x\r\n",
];

/// The inputs of `target` that are kept, by name.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut paths: Vec<_> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Runs one input; where a property fails, the input is told with it.
fn run(target: &str, property: Property, input: &[u8], origin: &str) {
    if catch_unwind(AssertUnwindSafe(|| property(input))).is_err() {
        // What failed has been told by the panic itself.
        panic!("{target}, {origin}: \"{}\"", input.escape_ascii());
    }
}

fn changed(random: &mut fastrand::Rng, inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut input = inputs[random.usize(..inputs.len())].clone();
    for _ in 0..random.usize(1..6) {
        let at = random.usize(..=input.len());
        match random.usize(..6) {
            0 if at < input.len() => input[at] = random.u8(..),
            1 if at < input.len() => input[at] ^= 1 << random.u8(..8),
            2 => {
                let end = (at + random.usize(..16)).min(input.len());
                input.drain(at..end);
            }
            3 => drop(input.splice(at..at, WORDS[random.usize(..WORDS.len())].iter().copied())),
            4 => {
                let other = &inputs[random.usize(..inputs.len())];
                let from = random.usize(..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => input.insert(at, random.u8(..)),
        }
    }
    input.truncate(LONGEST);
    input
}

/// Replays the corpus of `target`, then changes of it.
fn holds(target: &str) {
    let (_, property) = TARGETS.into_iter().find(|(name, _)| *name == target).unwrap();
    let mut inputs = corpus(target);
    for input in &inputs {
        run(target, property, input, "of the corpus");
    }
    inputs.push(Vec::new());
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("REDBOUNCER_SEED").unwrap_or(1);
    let moment = number("REDBOUNCER_FUZZ_MS").map_or(MOMENT, Duration::from_millis);
    let mut random = fastrand::Rng::with_seed(seed);
    let end = Instant::now() + moment;
    while Instant::now() < end {
        let input = changed(&mut random, &inputs);
        run(target, property, &input, &format!("changed at random, REDBOUNCER_SEED={seed}"));
    }
}

macro_rules! targets {
    ($($test:ident: $target:literal),*) => {
        $(
            #[test]
            fn $test() {
                holds($target);
            }
        )*

        #[test]
        fn every_target_is_run_here_and_has_a_program() {
            let run = [$($target),*];
            assert_eq!(TARGETS.map(|(name, _)| name), run);
            let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
            let mut found: Vec<_> = fs::read_dir(programs)
                .unwrap()
                .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
                .collect();
            found.sort();
            let mut expected = run.map(str::to_owned);
            expected.sort();
            assert_eq!(found, expected);
        }
    };
}

targets! {
    requests_mean_the_same_whole_and_in_pieces: "requests",
    replies_mean_the_same_whole_and_in_pieces: "replies",
    inline_words_are_the_same_when_they_are_quoted: "inline",
    a_url_is_shown_as_it_was_understood_and_without_its_password: "url",
    a_users_file_is_refused_or_lets_somebody_in: "users",
    a_waitlist_loses_and_doubles_nothing: "waitlist",
    a_lease_knows_what_is_on_its_connection: "lease",
    the_whole_proxy_gives_every_reply_to_whom_it_belongs: "proxy"
}
