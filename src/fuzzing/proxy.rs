//! The whole proxy in memory: one worker with its pool, lanes, leases and hubs, between clients and a server that do what
//! the input says.
//!
//! Clients are ends of socket pairs; the server listens on loopback, in the same runtime. Each command of a client
//! carries a mark, which nobody can guess, in what the server repeats. Whatever the server does:
//!
//! - a mark is only ever seen by the client that sent it, in the order in which it was sent;
//! - the server gets whole canonical requests and nothing else;
//! - clients do not get more than the server has said, but for what is answered here, which is bounded for each command;
//! - nothing panics, no task included; the drain ends, and nothing is held after it.

use std::cell::Cell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Once};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, LocalOptions};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Input;
use super::proxy_server::Server;
use crate::downstream::{
    Admission, AuthMode, AuthOptions, ClientOptions, ConfigHandle, Directory, Incoming, Limits, Worker,
    WorkerConfig, WorkerHandle, Workers,
};
use crate::hub::{BlockingOptions, PubSubOptions, Resubscribe};
use crate::hygiene::HygieneOptions;
use crate::pool::{Budget, ClientMemory, DialRateLimiter, Homes, Hubs, MAX_BULK, Pool, PoolOptions, Shared};
use crate::resp::encode;
use crate::session::{Endpoint, FIRST_CLIENT_ID};
use crate::telemetry::Tracer;
use crate::upstream::{Connector, Instance, OnLoss, UpstreamOptions};

/// What a client may send; `MARK` stands for its mark, which is a key, a value or an argument.
const COMMANDS: [&str; 56] = [
    "GET MARK",
    "SET MARK v",
    "ECHO MARK",
    "MGET MARK MARK",
    "EVAL return 1 MARK",
    "PING",
    "PING MARK",
    "MULTI",
    "EXEC",
    "DISCARD",
    "WATCH MARK",
    "UNWATCH",
    "BLPOP MARK 0.005",
    "BLPOP MARK 0",
    "BRPOP MARK 0.005",
    "BLMOVE MARK other LEFT RIGHT 0.005",
    "BLMPOP 0.005 1 MARK LEFT",
    "BZPOPMIN MARK 0.005",
    "XREAD BLOCK 5 STREAMS MARK $",
    "XREADGROUP GROUP g c BLOCK 5 STREAMS MARK >",
    "SUBSCRIBE channel",
    "UNSUBSCRIBE channel",
    "UNSUBSCRIBE",
    "PSUBSCRIBE chan*",
    "SSUBSCRIBE shard",
    "PUBLISH channel message",
    "PUBSUB CHANNELS",
    "SELECT 0",
    "SELECT 1",
    "HELLO",
    "HELLO 2",
    "HELLO 3",
    "HELLO 3 AUTH ada secret",
    "AUTH secret",
    "AUTH ada secret",
    "CLIENT LIST",
    "CLIENT INFO",
    "CLIENT ID",
    "CLIENT KILL ID 1099511627776",
    "CLIENT UNBLOCK 1099511627777",
    "CLIENT SETNAME x",
    "CLIENT REPLY OFF",
    "CLIENT REPLY ON",
    "CLIENT REPLY SKIP",
    "CLIENT TRACKING ON",
    "CLIENT NO-TOUCH ON",
    "CLIENT PAUSE 1",
    "MONITOR",
    "WAIT 0 0",
    "RESET",
    "QUIT",
    "PROXY CLIENTS",
    "UNHEARD MARK",
    "SCRIPT KILL",
    "CONFIG GET maxmemory",
    "INFO",
];

/// What is answered here to one command is not longer: a listing of these clients, or HELP.
const LONGEST_ANSWER: usize = 8192;
/// How long clients wait for the last replies.
const PATIENCE: Duration = Duration::from_millis(20);
/// A drain that takes so long never ends.
const NEVER: Duration = Duration::from_secs(60);

thread_local! {
    /// Panics on this thread, those of tasks included, which the runtime keeps for itself.
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// Counts panics, and leaves them to whoever watched for them before.
fn watch_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with(|panics| panics.set(panics.get() + 1));
            before(info);
        }));
    });
}

/// How many panics there were on this thread, those of tasks included.
#[cfg(test)]
pub(super) fn panics() -> usize {
    watch_for_panics();
    PANICS.get()
}

/// Runs the program that `data` is.
pub fn proxy(data: &[u8]) {
    watch_for_panics();
    let before = PANICS.get();
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
    runtime.block_on(run(data));
    runtime.shutdown_background();
    assert_eq!(PANICS.get(), before, "a task has panicked");
}

async fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let settings = Settings::read(&mut input);
    let server = Server::new(input.piece(96));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::task::spawn_local(Rc::clone(&server).accept(listener));
    let (workers, worker, budget) = settings.start(port);
    let mut clients = Vec::new();
    for _ in 0..settings.clients {
        clients.push(Peer::connect(&workers, settings.trusted).await);
    }
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    let mark = format!("mark-{:016x}", hasher.finish());
    let mut sent = 0;
    while !input.is_empty() && sent < 100 {
        let who = input.below(clients.len());
        sent += clients[who].act(&mark, who, &mut input).await;
        for client in &mut clients {
            client.read();
        }
    }
    farewell(&mut clients).await;
    let said = server.said.get();
    let got: usize = clients.iter().map(|client| client.got.len()).sum();
    let most = said + LONGEST_ANSWER * (sent + clients.len());
    assert!(got <= most, "{got} bytes for {sent} commands, of which the server has said {said}");
    for (who, client) in clients.iter().enumerate() {
        client.saw_its_own(&mark, who);
    }
    drop(clients);
    server.ending.cancel();
    let drained = tokio::time::timeout(NEVER, workers.drain(Instant::now() + PATIENCE)).await;
    assert!(drained.is_ok(), "the drain ends");
    assert!(tokio::time::timeout(NEVER, worker).await.is_ok(), "the worker ends");
    assert!(budget.held() == 0, "held after the drain: {:?}", budget.holdings());
    serving.abort();
}

/// The replies that are still to come are read, for a while, and then everybody leaves.
async fn farewell(clients: &mut [Peer]) {
    for client in &*clients {
        client.says_no_more();
    }
    let until = Instant::now() + PATIENCE;
    while clients.iter().any(|client| client.stream.is_some()) && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(1)).await;
        clients.iter_mut().for_each(Peer::read);
    }
}

/// How this proxy is set up.
struct Settings {
    clients: usize,
    trusted: bool,
    cap: usize,
    form: u8,
}

impl Settings {
    fn read(input: &mut Input<'_>) -> Self {
        let form = input.byte();
        Self { clients: 1 + input.below(4), trusted: form & 1 == 0, cap: 4 + input.below(4), form }
    }

    fn has(&self, bit: u8) -> bool {
        self.form & bit == bit
    }

    fn upstream(&self, port: u16) -> UpstreamOptions {
        UpstreamOptions {
            port,
            connect_timeout: Duration::from_millis(200),
            backoff_min: Duration::from_millis(1),
            backoff_max: Duration::from_millis(5),
            loading_retry: Duration::from_millis(20),
            stall_timeout: Duration::from_millis(100),
            command_timeout: self.has(32).then(|| Duration::from_millis(30)),
            connect_rate: 10_000,
            on_loss: if self.has(2) { OnLoss::Error } else { OnLoss::Close },
            close_timeout: Duration::from_millis(200),
            ..UpstreamOptions::default()
        }
    }

