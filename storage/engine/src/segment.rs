//! A segment, and how batches get into its file: one gathered write at a known position.
//!
//! Owns the one write of a log that is in flight at any time (batches that were queued meanwhile go out together in the
//! next), and the creation of a segment's file before its first write. A failed write takes the log offline; it is never
//! tried again, because how much of it is on disk is not known.

use std::rc::Rc;
use std::time::Duration;

use heddle_io::{File, Lease, OpenOptions};
use heddle_record::{Offset, Timestamp};

use crate::config::{LogConfig, PlantedBug};
use crate::error::Error;
use crate::index::{IndexBuilder, OFFSET_ENTRY_LEN, TimeEntry};
use crate::layout::SegmentFile;
use crate::log::LogInner;
use crate::state::{Boundary, LogState, QueuedBatch};

/// One segment, in memory.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) base_offset: Offset,
    /// Bytes of batches, those that are still to be written included. Never the length of a file.
    pub(crate) size: u64,
    pub(crate) index: IndexBuilder,
    /// Wall clock when its first batch was appended, ms.
    pub(crate) first_append_at: Option<Timestamp>,
    /// Wall clock when its last batch was appended, ms.
    pub(crate) last_append_at: Option<Timestamp>,
    /// The file exists. A segment without one is empty on disk.
    pub(crate) on_disk: bool,
    /// The file's directory entry survives a power cut.
    pub(crate) entry_synced: bool,
    /// It gets no more batches and its index files are complete.
    pub(crate) index_complete: bool,
}

impl Segment {
    /// An empty segment without a file.
    pub(crate) fn new(base_offset: Offset) -> Segment {
        Segment {
            base_offset,
            size: 0,
            index: IndexBuilder::default(),
            first_append_at: None,
            last_append_at: None,
            on_disk: false,
            entry_synced: false,
            index_complete: false,
        }
    }

    /// Whether the next append, of `len` bytes and with this last offset, goes to a new segment.
    pub(crate) fn must_roll(&self, len: u64, last_offset: Offset, now: Timestamp, config: &LogConfig) -> bool {
        if self.size == 0 {
            return false;
        }
        let age = self.first_append_at.map_or(0, |first| now.get().saturating_sub(first.get()));
        let index_bytes = (self.index.offset_entries() as usize + 1) * OFFSET_ENTRY_LEN;
        let reach = last_offset.distance_from(self.base_offset).expect("offsets of a log are not negative");
        self.size + len > u64::from(config.segment_bytes)
            || u128::try_from(age).is_ok_and(|age| age >= config.segment_age_max.as_millis())
            || index_bytes > config.segment_index_bytes as usize
            || reach > i64::from(i32::MAX)
    }
}

/// How often, and after which pause, a segment is opened again where the process has no descriptor left.
const OPEN_TRIES: usize = 20;
const OPEN_PAUSE: Duration = Duration::from_millis(25);
/// Bytes of one write at most; a larger batch goes alone.
const BURST_BYTES_MAX: usize = 4 << 20;

/// Neighbouring batches of one segment, to be written with one call.
struct Burst {
    segment: Offset,
    position: u64,
    pieces: Vec<Lease>,
    bytes: usize,
    end: Boundary,
    /// The largest timestamp of the segment, up to the end.
    max: Option<TimeEntry>,
}

impl LogInner {
    /// Makes sure that a task writes what is queued.
    pub(crate) fn start_writing(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        if state.writing || state.queue.is_empty() {
            return;
        }
        state.writing = true;
        drop(state);
        self.io().spawn(Rc::clone(self).write_queue()).detach();
    }

    async fn write_queue(self: Rc<Self>) {
        while let Some(burst) = self.take_burst() {
            let (bytes, end, max) = (burst.bytes, burst.end, burst.max);
            let written = self.write_burst(burst).await;
            self.core.release(bytes);
            match written {
                Ok(()) => self.publish_written(bytes, end, max),
                Err(error) => {
                    self.state.borrow_mut().pending_bytes -= bytes;
                    self.take_offline(&error);
                    if error.is_no_space() {
                        self.core.note_full(self.name.id);
                    }
                }
            }
        }
    }

    /// The next write, or `None` if there is nothing to write; the task then ends.
    fn take_burst(&self) -> Option<Burst> {
        let mut state = self.state.borrow_mut();
        let burst = state.next_burst();
        state.writing = burst.is_some();
        burst
    }

