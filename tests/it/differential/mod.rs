//! The same sequences of commands directly and through the proxy: every byte that every client receives is compared.
//!
//! A sequence is made from a seed ([`generate`]), mostly with some trouble in it ([`trouble`]), and played before a server
//! and before a proxy with a server of the same version ([`world`]); what may differ is masked, each thing with its reason
//! ([`mask`]). What can befall a client of the proxy alone (a full pool, a killed lease) is carried over to the direct world
//! ([`fate`]). A sequence that shows a difference is cut down to what matters and printed as text that can be played again:
//!
//! ```text
//! REDBOUNCER_SEQUENCE=file cargo nextest run differential   # plays what a failure has printed
//! REDBOUNCER_SEED=n        cargo nextest run differential   # begins with that seed
//! REDBOUNCER_ONLY=valkey-9 cargo nextest run differential   # before the servers whose name has that in it
//! REDBOUNCER_TROUBLE=kills cargo nextest run differential   # every sequence has this trouble, or one of these: a,b
//! make differential                                         # 100,000 sequences on each server; or REDBOUNCER_COUNT=n
//! ```

mod comparison;
mod fate;
mod generate;
mod holds;
mod mask;
mod record;
mod regressions;
mod runner;
mod sequence;
mod trouble;
mod troubles;
mod vocabulary;
mod wire;

use std::collections::HashMap;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use comparison::{Outcome, Patience, Play};
use fate::Fates;
use generate::{Abilities, is_comparable, sequence};
use runner::World;
use sequence::{Request, Sequence, Step};
use trouble::{RENAMED, Setup, Trouble};

use crate::harness::{Client, Proxy, Server, Version, long};

/// How long a reply may stay out before it is missing.
const PATIENT: Patience = Patience(Duration::from_secs(20));
/// The same while a sequence that has failed already is cut down.
const IMPATIENT: Patience = Patience(Duration::from_millis(400));
/// Differences after which a run stops.
const ENOUGH: usize = 5;

/// How long one is cut down.
const SHRINKING: Duration = Duration::from_secs(20);
/// How many sequences are played at the same time: they mostly wait, for round trips and for times to pass.
const PLAYERS: usize = 4;

/// Two servers of one version, one of them behind a proxy.
struct Pair {
    abilities: Abilities,
    direct: World,
    proxied: World,
    _proxy: Proxy,
    _servers: [Server; 2],
}

impl Pair {
    fn start(version: &Version, setup: Setup) -> Self {
        // A timeout is seen within 10 ms instead of 100; our own connection comes from another loopback address.
        let mut options = vec!["--hz", "100", "--protected-mode", "no"];
        let renamed = RENAMED.map(|name| (name, format!("X{name}")));
        if setup == Setup::Renamed {
            options.extend(renamed.iter().flat_map(|(name, other)| ["--rename-command", name, other]));
        }
        let servers = [Server::start_version(version, &options), Server::start_version(version, &options)];
        // None waits for the next dial.
        let mut settings = vec!["upstream.connect_rate=100000"];
        match setup {
            // Every client of a sequence may hold a lease.
            Setup::Ample | Setup::Renamed => settings.push("pool.max_connections=32"),
            // A call that waits, and nobody else, learns of the demotion with the next heartbeat. No master comes in its place, so
            // nothing is to wait for one.
            Setup::Fickle => {
                settings.extend([
                    "pool.max_connections=32",
                    "hygiene.heartbeat=1s",
                    "upstream.failover_wait=0",
                ]);
            }
            Setup::Scarce => settings.extend(["pool.max_connections=4", "pool.wait_timeout=400ms"]),
        }
        let proxy = Proxy::start(&servers[1], &settings);
        let direct = World::direct(&servers[0], setup);
        let proxied = World::proxied(&servers[1], &proxy, setup, version.has_hub());
        Self { abilities: abilities(&servers[0]), direct, proxied, _proxy: proxy, _servers: servers }
    }

    fn difference(&mut self, sequence: &Sequence, patience: Patience) -> Option<String> {
        let playing = Playing(sequence);
        let difference = self.play(sequence, patience);
        drop(playing);
        difference
    }

    /// Plays the sequence in both worlds; the first difference, if there is one. What befalls it before the proxy alone is
    /// carried over into the direct world, which is played again then.
    fn play(&mut self, sequence: &Sequence, patience: Patience) -> Option<String> {
        let fates = Fates::default();
        let record = self.direct.record(sequence, &fates);
        let mut play = Play { sequence, record, fates, patience };
        self.proxied.begin(sequence);
        let mut number = 0;
        let mut is_done = false;
        let difference = loop {
            let outcome = if number == sequence.steps.len() {
                self.proxied.end(&play)
            } else if is_done {
                self.proxied.come_out(&play, number)
            } else {
                self.proxied.step(&play, number)
            };
            match outcome {
                Outcome::Alike if number == sequence.steps.len() => break None,
                Outcome::Alike => (number, is_done) = (number + 1, false),
                Outcome::Differs(what) => break Some(what),
                Outcome::Befell(fates) => {
                    is_done = true;
                    play.record = self.direct.record(sequence, &fates);
                    play.fates = fates;
                }
            }
        };
        self.proxied.finish(sequence);
        difference
    }

