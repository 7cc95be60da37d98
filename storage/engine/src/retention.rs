//! Removing: what is too old or too much, what DeleteRecords asks for, what a truncation cuts; and closing a log.
//!
//! The order is always the same: the limits move in memory, a checkpoint says so durably, then files go. A crash in
//! between leaves files that recovery removes; it never leaves a hole. Retention stops at the high watermark (case 11).

use std::time::Duration;

use heddle_record::{LogStartOffset, Offset, Timestamp};

use crate::checkpoint::Busy;
use crate::engine::Engine;
use crate::error::{Error, ReadError};
use crate::index::IndexBuilder;
use crate::layout::{RECYCLED_FILE, SegmentFile};
use crate::log::{Log, LogInner};
use crate::recovery::remove_segment_files;
use crate::segment_index::Indexes;
use crate::state::{Boundary, LogState};

/// Smaller segments are not worth a file that is kept.
const RECYCLED_BYTES_MIN: u64 = 64 << 10;

impl Engine {
    /// Deletes what retention no longer wants, on all logs of this core.
    ///
    /// # Errors
    /// The first failure; the rest is tried next time.
    pub async fn apply_retention(&self) -> Result<(), Error> {
        let applied = self.retain_all().await;
        applied.inspect_err(|error| self.data_dir().note_failure(error))
    }

