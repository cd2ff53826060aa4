//! Whether the host at the other end of a connection is still there.
//!
//! A host that vanished sends no FIN and no RST. A peer that is merely slow (a stopped process, a breakpoint, a server
//! in a long command) looks the same to whoever only counts bytes, and must not be cut off: its kernel goes on
//! acknowledging. The kernel tells them apart ([`TcpInfo`]); TCP_USER_TIMEOUT does not, so it is not set where
//! TCP_INFO can be read:
//!
//! | what is under way | what Linux does | vanished: known by | alive and slow |
//! |---|---|---|---|
//! | nothing | keepalive probes (`tcp_keepalive_timer`) | keepalive, 11 to 13 s | answers them |
//! | sent, not acknowledged | sends again (`tcp_retransmit_timer`), no keepalive | this file | acknowledges at once |
//! | unsent, window shut | probes the window (`tcp_probe_timer`), no keepalive | this file | acknowledges each probe |
//! | sent, and the window shut behind it | sends again as probes | Linux, after two pauses | acknowledges each |
//!
//! The facts, of `net/ipv4/tcp_timer.c`, `tcp_input.c` and `tcp_output.c`, seen on Linux 6.18:
//! - With TCP_USER_TIMEOUT a connection whose window stays shut that long is ended although every probe is answered
//!   (`tcp_probe_timer`). Worse, the time is counted from the first probe (`icsk_probes_tstamp`), and a window that opens
//!   by less than the next packet does not reset it (`tcp_ack_probe`): whoever read slowly once was reset 0.4 s after
//!   its window shut again, 12 s later. So a longer time does not cure it.
//! - The pauses between probes double up to 120 s, answered or not, and nothing makes the kernel probe at once. A vanished
//!   host would be known minutes late. TCP_RTO_MAX_MS bounds the pauses; before Linux 6.15, where it is missing, a host
//!   that vanishes behind a window shut for a time T is known after about three times T.
//! - `tcpi_probes` counts probes since the last ACK, `tcpi_retransmits` timeouts since the last progress, and
//!   `tcpi_last_ack_recv` is the age of the last ACK of anything.
//!
//! Cheap: nothing is asked about a connection on which nothing was written since all was acknowledged.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::SockRef;
use tokio::time::Instant;

use super::tcp_info::{self, TcpInfo};

/// Number of probes within the time after which a silent host counts as lost.
const TRIES: u32 = 4;

/// The result of one check of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// All that was written is acknowledged: there is nothing to look after.
    Settled,
    /// Something is under way, and the host answers or has not had its time yet.
    Waited,
    /// Nothing that was sent has been answered for as long as a host may be silent.
    Vanished,
}

/// Checks one connection. Returns the time of the next check and its result; the owner of the socket keeps the timer.
#[derive(Debug)]
pub struct PeerWatch {
    /// In milliseconds: every client has one of these.
    patience: u32,
    /// Something was written, and it is not known yet that all of it is acknowledged.
    wrote: Cell<bool>,
    /// Since when something is known to have been sent and not answered by anything.
    unanswered: Cell<Option<Instant>>,
}

impl PeerWatch {
    /// For a connection whose host may be silent for `patience`.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        let patience = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        Self { patience, wrote: Cell::new(false), unanswered: Cell::new(None) }
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.patience.into())
    }

    /// Something was written to the socket.
    pub fn wrote(&self) {
        self.wrote.set(true);
    }

    /// Whether there is anything to look after.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.wrote.get()
    }

    /// The host was heard, so it is there.
    pub fn heard(&self) {
        self.unanswered.set(None);
    }

    /// Asks the kernel, if there is anything to look after. To be called about every second.
    pub fn look(&self, socket: &impl AsFd, now: Instant) -> Peer {
        if !self.is_needed() {
            return Peer::Settled;
        }
        match TcpInfo::of(socket) {
            Ok(info) => self.judge(&info, now),
            // Then TCP_USER_TIMEOUT applies, or the socket has failed already and its owner gets the error at the next
            // use.
            Err(_) => {
                self.wrote.set(false);
                Peer::Settled
            }
        }
    }

    fn judge(&self, info: &TcpInfo, now: Instant) -> Peer {
        if info.unacked == 0 && info.unsent == 0 {
            self.wrote.set(false);
            self.unanswered.set(None);
            return Peer::Settled;
        }
        let asked = info.probes > 0 || info.unacked > 0 && info.last_sent <= info.last_ack;
        if !asked {
            self.unanswered.set(None);
            return Peer::Waited;
        }
        let since = self.unanswered.get().filter(|since| {
            // Nothing was acknowledged in between.
            info.last_ack >= now.saturating_duration_since(*since)
        });
        let since = since.unwrap_or(now);
        self.unanswered.set(Some(since));
        // One packet may be lost: a pause between two tries can be longer than the patience where it is not bounded.
        let again = info.probes >= 2 || info.retransmits >= 1;
        if again && now.saturating_duration_since(since) >= self.patience() {
            return Peer::Vanished;
        }
        Peer::Waited
    }

    /// No further checks follow, so the kernel must close the connection if data stays unacknowledged.
    pub fn leave_to_kernel(&self, socket: &impl AsFd) {
        if self.is_needed() {
            // Fails only for a closed socket.
            let _ = SockRef::from(socket).set_tcp_user_timeout(Some(self.patience()));
        }
    }
}

