//! A server for the whole proxy: it answers each command with its own words, until the input has it do otherwise.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::resp::{Protocol, Request, RequestLimits, RequestScanner, RequestStep, encode};

/// One reply that a server may have for anything.
const REFUSALS: [&str; 8] = [
    "ERR refused",
    "NOPERM this user has no permissions to run this command",
    "LOADING Redis is loading the dataset in memory",
    "READONLY You can't write against a read only replica.",
    "NOAUTH Authentication required.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "ERR max number of clients reached",
    "ERR Protocol error: invalid bulk length",
];

/// What all connections share.
#[derive(Default)]
pub(super) struct Server {
    /// What it does beside answering, a byte for each command, over all connections.
    program: RefCell<Vec<u8>>,
    at: Cell<usize>,
    /// Bytes that it has written.
    pub(super) said: Cell<usize>,
    connections: Cell<u64>,
    /// Connections that answer anything, or nothing, are closed: a drain waits for what is in flight on them.
    pub(super) ending: CancellationToken,
}

impl Server {
    pub(super) fn new(program: &[u8]) -> Rc<Self> {
        Rc::new(Self { program: RefCell::new(program.to_vec()), ..Self::default() })
    }

    fn next(&self) -> Option<u8> {
        let at = self.at.get();
        self.at.set(at + 1);
        self.program.borrow().get(at).copied()
    }

    fn piece(&self) -> Vec<u8> {
        let len = self.next().map_or(0, |len| usize::from(len) % 48);
        (0..len).map_while(|_| self.next()).collect()
    }

    /// Takes connections for as long as it is polled.
    pub(super) async fn accept(self: Rc<Self>, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            // Nothing of it stays behind in TIME_WAIT: thousands of runs would use up the ports of the machine.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            self.connections.set(self.connections.get() + 1);
            let connection = Connection {
                id: self.connections.get(),
                server: Rc::clone(&self),
                stream,
                protocol: Protocol::Resp2,
                queue: None,
                channels: BTreeSet::new(),
                hostile: false,
            };
            tokio::task::spawn_local(connection.serve());
        }
    }
}

struct Connection {
    id: u64,
    server: Rc<Server>,
    stream: TcpStream,
    protocol: Protocol,
    queue: Option<Vec<Bytes>>,
    channels: BTreeSet<Vec<u8>>,
    /// It has said something that answers nothing: its further replies are the input's alone, so that none of them has a
    /// mark in it that could be taken for a reply to somebody else.
    hostile: bool,
}

