//! Where a sequence is played: before the server itself, or before a proxy with a server of its own.
//!
//! The direct world is played first. After each step the server is asked twice for a PONG: by then it has read and
//! answered all that was written before, so what every client has received is known to the byte. The proxied world then
//! plays the same steps, and after each waits until every client has received the same.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use redbouncer::resp::{self, ReplyScanner};
use socket2::SockRef;

use super::mask::{Identity, masked};
use super::sequence::{Request, Sequence, Step};
use crate::harness::{Client, Proxy, Row, Server, encode, rows_of};

/// How long a wait for the server or the proxy itself may take; for what a sequence waits for see [`Patience`].
const LIMIT: Duration = Duration::from_secs(10);
/// What contradicts the direct world stays wrong; only where a message is under way it may still become right.
const BRIEFLY: Duration = Duration::from_millis(80);

/// One client's connection and all it has received.
struct Wire {
    socket: Option<TcpStream>,
    identity: Identity,
    got: Vec<u8>,
    ended: bool,
}

impl Wire {
    fn open(address: SocketAddr, protocol: u8) -> Self {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        let greeting = [encode(&["HELLO", &protocol.to_string()]), encode(&["CLIENT", "ID"])].concat();
        socket.write_all(&greeting).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let (mut chunk, mut got) = ([0; 4096], Vec::new());
        let id = loop {
            let came = socket.read(&mut chunk).unwrap();
            assert!(came > 0, "closed before HELLO was answered");
            got.extend_from_slice(&chunk[..came]);
            let hello = ReplyScanner::default().step(&got).unwrap();
            if let Some(id) = hello.complete.and_then(|_| resp::integer(&got[hello.consumed..])) {
                break id;
            }
        };
        // Closed without TIME_WAIT: a long run opens more connections a minute than there are ports.
        SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let identity = Identity { id, address: socket.local_addr().unwrap() };
        Self { socket: Some(socket), identity, got: Vec::new(), ended: false }
    }

    fn write(&mut self, bytes: &[u8]) {
        let Some(socket) = &mut self.socket else { return };
        socket.set_nonblocking(false).unwrap();
        // A peer that has closed takes nothing: what it said before is still read.
        let _ = socket.write_all(bytes);
        socket.set_nonblocking(true).unwrap();
    }

    /// Reads what is there.
    fn read(&mut self) {
        let mut chunk = [0; 64 << 10];
        while let Some(socket) = &mut self.socket {
            match socket.read(&mut chunk) {
                Ok(0) => self.end(),
                Ok(came) => self.got.extend_from_slice(&chunk[..came]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.end(),
            }
        }
    }

    fn end(&mut self) {
        self.socket = None;
        self.ended = true;
    }

    /// Reads, and waits a moment if there is nothing.
    fn await_bytes(&mut self, within: Duration) {
        if let Some(socket) = &self.socket {
            socket.set_nonblocking(false).unwrap();
            socket.set_read_timeout(Some(within)).unwrap();
            let _ = socket.peek(&mut [0]);
            socket.set_nonblocking(true).unwrap();
        }
        self.read();
    }
}

/// What was heard in the direct world by the end of one step.
struct Moment {
    /// How many bytes each client has received, and whether its connection has ended.
    heard: Vec<(usize, bool)>,
    /// Clients that wait in a blocking call.
    blocked: Vec<usize>,
    /// The writer heard nothing: nothing tells when the write has been dealt with.
    silent: bool,
}

/// What the direct world has done.
pub(crate) struct Record {
    moments: Vec<Moment>,
    clients: Vec<Identity>,
    /// All that each client has received.
    got: Vec<Vec<u8>>,
    /// The server's own checksum over all data.
    digest: String,
}

/// How long a reply that the server gave may stay out before the proxy.
#[derive(Clone, Copy)]
pub(crate) struct Patience(pub(crate) Duration);

/// One place where sequences are played, one after the other.
pub(crate) struct World {
    address: SocketAddr,
    /// A connection to the server itself.
    server: Client,
    /// A connection where the clients connect.
    control: Client,
    control_id: i64,
    barrier: u64,
    /// Bytes of the last write.
    written: usize,
    has_hub: bool,
    has_functions: bool,
    /// Errors agree in their words, not only in their code.
    exact: bool,
    wires: Vec<Wire>,
}

impl World {
    pub(crate) fn direct(server: &Server) -> Self {
        Self::open(server, server.address(), false)
    }

