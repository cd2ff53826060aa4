//! TLS to the server: trusted authorities, our certificate, and handshake errors.
//!
//! Trusted are the system's authorities, Mozilla's (a container built from nothing has no system's) and the file
//! named in `upstream.tls.ca`. One configuration serves all connections, so that rustls can resume sessions: a
//! redial then costs one round trip and no certificate.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, Error as RustlsError, RootCertStore};

use super::TlsOptions;
use super::pem::{self, TlsSetupError};
use super::verify::{AnyCertificate, ByAuthority, SelfSigned};
use crate::telemetry::{Certificate, certificate_expires};

/// The shared data of all handshakes.
#[derive(Clone)]
pub(super) struct TlsSetup {
    pub(super) config: Arc<ClientConfig>,
    /// Verified, and sent as SNI unless it is an address.
    pub(super) name: ServerName<'static>,
}

impl TlsSetup {
    pub(super) fn new(options: &TlsOptions, host: &str) -> Result<Self, TlsSetupError> {
        let name = options.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| TlsSetupError::ServerName { name: name.to_owned() })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsSetupError::Provider { cause: e.to_string() })?;
        let verifier: Arc<dyn ServerCertVerifier> = if options.insecure {
            Arc::new(AnyCertificate::new(&provider))
        } else {
            let listed = options.ca.as_deref().map(|ca| pem::certificates("upstream.tls.ca", ca));
            let listed = listed.transpose()?.unwrap_or_default();
            Arc::new(ByAuthority::new(roots(&listed), listed, provider)?)
        };
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let config = match (&options.cert, &options.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let chain = pem::certificates("upstream.tls.cert", cert)?;
                let until = chain.first().and_then(pem::valid_until);
                let builder = builder
                    .with_client_auth_cert(chain, pem::private_key("upstream.tls.key", key)?)
                    .map_err(|e| TlsSetupError::ClientCertificate {
                        path: cert.clone(),
                        cause: e.to_string(),
                    })?;
                if let Some(until) = until {
                    tell_of_expiry(cert, until);
                }
                builder
            }
            (Some(_), None) | (None, Some(_)) => return Err(TlsSetupError::HalfAPair),
        };
        Ok(Self { config: Arc::new(config), name })
    }
}

/// For a connection to another server than Redis: the public authorities and those of this host are trusted.
///
/// # Errors
/// The cryptography knows no version of TLS.
#[cfg(feature = "otlp")]
pub(crate) fn public_tls() -> Result<Arc<ClientConfig>, RustlsError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?;
    Ok(Arc::new(builder.with_root_certificates(roots(&[])).with_no_client_auth()))
}

/// Publishes the end of validity of our certificate, which the server does not report.
fn tell_of_expiry(cert: &Path, until: SystemTime) {
    certificate_expires(Certificate::ToServer, until);
    if until < SystemTime::now() {
        tracing::warn!(file = %cert.display(), "the certificate in upstream.tls.cert has expired: the server will refuse it");
    }
}

/// The authorities a server's certificate may come from, those in `ca` among them.
fn roots(ca: &[CertificateDer<'static>]) -> RootCertStore {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "a system certificate store was not read");
    }
    roots.add_parsable_certificates(system.certs);
    roots.add_parsable_certificates(ca.iter().cloned());
    roots
}

/// Why a TLS connection failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsFault {
    /// The server's certificate has run out.
    Expired,
    /// The server's certificate is not valid yet: a clock is wrong, more often than not.
    NotYetValid,
    /// The certificate is for other names: a wrong host, or `upstream.tls.server_name` is needed.
    WrongName {
        /// The name that was asked for and, where known, those in the certificate.
        detail: String,
    },
    /// Not signed by a trusted authority: `upstream.tls.ca` is needed.
    UnknownAuthority,
    /// Self-signed: `upstream.tls.ca` must contain the certificate itself.
    SelfSigned,
    /// Anything else that is wrong with the certificate.
    BadCertificate {
        /// rustls's words.
        detail: String,
    },
    /// The reply was not TLS: the port has no TLS.
    NotTls,
    /// The server requires a client certificate, or another one: `upstream.tls.cert`.
    ClientCertificate {
        /// The alert's name.
        alert: String,
    },
    /// The server broke off with an alert.
    Alert {
        /// The alert's name.
        alert: String,
    },
    /// No common protocol version or cipher, or a peer that breaks the rules.
    Other {
        /// rustls's words.
        detail: String,
    },
}

