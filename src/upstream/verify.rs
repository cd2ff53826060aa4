//! Whether a server's certificate is accepted.

use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::pem::TlsSetupError;

/// By an authority and for its name; or because it is listed itself in `upstream.tls.ca`.
///
/// The second is for servers with a certificate of their own making: it is signed by itself, and may say that it is an
/// authority, or name no host at all, and then no chain of trust fits it. Nobody but the holder of its key can use it,
/// so to know it is enough. Its time is still checked.
#[derive(Debug)]
pub(super) struct ByAuthority {
    authorities: Arc<WebPkiServerVerifier>,
    listed: Vec<CertificateDer<'static>>,
}

/// An error inside rustls's [`CertificateError::Other`]: the certificate is signed by itself.
#[derive(Debug)]
pub(super) struct SelfSigned;

impl fmt::Display for SelfSigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("signed by itself")
    }
}

impl std::error::Error for SelfSigned {}

impl ByAuthority {
    pub(super) fn new(
        roots: RootCertStore,
        listed: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, TlsSetupError> {
        let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|e| TlsSetupError::Provider { cause: e.to_string() })?;
        Ok(Self { authorities, listed })
    }

    fn judge(
        &self,
        certificate: &CertificateDer<'_>,
        now: UnixTime,
        why: CertificateError,
    ) -> Option<CertificateError> {
        match why {
            CertificateError::UnknownIssuer
            | CertificateError::NotValidForName
            | CertificateError::NotValidForNameContext { .. }
            | CertificateError::Other(_) => {}
            // Out of its time, revoked, broken; rustls's enum is open to more.
            other => return Some(other),
        }
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Some(why) };
        if self.listed.iter().any(|listed| listed == certificate) {
            let (from, until) = (parsed.validity().not_before, parsed.validity().not_after);
            let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
            return if now < from.timestamp() {
                Some(CertificateError::NotValidYet)
            } else if now > until.timestamp() {
                Some(CertificateError::Expired)
            } else {
                None
            };
        }
        let is_authoritys = matches!(why, CertificateError::UnknownIssuer | CertificateError::Other(_));
        if is_authoritys && parsed.subject() == parsed.issuer() {
            return Some(CertificateError::Other(OtherError(Arc::new(SelfSigned))));
        }
        Some(why)
    }
}

impl ServerCertVerifier for ByAuthority {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.authorities.verify_server_cert(certificate, between, name, ocsp, now) {
            Err(Error::InvalidCertificate(why)) => match self.judge(certificate, now, why) {
                None => Ok(ServerCertVerified::assertion()),
                Some(why) => Err(Error::InvalidCertificate(why)),
            },
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// `insecure = true`: any certificate will do, but its owner must hold the key, so that a recorded handshake cannot
/// be replayed.
#[derive(Debug)]
pub(super) struct AnyCertificate {
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyCertificate {
    pub(super) fn new(provider: &CryptoProvider) -> Self {
        Self { algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
