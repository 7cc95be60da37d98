//! What a batch must pass before it gets an offset: validation, the topic's bounds, its codec.
//!
//! A pure function of the batch, the settings and the time; it never looks at the log. A batch is decompressed only if
//! something needs the records, and then under a cap on the output.

use std::time::Duration;

use heddle_io::Lease;
use heddle_record::{
    BatchBuilder, BatchError, BatchHeader, Compression, CompressionError, HEADER_LEN, LeaderEpoch, Offset, Origin,
    RawHeader, RecordBatch, Timestamp, TimestampType, decompress, validate, validate_header,
};

use crate::config::{LogConfig, StoredCompression};
use crate::error::AppendError;
use crate::producer_state::Claim;

/// Who asks for an append, and so what may be in the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendOrigin {
    /// A client: everything is checked, and control and transactional batches are refused.
    Client,
    /// The broker itself: its batches keep their timestamps and codec, and may be control batches.
    Broker,
}

/// A batch that may be appended: a copy of its header, to be completed.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) header: RawHeader,
    /// Who wrote it, if that is an idempotent producer.
    pub(crate) claim: Option<Claim>,
}

impl Admitted {
    /// The size as stored, in bytes.
    pub(crate) fn len(&self) -> usize {
        HEADER_LEN + self.header.body_len()
    }

    /// Completes the header with what only the log knows. The log append time stays out where the topic keeps the
    /// producer's times.
    pub(crate) fn complete(
        &mut self,
        base_offset: Offset,
        epoch: LeaderEpoch,
        log_append_time: Timestamp,
    ) -> BatchHeader {
        self.header.set_base_offset(base_offset);
        self.header.set_leader_epoch(epoch);
        if log_append_time != Timestamp::NONE {
            self.header.set_log_append_time(log_append_time);
        }
        self.header.decode()
    }

    fn of(header: RawHeader, fields: &BatchHeader) -> Admitted {
        let claim = (fields.has_producer() && !fields.attributes.is_control()).then(|| Claim::of(fields));
        Admitted { header, claim }
    }

    fn of_batch(batch: &RecordBatch<'_>, bytes: &Lease) -> (Admitted, Lease) {
        (Admitted::of(RawHeader::copy_of(batch), batch.header()), bytes.slice(HEADER_LEN..bytes.len()))
    }
}

/// The header of a batch of `len` bytes whose body is still on its way, if nothing but the checksum is to be asked of the
/// body, and it is stored as it comes. Whatever else there is to say of the batch, [`admit`] says it.
pub(crate) fn admit_header(
    bytes: &[u8; HEADER_LEN],
    len: usize,
    config: &LogConfig,
    now: Timestamp,
) -> Option<Admitted> {
    check_size(len, config.max_message_bytes.min(config.segment_bytes)).ok()?;
    let header = validate_header(bytes, len, Origin::Producer).ok()?;
    let is_kept_as_it_comes = match config.compression {
        StoredCompression::Codec { codec, .. } => header.attributes.compression() == Some(codec),
        StoredCompression::Producer => true,
    };
    let is_plain = !header.attributes.is_transactional()
        && !config.cleanup_policy.compacts()
        && header.max_timestamp_is_plausible()
        && config.timestamp_type == TimestampType::CreateTime
        && config.timestamp_before_max.is_none()
        && is_kept_as_it_comes
        && !is_too_late(header.max_timestamp, config, now);
    is_plain.then(|| Admitted::of(RawHeader::ahead_of(bytes, len - HEADER_LEN), &header))
}

/// Checks the batch in `bytes` and brings it into the form in which it is stored: its header and its body.
///
/// # Errors
/// Everything in [`AppendError`] that depends on the batch alone.
pub(crate) fn admit(
    bytes: &Lease,
    origin: AppendOrigin,
    config: &LogConfig,
    now: Timestamp,
    decompressed_bytes_max: usize,
) -> Result<(Admitted, Lease), AppendError> {
    if origin == AppendOrigin::Broker {
        let batch = validate(bytes, Origin::Log)?;
        check_size(bytes.len(), config.segment_bytes)?;
        return Ok(Admitted::of_batch(&batch, bytes));
    }
    check_size(bytes.len(), config.max_message_bytes.min(config.segment_bytes))?;
    let batch = validate(bytes, Origin::Producer)?;
    if batch.is_transactional() {
        return Err(AppendError::InvalidTxnState);
    }
    let (mut admitted, body) = Admitted::of_batch(&batch, bytes);
    let records = Records { batch: &batch, output_max: decompressed_bytes_max };
    if config.cleanup_policy.compacts() || !batch.max_timestamp_is_plausible() {
        let summary = records.check()?;
        if let (true, Some(record)) = (config.cleanup_policy.compacts(), summary.first_without_key) {
            return Err(AppendError::InvalidRecord { reason: "a compacted topic needs keys", record: Some(record) });
        }
        if !batch.max_timestamp_is_plausible() {
            admitted.header.set_max_timestamp(summary.max_timestamp);
        }
    }
    if config.timestamp_type == TimestampType::CreateTime {
        check_timestamps(&records, admitted.header.decode().max_timestamp, config, now)?;
    }
    match config.compression {
        StoredCompression::Codec { codec, level } if batch.compression() != Some(codec) => {
            let bytes = recompress(&records, &admitted.header, codec, level)?;
            check_size(bytes.len(), config.max_message_bytes.min(config.segment_bytes))?;
            let batch = RecordBatch::peek(&bytes).expect("a batch that was just built");
            Ok(Admitted::of_batch(&batch, &bytes))
        }
        _ => Ok((admitted, body)),
    }
}

