//! Where a sequence is played: before the server itself, or before a proxy with a server of its own.
//!
//! The direct world is played first. After each step the server is asked twice for a PONG: by then it has read and
//! answered all that was written before, so what every client has received is known to the byte. The proxied world then
//! plays the same steps, and after each waits until every client has received the same.

use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use super::fate::Fates;
use super::holds::Holds;
use super::mask::{Identity, Mask};
use super::sequence::{Sequence, Step};
use super::trouble::{Kind, Setup, Trouble};
use super::wire::{LIMIT, Wire};
use crate::harness::{Client, Proxy, Row, Server, rows_of};

/// What is said after so long is said for ever.
const NEVER_SILENT: Duration = Duration::from_secs(60);

/// What a listing tells of a client: its state, and its last command.
#[derive(Debug, PartialEq)]
pub(super) struct Listed {
    pub(super) state: String,
    pub(super) command: String,
}

impl Listed {
    /// Whether the client waits in a blocking call.
    pub(super) fn is_blocked(&self) -> bool {
        self.state.rsplit(' ').next().is_some_and(|flags| flags.contains('b'))
    }
}

/// One place where sequences are played, one after the other.
pub(crate) struct World {
    pub(super) address: SocketAddr,
    pub(super) setup: Setup,
    pub(super) is_direct: bool,
    /// A connection to the server itself.
    pub(super) server: Client,
    /// A connection where the clients connect.
    pub(super) control: Client,
    pub(super) control_id: i64,
    pub(super) barrier: u64,
    /// Bytes of the last write.
    pub(super) written: usize,
    pub(super) has_hub: bool,
    pub(super) has_functions: bool,
    pub(super) demoted: bool,
    /// A command on a lane may be held, or be refused.
    pub(super) lane_may_hang: bool,
    pub(super) mask: Mask,
    pub(super) wires: Vec<Wire>,
    pub(super) holds: Vec<Holds>,
}

impl World {
    pub(super) fn direct(server: &Server, setup: Setup) -> Self {
        Self::open(server, server.address(), setup, true, false)
    }

    pub(super) fn proxied(server: &Server, proxy: &Proxy, setup: Setup, has_hub: bool) -> Self {
        Self::open(server, proxy.address(), setup, false, has_hub)
    }

    fn open(server: &Server, address: SocketAddr, setup: Setup, is_direct: bool, has_hub: bool) -> Self {
        let mut control = Client::connect(address);
        let control_id = control.call("CLIENT ID").int();
        let mut server = Client::connect_apart(server.address());
        let has_functions = !server.call("FUNCTION LIST").is_error();
        // FUNCTION came with 7.0, and so did the words that the proxy answers with.
        let mask =
            Mask { exact: has_functions, refusals: setup == Setup::Scarce, renames: setup == Setup::Renamed };
        Self {
            address,
            setup,
            is_direct,
            server,
            control,
            control_id,
            barrier: 0,
            written: 0,
            has_hub,
            has_functions,
            demoted: false,
            lane_may_hang: false,
            mask,
            wires: Vec::new(),
            holds: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self, sequence: &Sequence) {
        self.lane_may_hang = self.setup == Setup::Scarce || sequence.trouble == Trouble::Pause;
        let narrow = sequence.trouble == Trouble::Slow;
        let open = |protocol: &u8| Wire::open(self.address, *protocol, narrow);
        self.wires = sequence.clients.iter().map(open).collect();
        self.holds = vec![Holds::default(); self.wires.len()];
    }

    pub(super) fn act(&mut self, sequence: &Sequence, number: usize, fates: &Fates) {
        match &sequence.steps[number] {
            Step::Write { client, requests, cuts, .. } => {
                requests.iter().for_each(|request| self.holds[*client].note(request));
                let own = |kind: &str, client: usize| match kind {
                    "id" => self.wires[client].identity.id.to_string(),
                    "addr" => self.wires[client].identity.address.to_string(),
                    _ => self.address.to_string(),
                };
                let none = Fates::default();
                let fates = if self.is_direct { fates } else { &none };
                let (bytes, tail) = fates.write(sequence, number, &own);
                self.written = bytes.len();
                let mut from = 0;
                for cut in cuts.iter().copied().filter(|cut| *cut < bytes.len()) {
                    self.wires[*client].write(&bytes[from..cut.max(from)]);
                    from = cut.max(from);
                    if !self.is_direct {
                        // By its answer the proxy has read the piece by itself.
                        self.control.call("CLIENT ID");
                    }
                }
                self.wires[*client].write(&bytes[from..]);
                self.wires[*client].tail(tail);
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
            Step::Deafen(client) => self.wires[*client].deaf = true,
            Step::Hear(client) => self.wires[*client].deaf = false,
            Step::Kill(kinds) => {
                if !self.is_direct {
                    self.kill(kinds);
                }
            }
            Step::Demote => {
                self.demoted = true;
                self.server.call("REPLICAOF 127.0.0.1 1");
            }
            Step::Promote => self.promote(),
            Step::Unpause => drop(self.server.call("CLIENT UNPAUSE")),
            Step::Wait(millis) => thread::sleep(Duration::from_millis(*millis)),
        }
    }

    /// Kills the proxy's connections of these kinds, and waits until it has seen that.
    fn kill(&mut self, kinds: &[Kind]) {
        let rows = rows_of(&self.server.call("CLIENT LIST"));
        for row in rows.iter().filter(|row| row.get("name").starts_with("redbouncer:")) {
            if kinds.iter().any(|kind| row.get("name").ends_with(&format!(":{}", kind.name()))) {
                self.server.call(&format!("CLIENT KILL ID {}", row.get("id")));
            }
        }
        // The ends are with the proxy before these are: it looks at them first, or in the same turn.
        for _ in 0..3 {
            self.control.call("CLIENT ID");
        }
    }

    fn promote(&mut self) {
        if std::mem::take(&mut self.demoted) {
            self.server.call("REPLICAOF NO ONE");
        }
    }

    pub(super) fn heard(&self) -> usize {
        self.wires.iter().map(|wire| wire.got.len()).sum()
    }

    /// The server has read and answered all that was written before. It reads and writes a long one in several turns.
    pub(super) fn rest(&mut self) {
        // The first PONG may overtake what is written in the same turn.
        let mut left = 1 + (self.written >> 13);
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < NEVER_SILENT, "a client is told something without an end");
            let before: usize = self.heard();
            self.server.call("PING");
            self.wires.iter_mut().for_each(Wire::read);
            match (self.heard() - before, left) {
                // Of more than fits into its buffers the server writes the rest when there is room again.
                (16_384.., _) => left = left.max(8),
                (0, 0) => return,
                (_, _) => left = left.saturating_sub(1),
            }
        }
    }

