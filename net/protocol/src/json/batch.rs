//! Record batches as JSON: header fields as they are stored, records as a consumer sees them, bytes in hex.

use super::{Shown, write_hex, write_plain, write_string};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use heddle_record::{
    BatchBuilder, BatchError, BuildError, CompressionError, HEADER_LEN, Origin, RecordBatch, RecordError, validate,
};

/// A compressed batch is shown if it holds this many bytes at most.
const BODY_BYTES_MAX: usize = 256 << 20;

/// Checks the batch at the start of `bytes`, shows it, and builds it again from its records with the same codec.
///
/// # Errors
/// [`BatchShowError`] when the bytes are no whole and sound batch.
pub fn show(bytes: &[u8]) -> Result<Shown, BatchShowError> {
    let batch = RecordBatch::peek(bytes).map_err(|error| BatchShowError::header(error, bytes))?;
    let batch = validate(batch.bytes(), Origin::Log).map_err(|error| BatchShowError::header(error, bytes))?;
    let mut scratch = Vec::new();
    let body = batch.uncompressed_body(BODY_BYTES_MAX, &mut scratch)?;
    let mut json = String::new();
    write_header(&mut json, &batch);
    json.push_str(",\"records\":[");
    let compression = batch.compression().expect("the codec was checked");
    let mut builder = BatchBuilder::rewrite(batch.header(), compression, None);
    for (index, record) in batch.records_in(body).enumerate() {
        let record = record?;
        if index > 0 {
            json.push(',');
        }
        write_record(&mut json, &batch, &record);
        builder.retain(&record)?;
    }
    json.push_str("]}");
    let mut again = Vec::new();
    builder.finish(&mut again)?;
    Ok(Shown { version: i16::from(batch.header().magic), json, bytes: again, trailing: bytes.len() - batch.len() })
}

fn write_header(out: &mut String, batch: &RecordBatch<'_>) {
    let fields = [
        ("base_offset", batch.base_offset().get()),
        ("last_offset_delta", i64::from(batch.last_offset_delta())),
        ("partition_leader_epoch", i64::from(batch.partition_leader_epoch().get())),
        ("attributes", i64::from(batch.attributes().0)),
        ("crc", i64::from(batch.crc())),
        ("base_timestamp", batch.base_timestamp().get()),
        ("max_timestamp", batch.max_timestamp().get()),
        ("producer_id", batch.producer_id().get()),
        ("producer_epoch", i64::from(batch.producer_epoch().get())),
        ("base_sequence", i64::from(batch.base_sequence().get())),
        ("last_sequence", i64::from(batch.last_sequence().get())),
    ];
    out.push('{');
    for (index, (name, value)) in fields.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write_string(out, name);
        out.push(':');
        write_plain(out, value);
    }
}

fn write_record(out: &mut String, batch: &RecordBatch<'_>, record: &heddle_record::Record<'_>) {
    out.push_str("{\"offset_delta\":");
    write_plain(out, record.offset_delta);
    out.push_str(",\"timestamp\":");
    write_plain(out, batch.header().timestamp_of(record).get());
    out.push_str(",\"key\":");
    write_hex(out, record.key);
    out.push_str(",\"value\":");
    write_hex(out, record.value);
    out.push_str(",\"headers\":[");
    for (index, header) in record.headers.iter().enumerate() {
        out.push_str(if index > 0 { ",{\"key\":" } else { "{\"key\":" });
        write_string(out, &String::from_utf8_lossy(header.key));
        out.push_str(",\"value\":");
        write_hex(out, header.value);
        out.push('}');
    }
    out.push_str("]}");
}

/// Why bytes are no batch that can be shown, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShowError {
    /// The byte of the field that is wrong; the first of the records when it is in them.
    pub at: usize,
    cause: Cause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Batch(BatchError),
    Compression(CompressionError),
    Record(RecordError),
    Build(BuildError),
}

impl BatchShowError {
    fn header(error: BatchError, bytes: &[u8]) -> Self {
        let at = match error {
            BatchError::Truncated { .. } => bytes.len(),
            BatchError::Length { .. } => 8,
            BatchError::Magic { .. } => 16,
            BatchError::Checksum { .. } => 17,
            BatchError::Codec { .. } => 21,
            BatchError::RecordCount { .. } => 57,
            // What remains is about the base offset, or only said to producers.
            _ => 0,
        };
        BatchShowError { at, cause: Cause::Batch(error) }
    }
}

impl From<CompressionError> for BatchShowError {
    fn from(error: CompressionError) -> Self {
        BatchShowError { at: HEADER_LEN, cause: Cause::Compression(error) }
    }
}

impl From<RecordError> for BatchShowError {
    fn from(error: RecordError) -> Self {
        BatchShowError { at: HEADER_LEN, cause: Cause::Record(error) }
    }
}

impl From<BuildError> for BatchShowError {
    fn from(error: BuildError) -> Self {
        BatchShowError { at: HEADER_LEN, cause: Cause::Build(error) }
    }
}

impl fmt::Display for BatchShowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Batch(error) => write!(f, "{error}, at byte {}", self.at),
            Cause::Compression(error) => write!(f, "{error}, at byte {}", self.at),
            Cause::Record(error) => write!(f, "{error}, in the records from byte {}", self.at),
            Cause::Build(error) => write!(f, "cannot be written again: {error}"),
        }
    }
}

impl core::error::Error for BatchShowError {}
