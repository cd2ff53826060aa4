//! The slot of a key, and a key for each slot.

use std::sync::LazyLock;

use super::SLOTS;

/// The slot of a key: CRC16 of its hash tag, or of all of it.
#[must_use]
#[inline]
pub fn slot_of(key: &[u8]) -> u16 {
    redis_protocol::redis_keyslot(key)
}

/// A hash tag whose keys are in `slot`; for each slot always the same one.
#[must_use]
pub fn tag_of(slot: u16) -> &'static str {
    static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
        let mut tags = vec![String::new(); usize::from(SLOTS)];
        let mut left = tags.len();
        for number in 0_u32.. {
            if left == 0 {
                break;
            }
            let tag = format!("{number:x}");
            if let Some(free) =
                tags.get_mut(usize::from(slot_of(tag.as_bytes()))).filter(|tag| tag.is_empty())
            {
                *free = tag;
                left -= 1;
            }
        }
        tags
    });
    TAGS.get(usize::from(slot)).map_or("", |tag| tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_a_tag() {
        for slot in 0..SLOTS {
            assert_eq!(slot_of(format!("a:{{{}}}:b", tag_of(slot)).as_bytes()), slot);
        }
    }

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot_of(b"123456789"), 12_739);
        assert_eq!(slot_of(b"foo{hash_tag}"), slot_of(b"bar{hash_tag}"));
        assert_eq!(slot_of(b"foo{}{bar}"), slot_of(b"foo{}{bar}"));
        assert_ne!(slot_of(b"foo{}{bar}"), slot_of(b"bar"));
        assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
    }
}
