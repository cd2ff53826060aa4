//! The same schedules directly and through the hub: blocking calls, pushes, timeouts, kills, compared byte for byte.
//!
//! A schedule is a list of steps over a few clients and keys, made from a seed. It runs before a server and before a
//! proxy with a server of the same version. After every step both sides come to rest (the hub's connection is in order,
//! so a call that looks there and finds nothing has seen everything before it), and then every client must have received
//! the same bytes on both. What differs by design is kept out of the schedules or masked, each with its reason:
//!
//! - A transaction that fills two keys of one waiting call: Redis 7.0 serves the key touched first, later versions and
//!   the hub the call's first. Transactions fill one key.
//! - A call that waits for two lists while another moves from one to the other: Redis 7.0 serves both for the list that
//!   was pushed to, later versions and the hub look at both lists anew after the move. A schedule has either.
//! - A call for two lists, one of which holds another type when the other is filled: from 7.2 on the server runs the call
//!   anew and answers with an error; 7.0 and the hub give it the element. Later servers get no strings.
//! - What stands behind a push in one pipeline: the server serves a waiter before the next command, the hub one round trip
//!   later. One push of a client in a schedule, by a script whose answer is not the length.
//! - An XREADGROUP that ends because its stream went away: the words differ between versions. Errors of XREADGROUP are
//!   compared as errors.
//!
//! A schedule that fails is cut down to the steps that matter and printed with its seed.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use redbouncer::resp::{self, ReplyScanner};

use crate::harness::{Client, Proxy, Server, Version, encode, long};

/// How long a call with a timeout waits.
const BRIEF: Duration = Duration::from_millis(300);
/// A schedule that has not come to its timeouts by then may meet them in the middle: it says nothing.
const SLOW: Duration = Duration::from_millis(180);

#[derive(Clone, Debug)]
enum Step {
    /// A client's command (or several in one write).
    Say(usize, Vec<String>),
    /// From a connection of its own, straight to the server.
    Push(Vec<String>),
    /// The client's connection is closed.
    Kill(usize),
    /// CLIENT UNBLOCK.
    Unblock(usize, &'static str),
    /// All brief timeouts pass.
    Expire,
    /// One behind the other, with no rest between them.
    Together(Vec<Step>),
}

/// One client's connection and all it has received.
struct Wire {
    socket: Option<TcpStream>,
    id: i64,
    got: Vec<u8>,
}

impl Wire {
    fn open(address: SocketAddr, protocol: usize) -> Self {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.write_all(&encode(&["HELLO", &protocol.to_string()])).unwrap();
        socket.write_all(&encode(&["CLIENT", "ID"])).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut wire = Self { socket: Some(socket), id: 0, got: Vec::new() };
        let start = Instant::now();
        let id = loop {
            wire.read();
            let hello = ReplyScanner::default().step(&wire.got).unwrap();
            if hello.complete.is_some()
                && let Some(id) = resp::integer(&wire.got[hello.consumed..])
            {
                break id;
            }
            assert!(start.elapsed() < Duration::from_secs(5), "no answer to CLIENT ID");
            thread::sleep(Duration::from_micros(200));
        };
        wire.id = id;
        wire.got.clear();
        wire
    }

    fn read(&mut self) {
        let Some(socket) = &mut self.socket else { return };
        let mut chunk = [0; 16 << 10];
        loop {
            match socket.read(&mut chunk) {
                Ok(0) => {
                    self.got.extend_from_slice(b"<closed>");
                    self.socket = None;
                    return;
                }
                Ok(came) => self.got.extend_from_slice(&chunk[..came]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.got.extend_from_slice(b"<closed>");
                    self.socket = None;
                    return;
                }
            }
        }
    }
}

/// Where a schedule runs.
struct World {
    server: SocketAddr,
    address: SocketAddr,
    wires: Vec<Wire>,
    pusher: Client,
    /// Looks at clients and kills them; through the proxy where there is one.
    control: Client,
    barrier: Option<Client>,
    answers: String,
}

impl World {
    fn open(server: SocketAddr, proxy: Option<SocketAddr>, clients: usize) -> Self {
        let address = proxy.unwrap_or(server);
        Self {
            server,
            address,
            wires: (0..clients).map(|i| Wire::open(address, 2 + i % 2)).collect(),
            pusher: Client::connect(server),
            control: Client::connect(address),
            barrier: proxy.map(Client::connect),
            answers: String::new(),
        }
    }

