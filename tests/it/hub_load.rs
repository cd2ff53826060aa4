//! Thousands of blocked clients on eight connections: who gets what, how soon, and what it costs the server.
//!
//! Every element carries a number, so that "delivered once, to a rightful waiter" is counted and not believed. The
//! times depend on the machine; the same clients run directly against the same server in the same test, in alternating
//! slices, and only ratios are judged. The long forms (`make bench-hubs`) are as large as the promises are.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use redbouncer::resp::ReplyScanner;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

use crate::harness::{Proxy, Relay, Sampler, Server, encode, long};

fn runtime() -> LocalRuntime {
    Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap()
}

/// What one client waits for.
#[derive(Clone, Debug)]
enum Wait {
    Zpop(String),
    Lpop(String),
    Read(String),
    Group(String, String, String),
}

impl Wait {
    fn key(&self) -> &str {
        match self {
            Self::Zpop(key) | Self::Lpop(key) | Self::Read(key) | Self::Group(key, ..) => key,
        }
    }

    fn command(&self, last: &str, seconds: u32) -> Vec<u8> {
        let (time, millis) = (seconds.to_string(), (seconds * 1000).to_string());
        match self {
            Self::Zpop(key) => encode(&["BZPOPMIN", key, &time]),
            Self::Lpop(key) => encode(&["BLPOP", key, &time]),
            Self::Read(key) => encode(&["XREAD", "BLOCK", &millis, "STREAMS", key, last]),
            Self::Group(key, group, consumer) => encode(&[
                "XREADGROUP",
                "GROUP",
                group,
                consumer,
                "BLOCK",
                &millis,
                "NOACK",
                "STREAMS",
                key,
                ">",
            ]),
        }
    }

    fn push(&self, number: u64) -> Vec<u8> {
        let value = format!("@{number}@");
        match self {
            Self::Zpop(key) => encode(&["ZADD", key, "0", &value]),
            Self::Lpop(key) => encode(&["RPUSH", key, &value]),
            Self::Read(key) | Self::Group(key, ..) => encode(&["XADD", key, "*", "v", &value]),
        }
    }
}

