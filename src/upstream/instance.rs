//! Which run of redbouncer a connection belongs to: its name on the server says so.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};

/// What the names of all our connections begin with.
const MARK: &str = "redbouncer";

/// One run of redbouncer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instance {
    /// `hygiene.name`
    pub name: String,
    /// Tells this run from others of the same name.
    pub boot: String,
}

impl Instance {
    /// A new run under `name`.
    #[must_use]
    pub fn start(name: &str) -> Self {
        // The operating system's randomness: machines made from one image may start at the same moment.
        let random = RandomState::new().build_hasher().finish();
        Self { name: name.to_owned(), boot: format!("{:08x}", random >> 32) }
    }

    /// The name of a connection of kind `kind`, as CLIENT LIST on the server shows it.
    #[must_use]
    pub fn connection(&self, kind: &str) -> String {
        format!("{self}{kind}")
    }

    /// Whose connection of the name `connection` is; `None` where it is none of redbouncer's.
    #[must_use]
    pub fn of(connection: &str) -> Option<Self> {
        Self::and_kind_of(connection).map(|(instance, _)| instance)
    }

    /// The same, with the connection's kind.
    #[must_use]
    pub fn and_kind_of(connection: &str) -> Option<(Self, &str)> {
        let mut parts = connection.split(':');
        let (mark, name, boot, kind) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_boot = boot.len() == 8 && boot.bytes().all(|byte| byte.is_ascii_hexdigit());
        let whole = mark == MARK && !name.is_empty() && is_boot && !kind.is_empty() && parts.next().is_none();
        whole.then(|| (Self { name: name.to_owned(), boot: boot.to_owned() }, kind))
    }
}

/// What the names of all its connections begin with.
impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK}:{}:{}:", self.name, self.boot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_s_name_says_whose_it_is() {
        let instance = Instance::start("web-1");
        let connection = instance.connection("shared");
        assert_eq!(Instance::of(&connection), Some(instance.clone()));
        assert_eq!(Instance::and_kind_of(&connection), Some((instance.clone(), "shared")));
        assert_ne!(Instance::start("web-1"), instance);
    }

    #[test]
    fn other_names_are_nobody_s() {
        for name in [
            "",
            "redbouncer",
            "redbouncer:web-1:0123abcd:",
            "redbouncer:web-1:0123abcd",
            "redbouncer::0123abcd:shared",
            "redbouncer:web-1:boot:shared",
            "redbouncer:web-1:0123abcd:shared:1",
            "rebouncer:web-1:0123abcd:shared",
        ] {
            assert_eq!(Instance::of(name), None, "{name}");
        }
    }
}