    fn act(&mut self, step: &Step, prefix: &str) {
        let named = |words: &str| words.replace('@', prefix);
        match step {
            Step::Say(client, commands) => {
                let mut bytes = Vec::new();
                for command in commands {
                    bytes.extend(encode(&named(command).split(' ').collect::<Vec<_>>()));
                }
                if let Some(socket) = &mut self.wires[*client].socket {
                    let _ = socket.write_all(&bytes);
                }
            }
            Step::Push(commands) => {
                for command in commands {
                    let reply = self.pusher.call(&named(command));
                    let _ = writeln!(self.answers, "{:?}", reply.raw);
                }
            }
            Step::Kill(client) => {
                let wire = &mut self.wires[*client];
                wire.read();
                wire.socket = None;
                let id = wire.id;
                let start = Instant::now();
                while self.control.call(&format!("CLIENT LIST ID {id}")).text().contains("id=") {
                    assert!(start.elapsed() < Duration::from_secs(5), "the client is not forgotten");
                }
            }
            Step::Unblock(client, how) => {
                let reply = self.control.call(&format!("CLIENT UNBLOCK {} {how}", self.wires[*client].id));
                let _ = writeln!(self.answers, "{:?}", reply.raw);
            }
            Step::Together(steps) => steps.iter().for_each(|step| self.act(step, prefix)),
            Step::Expire => thread::sleep(BRIEF + Duration::from_millis(60)),
        }
    }

    /// Everything that was set in motion has happened.
    fn rest(&mut self, round: &mut u64) {
        // The server has read what the clients wrote before.
        self.control.call("PING");
        if let Some(barrier) = &mut self.barrier {
            for _ in 0..4 {
                *round += 1;
                // A client that has written looks for itself, on the hub's connection, behind all that is in flight.
                barrier.call("PING");
                barrier.call(&format!("BLPOP barrier:{round} 0.001"));
            }
        }
        self.wires.iter_mut().for_each(Wire::read);
    }

