//! The Kafka wire codec: every request, response, header and internal record of Kafka 4.3, in every version that it
//! accepts, and nothing that does IO.
//!
//! The messages are described in `schema/*.txt`, in a notation of our own (`schema/README.md`); `build/` turns them
//! into the structures of [`messages`] (requests and responses, one module for each API), [`records`] (what coordinators
//! keep in internal topics, the consumer protocol, control records) and [`metadata`] (what the cluster decides).
//!
//! - A decoded message borrows from its frame and holds nothing on the heap: strings and bytes are slices, an
//!   [`Array`] is a checked view whose elements are decoded when it is iterated. A count that the remaining bytes cannot
//!   hold is refused before anybody acts on it.
//! - A message to be written holds its arrays as `Vec`s. Its records may stay where they are: [`Records::External`] leaves
//!   a [`Gap`] that the sender fills.
//! - The rules are Kafka's: unknown tagged fields are skipped, of duplicates the last wins, defaults are never written; a
//!   field that the version lacks must be at its default unless the schema says that it may be dropped.
//!
//! ```
//! use heddle_protocol::messages::produce::{PartitionProduceData, ProduceRequest, TopicProduceData};
//! use heddle_protocol::{ApiKey, Message, Reader, Records, frame, Writer};
//!
//! let partition = PartitionProduceData { index: 0, records: Some(Records::Bytes(b"...")) };
//! let topic = TopicProduceData { name: "loom", partition_data: vec![partition].into(), ..Default::default() };
//! let request = ProduceRequest { acks: -1, timeout_ms: 1000, topic_data: vec![topic].into(), ..Default::default() };
//! let mut writer = Writer::new();
//! frame::encode_request(&mut writer, 9, 1, Some("example"), &request)?;
//!
//! let bytes = writer.into_bytes();
//! let mut reader = Reader::new(&bytes[frame::LENGTH_BYTES..]);
//! let (api, header) = frame::decode_request_header(&mut reader)?;
//! assert_eq!(api, ApiKey::Produce);
//! let request = ProduceRequest::decode(&mut reader, header.request_api_version)?;
//! for topic in request.topic_data.iter() {
//!     for partition in topic.partition_data.iter() {
//!         assert_eq!((topic.name, partition.index), ("loom", 0));
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

extern crate alloc;

pub mod api_key;
mod array;
mod base64;
mod error;
mod error_code;
mod field;
pub mod frame;
mod message;
mod prelude;
mod reader;
pub mod schema;
mod uuid;
mod writer;

mod generated;
pub mod json;

pub use api_key::ApiKey;
pub use array::{Array, IntoIter, Iter, Wire};
pub use error::{DecodeError, DecodeErrorKind, EncodeError, EncodeErrorKind};
pub use error_code::{ErrorCode, Reaction};
pub use field::{Context, Field, Nullable, Records};
pub use generated::messages::header::{RequestHeader, ResponseHeader};
pub use generated::{messages, metadata, records};
pub use message::{
    Message, RecordKey, Request, VersionRange, decode_prefix, decode_versioned, encode_key, encode_versioned,
};
pub use reader::Reader;
pub use uuid::Uuid;
pub use writer::{FrameStart, Gap, Writer};
