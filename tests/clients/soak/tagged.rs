//! A client whose every reply is known beforehand, byte for byte: a reply that belongs to another command, another client
//! or another time is seen as a difference.
//!
//!   tagged --address HOST:PORT [--connections 16] [--depth 32] [--rate 0] [--seed N]
//!
//! Each connection sends `--depth` commands at a time and compares what comes with what must come. Values are unique; keys
//! belong to one connection, so nothing that is lost with it makes the next one's replies unknown. A connection that is
//! closed, or answered by an error that is known to be one of an outage, is replaced, and its open commands count as lost.
//!
//! It is told by lines on stdin: `rate N` (commands a second of all connections; 0: as many as can be), `stop`. It prints
//! `ready` and then a line of JSON every 0.2 s, whose numbers are totals. It exits with 1 after a reply that was wrong.

#![forbid(unsafe_code)]

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;

/// Keys of a connection that are written and read.
const SLOTS: usize = 16;
/// Nothing stays on the server that nobody asks for any more.
const EXPIRY_SECONDS: &str = "300";
/// A connection that is neither answered nor closed for so long is a fault: no outage of the soak lasts half as long.
const SILENCE: Duration = Duration::from_secs(30);
/// How much of a wrong reply is shown.
const SHOWN: usize = 300;
/// Beginnings of errors that an outage or a limit explains.
const EXCUSES: [&str; 5] =
    ["-ERR redbouncer: ", "-LOADING ", "-EXECABORT ", "-ERR max number of clients", "-UNBLOCKED "];

/// A client that knows every reply beforehand.
#[derive(Clone, Parser)]
struct Options {
    /// Where to connect, host:port.
    #[arg(long)]
    address: String,
    /// Connections at the same time, each with a thread of its own.
    #[arg(long, default_value_t = 16)]
    connections: u64,
    /// Commands that a connection sends at once.
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// Commands a second of all connections together; 0: as many as can be.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// What the choice of commands begins with.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// What all connections count together, and what they are told.
#[derive(Default)]
struct Shared {
    rate: AtomicU64,
    stopped: AtomicBool,
    /// Replies that were compared and found right.
    replies: AtomicU64,
    /// Commands whose connection was closed before they were answered.
    lost: AtomicU64,
    /// Commands answered by one of `EXCUSES`.
    refused: AtomicU64,
    /// Commands neither answered nor closed within `SILENCE`.
    silent: AtomicU64,
    mismatches: AtomicU64,
    connects: AtomicU64,
    connected: AtomicU64,
    /// Threads that have had a connection, be it lost by now.
    begun: AtomicU64,
}

/// Commands of one write, and what must come back.
#[derive(Default)]
struct Batch {
    request: Vec<u8>,
    replies: Vec<u8>,
    /// Where each reply ends in `replies`.
    ends: Vec<usize>,
}

impl Batch {
    fn command(&mut self, words: &[&[u8]], reply: &[u8]) {
        write_array(&mut self.request, words);
        self.replies.extend_from_slice(reply);
        self.ends.push(self.replies.len());
    }

    fn clear(&mut self) {
        self.request.clear();
        self.replies.clear();
        self.ends.clear();
    }
}

/// Appends `*N` and the words as bulk strings: a request, or an array of the server's.
fn write_array(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        write_bulk(out, word);
    }
}

fn write_bulk(out: &mut Vec<u8>, word: &[u8]) {
    out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
    out.extend_from_slice(word);
    out.extend_from_slice(b"\r\n");
}

fn bulk(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len() + 16);
    write_bulk(&mut out, word);
    out
}

/// What one connection has written, and therefore what its reads must find.
struct Keys {
    /// Of this connection alone, in this and any other process.
    name: String,
    random: fastrand::Rng,
    serial: u64,
    count: u64,
    values: Vec<Option<Vec<u8>>>,
}

impl Keys {
    fn new(name: String, seed: u64) -> Self {
        Self { name, random: fastrand::Rng::with_seed(seed), serial: 0, count: 0, values: vec![None; SLOTS] }
    }

    /// A value that there was never before; one in 500 is long, up to 64 KiB.
    fn tag(&mut self) -> Vec<u8> {
        self.serial += 1;
        let mut tag = format!("<{} {}>", self.name, self.serial).into_bytes();
        if self.random.u32(0..500) == 0 {
            let length = self.random.usize(1 << 10..64 << 10);
            while tag.len() < length {
                tag.extend_from_within(..tag.len().min(length - tag.len()));
            }
        }
        tag
    }