/// Sets a connection up to be looked after.
///
/// # Errors
/// The kernel's refusal.
pub(super) fn prepare(socket: &impl AsFd, patience: Duration) -> std::io::Result<()> {
    if TcpInfo::is_known() {
        let _ = tcp_info::bound_pauses(socket, patience / TRIES);
        return Ok(());
    }
    // The best that is left. It ends a living peer, too, that does not read for that long.
    SockRef::from(socket).set_tcp_user_timeout(Some(patience))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PATIENCE: Duration = Duration::from_secs(12);

    /// What each of a row of looks, a second apart, says; `info` gives what the kernel tells at that second.
    fn looks(seconds: u32, info: impl Fn(u32) -> TcpInfo) -> Vec<Peer> {
        let (watch, start) = (PeerWatch::new(PATIENCE), Instant::now());
        watch.wrote();
        (0..seconds).map(|second| watch.judge(&info(second), start + SECOND * second)).collect()
    }

    fn shut(probes: u8, last_ack: Duration) -> TcpInfo {
        TcpInfo { unsent: 1, probes, last_ack, last_sent: Duration::from_secs(3600), ..TcpInfo::default() }
    }

    #[test]
    fn a_window_shut_for_ever_is_no_vanished_host() {
        // A probe every three seconds, answered at once.
        let said = looks(1_000, |second| shut(0, SECOND * (second % 3)));
        assert!(said.iter().all(|peer| *peer == Peer::Waited));
    }

    #[test]
    fn probes_that_are_lost_now_and_then_are_no_vanished_host() {
        // Every other one is answered; what Linux counts begins anew with each answer.
        let said = looks(1_000, |second| shut(u8::from(second % 6 >= 3), SECOND * (second % 6)));
        assert!(said.iter().all(|peer| *peer == Peer::Waited));
    }

    #[test]
    fn a_host_that_answers_no_probe_has_vanished_when_its_time_is_over() {
        let said = looks(20, |second| {
            let probes = u8::try_from(second / 3).unwrap_or(u8::MAX);
            shut(probes, SECOND * second)
        });
        let first = said.iter().position(|peer| *peer == Peer::Vanished);
        assert_eq!(first, Some(3 + 12), "{said:?}");
    }

    #[test]
    fn one_probe_that_is_lost_before_a_long_pause_is_no_vanished_host() {
        let said = looks(60, |second| shut(1, SECOND * second));
        assert!(said.iter().all(|peer| *peer == Peer::Waited));
    }

    #[test]
    fn what_is_written_after_an_hour_of_silence_has_its_time() {
        let hour = Duration::from_secs(3600);
        let said = looks(20, |second| TcpInfo {
            unacked: 1,
            retransmits: u8::try_from(second).unwrap_or(u8::MAX),
            last_sent: Duration::from_millis(500),
            last_ack: hour + SECOND * second,
            ..TcpInfo::default()
        });
        assert_eq!(said.iter().position(|peer| *peer == Peer::Vanished), Some(12), "{said:?}");
    }

    #[test]
    fn a_slow_reader_whose_acknowledgements_come_is_no_vanished_host() {
        let said = looks(100, |_| TcpInfo { unacked: 9, unsent: 9, ..TcpInfo::default() });
        assert!(said.iter().all(|peer| *peer == Peer::Waited));
    }

    #[test]
    fn nothing_is_asked_when_all_is_acknowledged() {
        let watch = PeerWatch::new(PATIENCE);
        assert!(!watch.is_needed());
        watch.wrote();
        assert_eq!(watch.judge(&TcpInfo::default(), Instant::now()), Peer::Settled);
        assert!(!watch.is_needed());
    }
}
