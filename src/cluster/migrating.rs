//! Whether a node moves a slot away, by its own word: an `-ASK` from a command that may have made the text up is believed only
//! then.

/// Whether the answer to `CLUSTER NODES` says that the node which gave it moves `slot` to another: `[slot->-id]` in the row of
/// `myself`.
#[must_use]
pub fn is_migrating(nodes: &[u8], slot: u16) -> bool {
    let text = String::from_utf8_lossy(nodes);
    let mark = format!("[{slot}->-");
    let own = text.lines().find(|row| row.split(' ').nth(2).is_some_and(|flags| flags.contains("myself")));
    own.is_some_and(|row| row.split(' ').skip(8).any(|word| word.starts_with(&mark)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: &str = "\
07c3 127.0.0.1:30004@31004 slave e7d1 0 1426238317239 4 connected\n\
e7d1 127.0.0.1:30001@31001 myself,master - 0 0 1 connected 0-5460 [77->-67ed] [93-<-292f]\n\
67ed 127.0.0.1:30002@31002 master - 0 1426238316232 2 connected 5461-10922 [5->-e7d1]\n";

    #[test]
    fn only_the_own_row_and_only_what_leaves_counts() {
        assert!(is_migrating(NODES.as_bytes(), 77));
        for slot in [7, 93, 5, 0] {
            assert!(!is_migrating(NODES.as_bytes(), slot), "{slot}");
        }
        assert!(!is_migrating(b"-NOPERM", 77));
    }
}