    async fn retain_all(&self) -> Result<(), Error> {
        let now = Timestamp::new(self.inner.core.io.wall_clock());
        let mut shortened = Vec::new();
        let mut first_error = None;
        for log in self.logs() {
            // A log that met a full disk is helped by nothing more.
            if log.offline().is_some_and(|error| !error.is_no_space()) {
                continue;
            }
            match log.inner.retain(now).await {
                Ok(true) => shortened.push(log),
                Ok(false) => {}
                Err(error) => {
                    self.data_dir().note_failure(&error);
                    first_error = first_error.or(Some(error));
                }
            }
        }
        if !shortened.is_empty() {
            self.save(Busy::Lately).await?;
        }
        for log in shortened {
            log.inner.remove_below_start().await?;
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Deletes the records of a log before `offset`: none of them is read again, whatever happens. Returns the new start
    /// of the log.
    ///
    /// # Errors
    /// [`ReadError::OutOfRange`] above the high watermark; [`ReadError::Failed`].
    pub async fn delete_records_before(&self, log: &Log, offset: Offset) -> Result<LogStartOffset, ReadError> {
        {
            // Not while a log that met a full disk is opened again. It can be deleted from all the same.
            let _turn = log.inner.exclusive().await;
            log.offline().filter(|error| !error.is_no_space()).map_or(Ok(()), Err)?;
            let mut state = log.inner.state.borrow_mut();
            if offset > state.high_watermark || offset < Offset::ZERO {
                let offsets = state.offsets(&log.config());
                return Err(ReadError::OutOfRange { log_start: offsets.log_start, log_end: offsets.log_end });
            }
            state.advance_start(offset);
        }
        log.inner.limits_moved();
        // Only flushed records have a place in a checkpoint.
        let log_start = log.inner.state.borrow().log_start;
        let flushed = log.inner.state.borrow().flushed.offset;
        if let Some(last) = log_start.checked_add(-1).filter(|last| *last >= flushed) {
            log.flushed(last).await?;
        }
        self.save(Busy::Lately).await?;
        let removed = log.inner.remove_below_start().await;
        removed.inspect_err(|error| self.data_dir().note_failure(error))?;
        Ok(LogStartOffset::at(log_start))
    }

    /// Cuts a log back: afterwards it ends at `offset`, or at the start of the batch that contains it. For followers; the
    /// caller makes sure that nobody appends meanwhile. Returns the new end.
    ///
    /// # Errors
    /// [`Error::Offline`] and the disk's; the log goes offline if it is not known what was cut.
    ///
    /// # Panics
    /// If `offset` is below the high watermark or the log's start.
    pub async fn truncate_to(&self, log: &Log, offset: Offset) -> Result<Offset, Error> {
        let inner = &log.inner;
        let _turn = inner.exclusive().await;
        inner.offline().map_or(Ok(()), Err)?;
        log.flush().await?;
        {
            let mut state = inner.state.borrow_mut();
            assert!(offset >= state.high_watermark, "what is committed is not truncated");
            // Epochs are cleaned even where no record goes (case 6).
            state.epochs.truncate_from_end(offset);
            if offset >= state.log_end {
                return Ok(state.log_end);
            }
        }
        inner.touch().await?;
        let readers = inner.readers.acquire(1).await;
        let located = inner.locate(offset).await?;
        drop(readers);
        let Some(end) = located else { return Ok(inner.state.borrow().log_end) };
        let below_recovery_point = end.offset < inner.state.borrow().recovery_point.offset;
        let (gone, producers_lost) = inner.state.borrow_mut().truncate(end);
        if below_recovery_point {
            self.save(Busy::Lately).await?;
        }
        let cut = inner.cut_files(end, &gone).await;
        if let Err(error) = cut {
            inner.core.dir.note_failure(&error);
            inner.take_offline(&error);
            return Err(error);
        }
        if producers_lost {
            inner.reread_producers().await?;
        }
        inner.limits_moved();
        Ok(end.offset)
    }
}

impl LogInner {
    /// Moves the log's start up past segments that are too old or too many. Whether there are segments below it, of now or
    /// of a time when the disk refused to let them go.
    async fn retain(self: &std::rc::Rc<Self>, now: Timestamp) -> Result<bool, Error> {
        let config = std::rc::Rc::clone(&self.config.borrow());
        if !config.cleanup_policy.deletes() {
            return Ok(false);
        }
        let _turn = self.exclusive().await;
        let is_online = self.offline().is_none();
        let active_goes = is_online && {
            let mut state = self.state.borrow_mut();
            let keeps_nothing = config.retention_bytes == Some(0);
            let is_old = config.retention_age.is_some_and(|age| is_old(state.active(), age, now));
            (keeps_nothing || is_old) && state.active_is_settled()
        };
        if active_goes {
            self.seal_idle_active().await?;
        }
        let mut state = self.state.borrow_mut();
        let new_start = state.start_after_retention(config.retention_age, config.retention_bytes, now);
        let moved = new_start > state.log_start;
        if moved {
            tracing::info!(log = %self.name, from = state.log_start.get(), to = new_start.get(), "retention moves the log's start");
            state.advance_start(new_start);
        }
        let has_more_below = state.segments.get(1).is_some_and(|second| second.base_offset <= state.log_start);
        drop(state);
        if moved {
            self.limits_moved();
        }
        Ok(moved || has_more_below)
    }

    /// Seals an active segment that has records, all of them flushed; nobody appends meanwhile. The log must go on
    /// somewhere: the new segment's file is durable at once, so that the end of the log is known even without a checkpoint.
    async fn seal_idle_active(self: &std::rc::Rc<Self>) -> Result<(), Error> {
        self.touch().await?;
        let base_offset = self.state.borrow_mut().roll();
        self.create_segment(base_offset).await?;
        self.io().sync_dir(&self.path).await?;
        self.state.borrow_mut().settle_empty_segment();
        self.complete_indexes_later();
        Ok(())
    }

    /// Seals the active segment so that what is in it can be compacted, if nobody is appending to it.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) async fn roll_active(self: &std::rc::Rc<Self>) -> Result<(), Error> {
        let Some(_turn) = self.try_exclusive() else { return Ok(()) };
        let is_idle = {
            let mut state = self.state.borrow_mut();
            let (end, flushed) = (state.log_end, state.flushed.offset);
            state.offline.is_none() && !state.writing && !state.flushing && flushed == end && state.active().size > 0
        };
        if is_idle { self.seal_idle_active().await } else { Ok(()) }
    }

    /// Removes the segments that lie wholly below the log's start, which is durable by now.
    async fn remove_below_start(&self) -> Result<(), Error> {
        let _turn = self.index_turn.acquire(1).await;
        let (gone, closed) = self.state.borrow_mut().take_segments_below_start();
        self.core.dirty_files.set(self.core.dirty_files.get() - closed);
        for (base_offset, size) in gone {
            let is_read = self.forget_files(base_offset);
            if !is_read && self.is_worth_keeping(size) {
                self.keep_for_next(base_offset, size).await?;
            }
            remove_segment_files(&self.core, &self.path, base_offset).await?;
        }
        // A start that believes the next checkpoint does not look for them again.
        match self.io().sync_dir(&self.path).await {
            Err(_) if self.state.borrow().deleted => Ok(()),
            synced => Ok(synced?),
        }
    }

    /// Removes what lies behind `end` from the disk, durably.
    async fn cut_files(&self, end: Boundary, gone: &[Offset]) -> Result<(), Error> {
        let _turn = self.index_turn.acquire(1).await;
        for base_offset in gone.iter().rev() {
            self.forget_files(*base_offset);
            remove_segment_files(&self.core, &self.path, *base_offset).await?;
        }
        self.io().sync_dir(&self.path).await?;
        let file = self.open_file(end.segment, SegmentFile::Log, heddle_io::OpenOptions::read_write()).await?;
        self.core.device.truncate(self.io(), &file, end.position).await?;
        self.state.borrow_mut().space = None;
        if let Some(segment) = self.state.borrow_mut().segment(end.segment) {
            // Entries of the batches that are gone would be believed for those that take their place.
            segment.index = IndexBuilder::default();
        }
        self.rebuild_index_locked(end.segment).await
    }

    /// Forgets the open files of a segment. Whether somebody still reads its batches.
    pub(crate) fn forget_files(&self, base_offset: Offset) -> bool {
        let [log, index, times] = SegmentFile::ALL.map(|kind| self.core.files.forget(self.file_key(base_offset, kind)));
        log | index | times
    }

    /// Whether the blocks of a segment that goes are kept for the next one.
    fn is_worth_keeping(&self, size: u64) -> bool {
        let state = self.state.borrow();
        self.core.device.is_direct()
            && state.recycled.is_none()
            && size >= RECYCLED_BYTES_MIN
            && state.offline.is_none()
    }

    /// Keeps the blocks of a segment that goes for the next one of this log, where every offset in them lies below it.
    async fn keep_for_next(&self, base_offset: Offset, size: u64) -> Result<(), Error> {
        let file = self.path.join(SegmentFile::Log.name(base_offset));
        self.core.device.recycle(self.io(), &file, Some(&self.path.join(RECYCLED_FILE))).await?;
        self.state.borrow_mut().recycled = Some(size);
        Ok(())
    }

    /// Reads again which producers wrote what is left of the log.
    async fn reread_producers(&self) -> Result<(), Error> {
        let segments: Vec<Offset> = self.state.borrow().segments.iter().map(|segment| segment.base_offset).collect();
        let now = Timestamp::new(self.io().wall_clock());
        let mut table = crate::producer_state::ProducerTable::default();
        for base_offset in segments {
            let end = self.readable_end(base_offset);
            if end == 0 {
                continue;
            }
            let mut scan = self.scan_headers(base_offset, 0, end).await?;
            while let Some(batch) = scan.next(self.io()).await? {
                table.replay(&batch.header, now);
            }
        }
        self.state.borrow_mut().producers = table;
        Ok(())
    }

    /// Flushes, completes the index files, and takes no more appends.
    ///
    /// # Errors
    /// What could not be made durable; none if the log was offline before.
    pub(crate) async fn close(self: &std::rc::Rc<Self>) -> Result<(), Error> {
        let log = Log { inner: std::rc::Rc::clone(self) };
        let _pass = self.compaction.turn.acquire(1).await;
        let _turn = self.exclusive().await;
        if self.offline().is_some() {
            return Ok(());
        }
        log.flush().await?;
        self.create_empty_active().await?;
        self.trim_active().await?;
        if self.state.borrow_mut().recycled.take().is_some() {
            self.core.device.recycle(self.io(), &self.path.join(RECYCLED_FILE), None).await?;
        }
        {
            let mut state = self.state.borrow_mut();
            state.active().index.seal();
        }
        self.write_indexes(Indexes::All).await?;
        self.go_offline(&Error::Offline("the log was closed".into()));
        Ok(())
    }

    /// Cuts off what was prepared for appends that did not come. Nothing depends on it: recovery tells prepared space from
    /// batches.
    async fn trim_active(&self) -> Result<(), Error> {
        let (base_offset, untrimmed) = {
            let mut state = self.state.borrow_mut();
            let untrimmed = state.space.take().is_some();
            let active = state.active();
            (active.base_offset, untrimmed && active.on_disk)
        };
        if untrimmed { self.trim(base_offset).await } else { Ok(()) }
    }

    /// Makes the file of an active segment that has none yet, if the log has others: its name tells where the log ends.
    async fn create_empty_active(&self) -> Result<(), Error> {
        let base_offset = {
            let mut state = self.state.borrow_mut();
            let others = state.segments.len() > 1;
            let active = state.active();
            (others && !active.on_disk).then_some(active.base_offset)
        };
        if let Some(base_offset) = base_offset {
            self.create_segment(base_offset).await?;
            self.io().sync_dir(&self.path).await?;
            self.state.borrow_mut().active().entry_synced = true;
        }
        Ok(())
    }
}

impl LogState {
    /// Moves the log's start up; never back, never past the high watermark.
    fn advance_start(&mut self, offset: Offset) {
        if offset > self.log_start {
            assert!(offset <= self.high_watermark, "nothing above the high watermark is deleted");
            self.log_start = offset;
            self.epochs.truncate_from_start(offset);
            self.unsaved = true;
            self.check_order();
        }
    }

