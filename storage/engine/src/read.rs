//! Reading: from an offset to whole stored batches, as ranges of files.
//!
//! Owns finding the batch that contains an offset. It hands out places, never copies of bytes, and sees only what was
//! written; who may see how far is decided by the caller's limit.

use heddle_io::{File, Lease, OpenOptions};
use heddle_record::{LogEndOffset, LogStartOffset, Offset};

use crate::error::{Error, ReadError};
use crate::layout::SegmentFile;
use crate::log::{Log, LogInner};
use crate::state::Boundary;
use crate::statistics::ReadBytes;

/// How much to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimit {
    /// Only batches that lie wholly below this offset (exclusive).
    pub end: Offset,
    /// Bytes at most, but see `first_batch`.
    pub bytes_max: usize,
    /// What happens to a first batch that is larger than `bytes_max`.
    pub first_batch: FirstBatch,
}

/// Whether the first batch of a read may exceed its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstBatch {
    /// It is read whole, whatever its size, so that a reader always gets on.
    AtLeastOne,
    /// It counts like the others.
    WithinLimit,
}

/// What a read found: whole batches, the first of which contains the offset that was asked for.
#[derive(Debug, Clone, Default)]
pub struct ReadOut {
    /// The bytes, in order.
    pub pieces: Vec<Piece>,
    /// How many there are.
    pub bytes: usize,
    /// The base offset of the first batch; the offset asked for if there is none.
    pub start_offset: Offset,
    /// The offset after the last batch: where the next read goes on.
    pub next_offset: Offset,
}

/// Stored bytes, wherever they are. May cross cores; a file stays readable while a piece of it lives.
#[derive(Debug, Clone)]
pub enum Piece {
    /// A range of a file.
    File {
        /// The file.
        file: File,
        /// Where the range starts, in bytes.
        position: u64,
        /// Its length in bytes.
        len: usize,
    },
    /// Bytes in memory.
    Memory(Lease),
}

/// Files that one read spans at most.
const SEGMENTS_PER_READ_MAX: usize = 8;

impl Log {
    /// Reads whole batches from the one that contains `from`.
    ///
    /// # Errors
    /// [`ReadError::OutOfRange`] below the log's start or above its end; [`ReadError::Failed`].
    pub async fn read(&self, from: Offset, limit: ReadLimit) -> Result<ReadOut, ReadError> {
        let read = self.read_batches(from, limit).await;
        // Whatever went wrong: what retention took meanwhile is out of range.
        read.or_else(|error| self.inner.check_range(from, limit.end).and(Err(error)))
    }

    async fn read_batches(&self, from: Offset, limit: ReadLimit) -> Result<ReadOut, ReadError> {
        let log = &self.inner;
        let _reader = log.readers.acquire(1).await;
        let end = log.check_range(from, limit.end)?;
        let mut out = ReadOut { start_offset: from, next_offset: from, ..ReadOut::default() };
        if from >= end {
            return Ok(out);
        }
        let Some(mut start) = log.locate(from).await? else { return Ok(out) };
        out.start_offset = start.offset;
        out.next_offset = start.offset;
        for _ in 0..SEGMENTS_PER_READ_MAX {
            let bytes_max = limit.bytes_max.saturating_sub(out.bytes);
            let at_least_one = limit.first_batch == FirstBatch::AtLeastOne && out.bytes == 0;
            let mut stop = log.stop_of(start, end, bytes_max, at_least_one).await?;
            if stop.position > start.position {
                stop = match log.add_pieces(start, stop, &mut out.pieces).await {
                    // What lies before the damage is read; the next read begins with it.
                    Err(Error::Damaged { .. }) if out.bytes > 0 => break,
                    added => added?,
                };
                out.bytes += usize::try_from(stop.position - start.position).expect("a segment is below 2 GiB");
                out.next_offset = stop.offset;
            }
            match log.segment_after(stop, end) {
                Some(next) if out.bytes < limit.bytes_max => start = next,
                _ => break,
            }
        }
        Ok(out)
    }
}