impl TlsFault {
    /// The fault behind an I/O error of a TLS stream; `None` if TLS is not to blame.
    pub(super) fn from_io(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<RustlsError>().map(Self::from_rustls)
    }

    fn from_rustls(error: &RustlsError) -> Self {
        match error {
            RustlsError::InvalidCertificate(why) => Self::from_certificate(why),
            // The first byte was no record type: a plain server's error line, or another protocol altogether.
            RustlsError::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => Self::NotTls,
            RustlsError::AlertReceived(alert) => Self::from_alert(*alert),
            other => Self::Other { detail: other.to_string() },
        }
    }

    fn from_certificate(why: &CertificateError) -> Self {
        match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            CertificateError::UnknownIssuer => Self::UnknownAuthority,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::WrongName { detail: why.to_string() }
            }
            CertificateError::Other(why) if why.0.is::<SelfSigned>() => Self::SelfSigned,
            other => Self::BadCertificate { detail: other.to_string() },
        }
    }

    fn from_alert(alert: AlertDescription) -> Self {
        let name = format!("{alert:?}");
        match alert {
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA => Self::ClientCertificate { alert: name },
            // rustls's enum, open to alerts of later versions.
            _ => Self::Alert { alert: name },
        }
    }

    /// An interrupted handshake may be a network error; a certificate does not change without an operator.
    pub(super) fn retryable(&self) -> bool {
        match self {
            Self::Alert { .. } | Self::Other { .. } => true,
            Self::Expired
            | Self::NotYetValid
            | Self::WrongName { .. }
            | Self::UnknownAuthority
            | Self::SelfSigned
            | Self::BadCertificate { .. }
            | Self::NotTls
            | Self::ClientCertificate { .. } => false,
        }
    }

    /// For clients: without the names in the certificate.
    pub(super) fn public_text(&self) -> &'static str {
        match self {
            Self::Expired => "the server's certificate has expired",
            Self::NotYetValid => "the server's certificate is not valid yet",
            Self::WrongName { .. } => "the server's certificate is for another name",
            Self::UnknownAuthority => "the server's certificate is from an unknown authority",
            Self::SelfSigned => "the server's certificate is signed by itself and not one that we know",
            Self::BadCertificate { .. } => "the server's certificate is not acceptable",
            Self::NotTls => "the server does not speak TLS on this port",
            Self::ClientCertificate { .. } => "the server wants another client certificate",
            Self::Alert { .. } => "the server broke off the handshake",
            Self::Other { .. } => "the handshake failed",
        }
    }
}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.public_text())?;
        match self {
            Self::Expired => f.write_str(" (have it renewed)"),
            Self::NotYetValid => f.write_str(" (is our clock right?)"),
            Self::WrongName { detail } => write!(f, " (upstream.tls.server_name): {detail}"),
            Self::UnknownAuthority => f.write_str(" (upstream.tls.ca)"),
            Self::SelfSigned => f.write_str(" (put it into the file of upstream.tls.ca)"),
            Self::NotTls => f.write_str(" (the URL should begin with redis://, or the port is wrong)"),
            Self::ClientCertificate { alert } => write!(f, " (upstream.tls.cert): alert {alert}"),
            Self::Alert { alert } => write!(f, ": alert {alert}"),
            Self::BadCertificate { detail } | Self::Other { detail } => write!(f, ": {detail}"),
        }
    }
}
