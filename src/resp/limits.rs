//! How long a request and its parts may be.

/// Longest inline request or header line in bytes (`PROTO_INLINE_MAX_SIZE` in Redis's `server.h`).
pub(super) const MAX_LINE: usize = 64 * 1024;

/// Most arguments of one request, the name included (`INT_MAX`, as in Redis).
pub const MAX_ARGUMENTS: u32 = i32::MAX as u32;

/// Most arguments of a request before Redis 7.0.
pub const MAX_ARGUMENTS_OLD: u32 = 1 << 20;

/// Most arguments before authentication, as in Redis.
pub(super) const MAX_ARGUMENTS_UNAUTHENTICATED: i64 = 10;

/// Longest argument in bytes before authentication, as in Redis.
pub(super) const MAX_BULK_UNAUTHENTICATED: u64 = 16_384;

/// Longest request in bytes whatever the limits say: positions are 32 bits wide, and a line beyond it must fit too.
pub const MAX_REQUEST: usize = u32::MAX as usize - 2 * MAX_LINE;

/// How much one request may be; the lengths it announces are checked against this before anything is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Longest argument in bytes (the server's `proto-max-bulk-len`).
    pub max_bulk: u64,
    /// Longest request in bytes, all of it. Values near 4 GiB and beyond count as [`MAX_REQUEST`].
    pub max_request: usize,
    /// Most arguments of one request: [`MAX_ARGUMENTS`], or [`MAX_ARGUMENTS_OLD`].
    pub max_arguments: u32,
    /// Whether the client has logged in, or need not: before that, Redis takes 10 arguments of 16 KiB.
    pub authenticated: bool,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { max_bulk: 512 << 20, max_request: 1 << 30, max_arguments: MAX_ARGUMENTS, authenticated: true }
    }
}
