//! The way to the server: name, TCP, TLS, login.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::plan::{NAME, Plan};
use super::{Findings, certificate, dial_advice};
use crate::hygiene::{Visit, VisitError};
use crate::resp::ErrorCode;
use crate::upstream::{Connector, DialError, UpstreamOptions};

/// Goes the whole way, as far as it goes.
pub(super) async fn travel(plan: Plan<'_>, findings: &mut Findings) -> Option<Visit> {
    let options = plan.upstream;
    let connector = match Connector::new(options) {
        Ok(connector) => connector,
        Err(wrong) => {
            findings.failure("TLS files", &wrong.to_string(), "correct the file or its name in upstream.tls");
            return None;
        }
    };
    let addresses = match connector.addresses().await {
        Ok(addresses) => addresses,
        Err(wrong) => {
            dial_advice::told(&wrong, findings);
            return None;
        }
    };
    let shown: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    match options.host.parse::<IpAddr>() {
        Ok(_) => findings.ok("name", &format!("{}: an address, nothing to resolve", shown.join(", "))),
        Err(_) => findings.ok("name", &format!("{} is {}", options.host, shown.join(", "))),
    }
    if !reach_each(&addresses, options.connect_timeout, findings).await {
        return None;
    }
    match Visit::over(&connector, options, NAME).await {
        Ok(visit) => {
            arrived(options, &visit, findings);
            Some(visit)
        }
        Err(VisitError::Dial(DialError::Login { text }))
            if plan.clients_log_in && ErrorCode::of_text(&text) == ErrorCode::NoAuth =>
        {
            findings.warning(
                "login",
                "the server requires a password and upstream.url has none: only clients that log in are served",
                "redbouncer searches for orphans only after a client has logged in, as the user of the last login, which needs \
                 CLIENT LIST and CLIENT KILL. With credentials in upstream.url it searches from the start, and this check \
                 can examine the server.",
            );
            None
        }
        Err(VisitError::Dial(wrong)) => {
            dial_advice::told(&wrong, findings);
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
    let mut dials = JoinSet::new();
    for (at, address) in addresses.iter().copied().enumerate() {
        dials.spawn(async move { (at, address, reach(address, timeout).await) });
    }
    let mut outcomes = dials.join_all().await;
    outcomes.sort_by_key(|(at, ..)| *at);
    let (mut reached, mut silent) = (Vec::new(), Vec::new());
    for (_, address, outcome) in outcomes {
        match outcome {
            Ok(took) => reached.push(format!("{address} in {:.1} ms", took.as_secs_f64() * 1e3)),
            Err(why) => silent.push(format!("{address}: {why}")),
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
                "check that the server is running, and its port Refused: nobody listens there. No answer: a firewall, a \
                 security group, or a network that does not reach it.",
            );
        } else {
            findings.warning("TCP", &text, "redbouncer tries the next address, which delays dials");
        }
    }
    !reached.is_empty()
}

async fn reach(address: SocketAddr, timeout: Duration) -> Result<Duration, String> {
    let begun = Instant::now();
    match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(begun.elapsed()),
        Ok(Err(wrong)) => Err(wrong.to_string()),
        Err(_) => Err(format!("no answer within {timeout:?}")),
    }
}

fn arrived(options: &UpstreamOptions, visit: &Visit, findings: &mut Findings) {
    if options.tls {
        certificate::of_server(&visit.certificates(), options.tls_options.insecure, findings);
    } else if is_near(options) {
        findings.ok("TLS", "not used, and not needed on loopback");
    } else {
        findings.warning(
            "TLS",
            "the connection is not encrypted",
            "unless the network is private, use rediss:// (the provider may use another port for it)",
        );
    }
    let user = options.username.as_deref().unwrap_or("default");
    if options.password.is_some() {
        findings.ok("login", &format!("logged in as user '{user}'"));
    } else {
        findings.ok("login", &format!("no password is needed: the user is '{user}'"));
    }
}

fn is_near(options: &UpstreamOptions) -> bool {
    options.host == "localhost" || options.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
