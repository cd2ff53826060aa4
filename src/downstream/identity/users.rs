//! The users of `auth.users_file`, and the check of a secret against their hashes.

use std::collections::BTreeMap;
use std::fmt;

use argon2::password_hash::phc;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
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
    /// Its identity on the server; `None` is that of `upstream.url`.
    pub upstream: Option<Identity>,
    /// Clients logged in as it at the same time.
    pub max_clients: Option<usize>,
    /// Upstream connections of its own at the same time.
    pub max_connections: Option<usize>,
    /// The commands that it may send.
    pub rights: Rights,
}

/// A password hash from the file. It is not printed, although it cannot be reversed.
#[derive(Clone, PartialEq, Eq)]
pub enum PasswordHash {
    /// As in Redis's own ACL files: SHA-256 without a salt. For long random secrets.
    Sha256([u8; 32]),
    /// A PHC string, for passwords chosen by people.
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

    /// The hash of `secret` as [`Self::parse`] reads it: for long random secrets.
    #[must_use]
    pub fn sha256_text(secret: &[u8]) -> String {
        let digits = Sha256::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("#{digits}")
    }

    /// The same with Argon2id, a salt of its own and the parameters that OWASP advises (m=19456, t=2, p=1).
    ///
    /// # Errors
    /// There are no random numbers, or not enough memory.
    pub fn argon2_text(secret: &[u8]) -> Result<String, String> {
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(|wrong| wrong.to_string())?;
        let hash = Argon2::default().hash_password_with_salt(secret, &salt);
        hash.map(|hash| hash.to_string()).map_err(|wrong| wrong.to_string())
    }

    /// Whether `secret` is the password. Takes some ten milliseconds for Argon2.
    #[must_use]
    pub fn fits(&self, secret: &[u8]) -> bool {
        match self {
            Self::Sha256(hash) => Sha256::digest(secret).as_slice().ct_eq(hash).into(),
            Self::Argon2(text) => Argon2::default().verify_password(secret, text.as_str()).is_ok(),
        }
    }

    /// The cost of [`Self::fits`], if it would block an event loop.
    #[must_use]
    pub fn cost(&self) -> Option<Cost> {
        match self {
            Self::Sha256(_) => None,
            Self::Argon2(text) => {
                let parsed = phc::PasswordHash::new(text).ok()?;
                let algorithm = Algorithm::new(parsed.algorithm.as_str()).ok()?;
                let params = Params::try_from(&parsed).ok()?;
                Some(Cost {
                    algorithm,
                    memory: params.m_cost(),
                    passes: params.t_cost(),
                    lanes: params.p_cost(),
                })
            }
        }
    }
}

/// The cost of one Argon2 computation: equal for hashes with equal parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    algorithm: Algorithm,
    /// In KiB.
    memory: u32,
    passes: u32,
    lanes: u32,
}

impl Cost {
    /// KiB passed over, by which the time goes.
    #[must_use]
    pub fn kib_passed(self) -> u64 {
        u64::from(self.memory) * u64::from(self.passes)
    }

    /// Takes the time of a look at a hash, to no other end.
    fn pay(self, secret: &[u8]) {
        let Ok(params) = Params::new(self.memory, self.passes, self.lanes, None) else { return };
        let mut out = [0; Params::DEFAULT_OUTPUT_LEN];
        let argon = Argon2::new(self.algorithm, Version::default(), params);
        // It fails where there is no memory, as a look would.
        let _ = argon.hash_password_into(secret, b"redbouncer: salt", &mut out);
        std::hint::black_box(out);
    }
}

