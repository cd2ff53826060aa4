//! Which run of redbouncer a connection belongs to: its name on the server says so.

use std::fmt;

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
        Self { name: name.to_owned(), boot: format!("{:08x}", fastrand::u32(..)) }
    }

    /// The name of a connection of kind `kind`, as CLIENT LIST on the server shows it.
    #[must_use]
    pub fn connection(&self, kind: &str) -> String {
        format!("{self}{kind}")
    }

    /// Whose connection of the name `connection` is; `None` where it is none of redbouncer's.
    #[must_use]
    pub fn of(connection: &str) -> Option<Self> {
        let mut parts = connection.split(':');
        let (mark, name, boot, kind) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_boot = boot.len() == 8 && boot.bytes().all(|byte| byte.is_ascii_hexdigit());
        let whole = mark == MARK && !name.is_empty() && is_boot && !kind.is_empty() && parts.next().is_none();
        whole.then(|| Self { name: name.to_owned(), boot: boot.to_owned() })
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
        assert_eq!(Instance::of(&instance.connection("shared")), Some(instance.clone()));
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
