//! What a failed dial means, and what helps.

use super::Findings;
use crate::resp::ErrorCode;
use crate::upstream::{DialError, Phase, TlsFault};

/// A dial that failed: at which step, and what helps.
pub(super) fn told(wrong: &DialError, findings: &mut Findings) {
    let subject = match wrong {
        DialError::NoMaster { .. } => "sentinels",
        DialError::Demoted { .. } => "server",
        DialError::NoSlots { .. } => "cluster",
        DialError::Resolve { .. } | DialError::Timeout { phase: Phase::Resolve, .. } => "name",
        DialError::Refused { .. } | DialError::Timeout { phase: Phase::Connect, .. } => "TCP",
        DialError::Tls { .. }
        | DialError::SpeaksTls { .. }
        | DialError::Timeout { phase: Phase::Tls, .. }
        | DialError::Closed { phase: Phase::Tls, .. }
        | DialError::Io { phase: Phase::Tls, .. } => "TLS",
        DialError::MaxClients { .. } => "places",
        DialError::Protocol { .. } => "protocol",
        DialError::SelectRefused { .. } => "database",
        DialError::Login { .. }
        | DialError::NoResp3 { .. }
        | DialError::Loading { .. }
        | DialError::ReadOnlyRefused { .. }
        | DialError::TrackingRefused { .. }
        | DialError::Timeout { phase: Phase::Login, .. }
        | DialError::Closed { .. }
        | DialError::Io { .. } => "login",
    };
    findings.failure(subject, &wrong.to_string(), advice(wrong));
}

fn advice(wrong: &DialError) -> &'static str {
    match wrong {
        DialError::NoMaster { .. } => "ask a Sentinel: redis-cli -p 26379 SENTINEL MASTERS",
        DialError::NoSlots { .. } => "ask a node: redis-cli CLUSTER SLOTS",
        DialError::Resolve { .. } | DialError::Timeout { phase: Phase::Resolve, .. } => {
            "is the host's name in upstream.url right, and does this machine's resolver know it?"
        }
        DialError::Refused { .. } => "is the server running, and is this its port?",
        DialError::Timeout { phase: Phase::Tls, .. } => {
            "if the port is a plain one, write redis:// instead of rediss://"
        }
        DialError::Closed { phase: Phase::Tls, .. } => {
            "if the port is a plain one, write redis:// instead of rediss://; if it is the right one, all of the server's \
             places may be taken: it cannot say so before the handshake"
        }
        DialError::Timeout { .. } => {
            "the server accepts connections and says nothing: is it overloaded, stopped, or something else than Redis?"
        }
        DialError::SpeaksTls { .. } => "write rediss:// instead of redis:// in upstream.url",
        DialError::Tls { fault, .. } => match fault {
            TlsFault::Expired => "have the server's certificate renewed",
            TlsFault::NotYetValid => {
                "set this machine's clock, or wait until the certificate begins to be valid"
            }
            TlsFault::WrongName { .. } => {
                "use the name that stands in the certificate, or set upstream.tls.server_name to it"
            }
            TlsFault::UnknownAuthority | TlsFault::SelfSigned => {
                "put the certificate of the authority that signed the server's (or the server's own, when it is \
                 self-signed) into a file and name it in upstream.tls.ca"
            }
            TlsFault::NotTls => "write redis:// instead of rediss://, or use the server's TLS port",
            TlsFault::ClientCertificate { .. } => {
                "the server wants a client certificate: upstream.tls.cert and upstream.tls.key"
            }
            TlsFault::BadCertificate { .. } | TlsFault::Alert { .. } | TlsFault::Other { .. } => {
                "look at what the server offers: openssl s_client -connect HOST:PORT"
            }
        },
        DialError::Login { text } if ErrorCode::of_text(text) == ErrorCode::NoAuth => {
            "the server wants a password: redis://user:password@host, or upstream.password_file. Without one redbouncer \
             serves only clients that log in themselves, and looks for orphans as the last one that has."
        }
        DialError::Login { text } if ErrorCode::of_text(text) == ErrorCode::WrongPass => {
            "user or password is wrong; special characters in a URL have to be percent-encoded"
        }
        DialError::Login { text } if ErrorCode::of_text(text) == ErrorCode::Denied => {
            "the server's protected mode admits only its own host while it has no password: give it one (requirepass or \
             ACL SETUSER), or switch protected-mode off where the network is private"
        }
        DialError::Login { .. } => "the server lets nobody in from here as this user: its words say why",
        DialError::MaxClients { .. } => {
            "all of the server's places are taken. When one comes free, redbouncer cleanup shows by whom; raise \
             maxclients or the plan"
        }
        DialError::Loading { .. } => "the server reads its data from disk: try again when it is done",
        DialError::SelectRefused { .. } => {
            "this database does not exist or is not allowed: upstream.url without /N"
        }
        DialError::Protocol { .. } => {
            "something else than Redis listens there: host and port in upstream.url"
        }
        DialError::Closed { .. } | DialError::Io { .. } => {
            "if the server wants TLS, write rediss://; else something between closes the connection"
        }
        DialError::Demoted { .. }
        | DialError::NoResp3 { .. }
        | DialError::ReadOnlyRefused { .. }
        | DialError::TrackingRefused { .. } => "",
    }
}
