//! One reply as a test sees it: the exact bytes, and what they mean.
//!
//! The meaning is read by redis-protocol, which shares no code with the scanners under test. Maps keep no order there;
//! where order or shape counts, compare `raw`.

use bytes::Bytes;
use redis_protocol::{resp2, resp3};

/// One whole top-level frame.
#[derive(Clone, PartialEq)]
pub(crate) struct Reply {
    pub(crate) raw: Bytes,
    pub(crate) value: Value,
}

/// What a frame means, the same for RESP2 and RESP3.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Simple(String),
    Error(String),
    Int(i64),
    Bulk(Vec<u8>),
    Nil,
    Bool(bool),
    Double(f64),
    List(Vec<Value>),
    Map(Vec<(Value, Value)>),
    Push(Vec<Value>),
}

impl Reply {
    /// The first whole frame of `buffer`, or `None` while it is incomplete; panics on bytes that are no RESP.
    pub(crate) fn parse(buffer: &Bytes) -> Option<Self> {
        // A frame of RESP3 types is an error to the RESP2 decoder, and the null of RESP2 is one to the RESP3 decoder.
        let (value, len) = match resp2::decode::decode_bytes(buffer) {
            Ok(found) => {
                let (frame, len) = found?;
                (Value::from_resp2(frame), len)
            }
            Err(_) => match resp3::decode::complete::decode_bytes(buffer) {
                Ok(found) => {
                    let (frame, len) = found?;
                    (Value::from_resp3(frame), len)
                }
                Err(error) => panic!("not RESP ({error:?}): {:?}", head(buffer)),
            },
        };
        Some(Self { raw: buffer.slice(..len), value })
    }

    /// The text of a simple string, a bulk or an error.
    #[track_caller]
    pub(crate) fn text(&self) -> String {
        self.value.text()
    }

    /// The lines of a text for people: a verbatim string, or an array with a bulk for each.
    #[track_caller]
    pub(crate) fn lines(&self) -> String {
        self.value.lines()
    }

    /// The number of an integer reply.
    #[track_caller]
    pub(crate) fn int(&self) -> i64 {
        match self.value {
            Value::Int(number) => number,
            _ => panic!("not an integer: {self:?}"),
        }
    }

    /// The elements of an array, set or push.
    #[track_caller]
    pub(crate) fn items(&self) -> &[Value] {
        match &self.value {
            Value::List(items) | Value::Push(items) => items,
            _ => panic!("not a list: {self:?}"),
        }
    }

    /// The error text, without the dash.
    #[track_caller]
    pub(crate) fn error(&self) -> &str {
        match &self.value {
            Value::Error(text) => text,
            _ => panic!("not an error: {self:?}"),
        }
    }

    pub(crate) fn is_error(&self) -> bool {
        matches!(self.value, Value::Error(_))
    }

    pub(crate) fn is_nil(&self) -> bool {
        self.value == Value::Nil
    }

    pub(crate) fn is_push(&self) -> bool {
        matches!(self.value, Value::Push(_))
    }

    /// The value that belongs to `key`, in a map or in RESP2's flat array of pairs.
    pub(crate) fn field(&self, key: &str) -> Option<Value> {
        let is_key =
            |value: &Value| matches!(value, Value::Bulk(_) | Value::Simple(_)) && value.text() == key;
        match &self.value {
            Value::Map(pairs) => pairs.iter().find(|(name, _)| is_key(name)).map(|(_, value)| value.clone()),
            Value::List(items) => items.chunks(2).find(|pair| is_key(&pair[0])).map(|pair| pair[1].clone()),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:?}", head(&self.raw))
    }
}

/// The beginning of some bytes, printable.
fn head(bytes: &[u8]) -> String {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
    if bytes.len() > 300 { format!("{shown}… ({} bytes)", bytes.len()) } else { shown }
}

impl Value {
    #[track_caller]
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Simple(text) | Self::Error(text) => text.clone(),
            Self::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Int(number) => number.to_string(),
            Self::Nil | Self::Bool(_) | Self::Double(_) | Self::List(_) | Self::Map(_) | Self::Push(_) => {
                panic!("no text: {self:?}")
            }
        }
    }

    /// The lines of a text for people.
    #[track_caller]
    pub(crate) fn lines(&self) -> String {
        match self {
            Self::List(lines) => lines.iter().map(|line| line.text() + "\n").collect(),
            text => text.text(),
        }
    }

    #[track_caller]
    pub(crate) fn items(&self) -> &[Self] {
        match self {
            Self::List(items) | Self::Push(items) => items,
            _ => panic!("not a list: {self:?}"),
        }
    }

    pub(crate) fn bulk(text: &str) -> Self {
        Self::Bulk(text.as_bytes().to_vec())
    }

    fn from_resp2(frame: resp2::types::BytesFrame) -> Self {
        use resp2::types::BytesFrame as Frame;
        match frame {
            Frame::SimpleString(bytes) => Self::Simple(String::from_utf8_lossy(&bytes).into_owned()),
            Frame::Error(text) => Self::Error(text.to_string()),
            Frame::Integer(number) => Self::Int(number),
            Frame::BulkString(bytes) => Self::Bulk(bytes.to_vec()),
            Frame::Array(items) => Self::List(items.into_iter().map(Self::from_resp2).collect()),
            Frame::Null => Self::Nil,
        }
    }

    fn from_resp3(frame: resp3::types::BytesFrame) -> Self {
        use resp3::types::BytesFrame as Frame;
        let list = |data: Vec<Frame>| data.into_iter().map(Self::from_resp3).collect::<Vec<_>>();
        match frame {
            Frame::SimpleString { data, .. } => Self::Simple(String::from_utf8_lossy(&data).into_owned()),
            Frame::SimpleError { data, .. } => Self::Error(data.to_string()),
            Frame::BlobError { data, .. } => Self::Error(String::from_utf8_lossy(&data).into_owned()),
            Frame::Number { data, .. } => Self::Int(data),
            Frame::BlobString { data, .. }
            | Frame::BigNumber { data, .. }
            | Frame::VerbatimString { data, .. } => Self::Bulk(data.to_vec()),
            Frame::Boolean { data, .. } => Self::Bool(data),
            Frame::Double { data, .. } => Self::Double(data),
            Frame::Null => Self::Nil,
            Frame::Array { data, .. } => Self::List(list(data)),
            Frame::Set { data, .. } => Self::List(data.into_iter().map(Self::from_resp3).collect()),
            Frame::Push { data, .. } => Self::Push(list(data)),
            Frame::Map { data, .. } => Self::Map(
                data.into_iter()
                    .map(|(key, value)| (Self::from_resp3(key), Self::from_resp3(value)))
                    .collect(),
            ),
            Frame::Hello { .. } | Frame::ChunkedString(_) => panic!("a server never sends this"),
        }
    }
}
