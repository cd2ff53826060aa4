//! A raw RESP client: it sends the bytes a test gives it and reads whole replies, each with a deadline.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use redbouncer::resp::ReplyScanner;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};
use socket2::{Domain, Socket, Type};

use super::PATIENCE;
use super::reply::Reply;
use super::secure::Way;

/// One connection.
pub(crate) struct Client {
    stream: Way,
    buffer: BytesMut,
    /// Bytes the buffer must hold before it is worth parsing again, so that a big reply is not parsed at every read.
    worth_parsing: usize,
}

/// Why no reply came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The peer closed with a FIN, nothing left to read.
    Closed,
    /// The peer reset the connection.
    Reset,
    /// The deadline passed.
    Late,
}

/// One command as an array of bulks.
pub(crate) fn encode<S: AsRef<[u8]>>(words: &[S]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        let word = word.as_ref();
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

impl Client {
    #[track_caller]
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"))
    }

    pub(crate) fn try_connect(address: SocketAddr) -> std::io::Result<Self> {
        Self::try_connect_within(address, PATIENCE)
    }

    pub(crate) fn try_connect_within(address: SocketAddr, within: Duration) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, within)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self::by(Way::Tcp(stream)))
    }

    /// Connects from this address.
    pub(crate) fn try_connect_from(own: SocketAddr, address: SocketAddr) -> std::io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&own.into())?;
        socket.connect_timeout(&address.into(), PATIENCE)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self::by(Way::Tcp(socket.into())))
    }

    /// Connects from another loopback address than everybody else: a port alone may be in use twice, towards the proxy and
    /// towards its server, and what kills by address would meet both.
    #[track_caller]
    pub(crate) fn connect_apart(address: SocketAddr) -> Self {
        Self::connect_from([127, 0, 0, 77], address)
    }

    /// Connects from the loopback address `from`.
    #[track_caller]
    pub(crate) fn connect_from(from: [u8; 4], address: SocketAddr) -> Self {
        Self::try_connect_from(SocketAddr::from((from, 0)), address).unwrap()
    }

    /// Connects with a small receive buffer from the beginning, so that no more is on its way at any time.
    #[track_caller]
    pub(crate) fn connect_with_receive_buffer(address: SocketAddr, bytes: usize) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
        socket.connect_timeout(&address.into(), PATIENCE).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Self::by(Way::Tcp(socket.into()))
    }

    fn by(stream: Way) -> Self {
        Self { stream, buffer: BytesMut::new(), worth_parsing: 0 }
    }

    /// Connects by a Unix socket.
    #[track_caller]
    pub(crate) fn connect_unix(path: &Path) -> Self {
        Self::by(Way::Unix(UnixStream::connect(path).unwrap()))
    }

    /// Connects and makes the TLS handshake; its failure is an error.
    pub(crate) fn try_connect_tls(address: SocketAddr, config: &Arc<ClientConfig>) -> std::io::Result<Self> {
        let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut session = ClientConnection::new(Arc::clone(config), name).unwrap();
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        Ok(Self::by(Way::Tls(Box::new(StreamOwned::new(session, socket)))))
    }

    #[track_caller]
    pub(crate) fn connect_tls(address: SocketAddr, config: &Arc<ClientConfig>) -> Self {
        Self::try_connect_tls(address, config).unwrap_or_else(|error| panic!("TLS to {address}: {error}"))
    }

    /// Whether the TLS handshake resumed an earlier session.
    pub(crate) fn is_resumed(&self) -> bool {
        let Way::Tls(stream) = &self.stream else { panic!("no TLS") };
        stream.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Writes the bytes as they are.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap_or_else(|error| panic!("send: {error}"));
    }

    /// Writes the bytes as they are; an error when the peer is gone or takes nothing.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends one command, given as words separated by single blanks, without reading its reply.
    #[track_caller]
    pub(crate) fn start(&mut self, command: &str) {
        let words: Vec<&str> = command.split(' ').collect();
        self.send(encode(&words));
    }

    /// Sends one command, given as words separated by single blanks, and reads one reply.
    #[track_caller]
    pub(crate) fn call(&mut self, command: &str) -> Reply {
        self.start(command);
        match self.try_reply(PATIENCE) {
            Ok(reply) => reply,
            Err(ended) => panic!("no reply to {command:?}: {ended:?}"),
        }
    }

    /// Sends one command of arbitrary words and reads one reply.
    #[track_caller]
    pub(crate) fn ask<S: AsRef<[u8]>>(&mut self, words: &[S]) -> Reply {
        self.send(encode(words));
        self.reply()
    }

    /// Sends several commands in one write and reads as many replies.
    #[track_caller]
    pub(crate) fn pipeline(&mut self, commands: &[&str]) -> Vec<Reply> {
        let bytes: Vec<u8> =
            commands.iter().flat_map(|command| encode(&command.split(' ').collect::<Vec<_>>())).collect();
        self.send(bytes);
        commands.iter().map(|_| self.reply()).collect()
    }

    /// The next reply; panics when none comes.
    #[track_caller]
    pub(crate) fn reply(&mut self) -> Reply {
        self.reply_within(PATIENCE)
    }

    #[track_caller]
    pub(crate) fn reply_within(&mut self, within: Duration) -> Reply {
        self.try_reply(within).unwrap_or_else(|ended| panic!("no reply within {within:?}: {ended:?}"))
    }

    /// The next reply, or why there is none.
    pub(crate) fn try_reply(&mut self, within: Duration) -> Result<Reply, Ended> {
        let deadline = Instant::now() + within;
        loop {
            if !self.buffer.is_empty() && self.buffer.len() >= self.worth_parsing {
                let view = self.buffer.split().freeze();
                if let Some(reply) = Reply::parse(&view) {
                    self.buffer = BytesMut::from(&view[reply.raw.len()..]);
                    self.worth_parsing = 0;
                    return Ok(reply);
                }
                self.buffer = BytesMut::from(&view[..]);
                self.worth_parsing = self.expected_len();
            }
            self.fill(deadline)?;
        }
    }

    /// The bytes of the next frame as they come: an array may hold both protocols' types, when HELLO ran in the middle of it.
    #[track_caller]
    pub(crate) fn frame(&mut self, within: Duration) -> Bytes {
        let deadline = Instant::now() + within;
        loop {
            let step = ReplyScanner::default().step(&self.buffer).expect("RESP");
            if step.complete.is_some() {
                return self.buffer.split_to(step.consumed).freeze();
            }
            if let Err(ended) = self.fill(deadline) {
                panic!("no frame within {within:?}: {ended:?}");
            }
        }
    }

    /// Bytes that the frame at hand needs at the least, as far as its first line says.
    fn expected_len(&self) -> usize {
        let line_end = self.buffer.iter().position(|byte| *byte == b'\r');
        let bulk = match (self.buffer.first(), line_end) {
            (Some(b'$'), Some(end)) => std::str::from_utf8(&self.buffer[1..end])
                .ok()
                .and_then(|digits| digits.parse::<usize>().ok())
                .map(|length| end + 2 + length + 2),
            _ => None,
        };
        bulk.unwrap_or(0)
    }

    fn fill(&mut self, deadline: Instant) -> Result<(), Ended> {
        let mut chunk = [0; 1 << 16];
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Ended::Late);
        }
        self.stream.set_read_timeout(left);
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(Ended::Closed),
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                Ok(())
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Err(Ended::Late),
                ErrorKind::Interrupted => Ok(()),
                // TLS without a farewell.
                ErrorKind::UnexpectedEof => Err(Ended::Closed),
                _ => Err(Ended::Reset),
            },
        }
    }

    /// Everything the peer sends until it closes or `within` has passed, and how that ended.
    pub(crate) fn read_to_end(&mut self, within: Duration) -> (Bytes, Ended) {
        let deadline = Instant::now() + within;
        loop {
            if let Err(ended) = self.fill(deadline) {
                return (self.buffer.split().freeze(), ended);
            }
        }
    }

    /// Exactly `count` bytes as they come, without looking for frames.
    #[track_caller]
    pub(crate) fn read_bytes(&mut self, count: usize, within: Duration) -> Bytes {
        let deadline = Instant::now() + within;
        while self.buffer.len() < count {
            if let Err(ended) = self.fill(deadline) {
                panic!("{} of {count} bytes, then {ended:?}", self.buffer.len());
            }
        }
        self.buffer.split_to(count).freeze()
    }

    /// Panics unless the peer ends the connection within `within` without another byte.
    #[track_caller]
    pub(crate) fn expect_end(&mut self, within: Duration) {
        let (bytes, ended) = self.read_to_end(within);
        assert!(bytes.is_empty(), "bytes before the end: {:?}", String::from_utf8_lossy(&bytes));
        assert_ne!(ended, Ended::Late, "not closed within {within:?}");
    }

    /// Panics if a byte or an end arrives within `span`.
    #[track_caller]
    pub(crate) fn expect_silence(&mut self, span: Duration) {
        let (bytes, ended) = self.read_to_end(span);
        assert!(bytes.is_empty(), "unexpected: {:?}", String::from_utf8_lossy(&bytes));
        assert_eq!(ended, Ended::Late, "the connection ended");
    }

    /// Sends a FIN and goes on reading.
    pub(crate) fn half_close(&mut self) {
        self.stream.half_close();
    }

    /// Closes with a RST, as a crashed host or a firewall does.
    pub(crate) fn reset(self) {
        self.stream.socket().set_linger(Some(Duration::ZERO)).unwrap();
    }

    pub(crate) fn local_address(&self) -> SocketAddr {
        self.stream.socket().local_addr().unwrap().as_socket().unwrap()
    }

    /// Makes the kernel's receive buffer small, so that an unread reply soon pushes back; not smaller than a packet of the
    /// loopback interface, or reading on would be slow.
    pub(crate) fn shrink_receive_buffer(&self) {
        self.stream.socket().set_recv_buffer_size(128 << 10).unwrap();
    }

    /// How long a write may wait for a peer that does not read.
    pub(crate) fn write_patiently(&self, within: Duration) {
        self.stream.socket().set_write_timeout(Some(within)).unwrap();
    }
}
