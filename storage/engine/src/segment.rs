//! A segment, and how batches get into its file: one gathered write at a known position.
//!
//! Owns the one write of a log that is in flight at any time (batches that were queued meanwhile go out together in the
//! next), and the creation of a segment's file before its first write. A failed write takes the log offline; it is never
//! tried again, because how much of it is on disk is not known.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use heddle_io::{File, Lease, OpenOptions};
use heddle_record::{LogId, Offset, Timestamp};

use crate::checked::CheckedRanges;
use crate::cold::Commit;
use crate::config::{LogConfig, PlantedBug};
use crate::error::Error;
use crate::index::{IndexBuilder, OFFSET_ENTRY_LEN, TimeEntry};
use crate::layout::{RECYCLED_FILE, SegmentFile};
use crate::log::LogInner;
use crate::space::Space;
use crate::state::{Boundary, DirtyFile, LogState, QueuedBatch};
use crate::tail::BLOCK;

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
    /// What the medium has lost of it; it is not read then.
    pub(crate) damage: Option<Error>,
    /// What was checked of it since it came from the disk, once it is sealed.
    pub(crate) checked: Option<Rc<RefCell<CheckedRanges>>>,
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
            damage: None,
            checked: None,
        }
    }

    /// Whether the next append, of `len` bytes and with this last offset, goes to a new segment.
    pub(crate) fn must_roll(
        &self,
        len: u64,
        last_offset: Offset,
        now: Timestamp,
        config: &LogConfig,
        log: LogId,
    ) -> bool {
        if self.size == 0 {
            return false;
        }
        let age = self.first_append_at.map_or(0, |first| now.get().saturating_sub(first.get()));
        let index_bytes = (self.index.offset_entries() as usize + 1) * OFFSET_ENTRY_LEN;
        let reach = last_offset.distance_from(self.base_offset).expect("offsets of a log are not negative");
        self.size + len > u64::from(config.segment_bytes)
            || u64::try_from(age)
                .is_ok_and(|age| Duration::from_millis(age) >= config.segment_lifetime(log, self.base_offset))
            || index_bytes > config.segment_index_bytes as usize
            || reach > i64::from(i32::MAX)
    }
}

/// How often, and after which pause, a segment is opened again where the process has no descriptor left.
const OPEN_TRIES: usize = 20;
const OPEN_PAUSE: Duration = Duration::from_millis(25);
/// A log without a write for this long gives back the space that was prepared for it.
pub(crate) const IDLE_AFTER: Duration = Duration::from_millis(500);
/// Bytes of one write at most; a larger batch goes alone.
const BURST_BYTES_MAX: usize = 4 << 20;

/// Neighbouring batches of one segment, to be written with one call.
#[derive(Clone)]
struct Burst {
    segment: Offset,
    position: u64,
    /// Their bytes, where these are not in the log's tail.
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
                    if error.is_refusal() {
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
        if !self.config.borrow().uses_reserve {
            self.check_room()?;
            return self.write_burst_once(burst).await;
        }
        // The same bytes at the same place: it does not matter how many of them the first try has written.
        self.core.with_reserve(async || self.write_burst_once(burst.clone()).await).await
    }

    /// # Errors
    /// No space, where what is left is for what frees some.
    pub(crate) fn check_room(&self) -> Result<(), Error> {
        if self.config.borrow().uses_reserve || !self.core.dir.is_short() {
            return Ok(());
        }
        let full = std::io::ErrorKind::StorageFull;
        Err(heddle_io::Error::new("write", full, "the disk is full").with_path(&self.path).into())
    }

    async fn write_burst_once(&self, burst: Burst) -> Result<(), Error> {
        self.touch().await?;
        let file = self.file_to_write_patiently(burst.segment).await?;
        if self.core.device.is_direct() {
            self.write_blocks(&file, &burst).await
        } else {
            self.core.device.write(self.io(), &file, burst.position, burst.pieces).await
        }
    }

