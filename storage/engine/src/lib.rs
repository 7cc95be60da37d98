//! The log of a partition, on disk as it is on the wire: segments, indexes, group commit, recovery, retention, and the
//! data directory that holds them.
//!
//! Forbidden here: the network. One [`Engine`] runs on each core and shares nothing with the others but the [`DataDir`].
//!
//! The tour:
//! - [`DataDir`]: the directory's lock, format and identity. [`Engine`]: the logs that one core has open.
//! - [`Log::append`] (`log.rs`) is one function; `admission.rs` checks the batch (`opening.rs` opens it, on a helper thread
//!   where that takes long), `segment.rs` writes it together with its neighbours, `flush.rs` makes it durable and acknowledges.
//!   [`Log::stage`] (`staged.rs`) is the same for a large batch whose body is received straight into its place.
//! - [`Log::read`] (`read.rs`) answers with ranges of files; [`Log::offset_for_timestamp`] (`times.rs`) looks by time.
//! - `recovery.rs` finds the end of a log after a crash, from what `checkpoint.rs` stored (`snapshot.rs` is one log's part,
//!   `archive.rs` the bytes of the file). `touched.rs` notes which logs were written to since; the others are opened
//!   without a look at their files, which `verify.rs` makes up for when they are used.
//! - `retention.rs` removes what is old, what is asked for, what is cut; `compaction.rs` what later records replace.
//! - [`inspect`] reads directories that no process has open.
//! - `state.rs` is all that a log knows in memory, with the order of its limits; [`index`], [`epoch_cache`] and
//!   [`producer_state`] are its pure parts; [`layout`] names the files.
//! - `statistics.rs` is what can be told of all this in numbers.
//! - `cold.rs` bounds what is read from the disk beside appends that wait for it; `checked.rs` remembers what was checked.
//! - `device.rs` is the seam to the disk: through the page cache, or around it. The direct device keeps the end of each log
//!   in memory (`tail.rs`), writes in place where it can (`space.rs`), and flushes once for all (`shared_flush.rs`).
//!
//! Bytes on disk are drawn in `docs/format.md`.
#![forbid(unsafe_code)]

mod admission;
mod archive;
mod archive_1;
mod checked;
mod checkpoint;
mod cold;
mod compaction;
mod config;
mod data_dir;
mod device;
mod engine;
pub mod epoch_cache;
mod error;
mod files;
mod flush;
mod group;
pub mod index;
pub mod inspect;
pub mod layout;
mod log;
mod opening;
pub mod producer_state;
mod read;
mod record_faults;
mod recovery;
mod reserve;
mod retention;
mod scan;
mod scrub;
mod segment;
mod segment_index;
mod shared_flush;
mod snapshot;
mod space;
mod staged;
mod state;
mod statistics;
mod tail;
mod times;
mod touched;
mod verify;

pub use archive::{CHECKPOINT_HEADER_LEN, CHECKPOINT_MAGIC, CHECKPOINT_VERSION};
pub use compaction::{COMPACTION_HEADER_LEN, COMPACTION_MAGIC, COMPACTION_SEGMENT_LEN, COMPACTION_VERSION, Compacted};
pub use config::{
    CleanerConfig, CleanupPolicy, EngineConfig, LogConfig, PlantedBug, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN,
    StoredCompression,
};
pub use data_dir::{DataDir, FORMAT_VERSION, Identity, WantedIdentity, read_identity};
pub use device::DeviceChoice;
pub use engine::Engine;
pub use error::{AppendError, Error, ReadError};
pub use layout::LogName;
pub use log::{AppendOrigin, Appended, Log};
pub use read::{FirstBatch, Piece, ReadLimit, ReadOut};
pub use record_faults::{InvalidRecords, RECORD_FAULTS_MAX, RecordFault};
pub use staged::{Staged, Staging};
pub use state::LogOffsets;
pub use statistics::{CompactionStatistics, LogStatistics, ReadStatistics, ScrubStatistics, Statistics};
pub use times::TimedOffset;
pub use touched::{SLOT_LEN as TOUCHED_SLOT_LEN, TOUCHED_MAGIC, TOUCHED_VERSION};
