//! Two options of a TCP socket that no crate of ours wraps, read and set without unsafe code.
//!
//! TCP_INFO says what a connection has under way and when its peer was last heard (`struct tcp_info` of
//! `include/uapi/linux/tcp.h`). TCP_RTO_MAX_MS (Linux 6.15) bounds the pauses between retransmissions and between window
//! probes, which double up to two minutes otherwise.

use std::io;
use std::os::fd::AsFd;
use std::sync::LazyLock;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::sockopt::{GetStruct, SetStruct};
use nix::sys::socket::{getsockopt, setsockopt};

/// As much of `struct tcp_info` as is read here; Linux copies no more than it is asked for.
const LENGTH: usize = 148;
/// The first Linux whose `struct tcp_info` is that long.
const FIRST: (u32, u32) = (4, 6);
/// Not in libc yet.
const TCP_RTO_MAX_MS: libc::c_int = 44;

#[derive(Clone, Copy, Debug)]
struct RawInfo;
nix::getsockopt_impl!(RawInfo, libc::IPPROTO_TCP, libc::TCP_INFO, [u8; LENGTH], GetStruct<[u8; LENGTH]>);

#[derive(Clone, Copy, Debug)]
struct RtoMax;
nix::setsockopt_impl!(RtoMax, libc::IPPROTO_TCP, TCP_RTO_MAX_MS, u32, SetStruct<'_, u32>);

/// The kernel's state of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TcpInfo {
    /// Timeouts in a row after which data was sent again.
    pub(super) retransmits: u8,
    /// Window probes since the peer was last heard.
    pub(super) probes: u8,
    /// Packets that were sent and are not acknowledged.
    pub(super) unacked: u32,
    /// Bytes that were never sent: the peer's window, or the network's, has no room for them.
    pub(super) unsent: u32,
    /// Bytes that the peer has acknowledged since the connection was made.
    pub(super) acknowledged: u64,
    /// How long ago data was last sent, for the first time or again.
    pub(super) last_sent: Duration,
    /// How long ago the peer last acknowledged anything: data, a window probe, a keepalive probe.
    pub(super) last_ack: Duration,
}

impl TcpInfo {
    /// Asks the kernel: one system call.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where [`Self::is_known`] is false; the kernel's refusal.
    pub(super) fn of(socket: &impl AsFd) -> io::Result<Self> {
        if !Self::is_known() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self::read(&getsockopt(socket, RawInfo)?))
    }

    /// Whether this kernel tells all of it.
    pub(super) fn is_known() -> bool {
        static KNOWN: LazyLock<bool> = LazyLock::new(|| {
            std::fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|release| is_new_enough(&release))
        });
        *KNOWN
    }

    fn read(raw: &[u8; LENGTH]) -> Self {
        let number = |at: usize| u32::from_ne_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        let long = |at: usize| {
            let (mut bytes, from) = ([0; 8], &raw[at..at + 8]);
            bytes.copy_from_slice(from);
            u64::from_ne_bytes(bytes)
        };
        let age = |at| Duration::from_millis(number(at).into());
        Self {
            retransmits: raw[2],
            probes: raw[3],
            unacked: number(24),
            last_sent: age(44),
            last_ack: age(56),
            unsent: number(144),
            acknowledged: long(120),
        }
    }
}

/// How many bytes the peer's kernel has acknowledged, where this one tells: whether it reads shows there, and not in what
/// a socket takes, whose own buffer grows.
pub fn acknowledged(socket: &impl AsFd) -> Option<u64> {
    TcpInfo::of(socket).ok().map(|info| info.acknowledged)
}

/// Bounds the pauses between retransmissions, and between window probes. `false`: this kernel cannot.
pub(super) fn bound_pauses(socket: &impl AsFd, longest: Duration) -> bool {
    // Linux accepts one second to two minutes.
    let longest = longest.clamp(Duration::from_secs(1), Duration::from_secs(120));
    setsockopt(socket, RtoMax, &u32::try_from(longest.as_millis()).unwrap_or(u32::MAX)).is_ok()
}

/// Whether `release`, as `uname -r` prints it, is of a Linux that fills [`LENGTH`].
fn is_new_enough(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return false };
    (major, minor) >= FIRST
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_kernel_is_asked_only_if_it_tells_all() {
        for (release, known) in [
            ("6.18.44-fc", true),
            ("4.6.0", true),
            ("5.15.0-1053-aws", true),
            ("4.4.0", false),
            ("3.10.0-1160.el7.x86_64", false),
            ("", false),
            ("Linux", false),
        ] {
            assert_eq!(is_new_enough(release), known, "{release}");
        }
    }

    /// The fields are where they are looked for: each is seen to change.
    #[test]
    fn what_is_under_way_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        assert_eq!(TcpInfo::of(&near).unwrap().unsent, 0);
        near.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(more) = near.write(&[0; 1 << 16]) {
            sent += more;
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        let settled = |wanted: &dyn Fn(TcpInfo) -> bool| {
            while !wanted(TcpInfo::of(&near).unwrap()) {
                assert!(Instant::now() < deadline, "{:?}", TcpInfo::of(&near));
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        // The window is shut, and a probe has been answered since.
        settled(&|info| info.unacked == 0 && info.unsent > 0 && info.last_sent > info.last_ack);
        far.read_exact(&mut vec![0; sent]).unwrap();
        settled(&|info| info.unacked == 0 && info.unsent == 0 && info.acknowledged >= sent as u64);
        settled(&|info| info.last_ack > Duration::from_millis(50));
    }
}