    /// Whether the active segment has records, all of them committed and flushed.
    fn active_is_settled(&mut self) -> bool {
        let idle = self.high_watermark == self.log_end && self.flushed.offset == self.log_end;
        idle && self.active().size > 0
    }

    /// The limits follow a roll that no append comes after.
    fn settle_empty_segment(&mut self) {
        let active = self.active();
        active.on_disk = true;
        active.entry_synced = true;
        let end = Boundary { offset: active.base_offset, segment: active.base_offset, position: 0 };
        if self.flushed.offset == end.offset && self.written.offset == end.offset {
            (self.written, self.flushed) = (end, end);
            (self.written_max, self.flushed_max) = (None, None);
        }
    }

    /// Where the log starts once retention is done: at the first segment that is neither too old nor too much.
    fn start_after_retention(&self, age: Option<Duration>, bytes: Option<u64>, now: Timestamp) -> Offset {
        let mut total: u64 = self.segments.iter().map(|segment| segment.size).sum();
        let mut start = self.log_start;
        for pair in self.segments.windows(2) {
            let (segment, next) = (&pair[0], pair[1].base_offset);
            let too_old = age.is_some_and(|age| is_old(segment, age, now));
            let too_much = bytes.is_some_and(|bytes| total - segment.size >= bytes);
            if next > self.high_watermark || !(too_old || too_much) {
                break;
            }
            total -= segment.size;
            start = start.max(next);
        }
        start
    }

