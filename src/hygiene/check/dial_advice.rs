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
        DialError::NoMaster { .. } => "see redis-cli -p 26379 SENTINEL MASTERS",
        DialError::NoSlots { .. } => "see redis-cli CLUSTER SLOTS on a node",
        DialError::Resolve { .. } | DialError::Timeout { phase: Phase::Resolve, .. } => {
            "check the host name in upstream.url, and this machine's resolver"
        }
        DialError::Refused { .. } => "check that the server is running, and its port",
        DialError::Timeout { phase: Phase::Tls, .. } => {
            "if the port has no TLS, use redis:// instead of rediss://"
        }
        DialError::Closed { phase: Phase::Tls, .. } => {
            "if the port has no TLS, use redis:// instead of rediss://; otherwise the server may be at its connection limit, \
             which it cannot report before the handshake"
        }
        DialError::Timeout { .. } => {
            "the server accepts connections and does not respond: it may be overloaded, stopped, or not a Redis server"
        }
        DialError::SpeaksTls { .. } => "use rediss:// instead of redis:// in upstream.url",
        DialError::Tls { fault, .. } => match fault {
            TlsFault::Expired => "renew the server's certificate",
            TlsFault::NotYetValid => "correct this machine's clock, or wait until the certificate is valid",
            TlsFault::WrongName { .. } => {
                "use a name in the certificate, or set upstream.tls.server_name to it"
            }
            TlsFault::UnknownAuthority | TlsFault::SelfSigned => {
                "put the certificate of the server's authority (or the server's own, if it is self-signed) into a file, and set \
                 upstream.tls.ca to it"
            }
            TlsFault::NotTls => "use redis:// instead of rediss://, or the server's TLS port",
            TlsFault::ClientCertificate { .. } => {
                "the server requires a client certificate: set upstream.tls.cert and upstream.tls.key"
            }
            TlsFault::BadCertificate { .. } | TlsFault::Alert { .. } | TlsFault::Other { .. } => {
                "examine the server's TLS: openssl s_client -connect HOST:PORT"
            }
        },
        DialError::Login { text } if ErrorCode::of_text(text) == ErrorCode::NoAuth => {
            "the server requires a password: set redis://user:password@host, or upstream.password_file. Without it redbouncer \
             serves only clients that log in, and searches for orphans as the user of the last login."
        }
        DialError::Login { text } if ErrorCode::of_text(text) == ErrorCode::WrongPass => {
            "the user or password is wrong; percent-encode special characters in a URL"
        }
        DialError::Login { text } if ErrorCode::of_text(text) == ErrorCode::Denied => {
            "the server's protected mode refuses other hosts while it has no password: set one (requirepass or ACL SETUSER), \
             or disable protected-mode if the network is private"
        }
        DialError::Login { .. } => "the server refuses this user from this host; its error has the reason",
        DialError::MaxClients { .. } => {
            "the server is at its connection limit. When a connection is free, run redbouncer cleanup to list them; or raise \
             maxclients or the plan"
        }
        DialError::Loading { .. } => "the server is loading its data from disk: try again later",
        DialError::SelectRefused { .. } => {
            "this database does not exist or is not permitted: remove /N from upstream.url"
        }
        DialError::Protocol { .. } => "another service listens there: check host and port in upstream.url",
        DialError::Closed { .. } | DialError::Io { .. } => {
            "if the server requires TLS, use rediss://; otherwise check for a firewall or load balancer that closes the connection"
        }
        DialError::Demoted { .. }
        | DialError::NoResp3 { .. }
        | DialError::ReadOnlyRefused { .. }
        | DialError::TrackingRefused { .. } => "",
    }
}
