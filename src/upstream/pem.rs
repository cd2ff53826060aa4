//! Certificates and keys in files: read, and known again when they have changed.
//!
//! Files are compared by content and not by time: a mounted secret is a link that is turned to another directory, a
//! renewal may keep the time, and a content that was refused once need not be tried again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// A TLS configuration that cannot work: the operator's fault, found before anything is dialled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsSetupError {
    /// A file is missing, not readable, or not PEM.
    #[error("{key}: cannot read {}: {cause}", path.display())]
    Read {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The problem, without any content of the file.
        cause: String,
    },
    /// A PEM file without a certificate in it.
    #[error("{key}: {} contains no certificate", path.display())]
    NoCertificate {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// One of `cert` and `key` without the other.
    #[error("set both upstream.tls.cert and upstream.tls.key; one of them is missing")]
    HalfAPair,
    /// Our certificate and key do not fit each other, or the key's kind is unknown.
    #[error("upstream.tls.cert: {} cannot be used with the private key of upstream.tls.key: {cause}", path.display())]
    ClientCertificate {
        /// Its file.
        path: PathBuf,
        /// rustls's words.
        cause: String,
    },
    /// The same of the certificate that clients are shown.
    #[error("listen.tls.cert: {} cannot be used with the private key of listen.tls.key: {cause}", path.display())]
    ServerCertificate {
        /// Its file.
        path: PathBuf,
        /// rustls's words.
        cause: String,
    },
    /// A TLS listener without a certificate and a key.
    #[error("listen.tls.addresses needs listen.tls.cert and listen.tls.key")]
    NoServerCertificate,
    /// Neither a host name nor an address, so no certificate could be valid for it.
    #[error(
        "upstream.tls.server_name, or the host of upstream.url: no certificate can be verified for {name:?}"
    )]
    ServerName {
        /// `upstream.tls.server_name`, or the URL's host.
        name: String,
    },
    /// Our cryptography and our protocol versions do not fit (a fault in the program).
    #[error("TLS cannot be set up: {cause}")]
    Provider {
        /// rustls's words.
        cause: String,
    },
}

/// The certificates in the PEM file that `key` of the configuration names, at least one.
///
/// # Errors
/// [`TlsSetupError`], with nothing of the file's content.
pub(crate) fn certificates(
    key: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| unreadable(key, path, &e))?;
    if found.is_empty() {
        return Err(TlsSetupError::NoCertificate { key, path: path.to_owned() });
    }
    Ok(found)
}

/// The first private key in the PEM file that `key` of the configuration names.
///
/// # Errors
/// As [`certificates`].
pub(crate) fn private_key(key: &'static str, path: &Path) -> Result<PrivateKeyDer<'static>, TlsSetupError> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| unreadable(key, path, &e))
}

/// Trusts the authorities in the PEM file that `key` of the configuration names.
///
/// # Errors
/// As [`certificates`].
pub(crate) fn add_authorities(
    roots: &mut RootCertStore,
    key: &'static str,
    path: &Path,
) -> Result<(), TlsSetupError> {
    for certificate in certificates(key, path)? {
        roots.add(certificate).map_err(|e| TlsSetupError::Read {
            key,
            path: path.to_owned(),
            cause: e.to_string(),
        })?;
    }
    Ok(())
}

/// A PEM error may quote the file, and the file may be a private key: only the system's errors are repeated.
fn unreadable(key: &'static str, path: &Path, error: &pem::Error) -> TlsSetupError {
    let cause = match error {
        pem::Error::Io(e) => e.to_string(),
        pem::Error::NoItemsFound => "nothing of the expected kind in it (PEM)".to_owned(),
        _ => "not a well-formed PEM file".to_owned(), // an enum of the library's, open to more variants
    };
    TlsSetupError::Read { key, path: path.to_owned(), cause }
}

/// The end of a certificate's validity, if it has one.
pub(crate) fn valid_until(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The contents of files, for comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Reads the files now; one that cannot be read counts as another content.
    pub fn of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let mut digest = Sha256::new();
        for path in paths {
            match fs::read(path) {
                Ok(content) => {
                    digest.update(b"is");
                    digest.update(Sha256::digest(zeroize::Zeroizing::new(content)));
                }
                Err(error) => digest.update(error.kind().to_string()),
            }
        }
        Self(digest.finalize().into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_missing_or_moved_content_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
        let look = || Fingerprint::of([one.as_path(), other.as_path()]);
        let nothing = look();
        fs::write(&one, "a").unwrap();
        let first = look();
        assert_ne!(first, nothing);
        fs::write(&other, "b").unwrap();
        let both = look();
        assert_eq!(both, look());
        fs::write(&one, "b").unwrap();
        fs::write(&other, "a").unwrap();
        assert_ne!(look(), both, "exchanged");
        fs::write(&one, "a").unwrap();
        fs::remove_file(&other).unwrap();
        assert_eq!(look(), first, "as it was");
    }
}
