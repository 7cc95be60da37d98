//! What a core has asked of the kernel: numbers for benchmarks and for tests that hold a path to its cost.
//!
//! Owns the numbers of one core. They are plain ones, read and written on the core itself.

use std::cell::Cell;

use crate::io::Io;

/// What one core has done since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls that submit to the kernel or wait for it: `io_uring_enter`; `epoll_wait` in the blocking backend.
    pub enters: u64,
    /// Entries that the ring was given; in the other backends, operations that were started.
    pub submissions: u64,
    /// Entries that the ring gave back; in the blocking backend, what the helper threads have done.
    pub completions: u64,
    /// Writes to the page cache that were done by a call of the core itself.
    pub inline_writes: u64,
    /// Reads and writes on the ring that the kernel refused to do without waiting, and did on a thread of its own then
    /// (io-wq). Counted are direct reads and all writes: each is submitted with the wish not to wait, and submitted again
    /// without it when it comes back with EAGAIN, or when the file system does not know the wish. Not counted are reads
    /// through the page cache, which need no thread where the file system can wake the ring, and what always needs one:
    /// flushes, allocations, zeros.
    pub handed_over: u64,
    /// Flushes of files (`fdatasync`, `fsync`) that were started, of directories not.
    pub flushes: u64,
    /// Jobs given to the helper threads.
    pub helper_jobs: u64,
}

impl Counters {
    /// What was done between `earlier` and now.
    pub fn since(&self, earlier: &Counters) -> Counters {
        Counters {
            enters: self.enters - earlier.enters,
            submissions: self.submissions - earlier.submissions,
            completions: self.completions - earlier.completions,
            inline_writes: self.inline_writes - earlier.inline_writes,
            handed_over: self.handed_over - earlier.handed_over,
            flushes: self.flushes - earlier.flushes,
            helper_jobs: self.helper_jobs - earlier.helper_jobs,
        }
    }
}

impl Io {
    /// What this core has asked of the kernel so far. A few loads. All zeros on a foreign runtime.
    pub fn counters(&self) -> Counters {
        self.backend_counters()
    }
}

/// The running numbers, behind a shared reference.
#[derive(Default)]
pub(crate) struct Tally {
    numbers: Cell<Counters>,
}

impl Tally {
    pub(crate) fn read(&self) -> Counters {
        self.numbers.get()
    }

    /// Changes the numbers.
    pub(crate) fn add(&self, change: impl FnOnce(&mut Counters)) {
        let mut numbers = self.numbers.get();
        change(&mut numbers);
        self.numbers.set(numbers);
    }
}
