//! The way to the server: name, TCP, TLS, login.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::TcpStream;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Findings, NAME};
use crate::hygiene::{Visit, VisitError};
use crate::upstream::{Connector, DialError, Phase, TlsFault, UpstreamOptions};

/// A certificate that ends sooner deserves a warning.
const SOON: Duration = Duration::from_secs(14 * 86_400);

/// Goes the whole way, as far as it goes.
pub(super) async fn travel(options: &UpstreamOptions, findings: &mut Findings) -> Option<Visit> {
    let connector = match Connector::new(options) {
        Ok(connector) => connector,
        Err(wrong) => {
            findings.failure("TLS files", &wrong.to_string(), "mend the file that upstream.tls names");
            return None;
        }
    };
    let addresses = match connector.addresses().await {
        Ok(addresses) => addresses,
        Err(wrong) => {
            told(&wrong, findings);
            return None;
        }
    };
    let shown: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    findings.ok("name", &format!("{} is {}", options.host, shown.join(", ")));
    if !reach_each(&addresses, options.connect_timeout, findings).await {
        return None;
    }
    match Visit::over(&connector, options, NAME).await {
        Ok(visit) => {
            arrived(options, &visit, findings);
            Some(visit)
        }
        Err(VisitError::Dial(wrong)) => {
            told(&wrong, findings);
            None
        }
        Err(wrong) => {
            findings.failure("login", &wrong.to_string(), "");
            None
        }
    }
}

/// Whether any address answers. Those that do not are named: a dial loses time on each.
async fn reach_each(addresses: &[SocketAddr], timeout: Duration, findings: &mut Findings) -> bool {
    let mut reached = Vec::new();
    let mut silent = Vec::new();
    for address in addresses {
        let begun = Instant::now();
        match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
            Ok(Ok(_)) => {
                reached.push(format!("{address} in {:.1} ms", begun.elapsed().as_secs_f64() * 1e3));
            }
            Ok(Err(wrong)) => silent.push(format!("{address}: {wrong}")),
            Err(_) => silent.push(format!("{address}: no answer within {timeout:?}")),
        }
    }
    if !reached.is_empty() {
        findings.ok("TCP", &format!("connected to {}", reached.join(", ")));
    }
    if !silent.is_empty() {
        let text = format!("not connected to {}", silent.join(", "));
        if reached.is_empty() {
            findings.failure(
                "TCP",
                &text,
                "is the server running, and is this its port? Refused: nobody listens there. No answer: a firewall, a \
                 security group, or a network that does not reach it.",
            );
        } else {
            findings.warning("TCP", &text, "redbouncer goes on to the next address, but loses time here");
        }
    }
    !reached.is_empty()
}

fn arrived(options: &UpstreamOptions, visit: &Visit, findings: &mut Findings) {
    if options.tls {
        match visit.certificate() {
            Some(der) => certificate(&der, options.tls_options.insecure, findings),
            None => findings.warning("TLS", "the server showed no certificate", ""),
        }
    } else if !is_near(options) {
        findings.warning(
            "TLS",
            "the connection is not encrypted",
            "if the network between is not private, use rediss:// (the provider may have another port for it)",
        );
    }
    let user = options.username.as_deref().unwrap_or("default");
    if options.password.is_some() {
        findings.ok("login", &format!("logged in as user '{user}'"));
    } else {
        findings.ok("login", "no password is needed: the user is 'default'");
    }
}

fn is_near(options: &UpstreamOptions) -> bool {
    options.host == "localhost"
        || options.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The server's certificate: its names and its end.
fn certificate(der: &[u8], insecure: bool, findings: &mut Findings) {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        findings.warning("TLS", "the server's certificate cannot be read", "");
        return;
    };
    let names: Vec<String> = certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .map(|names| names.value.general_names.iter().filter_map(shown).collect())
        .unwrap_or_default();
    let names = if names.is_empty() { certificate.subject().to_string() } else { names.join(", ") };
    let end = certificate.validity().not_after;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let left = Duration::from_secs(u64::try_from(end.timestamp()).unwrap_or(0)).saturating_sub(now);
    let text = format!("certificate for {names}, valid for {} days more", left.as_secs() / 86_400);
    if insecure {
        findings.warning(
            "TLS",
            &format!("{text}, not verified"),
            "upstream.tls.insecure is set: whoever sits between can read and change everything. Give the authority's \
             certificate in upstream.tls.ca instead.",
        );
    } else if left < SOON {
        findings.warning("TLS", &text, "have the server's certificate renewed");
    } else {
        findings.ok("TLS", &format!("{text}, verified"));
    }
}

fn shown(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4: Option<[u8; 4]> = (*bytes).try_into().ok();
            let v6: Option<[u8; 16]> = (*bytes).try_into().ok();
            v4.map(std::net::IpAddr::from).or(v6.map(std::net::IpAddr::from)).map(|ip| ip.to_string())
        }
        // The other kinds name no server.
        _ => None,
    }
}

/// A dial that failed: at which step, and what helps.
fn told(wrong: &DialError, findings: &mut Findings) {
    let subject = match wrong {
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
        | DialError::Timeout { phase: Phase::Login, .. }
        | DialError::Closed { .. }
        | DialError::Io { .. } => "login",
    };
    findings.failure(subject, &wrong.to_string(), advice(wrong));
}

fn advice(wrong: &DialError) -> &'static str {
    match wrong {
        DialError::Resolve { .. } | DialError::Timeout { phase: Phase::Resolve, .. } => {
            "is the host's name in upstream.url right, and does this machine's resolver know it?"
        }
        DialError::Refused { .. } => "is the server running, and is this its port?",
        DialError::Timeout { phase: Phase::Tls, .. } | DialError::Closed { phase: Phase::Tls, .. } => {
            "if the port is a plain one, write redis:// instead of rediss://"
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
            TlsFault::UnknownAuthority => {
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
        DialError::Login { text } if text.starts_with("NOAUTH") => {
            "the server wants a password: redis://user:password@host, or upstream.password_file. Without one redbouncer \
             serves only clients that log in themselves, and looks for orphans as the last one that has."
        }
        DialError::Login { text } if text.starts_with("WRONGPASS") => {
            "user or password is wrong; special characters in a URL have to be percent-encoded"
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
        DialError::NoResp3 { .. } | DialError::ReadOnlyRefused { .. } => "",
    }
}
