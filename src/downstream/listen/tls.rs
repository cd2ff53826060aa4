//! TLS to clients: our certificate, client certificates, and their reload.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::RwLock;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::options::{ClientAuth, ListenTlsOptions};
use crate::telemetry::{Certificate, certificate_expires};
use crate::upstream::TlsSetupError;
use crate::upstream::pem::{self, Fingerprint};

const CERT: &str = "listen.tls.cert";
const KEY: &str = "listen.tls.key";
const CLIENT_CA: &str = "listen.tls.client_ca";

/// The TLS configuration of all TLS listeners. A handshake takes the one of its moment and keeps it.
#[derive(Debug)]
pub struct ServerTls {
    options: RwLock<ListenTlsOptions>,
    current: RwLock<Arc<ServerConfig>>,
}

/// Files that have been read and found good, for [`ServerTls::replace`].
#[derive(Debug)]
pub struct PreparedTls {
    options: ListenTlsOptions,
    config: Arc<ServerConfig>,
}

impl ServerTls {
    /// Reads the certificates; `None` when there is no TLS listener.
    ///
    /// # Errors
    /// Files that cannot work.
    pub fn new(options: &ListenTlsOptions) -> Result<Option<Arc<Self>>, TlsSetupError> {
        if options.addresses.is_empty() {
            return Ok(None);
        }
        let current = RwLock::new(Arc::new(read(options)?));
        Ok(Some(Arc::new(Self { options: RwLock::new(options.clone()), current })))
    }

    /// Whether every accepted client has presented a certificate of a configured authority.
    pub(in crate::downstream) fn knows_its_clients(&self) -> bool {
        self.options.read().client_auth == ClientAuth::Required
    }

    /// For the next handshake.
    pub(in crate::downstream) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read())
    }

    /// The certificates that clients are shown as the file has them now, as DER, our own first.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn certificates(&self) -> Result<Vec<Vec<u8>>, TlsSetupError> {
        let Some(cert) = self.options.read().cert.clone() else {
            return Err(TlsSetupError::NoServerCertificate);
        };
        Ok(pem::certificates(CERT, &cert)?.iter().map(|certificate| certificate.to_vec()).collect())
    }

    /// The current contents of the files.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let options = self.options.read();
        let ListenTlsOptions { cert, key, client_ca, .. } = &*options;
        Fingerprint::of([cert, key, client_ca].into_iter().flatten().map(PathBuf::as_path))
    }

    /// Reads the files of `options` without using them yet.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn prepare(options: &ListenTlsOptions) -> Result<PreparedTls, TlsSetupError> {
        Ok(PreparedTls { options: options.clone(), config: Arc::new(read(options)?) })
    }

    /// Uses other files from now on.
    pub fn replace(&self, prepared: PreparedTls) {
        *self.options.write() = prepared.options;
        *self.current.write() = prepared.config;
    }

    /// Reads the files again, for new connections. Sessions from before are not resumed: they may rest on a client
    /// certificate that would be refused now.
    ///
    /// # Errors
    /// What is wrong with the files now; the former ones stay in use.
    pub fn reload(&self) -> Result<(), TlsSetupError> {
        let config = read(&self.options.read())?;
        *self.current.write() = Arc::new(config);
        Ok(())
    }
}

fn read(options: &ListenTlsOptions) -> Result<ServerConfig, TlsSetupError> {
    let (Some(cert), Some(key)) = (&options.cert, &options.key) else {
        return Err(TlsSetupError::NoServerCertificate);
    };
    let wrong = |e: rustls::Error| TlsSetupError::Provider { cause: e.to_string() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(wrong)?;
    let builder = match (options.client_auth, &options.client_ca) {
        (ClientAuth::Off, _) | (_, None) => builder.with_no_client_auth(),
        (ClientAuth::Optional | ClientAuth::Required, Some(path)) => {
            let mut roots = RootCertStore::empty();
            pem::add_authorities(&mut roots, CLIENT_CA, path)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match options.client_auth {
                ClientAuth::Required => verifier,
                ClientAuth::Off | ClientAuth::Optional => verifier.allow_unauthenticated(),
            };
            let verifier = verifier.build().map_err(|e| TlsSetupError::Read {
                key: CLIENT_CA,
                path: path.clone(),
                cause: e.to_string(),
            })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = pem::certificates(CERT, cert)?;
    let until = chain.first().and_then(pem::valid_until);
    if until.is_some_and(|until| until < SystemTime::now()) {
        tracing::warn!(file = %cert.display(), "the certificate in listen.tls.cert has expired: clients will refuse it");
    }
    let mut config = builder
        .with_single_cert(chain, pem::private_key(KEY, key)?)
        .map_err(|e| TlsSetupError::ServerCertificate { path: cert.clone(), cause: e.to_string() })?;
    if let Some(until) = until {
        certificate_expires(Certificate::ToClients, until);
    }
    // Sessions are resumed by tickets that the client keeps: nothing is remembered here.
    config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(wrong)?;
    Ok(config)
}