    /// Writes the blocks that hold a burst: the first again, with what was written to it before, the last filled up with
    /// zeros. A power cut leaves each sector old or new, and what was in it before is the same in both.
    async fn write_blocks(&self, file: &File, burst: &Burst) -> Result<(), Error> {
        let end = burst.position + burst.bytes as u64;
        let (from, to) = (burst.position - burst.position % BLOCK, end.next_multiple_of(BLOCK));
        let limit = u64::from(self.config.borrow().segment_bytes);
        let growth = self.state.borrow_mut().space_of(burst.segment).growth(burst.bytes as u64, to, limit);
        if let Some((allocated, until)) = growth.allocate {
            self.io().allocate(file, allocated, until - allocated).await?;
            self.state.borrow_mut().space_of(burst.segment).allocated(until);
        }
        let mut pieces = self.state.borrow().tail.borrow().blocks(burst.segment, from, end);
        pieces.extend(heddle_io::zeros(growth.zeros as usize));
        self.state.borrow_mut().note_unsettled(burst.segment, end, growth.in_place);
        self.core.commit(Commit::Write, self.core.device.write(self.io(), file, from, pieces)).await?;
        self.state.borrow_mut().space_of(burst.segment).touch(to + growth.zeros);
        Ok(())
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
        let held =
            self.state.borrow().dirty.iter().find(|dirty| dirty.segment == segment).map(|dirty| dirty.file.clone());
        if let Some(file) = held {
            return Ok(file);
        }
        let on_disk = self.state.borrow_mut().segment(segment).is_some_and(|segment| segment.on_disk);
        let file = if on_disk { self.open_to_write(segment).await? } else { self.create_segment(segment).await? };
        let mut state = self.state.borrow_mut();
        state.dirty.push(DirtyFile { segment, file: file.clone(), unsettled_to: 0 });
        self.core.dirty_files.set(self.core.dirty_files.get() + 1);
        Ok(file)
    }

    /// A segment's file, opened as the device writes it.
    async fn open_to_write(&self, segment: Offset) -> Result<File, Error> {
        let key = self.write_key(segment);
        if let Some(file) = self.core.files.find(key) {
            return Ok(file);
        }
        let file = self.core.device.open(self.io(), &key.path(&self.path), OpenOptions::read_write()).await?;
        self.core.files.insert(key, file.clone());
        Ok(file)
    }

    /// Brings the last block of the log's end into memory, which the next append goes on in.
    ///
    /// # Errors
    /// Whatever reading it gives; [`Error::Damaged`] if the file ends before it.
    pub(crate) async fn load_last_block(&self) -> Result<(), Error> {
        let (segment, size) = {
            let mut state = self.state.borrow_mut();
            let active = state.active();
            (active.base_offset, active.size)
        };
        let (from, len) = (size - size % BLOCK, (size % BLOCK) as usize);
        let file = self.open_file(segment, SegmentFile::Log, OpenOptions::read_write()).await?;
        let bytes = self.io().read_lease(&file, from, len).await?;
        if bytes.len() < len {
            let reason = "the file ends before its last batch does".to_owned();
            return Err(Error::Damaged { path: file.path().to_owned(), position: from, offset: Offset::NONE, reason });
        }
        let tail = Rc::clone(&self.state.borrow().tail);
        self.core.tails.append(&tail, segment, from, &bytes);
        tail.borrow_mut().note_written(segment, size);
        Ok(())
    }

    /// Makes the file of a new segment. Its directory entry is not durable yet.
    ///
    /// # Errors
    /// No space, too many files, the disk's.
    pub(crate) async fn create_segment(&self, segment: Offset) -> Result<File, Error> {
        let key = self.write_key(segment);
        let recycled = self.state.borrow_mut().recycled.take();
        let from = recycled.map(|_| self.path.join(RECYCLED_FILE));
        let file = self.core.device.prepare(self.io(), &key.path(&self.path), from.as_deref()).await?;
        self.core.files.insert(key, file.clone());
        let mut state = self.state.borrow_mut();
        if let Some(len) = recycled {
            // Every block was written and flushed when it belonged to a segment that is gone.
            state.space = Some(Space::of_file(segment, len, len));
        }
        if let Some(segment) = state.segment(segment) {
            segment.on_disk = true;
        }
        drop(state);
        Ok(file)
    }

