//! The segment that a pass is writing.
//!
//! Owns its file, its index, and what is on its way to the disk: one write and one flush in flight, while the next bytes are
//! gathered. Decides nothing.

use std::pin::Pin;

use heddle_io::{Buffer, File, Io};
use heddle_record::{Offset, RecordBatch, Timestamp};

use super::pass::CHUNK_BYTES;
use crate::index::{IndexBuilder, IndexedBatch};

/// Bytes that are written before they are flushed: a disk that has much to write back holds up everybody.
const FLUSH_BYTES: u64 = 16 << 20;
/// Room behind what is gathered for the batch that goes beyond it.
const SPARE_BYTES: usize = 128 << 10;

type InFlight = Pin<Box<dyn Future<Output = Result<(), heddle_io::Error>>>>;

/// A segment that is being made. As long as nothing has gone there is no output: the source is as good.
pub(super) struct Target {
    pub(super) base: Offset,
    pub(super) generation: u64,
    pub(super) size: u64,
    pub(super) index: IndexBuilder,
    /// The earliest delete horizon of its batches.
    pub(super) horizon: Option<Timestamp>,
    pub(super) output: Option<Output>,
}

impl Target {
    pub(super) fn new(base: Offset, generation: u64) -> Target {
        Target { base, generation, size: 0, index: IndexBuilder::default(), horizon: None, output: None }
    }

    /// Adds a whole batch.
    pub(super) fn put(&mut self, bytes: &[u8], interval_bytes: u32) {
        let header = *RecordBatch::peek(bytes).expect("a whole batch").header();
        let batch = IndexedBatch {
            position: u32::try_from(self.size).expect("a segment is below 2 GiB"),
            len: u32::try_from(bytes.len()).expect("a batch is below 2 GiB"),
            last_offset: header.last_offset(),
            max_timestamp: crate::scan::time_of_records(&header),
        };
        self.index.note(batch, interval_bytes);
        self.size += bytes.len() as u64;
        self.horizon = match (self.horizon, header.delete_horizon()) {
            (Some(known), Some(other)) => Some(known.min(other)),
            (known, other) => known.or(other),
        };
        if let Some(output) = &mut self.output {
            output.gather(bytes);
        }
    }
}

/// The file of a segment that is being made.
pub(super) struct Output {
    file: File,
    gathered: Buffer,
    /// Bytes that were given to the file, and how many of them to a flush.
    written: u64,
    flushed: u64,
    writing: Option<InFlight>,
    flushing: Option<InFlight>,
}

impl Output {
    pub(super) fn new(io: &Io, file: File) -> Output {
        let gathered = io.buffer(CHUNK_BYTES + SPARE_BYTES);
        Output { file, gathered, written: 0, flushed: 0, writing: None, flushing: None }
    }

    /// Bytes that come next.
    pub(super) fn gather(&mut self, bytes: &[u8]) {
        self.gathered.extend_from_slice(bytes);
    }

    /// Bytes that wait to be written.
    pub(super) fn waiting(&self) -> usize {
        self.gathered.len()
    }

    /// Begins to write what has gathered, once what was begun before is done; and flushes now and then. Returns how many
    /// bytes that are.
    ///
    /// # Errors
    /// The disk's, of what was begun before.
    pub(super) async fn write(&mut self, io: &Io) -> Result<u64, heddle_io::Error> {
        let bytes = std::mem::replace(&mut self.gathered, io.buffer(CHUNK_BYTES + SPARE_BYTES)).freeze();
        let len = bytes.len() as u64;
        finish(&mut self.writing).await?;
        self.writing = Some(Box::pin(io.write(&self.file, self.written, vec![bytes])));
        self.written += len;
        if self.written - self.flushed >= FLUSH_BYTES {
            // A flush covers what was written before it began.
            finish(&mut self.writing).await?;
            finish(&mut self.flushing).await?;
            self.flushing = Some(Box::pin(io.sync_data(&self.file)));
            self.flushed = self.written;
        }
        Ok(len)
    }

    /// Waits until all of it is on the disk. Returns how many bytes that are.
    ///
    /// # Errors
    /// The disk's.
    pub(super) async fn complete(mut self, io: &Io) -> Result<u64, heddle_io::Error> {
        finish(&mut self.writing).await?;
        finish(&mut self.flushing).await?;
        io.sync_data(&self.file).await?;
        Ok(self.written)
    }
}

async fn finish(begun: &mut Option<InFlight>) -> Result<(), heddle_io::Error> {
    match begun.take() {
        Some(begun) => begun.await,
        None => Ok(()),
    }
}