    /// The smallest sequence found that still shows a difference, and that difference.
    fn shrink(&mut self, mut sequence: Sequence, mut what: String) -> (Sequence, String) {
        let start = Instant::now();
        loop {
            let mut candidates = smaller(&sequence);
            candidates.retain(|candidate| is_comparable(candidate, &self.abilities));
            let found = candidates.into_iter().find_map(|candidate| {
                (start.elapsed() < SHRINKING)
                    .then(|| self.difference(&candidate, IMPATIENT))
                    .flatten()
                    .map(|what| (candidate, what))
            });
            match found {
                Some(found) => (sequence, what) = found,
                None => return (sequence, what),
            }
        }
    }
}

/// One version with every setup that has been needed.
struct Pairs<'a> {
    version: &'a Version,
    started: HashMap<Setup, Pair>,
}

impl<'a> Pairs<'a> {
    fn of(version: &'a Version) -> Self {
        Self { version, started: HashMap::new() }
    }

    fn pair(&mut self, trouble: Trouble) -> &mut Pair {
        let setup = trouble.setup();
        self.started.entry(setup).or_insert_with(|| Pair::start(self.version, setup))
    }
}

/// Says what was played when a server or the harness gives up.
struct Playing<'a>(&'a Sequence);

impl Drop for Playing<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("in the middle of\n{}", self.0);
        }
    }
}

/// The steps alone, as they are printed.
fn steps_of(sequence: &Sequence) -> String {
    sequence.to_string().split_once('\n').map_or_else(String::new, |(_, steps)| format!("\n{steps}step"))
}

/// What this version has.
fn abilities(server: &Server) -> Abilities {
    let mut client = Client::connect(server.address());
    let knows =
        |client: &mut Client, command: &str| !client.call(command).text().to_lowercase().contains("unknown");
    let names = client.call("COMMAND").items().iter().map(|row| row.items()[0].text()).collect();
    Abilities {
        commands: names,
        set_info: knows(&mut client, "CLIENT SETINFO LIB-NAME x"),
        no_evict: knows(&mut client, "CLIENT NO-EVICT off"),
        loose_lines: {
            let mut client = Client::connect(server.address());
            client.send("*1\rX$4\rXPING\r\n");
            client.reply().text() == "PONG"
        },
        shards: !client.call("SPUBLISH a b").raw.starts_with(b"-"),
        no_touch: knows(&mut client, "CLIENT NO-TOUCH off"),
    }
}

/// Every sequence that is this one with a little less.
fn smaller(sequence: &Sequence) -> Vec<Sequence> {
    let mut found = Vec::new();
    let mut offer = |steps: Vec<Step>| {
        let Sequence { trouble, clients, .. } = sequence.clone();
        found.push(Sequence { trouble, clients, steps });
    };
    let steps = &sequence.steps;
    if steps.len() > 3 {
        offer(steps[..steps.len() / 2].to_vec());
        offer(steps[steps.len() / 2..].to_vec());
    }
    for at in 0..steps.len() {
        let mut fewer = steps.clone();
        fewer.remove(at);
        offer(fewer);
    }
    for (at, step) in steps.iter().enumerate() {
        let Step::Write { client, requests, cuts, tail } = step else { continue };
        let mut replaced = |requests: Vec<Request>, cuts: Vec<usize>| {
            let mut changed = steps.clone();
            changed[at] = Step::Write { client: *client, requests, cuts, tail: *tail };
            offer(changed);
        };
        if !cuts.is_empty() {
            replaced(requests.clone(), Vec::new());
        }
        for number in (0..requests.len()).filter(|_| requests.len() > 1) {
            let mut fewer = requests.clone();
            fewer.remove(number);
            replaced(fewer, cuts.clone());
        }
    }
    found
}

/// What is played: from which seed on, how many, for how long at the most, with which troubles.
struct Program {
    first: u64,
    count: u64,
    span: Duration,
    troubles: Vec<Trouble>,
}

impl Program {
    /// What the environment asks for.
    fn read() -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
        let named = std::env::var("REDBOUNCER_TROUBLE").unwrap_or_default();
        let troubles = named.split(',').filter(|name| !name.is_empty());
        let troubles =
            troubles.map(|name| Trouble::named(name).unwrap_or_else(|| panic!("no trouble: {name}")));
        Self {
            first: number("REDBOUNCER_SEED").unwrap_or(1),
            count: number("REDBOUNCER_COUNT").unwrap_or(if long() { 100_000 } else { 600 }),
            span: Duration::from_secs(if long() { 7_200 } else { 8 }),
            troubles: troubles.collect(),
        }
    }

    fn trouble(&self, seed: u64) -> Trouble {
        if self.troubles.is_empty() {
            Trouble::of_seed(seed)
        } else {
            self.troubles[usize::try_from(seed).unwrap() % self.troubles.len()]
        }
    }
}

