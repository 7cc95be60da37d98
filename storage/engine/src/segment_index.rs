//! The index files of a log's segments: written in the background, looked up by readers, rebuilt when they do not fit.
//!
//! Owns `.index` and `.timeindex`. Nothing in them is needed for correctness: an entry is believed only if the batch that
//! it names is there, and a file that is missing, torn or wrong is written again from the batches.

use std::rc::Rc;

use heddle_io::{File, Lease, OpenOptions};
use heddle_record::{Offset, Timestamp};

use crate::error::Error;
use crate::index::{
    IndexBuilder, IndexedBatch, OFFSET_ENTRY_LEN, OffsetEntry, TIME_ENTRY_LEN, TimeEntry, decode_offset_index,
    decode_time_index, floor,
};
use crate::layout::SegmentFile;
use crate::log::LogInner;
use crate::scan::HeaderScan;

/// Entries that are kept in memory until they are written together: one page of an offset index.
const PENDING_ENTRIES_MAX: usize = 512;
/// Entries that a lookup reads at once, at the end of its binary search.
const LOOKUP_ENTRIES: u32 = 256;

/// Which index files to bring up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Indexes {
    /// Of sealed segments, and where many entries wait.
    Due,
    /// Of every segment.
    All,
}

impl LogInner {
    /// Lets a task complete the index files of segments that were sealed, and write entries that have piled up.
    pub(crate) fn complete_indexes_later(self: &Rc<Self>) {
        let log = Rc::clone(self);
        let task = async move { log.write_indexes_logged(Indexes::Due).await };
        self.io().spawn(task).detach();
    }

    /// Writes index entries that the files do not have yet. A disk that refuses is no failure of the log: an index is only
    /// a cache of what the batches say, readers manage without, and the next start writes it again.
    pub(crate) async fn write_indexes_logged(&self, which: Indexes) {
        if let Err(error) = self.write_indexes(which).await
            && self.offline().is_none()
        {
            self.core.dir.note_failure(&error);
            tracing::warn!(log = %self.name, %error, "an index file could not be written");
        }
    }

    /// Whether entries have piled up.
    pub(crate) fn index_is_due(&self) -> bool {
        self.state.borrow_mut().active().index.pending_offsets.len() >= PENDING_ENTRIES_MAX
    }

    /// Writes index entries that the files do not have yet.
    ///
    /// # Errors
    /// The disk's. What was written is written; the rest stays pending.
    pub(crate) async fn write_indexes(&self, which: Indexes) -> Result<(), Error> {
        let _turn = self.index_turn.acquire(1).await;
        while let Some(base_offset) = self.next_index_to_write(which) {
            self.write_index(base_offset).await?;
        }
        Ok(())
    }

    fn next_index_to_write(&self, which: Indexes) -> Option<Offset> {
        let state = self.state.borrow();
        let written = state.written.segment;
        let waits = |segment: &&crate::segment::Segment| {
            let sealed = segment.base_offset < written && !segment.index_complete;
            let pending = segment.index.pending_offsets.len() + segment.index.pending_times.len();
            segment.on_disk && (sealed || pending >= PENDING_ENTRIES_MAX || which == Indexes::All && pending > 0)
        };
        state.segments.iter().find(waits).map(|segment| segment.base_offset)
    }

    /// Appends what is pending to both files of a segment; of a sealed one they are then complete and durable.
    async fn write_index(&self, base_offset: Offset) -> Result<(), Error> {
        let Some((offsets, times, at, sealed)) = self.pending_entries(base_offset) else { return Ok(()) };
        let hold = self.holds(base_offset, SegmentFile::OffsetIndex, at.0).await?
            && self.holds(base_offset, SegmentFile::TimeIndex, at.1).await?;
        if !hold || sealed && !self.are_as_believed(base_offset).await? {
            // A power cut took what was not flushed, and the log was opened without a look at it.
            return self.rebuild_index_locked(base_offset).await;
        }
        if sealed {
            self.trim(base_offset).await?;
        }
        let offset_bytes = offsets.iter().flat_map(|entry| entry.encode(base_offset)).collect();
        let time_bytes = times.iter().flat_map(|entry| entry.encode(base_offset)).collect();
        self.append_entries(base_offset, SegmentFile::OffsetIndex, at.0, offset_bytes, sealed).await?;
        self.append_entries(base_offset, SegmentFile::TimeIndex, at.1, time_bytes, sealed).await?;
        if let Some(segment) = self.state.borrow_mut().segment(base_offset) {
            segment.index.note_written(offsets.len(), times.len());
            segment.index_complete = sealed;
        }
        Ok(())
    }

