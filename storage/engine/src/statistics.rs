//! What one core's engine has done and has: numbers for whoever watches the broker.
//!
//! Owns the counts that nothing else needs ([`Meters`]) and the copies that leave the core ([`Statistics`],
//! [`LogStatistics`]). Plain numbers, written and read on the core itself; nothing is decided by them.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use heddle_io::{Io, Latencies, LatencyCounts, Monotonic};
use heddle_record::{HighWatermark, LogEndOffset, LogStartOffset};

use crate::compaction::Compacted;
use crate::engine::Engine;
use crate::error::Error;
use crate::log::Log;

/// One core's engine, at a moment. Counts begin when the engine opened.
#[derive(Debug, Clone)]
pub struct Statistics {
    /// How logs are kept: `direct` or `buffered`.
    pub device: &'static str,
    /// How long flushes took that ended, well or not: the shared ones as each core waited for them.
    pub flushes: LatencyCounts,
    /// Flushes that failed.
    pub flush_failures: u64,
    /// How long the oldest flush is under way that has not ended; zero if none is.
    pub flush_oldest: Duration,
    /// Reads of logs, by where their bytes came from.
    pub reads: ReadStatistics,
    /// Bytes that the ends of logs take in memory.
    pub tail_bytes: usize,
    /// And how many they may.
    pub tail_bytes_max: usize,
    /// Bytes of batches that were accepted and are not written yet.
    pub pending_bytes: usize,
    /// Producers that all logs remember.
    pub producers: usize,
    /// Passes of the compaction that ended, and what they did.
    pub compaction: CompactionStatistics,
    /// What the scrub has done.
    pub scrub: ScrubStatistics,
}

/// Where the bytes of reads came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadStatistics {
    /// Reads whose bytes were all in the log's end in memory.
    pub from_memory: u64,
    /// Reads that took some from a file.
    pub from_files: u64,
    /// Bytes from memory.
    pub memory_bytes: u64,
    /// Bytes from files.
    pub file_bytes: u64,
}

/// What the compaction has done.
#[derive(Debug, Clone, Copy, Default)]
pub struct CompactionStatistics {
    /// Passes over a log that ended.
    pub passes: u64,
    /// All of them together.
    pub done: Compacted,
    /// Logs that may have something to compact.
    pub candidates: usize,
}

/// What the scrub has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubStatistics {
    /// Rounds over all sealed segments that ended.
    pub rounds: u64,
    /// Segments that were looked at.
    pub segments: u64,
    /// Bytes that were checked.
    pub bytes: u64,
}

/// One log, at a moment.
#[derive(Debug, Clone, Copy)]
pub struct LogStatistics {
    /// First readable offset.
    pub log_start: LogStartOffset,
    /// End of what is committed.
    pub high_watermark: HighWatermark,
    /// Next offset to be written.
    pub log_end: LogEndOffset,
    /// Bytes of batches in all segments.
    pub size_bytes: u64,
    /// Segments.
    pub segments: usize,
    /// Segments that are damaged and not read.
    pub damaged_segments: usize,
    /// Whether it takes no appends.
    pub is_offline: bool,
}

impl Engine {
    /// What this core's engine has done and has, now. A few loads.
    pub fn statistics(&self) -> Statistics {
        let core = &self.inner.core;
        let meters = &core.meters;
        let now = core.io.now();
        let oldest = meters.flushing.borrow().iter().min().copied();
        Statistics {
            device: core.device.name(),
            flushes: meters.flushes.counts(),
            flush_failures: meters.flush_failures.get(),
            flush_oldest: oldest.map_or(Duration::ZERO, |began| now.since(began)),
            reads: meters.reads.get(),
            tail_bytes: core.tails.bytes(),
            tail_bytes_max: core.tails.bytes_max(),
            pending_bytes: core.pending(),
            producers: core.producers(),
            compaction: CompactionStatistics { candidates: core.cleaner.candidates(), ..meters.compaction.get() },
            scrub: meters.scrub.get(),
        }
    }
}