    async fn write_burst(&self, burst: Burst) -> Result<(), Error> {
        let file = self.file_to_write_patiently(burst.segment).await?;
        self.core.device.write(self.io(), &file, burst.position, burst.pieces).await
    }

    /// The segment's file. Where the process has no descriptor left, idle files are closed and it is tried again: nothing
    /// was written yet.
    async fn file_to_write_patiently(&self, segment: Offset) -> Result<File, Error> {
        for _ in 0..OPEN_TRIES {
            match self.file_to_write(segment).await {
                Err(error) if error.is_too_many_files() => self.core.files.close_all(),
                other => return other,
            }
            self.io().sleep(OPEN_PAUSE).await;
        }
        self.file_to_write(segment).await
    }

    /// The segment's file, made if this is its first write, and held open until what is written to it is flushed.
    async fn file_to_write(&self, segment: Offset) -> Result<File, Error> {
        let held = self.state.borrow().dirty.iter().find(|(base, _)| *base == segment).map(|(_, file)| file.clone());
        if let Some(file) = held {
            return Ok(file);
        }
        let on_disk = self.state.borrow_mut().segment(segment).is_some_and(|segment| segment.on_disk);
        let file = if on_disk {
            self.open_file(segment, SegmentFile::Log, OpenOptions::read_write()).await?
        } else {
            self.create_segment(segment).await?
        };
        let mut state = self.state.borrow_mut();
        state.dirty.push((segment, file.clone()));
        self.core.dirty_files.set(self.core.dirty_files.get() + 1);
        Ok(file)
    }

    /// Makes the file of a new segment. Its directory entry is not durable yet.
    ///
    /// # Errors
    /// No space, too many files, the disk's.
    pub(crate) async fn create_segment(&self, segment: Offset) -> Result<File, Error> {
        let key = self.file_key(segment, SegmentFile::Log);
        let file = self.core.device.prepare(self.io(), &key.path(&self.path)).await?;
        self.core.files.insert(key, file.clone());
        if let Some(segment) = self.state.borrow_mut().segment(segment) {
            segment.on_disk = true;
        }
        Ok(file)
    }

    /// Moves the written end, wakes who waits for it, and asks for a flush if the topic wants one.
    fn publish_written(self: &Rc<Self>, bytes: usize, end: Boundary, max: Option<TimeEntry>) {
        let mut state = self.state.borrow_mut();
        state.pending_bytes -= bytes;
        if state.offline.is_some() {
            return;
        }
        let began_segment = state.written.segment != end.segment;
        state.written = end;
        state.written_max = max;
        state.remember(end);
        state.check_order();
        state.written_waiters.wake_below(end.offset);
        if self.core.config.planted_bug == PlantedBug::AckBeforeFlush {
            (state.flushed, state.flushed_max) = (end, max);
            state.flushed_waiters.wake_below(end.offset);
            self.limits_moved();
        }
        drop(state);
        self.flush_if_due();
        if began_segment || self.index_is_due() {
            self.complete_indexes_later();
        }
        if self.config.borrow().relaxes_flushing() {
            self.limits_moved();
        }
    }
}

impl LogState {
    fn next_burst(&mut self) -> Option<Burst> {
        let first = self.queue.front()?;
        let (segment, position) = (first.segment, first.position);
        let mut burst = Burst { segment, position, pieces: Vec::new(), bytes: 0, end: self.written, max: None };
        while let Some(batch) = self.queue.front() {
            let fits = burst.bytes == 0 || burst.bytes + batch.len() <= BURST_BYTES_MAX;
            if batch.segment != segment || !fits {
                break;
            }
            let batch = self.queue.pop_front().expect("the queue has a first batch");
            burst.add(batch);
        }
        Some(burst)
    }
}

impl Burst {
    fn add(&mut self, batch: QueuedBatch) {
        assert_eq!(batch.position, self.position + self.bytes as u64, "batches of a write lie side by side");
        self.bytes += batch.len();
        self.end = Boundary {
            offset: batch.next_offset,
            segment: batch.segment,
            position: batch.position + batch.len() as u64,
        };
        self.max = batch.max;
        self.pieces.push(batch.header);
        if !batch.body.is_empty() {
            self.pieces.push(batch.body);
        }
    }
}
