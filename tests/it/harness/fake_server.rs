//! A listener that answers as it is told: for servers that cannot be had, and for what only looks like one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;

use super::reply::{Reply, Value};

/// What is answered to one command: raw bytes.
type Answer = dyn Fn(&[&str]) -> String + Send + Sync;

/// The listener; no connection is accepted any more when it is dropped.
pub(crate) struct FakeServer {
    address: SocketAddr,
    over: Arc<AtomicBool>,
}

impl FakeServer {
    /// A server that speaks RESP and answers each command with what `answer` makes of its words.
    pub(crate) fn server(answer: impl Fn(&[&str]) -> String + Send + Sync + 'static) -> Self {
        let answer: Arc<Answer> = Arc::new(answer);
        Self::listen(move |stream| serve(stream, &*answer))
    }

    /// The same where each connection has an `answer` with a state of its own.
    pub(crate) fn server_of_connections<A: Fn(&[&str]) -> String + Send + Sync + 'static>(
        answer: impl Fn() -> A + Send + Sync + 'static,
    ) -> Self {
        Self::listen(move |stream| serve(stream, &answer()))
    }

    /// Something that answers the first bytes it gets with `answer`, whatever they are, and hangs up.
    pub(crate) fn saying(answer: &'static str) -> Self {
        Self::listen(move |mut stream| {
            if stream.read(&mut [0; 4096]).is_ok_and(|came| came > 0) {
                let _ = stream.write_all(answer.as_bytes());
            }
        })
    }

    /// Something that hangs up on everybody, or on nobody and never says a word.
    pub(crate) fn silent(hang_up: bool) -> Self {
        Self::listen(move |mut stream| {
            if !hang_up {
                while stream.read(&mut [0; 4096]).is_ok_and(|came| came > 0) {}
            }
        })
    }

    fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, over) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let (ended, serve) = (Arc::clone(&over), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(stream));
            }
        });
        Self { address, over }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // So that the thread looks.
        let _ = TcpStream::connect(self.address);
    }
}

/// A request is an array of bulks, which a reply may be, too.
fn serve(mut stream: TcpStream, answer: &Answer) {
    let mut buffer = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(came @ 1..) = stream.read(&mut chunk) {
        buffer.extend_from_slice(&chunk[..came]);
        while let Some(request) = Reply::parse(&Bytes::copy_from_slice(&buffer)) {
            buffer.drain(..request.raw.len());
            let Value::List(items) = &request.value else { return };
            let words: Vec<String> = items.iter().map(Value::text).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            if stream.write_all(answer(&words).as_bytes()).is_err() {
                return;
            }
        }
    }
}

/// A bulk string as RESP writes it.
pub(crate) fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}