    /// Takes away the segments wholly below the log's start. Returns them, and how many files were held open.
    fn take_segments_below_start(&mut self) -> (Vec<(Offset, u64)>, usize) {
        // The flushed end's segment stays: the recovery point lies in it.
        let limit = self.log_start.min(self.recovery_point.segment);
        let count = self.segments.windows(2).take_while(|pair| pair[1].base_offset <= limit).count();
        let gone: Vec<(Offset, u64)> =
            self.segments.drain(..count).map(|segment| (segment.base_offset, segment.size)).collect();
        let before = self.dirty.len();
        self.dirty.retain(|dirty| gone.iter().all(|(base_offset, _)| *base_offset != dirty.segment));
        (gone, before - self.dirty.len())
    }

    /// Makes `end` the end of the log, in memory. Returns the segments that go, and whether producers must be read again.
    fn truncate(&mut self, end: Boundary) -> (Vec<Offset>, bool) {
        self.truncations += 1;
        self.forget_landmarks();
        self.tail.borrow_mut().clear();
        let kept = self.segments.partition_point(|segment| segment.base_offset <= end.segment);
        let gone = self.segments.drain(kept..).map(|segment| segment.base_offset).collect();
        let active = self.active();
        active.size = end.position;
        active.index_complete = false;
        active.checked = None;
        self.log_end = end.offset;
        (self.written, self.flushed) = (end, end);
        self.recovery_point = if self.recovery_point.offset > end.offset { end } else { self.recovery_point };
        self.vouched_for = self.vouched_for.min(end.segment);
        self.epochs.truncate_from_end(end.offset);
        let producers_lost = self.producers.truncate_from_end(end.offset);
        self.unsaved = true;
        (gone, producers_lost)
    }
}

/// Whether the last record of a segment is older than `age`. A timestamp from the future counts as the time of its
/// append, so that it keeps nothing for ever (case 63); records without timestamps too.
fn is_old(segment: &crate::segment::Segment, age: Duration, now: Timestamp) -> bool {
    let appended = segment.last_append_at;
    let newest = match (segment.index.max(), appended) {
        (Some(max), Some(appended)) => Some(max.timestamp.min(appended)),
        (Some(max), None) => Some(max.timestamp),
        (None, appended) => appended,
    };
    let Some(newest) = newest else { return false };
    let idle = now.get().saturating_sub(newest.get());
    u128::try_from(idle).is_ok_and(|idle| idle > age.as_millis())
}