    #[expect(clippy::type_complexity, reason = "two lists, two positions and a flag, taken apart at once")]
    fn pending_entries(&self, base_offset: Offset) -> Option<(Vec<OffsetEntry>, Vec<TimeEntry>, (u64, u64), bool)> {
        let mut state = self.state.borrow_mut();
        let sealed = base_offset < state.written.segment;
        let index = &state.segment(base_offset)?.index;
        let at = (
            u64::from(index.offsets_in_file) * OFFSET_ENTRY_LEN as u64,
            u64::from(index.times_in_file) * TIME_ENTRY_LEN as u64,
        );
        Some((index.pending_offsets.clone(), index.pending_times.clone(), at, sealed))
    }

    /// Whether an index file has at least `len` bytes.
    async fn holds(&self, segment: Offset, kind: SegmentFile, len: u64) -> Result<bool, Error> {
        if len == 0 {
            return Ok(true);
        }
        match self.io().metadata(&self.path.join(kind.name(segment))).await {
            Ok(found) => Ok(found.len >= len),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the index files of a segment have the entries that a checkpoint vouched for: before they count as complete, and
    /// nobody writes them again, somebody has looked at them. Of one that nobody vouched for it is known.
    async fn are_as_believed(&self, base_offset: Offset) -> Result<bool, Error> {
        let believed = self.state.borrow_mut().segment(base_offset).map(|segment| {
            let index = &segment.index;
            (index.is_believed, index.offsets_in_file as usize, index.times_in_file as usize)
        });
        let Some((true, offsets, times)) = believed else { return Ok(true) };
        let (kind, len) = (SegmentFile::OffsetIndex, offsets * OFFSET_ENTRY_LEN);
        let bytes = self.read_index(base_offset, kind, len).await?;
        if decode_offset_index(&bytes, base_offset).len() != offsets {
            return Ok(false);
        }
        let (kind, len) = (SegmentFile::TimeIndex, times * TIME_ENTRY_LEN);
        let bytes = self.read_index(base_offset, kind, len).await?;
        Ok(decode_time_index(&bytes, base_offset).len() == times)
    }

    /// The first `len` bytes of an index file that is there.
    async fn read_index(&self, segment: Offset, kind: SegmentFile, len: usize) -> Result<Lease, Error> {
        if len == 0 {
            return Ok(Lease::empty());
        }
        let file = self.open_file(segment, kind, OpenOptions::read_write()).await?;
        Ok(self.io().read_lease(&file, 0, len).await?)
    }

    /// Writes entries at `position`; an empty file is made where there is nothing to write yet.
    async fn append_entries(
        &self,
        segment: Offset,
        kind: SegmentFile,
        position: u64,
        bytes: Vec<u8>,
        sync: bool,
    ) -> Result<(), Error> {
        let options = if position == 0 { OpenOptions::create().truncate() } else { OpenOptions::read_write() };
        let file = self.open_file(segment, kind, options).await?;
        if position == 0 {
            // It may have been open already, with entries that count no more.
            self.io().set_len(&file, 0).await?;
        }
        if !bytes.is_empty() {
            self.io().write(&file, position, vec![Lease::from_vec(bytes)]).await?;
        }
        if sync {
            self.io().sync_data(&file).await?;
        }
        Ok(())
    }

    /// The position of a batch at or before the one that contains `offset`: where to start looking for it.
    ///
    /// # Errors
    /// The disk's, and whatever rebuilding a bad index meets.
    pub(crate) async fn position_floor(&self, segment: Offset, offset: Offset) -> Result<u64, Error> {
        self.entry_floor(segment, |entry| entry.last_offset <= offset).await
    }

    /// The position of the last indexed batch that starts at or before `position`.
    ///
    /// # Errors
    /// As [`LogInner::position_floor`].
    pub(crate) async fn position_floor_of_position(&self, segment: Offset, position: u64) -> Result<u64, Error> {
        self.entry_floor(segment, |entry| u64::from(entry.position) <= position).await
    }

    async fn entry_floor(&self, segment: Offset, is_below: impl Fn(&OffsetEntry) -> bool) -> Result<u64, Error> {
        let in_file = {
            let mut state = self.state.borrow_mut();
            let Some(segment) = state.segment(segment) else { return Ok(0) };
            if let Some(entry) = floor(&segment.index.pending_offsets, &is_below) {
                return Ok(u64::from(entry.position));
            }
            segment.index.offsets_in_file
        };
        if in_file == 0 {
            return Ok(0);
        }
        match self.find_in_file(segment, in_file, &is_below).await? {
            Found::Entry(entry) => Ok(u64::from(entry.position)),
            Found::BeforeFirst => Ok(0),
            Found::Unusable(reason) => {
                tracing::warn!(log = %self.name, segment = segment.get(), reason, "the index does not fit its segment; writing it again");
                self.rebuild_index(segment).await?;
                self.entry_from_memory_or_start(segment, &is_below)
            }
        }
    }

    /// After a rebuild all entries are in memory until they are written.
    fn entry_from_memory_or_start(
        &self,
        segment: Offset,
        is_below: impl Fn(&OffsetEntry) -> bool,
    ) -> Result<u64, Error> {
        let mut state = self.state.borrow_mut();
        let entry = state.segment(segment).and_then(|segment| floor(&segment.index.pending_offsets, is_below));
        Ok(entry.map_or(0, |entry| u64::from(entry.position)))
    }

    async fn find_in_file(
        &self,
        segment: Offset,
        entries: u32,
        is_below: impl Fn(&OffsetEntry) -> bool,
    ) -> Result<Found, Error> {
        let file = match self.open_file(segment, SegmentFile::OffsetIndex, OpenOptions::read_write()).await {
            Ok(file) => file,
            Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Found::Unusable("missing"));
            }
            Err(error) => return Err(error),
        };
        let (mut low, mut high) = (0, entries);
        while high - low > LOOKUP_ENTRIES {
            let middle = low + (high - low) / 2;
            let Some(entry) = self.read_entries(&file, segment, middle, 1).await?.first().copied() else {
                return Ok(Found::Unusable("too short"));
            };
            if is_below(&entry) { low = middle } else { high = middle }
        }
        let block = self.read_entries(&file, segment, low, high - low).await?;
        if block.len() != (high - low) as usize {
            return Ok(Found::Unusable("entries are missing or do not ascend"));
        }
        let Some(entry) = floor(&block, is_below) else { return Ok(Found::BeforeFirst) };
        Ok(if self.names_a_batch(segment, entry).await? {
            Found::Entry(entry)
        } else {
            Found::Unusable("an entry names no batch")
        })
    }

