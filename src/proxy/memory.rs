//! How much memory this process may take: that of the machine, or the limit of a cgroup that it runs in.

use std::path::{Path, PathBuf};

use crate::downstream::{ClientOptions, MemoryMax};

/// What clients may hold together when nothing says how much memory there is.
const UNKNOWN: usize = 1 << 30;

/// The bound on the memory that is held for clients; 0 for none. Says where it cannot be known.
pub(super) fn bound(options: &ClientOptions) -> usize {
    match options.memory_max {
        MemoryMax::Size(bytes) => bytes,
        MemoryMax::Percent(percent) => match available(Path::new("/")) {
            Some(bytes) => bytes / 100 * usize::from(percent),
            None => {
                tracing::warn!(
                    memory_max = UNKNOWN,
                    "cannot determine the memory of this machine; set client.memory_max"
                );
                UNKNOWN
            }
        },
    }
}

/// The smallest of the machine's memory and the limits of the cgroups that this process is in. `root` is where `proc` and
/// `sys` are.
fn available(root: &Path) -> Option<usize> {
    let read = |path: &Path| std::fs::read_to_string(root.join(path)).ok();
    let machine = read(Path::new("proc/meminfo")).and_then(|text| total(&text));
    let groups = read(Path::new("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().flat_map(limit_files).filter_map(|path| read(&path)?.trim().parse().ok());
    limits.chain(machine).min()
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok()?.checked_mul(1024)
}

/// The files that limit the memory of the cgroup in a line of `/proc/self/cgroup` (`man 7 cgroups`), and of those above it.
/// In a container the path may be the host's, where there is nothing; the topmost one is the container's own then.
fn limit_files(line: &str) -> Vec<PathBuf> {
    let mut parts = line.splitn(3, ':');
    let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
        return Vec::new();
    };
    let (mount, file) = if controllers.is_empty() {
        ("sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return Vec::new();
    };
    let below = Path::new(path.trim_start_matches('/'));
    below.ancestors().map(|group| Path::new(mount).join(group).join(file)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A root with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal:       16000 kB\nMemFree:  1 kB\n");

    #[test]
    fn without_a_limit_it_is_the_machines_memory() {
        let files = [MACHINE, ("proc/self/cgroup", "0::/a/b\n"), ("sys/fs/cgroup/a/b/memory.max", "max\n")];
        assert_eq!(available(root(&files).path()), Some(16_000 << 10));
        assert_eq!(available(root(&[MACHINE]).path()), Some(16_000 << 10));
        assert_eq!(available(root(&[]).path()), None);
    }

    #[test]
    fn the_smallest_limit_of_all_groups_around_it_counts() {
        let group = ("proc/self/cgroup", "0::/a/b\n");
        let [above, own] =
            [("sys/fs/cgroup/a/memory.max", "5000\n"), ("sys/fs/cgroup/a/b/memory.max", "9000\n")];
        assert_eq!(available(root(&[MACHINE, group, above, own]).path()), Some(5_000));
        // A container sees its own group as the topmost one.
        let outside = ("proc/self/cgroup", "0::/../host/b\n");
        let own = ("sys/fs/cgroup/memory.max", "7000\n");
        assert_eq!(available(root(&[MACHINE, outside, own]).path()), Some(7_000));
    }

    #[test]
    fn the_limit_of_the_first_version_of_cgroups_counts_too() {
        let group = ("proc/self/cgroup", "5:cpu:/x\n4:hugetlb,memory:/y\n");
        let limit = ("sys/fs/cgroup/memory/y/memory.limit_in_bytes", "6000\n");
        let none = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(available(root(&[MACHINE, group, limit, none]).path()), Some(6_000));
    }

    #[test]
    fn a_share_is_a_share_of_it_and_a_size_is_itself() {
        let with = |memory_max| bound(&ClientOptions { memory_max, ..ClientOptions::default() });
        assert_eq!((with(MemoryMax::Size(5)), with(MemoryMax::Size(0))), (5, 0));
        let all = available(Path::new("/")).unwrap();
        assert_eq!(with(MemoryMax::Percent(25)), all / 100 * 25);
    }
}
