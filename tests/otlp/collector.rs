//! A collector: it takes OTLP over HTTP and reads the protobuf of it as far as the tests look
//! (`opentelemetry/proto/trace/v1/trace.proto`), with a reader of its own, so that a mistake of the exporter's is not repeated here.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A collector that takes everything.
pub(crate) struct Collector {
    address: SocketAddr,
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// What the tests look at of a span.
#[derive(Clone, Debug, Default)]
pub(crate) struct Span {
    pub(crate) trace: Vec<u8>,
    pub(crate) id: Vec<u8>,
    pub(crate) parent: Vec<u8>,
    pub(crate) name: String,
    /// In nanoseconds of Unix time, as `end`.
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) attributes: BTreeMap<String, String>,
}

impl Collector {
    pub(crate) fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap())
    }

    pub(crate) fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let received = Arc::clone(&bodies);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let body = take(stream.unwrap());
                received.lock().unwrap().extend(body);
            }
        });
        Self { address, bodies }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.bodies.lock().unwrap().iter().flat_map(|body| spans_of(body)).collect()
    }

    /// Whether `text` is in anything that has arrived.
    pub(crate) fn has_received(&self, text: &[u8]) -> bool {
        let bodies = self.bodies.lock().unwrap();
        bodies.iter().any(|body| body.windows(text.len()).any(|window| window == text))
    }
}

/// Reads a request, and answers it. `None`: its peer has gone.
fn take(stream: TcpStream) -> Option<Vec<u8>> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    assert!(line.is_empty() || line.starts_with("POST /v1/traces HTTP/1.1"), "{line}");
    let (mut length, mut kind) = (0, String::new());
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "content-type" => value.clone_into(&mut kind),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    assert_eq!(kind, "application/x-protobuf");
    // An empty message: all of it was taken.
    let answer = "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n";
    reader.get_mut().write_all(answer.as_bytes()).ok()?;
    Some(body)
}

/// A value of a field on the wire.
enum Value<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message: their numbers and values.
fn fields(mut message: &[u8]) -> Vec<(u64, Value<'_>)> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let value = match tag & 7 {
            0 => Value::Varint(varint(&mut message)),
            1 => Value::Fixed(u64::from_le_bytes(cut(&mut message, 8).try_into().unwrap())),
            2 => {
                let length = usize::try_from(varint(&mut message)).unwrap();
                Value::Bytes(cut(&mut message, length))
            }
            5 => Value::Fixed(u64::from(u32::from_le_bytes(cut(&mut message, 4).try_into().unwrap()))),
            kind => panic!("wire type {kind}"),
        };
        found.push((tag >> 3, value));
    }
    found
}

fn varint(message: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = cut(message, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn cut<'a>(message: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (head, tail) = message.split_at(length);
    *message = tail;
    head
}

/// The messages in field `number`.
fn inner(message: &[u8], number: u64) -> Vec<&[u8]> {
    let all = fields(message).into_iter();
    all.filter_map(|(field, value)| match value {
        Value::Bytes(bytes) if field == number => Some(bytes),
        Value::Bytes(_) | Value::Varint(_) | Value::Fixed(_) => None,
    })
    .collect()
}

/// ExportTraceServiceRequest: resource_spans 1, of which scope_spans 2, of which spans 2.
fn spans_of(body: &[u8]) -> Vec<Span> {
    let scopes = inner(body, 1).into_iter().flat_map(|resource| inner(resource, 2));
    scopes.flat_map(|scope| inner(scope, 2)).map(span_of).collect()
}

fn span_of(message: &[u8]) -> Span {
    let mut span = Span::default();
    for (number, value) in fields(message) {
        match (number, value) {
            (1, Value::Bytes(id)) => span.trace = id.to_vec(),
            (2, Value::Bytes(id)) => span.id = id.to_vec(),
            (4, Value::Bytes(id)) => span.parent = id.to_vec(),
            (5, Value::Bytes(name)) => span.name = text(name),
            (7, Value::Fixed(nanos)) => span.start = nanos,
            (8, Value::Fixed(nanos)) => span.end = nanos,
            (9, Value::Bytes(attribute)) => {
                let key = text(inner(attribute, 1)[0]);
                span.attributes.insert(key, value_of(inner(attribute, 2)[0]));
            }
            _ => {}
        }
    }
    span
}

/// AnyValue: string_value 1, bool_value 2, int_value 3, double_value 4.
fn value_of(message: &[u8]) -> String {
    match fields(message).into_iter().next() {
        Some((1, Value::Bytes(bytes))) => text(bytes),
        Some((4, Value::Fixed(bits))) => f64::from_bits(bits).to_string(),
        Some((_, Value::Varint(number) | Value::Fixed(number))) => number.to_string(),
        Some((_, Value::Bytes(_))) | None => String::new(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
