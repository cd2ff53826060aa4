//! The options of every TCP socket, to clients and to the server.
//!
//! Keepalive finds a peer that vanished while the connection is silent. It does not run while data is unacknowledged or
//! unsent: then [`PeerWatch`](super::PeerWatch) looks. Only where it cannot (TCP_INFO is too short before Linux 4.6, and
//! in gVisor, which calls itself 4.4) TCP_USER_TIMEOUT is set. Linux lets that decide about unanswered keepalive probes
//! too (`tcp_keepalive_timer` in `net/ipv4/tcp_timer.c`): the configuration keeps it above what the probes take, or one
//! lost probe would end a living peer. NODELAY, because we gather the writes of a loop turn ourselves.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::{Keepalive, peer};

/// Sets NODELAY and keepalive, and what tells a vanished host (`user_timeout`) from a slow one; times are rounded to what
/// the kernel counts in (seconds for keepalive). The silence before the first probe is up to a fifth longer than asked
/// for, by chance.
///
/// # Errors
/// The kernel's refusal; on a connection that the peer has reset already, too.
pub fn tune(stream: &TcpStream, keepalive: &Keepalive, user_timeout: Duration) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    // The kernel refuses 0 s; a sub-second setting means "as soon as possible".
    let at_least_a_second = |time: Duration| time.max(Duration::from_secs(1));
    let idle = at_least_a_second(keepalive.idle);
    // A thousand clients that came at once and fell silent would all be probed in one tick of the kernel's timer, and
    // what does not fit into its queues (`net.core.netdev_max_backlog`) is dropped.
    let spread = Duration::from_secs(fastrand::u64(0..=idle.as_secs() / 5));
    let probes = TcpKeepalive::new()
        .with_time(idle + spread)
        .with_interval(at_least_a_second(keepalive.interval))
        .with_retries(keepalive.count.max(1));
    socket.set_tcp_keepalive(&probes)?;
    peer::prepare(stream, user_timeout)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tuned_socket_has_every_option_in_the_kernel() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        tune(&stream, &Keepalive::default(), Duration::from_secs(30)).unwrap();

        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        let idle = socket.tcp_keepalive_time().unwrap().as_secs();
        assert!((5..=6).contains(&idle), "{idle}");
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(2));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        // It would end a living peer that does not read.
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    }

    #[tokio::test]
    async fn times_below_a_second_are_not_refused() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let short = Duration::from_millis(200);
        tune(&stream, &Keepalive { idle: short, interval: short, count: 1 }, short).unwrap();
        assert_eq!(SockRef::from(&stream).tcp_keepalive_time().unwrap(), Duration::from_secs(1));
    }
}