    fn contents(&mut self, prefix: &str) -> String {
        let mut text = self.answers.clone();
        for key in KEYS {
            let key = format!("{prefix}{key}");
            let kind = self.pusher.call(&format!("TYPE {key}")).text();
            let question = match kind.as_str() {
                "list" => format!("LRANGE {key} 0 -1"),
                "zset" => format!("ZRANGE {key} 0 -1 WITHSCORES"),
                "stream" => format!("XRANGE {key} - +"),
                _ => format!("GET {key}"),
            };
            let _ = writeln!(text, "{key} {kind} {:?}", self.pusher.call(&question).raw);
        }
        text
    }
}

const KEYS: [&str; 6] = ["a", "b", "y", "z", "s", "t"];

/// Compared as errors only where the words differ between versions.
fn masked(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let lines = text.split_inclusive("\r\n").map(|line| {
        let odd =
            ["-NOGROUP", "-UNBLOCKED the stream", "-WRONGTYPE"].iter().any(|code| line.starts_with(code));
        if odd { "-(the stream is gone)\r\n" } else { line }
    });
    lines.collect()
}

fn empty_wakes(kind: usize) -> Vec<String> {
    let one = match kind {
        0 => vec!["MULTI", "RPUSH @a taken", "RPOP @a", "EXEC"],
        1 => vec!["MULTI", "RPUSH @b taken", "RPOP @b", "EXEC"],
        2 => vec!["PEXPIRE @s 100000000", "XDEL @s 1-0"],
        _ => vec!["XTRIM @t MAXLEN 1000", "PEXPIRE @t 100000000"],
    };
    one.iter().map(|words| (*words).to_owned()).cycle().take(one.len() * 40).collect()
}

fn schedule(seed: u64, strings: bool) -> (usize, Vec<Step>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let clients = random.usize(1..5);
    let mut steps = vec![Step::Push(vec!["XGROUP CREATE @t g $ MKSTREAM".to_owned()])];
    let mut number = 0;
    let mut next = || {
        number += 1;
        number
    };
    let (moves, mut has_pushed) = (random.bool(), false);
    for _ in 0..random.usize(4..14) {
        let client = random.usize(0..clients);
        let step = match random.usize(0..24) {
            0..=8 => {
                let timeout = if random.usize(0..4) == 0 { "0.3" } else { "0" };
                let millis = if timeout == "0" { "0" } else { "300" };
                let list = ["@a", "@b", "@a @b", "@b @a"][random.usize(0..if moves { 2 } else { 4 })];
                let zset = ["@z", "@y", "@y @z"][random.usize(0..3)];
                let call = match random.usize(0..11) {
                    0 | 1 => format!("BLPOP {list} {timeout}"),
                    2 => format!("BRPOP {list} {timeout}"),
                    3 if !moves => format!("BLMPOP {timeout} 2 @b @a RIGHT COUNT {}", random.usize(1..4)),
                    4 if moves => format!("BLMOVE @a @b LEFT RIGHT {timeout}"),
                    5 if moves => format!("BRPOPLPUSH @b @a {timeout}"),
                    3..=5 => format!("BLMPOP {timeout} 1 @a LEFT COUNT {}", random.usize(1..4)),
                    6 => format!("BZPOPMIN {zset} {timeout}"),
                    7 => format!("BZPOPMAX {zset} {timeout}"),
                    8 => format!("BZMPOP {timeout} 1 @z MIN COUNT 2"),
                    9 => {
                        format!("XREAD COUNT 2 BLOCK {millis} STREAMS @s {}", ["$", "0"][random.usize(0..2)])
                    }
                    _ => format!("XREADGROUP GROUP g c{client} BLOCK {millis} STREAMS @t >"),
                };
                let mut commands = vec![call];
                if random.usize(0..5) == 0 {
                    commands.push(format!("ECHO {}", next()));
                }
                Step::Say(client, commands)
            }
            9..=13 => {
                let push = match random.usize(0..12) {
                    0 => format!("RPUSH @a v{}", next()),
                    1 => format!("RPUSH @b v{} v{} v{}", next(), next(), next()),
                    2 => format!("LPUSH @a v{} v{}", next(), next()),
                    3 => format!("ZADD @z {} m{}", random.usize(0..9), next()),
                    4 => format!("ZADD @y {}.5 m{} 2 m{}", random.usize(0..9), next(), next()),
                    5 | 6 => format!("XADD @s 1-{} f v", next()),
                    7 | 8 => format!("XADD @t 1-{} f v", next()),
                    9 => "DEL @a".to_owned(),
                    10 => "RENAME @a @b".to_owned(),
                    _ if strings => "SET @b string".to_owned(),
                    _ => "SET @c string".to_owned(),
                };
                Step::Push(vec![push])
            }
            14 => Step::Push(
                [
                    "MULTI".to_owned(),
                    format!("RPUSH @a v{}", next()),
                    format!("RPUSH @a v{}", next()),
                    "EXEC".to_owned(),
                ]
                .into(),
            ),
            15 => Step::Push(vec![format!(
                "EVAL redis.call('RPUSH',KEYS[1],ARGV[1]);return(redis.call('RPUSH',KEYS[1],ARGV[2])) 1 @b v{} v{}",
                next(),
                next()
            )]),
            16 => Step::Kill(client),
            17 => Step::Unblock(client, ["TIMEOUT", "ERROR"][random.usize(0..2)]),
            18 if !std::mem::replace(&mut has_pushed, true) => Step::Say(
                client,
                vec![format!("EVAL redis.call('RPUSH',KEYS[1],ARGV[1]);return('pushed') 1 @a v{}", next())],
            ),
            19 => Step::Expire,
            // Wakes that bring nothing, as by consumers elsewhere, EXPIRE, XTRIM or XDEL.
            20 | 21 => Step::Push(empty_wakes(random.usize(0..4))),
            // A call that arrives while a wake is put off.
            _ => {
                let (push, call) = match random.usize(0..4) {
                    0 => (format!("RPUSH @a v{}", next()), "BLPOP @a 0".to_owned()),
                    1 => (format!("RPUSH @b v{}", next()), "BLPOP @b 0.3".to_owned()),
                    2 => (format!("XADD @s 1-{} f v", next()), "XREAD BLOCK 0 STREAMS @s 0".to_owned()),
                    _ => (
                        format!("XADD @t 1-{} f v", next()),
                        format!("XREADGROUP GROUP g c{client} BLOCK 0 STREAMS @t >"),
                    ),
                };
                let empty = Step::Push(empty_wakes(random.usize(0..4)));
                Step::Together(vec![empty, Step::Push(vec![push]), Step::Say(client, vec![call])])
            }
        };
        steps.push(step);
    }
    steps.push(Step::Expire);
    (clients, steps)
}

/// The difference that a schedule shows, if it shows one. `Err`: it was too slow to tell.
fn difference(
    servers: (SocketAddr, SocketAddr, SocketAddr),
    clients: usize,
    steps: &[Step],
    prefix: &str,
    round: &mut u64,
) -> Result<Option<String>, ()> {
    let (direct, behind, proxy) = servers;
    let mut worlds = [World::open(direct, None, clients), World::open(behind, Some(proxy), clients)];
    let mut begun: Option<Instant> = None;
    for (at, step) in steps.iter().enumerate() {
        let said = match step {
            Step::Together(steps) => steps.last().unwrap_or(step),
            _ => step,
        };
        if let Step::Say(_, commands) = said
            && commands[0].contains("0.3") | commands[0].contains(" 300 ")
        {
            begun.get_or_insert_with(Instant::now);
        }
        if matches!(step, Step::Expire) {
            if begun.take().is_some_and(|begun| begun.elapsed() > SLOW) {
                return Err(());
            }
            thread::scope(|scope| {
                for world in &mut worlds {
                    scope.spawn(|| world.act(step, prefix));
                }
            });
        } else {
            worlds.iter_mut().for_each(|world| world.act(step, prefix));
        }
        let start = Instant::now();
        loop {
            worlds.iter_mut().for_each(|world| world.rest(round));
            let [one, other] = &worlds;
            let differing =
                one.wires.iter().zip(&other.wires).position(|(a, b)| masked(&a.got) != masked(&b.got));
            let Some(client) = differing else { break };
            if start.elapsed() > Duration::from_millis(400) {
                if begun.is_some_and(|begun| begun.elapsed() > SLOW) {
                    return Err(());
                }
                return Ok(Some(format!(
                    "after step {at} client {client}\n  directly: {}\n  proxied:  {}",
                    masked(&one.wires[client].got).escape_debug(),
                    masked(&other.wires[client].got).escape_debug()
                )));
            }
        }
    }
    let [one, other] = &mut worlds;
    assert_ne!((one.server, one.address), (other.server, other.address));
    let (direct, proxied) = (one.contents(prefix), other.contents(prefix));
    Ok((direct != proxied).then(|| format!("at the end\n{direct}\n-- proxied:\n{proxied}")))
}

/// Redis 7.2 and later (and Valkey, which calls itself 7.2.4 there) run a blocked client's call anew when it is woken.
fn runs_calls_anew(server: SocketAddr) -> bool {
    let info = Client::connect(server).call("INFO server").text();
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap();
    let mut parts = version.trim().split('.').map(|part| part.parse::<u32>().unwrap());
    (parts.next(), parts.next()) >= (Some(7), Some(2))
}

#[test]
fn schedules_end_alike_directly_and_through_the_hub() {
    let (count, span) = if long() { (3_000, 600) } else { (60, 20) };
    let first: u64 = std::env::var("REDBOUNCER_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    for version in Version::all().into_iter().filter(Version::has_hub) {
        let options = ["--hz", "100"];
        let (direct, behind) =
            (Server::start_version(&version, &options), Server::start_version(&version, &options));
        let strings = !runs_calls_anew(direct.address());
        let proxy = Proxy::start(&behind, &[]);
        let servers = (direct.address(), behind.address(), proxy.address());
        let next = AtomicU64::new(first);
        let (compared, slow) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let failure = Mutex::new(None);
        let start = Instant::now();
        thread::scope(|scope| {
            for worker in 0..6_u64 {
                let (next, compared, slow, failure) = (&next, &compared, &slow, &failure);
                scope.spawn(move || {
                    let mut round = worker << 40;
                    loop {
                        let seed = next.fetch_add(1, SeqCst);
                        let late = start.elapsed() > Duration::from_secs(span);
                        if seed >= first + count || late || failure.lock().unwrap().is_some() {
                            return;
                        }
                        let (clients, steps) = schedule(seed, strings);
                        match difference(servers, clients, &steps, &format!("{seed}:"), &mut round) {
                            Ok(None) => drop(compared.fetch_add(1, SeqCst)),
                            Err(()) => drop(slow.fetch_add(1, SeqCst)),
                            Ok(Some(what)) => *failure.lock().unwrap() = Some((seed, what)),
                        }
                    }
                });
            }
        });
        let found = failure.into_inner().unwrap();
        if let Some((seed, what)) = found {
            let (clients, mut steps) = schedule(seed, strings);
            let (mut what, mut round, mut tries) = (what, 1 << 60, 0);
            // Steps that can go without the difference going too.
            let mut at = 0;
            while at < steps.len() && tries < 200 {
                let mut fewer = steps.clone();
                fewer.remove(at);
                tries += 1;
                match difference(servers, clients, &fewer, &format!("shrunk:{tries}:"), &mut round) {
                    Ok(Some(same)) => (steps, what) = (fewer, same),
                    Ok(None) | Err(()) => at += 1,
                }
            }
            let program: Vec<String> = steps.iter().map(|step| format!("  {step:?}")).collect();
            panic!("{}: seed {seed}, {clients} clients:\n{}\n{what}", version.name, program.join("\n"));
        }
        let (compared, slow) = (compared.into_inner(), slow.into_inner());
        println!(
            "{}: {compared} schedules alike, {slow} too slow to tell, {:?}",
            version.name,
            start.elapsed()
        );
        assert!(compared > slow, "{compared} compared, {slow} too slow");
    }
}
