//! What a topic does not take of single records: those without a key where it is compacted, and times out of its bounds.
//!
//! Owns the pass over a producer's records and what is wrong with each; words for it are the network's. Never decides
//! whether a batch is looked into.

use std::time::Duration;

use heddle_record::{Offset, Record, RecordBatch, Timestamp, TimestampType};

use crate::config::LogConfig;
use crate::error::AppendError;

/// How many records are named of those that are at fault; a batch may hold millions.
pub const RECORD_FAULTS_MAX: usize = 1_000;

/// What is wrong with one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordFault {
    /// The topic is compacted, and the record has no key.
    NoKey,
    /// Its time is out of the topic's bounds.
    OutOfRange {
        /// The offset that the producer gave it.
        offset: Offset,
        /// Its time.
        timestamp: Timestamp,
        /// The earliest time that the topic takes.
        earliest: Timestamp,
        /// The latest.
        latest: Timestamp,
    },
    /// The producer says that the broker set its time, where that is not its own to say.
    LogAppendTime {
        /// The offset that the producer gave it.
        offset: Offset,
    },
}

/// Records that a topic does not take; there is at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidRecords {
    /// The first [`RECORD_FAULTS_MAX`]: their index in the batch, and what is wrong.
    pub first: Vec<(i32, RecordFault)>,
    /// All of them.
    pub count: usize,
    /// Whether there is one at fault for its time.
    pub untimely: bool,
}

impl InvalidRecords {
    fn add(&mut self, index: i32, fault: RecordFault) {
        self.count += 1;
        self.untimely |= fault != RecordFault::NoKey;
        if self.first.len() < RECORD_FAULTS_MAX {
            self.first.push((index, fault));
        }
    }
}

/// A topic's terms for records, at one time.
pub(crate) struct Terms {
    needs_keys: bool,
    timestamp_type: TimestampType,
    earliest: Timestamp,
    latest: Timestamp,
}

impl Terms {
    pub(crate) fn of(config: &LogConfig, now: Timestamp) -> Terms {
        // Without a bound as far as a 64-bit span reaches, as Kafka has it.
        let millis =
            |span: Option<Duration>| span.and_then(|span| i64::try_from(span.as_millis()).ok()).unwrap_or(i64::MAX);
        Terms {
            needs_keys: config.cleanup_policy.compacts(),
            timestamp_type: config.timestamp_type,
            earliest: Timestamp::new(now.get().saturating_sub(millis(config.timestamp_before_max))),
            latest: Timestamp::new(now.get().saturating_add(millis(config.timestamp_after_max))),
        }
    }

    /// Whether the topic keeps the producer's times and this one is too late for it.
    pub(crate) fn is_too_late(&self, timestamp: Timestamp) -> bool {
        self.timestamp_type == TimestampType::CreateTime && timestamp > self.latest
    }

    /// Looks at every record of a producer's batch, whose body is given as it is once decompressed. Returns the largest
    /// timestamp, as consumers see it; [`Timestamp::NONE`] if there is none.
    ///
    /// # Errors
    /// [`AppendError::InvalidRecord`] if they cannot be read, [`AppendError::InvalidRecords`] if the topic does not take
    /// them.
    pub(crate) fn check(&self, batch: &RecordBatch<'_>, body: &[u8]) -> Result<Timestamp, AppendError> {
        let mut invalid = InvalidRecords { first: Vec::new(), count: 0, untimely: false };
        let mut newest = Timestamp::NONE;
        for (index, record) in (0..).zip(batch.records_in(body)) {
            let record = record.map_err(|_| AppendError::InvalidRecord { reason: "a record cannot be read" })?;
            if record.offset_delta != index {
                return Err(AppendError::InvalidRecord { reason: "offset deltas are not in order" });
            }
            newest = newest.max(batch.header().timestamp_of(&record));
            if let Some(fault) = self.fault(batch, &record) {
                invalid.add(index, fault);
            }
        }
        if invalid.count == 0 { Ok(newest) } else { Err(AppendError::InvalidRecords(Box::new(invalid))) }
    }

    fn fault(&self, batch: &RecordBatch<'_>, record: &Record<'_>) -> Option<RecordFault> {
        if self.needs_keys && record.key.is_none() {
            return Some(RecordFault::NoKey);
        }
        let header = batch.header();
        let (offset, timestamp) = (header.offset_of(record), header.timestamp_of(record));
        if self.timestamp_type == TimestampType::CreateTime && timestamp != Timestamp::NONE {
            let (earliest, latest) = (self.earliest, self.latest);
            let fits = (earliest..=latest).contains(&timestamp);
            return (!fits).then_some(RecordFault::OutOfRange { offset, timestamp, earliest, latest });
        }
        let claims = header.attributes.timestamp_type() == TimestampType::LogAppendTime;
        claims.then_some(RecordFault::LogAppendTime { offset })
    }
}
