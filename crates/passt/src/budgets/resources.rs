//! The resources that budgets divide: open files and memory.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};
use rustix::system::sysinfo;

/// The resources that budgets divide.
#[derive(Clone, Copy, Debug)]
pub struct Resources {
    /// Number of files that the process may have open.
    pub files: u64,
    /// Amount of memory, in bytes.
    pub memory: u64,
}

impl Resources {
    /// The resources of this process: its present limit of open files, and its memory. The memory is the smaller of the
    /// machine's memory and the limit of the process's control groups. Must be called while /proc and /sys can be read.
    #[must_use]
    pub fn gather() -> Self {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let machine = machine_memory();
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let limits =
            control_group_limits(&groups).filter_map(|path| parse_limit(&fs::read_to_string(path).ok()?));
        Self { files, memory: limits.chain([machine]).min().unwrap_or(machine) }
    }
}

fn machine_memory() -> u64 {
    let info = sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}

/// The files that may limit the memory of a process, given its `/proc/PID/cgroup` (cgroups(7)): the files of its
/// control group and of all parent groups. Some of the files may not exist.
fn control_group_limits(groups: &str) -> impl Iterator<Item = PathBuf> + '_ {
    let groups = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    groups.flat_map(|(controllers, path)| {
        let (root, file) = match controllers {
            // Version 2 has one hierarchy for all controllers.
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        };
        let counts =
            controllers.is_empty() || controllers.split(',').any(|controller| controller == "memory");
        let levels = Path::new(path.trim_start_matches('/')).ancestors().filter(move |_| counts);
        levels.map(move |group| Path::new(root).join(group).join(file))
    })
}

/// A limit in bytes; `None` for "max".
fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_control_groups() {
        let paths = |groups: &str| -> Vec<String> {
            control_group_limits(groups).map(|path| path.to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(paths("0::/\n"), ["/sys/fs/cgroup/memory.max"]);
        assert_eq!(
            paths("0::/user.slice/a:b\n"),
            [
                "/sys/fs/cgroup/user.slice/a:b/memory.max",
                "/sys/fs/cgroup/user.slice/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
        );
        assert_eq!(
            paths("5:cpu,cpuacct:/x\n4:memory:/x\n"),
            ["/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        );
        assert!(paths("").is_empty() && paths("x").is_empty());
        assert_eq!(["max\n", "1048576\n", "", "-1"].map(parse_limit), [None, Some(1 << 20), None, None]);
    }

    #[test]
    fn this_process_has_files_and_memory() {
        let Resources { files, memory } = Resources::gather();
        assert!(files > 0 && memory > 1 << 20, "{files} files, {memory} bytes");
    }
}
