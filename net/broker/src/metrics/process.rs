//! What the kernel says of this process, in the words that Prometheus' own clients use.
//!
//! Owns the reading of `/proc/self`. What cannot be read is left out.

use std::fs;

/// Ticks of a second in which the kernel tells processes of time; the same on every architecture that Rust knows.
const TICKS_PER_SECOND: f64 = 100.0;

/// This process, now.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ProcessSample {
    pub(super) cpu_seconds: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) threads: Option<u64>,
    pub(super) files: Option<u64>,
    pub(super) files_max: Option<u64>,
    /// Since 1970.
    pub(super) started_seconds: Option<f64>,
}

/// Looks at this process.
pub(super) fn look() -> ProcessSample {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (stat, status) = (read("/proc/self/stat"), read("/proc/self/status"));
    let (limits, system) = (read("/proc/self/limits"), read("/proc/stat"));
    let kibibytes = |name: &str| number_after(&status, name).map(|count| count * 1024);
    let ticks = |number: usize| field(&stat, number).map(|ticks| ticks as f64 / TICKS_PER_SECOND);
    ProcessSample {
        cpu_seconds: ticks(14).zip(ticks(15)).map(|(user, system)| user + system),
        resident_bytes: kibibytes("VmRSS:"),
        virtual_bytes: kibibytes("VmSize:"),
        threads: number_after(&status, "Threads:"),
        files: fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as u64),
        files_max: number_after(&limits, "Max open files"),
        started_seconds: ticks(22).zip(number_after(&system, "btime")).map(|(since, boot)| since + boot as f64),
    }
}

/// A field of `/proc/self/stat`, counted from 1. The second is a name in parentheses and may hold anything.
fn field(stat: &str, number: usize) -> Option<u64> {
    let behind_name = stat.rsplit_once(')')?.1;
    behind_name.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

/// The first number in the line that begins with `name`.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_a_name_that_holds_anything() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 12 34 0 0 20 0 3 0 5000 9 9";
        assert_eq!([field(stat, 14), field(stat, 15), field(stat, 22)], [Some(12), Some(34), Some(5000)]);
        assert_eq!((field(stat, 2), field(stat, 99), field("", 14)), (None, None, None));
    }

    #[test]
    fn numbers_are_those_of_their_lines() {
        let status = "VmSize:\t  123 kB\nVmRSS:\t   45 kB\nThreads:\t3\n";
        assert_eq!((number_after(status, "VmRSS:"), number_after(status, "VmSwap:")), (Some(45), None));
        assert_eq!(
            number_after("Max open files            1024                 4096     files", "Max open files"),
            Some(1024)
        );
    }

    #[test]
    fn this_process_can_be_seen() {
        let process = look();
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 0), "{process:?}");
        assert!(process.started_seconds.is_some_and(|seconds| seconds > 1.6e9), "{process:?}");
        assert!(
            process.files.zip(process.files_max).is_some_and(|(files, max)| files > 0 && files <= max),
            "{process:?}"
        );
        assert!(process.cpu_seconds.is_some() && process.threads.is_some() && process.virtual_bytes.is_some());
    }
}