    /// Adds some commands that belong together, most often one.
    fn add(&mut self, batch: &mut Batch) {
        match self.random.u32(0..1000) {
            0..300 => {
                let tag = self.tag();
                batch.command(&[b"ECHO", &tag], &bulk(&tag));
            }
            300..550 => {
                let slot = self.random.usize(..SLOTS);
                let tag = self.tag();
                let key = format!("{}:{slot}", self.name);
                batch.command(&[b"SET", key.as_bytes(), &tag, b"EX", EXPIRY_SECONDS.as_bytes()], b"+OK\r\n");
                self.values[slot] = Some(tag);
            }
            550..840 => {
                let slot = self.random.usize(..SLOTS);
                let key = format!("{}:{slot}", self.name);
                let reply = self.values[slot].as_deref().map_or_else(|| b"$-1\r\n".to_vec(), bulk);
                batch.command(&[b"GET", key.as_bytes()], &reply);
            }
            840..996 => {
                self.count += 1;
                let key = format!("{}:count", self.name);
                batch.command(&[b"INCR", key.as_bytes()], format!(":{}\r\n", self.count).as_bytes());
            }
            996..998 => self.transaction(batch),
            _ => self.pop(batch),
        }
    }

    fn transaction(&mut self, batch: &mut Batch) {
        let (one, other) = (self.tag(), self.tag());
        batch.command(&[b"MULTI"], b"+OK\r\n");
        batch.command(&[b"ECHO", &one], b"+QUEUED\r\n");
        batch.command(&[b"ECHO", &other], b"+QUEUED\r\n");
        let mut reply = Vec::new();
        write_array(&mut reply, &[&one, &other]);
        batch.command(&[b"EXEC"], &reply);
    }

    /// A blocking call whose element is there, and one that the blocking hub serves.
    fn pop(&mut self, batch: &mut Batch) {
        let tag = self.tag();
        let key = format!("{}:list", self.name);
        batch.command(&[b"LPUSH", key.as_bytes(), &tag], b":1\r\n");
        let mut reply = Vec::new();
        write_array(&mut reply, &[key.as_bytes(), &tag]);
        batch.command(&[b"BLPOP", key.as_bytes(), b"60"], &reply);
    }
}

/// One connection after the other, until it is stopped.
fn work(options: &Options, shared: &Shared, number: u64) {
    let mut random = fastrand::Rng::with_seed(options.seed ^ number);
    let mut has_begun = false;
    for turn in 0.. {
        if shared.stopped.load(Relaxed) {
            return;
        }
        if let Ok(stream) = TcpStream::connect(&options.address) {
            shared.connects.fetch_add(1, Relaxed);
            shared.connected.fetch_add(1, Relaxed);
            if !std::mem::replace(&mut has_begun, true) {
                shared.begun.fetch_add(1, Relaxed);
            }
            let name = format!("tagged:{}:{number}:{turn}", std::process::id());
            converse(options, shared, &stream, Keys::new(name, random.u64(..)));
            shared.connected.fetch_sub(1, Relaxed);
        }
        thread::sleep(Duration::from_millis(random.u64(20..200)));
    }
}

/// Until the connection is lost, or all are stopped.
fn converse(options: &Options, shared: &Shared, stream: &TcpStream, mut keys: Keys) {
    if stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(SILENCE))).is_err()
        || stream.set_write_timeout(Some(SILENCE)).is_err()
    {
        return;
    }
    let mut batch = Batch::default();
    let mut buffer = vec![0; 64 << 10];
    let mut due = Instant::now();
    while !shared.stopped.load(Relaxed) {
        let rate = shared.rate.load(Relaxed);
        if rate > 0 {
            // One that is late does not catch up: the offered load never exceeds the rate.
            let now = Instant::now();
            due = due.max(now);
            thread::sleep(due - now);
            due += Duration::from_secs_f64((options.depth as u64 * options.connections) as f64 / rate as f64);
        }
        batch.clear();
        while batch.ends.len() < options.depth {
            keys.add(&mut batch);
        }
        if !exchange(shared, stream, &batch, &mut buffer) {
            return;
        }
    }
}

