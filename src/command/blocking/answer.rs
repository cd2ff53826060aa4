//! The meaning of a try's reply for a waiting call.

use crate::resp;

/// What Redis tells blocked clients when their server becomes a replica (`disconnectOrRedirectAllBlockedClients` in
/// redis `blocked.c`), before it closes them.
pub const DEMOTED: &[u8] =
    b"-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)\r\n";

/// Whether a member's reply is none: nil, or (XREAD in RESP3 on some versions) an empty aggregate.
pub fn is_nothing(reply: &[u8]) -> bool {
    resp::is_null(reply) || matches!(reply, b"*0\r\n" | b"%0\r\n")
}