fn check_size(size: usize, limit: u32) -> Result<(), AppendError> {
    let limit = limit as usize;
    if size > limit { Err(AppendError::TooLarge { size, limit }) } else { Ok(()) }
}

/// Holds the times of a batch against the topic's bounds. The latest is in the header; the earliest only the records
/// know, and they are read only where the topic bounds it.
fn check_timestamps(
    records: &Records<'_>,
    latest: Timestamp,
    config: &LogConfig,
    now: Timestamp,
) -> Result<(), AppendError> {
    if is_too_late(latest, config, now) {
        return Err(AppendError::InvalidTimestamp { reason: "later than the topic allows", record: None });
    }
    let Some(span) = config.timestamp_before_max else { return Ok(()) };
    let body = records.body()?;
    let batch = records.batch;
    for (index, record) in (0..).zip(batch.records_in(&body)) {
        let record = record.map_err(|_| INVALID_RECORDS)?;
        let timestamp = batch.header().timestamp_of(&record);
        if timestamp != Timestamp::NONE && now.get().saturating_sub(timestamp.get()) > millis(span) {
            return Err(AppendError::InvalidTimestamp { reason: "earlier than the topic allows", record: Some(index) });
        }
    }
    Ok(())
}

fn is_too_late(latest: Timestamp, config: &LogConfig, now: Timestamp) -> bool {
    config.timestamp_after_max.is_some_and(|span| latest.get().saturating_sub(now.get()) > millis(span))
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

const INVALID_RECORDS: AppendError = AppendError::InvalidRecord { reason: "a record cannot be read", record: None };

/// The records of a batch, decompressed when they are asked for.
struct Records<'a> {
    batch: &'a RecordBatch<'a>,
    output_max: usize,
}

impl Records<'_> {
    fn body(&self) -> Result<std::borrow::Cow<'_, [u8]>, AppendError> {
        decompressed_body(self.batch, self.output_max).map_err(|error| match error {
            CompressionError::OutputTooLarge { .. } => {
                AppendError::InvalidRecord { reason: "too large when decompressed", record: None }
            }
            _ => AppendError::InvalidRecord { reason: "cannot be decompressed", record: None },
        })
    }

    fn check(&self) -> Result<heddle_record::RecordsSummary, AppendError> {
        let body = self.body()?;
        self.batch.check_records(&body, Origin::Producer).map_err(|_| INVALID_RECORDS)
    }
}

/// The body of a batch, decompressed if it is compressed.
///
/// # Errors
/// [`CompressionError`], [`CompressionError::OutputTooLarge`] beyond `output_max` bytes.
pub(crate) fn decompressed_body<'a>(
    batch: &RecordBatch<'a>,
    output_max: usize,
) -> Result<std::borrow::Cow<'a, [u8]>, CompressionError> {
    match batch.compression() {
        Some(Compression::None) => Ok(batch.body().into()),
        Some(codec) => {
            let mut body = Vec::new();
            decompress(codec, batch.body(), output_max, &mut body)?;
            Ok(body.into())
        }
        None => Err(CompressionError::Corrupt { what: "unknown codec" }),
    }
}

/// The same records under another codec.
fn recompress(
    records: &Records<'_>,
    header: &RawHeader,
    codec: Compression,
    level: Option<i32>,
) -> Result<Lease, AppendError> {
    let body = records.body()?;
    let mut builder = BatchBuilder::rewrite(&header.decode(), codec, level);
    for record in records.batch.records_in(&body) {
        let record = record.map_err(|_| INVALID_RECORDS)?;
        builder.retain(&record).map_err(|_| INVALID_RECORDS)?;
    }
    let mut bytes = Vec::new();
    builder.finish(&mut bytes).map_err(|_| INVALID_RECORDS)?;
    Ok(Lease::from_vec(bytes))
}

impl From<BatchError> for AppendError {
    fn from(error: BatchError) -> AppendError {
        let invalid = |reason| AppendError::InvalidRecord { reason, record: None };
        match error {
            BatchError::Truncated { .. }
            | BatchError::Length { .. }
            | BatchError::Checksum { .. }
            | BatchError::Offsets { .. } => AppendError::Corrupt(error),
            BatchError::Magic { magic: 0 | 1 } => invalid("only record batches of magic 2 are taken"),
            BatchError::Magic { .. } => AppendError::Corrupt(error),
            BatchError::TrailingBytes { .. } => invalid("more than one batch for a partition"),
            BatchError::Codec { .. } => AppendError::UnsupportedCompression,
            BatchError::RecordCount { .. } => invalid("record count and last offset delta contradict each other"),
            BatchError::Control => invalid("clients may not write control batches"),
            BatchError::DeleteHorizon => invalid("clients may not set a delete horizon"),
            BatchError::Producer { .. } => invalid("producer id, epoch and sequence do not go together"),
            BatchError::TimestampType => {
                AppendError::InvalidTimestamp { reason: "clients may not set a log append time", record: None }
            }
            BatchError::Timestamp { .. } => AppendError::InvalidTimestamp { reason: "negative", record: None },
        }
    }
}
