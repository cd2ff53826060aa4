//! What a worker warns of again and again, at most once a second each.

use std::cell::Cell;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::pool::{ClientMemory, Holding, HoldingClient, Unavailable, Victim};
use crate::telemetry::ClientClose;

const PERIOD: Duration = Duration::from_secs(1);

/// When each kind was last told.
#[derive(Debug, Default)]
pub(in crate::downstream) struct Warnings {
    full: Limiter,
    outage: Limiter,
    failures: Limiter,
    memory: Limiter,
    slow: Limiter,
    /// Slow commands since the last line about one.
    untold: Cell<u64>,
}

#[derive(Debug, Default)]
struct Limiter(Cell<Option<Instant>>);

impl Limiter {
    /// Whether a line may be written now.
    fn allows(&self) -> bool {
        let now = Instant::now();
        let allows = self.0.get().is_none_or(|last| now - last >= PERIOD);
        if allows {
            self.0.set(Some(now));
        }
        allows
    }
}

impl Warnings {
    /// A command was slow. `Some`: a line may say so, and how many since the last line were not told.
    pub(in crate::downstream) fn slow_command(&self) -> Option<u64> {
        if self.slow.allows() {
            return Some(self.untold.take());
        }
        self.untold.set(self.untold.get() + 1);
        None
    }

    /// The pool is full; `text` says who holds what, `longest` who has held a lease for longest.
    pub(in crate::downstream) fn full(&self, text: &str, longest: impl FnOnce() -> Option<Holding>) {
        if self.full.allows() {
            let longest = longest();
            let holding = longest.as_ref();
            let client = holding.and_then(Holding::client);
            tracing::warn!(
                reason = "pool_full",
                client = client.map(|client| client.id),
                name = client.map(|client| client.name.as_str()),
                address = client.map(|client| display(&client.peer)),
                user = client.map(HoldingClient::user),
                pin = client.map(|client| client.pin),
                held_seconds = holding.map(|row| row.since.elapsed().as_secs()),
                command = client.map(HoldingClient::command),
                server_id = holding.and_then(|row| row.id),
                local_port = holding.and_then(|row| row.local_port),
                "{text}"
            );
        }
    }

    /// Clients are closed for want of a server.
    pub(in crate::downstream) fn outage(&self, why: &Unavailable) {
        if self.outage.allows() {
            let reason = ClientClose::NoUpstream.label();
            tracing::warn!(reason, "clients are closed because no server is available: {why}");
        }
    }

    /// A client is closed for its memory.
    pub(super) fn memory(&self, memory: &ClientMemory, victim: &Victim) {
        if self.memory.allows() {
            let (reason, used, memory_max) = (ClientClose::Memory.label(), memory.used(), memory.bound());
            tracing::warn!(
                reason,
                client = victim.id,
                held = victim.bytes,
                used,
                memory_max,
                "clients use more memory than client.memory_max; the largest client is closed"
            );
        }
    }

    /// An address fails to log in too often.
    pub(in crate::downstream) fn failed_logins(&self, address: IpAddr) {
        if self.failures.allows() {
            tracing::warn!(%address, reason = "failed_logins", "logins from this address are refused temporarily");
        }
    }
}