impl Connection {
    async fn serve(mut self) {
        let mut buffer = BytesMut::new();
        let ending = self.server.ending.clone();
        loop {
            tokio::select! {
                read = self.stream.read_buf(&mut buffer) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                },
                () = ending.cancelled(), if self.hostile => return,
            }
            loop {
                let step = RequestScanner::default().step(&buffer, &RequestLimits::default());
                let Ok(RequestStep::Request(shape)) = step else {
                    assert!(
                        matches!(step, Ok(RequestStep::Incomplete { .. })),
                        "the server gets requests and nothing else: {step:?}"
                    );
                    break;
                };
                let frame = buffer.split_to(shape.len).freeze();
                if self.answer(&frame).await.is_none() {
                    return;
                }
            }
            buffer.reserve(1);
        }
    }

    /// `None`: it closes the connection.
    async fn answer(&mut self, frame: &Bytes) -> Option<()> {
        let act = if self.hostile { 255 } else { self.server.next().unwrap_or(0) };
        let mut out = BytesMut::new();
        match act {
            0..200 => self.run(frame, &mut out),
            200..208 => {
                self.run(frame, &mut out);
                let half = out.split_to(out.len() / 2);
                self.write(&half).await?;
                tokio::task::yield_now().await;
            }
            208..220 => encode::error(&mut out, REFUSALS[usize::from(act - 208) % REFUSALS.len()]),
            220..226 => {
                tokio::time::sleep(Duration::from_millis(u64::from(act - 219) / 2)).await;
                self.run(frame, &mut out);
            }
            226..232 => return None,
            232..236 => {
                out.extend_from_slice(b">2\r\n$10\r\ninvalidate\r\n_\r\n");
                self.run(frame, &mut out);
            }
            236.. => {
                self.hostile = true;
                let piece = self.server.piece();
                out.extend_from_slice(&piece);
            }
        }
        self.write(&out).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Option<()> {
        self.server.said.set(self.server.said.get() + bytes.len());
        self.stream.write_all(bytes).await.ok()
    }

    fn run(&mut self, frame: &Bytes, out: &mut BytesMut) {
        let request = Request::parse(frame).expect("the proxy sends canonical requests");
        let name = request.name().to_ascii_lowercase();
        match (&name[..], &mut self.queue) {
            (b"exec", queue) => match queue.take() {
                Some(queued) => {
                    encode::array(out, queued.len());
                    queued.iter().for_each(|frame| self.execute(frame, out));
                }
                None => encode::error(out, "ERR EXEC without MULTI"),
            },
            (b"discard", queue) => {
                *queue = None;
                encode::simple(out, "OK");
            }
            (_, Some(queue)) => {
                queue.push(frame.clone());
                encode::simple(out, "QUEUED");
            }
            (b"multi", queue) => {
                *queue = Some(Vec::new());
                encode::simple(out, "OK");
            }
            (_, None) => self.execute(frame, out),
        }
    }

    fn execute(&mut self, frame: &Bytes, out: &mut BytesMut) {
        let Some(request) = Request::parse(frame) else { return };
        let words: Vec<&[u8]> = request.args().collect();
        let name = request.name().to_ascii_lowercase();
        let second = words.get(1).copied().unwrap_or_default();
        match &name[..] {
            b"hello" => {
                match second {
                    b"3" => self.protocol = Protocol::Resp3,
                    b"2" => self.protocol = Protocol::Resp2,
                    _ => {} // it stays as it is
                }
                self.greet(out);
            }
            b"auth" | b"select" | b"readonly" | b"readwrite" | b"watch" | b"unwatch" | b"monitor" => {
                encode::simple(out, "OK");
            }
            b"ping" if second.is_empty() => encode::simple(out, "PONG"),
            b"ping" => encode::bulk(out, second),
            b"client" => match &second.to_ascii_lowercase()[..] {
                b"id" => encode::integer(out, self.id as i64),
                b"list" => encode::bulk(out, b""),
                b"kill" | b"unblock" => encode::integer(out, 0),
                _ => encode::simple(out, "OK"), // nothing else is asked of it
            },
            b"info" => {
                encode::bulk(
                    out,
                    b"redis_version:7.2.0\r\nredis_mode:standalone\r\nrun_id:0123456789012345678901234567890123456789\r\n",
                );
            }
            b"llen" | b"xlen" | b"exists" | b"publish" | b"wait" | b"lpush" => encode::integer(out, 0),
            b"pubsub" => encode::array(out, 0),
            b"blpop" => {
                let is_there = second.iter().map(|byte| usize::from(*byte)).sum::<usize>() % 2 == 0;
                if is_there {
                    encode::array(out, 2);
                    encode::bulk(out, second);
                    encode::bulk(out, b"element");
                } else {
                    self.null(out);
                }
            }
            b"subscribe" | b"unsubscribe" => self.listen(&name, &words[1..], out),
            // Its own words, so that a reply shows whose it is.
            _ => encode::bulk(out, &words.join(&b' ')),
        }
    }

    fn greet(&self, out: &mut BytesMut) {
        match self.protocol {
            Protocol::Resp2 => encode::array(out, 14),
            Protocol::Resp3 => out.extend_from_slice(b"%7\r\n"),
        }
        for (key, value) in
            [("server", "redis"), ("version", "7.2.0"), ("mode", "standalone"), ("role", "master")]
        {
            encode::bulk(out, key.as_bytes());
            encode::bulk(out, value.as_bytes());
        }
        encode::bulk(out, b"proto");
        encode::integer(out, i64::from(self.protocol.number()));
        encode::bulk(out, b"id");
        encode::integer(out, self.id as i64);
        encode::bulk(out, b"modules");
        encode::array(out, 0);
    }

    fn listen(&mut self, name: &[u8], names: &[&[u8]], out: &mut BytesMut) {
        let names: Vec<Vec<u8>> = match names {
            [] => self.channels.iter().cloned().collect(),
            names => names.iter().map(|name| name.to_vec()).collect(),
        };
        for at in 0..names.len().max(1) {
            match self.protocol {
                Protocol::Resp2 => encode::array(out, 3),
                Protocol::Resp3 => out.extend_from_slice(b">3\r\n"),
            }
            encode::bulk(out, name);
            match names.get(at) {
                Some(channel) => {
                    if name == b"subscribe" {
                        self.channels.insert(channel.clone());
                    } else {
                        self.channels.remove(channel);
                    }
                    encode::bulk(out, channel);
                }
                None => self.null(out),
            }
            encode::integer(out, self.channels.len() as i64);
        }
    }

    fn null(&self, out: &mut BytesMut) {
        out.extend_from_slice(match self.protocol {
            Protocol::Resp2 => b"$-1\r\n",
            Protocol::Resp3 => b"_\r\n",
        });
    }
}