    /// One worker, on this runtime.
    fn start(&self, port: u16) -> (Workers, tokio::task::JoinHandle<()>, Arc<Budget>) {
        let upstream = self.upstream(port);
        let pool = PoolOptions {
            max_connections: self.cap,
            wait_timeout: Duration::from_millis(30),
            linger: Duration::from_millis(5),
            min_turn: Duration::from_millis(1),
            ..PoolOptions::default()
        };
        let auth = AuthOptions {
            mode: if self.has(4) { AuthMode::Open } else { AuthMode::Unset },
            ..AuthOptions::default()
        };
        let hubs = Hubs { blocking: !self.has(8), pubsub: !self.has(16) };
        let budget = Budget::new(self.cap, 1, hubs);
        let directory = Arc::new(Directory::new(&upstream, &auth, Arc::clone(&budget)).unwrap());
        let shared = Shared {
            budget: Arc::clone(&budget),
            homes: Homes::new(1),
            connector: Arc::new(Connector::new(&upstream).unwrap()),
            dial_rate: Arc::new(DialRateLimiter::new(upstream.connect_rate)),
            health: Arc::default(),
            options: Cell::new(pool),
            upstream: Cell::new(upstream.times()),
            heartbeat: Duration::from_millis(50),
            liveness: Arc::default(),
            max_bulk: Arc::new(AtomicU64::new(MAX_BULK)),
            memory: ClientMemory::new(32 << 20),
            instance: Arc::new(Instance::start("fuzz")),
            mastership: Arc::default(),
            pause: Arc::default(),
            tracer: Tracer::default(),
            stop: CancellationToken::new(),
        };
        let places = Admission::new(Limits { inside: 100, waiting: 100, together: 100, per_address: 0 });
        let (link, messages) = WorkerHandle::new();
        let workers = Workers::new(vec![link], places);
        let terms = WorkerConfig {
            clients: ClientOptions {
                output_hard_limit: 1 << 20,
                pipeline_limit: 16,
                ..ClientOptions::default()
            },
            slow_command: None,
            auth,
            blocking: BlockingOptions { hub: hubs.blocking, ..BlockingOptions::default() },
            pubsub: PubSubOptions {
                hub: hubs.pubsub,
                resubscribe: if self.has(64) { Resubscribe::Silent } else { Resubscribe::Close },
            },
            hygiene: HygieneOptions::default(),
            fleet: crate::hygiene::fleet::FleetTerms::default(),
            first_look: CancellationToken::new(),
            audience: Arc::default(),
            admin_users: Arc::default(),
            directory,
            ids: Arc::new(AtomicU64::new(FIRST_CLIENT_ID)),
            config: ConfigHandle::new().0,
            nodes: None,
        };
        let pool = Pool::new(shared, TaskTracker::new());
        let worker = Worker::new(0, pool, terms, workers.clone());
        (workers, tokio::task::spawn_local(worker.run(messages)), budget)
    }
}

/// A client's end.
struct Peer {
    /// `None` when it has left, or was closed.
    stream: Option<UnixStream>,
    got: Vec<u8>,
    marks: usize,
}

impl Peer {
    async fn connect(workers: &Workers, trusted: bool) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        workers.admit(Incoming::Unix(theirs), Endpoint::Unix("fuzz".into()), trusted).await;
        Self { stream: Some(ours), got: Vec::new(), marks: 0 }
    }

    /// Does what comes next in the input; returns how many commands it has sent.
    async fn act(&mut self, mark: &str, who: usize, input: &mut Input<'_>) -> usize {
        match input.below(16) {
            0..=9 => {
                self.marks += 1;
                let own = format!("{mark}:{who}:{};", self.marks);
                let words: Vec<&[u8]> = input
                    .choose(&COMMANDS)
                    .split(' ')
                    .map(|word| if word == "MARK" { own.as_bytes() } else { word.as_bytes() })
                    .collect();
                self.send(&encode::one_command(&words));
                return 1;
            }
            10 => {
                let piece = input.piece(40);
                self.send(piece);
                // Each line may be a command.
                return 1 + memchr::memchr_iter(b'\n', piece).count();
            }
            11 | 12 => tokio::task::yield_now().await,
            13 => tokio::time::sleep(Duration::from_millis(1 + input.below(4) as u64)).await,
            14 => self.says_no_more(),
            _ => self.stream = None,
        }
        0
    }

    /// What does not fit into the socket is not sent, and then nothing more is.
    fn send(&mut self, bytes: &[u8]) {
        let Some(stream) = &mut self.stream else { return };
        if !matches!(stream.write(bytes), Ok(len) if len == bytes.len()) {
            self.stream = None;
        }
    }

    fn says_no_more(&self) {
        if let Some(stream) = &self.stream {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// Takes what has come.
    fn read(&mut self) {
        let mut buffer = [0; 4096];
        while let Some(stream) = &mut self.stream {
            match stream.read(&mut buffer) {
                Ok(0) => self.stream = None,
                Ok(len) => self.got.extend_from_slice(&buffer[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => self.stream = None,
            }
        }
    }

    /// All marks among what it got are its own, and none comes before an earlier one.
    fn saw_its_own(&self, mark: &str, who: usize) {
        let mut last = 0;
        for at in memchr::memmem::find_iter(&self.got, mark.as_bytes()) {
            let rest = &self.got[at + mark.len()..];
            let Some(end) = memchr::memchr(b';', rest) else { continue }; // cut off where the connection ended
            let text = String::from_utf8_lossy(&rest[1..end]).into_owned();
            let (owner, number) = text.split_once(':').expect("a mark is whole");
            let (owner, number): (usize, usize) = (owner.parse().unwrap(), number.parse().unwrap());
            assert_eq!(owner, who, "client {who} got a reply of client {owner}");
            assert!(number >= last, "client {who} got the reply to command {number} behind that to {last}");
            last = number;
        }
    }
}