/// Plays the sequences before one version; what was different, and how many were alike.
fn run(version: &Version, program: &Program) -> (Vec<String>, usize) {
    let (next, alike, found) = (AtomicU64::new(program.first), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let each = Mutex::new(HashMap::<&str, (usize, Duration)>::new());
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..PLAYERS {
            scope.spawn(|| {
                let mut pairs = Pairs::of(version);
                while start.elapsed() < program.span && found.lock().unwrap().len() < ENOUGH {
                    let seed = next.fetch_add(1, SeqCst);
                    if seed >= program.first + program.count {
                        return;
                    }
                    let trouble = program.trouble(seed);
                    let pair = pairs.pair(trouble);
                    let sequence = sequence(seed, trouble, &pair.abilities);
                    let begun = Instant::now();
                    let Some(what) = pair.difference(&sequence, PATIENT) else {
                        alike.fetch_add(1, SeqCst);
                        let mut each = each.lock().unwrap();
                        let (count, took) = each.entry(trouble.name()).or_default();
                        (*count, *took) = (*count + 1, *took + begun.elapsed());
                        continue;
                    };
                    let again = (0..3).filter(|_| pair.difference(&sequence, PATIENT).is_some()).count();
                    // What does not come again cannot be cut down either.
                    let (sequence, what) =
                        if again == 0 { (sequence, what) } else { pair.shrink(sequence, what) };
                    // The same difference again tells nothing new.
                    if found.lock().unwrap().iter().any(|text: &String| text.contains(&steps_of(&sequence))) {
                        continue;
                    }
                    let title = format!(
                        "# {name}, seed {seed}, again {again} of 3 times: REDBOUNCER_ONLY={name} REDBOUNCER_TROUBLE={} \
                         REDBOUNCER_SEED={seed} REDBOUNCER_COUNT=1 cargo nextest run differential::sequences",
                        trouble.name(),
                        name = version.name,
                    );
                    let text = format!("{title}\n{sequence}{what}\n");
                    if long() {
                        println!("{text}");
                    }
                    found.lock().unwrap().push(text);
                }
            });
        }
    });
    let alike = alike.into_inner();
    let (took, rate) = (start.elapsed(), alike as f64 / start.elapsed().as_secs_f64());
    println!("{}: {alike} sequences alike, {took:.1?}, {rate:.0} a second", version.name);
    for (trouble, (count, took)) in each.into_inner().unwrap() {
        println!("    {trouble}: {count}, {:.1?} each", took / u32::try_from(count).unwrap());
    }
    (found.into_inner().unwrap(), alike)
}

#[test]
fn sequences_are_answered_alike_directly_and_through_the_proxy() {
    let program = Program::read();
    let only = std::env::var("REDBOUNCER_ONLY").ok();
    let mut differences = Vec::new();
    for version in Version::all() {
        if only.as_ref().is_some_and(|only| !version.name.contains(only)) {
            continue;
        }
        let (found, alike) = run(&version, &program);
        differences.extend(found);
        assert!(alike > 0 || !differences.is_empty(), "{}: nothing was played", version.name);
    }
    assert!(differences.is_empty(), "{} differences\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn what_was_found_once_stays_mended() {
    for version in Version::all() {
        let mut pairs = Pairs::of(&version);
        for (fault, text) in regressions::FOUND {
            let sequence: Sequence = text.parse().unwrap();
            let difference = pairs.pair(sequence.trouble).difference(&sequence, PATIENT);
            assert!(difference.is_none(), "{}: {fault}: {}", version.name, difference.unwrap());
        }
    }
}

/// Plays the sequence in the file that REDBOUNCER_SEQUENCE names, on every server.
#[test]
fn a_printed_sequence_is_played_again() {
    let text = std::env::var("REDBOUNCER_SEQUENCE").map(|path| std::fs::read_to_string(path).unwrap());
    let text = text.unwrap_or_else(|_| "clients 2\n0: SET s1 v | GET s1\n".to_owned());
    let sequence: Sequence = text.parse().unwrap();
    let only = std::env::var("REDBOUNCER_ONLY").ok();
    for version in Version::all() {
        if only.as_ref().is_some_and(|only| !version.name.contains(only)) {
            continue;
        }
        let difference = Pairs::of(&version).pair(sequence.trouble).difference(&sequence, PATIENT);
        assert!(difference.is_none(), "{}: {}", version.name, difference.unwrap());
    }
}
