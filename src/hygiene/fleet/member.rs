//! The instances on a server, as one CLIENT LIST shows them: what each claims, wants and has.

use std::collections::BTreeMap;

use crate::session::Listed;
use crate::upstream::{Instance, Intent, Registered};

/// One instance on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which one.
    pub instance: Instance,
    /// Its connections.
    pub rows: usize,
    /// What its control connection registers; `None` without one, and for an instance that shares nothing.
    pub registered: Option<Registered>,
    /// The host that its connections come from, as the server sees it.
    pub address: String,
}

impl Member {
    /// How many connections are taken by it: what it claims, or what it has, whichever is more.
    #[must_use]
    pub fn used(&self) -> usize {
        self.registered.map_or(0, |registered| registered.claim).max(self.rows)
    }

    /// Whether it asks for more.
    #[must_use]
    pub fn wants(&self) -> bool {
        self.intent() == Intent::Wants
    }

    /// Whether another process takes its place.
    #[must_use]
    pub fn leaves(&self) -> bool {
        self.intent() == Intent::Leaves
    }

    fn intent(&self) -> Intent {
        self.registered.map_or(Intent::Settled, |registered| registered.intent)
    }
}

/// The instances that `rows` (the whole of one CLIENT LIST) belong to, in the order of their boot ids. Connections of a dead
/// instance count until they are gone.
#[must_use]
pub fn members(rows: &[Listed]) -> Vec<Member> {
    let mut found: BTreeMap<(String, String), Member> = BTreeMap::new();
    for row in rows {
        let Some(instance) = Instance::of(&row.name) else { continue };
        let address = row.addr.rsplit_once(':').map_or(row.addr.as_str(), |(host, _)| host);
        let key = (instance.boot.clone(), instance.name.clone());
        let member = found.entry(key).or_insert_with(|| Member {
            instance,
            rows: 0,
            registered: None,
            address: address.to_owned(),
        });
        member.rows += 1;
        if let Some((_, registered)) = Instance::registration_of(&row.name) {
            // Two for a moment, while one replaces the other: the higher claim is the safe one.
            let before = member.registered.map_or(0, |before| before.claim);
            let claim = registered.claim.max(before);
            member.registered = Some(Registered { claim, ..registered });
        }
    }
    found.into_values().collect()
}

/// How many connections `members` take together.
#[must_use]
pub fn used(members: &[Member]) -> usize {
    members.iter().map(Member::used).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_uses_what_it_claims_or_what_it_has() {
        let text = "id=1 addr=10.0.0.1:5 name=redbouncer:a:00000002:control:6+\n\
                    id=2 addr=10.0.0.1:6 name=redbouncer:a:00000002:shared\n\
                    id=3 addr=10.0.0.2:5 name=redbouncer:b:00000001:shared\n\
                    id=4 addr=10.0.0.2:6 name=redbouncer:b:00000001:leased\n\
                    id=5 addr=[::1]:7 name=redbouncer:c:00000003:control:1-\n\
                    id=6 addr=[::1]:8 name=redbouncer:c:00000003:leased\n\
                    id=7 addr=10.0.0.9:7 name=app\n";
        let found = members(&Listed::parse_all(text.as_bytes()));
        let seen: Vec<_> = found
            .iter()
            .map(|member| (&*member.instance.name, member.rows, member.used(), member.wants()))
            .collect();
        assert_eq!(seen, [("b", 2, 2, false), ("a", 2, 6, true), ("c", 2, 2, false)]);
        assert_eq!((used(&found), found[2].leaves(), &*found[2].address), (10, true, "[::1]"));
    }
}