/// One reply, whole.
async fn reply(socket: &mut TcpStream, buffer: &mut BytesMut) -> std::io::Result<BytesMut> {
    let mut scanner = ReplyScanner::default();
    let mut seen = 0;
    loop {
        let step = scanner.step(&buffer[seen..]).expect("a reply");
        seen += step.consumed;
        if step.complete.is_some() {
            return Ok(buffer.split_to(seen));
        }
        if socket.read_buf(buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The numbers between `@` in a reply.
fn numbers(reply: &[u8]) -> Vec<u64> {
    let text = String::from_utf8_lossy(reply);
    text.split('@').skip(1).step_by(2).filter_map(|number| number.parse().ok()).collect()
}

/// What has been sent and received so far.
#[derive(Default)]
struct Book {
    sent: RefCell<HashMap<u64, (Instant, String)>>,
    received: RefCell<HashMap<u64, usize>>,
    latencies: RefCell<Vec<Duration>>,
    wrong: Cell<usize>,
    nils: Cell<usize>,
    next: Cell<u64>,
    /// Clients that were closed, and how.
    ended: RefCell<Vec<String>>,
}

impl Book {
    fn number(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    fn receive(&self, key: &str, reply: &[u8]) {
        let now = Instant::now();
        let found = numbers(reply);
        if found.is_empty() {
            self.nils.set(self.nils.get() + 1);
        }
        for number in found {
            *self.received.borrow_mut().entry(number).or_default() += 1;
            match self.sent.borrow().get(&number) {
                Some((at, sent_to)) if sent_to == key => self.latencies.borrow_mut().push(now - *at),
                _ => self.wrong.set(self.wrong.get() + 1),
            }
        }
    }

    fn doubled(&self, receivers: usize) -> usize {
        self.received.borrow().values().filter(|times| **times > receivers).count()
    }

    /// Median and 99th percentile of what was received since this was last asked.
    fn percentiles(&self) -> (Duration, Duration) {
        let mut all = std::mem::take(&mut *self.latencies.borrow_mut());
        all.sort();
        let at = |share: f64| all.get((all.len() as f64 * share) as usize).copied().unwrap_or_default();
        (at(0.5), at(0.99))
    }
}

/// A client that waits again as soon as it has got something.
async fn waiter(address: SocketAddr, wait: Wait, seconds: u32, book: Rc<Book>) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let mut buffer = BytesMut::new();
    let mut last = "0-0".to_owned();
    loop {
        let asked = socket.write_all(&wait.command(&last, seconds)).await;
        let frame = match asked.map_err(|error| error.to_string()) {
            Ok(()) => reply(&mut socket, &mut buffer).await.map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        let frame = frame.and_then(|frame| match frame.first() {
            Some(b'-') => Err(String::from_utf8_lossy(&frame).into_owned()),
            _ => Ok(frame),
        });
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                let number = book.received.borrow().len();
                book.ended.borrow_mut().push(format!("{wait:?} after {number}: {error}, {buffer:?}"));
                return;
            }
        };
        book.receive(wait.key(), &frame);
        if let Wait::Read(_) = wait {
            let text = String::from_utf8_lossy(&frame).into_owned();
            let ids = text.split("\r\n").filter(|line| line.contains('-') && !line.starts_with('$'));
            last = ids.filter(|id| id.len() > 8).last().map_or(last, str::to_owned);
        }
    }
}

/// Waits until so many clients are blocked, as CLIENT LIST of `address` has it.
async fn until_blocked(address: SocketAddr, count: usize) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let mut buffer = BytesMut::new();
    let start = Instant::now();
    loop {
        socket.write_all(&encode(&["CLIENT", "LIST"])).await.unwrap();
        let list = reply(&mut socket, &mut buffer).await.unwrap();
        let blocked = String::from_utf8_lossy(&list).matches(" flags=b ").count();
        if blocked >= count {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{blocked} of {count} are blocked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Pushes at random to the keys of `waits`, `rate` a second for `span`.
async fn push_at_random(server: SocketAddr, waits: &[Wait], rate: u32, span: Duration, book: &Book) -> usize {
    let mut socket = TcpStream::connect(server).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let (mut reader, mut writer) = socket.split();
    let mut sink = vec![0; 64 << 10];
    let mut random = fastrand::Rng::with_seed(7);
    let mut pace = tokio::time::interval(Duration::from_secs(1) / rate);
    let (start, mut pushed) = (Instant::now(), 0);
    while start.elapsed() < span {
        tokio::select! {
            _ = pace.tick() => {
                let wait = &waits[random.usize(0..waits.len())];
                let number = book.number();
                let bytes = wait.push(number);
                book.sent.borrow_mut().insert(number, (Instant::now(), wait.key().to_owned()));
                writer.write_all(&bytes).await.unwrap();
                pushed += 1;
            }
            came = reader.read(&mut sink) => assert!(came.unwrap() > 0),
        }
    }
    pushed
}

struct Side {
    name: &'static str,
    address: SocketAddr,
    waits: Vec<Wait>,
    book: Rc<Book>,
    slices: Vec<(Duration, Duration)>,
    pushed: usize,
}

impl Side {
    fn start(name: &'static str, address: SocketAddr, waits: Vec<Wait>, seconds: u32) -> Self {
        let book = Rc::new(Book::default());
        for wait in &waits {
            tokio::task::spawn_local(waiter(address, wait.clone(), seconds, Rc::clone(&book)));
        }
        Self { name, address, waits, book, slices: Vec::new(), pushed: 0 }
    }

    async fn settle(&self, expected: usize) {
        let start = Instant::now();
        while self.book.received.borrow().len() < expected && start.elapsed() < Duration::from_secs(10) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn slice(&mut self, server: SocketAddr, rate: u32, span: Duration) {
        self.pushed += push_at_random(server, &self.waits, rate, span, &self.book).await;
        self.settle(self.pushed).await;
        self.slices.push(self.book.percentiles());
    }

    fn median(&self) -> Duration {
        let mut all: Vec<_> = self.slices.iter().map(|(median, _)| *median).collect();
        all.sort();
        all[all.len() / 2]
    }

    fn tail(&self) -> Duration {
        let mut all: Vec<_> = self.slices.iter().map(|(_, tail)| *tail).collect();
        all.sort();
        all[all.len() / 2]
    }

    fn judge(&self) {
        let book = &self.book;
        assert_eq!(book.received.borrow().len(), self.pushed, "{}: received of pushed", self.name);
        assert_eq!((book.doubled(1), book.wrong.get()), (0, 0), "{}: doubled, wrong", self.name);
        let ended = book.ended.borrow();
        assert!(ended.is_empty(), "{}: {} clients were closed: {:?}", self.name, ended.len(), ended.first());
        println!(
            "{:>8}: {} pushed, delivery p50 {:?} p99 {:?}",
            self.name,
            self.pushed,
            self.median(),
            self.tail()
        );
    }
}

fn mixed(prefix: &str, pops: usize, reads: usize) -> Vec<Wait> {
    let key = |kind: &str, i: usize| format!("{prefix}:{kind}:{i}");
    let zpops = (0..pops).map(|i| Wait::Zpop(key("zset", i)));
    let lpops = (0..pops).map(|i| Wait::Lpop(key("list", i)));
    let streams = (0..reads).map(|i| Wait::Read(key("stream", i)));
    let groups = (0..reads).map(|i| Wait::Group(key("group", i % 20), "g".to_owned(), format!("c{i}")));
    zpops.chain(lpops).chain(streams).chain(groups).collect()
}

fn make_groups(server: &Server, waits: &[Wait]) {
    let keys: HashSet<&str> =
        waits.iter().filter(|wait| matches!(wait, Wait::Group(..))).map(Wait::key).collect();
    for key in keys {
        server.call(&format!("XGROUP CREATE {key} g $ MKSTREAM"));
    }
}

#[test]
fn thousands_of_mixed_waiters_share_one_connection() {
    let (pops, reads, rate, slices) = if long() { (1_000, 200, 400, 8) } else { (100, 40, 150, 2) };
    let server = Server::start();
    let proxy = Proxy::start(&server, &[]);
    let sides = [mixed("direct", pops, reads), mixed("proxied", pops, reads)];
    sides.iter().for_each(|waits| make_groups(&server, waits));
    let count = sides[0].len();
    let at_rest = |rows: Vec<crate::harness::Row>| {
        rows.iter().filter(|row| row.get("name").starts_with("redbouncer:")).count()
    };
    runtime().block_on(async {
        let [direct, proxied] = sides;
        let mut proxied = Side::start("proxied", proxy.address(), proxied, 0);
        until_blocked(proxied.address, count).await;
        let sampler = Sampler::start(&server);
        let mut direct = Side::start("direct", server.address(), direct, 0);
        until_blocked(server.address(), count).await;
        for _ in 0..slices {
            direct.slice(server.address(), rate, Duration::from_secs(2)).await;
            proxied.slice(server.address(), rate, Duration::from_secs(2)).await;
        }
        let sampled = sampler.finish();
        let ours = at_rest(server.rows());
        println!("{count} blocked clients on {ours} upstream connections ({} in all)", sampled.peak);
        assert!(ours <= 8, "{ours} upstream connections");
        direct.judge();
        // A waiter that ended has its reason here: the only client that may leave is the one that listed them.
        let closed: Vec<_> = proxy
            .metrics()
            .into_iter()
            .filter(|(series, count)| series.starts_with("redbouncer_clients_closed") && *count > 0.0)
            .filter(|(series, _)| !series.contains("client_eof"))
            .collect();
        assert!(closed.is_empty(), "clients were closed: {closed:?}");
        proxied.judge();
        let ratio = proxied.median().as_secs_f64() / direct.median().as_secs_f64();
        let tails = proxied.tail().as_secs_f64() / direct.tail().as_secs_f64();
        println!("   ratio: p50 {ratio:.2}, p99 {tails:.2}");
        if long() {
            assert!(ratio <= 3.0, "median {ratio:.2} times the direct one");
            assert!(tails <= 2.0, "p99 {tails:.2} times the direct one");
        }
    });
}

/// CPU time of the server so far.
fn cpu(server: &Server) -> f64 {
    let field = |name: &str| server.info(name).parse::<f64>().unwrap();
    field("used_cpu_user_main_thread") + field("used_cpu_sys_main_thread")
}

fn commands(server: &Server) -> u64 {
    server.info("total_commands_processed").parse().unwrap()
}

/// Waits until the server has next to nothing to do.
async fn until_quiet(server: &Server) {
    let start = Instant::now();
    loop {
        let before = commands(server);
        tokio::time::sleep(Duration::from_millis(250)).await;
        if commands(server) - before <= 10 {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "the server is still busy");
    }
}

#[test]
fn a_thousand_idle_waiters_cost_the_server_next_to_nothing() {
    let (count, span) = if long() { (1_000, 60) } else { (300, 7) };
    let span = Duration::from_secs(span);
    let mut spent = Vec::new();
    // What the server does for nobody (its cron) is not what the clients cost it.
    let alone = {
        let server = Server::start();
        let before = cpu(&server);
        std::thread::sleep(span);
        cpu(&server) - before
    };
    for proxied in [false, true] {
        let server = Server::start();
        let proxy = Proxy::start(&server, &[]);
        let address = if proxied { proxy.address() } else { server.address() };
        let (cost, rate) = runtime().block_on(async {
            let waits = (0..count).map(|i| Wait::Zpop(format!("idle:{i}"))).collect();
            let side = Side::start("idle", address, waits, 5);
            until_blocked(address, count).await;
            if proxied {
                // Through the proxy they are blocked before each has had its first look.
                until_quiet(&server).await;
            }
            let (cpu_before, before) = (cpu(&server), commands(&server));
            tokio::time::sleep(span).await;
            // Our own two questions are among them.
            let rate = (commands(&server) - before).saturating_sub(2) as f64 / span.as_secs_f64();
            assert!(side.book.nils.get() >= count, "{} nils", side.book.nils.get());
            (cpu(&server) - cpu_before, rate)
        });
        let name = if proxied { "proxied" } else { "direct" };
        println!(
            "{name:>8}: {count} idle waiters: {rate:.1} commands/s, {:.2}% of a core",
            100.0 * cost / span.as_secs_f64()
        );
        spent.push((cost - alone).max(0.0));
        assert!(!proxied || rate <= 20.0, "{rate} commands a second");
    }
    let share = spent[1] / spent[0];
    let own = 100.0 * alone / span.as_secs_f64();
    println!("   share of the server's CPU, its own {own:.2}% taken off: {share:.2}");
    if long() {
        assert!(share < 0.25, "{share} of what direct connections cost");
    }
}

#[test]
fn a_hundred_waiters_on_one_key_keep_up_with_a_fast_producer_over_a_slow_network() {
    let (rate, span) = if long() { (2_000, 8) } else { (500, 2) };
    let span = Duration::from_secs(span);
    let server = Server::start();
    let relay = Relay::to(server.address());
    let proxy = Proxy::launch(&format!("redis://{}", relay.address()), &[]).unwrap();
    let mut rates = Vec::new();
    for (name, address) in [("direct", relay.address()), ("proxied", proxy.address())] {
        relay.pass();
        runtime().block_on(async {
            let waits = vec![Wait::Lpop(format!("hot:{name}")); 100];
            let mut side = Side::start(name, address, waits, 0);
            until_blocked(address, 100).await;
            relay.delay(Duration::from_millis(1));
            let start = Instant::now();
            side.pushed = push_at_random(server.address(), &side.waits, rate, span, &side.book).await;
            let by_then = side.book.received.borrow().len();
            let took = start.elapsed();
            side.settle(side.pushed).await;
            side.slices.push(side.book.percentiles());
            side.judge();
            rates.push(by_then as f64 / took.as_secs_f64());
        });
    }
    let share = rates[1] / rates[0];
    println!("   delivered a second: direct {:.0}, proxied {:.0} ({share:.2})", rates[0], rates[1]);
    assert!(share >= 0.9, "{share:.2} of the direct rate");
}

#[test]
fn a_delivery_through_a_slow_network_takes_two_round_trips_and_a_little() {
    const ROUND_TRIP: Duration = Duration::from_millis(2);
    let (count, rate, slices) = if long() { (500, 200, 6) } else { (50, 60, 2) };
    let server = Server::start();
    let relay = Relay::to(server.address());
    let proxy = Proxy::launch(&format!("redis://{}", relay.address()), &[]).unwrap();
    let mut medians = Vec::new();
    for (name, address) in [("direct", relay.address()), ("proxied", proxy.address())] {
        relay.pass();
        runtime().block_on(async {
            let waits = (0..count).map(|i| Wait::Zpop(format!("slow:{name}:{i}"))).collect();
            let mut side = Side::start(name, address, waits, 0);
            until_blocked(address, count).await;
            relay.delay(ROUND_TRIP / 2);
            for _ in 0..slices {
                // Whoever pushes is as far away as everybody else.
                side.slice(relay.address(), rate, Duration::from_secs(2)).await;
            }
            side.judge();
            medians.push(side.median());
        });
    }
    let round_trips = |time: Duration| time.as_secs_f64() / ROUND_TRIP.as_secs_f64();
    println!(
        "   round trips of {ROUND_TRIP:?}: direct {:.2}, proxied {:.2}",
        round_trips(medians[0]),
        round_trips(medians[1])
    );
    // What the relay and the machine add to one round trip shows in the direct figure.
    let added = medians[0].saturating_sub(ROUND_TRIP);
    let little = Duration::from_millis(if long() { 1 } else { 4 });
    let most = 2 * (ROUND_TRIP + added) + little;
    assert!(medians[1] <= most, "{:?}, more than {most:?}", medians[1]);
}

/// How many clients live at a time.
const MORTALS: usize = 150;

/// What became of the elements of one run of kills.
struct Fates {
    pushed: usize,
    read: usize,
    left: usize,
    doubled: usize,
    lost: usize,
    kills: usize,
    /// How often a second each client died.
    hazard: f64,
    /// From a push to its reading, the median.
    delivery: Duration,
}

impl Fates {
    /// The share of the elements that is lost.
    fn loss(&self) -> f64 {
        self.lost as f64 / self.pushed as f64
    }

    /// The variance of that share.
    fn variance(&self) -> f64 {
        self.loss() * (1.0 - self.loss()) / self.pushed as f64
    }
}

/// Clients that block, are killed at a random instant (half with a reset, half with a FIN), and come back.
async fn mortal(
    address: SocketAddr,
    key: String,
    seed: u64,
    book: Rc<Book>,
    kills: Rc<Cell<usize>>,
    enough: usize,
) {
    let mut random = fastrand::Rng::with_seed(seed);
    while kills.get() < enough {
        let Ok(mut socket) = TcpStream::connect(address).await else { continue };
        socket.set_nodelay(true).unwrap();
        let life = Duration::from_micros(random.u64(1_000..160_000));
        let mut buffer = BytesMut::new();
        let end = Instant::now() + life;
        loop {
            if socket.write_all(&encode(&["BLPOP", &key, "0"])).await.is_err() {
                break;
            }
            match tokio::time::timeout_at(end.into(), reply(&mut socket, &mut buffer)).await {
                Ok(Ok(frame)) => book.receive(&key, &frame),
                Ok(Err(_)) | Err(_) => break,
            }
        }
        kills.set(kills.get() + 1);
        if random.bool() {
            let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
        }
    }
}

fn massacre(server: &Server, address: SocketAddr, name: &str, kills: usize) -> Fates {
    let book = Rc::new(Book::default());
    let died = Rc::new(Cell::new(0));
    let keys: Vec<String> = (0..40).map(|i| format!("{name}:{i}")).collect();
    let start = Instant::now();
    let (pushed, span) = runtime().block_on(async {
        let clients: Vec<_> = (0..MORTALS)
            .map(|i| {
                let key = keys[i % keys.len()].clone();
                let mortal = mortal(address, key, i as u64, Rc::clone(&book), Rc::clone(&died), kills);
                tokio::task::spawn_local(mortal)
            })
            .collect();
        let waits: Vec<Wait> = keys.iter().cloned().map(Wait::Lpop).collect();
        let mut pushed = 0;
        while died.get() < kills {
            pushed += push_at_random(server.address(), &waits, 500, Duration::from_millis(200), &book).await;
        }
        let span = start.elapsed();
        for client in clients {
            client.await.unwrap();
        }
        // What is on its way back arrives.
        tokio::time::sleep(Duration::from_millis(500)).await;
        (pushed, span)
    });
    let delivery = book.percentiles().0;
    let hazard = died.get() as f64 / MORTALS as f64 / span.as_secs_f64();
    let mut remaining = BTreeMap::<u64, usize>::new();
    for key in &keys {
        for item in server.call(&format!("LRANGE {key} 0 -1")).items() {
            for number in numbers(item.text().as_bytes()) {
                *remaining.entry(number).or_default() += 1;
            }
        }
    }
    let received = book.received.borrow();
    let twice =
        received.iter().filter(|(number, times)| **times > 1 || remaining.contains_key(number)).count();
    let doubled = twice + remaining.values().filter(|times| **times > 1).count();
    let lost = pushed - received.len() - remaining.keys().filter(|n| !received.contains_key(n)).count();
    let (read, left, kills) = (received.len(), remaining.len(), died.get());
    Fates { pushed, read, left, doubled, lost, kills, hazard, delivery }
}

#[test]
fn clients_killed_at_any_instant_lose_only_what_was_written_to_them() {
    let kills = if long() { 10_000 } else { 600 };
    let server = Server::start();
    let proxy = Proxy::start(&server, &[]);
    let fates = [("direct", server.address()), ("proxied", proxy.address())].map(|(name, address)| {
        let one = massacre(&server, address, name, kills);
        println!(
            "{name:>8}: {} kills, {} pushed, {} read, {} left, {} doubled, {} lost ({:.2}% of the elements)",
            one.kills,
            one.pushed,
            one.read,
            one.left,
            one.doubled,
            one.lost,
            100.0 * one.loss()
        );
        one
    });
    let metrics = proxy.metrics();
    let fate = |name: &str| {
        let label = format!("redbouncer_elements_undelivered_total{{fate=\"{name}\"}}");
        metrics.get(&label).copied().unwrap_or_default()
    };
    println!(
        "   proxy: {} handed on, {} given back, {} lost before they were written",
        fate("handed_on"),
        fate("given_back"),
        fate("lost")
    );
    assert_eq!((fates[0].doubled, fates[1].doubled), (0, 0), "doubled");
    // Everything that is missing had been written to a socket: the proxy itself has lost nothing.
    assert!(fate("lost") < f64::EPSILON, "lost before they were written");
    // An element is lost when its client dies between the first byte written to it and its reading. Directly that is a
    // part of the delivery; through the proxy a delivery takes longer, and at the worst an element is exposed for all of
    // the difference: so many more die as the clients' hazard says. What is left over is chance: three deviations.
    let [direct, proxied] = fates;
    let exposure = proxied.delivery.saturating_sub(direct.delivery);
    let explained = proxied.hazard * exposure.as_secs_f64();
    let chance = 3.0 * (direct.variance() + proxied.variance()).sqrt();
    println!(
        "   {:.2}% directly + {:.2}% for {exposure:?} more at {:.1} deaths a second + {:.2}% for chance: {:.2}%",
        100.0 * direct.loss(),
        100.0 * explained,
        proxied.hazard,
        100.0 * chance,
        100.0 * (direct.loss() + explained + chance)
    );
    assert!(proxied.loss() <= direct.loss() + explained + chance, "{:.2}% are lost", 100.0 * proxied.loss());
}
