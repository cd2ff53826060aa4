//! Which of several maps to believe: a node that was cut off, or has just been started, knows a map of the past or none.

use super::SlotMap;

/// The place of the map to follow: the one in which most slots have an owner; among equals the one that most nodes give; among
/// those the first. `None`: there is none.
///
/// A map with more slots comes first, because the part of a cluster that has lost its majority goes on to give the former map
/// only until it notices, and a node that has just joined gives one with holes.
#[must_use]
pub fn elect(maps: &[SlotMap]) -> Option<usize> {
    let votes = |map: &SlotMap| maps.iter().filter(|other| *other == map).count();
    (0..maps.len()).rev().max_by_key(|at| maps.get(*at).map(|map| (map.covered(), votes(map))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::map::tests::map;
    use super::*;

    #[test]
    fn coverage_comes_before_the_majority() {
        let whole = map(&[(0, 16_383, &["a:1"])]);
        let holes = map(&[(0, 9, &["a:1"])]);
        assert_eq!(elect(&[holes.clone(), holes.clone(), whole.clone()]), Some(2));
        assert_eq!(elect(&[whole, holes.clone(), holes]), Some(0));
    }

    #[test]
    fn the_majority_decides_between_whole_maps() {
        let former = map(&[(0, 16_383, &["a:1"])]);
        let new = map(&[(0, 16_383, &["b:1"])]);
        assert_eq!(elect(&[former.clone(), new.clone(), new.clone()]), Some(1));
        assert_eq!(elect(&[former, new]), Some(0));
        assert_eq!(elect(&[]), None);
    }
}