/// Sends all commands of `batch` and compares all that comes; whether the connection can go on.
fn exchange(shared: &Shared, mut stream: &TcpStream, batch: &Batch, buffer: &mut [u8]) -> bool {
    let mut right = 0;
    let mut failed = stream.write_all(&batch.request).err();
    while failed.is_none() && right < batch.replies.len() {
        match stream.read(buffer) {
            Ok(0) => failed = Some(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                let wanted = &batch.replies[right..];
                let got = &buffer[..count];
                if !wanted.starts_with(got) {
                    let same = wanted.iter().zip(got).take_while(|(one, other)| one == other).count();
                    judge(shared, stream, batch, right, same, got);
                    return false;
                }
                right += count;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => failed = Some(error),
        }
    }
    let answered = batch.ends.iter().take_while(|end| **end <= right).count();
    shared.replies.fetch_add(answered as u64, Relaxed);
    let Some(error) = failed else { return true };
    let open = (batch.ends.len() - answered) as u64;
    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) {
        shared.silent.fetch_add(open, Relaxed);
    } else {
        shared.lost.fetch_add(open, Relaxed);
    }
    false
}

/// Something else came after `right` bytes that were as they must be: `got`, of which `same` bytes are still right.
fn judge(shared: &Shared, mut stream: &TcpStream, batch: &Batch, right: usize, same: usize, got: &[u8]) {
    let answered = batch.ends.iter().take_while(|end| **end <= right + same).count();
    let start = if answered == 0 { 0 } else { batch.ends[answered - 1] };
    let wanted = &batch.replies[start..batch.ends.get(answered).copied().unwrap_or(batch.replies.len())];
    // The reply from its own first byte.
    let mut reply = if start < right {
        [&batch.replies[start..right], got].concat()
    } else {
        got[start - right..].to_vec()
    };
    let mut more = [0; 512];
    while reply.starts_with(b"-") && !reply.contains(&b'\n') {
        match stream.read(&mut more) {
            Ok(count) if count > 0 => reply.extend_from_slice(&more[..count]),
            _ => break,
        }
    }
    shared.replies.fetch_add(answered as u64, Relaxed);
    let open = (batch.ends.len() - answered) as u64;
    if EXCUSES.iter().any(|excuse| reply.starts_with(excuse.as_bytes())) {
        shared.refused.fetch_add(open, Relaxed);
        return;
    }
    shared.mismatches.fetch_add(1, Relaxed);
    let shown = |bytes: &[u8]| bytes[..bytes.len().min(SHOWN)].escape_ascii().to_string();
    let (number, wanted, reply) = (answered + 1, shown(wanted), shown(&reply));
    report(io::stderr(), &format!("reply {number} of {}: wanted {wanted}, got {reply}", batch.ends.len()));
}

fn report(mut to: impl Write, line: &str) {
    // Nobody reads it any more: then nobody misses it.
    let _ = writeln!(to, "{line}").and_then(|()| to.flush());
}

fn obey(shared: &Shared) {
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        match line.split_once(' ') {
            Some(("rate", rate)) => shared.rate.store(rate.trim().parse().unwrap_or(0), Relaxed),
            _ => break,
        }
    }
    shared.stopped.store(true, Relaxed);
}

fn main() -> ExitCode {
    let options = Options::parse();
    let shared = Arc::new(Shared::default());
    shared.rate.store(options.rate, Relaxed);
    for number in 0..options.connections {
        let (options, shared) = (options.clone(), Arc::clone(&shared));
        thread::spawn(move || work(&options, &shared, number));
    }
    let teller = Arc::clone(&shared);
    thread::spawn(move || obey(&teller));
    // Not that all are connected at once: where replies cross, each is lost so soon that this may never be.
    while shared.begun.load(Relaxed) < options.connections && !shared.stopped.load(Relaxed) {
        thread::sleep(Duration::from_millis(10));
    }
    report(io::stdout(), "ready");
    let mut stopped = false;
    let mut next = Instant::now();
    loop {
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let line = json!({
            "ok": count(&shared.replies),
            "errors": count(&shared.lost) + count(&shared.refused) + count(&shared.silent),
            "lost": count(&shared.lost),
            "refused": count(&shared.refused),
            "silent": count(&shared.silent),
            "mismatches": count(&shared.mismatches),
            "connects": count(&shared.connects),
            "connected": count(&shared.connected),
        });
        report(io::stdout(), &line.to_string());
        if stopped {
            return ExitCode::from(u8::from(count(&shared.mismatches) > 0));
        }
        next += Duration::from_millis(200);
        while Instant::now() < next && !stopped {
            stopped = shared.stopped.load(Relaxed);
            thread::sleep(Duration::from_millis(20));
        }
        // What is under way is answered or lost before the last line.
        let deadline = Instant::now() + SILENCE;
        while stopped && count(&shared.connected) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }
}
