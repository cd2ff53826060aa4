//! What the server's certificates say: for whom, by whom, until when.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::Findings;

/// A certificate that ends sooner deserves a warning.
const SOON: Duration = Duration::from_secs(14 * 86_400);

/// The server's certificates as it showed them, DER, its own first. The handshake has verified them already, unless
/// `insecure` is set.
pub(super) fn of_server(shown: &[Vec<u8>], insecure: bool, findings: &mut Findings) {
    let Some(Ok((_, own))) = shown.first().map(|der| X509Certificate::from_der(der)) else {
        findings.warning("TLS", "the server's certificate cannot be read", "");
        return;
    };
    let text = described(&own, shown.len());
    if insecure {
        findings.warning(
            "TLS",
            &format!("{text}, not verified"),
            "upstream.tls.insecure is set: whoever sits between can read and change everything. Give the authority's \
             certificate in upstream.tls.ca instead.",
        );
    } else if left(&own) < SOON {
        findings.warning("TLS", &text, "renew the server's certificate before it expires");
    } else {
        findings.ok("TLS", &format!("{text}; chain and name verified"));
    }
}

/// Ours, that clients are shown, as the file has it.
pub(super) fn of_ours(file: &[Vec<u8>], findings: &mut Findings) {
    let Some(Ok((_, own))) = file.first().map(|der| X509Certificate::from_der(der)) else {
        findings.failure(
            "listen.tls",
            "the certificate cannot be read",
            "correct the file in listen.tls.cert",
        );
        return;
    };
    let (text, left) = (described(&own, file.len()), left(&own));
    if left.is_zero() {
        let advice = "it has expired and clients reject it: renew listen.tls.cert and listen.tls.key";
        findings.failure("listen.tls", &text, advice);
    } else if left < SOON {
        findings.warning(
            "listen.tls",
            &text,
            "renew it before it expires; a running redbouncer reloads the files",
        );
    } else {
        findings.ok("listen.tls", &text);
    }
}

fn described(own: &X509Certificate<'_>, chain: usize) -> String {
    let days = left(own).as_secs() / 86_400;
    let ends = if left(own).is_zero() { "expired".to_owned() } else { format!("valid for {days} more days") };
    format!("certificate for {}, issued by {}, {chain} in the chain, {ends}", names(own), issuer(own))
}

/// The time until the certificate's end.
fn left(certificate: &X509Certificate<'_>) -> Duration {
    let end = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(end).saturating_sub(now)
}

/// The names it is valid for; its subject where it has none, as old ones.
fn names(certificate: &X509Certificate<'_>) -> String {
    let names: Vec<String> = certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .map(|names| names.value.general_names.iter().filter_map(name).collect())
        .unwrap_or_default();
    if names.is_empty() { certificate.subject().to_string() } else { names.join(", ") }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let v6 = <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
            v4.or(v6).ok().map(|ip| ip.to_string())
        }
        _ => None, // an enum of the library's; the other kinds name no server
    }
}

/// The authority's common name, or all of its name.
fn issuer(certificate: &X509Certificate<'_>) -> String {
    let issuer = certificate.issuer();
    let common = issuer.iter_common_name().find_map(|name| name.as_str().ok());
    common.map_or_else(|| issuer.to_string(), str::to_owned)
}