    pub(super) fn identities(&self) -> Vec<Identity> {
        self.wires.iter().map(|wire| wire.identity).collect()
    }

    pub(super) fn rows(&mut self) -> Vec<Row> {
        rows_of(&self.control.call("CLIENT LIST"))
    }

    /// The server's own checksum over all data.
    pub(super) fn digest(&mut self) -> String {
        let name = if self.setup == Setup::Renamed { "XDEBUG" } else { "DEBUG" };
        self.server.call(&format!("{name} DIGEST")).text()
    }

    /// The clients that wait in a blocking call.
    pub(super) fn blocked(&mut self) -> Vec<usize> {
        let rows = self.rows();
        let waits = |wire: &Wire| {
            let id = wire.identity.id.to_string();
            rows.iter().any(|row| row.get("id") == id && row.get("flags").contains('b'))
        };
        (0..self.wires.len()).filter(|client| waits(&self.wires[*client])).collect()
    }

    pub(super) fn listed(&mut self, client: usize) -> Option<Listed> {
        let id = self.wires[client].identity.id.to_string();
        let row = self.rows().into_iter().find(|row| row.get("id") == id)?;
        let fields = ["db", "name", "sub", "psub", "ssub", "resp"].map(|field| row.get(field).to_owned());
        let flags: String = row.get("flags").chars().filter(|flag| "xtPOb".contains(*flag)).collect();
        Some(Listed { state: format!("{} {flags}", fields.join(" ")), command: row.get("cmd").to_owned() })
    }

    /// By the answer the proxy has read what was written before, and where a lane may be used, so has the server.
    pub(super) fn echo(&mut self) {
        self.control.call(if self.lane_may_hang { "CLIENT ID" } else { "PING" });
    }

    /// Everybody leaves, and everything is forgotten.
    pub(super) fn finish(&mut self, sequence: &Sequence) {
        self.promote();
        if sequence.trouble == Trouble::Pause {
            self.server.call("CLIENT UNPAUSE");
        }
        self.wires.clear();
        let start = Instant::now();
        while self.rows().iter().any(|row| self.is_ours(row)) {
            assert!(start.elapsed() < LIMIT, "clients are not forgotten: {:?}", self.rows());
        }
        // The two engines are made anew, so that it is only done where it matters.
        let used = |names: &[&str]| sequence.requests().any(|request| request.is(names));
        let mut forget = vec!["FLUSHALL"];
        forget.extend(used(&["EVAL", "EVAL_RO", "SCRIPT"]).then_some("SCRIPT FLUSH"));
        forget.extend((used(&["FUNCTION"]) && self.has_functions).then_some("FUNCTION FLUSH"));
        self.server.pipeline(&forget);
    }

    /// Whether a row is of a client of the sequence: not of the harness itself, not the proxy's own.
    fn is_ours(&self, row: &Row) -> bool {
        let address = self.server.local_address().to_string();
        row.get("id") != self.control_id.to_string()
            && row.get("addr") != address
            && row.get("name") != "probe"
    }
}
