//! Fair parts of a total (max-min fairness): who wants nothing keeps what he uses, up to an even part; all others have the same.

use super::member::Member;

/// The fair part of each of `members`, in their order, of `claimable` connections. One whose place another process takes has no
/// part of its own: what it still has is that process's.
///
/// A part that does not divide evenly goes to the lowest boot ids, so that all instances come to the same result.
#[must_use]
pub(super) fn fair(members: &[&Member], claimable: usize) -> Vec<usize> {
    let mut parts = vec![0; members.len()];
    let mut open: Vec<usize> = (0..members.len()).filter(|at| !members[*at].leaves()).collect();
    open.sort_by_key(|at| (&members[*at].instance.boot, &members[*at].instance.name));
    let mut left = claimable;
    loop {
        let Some(level) = left.checked_div(open.len()) else { return parts };
        let is_content = |at: &usize| !members[*at].wants() && members[*at].used() <= level;
        let (content, others): (Vec<usize>, Vec<usize>) = open.iter().copied().partition(is_content);
        if content.is_empty() {
            break;
        }
        for at in content {
            parts[at] = members[at].used();
            left -= parts[at];
        }
        open = others;
    }
    let (even, rest) = (left / open.len().max(1), left % open.len().max(1));
    for (rank, at) in open.into_iter().enumerate() {
        parts[at] = even + usize::from(rank < rest);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{Instance, Intent, Registered};

    fn member(boot: u32, claim: usize, intent: Intent) -> Member {
        Member {
            instance: Instance { name: "a".to_owned(), boot: format!("{boot:08x}") },
            rows: 0,
            registered: Some(Registered { claim, intent }),
            address: String::new(),
        }
    }

    fn parts(members: &[Member], claimable: usize) -> Vec<usize> {
        fair(&members.iter().collect::<Vec<_>>(), claimable)
    }

    #[test]
    fn those_who_want_more_have_the_same_and_the_others_what_they_use() {
        use Intent::{Leaves, Settled, Wants};
        let all = [member(3, 1, Wants), member(1, 12, Wants), member(2, 2, Settled)];
        assert_eq!(parts(&all, 18), [8, 8, 2]);
        assert_eq!(parts(&all, 19), [8, 9, 2], "the rest goes to the lowest boot id");
        let hoarder = [member(1, 14, Settled), member(2, 4, Wants)];
        assert_eq!(parts(&hoarder, 18), [9, 9], "more than an even part is not kept while others want it");
        let replaced = [member(1, 3, Leaves), member(2, 6, Wants), member(3, 9, Wants)];
        assert_eq!(parts(&replaced, 18), [0, 9, 9]);
        let crowd: Vec<Member> = (0..5).map(|boot| member(boot, 1, Wants)).collect();
        assert_eq!(parts(&crowd, 3), [1, 1, 1, 0, 0]);
        assert!(parts(&[], 18).is_empty());
    }
}
