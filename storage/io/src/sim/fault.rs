//! Faults that a test plants in a simulated disk, and the points at which it cuts the power.
//!
//! Owns the choice of which operation is hit. Never carries a fault out; `disk.rs` does.

use std::time::Duration;

/// What kind of operation a disk is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Reading bytes of a file.
    Read,
    /// Writing bytes of a file.
    Write,
    /// Flushing a file (`fdatasync`, `fsync`).
    Flush,
    /// Flushing a directory's entries.
    SyncDirectory,
    /// Creating, renaming, removing, setting a length, allocating space, opening, listing.
    Metadata,
}

/// What happens to an operation that a [`Fault`] hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails with this `errno`. A failed flush loses what it should have written (see the fault model); a failed write has
    /// written nothing.
    Fail(i32),
    /// A write ends after this many bytes and says so.
    Short(usize),
    /// A read delivers one wrong bit; the medium itself is sound.
    FlipBit,
    /// It takes this much virtual time more.
    Hang(Duration),
}

/// One planted fault: the operations that it counts, the first that it hits, how many it hits.
#[derive(Clone, Debug)]
pub struct Fault {
    on: OperationKind,
    path: Option<String>,
    skip: u64,
    times: u64,
    effect: Effect,
}

impl Fault {
    /// Hits the next operation of this kind, once.
    pub fn next(on: OperationKind, effect: Effect) -> Fault {
        Fault { on, path: None, skip: 0, times: 1, effect }
    }

    /// Counts only operations on paths that contain `part`.
    pub fn on_path(mut self, part: &str) -> Fault {
        self.path = Some(part.to_owned());
        self
    }

    /// Lets `count` operations pass first.
    pub fn after(mut self, count: u64) -> Fault {
        self.skip = count;
        self
    }

    /// Hits `count` operations in a row.
    pub fn times(mut self, count: u64) -> Fault {
        self.times = count;
        self
    }

    /// Hits every operation from then on.
    pub fn for_ever(self) -> Fault {
        self.times(u64::MAX)
    }

    /// The effect on this operation, if the fault hits it.
    pub(crate) fn hit(&mut self, on: OperationKind, path: &std::path::Path) -> Option<Effect> {
        let counted = self.on == on && self.path.as_ref().is_none_or(|part| path.to_string_lossy().contains(part));
        if !counted || self.times == 0 {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times -= 1;
        Some(self.effect)
    }
}

/// When a disk loses power, counted from the start of the host (or from the last restart), zero being the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutPoint {
    /// While the nth write is in flight: some of it may have reached the medium.
    Write(u64),
    /// While the nth flush of a file or directory is in flight.
    Flush(u64),
    /// At the nth step; each operation that changes something makes two: issued, and completed but not yet reported.
    Step(u64),
}

/// What a disk was asked for since its host started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Reads issued.
    pub reads: u64,
    /// Writes issued.
    pub writes: u64,
    /// Flushes of files issued.
    pub flushes: u64,
    /// Flushes of directories issued.
    pub directory_syncs: u64,
    /// Other operations issued.
    pub metadata: u64,
    /// Issues and completions of everything that changes the disk; see [`CutPoint::Step`].
    pub steps: u64,
    /// Writes that went past the page cache.
    pub direct_writes: u64,
    /// Of those, the ones to blocks that were not written before, or behind the length when they were issued.
    pub direct_writes_not_in_place: u64,
    /// Pairs of a direct write and another in flight that touch the same bytes: which of them wins is open.
    pub overlapping_writes: u64,
    /// Bytes that were to be written.
    pub bytes_written: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// The most bytes of reads that were in flight at a time.
    pub reads_in_flight_bytes_max: u64,
}

impl DiskCounters {
    pub(crate) fn issued(&mut self, kind: OperationKind) {
        match kind {
            OperationKind::Read => self.reads += 1,
            OperationKind::Write => self.writes += 1,
            OperationKind::Flush => self.flushes += 1,
            OperationKind::SyncDirectory => self.directory_syncs += 1,
            OperationKind::Metadata => self.metadata += 1,
        }
    }

    /// Whether the operation of this kind that was just issued is the one to cut at.
    pub(crate) fn reached(&self, point: CutPoint, kind: OperationKind) -> bool {
        match point {
            CutPoint::Write(nth) => kind == OperationKind::Write && self.writes == nth + 1,
            CutPoint::Flush(nth) => {
                matches!(kind, OperationKind::Flush | OperationKind::SyncDirectory)
                    && self.flushes + self.directory_syncs == nth + 1
            }
            CutPoint::Step(nth) => self.steps > nth,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_fault_counts_only_its_own_operations() {
        let mut fault = Fault::next(OperationKind::Write, Effect::Fail(libc::EIO)).on_path(".log").after(1).times(2);
        let mut hit = |on, path| fault.hit(on, Path::new(path)).is_some();
        assert!(!hit(OperationKind::Flush, "/0.log"));
        assert!(!hit(OperationKind::Write, "/0.index"));
        assert!(!hit(OperationKind::Write, "/0.log"), "one passes");
        assert!(hit(OperationKind::Write, "/0.log"));
        assert!(hit(OperationKind::Write, "/1.log"));
        assert!(!hit(OperationKind::Write, "/0.log"), "and it is spent");
    }
}
