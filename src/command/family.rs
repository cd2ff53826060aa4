//! Families of commands: the groups of the command table, with the names that Redis gives them (`group` in COMMAND DOCS).

use super::Row;
use super::table::{ROWS, number_of};

/// The first row of each family in the table, and the family's name.
pub const FAMILIES: [(&str, &str); 19] = [
    ("asking", "connection"),
    ("discard", "transactions"),
    ("psubscribe", "pubsub"),
    ("eval", "scripting"),
    ("copy", "generic"),
    ("append", "string"),
    ("bitcount", "bitmap"),
    ("hdel", "hash"),
    ("blmove", "list"),
    ("sadd", "set"),
    ("bzmpop", "sorted_set"),
    ("xack", "stream"),
    ("geoadd", "geo"),
    ("pfadd", "hyperloglog"),
    ("vadd", "vector_set"),
    ("arcount", "array"),
    ("cluster", "cluster"),
    ("acl", "server"),
    ("proxy", "proxy"),
];

/// The family of commands outside the table.
pub const UNKNOWN_FAMILY: usize = FAMILIES.len();

/// The number of a row's family in [`FAMILIES`]; [`UNKNOWN_FAMILY`] for what has no row.
#[must_use]
pub fn family(row: Option<&'static Row>) -> usize {
    let Some(row) = row else { return UNKNOWN_FAMILY };
    let at = number_of(row);
    BEGINNINGS.iter().rposition(|begin| *begin <= at).unwrap_or(UNKNOWN_FAMILY)
}

/// The name of a family by its number.
#[must_use]
pub fn family_name(family: usize) -> &'static str {
    FAMILIES.get(family).map_or("unknown", |(_, name)| name)
}

static BEGINNINGS: [usize; FAMILIES.len()] = beginnings();

const fn beginnings() -> [usize; FAMILIES.len()] {
    let mut found = [0; FAMILIES.len()];
    let (mut family, mut row) = (0, 0);
    while family < FAMILIES.len() {
        // Out of bounds, and so an error of the compiler, where no row has that name behind the family before.
        while !equal(ROWS[row].name.as_bytes(), FAMILIES[family].0.as_bytes()) {
            row += 1;
        }
        found[family] = row;
        family += 1;
    }
    found
}

const fn equal(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::super::find;
    use super::*;

    #[test]
    fn every_group_of_the_table_is_a_family() {
        let source = include_str!("table.rs");
        let groups = source.split("\n    // ").skip(1);
        let groups: Vec<_> = groups.filter_map(|group| group.lines().nth(1)?.split('"').nth(1)).collect();
        let families: Vec<_> = FAMILIES.iter().map(|(first, _)| *first).collect();
        assert_eq!(groups, families);
    }

    #[test]
    fn commands_have_the_family_that_redis_gives_them() {
        for (command, name) in [
            ("get", "string"),
            ("ping", "connection"),
            ("client|kill", "connection"),
            ("exec", "transactions"),
            ("zadd", "sorted_set"),
            ("del", "generic"),
            ("info", "server"),
        ] {
            assert_eq!(family_name(family(find(command))), name, "{command}");
        }
        assert_eq!(family_name(family(None)), "unknown");
    }
}