/// The cost of every failed login, for any name: for each set of parameters as many computations as the user with the
/// most such hashes needs.
#[must_use]
pub fn toll(users: &[StaticUser]) -> Vec<Cost> {
    let mut most: BTreeMap<Cost, usize> = BTreeMap::new();
    for user in users {
        let mut own: BTreeMap<Cost, usize> = BTreeMap::new();
        for cost in user.hashes.iter().filter_map(PasswordHash::cost) {
            *own.entry(cost).or_default() += 1;
        }
        for (cost, count) in own {
            let most = most.entry(cost).or_default();
            *most = count.max(*most);
        }
    }
    most.into_iter().flat_map(|(cost, count)| std::iter::repeat_n(cost, count)).collect()
}

/// Whether `secret` is the password of one of `hashes`. If not, all of `toll` has been paid: the hashes are computed,
/// and then the missing computations, reported to `paid` one by one.
pub(in crate::downstream) fn look(
    hashes: &[PasswordHash],
    toll: &[Cost],
    secret: &[u8],
    paid: &mut dyn FnMut(Cost),
) -> bool {
    let mut missing = toll.to_vec();
    for hash in hashes {
        let Some(cost) = hash.cost() else { continue };
        if hash.fits(secret) {
            return true;
        }
        paid(cost);
        if let Some(at) = missing.iter().position(|other| *other == cost) {
            missing.swap_remove(at);
        }
    }
    for cost in missing {
        cost.pay(secret);
        paid(cost);
    }
    false
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
        assert_eq!(hash.cost(), None);
        assert!(PasswordHash::parse(&SHA.to_uppercase()).unwrap().fits(b"sesame"));
    }

    #[test]
    fn an_argon2_hash_lets_its_password_in() {
        let hash = PasswordHash::parse(ARGON).unwrap();
        assert!(hash.fits(b"sesame") && !hash.fits(b"open"));
        assert_eq!(hash.cost().map(Cost::kib_passed), Some(64));
    }

    #[test]
    fn a_hash_that_is_made_here_is_one_that_is_read_here() {
        for text in [PasswordHash::sha256_text(b"sesame"), PasswordHash::argon2_text(b"sesame").unwrap()] {
            let hash = PasswordHash::parse(&text).unwrap();
            assert!(hash.fits(b"sesame") && !hash.fits(b"Sesame"), "{text}");
        }
        assert_eq!(PasswordHash::sha256_text(b"sesame"), SHA);
        assert_ne!(
            PasswordHash::argon2_text(b"sesame"),
            PasswordHash::argon2_text(b"sesame"),
            "each has its salt"
        );
    }

    /// Names that exist, of every kind, and one that does not cost the same looks.
    #[test]
    fn a_login_that_fails_costs_the_same_whoever_it_names() {
        const DEARER: &str =
            "$argon2i$v=19$m=128,t=2,p=1$c2FsdHNhbHRzYWx0$/R9hXoGbAiwKP+ntM3ojEFnB6i6+iZ89I2MLejgbnBI";
        let user = |hashes: &[&str]| StaticUser {
            name: String::new(),
            hashes: hashes.iter().map(|text| PasswordHash::parse(text).unwrap()).collect(),
            upstream: None,
            max_clients: None,
            max_connections: None,
            rights: Rights::ALL,
        };
        let users = [
            user(&[SHA]),
            user(&[ARGON]),
            user(&[DEARER]),
            user(&[ARGON, SHA, ARGON]),
            user(&[DEARER, ARGON]),
        ];
        let toll = toll(&users);
        assert_eq!(toll.iter().map(|cost| cost.kib_passed()).collect::<Vec<_>>(), [256, 64, 64]);
        let paid = |hashes: &[PasswordHash]| {
            let mut paid = Vec::new();
            assert!(!look(hashes, &toll, b"guess", &mut |cost| paid.push(cost)));
            paid.sort();
            paid
        };
        let nobody = paid(&[]);
        assert_eq!(nobody.len(), 3);
        for user in &users {
            assert_eq!(paid(&user.hashes), nobody);
        }
        // A successful login does not pay the cost of other hashes.
        let mut looks = 0;
        assert!(look(&users[3].hashes, &toll, b"sesame", &mut |_| looks += 1));
        assert_eq!(looks, 0);
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