    pub(crate) fn proxied(server: &Server, proxy: &Proxy, has_hub: bool) -> Self {
        Self::open(server, proxy.address(), has_hub)
    }

    fn open(server: &Server, address: SocketAddr, has_hub: bool) -> Self {
        let mut control = Client::connect(address);
        let control_id = control.call("CLIENT ID").int();
        let mut server = Client::connect_apart(server.address());
        let has_functions = !server.call("FUNCTION LIST").is_error();
        // FUNCTION came with 7.0, and so did the words that the proxy answers with.
        let exact = has_functions;
        Self {
            address,
            server,
            control,
            control_id,
            barrier: 0,
            written: 0,
            has_hub,
            has_functions,
            exact,
            wires: Vec::new(),
        }
    }

    /// Plays the sequence and writes down what it gives.
    pub(crate) fn record(&mut self, sequence: &Sequence) -> Record {
        self.begin(sequence);
        let mut moments = Vec::new();
        for step in &sequence.steps {
            let before: usize = self.wires.iter().map(|wire| wire.got.len()).sum();
            self.act(step, false);
            self.rest();
            let mut blocked = Vec::new();
            if let Step::Write { requests, client, .. } = step
                && requests.iter().any(|request| request.may_block())
            {
                blocked = self.blocked();
                // Timeouts in a sequence are brief or none: a brief one is waited out.
                if blocked.contains(client) && is_brief(requests) {
                    let start = Instant::now();
                    while blocked.contains(client) && start.elapsed() < Duration::from_millis(300) {
                        std::thread::sleep(Duration::from_millis(2));
                        blocked = self.blocked();
                    }
                }
                self.rest();
            }
            let heard: Vec<_> = self.wires.iter().map(|wire| (wire.got.len(), wire.ended)).collect();
            let silent = heard.iter().map(|(length, _)| length).sum::<usize>() == before;
            moments.push(Moment { heard, blocked, silent });
        }
        let got = self.wires.iter().map(|wire| wire.got.clone()).collect();
        let digest = self.server.call("DEBUG DIGEST").text();
        let clients = self.identities();
        self.finish();
        Record { moments, clients, got, digest }
    }

    /// Plays the sequence and compares; the first difference, if there is one.
    pub(crate) fn compare(
        &mut self,
        sequence: &Sequence,
        record: &Record,
        patience: Patience,
    ) -> Option<String> {
        self.begin(sequence);
        let difference = self.play(sequence, record, patience);
        self.finish();
        difference
    }

