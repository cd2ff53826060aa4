//! One client's connection and all it has received.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use redbouncer::resp::{self, ReplyScanner};
use socket2::{Domain, SockRef, Socket, Type};

use super::mask::Identity;
use super::sequence::Tail;
use crate::harness::encode;

/// How long a wait for the server or the proxy itself may take; for what a sequence waits for see [`super::comparison::Patience`].
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Wire {
    pub(crate) socket: Option<TcpStream>,
    pub(crate) identity: Identity,
    pub(crate) got: Vec<u8>,
    pub(crate) ended: bool,
    /// It reads nothing for a while.
    pub(crate) deaf: bool,
    chunk: Vec<u8>,
}

impl Wire {
    /// Connects and says HELLO. A narrow one tells its peer soon that it does not read.
    pub(crate) fn open(address: SocketAddr, protocol: u8, narrow: bool) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        if narrow {
            socket.set_recv_buffer_size(64 << 10).unwrap();
        }
        socket.connect(&address.into()).unwrap();
        let mut socket = TcpStream::from(socket);
        socket.set_nodelay(true).unwrap();
        let greeting = [encode(&["HELLO", &protocol.to_string()]), encode(&["CLIENT", "ID"])].concat();
        socket.write_all(&greeting).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.set_write_timeout(Some(LIMIT)).unwrap();
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
        Self {
            socket: Some(socket),
            identity,
            got: Vec::new(),
            ended: false,
            deaf: false,
            chunk: vec![0; 1 << 16],
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let Some(socket) = &mut self.socket else { return };
        socket.set_nonblocking(false).unwrap();
        // A peer that has closed takes nothing: what it said before is still read.
        let _ = socket.write_all(bytes);
        socket.set_nonblocking(true).unwrap();
    }

    /// What follows a write at once.
    pub(crate) fn tail(&mut self, tail: Tail) {
        let Some(socket) = &self.socket else { return };
        match tail {
            Tail::Stays => {}
            Tail::HalfCloses => {
                let _ = socket.shutdown(Shutdown::Write);
            }
            Tail::Leaves => {
                // A FIN first, also where a reply has come already: a RST alone says that all is over.
                let _ = socket.shutdown(Shutdown::Write);
                SockRef::from(socket).set_linger(None).unwrap();
                self.socket = None;
            }
        }
    }

    /// Reads what is there.
    pub(crate) fn read(&mut self) {
        while let Some(socket) = self.socket.as_mut().filter(|_| !self.deaf) {
            match socket.read(&mut self.chunk) {
                Ok(0) => self.end(),
                Ok(came) => self.got.extend_from_slice(&self.chunk[..came]),
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
    pub(crate) fn await_bytes(&mut self, within: Duration) {
        match &self.socket {
            Some(socket) if !self.deaf => {
                socket.set_nonblocking(false).unwrap();
                socket.set_read_timeout(Some(within)).unwrap();
                let _ = socket.peek(&mut [0]);
                socket.set_nonblocking(true).unwrap();
            }
            Some(_) | None => std::thread::sleep(within),
        }
        self.read();
    }
}