impl Log {
    /// The log, now. Costs a look at each of its segments.
    pub fn statistics(&self) -> LogStatistics {
        let offsets = self.offsets();
        let is_offline = self.offline().is_some();
        let state = self.inner.state.borrow();
        LogStatistics {
            log_start: offsets.log_start,
            high_watermark: offsets.high_watermark,
            log_end: offsets.log_end,
            size_bytes: state.segments.iter().map(|segment| segment.size).sum(),
            segments: state.segments.len(),
            damaged_segments: state.segments.iter().filter(|segment| segment.damage.is_some()).count(),
            is_offline,
        }
    }
}

/// Where the bytes of one read came from.
pub(crate) struct ReadBytes {
    pub(crate) memory: u64,
    pub(crate) files: u64,
}

/// The counts of one core that nothing but [`Statistics`] needs.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    flushes: Latencies,
    flush_failures: Cell<u64>,
    /// When the flushes began that are under way.
    flushing: RefCell<Vec<Monotonic>>,
    reads: Cell<ReadStatistics>,
    compaction: Cell<CompactionStatistics>,
    scrub: Cell<ScrubStatistics>,
}

impl Meters {
    /// Runs a flush and counts it.
    ///
    /// # Errors
    /// Those of `flush`.
    pub(crate) async fn flush<F: Future<Output = Result<(), Error>>>(&self, io: &Io, flush: F) -> Result<(), Error> {
        let began = io.now();
        self.flushing.borrow_mut().push(began);
        let flushed = flush.await;
        let mut flushing = self.flushing.borrow_mut();
        let place = flushing.iter().position(|other| *other == began).expect("it was put there when it began");
        flushing.swap_remove(place);
        self.flushes.record(io.now().since(began));
        if flushed.is_err() {
            self.flush_failures.set(self.flush_failures.get() + 1);
        }
        flushed
    }

    /// Counts a read.
    pub(crate) fn count_read(&self, read: ReadBytes) {
        let mut reads = self.reads.get();
        reads.from_memory += u64::from(read.files == 0);
        reads.from_files += u64::from(read.files > 0);
        reads.memory_bytes += read.memory;
        reads.file_bytes += read.files;
        self.reads.set(reads);
    }

    /// Counts a pass of the compaction.
    pub(crate) fn count_pass(&self, pass: &Compacted) {
        let mut compaction = self.compaction.get();
        compaction.passes += 1;
        compaction.done.add(pass);
        self.compaction.set(compaction);
    }

    /// Counts what the scrub has done.
    pub(crate) fn count_scrub(&self, more: ScrubStatistics) {
        let mut scrub = self.scrub.get();
        scrub.rounds += more.rounds;
        scrub.segments += more.segments;
        scrub.bytes += more.bytes;
        self.scrub.set(scrub);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::rc::Rc;

    use heddle_io::sim::Simulator;

    use super::*;

    #[test]
    fn flushes_are_counted_when_they_end_and_show_while_they_do_not() {
        let simulator = Simulator::new(1);
        let io = simulator.host("broker").start_core();
        let meters = Rc::new(Meters::default());
        let told = Rc::clone(&meters);
        let story = {
            let io = io.clone();
            async move {
                let slow = async {
                    io.sleep(Duration::from_millis(1)).await;
                    Ok(())
                };
                assert!(meters.flush(&io, slow).await.is_ok());
                let failed = async { Err(Error::Offline("the disk is gone".into())) };
                assert!(meters.flush(&io, failed).await.is_err());
                let hanging = meters.flush(&io, pending());
                assert!(io.timeout(Duration::from_secs(2), hanging).await.is_err());
            }
        };
        simulator.run(&io, story).expect("the story ends");
        let counts = told.flushes.counts();
        assert_eq!((counts.count(), told.flush_failures.get()), (2, 1));
        assert!(counts.sum() >= Duration::from_millis(1));
        assert_eq!(told.flushing.borrow().len(), 1, "what hangs is still under way");
    }

    #[test]
    fn a_read_with_bytes_of_a_file_is_one_from_files() {
        let meters = Meters::default();
        meters.count_read(ReadBytes { memory: 100, files: 0 });
        meters.count_read(ReadBytes { memory: 10, files: 1 });
        let expected = ReadStatistics { from_memory: 1, from_files: 1, memory_bytes: 110, file_bytes: 1 };
        assert_eq!(meters.reads.get(), expected);
    }
}
