//! Which node owns which slot, read from `CLUSTER SLOTS`.

use std::collections::BTreeSet;

use crate::resp::{bulk, elements, integer, is_null};
use crate::upstream::HostPort;

/// How many slots a cluster has.
pub const SLOTS: u16 = 16_384;
/// A slot that no node owns.
const NOBODY: u16 = u16::MAX;
/// More nodes than this are no cluster (the specification recommends at most 1,000).
const MOST_NODES: usize = 10_000;

/// The owner of every slot. Nodes are ordered by the lowest slot that they own.
#[derive(Clone, PartialEq, Eq)]
pub struct SlotMap {
    masters: Vec<HostPort>,
    owners: Box<[u16]>,
    /// Masters and replicas.
    known: BTreeSet<HostPort>,
}

impl std::fmt::Debug for SlotMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlotMap").field("masters", &self.masters).field("covered", &self.covered()).finish()
    }
}

impl Default for SlotMap {
    /// A map in which nobody owns anything.
    fn default() -> Self {
        Self {
            masters: Vec::new(),
            owners: vec![NOBODY; usize::from(SLOTS)].into_boxed_slice(),
            known: BTreeSet::new(),
        }
    }
}

impl SlotMap {
    /// Reads the answer to `CLUSTER SLOTS` of the node at `asked`: rows of first slot, last slot, master, replicas; a node is
    /// host, port, id and more. A node that does not know its own address leaves the host empty, or null: it is the one that
    /// was asked. `None`: it is no such answer.
    #[must_use]
    pub fn read(answer: &[u8], asked: &HostPort) -> Option<Self> {
        let mut map = Self::default();
        let mut rows = Vec::new();
        for row in elements(answer)? {
            let mut fields = elements(row)?;
            let first = u16::try_from(integer(fields.next()?)?).ok()?;
            let last = u16::try_from(integer(fields.next()?)?).ok()?;
            if first > last || last >= SLOTS {
                return None;
            }
            let master = node(fields.next()?, asked)?;
            map.known.insert(master.clone());
            // A replica without an address cannot be reached, and need not be.
            map.known.extend(fields.filter_map(|replica| node(replica, asked)));
            rows.push((first, last, master));
            if rows.len() > usize::from(SLOTS) || map.known.len() > MOST_NODES {
                return None;
            }
        }
        rows.sort_unstable();
        for (first, last, master) in rows {
            let number = map.number(&master)?;
            map.owners.get_mut(usize::from(first)..=usize::from(last))?.fill(number);
        }
        Some(map)
    }

    /// The number of `master`, which is added where it is new.
    fn number(&mut self, master: &HostPort) -> Option<u16> {
        let at = self.masters.iter().position(|known| known == master).unwrap_or_else(|| {
            self.masters.push(master.clone());
            self.masters.len() - 1
        });
        u16::try_from(at).ok().filter(|number| *number != NOBODY)
    }

    /// The place of the owner of `slot` in [`Self::masters`]. `None`: nobody owns it.
    #[must_use]
    #[inline]
    pub fn owner(&self, slot: u16) -> Option<usize> {
        self.owners
            .get(usize::from(slot))
            .filter(|number| **number != NOBODY)
            .map(|number| usize::from(*number))
    }

    /// The owner of `slot`.
    #[must_use]
    pub fn owner_of(&self, slot: u16) -> Option<&HostPort> {
        self.masters.get(self.owner(slot)?)
    }

    /// The nodes that own slots, and after [`Self::patched`] perhaps some that do no more.
    #[must_use]
    pub fn masters(&self) -> &[HostPort] {
        &self.masters
    }

    /// Masters and replicas.
    pub fn known(&self) -> impl Iterator<Item = &HostPort> {
        self.known.iter()
    }

    /// Whether the cluster has named `node`, as a master or as a replica.
    #[must_use]
    pub fn knows(&self, node: &HostPort) -> bool {
        self.known.contains(node)
    }

    /// How many slots have an owner.
    #[must_use]
    pub fn covered(&self) -> usize {
        self.owners.iter().filter(|number| **number != NOBODY).count()
    }

    /// How many slots the master with this place in [`Self::masters`] owns.
    #[must_use]
    pub fn owned_by(&self, at: usize) -> usize {
        self.owners.iter().filter(|number| usize::from(**number) == at).count()
    }

    /// The lowest slot of `node`. `None`: it owns nothing.
    #[must_use]
    pub fn lowest_slot(&self, node: &HostPort) -> Option<u16> {
        let at = self.masters.iter().position(|master| master == node)?;
        let slot = self.owners.iter().position(|number| usize::from(*number) == at)?;
        u16::try_from(slot).ok()
    }

    /// The same with `slot` owned by `node`. `None`: the cluster has not named such a node, or it is so already.
    #[must_use]
    pub fn patched(&self, slot: u16, node: &HostPort) -> Option<Self> {
        if !self.knows(node) || self.owner_of(slot) == Some(node) {
            return None;
        }
        let mut patched = self.clone();
        let number = patched.number(node)?;
        *patched.owners.get_mut(usize::from(slot))? = number;
        Some(patched)
    }
}

