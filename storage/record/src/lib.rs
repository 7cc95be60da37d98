//! Offsets, ids, the record batch of Kafka (magic 2), its checksum and its five codecs.
//!
//! This crate owns what a record batch *is*, on the wire and on disk (the two are the same bytes). It never does IO,
//! never looks at a clock and never starts a thread: `no_std` with `alloc`, so the compiler keeps it that way.
//! Nothing here indexes a slice, so bytes from a peer can be refused but cannot make it panic.
//!
//! The tour:
//! - [`offset`][]: [`Offset`] and one type for each offset of a log ([`HighWatermark`], [`LogEndOffset`], …).
//! - [`id`][]: topics, partitions, brokers, producers, epochs, sequences, timestamps.
//! - [`batch`][]: [`RecordBatch`] is the borrowed view, [`BatchHeader`] its decoded header, [`Batches`] walks a
//!   concatenation.
//! - [`mod@validate`][]: the one pass over header and body, and every reason to refuse a batch.
//! - [`patch`][]: the fields a broker sets, in a copy of the header ([`RawHeader`]) or in place.
//! - [`record`][]: [`RecordIter`] reads the records of a batch and cannot read past it.
//! - [`keys`][]: [`RecordKeys`] reads of each record which key it has, and checks the rest.
//! - [`builder`][]: [`BatchBuilder`] makes batches.
//! - [`thin`][]: [`ThinnedBatch`] is what is left of a batch some of whose records go, as they lie ([`RecordSpans`]).
//! - [`compression`][]: [`compress`] and [`decompress`], the latter under a cap on its output.
//! - [`checksum`][]: CRC-32C.
#![no_std]
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

extern crate alloc;

pub mod batch;
pub mod builder;
pub mod checksum;
pub mod compression;
pub mod id;
pub mod keys;
pub mod offset;
pub mod patch;
#[cfg(test)]
mod random;
pub mod record;
pub mod thin;
pub mod validate;
mod varint;

pub use batch::{Attributes, BatchHeader, Batches, HEADER_LEN, LOG_OVERHEAD, RecordBatch, TimestampType};
pub use builder::{BatchBuilder, BatchOptions, BuildError, RecordHeader};
pub use compression::{Compression, CompressionError, compress, decompress};
pub use id::{
    BrokerId, LeaderEpoch, LogId, ParseTopicIdError, PartitionIndex, ProducerEpoch, ProducerId, Sequence, Timestamp,
    TopicId,
};
pub use keys::{RecordKey, RecordKeys};
pub use offset::{FlushedEndOffset, HighWatermark, LastStableOffset, LogEndOffset, LogStartOffset, Offset};
pub use patch::RawHeader;
pub use record::{Header, Headers, Record, RecordError, RecordIter, RecordsSummary};
pub use thin::{RecordSpans, ThinnedBatch};
pub use validate::{BatchError, Origin, validate, validate_header};