    /// Cuts off the space behind the last batch of a segment that gets no more of them, so that its file is what Kafka's
    /// tools expect.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) async fn trim(&self, segment: Offset) -> Result<(), Error> {
        let size = self.state.borrow_mut().segment(segment).map(|segment| segment.size);
        let Some(size) = size.filter(|_| self.core.device.is_direct()) else { return Ok(()) };
        let file = self.open_file(segment, SegmentFile::Log, OpenOptions::read_write()).await?;
        Ok(self.io().set_len(&file, size).await?)
    }

    /// Gives back what was prepared for a log that has been idle, so that Kafka's tools read its file and its space serves
    /// others. Whether it is to be looked at again.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) async fn trim_if_idle(&self) -> Result<bool, Error> {
        let Some(_turn) = self.try_exclusive() else { return Ok(true) };
        let segment = {
            let mut state = self.state.borrow_mut();
            if state.offline.is_some() || state.deleted {
                return Ok(false);
            }
            if !state.queue.is_empty() || state.writing || state.flushing {
                return Ok(true);
            }
            let (active, size) = {
                let active = state.active();
                (active.base_offset, active.size)
            };
            let is_ahead = state.space.is_some_and(|space| space.segment == active && space.is_ahead_of(size));
            // A relaxed topic keeps its space until it is flushed.
            if state.written != state.flushed || !is_ahead {
                return Ok(false);
            }
            active
        };
        if self.io().now().since(self.written_at.get()) < IDLE_AFTER {
            return Ok(true);
        }
        self.trim(segment).await?;
        self.state.borrow_mut().space = None;
        Ok(false)
    }

    /// Moves the written end, wakes who waits for it, and asks for a flush if the topic wants one.
    fn publish_written(self: &Rc<Self>, bytes: usize, end: Boundary, max: Option<TimeEntry>) {
        if self.core.device.is_direct() {
            self.written_at.set(self.io().now());
            if !self.is_watched.replace(true) {
                self.core.watch(self);
            }
        }
        let mut state = self.state.borrow_mut();
        state.pending_bytes -= bytes;
        if state.offline.is_some() {
            return;
        }
        let began_segment = state.written.segment != end.segment;
        state.written = end;
        state.written_max = max;
        state.tail.borrow_mut().note_written(end.segment, end.position);
        state.remember(end);
        state.check_order();
        state.written_waiters.wake_below(end.offset);
        let acknowledges_early = self.core.config.planted_bug == PlantedBug::AckBeforeFlush;
        if acknowledges_early {
            (state.flushed, state.flushed_max) = (end, max);
            state.flushed_waiters.wake_below(end.offset);
        }
        drop(state);
        self.flush_if_due();
        if began_segment && self.config.borrow().cleanup_policy.compacts() {
            self.core.cleaner.consider(self.name.id);
        }
        if began_segment || self.index_is_due() {
            self.complete_indexes_later();
        }
        if self.config.borrow().relaxes_flushing() || acknowledges_early {
            self.limits_moved();
        }
    }
}

impl LogState {
    /// Whether the next append can go on behind the log's end in memory.
    pub(crate) fn tail_is_ready(&mut self) -> bool {
        let active = self.active();
        let (segment, position) = (active.base_offset, active.size);
        self.tail.borrow().is_ready(segment, position)
    }

    /// The blocks of the segment that is written. Where nothing is known of them, because the log has rolled or its file was
    /// cut, the file ends where what is flushed does.
    fn space_of(&mut self, segment: Offset) -> &mut Space {
        let size = if segment == self.flushed.segment { self.flushed.position } else { 0 };
        let known = self.space.filter(|space| space.segment == segment);
        self.space.insert(known.unwrap_or_else(|| Space::of_file(segment, size, size)))
    }

    /// Notes whether bytes up to `end` go to blocks that only the file's own flush makes durable.
    fn note_unsettled(&mut self, segment: Offset, end: u64, in_place: bool) {
        let dirty = self.dirty.iter_mut().find(|dirty| dirty.segment == segment);
        if let (Some(dirty), false) = (dirty, in_place) {
            dirty.unsettled_to = end;
        }
    }

    fn next_burst(&mut self) -> Option<Burst> {
        let first = self.queue.front()?;
        let (segment, position) = (first.segment, first.position);
        let pieces = if first.bytes.is_some() { Vec::with_capacity(2 * self.queue.len()) } else { Vec::new() };
        let mut burst = Burst { segment, position, pieces, bytes: 0, end: self.written, max: None };
        while let Some(batch) = self.queue.front() {
            let fits = burst.bytes == 0 || burst.bytes + batch.len <= BURST_BYTES_MAX;
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
        self.bytes += batch.len;
        self.end =
            Boundary { offset: batch.next_offset, segment: batch.segment, position: batch.position + batch.len as u64 };
        self.max = batch.max;
        if let Some((header, body)) = batch.bytes {
            self.pieces.push(header);
            if !body.is_empty() {
                self.pieces.push(body);
            }
        }
    }
}