/// A node of a row: host, port, and what is of no concern here.
fn node(fields: &[u8], asked: &HostPort) -> Option<HostPort> {
    let mut fields = elements(fields)?;
    let (host, port) = (fields.next()?, integer(fields.next()?)?);
    let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
    let host = if is_null(host) { &b""[..] } else { bulk(host)? };
    if host.is_empty() {
        return Some(HostPort { host: asked.host.clone(), port });
    }
    let host = std::str::from_utf8(host).ok()?;
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    HostPort::parse(&bracketed, Some(port))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    pub(in super::super) fn address(text: &str) -> HostPort {
        HostPort::parse(text, None).unwrap()
    }

    /// The answer to CLUSTER SLOTS: first and last slot, and the nodes.
    pub(in super::super) fn slots(rows: &[(u16, u16, &[&str])]) -> Vec<u8> {
        let mut out = format!("*{}\r\n", rows.len());
        for (first, last, nodes) in rows {
            let _ = write!(out, "*{}\r\n:{first}\r\n:{last}\r\n", 2 + nodes.len());
            for node in *nodes {
                let (host, port) = node.rsplit_once(':').unwrap();
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let host =
                    if host == "null" { "$-1".to_owned() } else { format!("${}\r\n{host}", host.len()) };
                let _ = write!(out, "*3\r\n{host}\r\n:{port}\r\n$2\r\nid\r\n");
            }
        }
        out.into_bytes()
    }

    pub(in super::super) fn map(rows: &[(u16, u16, &[&str])]) -> SlotMap {
        SlotMap::read(&slots(rows), &address("seed:1")).unwrap()
    }

    #[test]
    fn owners_are_read_in_the_order_of_their_slots() {
        let map = map(&[
            (10_923, 16_383, &["10.0.0.3:6379"]),
            (0, 5_460, &["10.0.0.1:6379", "10.0.0.4:6379"]),
            (5_461, 10_922, &["[fd00::2]:6379"]),
        ]);
        let masters: Vec<_> = map.masters().iter().map(ToString::to_string).collect();
        assert_eq!(masters, ["10.0.0.1:6379", "[fd00::2]:6379", "10.0.0.3:6379"]);
        assert_eq!((map.owner(0), map.owner(5_461), map.owner(16_383)), (Some(0), Some(1), Some(2)));
        assert_eq!(map.covered(), 16_384);
        assert!(map.knows(&address("10.0.0.4:6379")) && !map.knows(&address("10.0.0.5:6379")));
        assert_eq!(map.lowest_slot(&address("10.0.0.3:6379")), Some(10_923));
        assert_eq!(map.lowest_slot(&address("10.0.0.4:6379")), None);
    }

    #[test]
    fn a_node_without_a_host_is_the_one_that_was_asked() {
        for unknown in [":7000", "null:7000"] {
            assert_eq!(map(&[(0, 1, &[unknown])]).owner_of(1), Some(&address("seed:7000")));
        }
    }

    #[test]
    fn one_name_with_two_ports_is_one_master() {
        let map = map(&[(0, 16_383, &["c.serverless.example:6379", "c.serverless.example:6380"])]);
        assert_eq!(map.masters(), [address("c.serverless.example:6379")]);
        assert_eq!(map.covered(), 16_384);
    }

    #[test]
    fn what_is_no_such_answer_is_refused() {
        let asked = address("seed:1");
        for bad in [
            &b"-ERR This instance has cluster support disabled\r\n"[..],
            b"+OK\r\n",
            b"*1\r\n:1\r\n",
            b"*1\r\n*1\r\n:1\r\n",
        ] {
            assert_eq!(SlotMap::read(bad, &asked), None);
        }
        for (first, last, node) in [(2, 1, "h:1"), (0, 16_384, "h:1"), (0, 1, "h h:1"), (0, 1, "h:0")] {
            assert_eq!(
                SlotMap::read(&slots(&[(first, last, &[node])]), &asked),
                None,
                "{first} {last} {node}"
            );
        }
        assert_eq!(SlotMap::read(b"*0\r\n", &asked).unwrap().covered(), 0);
    }

    #[test]
    fn a_slot_is_patched_only_to_a_node_that_the_cluster_has_named() {
        let before = map(&[(0, 9, &["a:1", "b:1"])]);
        assert_eq!(before.patched(3, &address("x:1")), None);
        assert_eq!(before.patched(3, &address("a:1")), None);
        let after = before.patched(3, &address("b:1")).unwrap();
        assert_eq!(after.owner_of(3), Some(&address("b:1")));
        assert_eq!((after.owner_of(4), after.owned_by(0)), (Some(&address("a:1")), 9));
    }

    proptest! {
        #[test]
        fn any_division_of_the_slots_is_read_as_it_was_written(
            cuts in proptest::collection::btree_set(1..SLOTS, 0..20),
            owners in proptest::collection::vec(0..5_usize, 21),
        ) {
            let names = ["a:1", "b:1", "c:1", "d:1", "e:1"];
            let firsts: Vec<u16> = std::iter::once(0).chain(cuts.iter().copied()).collect();
            let lasts: Vec<u16> = cuts.iter().map(|cut| cut - 1).chain([SLOTS - 1]).collect();
            let nodes: Vec<[&str; 1]> = owners.iter().map(|owner| [names[*owner]]).collect();
            let rows: Vec<(u16, u16, &[&str])> = firsts
                .iter()
                .zip(&lasts)
                .zip(&nodes)
                .map(|((first, last), nodes)| (*first, *last, &nodes[..]))
                .collect();
            let map = map(&rows);
            prop_assert_eq!(map.covered(), usize::from(SLOTS));
            for (first, last, nodes) in rows {
                let owner = address(nodes[0]);
                prop_assert_eq!(map.owner_of(first), Some(&owner));
                prop_assert_eq!(map.owner_of(last), Some(&owner));
            }
        }

        #[test]
        fn no_bytes_upset_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = SlotMap::read(&bytes, &address("seed:1"));
        }
    }
}