impl LogInner {
    /// Holds the offset against the log, and the end against what is written.
    fn check_range(&self, from: Offset, end: Offset) -> Result<Offset, ReadError> {
        let state = self.state.borrow();
        if let Some(error @ Error::Damaged { .. }) = &state.offline {
            return Err(error.clone().into());
        }
        if from < state.log_start || from > state.log_end {
            return Err(ReadError::OutOfRange {
                log_start: LogStartOffset::at(state.log_start),
                log_end: LogEndOffset::at(state.log_end),
            });
        }
        Ok(end.min(state.written.offset))
    }

    /// The batch that contains `offset`, which is below the written end, or the next one where compaction has left none.
    /// `None` if retention took it meanwhile.
    ///
    /// # Errors
    /// [`Error::Damaged`] if there are no batches where they were written; [`Error::Io`].
    pub(crate) async fn locate(&self, offset: Offset) -> Result<Option<Boundary>, Error> {
        let (mut segment, mut end) = {
            let state = self.state.borrow();
            if let Some(boundary) = state.landmark(offset)
                && boundary.offset < state.written.offset
                && boundary.position < self.readable(&state, boundary.segment)
            {
                return Ok(Some(boundary));
            }
            let segment = &state.segments[state.segment_index_at(offset)];
            (segment.base_offset, state.readable_size(segment))
        };
        if offset < segment {
            return Ok(None);
        }
        loop {
            let found = self.scan_to(segment, end, offset).await;
            if let Some(found) = self.note_damage(segment, found)? {
                return Ok(Some(found));
            }
            let state = self.state.borrow();
            let next = state.segments.iter().find(|other| other.base_offset > segment);
            let Some(next) = next.filter(|next| state.readable_size(next) > 0) else { return Ok(None) };
            (segment, end) = (next.base_offset, state.readable_size(next));
        }
    }

    /// Adds the bytes of a segment from `start` up to `end`, or less of what must be checked first: from memory as far as they
    /// are there, else from the file. Returns how far.
    async fn add_pieces(&self, start: Boundary, end: Boundary, pieces: &mut Vec<Piece>) -> Result<Boundary, Error> {
        self.check_damage(start.segment)?;
        let (in_memory_from, in_memory) =
            self.state.borrow().tail.borrow().pieces(start.segment, start.position, end.position);
        let (mut reached, mut files_to) = (end, in_memory_from);
        if start.position < in_memory_from {
            // In a box: who reads from memory carries nothing of it about.
            let (file, checked_to) = Box::pin(self.file_to_serve(start, end, in_memory_from)).await?;
            if checked_to != end {
                self.state.borrow_mut().remember(checked_to);
                (reached, files_to) = (checked_to, checked_to.position);
            }
            let len = usize::try_from(files_to - start.position).expect("a segment is below 2 GiB");
            pieces.push(Piece::File { file, position: start.position, len });
        }
        if reached == end {
            pieces.extend(in_memory.into_iter().map(Piece::Memory));
        }
        self.core
            .meters
            .count_read(ReadBytes { memory: reached.position - files_to, files: files_to - start.position });
        Ok(reached)
    }

    /// A segment's file, checked if it is sealed, brought into memory if not, and how far it may be served.
    async fn file_to_serve(
        &self,
        start: Boundary,
        end: Boundary,
        in_memory_from: u64,
    ) -> Result<(File, Boundary), Error> {
        let file = self.open_file(start.segment, SegmentFile::Log, OpenOptions::read_write()).await?;
        let is_sealed = start.segment < self.state.borrow().written.segment;
        if is_sealed {
            let checked_to = self.check_cold(&file, start, end).await?;
            return Ok((file, checked_to));
        }
        self.core.warm(&file, start.position..in_memory_from).await?;
        Ok((file, end))
    }

    fn readable(&self, state: &crate::state::LogState, segment: Offset) -> u64 {
        let index = state.segment_index_at(segment);
        state
            .segments
            .get(index)
            .filter(|found| found.base_offset == segment)
            .map_or(0, |found| state.readable_size(found))
    }