    fn play(&mut self, sequence: &Sequence, record: &Record, patience: Patience) -> Option<String> {
        for (number, (step, moment)) in sequence.steps.iter().zip(&record.moments).enumerate() {
            self.act(step, true);
            if let Some(what) = self.await_moment(moment, record, patience) {
                return Some(format!("step {number}, {step}\n{what}"));
            }
            if (moment.silent || !moment.blocked.is_empty()) && !self.settle(&moment.blocked, patience) {
                let rows = self.rows();
                return Some(format!(
                    "step {number}, {step}\nclients {:?} do not block\n{rows:?}",
                    moment.blocked
                ));
            }
        }
        // Nothing may come that the server would not have sent.
        self.control.call("PING");
        if let Some(last) = record.moments.last()
            && let Some(what) = self.await_moment(last, record, patience)
        {
            return Some(format!("at the end\n{what}"));
        }
        let start = Instant::now();
        loop {
            let digest = self.server.call("DEBUG DIGEST").text();
            if digest == record.digest {
                return None;
            }
            if start.elapsed() > patience.0 {
                return Some("the data on the server differ".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn begin(&mut self, sequence: &Sequence) {
        self.wires = sequence.clients.iter().map(|protocol| Wire::open(self.address, *protocol)).collect();
    }

    fn act(&mut self, step: &Step, pause_at_cuts: bool) {
        match step {
            Step::Write { client, requests, cuts } => {
                let own = |kind: &str, client: usize| match kind {
                    "id" => self.wires[client].identity.id.to_string(),
                    "addr" => self.wires[client].identity.address.to_string(),
                    _ => self.address.to_string(),
                };
                let bytes: Vec<u8> = requests.iter().flat_map(|request| request.bytes(&own)).collect();
                self.written = bytes.len();
                let mut from = 0;
                for cut in cuts.iter().copied().filter(|cut| *cut < bytes.len()) {
                    self.wires[*client].write(&bytes[from..cut.max(from)]);
                    from = cut.max(from);
                    if pause_at_cuts {
                        // By its answer the proxy has read the piece by itself.
                        self.control.call("PING");
                    }
                }
                self.wires[*client].write(&bytes[from..]);
            }
            Step::HalfClose(client) => {
                if let Some(socket) = &self.wires[*client].socket {
                    let _ = socket.shutdown(Shutdown::Write);
                }
            }
            Step::Leave(client) => {
                self.wires[*client].read();
                self.wires[*client].socket = None;
            }
        }
    }

    /// The server has read and answered all that was written before. It reads and writes a long one in several turns.
    fn rest(&mut self) {
        let mut idle = -(self.written as i64 >> 13);
        while idle < 2 {
            let before: usize = self.wires.iter().map(|wire| wire.got.len()).sum();
            self.server.call("PING");
            self.wires.iter_mut().for_each(Wire::read);
            let after: usize = self.wires.iter().map(|wire| wire.got.len()).sum();
            idle = if after > before { idle.min(1) } else { idle + 1 };
        }
    }

    fn identities(&self) -> Vec<Identity> {
        self.wires.iter().map(|wire| wire.identity).collect()
    }

    fn rows(&mut self) -> Vec<Row> {
        rows_of(&self.control.call("CLIENT LIST"))
    }

    /// The clients that wait in a blocking call.
    fn blocked(&mut self) -> Vec<usize> {
        let rows = self.rows();
        let waits = |wire: &Wire| {
            let id = wire.identity.id.to_string();
            rows.iter().any(|row| row.get("id") == id && row.get("flags").contains('b'))
        };
        (0..self.wires.len()).filter(|client| waits(&self.wires[*client])).collect()
    }

    /// Waits until every client has received what it has in the direct world.
    fn await_moment(&mut self, moment: &Moment, record: &Record, patience: Patience) -> Option<String> {
        let start = Instant::now();
        loop {
            self.wires.iter_mut().for_each(Wire::read);
            let identities = self.identities();
            let differing = self.wires.iter().enumerate().find_map(|(client, wire)| {
                let (length, ended) = moment.heard[client];
                let expected = &record.got[client][..length];
                if (wire.got.as_slice(), wire.ended) == (expected, ended) {
                    return None;
                }
                let expected = masked(expected, ended, &record.clients, self.exact);
                let heard = masked(&wire.got, wire.ended, &identities, self.exact);
                (heard != expected).then_some((client, expected, heard))
            });
            let (client, expected, heard) = differing?;
            let limit = if heard.contradicts(&expected) { BRIEFLY.min(patience.0) } else { patience.0 };
            if start.elapsed() > limit {
                return Some(format!("client {client}\n  directly: {expected}\n  proxied:  {heard}"));
            }
            self.wires[client].await_bytes(Duration::from_millis(4));
        }
    }

    /// Waits until the proxy has done what no reply tells of: calls wait where they are to wait.
    fn settle(&mut self, blocked: &[usize], patience: Patience) -> bool {
        let start = Instant::now();
        while !blocked.is_empty() && !blocked.iter().all(|client| self.blocked().contains(client)) {
            if start.elapsed() > patience.0 {
                return false;
            }
        }
        self.control.call("PING");
        if !blocked.is_empty() && self.has_hub {
            for _ in 0..4 {
                self.barrier += 1;
                // A client that has written looks for itself, on the hub's connection, behind all that is in flight.
                self.control.call("PING");
                let key = format!("barrier:{}", self.barrier);
                self.control.call(&format!("BLPOP {key} 0.001"));
            }
        }
        self.server.call("PING");
        self.server.call("PING");
        true
    }

    /// Everybody leaves, and everything is forgotten.
    fn finish(&mut self) {
        self.wires.clear();
        let start = Instant::now();
        while self.rows().iter().any(|row| self.is_ours(row)) {
            assert!(start.elapsed() < LIMIT, "clients are not forgotten: {:?}", self.rows());
        }
        self.server.call("FLUSHALL");
        self.server.call("SCRIPT FLUSH");
        if self.has_functions {
            self.server.call("FUNCTION FLUSH");
        }
    }

    /// Whether a row is of a client of the sequence: not of the harness itself, not the proxy's own.
    fn is_ours(&self, row: &Row) -> bool {
        let address = self.server.local_address().to_string();
        row.get("id") != self.control_id.to_string()
            && row.get("addr") != address
            && row.get("name") != "probe"
    }
}

fn is_brief(requests: &[Request]) -> bool {
    requests.iter().any(|request| {
        request.is_threaded() || request.may_block() && (request.has("0.01") || request.has("10"))
    })
}
