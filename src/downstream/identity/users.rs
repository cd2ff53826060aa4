//! The users of `auth.users_file`, and how a secret is held against what is written there.

use std::fmt;

use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc;
use argon2::{Argon2, Params};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::session::Rights;
use crate::upstream::Identity;

/// One user of `auth.users_file` (`auth.mode = "static"`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticUser {
    /// The name clients log in with; `default` is the one of an AUTH without a name.
    pub name: String,
    /// Any of these lets it in: two while a password is being changed.
    pub hashes: Vec<PasswordHash>,
    /// Who it is on the server; `None` is the identity of `upstream.url`.
    pub upstream: Option<Identity>,
    /// Clients logged in as it at the same time.
    pub max_clients: Option<usize>,
    /// Upstream connections of its own at the same time.
    pub max_connections: Option<usize>,
    /// What it may ask for.
    pub rights: Rights,
}

/// A password as it is written in a file: it cannot be read back, and is not shown all the same.
#[derive(Clone, PartialEq, Eq)]
pub enum PasswordHash {
    /// As in Redis's own ACL files: SHA-256 without a salt. For long random secrets.
    Sha256([u8; 32]),
    /// A PHC string. For what people can remember.
    Argon2(String),
}

impl PasswordHash {
    /// The most memory that one look at a password may take.
    const MAX_MEMORY_KIB: u32 = 256 << 10;
    /// The most passes over it.
    const MAX_PASSES: u32 = 64;

    /// Reads `#<64 hexadecimal digits>` or `$argon2id$…`. The text is not repeated in the error: the commonest mistake
    /// is to write the password itself.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const FORMS: &str = "expected a hash: \"#\" and 64 hexadecimal digits (SHA-256, as in a Redis ACL file), or \"$argon2id$…\"";
        if let Some(digits) = text.strip_prefix('#') {
            return hex(digits).map(Self::Sha256).ok_or(FORMS);
        }
        if !text.starts_with("$argon2") {
            return Err(FORMS);
        }
        let parsed = phc::PasswordHash::new(text).map_err(|_| "not a whole Argon2 hash (PHC string)")?;
        let known = ["argon2id", "argon2i", "argon2d"].contains(&parsed.algorithm.as_str());
        let params =
            Params::try_from(&parsed).map_err(|_| "the Argon2 hash has parameters that make no sense")?;
        if !known || parsed.salt.is_none() || parsed.hash.is_none() {
            return Err("not a whole Argon2 hash (PHC string)");
        }
        if params.m_cost() > Self::MAX_MEMORY_KIB || params.t_cost() > Self::MAX_PASSES {
            return Err("the Argon2 hash costs too much to check: at most m=262144 (256 MiB) and t=64");
        }
        Ok(Self::Argon2(text.to_owned()))
    }

    /// Whether `secret` is the password. Takes some ten milliseconds for Argon2.
    #[must_use]
    pub fn fits(&self, secret: &[u8]) -> bool {
        match self {
            Self::Sha256(hash) => Sha256::digest(secret).as_slice().ct_eq(hash).into(),
            Self::Argon2(text) => Argon2::default().verify_password(secret, text.as_str()).is_ok(),
        }
    }

    /// Whether [`Self::fits`] would hold up an event loop.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        match self {
            Self::Sha256(_) => false,
            Self::Argon2(_) => true,
        }
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

fn hex(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// `printf %s sesame | sha256sum`
    const SHA: &str = "#d0c04f4b1951e4aeaaec8223ed2039e542f3aae805a6fa7f6d794e5afff5d272";
    /// `printf %s sesame | argon2 saltsaltsalt -id -k 64 -t 1 -p 1 -e`
    const ARGON: &str =
        "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0$/R9hXoGbAiwKP+ntM3ojEFnB6i6+iZ89I2MLejgbnBI";

    #[test]
    fn a_hash_of_a_redis_acl_file_lets_its_password_in() {
        let hash = PasswordHash::parse(SHA).unwrap();
        assert!(hash.fits(b"sesame"));
        assert!(!hash.fits(b"open") && !hash.fits(b""));
        assert!(!hash.is_slow());
        assert!(PasswordHash::parse(&SHA.to_uppercase()).unwrap().fits(b"sesame"));
    }

    #[test]
    fn an_argon2_hash_lets_its_password_in() {
        let hash = PasswordHash::parse(ARGON).unwrap();
        assert!(hash.fits(b"sesame") && !hash.fits(b"open") && hash.is_slow());
    }

    #[test]
    fn anything_else_is_refused_without_being_repeated() {
        let dear =
            "$argon2id$v=19$m=4194304,t=3,p=4$c2FsdHNhbHRzYWx0$CWOrkoo7oJBQ/iyh7uJ0LO2aLEfrHwTWllSAxT0zRno";
        for wrong in ["hunter2", "", "#", "#abc", &SHA[..64], "$argon2id$", "$2b$12$abc", &ARGON[..50], dear]
        {
            let error = PasswordHash::parse(wrong).unwrap_err();
            assert!(wrong.len() < 3 || !error.contains(wrong), "{error}");
        }
        let hash = PasswordHash::parse(SHA).unwrap();
        assert_eq!(format!("{hash:?}"), "***");
    }
}
