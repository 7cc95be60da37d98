//! How much memory there is: the machine's, and what the control group leaves of it.
//!
//! Owns reading `/proc/meminfo` and the files of cgroup v2. Decides nothing.

use std::fs;

/// Memory in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory {
    /// What this process may use at most.
    pub total: u64,
    /// What of it is free, or used only by clean page cache.
    pub available: u64,
}

/// The memory of the machine, or what the control group leaves of it; `None` where nobody says. Reads a few small files.
pub fn memory() -> Option<Memory> {
    let machine = machine(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let group = group(
        &fs::read_to_string("/sys/fs/cgroup/memory.max").unwrap_or_default(),
        &fs::read_to_string("/sys/fs/cgroup/memory.current").unwrap_or_default(),
        &fs::read_to_string("/sys/fs/cgroup/memory.stat").unwrap_or_default(),
    );
    let Some(group) = group else { return Some(machine) };
    Some(Memory { total: machine.total.min(group.total), available: machine.available.min(group.available) })
}

fn machine(text: &str) -> Option<Memory> {
    let kibibytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
    };
    Some(Memory { total: kibibytes("MemTotal:")? << 10, available: kibibytes("MemAvailable:")? << 10 })
}

/// `None` where the group has no limit.
fn group(max: &str, current: &str, stat: &str) -> Option<Memory> {
    let total = max.trim().parse::<u64>().ok()?;
    let used = current.trim().parse::<u64>().ok()?;
    let cache = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok());
    let used = used.saturating_sub(cache.unwrap_or(0));
    Some(Memory { total, available: total.saturating_sub(used) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_understood() {
        let text = "MemTotal:       24684092 kB\nMemFree:         7030600 kB\nMemAvailable:   21705464 kB\n";
        assert_eq!(machine(text), Some(Memory { total: 24_684_092 << 10, available: 21_705_464 << 10 }));
        assert_eq!(machine("MemTotal: 1 kB\n"), None);
        assert_eq!(group("max\n", "1000\n", ""), None);
        let group = group("5000\n", "4000\n", "anon 1000\ninactive_file 2500\nactive_file 1\n");
        assert_eq!(group, Some(Memory { total: 5000, available: 3500 }));
    }

    #[test]
    fn this_machine_has_memory() {
        let memory = memory().expect("Linux says how much");
        assert!(memory.available > 0 && memory.available <= memory.total);
    }
}