    /// The first batch of a segment whose last offset is at or above `offset`.
    async fn scan_to(&self, segment: Offset, end: u64, offset: Offset) -> Result<Option<Boundary>, Error> {
        let position = self.position_floor(segment, offset).await?;
        let mut scan = self.scan_headers(segment, position, end).await?;
        while let Some(batch) = scan.next(self.io()).await? {
            if batch.header.last_offset() >= offset {
                return Ok(Some(Boundary { offset: batch.header.base_offset, segment, position: batch.position }));
            }
        }
        Ok(None)
    }

    /// Where a read that starts at `start` stops in its segment: at `end`, or after the last batch that `bytes_max` holds.
    async fn stop_of(
        &self,
        start: Boundary,
        end: Offset,
        bytes_max: usize,
        at_least_one: bool,
    ) -> Result<Boundary, Error> {
        let (known, segment_end, after) = {
            let state = self.state.borrow();
            let index = state.segment_index_at(start.segment);
            let Some(segment) = state.segments.get(index).filter(|segment| segment.base_offset == start.segment) else {
                // Retention took it meanwhile.
                return Ok(start);
            };
            let after = state.segments.get(index + 1).map(|segment| segment.base_offset);
            let segment_end = state.readable_size(segment);
            (state.landmark(end).filter(|known| known.segment == start.segment), segment_end, after)
        };
        // The end of this segment's part of the read, where it is known without looking.
        let whole = match (known, after) {
            (Some(known), _) => Some(known),
            (None, Some(after)) if after <= end => {
                Some(Boundary { offset: after, segment: start.segment, position: segment_end })
            }
            _ => None,
        };
        if let Some(whole) = whole
            && whole.position - start.position <= bytes_max as u64
        {
            return Ok(whole);
        }
        let limit = start.position.saturating_add(bytes_max as u64);
        let stop = self.scan_to_stop(start, segment_end, end, limit, at_least_one).await;
        let stop = self.note_damage(start.segment, stop)?;
        self.state.borrow_mut().remember(stop);
        Ok(stop)
    }

    /// The end of the last batch that lies below offset `end` and before position `limit`, or of the first one.
    async fn scan_to_stop(
        &self,
        start: Boundary,
        segment_end: u64,
        end: Offset,
        limit: u64,
        at_least_one: bool,
    ) -> Result<Boundary, Error> {
        let by_position = self.position_floor_of_position(start.segment, limit).await?;
        let by_offset = self.position_floor(start.segment, end).await?;
        let position = start.position.max(by_position.min(by_offset));
        let mut scan = self.scan_headers(start.segment, position, segment_end).await?;
        let mut stop = start;
        while let Some(batch) = scan.next(self.io()).await? {
            let first = batch.position == start.position;
            if stop == start && !first {
                // The batch at the indexed position starts where everything before it ends.
                stop = Boundary { offset: batch.header.base_offset, segment: start.segment, position: batch.position };
            }
            let fits = batch.end() <= limit || (first && at_least_one);
            if batch.header.last_offset() >= end || !fits {
                break;
            }
            stop = Boundary { offset: batch.header.next_offset(), segment: start.segment, position: batch.end() };
        }
        Ok(stop)
    }

    /// The start of the next segment, if `stop` is where a segment ends and the read is not over.
    fn segment_after(&self, stop: Boundary, end: Offset) -> Option<Boundary> {
        let state = self.state.borrow();
        let index = state.segment_index_at(stop.segment);
        let segment = state.segments.get(index).filter(|segment| segment.base_offset == stop.segment)?;
        let next = state.segments.get(index + 1)?;
        let goes_on =
            stop.position == state.readable_size(segment) && next.base_offset < end && state.readable_size(next) > 0;
        goes_on.then_some(Boundary { offset: next.base_offset, segment: next.base_offset, position: 0 })
    }
}
