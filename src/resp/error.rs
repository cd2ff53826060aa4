//! What can be wrong with bytes, and the words a client is told it in.
//!
//! Clients match on Redis's texts, so a malformed request is refused in exactly the words of Redis's
//! `networking.c`. Errors about a server's bytes never reach a client and carry none of the bytes.

use super::limits::MAX_LINE;

/// A request that cannot be read: the client's fault; it gets [`RequestError::reply`] and is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// `*` not followed by a number Redis accepts.
    #[error("invalid multibulk length")]
    InvalidMultibulkLength,
    /// `$` not followed by a length.
    #[error("invalid bulk length")]
    InvalidBulkLength,
    /// A length above `proto-max-bulk-len`, as far as that is known.
    #[error("invalid bulk length")]
    BulkAboveLimit,
    /// Something other than `$` where a bulk had to begin.
    #[error("expected '$', got another byte")]
    ExpectedBulk {
        /// The byte found there.
        found: u8,
    },
    /// No end of line after `*` within 64 KiB.
    #[error("too big mbulk count string")]
    TooBigMultibulkCount,
    /// No end of line where a bulk had to begin, within 64 KiB.
    #[error("too big bulk count string")]
    TooBigBulkCount,
    /// An inline request longer than 64 KiB.
    #[error("too big inline request")]
    TooBigInline,
    /// An inline request with an open quote, or with text right behind a closing one.
    #[error("unbalanced quotes in request")]
    UnbalancedQuotes,
    /// More than 10 arguments before authentication.
    #[error("unauthenticated multibulk length")]
    UnauthenticatedMultibulk,
    /// An argument of more than 16,384 bytes before authentication.
    #[error("unauthenticated bulk length")]
    UnauthenticatedBulk,
    /// More bytes than `client.request_limit`: closed without a word, as by Redis's `client-query-buffer-limit`.
    #[error("request larger than the request limit")]
    TooLarge,
    /// `POST` or `Host:` as a command: a browser tricked into talking to Redis. Closed without a word.
    #[error("HTTP request (possible cross-protocol scripting)")]
    Http,
    /// A TLS handshake: the client thinks that this port has TLS.
    #[error("TLS on a port without it")]
    Tls,
}

impl RequestError {
    /// The reply in Redis's words (`-ERR Protocol error: …\r\n`); `None` where Redis closes silently.
    ///
    /// A byte beyond ASCII is shown as `?` where Redis sends it raw.
    pub fn reply(&self) -> Option<String> {
        match self {
            Self::TooLarge | Self::Http => None,
            Self::ExpectedBulk { found } => {
                let shown = match found {
                    b'\r' | b'\n' => ' ', // an error reply is one line: Redis blanks these too
                    0x80.. => '?',
                    ascii => char::from(*ascii),
                };
                Some(format!("-ERR Protocol error: expected '$', got '{shown}'\r\n"))
            }
            // No TLS library takes this for TLS: they say "wrong version number" or the like, as of any plain server.
            Self::Tls => Some("-ERR redbouncer: this port does not speak TLS: use redis://\r\n".to_owned()),
            Self::InvalidMultibulkLength
            | Self::InvalidBulkLength
            | Self::BulkAboveLimit
            | Self::TooBigMultibulkCount
            | Self::TooBigBulkCount
            | Self::TooBigInline
            | Self::UnbalancedQuotes
            | Self::UnauthenticatedMultibulk
            | Self::UnauthenticatedBulk => Some(format!("-ERR Protocol error: {self}\r\n")),
        }
    }
}

/// A reply that cannot be read: the connection is out of step and has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// A byte that begins no RESP2 or RESP3 frame.
    #[error("unknown reply type {0:#04x}")]
    UnknownType(u8),
    /// A length or count that is not a plain decimal number in range.
    #[error("malformed length in a reply")]
    BadLength,
    /// An integer or boolean whose text is not one.
    #[error("malformed value in a reply")]
    BadValue,
    /// Something other than `\r\n` where a line or a bulk had to end.
    #[error("missing line end in a reply")]
    MissingLineEnd,
    /// Nested counts whose product is beyond 64 bits.
    #[error("element count of a reply overflows")]
    TooManyElements,
    /// RESP3's streamed strings and aggregates, which no server sends.
    #[error("streamed reply types are not supported")]
    Streamed,
}

/// A complete frame whose value cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not exactly one whole reply.
    #[error("not one whole reply")]
    NotWhole,
    /// Nested deeper than [`super::MAX_DEPTH`].
    #[error("reply nested too deeply")]
    TooDeep,
    /// Refused by the decoder (not UTF-8 in an error text, an unknown verbatim format, …).
    #[error("reply could not be decoded")]
    Malformed,
}

// The texts above say 64 KiB; PROTO_INLINE_MAX_SIZE in Redis's server.h.
const _: () = assert!(MAX_LINE == 64 * 1024);
