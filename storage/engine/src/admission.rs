//! What a batch must pass before it gets an offset: validation, the topic's bounds, its codec.
//!
//! A pure function of the batch, the settings and the time; it never looks at the log. A batch is decompressed only if
//! something needs the records, and then under a cap on the output. What takes longer than a core may be held up is said to,
//! and left to a helper thread (`opening.rs`).

use std::borrow::Cow;

use heddle_io::Lease;
use heddle_record::{
    BatchBuilder, BatchError, BatchHeader, Compression, CompressionError, HEADER_LEN, LeaderEpoch, Offset, Origin,
    RawHeader, RecordBatch, Timestamp, TimestampType, validate, validate_header,
};

use crate::config::{LogConfig, StoredCompression};
use crate::error::AppendError;
use crate::opening::{Effort, open_body};
use crate::producer_state::Claim;
use crate::record_faults::Terms;

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
    check_size(len, config).ok()?;
    let header = validate_header(bytes, len, Origin::Producer).ok()?;
    let is_kept_as_it_comes = match config.compression {
        StoredCompression::Codec { codec, .. } => header.attributes.compression() == Some(codec),
        StoredCompression::Producer => true,
    };
    let is_plain = !header.attributes.is_transactional()
        && config.timestamp_type == TimestampType::CreateTime
        && is_kept_as_it_comes
        && !must_be_looked_into(&header, config, &Terms::of(config, now));
    is_plain.then(|| Admitted::of(RawHeader::ahead_of(bytes, len - HEADER_LEN), &header))
}

/// Why a batch was not admitted.
#[derive(Debug)]
pub(crate) enum NotAdmitted {
    /// The log does not take it.
    Refused(AppendError),
    /// To say so would take more than [`Effort::Little`].
    TakesLong,
}

impl<E: Into<AppendError>> From<E> for NotAdmitted {
    fn from(refused: E) -> NotAdmitted {
        NotAdmitted::Refused(refused.into())
    }
}

/// Checks the batch in `bytes` and brings it into the form in which it is stored: its header and its body.
///
/// # Errors
/// Everything in [`AppendError`] that depends on the batch alone. [`NotAdmitted::TakesLong`] where the effort is little.
pub(crate) fn admit(
    bytes: &Lease,
    origin: AppendOrigin,
    config: &LogConfig,
    now: Timestamp,
    decompressed_bytes_max: usize,
    effort: Effort,
) -> Result<(Admitted, Lease), NotAdmitted> {
    if origin == AppendOrigin::Broker {
        let batch = validate(bytes, Origin::Log)?;
        check_segment(bytes.len(), config)?;
        return Ok(Admitted::of_batch(&batch, bytes));
    }
    check_size(bytes.len(), config)?;
    let batch = validate(bytes, Origin::Producer)?;
    if batch.is_transactional() {
        return Err(AppendError::InvalidTxnState.into());
    }
    let (mut admitted, body) = Admitted::of_batch(&batch, bytes);
    let terms = Terms::of(config, now);
    let target = match config.compression {
        StoredCompression::Codec { codec, level } if batch.compression() != Some(codec) => Some((codec, level)),
        _ => None,
    };
    let effort = if target.is_some() { effort.to_recompress() } else { effort };
    let mut records = Records { batch: &batch, output_max: decompressed_bytes_max, effort, body: None };
    if target.is_some() || must_be_looked_into(batch.header(), config, &terms) {
        let newest = terms.check(&batch, records.body()?)?;
        if !batch.max_timestamp_is_plausible() || batch.max_timestamp() < Timestamp::NONE {
            admitted.header.set_max_timestamp(newest);
        }
        if batch.header().attributes.timestamp_type() == TimestampType::LogAppendTime {
            admitted.header.set_create_time();
        }
    }
    let Some((codec, level)) = target else { return Ok((admitted, body)) };
    let bytes = recompress(&mut records, &admitted.header, codec, level)?;
    check_size(bytes.len(), config)?;
    let batch = RecordBatch::peek(&bytes).expect("a batch that was just built");
    Ok(Admitted::of_batch(&batch, &bytes))
}

