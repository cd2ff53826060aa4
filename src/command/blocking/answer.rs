//! What the answer to a try means for a call that waits.

use crate::resp;

/// What Redis tells blocked clients when their server becomes a replica (`disconnectOrRedirectAllBlockedClients` in
/// redis `blocked.c`), before it closes them.
pub const DEMOTED: &[u8] =
    b"-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)\r\n";

/// Whether a member's reply is none: nil, or (XREAD in RESP3 on some versions) an empty aggregate.
pub fn is_nothing(reply: &[u8]) -> bool {
    resp::is_null(reply) || matches!(reply, b"*0\r\n" | b"%0\r\n")
}

/// Whether it is an error that begins with this word.
pub fn is_code(reply: &[u8], code: &[u8]) -> bool {
    resp::error_text(reply).is_some_and(|text| text.starts_with(code))
}

/// Errors that a blocked client of Redis would not see: the server's state, which passes.
pub fn is_passing(reply: &[u8]) -> bool {
    const CODES: [&[u8]; 7] =
        [b"BUSY", b"LOADING", b"MASTERDOWN", b"CLUSTERDOWN", b"TRYAGAIN", b"MISCONF", b"OOM"];
    CODES.iter().any(|code| is_code(reply, code))
}