    async fn read_entries(
        &self,
        file: &File,
        segment: Offset,
        from: u32,
        count: u32,
    ) -> Result<Vec<OffsetEntry>, Error> {
        let position = u64::from(from) * OFFSET_ENTRY_LEN as u64;
        let bytes = self.io().read_lease(file, position, count as usize * OFFSET_ENTRY_LEN).await?;
        Ok(decode_offset_index(&bytes, segment))
    }

    /// Whether the batch that an entry names is really there.
    async fn names_a_batch(&self, segment: Offset, entry: OffsetEntry) -> Result<bool, Error> {
        let end = self.readable_end(segment);
        let mut scan = self.scan_headers(segment, u64::from(entry.position), end).await?;
        Ok(matches!(scan.next(self.io()).await, Ok(Some(batch)) if batch.header.last_offset() == entry.last_offset))
    }

    /// Makes the index of a segment anew from its batches. The entries stay in memory until a task has written them.
    async fn rebuild_index(&self, base_offset: Offset) -> Result<(), Error> {
        let _turn = self.index_turn.acquire(1).await;
        self.rebuild_index_locked(base_offset).await
    }

    /// The same, for a caller that holds the turn.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) async fn rebuild_index_locked(&self, base_offset: Offset) -> Result<(), Error> {
        let end = self.readable_end(base_offset);
        let interval = self.config.borrow().index_interval_bytes;
        let mut scan = self.scan_headers(base_offset, 0, end).await?;
        let mut builder = IndexBuilder::default();
        while let Some(batch) = scan.next(self.io()).await? {
            builder.note(batch.indexed(), interval);
        }
        let mut state = self.state.borrow_mut();
        let active = state.active().base_offset;
        if let Some(segment) = state.segment(base_offset) {
            if base_offset == active {
                builder.continue_with(&segment.index, end);
            } else {
                builder.seal();
            }
            segment.index = builder;
            segment.index_complete = false;
        }
        Ok(())
    }

    /// Where the written batches of a segment end, in bytes.
    pub(crate) fn readable_end(&self, base_offset: Offset) -> u64 {
        let state = self.state.borrow();
        let segment = state.segments.iter().rev().find(|segment| segment.base_offset == base_offset);
        segment.map_or(0, |segment| state.readable_size(segment))
    }

    /// A walk over the batch headers of a segment, from `position` to `end`.
    ///
    /// # Errors
    /// Whatever opening the file gives.
    pub(crate) async fn scan_headers(&self, segment: Offset, position: u64, end: u64) -> Result<HeaderScan, Error> {
        let file = self.open_file(segment, SegmentFile::Log, OpenOptions::read_write()).await?;
        let mut state = self.state.borrow_mut();
        let checked = state.segment(segment).and_then(|segment| segment.checked.clone());
        Ok(HeaderScan::new(file, position, end).with_tail(Rc::clone(&state.tail), segment).noting(checked))
    }

    /// Where to start looking in a segment for the first record at or after `timestamp`: every batch before is earlier.
    ///
    /// # Errors
    /// The disk's, and whatever rebuilding a bad index meets.
    pub(crate) async fn position_floor_of_time(&self, segment: Offset, timestamp: Timestamp) -> Result<u64, Error> {
        let reason = match self.time_floor(segment, timestamp).await? {
            FoundTime::BeforeFirst => return Ok(0),
            FoundTime::Entry(entry) => match self.position_of_time(segment, entry).await? {
                Some(position) => return Ok(position),
                None => "a time entry does not fit the batch that it names",
            },
            FoundTime::Unusable(reason) => reason,
        };
        tracing::warn!(log = %self.name, segment = segment.get(), reason, "the time index does not fit its segment; writing it again");
        self.rebuild_index(segment).await?;
        match self.pending_time_floor(segment, timestamp).0 {
            Some(entry) => self.position_floor(segment, entry.last_offset).await,
            None => Ok(0),
        }
    }

    /// The last time entry below `timestamp` of a segment: every record up to its offset is earlier, if it is true.
    async fn time_floor(&self, base_offset: Offset, timestamp: Timestamp) -> Result<FoundTime, Error> {
        let (pending, in_file) = self.pending_time_floor(base_offset, timestamp);
        if let Some(entry) = pending {
            return Ok(FoundTime::Entry(entry));
        }
        if in_file == 0 {
            return Ok(FoundTime::BeforeFirst);
        }
        let file = match self.open_file(base_offset, SegmentFile::TimeIndex, OpenOptions::read_write()).await {
            Ok(file) => file,
            Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(FoundTime::Unusable("missing"));
            }
            Err(error) => return Err(error),
        };
        let bytes = self.io().read_lease(&file, 0, in_file as usize * TIME_ENTRY_LEN).await?;
        let entries = decode_time_index(&bytes, base_offset);
        if entries.len() != in_file as usize {
            return Ok(FoundTime::Unusable("entries are missing or do not ascend"));
        }
        Ok(floor(&entries, |entry| entry.timestamp < timestamp).map_or(FoundTime::BeforeFirst, FoundTime::Entry))
    }

    /// The last entry below `timestamp` that is not in the file yet, and how many are in the file.
    fn pending_time_floor(&self, base_offset: Offset, timestamp: Timestamp) -> (Option<TimeEntry>, u32) {
        let mut state = self.state.borrow_mut();
        let Some(segment) = state.segment(base_offset) else { return (None, 0) };
        let pending = floor(&segment.index.pending_times, |entry| entry.timestamp < timestamp);
        (pending, segment.index.times_in_file)
    }

    /// Where to start for a time entry, if the batch that it names is there and has just that time.
    async fn position_of_time(&self, segment: Offset, entry: TimeEntry) -> Result<Option<u64>, Error> {
        let from = self.position_floor(segment, entry.last_offset).await?;
        let mut scan = self.scan_headers(segment, from, self.readable_end(segment)).await?;
        while let Some(batch) = scan.next(self.io()).await? {
            if batch.header.last_offset() >= entry.last_offset {
                let is_time = crate::scan::time_of_records(&batch.header) == entry.timestamp;
                let fits = batch.header.last_offset() == entry.last_offset && is_time;
                return Ok(fits.then_some(from));
            }
            if crate::scan::time_of_records(&batch.header) > entry.timestamp {
                return Ok(None);
            }
        }
        Ok(None)
    }
}

enum FoundTime {
    Entry(TimeEntry),
    BeforeFirst,
    /// The file is not what the segment needs, and why.
    Unusable(&'static str),
}

enum Found {
    Entry(OffsetEntry),
    BeforeFirst,
    /// The file is not what the segment needs, and why.
    Unusable(&'static str),
}

impl IndexBuilder {
    /// The first of the pending entries are in the files now.
    fn note_written(&mut self, offsets: usize, times: usize) {
        self.pending_offsets.drain(..offsets);
        self.pending_times.drain(..times);
        if self.pending_offsets.is_empty() {
            self.pending_offsets = Vec::new();
        }
        if self.pending_times.is_empty() {
            self.pending_times = Vec::new();
        }
        self.offsets_in_file += offsets as u32;
        self.times_in_file += times as u32;
    }
}

impl crate::scan::ScannedBatch {
    /// What the indexes need to know of it.
    pub(crate) fn indexed(&self) -> IndexedBatch {
        IndexedBatch {
            position: u32::try_from(self.position).expect("a segment is below 2 GiB"),
            len: u32::try_from(self.len).expect("a batch is below 2 GiB"),
            last_offset: self.header.last_offset(),
            max_timestamp: crate::scan::time_of_records(&self.header),
        }
    }
}