/// Whether the header alone does not tell if the topic takes the records, or tells that it does not.
fn must_be_looked_into(header: &BatchHeader, config: &LogConfig, terms: &Terms) -> bool {
    config.cleanup_policy.compacts()
        || !header.max_timestamp_is_plausible()
        || header.max_timestamp < Timestamp::NONE
        || header.attributes.timestamp_type() == TimestampType::LogAppendTime
        || config.timestamp_type == TimestampType::CreateTime && config.timestamp_before_max.is_some()
        || terms.is_too_late(header.max_timestamp)
}

fn check_size(size: usize, config: &LogConfig) -> Result<(), AppendError> {
    let limit = config.max_message_bytes as usize;
    if size > limit { Err(AppendError::TooLarge { size, limit }) } else { check_segment(size, config) }
}

fn check_segment(size: usize, config: &LogConfig) -> Result<(), AppendError> {
    let limit = config.segment_bytes as usize;
    if size > limit { Err(AppendError::LargerThanSegment { size, limit }) } else { Ok(()) }
}

/// The records of a batch, decompressed when they are asked for, once.
struct Records<'a> {
    batch: &'a RecordBatch<'a>,
    output_max: usize,
    effort: Effort,
    body: Option<Cow<'a, [u8]>>,
}

impl Records<'_> {
    fn body(&mut self) -> Result<&[u8], NotAdmitted> {
        if self.body.is_none() {
            let body = open_body(self.batch, self.output_max, self.effort).ok_or(NotAdmitted::TakesLong)?;
            let body = body.map_err(|error| match error {
                CompressionError::OutputTooLarge { .. } => {
                    AppendError::InvalidRecord { reason: "too large when decompressed" }
                }
                _ => AppendError::InvalidRecord { reason: "cannot be decompressed" },
            })?;
            self.body = Some(body);
        }
        Ok(self.body.as_deref().expect("it was just set"))
    }
}

/// The same records under another codec.
fn recompress(
    records: &mut Records<'_>,
    header: &RawHeader,
    codec: Compression,
    level: Option<i32>,
) -> Result<Lease, NotAdmitted> {
    const UNREADABLE: AppendError = AppendError::InvalidRecord { reason: "a record cannot be read" };
    let batch = records.batch;
    let body = records.body()?;
    let mut builder = BatchBuilder::rewrite(&header.decode(), codec, level);
    for record in batch.records_in(body) {
        let record = record.map_err(|_| UNREADABLE)?;
        builder.retain(&record).map_err(|_| UNREADABLE)?;
    }
    let mut bytes = Vec::new();
    builder.finish(&mut bytes).map_err(|_| UNREADABLE)?;
    Ok(Lease::from_vec(bytes))
}

impl From<BatchError> for AppendError {
    fn from(error: BatchError) -> AppendError {
        let invalid = |reason| AppendError::InvalidRecord { reason };
        match error {
            BatchError::Length { .. } | BatchError::Checksum { .. } | BatchError::Offsets { .. } => {
                AppendError::Corrupt(error)
            }
            BatchError::Magic { magic: 0 | 1 } | BatchError::Truncated { .. } | BatchError::TrailingBytes { .. } => {
                AppendError::NotOneBatch(error)
            }
            BatchError::Magic { .. } => AppendError::Corrupt(error),
            BatchError::Codec { .. } => AppendError::UnsupportedCompression,
            BatchError::RecordCount { .. } => invalid("record count and last offset delta contradict each other"),
            BatchError::BaseOffset { .. } => invalid("a producer's base offset is 0"),
            BatchError::Control => invalid("clients may not write control batches"),
            BatchError::DeleteHorizon => invalid("clients may not set a delete horizon"),
            BatchError::Producer { .. } => invalid("producer id, epoch and sequence do not go together"),
        }
    }
}
