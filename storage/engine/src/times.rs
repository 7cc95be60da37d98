//! Finding records by time: the first at or after a timestamp, and the one with the largest.
//!
//! Answers exactly, to the record, also inside compressed batches, as long as these decompress under the engine's cap;
//! beyond it the answer is the batch's first offset.

use heddle_record::{BatchHeader, LeaderEpoch, Offset, RecordBatch, Timestamp, TimestampType};

use crate::error::{Error, ReadError};
use crate::log::{Log, LogInner};
use crate::scan::{ScannedBatch, time_of_records};
use crate::state::LogState;

/// A record that was found by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimedOffset {
    /// The record's offset.
    pub offset: Offset,
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// The leader epoch that wrote it.
    pub leader_epoch: LeaderEpoch,
}

impl Log {
    /// The first written record whose timestamp is at or after `timestamp`; `None` if there is none.
    ///
    /// # Errors
    /// [`ReadError::Failed`].
    pub async fn offset_for_timestamp(&self, timestamp: Timestamp) -> Result<Option<TimedOffset>, ReadError> {
        let log = &self.inner;
        let _reader = log.readers.acquire(1).await;
        let segments: Vec<Offset> = {
            let state = log.state.borrow();
            let reaches =
                |segment: &&crate::segment::Segment| segment.index.max().is_some_and(|max| max.timestamp >= timestamp);
            state.segments.iter().filter(reaches).map(|segment| segment.base_offset).collect()
        };
        for segment in segments {
            let found = log.find_in_segment(segment, timestamp).await;
            if let Some(found) = log.note_damage(segment, found)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The record with the largest timestamp, the first of several. Where no record has one that is the log's first;
    /// `None` only if there is no record.
    ///
    /// # Errors
    /// [`ReadError::Failed`].
    pub async fn max_timestamp(&self) -> Result<Option<TimedOffset>, ReadError> {
        let newest = {
            let state = self.inner.state.borrow();
            let times = state.segments.iter().filter_map(|segment| segment.index.max());
            times.map(|max| max.timestamp).max()
        };
        match newest {
            Some(timestamp) => self.offset_for_timestamp(timestamp).await,
            None => Ok(self.inner.state.borrow().first_without_time()),
        }
    }
}

impl LogState {
    /// The log's first record, where none has a time.
    fn first_without_time(&self) -> Option<TimedOffset> {
        let leader_epoch = self.epochs.epoch_at(self.log_start)?;
        let written = self.log_start < self.high_watermark;
        written.then_some(TimedOffset { offset: self.log_start, timestamp: Timestamp::NONE, leader_epoch })
    }
}

impl LogInner {
    async fn find_in_segment(&self, segment: Offset, timestamp: Timestamp) -> Result<Option<TimedOffset>, Error> {
        let log_start = self.state.borrow().log_start;
        let end = self.readable_end(segment);
        let from = self.position_floor_of_time(segment, timestamp).await?;
        let mut scan = self.scan_headers(segment, from, end).await?;
        while let Some(batch) = scan.next(self.io()).await? {
            if time_of_records(&batch.header) < timestamp || batch.header.last_offset() < log_start {
                continue;
            }
            if let Some(found) = self.find_in_batch(segment, &batch, timestamp, log_start).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The first record of a batch at or after `timestamp` and the log's start. The largest timestamp in a header is a
    /// claim of its producer, so there may be none.
    async fn find_in_batch(
        &self,
        segment: Offset,
        found: &ScannedBatch,
        timestamp: Timestamp,
        log_start: Offset,
    ) -> Result<Option<TimedOffset>, Error> {
        let header = &found.header;
        let is_whole = i64::from(header.record_count) == i64::from(header.last_offset_delta) + 1;
        if is_whole && header.attributes.timestamp_type() == TimestampType::LogAppendTime {
            return Ok(Some(answer(header, header.base_offset.max(log_start), header.max_timestamp)));
        }
        let file =
            self.open_file(segment, crate::layout::SegmentFile::Log, heddle_io::OpenOptions::read_write()).await?;
        let bytes = self
            .io()
            .read_lease(&file, found.position, usize::try_from(found.len).expect("a batch is below 2 GiB"))
            .await?;
        if let Ok(batch) = RecordBatch::peek(&bytes)
            && let Ok(body) = self.core.open_batch(&batch).await?
        {
            return Ok(first_at_or_after(&batch, &body, timestamp, log_start));
        }
        // What cannot be looked into is answered by its beginning: a consumer that starts there misses nothing.
        Ok(Some(answer(header, header.base_offset.max(log_start), header.max_timestamp)))
    }
}

fn first_at_or_after(
    batch: &RecordBatch<'_>,
    body: &[u8],
    timestamp: Timestamp,
    log_start: Offset,
) -> Option<TimedOffset> {
    let header = batch.header();
    batch.records_in(body).map_while(Result::ok).find_map(|record| {
        let (offset, time) = (header.offset_of(&record), header.timestamp_of(&record));
        (time >= timestamp && offset >= log_start).then(|| answer(header, offset, time))
    })
}

fn answer(header: &BatchHeader, offset: Offset, timestamp: Timestamp) -> TimedOffset {
    TimedOffset { offset, timestamp, leader_epoch: header.partition_leader_epoch }
}
