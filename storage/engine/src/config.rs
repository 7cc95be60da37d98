//! Settings of the engine and of one log, as checked values. Every queue, loop and buffer of the engine has its limit here.
//!
//! Owns defaults and checks. It never parses text: the broker's table of settings does, and hands over these structs.

use std::time::Duration;

use heddle_record::{Compression, LogId, Offset, TimestampType};

use crate::device::DeviceChoice;

/// What one core's engine may use. Times are real time of [`heddle_io::Io`].
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Which core this engine runs on, `0..cores`.
    pub core: usize,
    /// How many cores share the data directory.
    pub cores: usize,
    /// File descriptors that idle logs may keep open on this core; at least 16. Files with bytes that were not flushed
    /// stay open besides, and past this many of those a relaxed topic is flushed as if it were not.
    pub open_files_max: usize,
    /// Bytes that were accepted by one log and are not written yet; appends beyond wait.
    pub pending_bytes_max: usize,
    /// The same for all logs of this core together.
    pub core_pending_bytes_max: usize,
    /// Flushes that this core may have in flight.
    pub flushes_in_flight_max: usize,
    /// How often [`crate::Engine::maintain`] writes a checkpoint, if there is anything new.
    pub checkpoint_interval: Duration,
    /// Bytes appended since the last checkpoint that ask for one before its time: recovery never scans much more.
    pub checkpoint_bytes: u64,
    /// Logs that turned from idle to busy since the last checkpoint that ask for one before its time: the next start after a
    /// kill looks at not many more.
    pub checkpoint_touched_logs: usize,
    /// A log that was appended to so lately counts as busy in a checkpoint: the next start looks at it in any case, and it
    /// goes on without another note.
    pub checkpoint_busy_for: Duration,
    /// How often [`crate::Engine::maintain`] deletes what retention no longer wants.
    pub retention_check_interval: Duration,
    /// Idle producers are forgotten after this long (`producer.id.expiration.ms`).
    pub producer_id_expiration: Duration,
    /// Producers remembered by this core; beyond it the longest idle of the appending log are forgotten.
    pub producer_ids_max: usize,
    /// Output limit in bytes of one batch that must be decompressed.
    pub decompressed_bytes_max: usize,
    /// How logs are kept (`log.device`).
    pub device: DeviceChoice,
    /// Bytes of the ends of logs that this core keeps in memory for their readers, on the direct device.
    pub tail_bytes_max: usize,
    /// Bytes of sealed segments that [`crate::Engine::maintain`] checks for rot in a second; 0 checks none
    /// (`log.scrub.bytes.per.second`).
    pub scrub_bytes_per_second: u64,
    /// How logs are compacted. May change while the engine runs ([`crate::Engine::set_cleaner`]).
    pub cleaner: CleanerConfig,
    /// A bug to plant, for tests that must be able to fail.
    #[doc(hidden)]
    pub planted_bug: PlantedBug,
}

/// How one core's engine compacts its logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CleanerConfig {
    /// Whether it does (`log.cleaner.enable`).
    pub enabled: bool,
    /// Bytes of memory for the keys of one pass (this core's share of `log.cleaner.dedupe.buffer.size`). A log with more
    /// keys takes several passes.
    pub map_bytes_max: usize,
    /// Bytes that are read and written in a second at most (this core's share of `log.cleaner.io.max.bytes.per.second`).
    pub bytes_per_second: Option<u64>,
    /// How long to wait when no log needs it (`log.cleaner.backoff.ms`).
    pub backoff: Duration,
}

impl Default for CleanerConfig {
    fn default() -> Self {
        CleanerConfig {
            enabled: true,
            map_bytes_max: 128 << 20,
            bytes_per_second: None,
            backoff: Duration::from_secs(15),
        }
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            core: 0,
            cores: 1,
            open_files_max: 4096,
            pending_bytes_max: 16 << 20,
            core_pending_bytes_max: 128 << 20,
            flushes_in_flight_max: 32,
            checkpoint_interval: Duration::from_secs(60),
            checkpoint_bytes: 1 << 30,
            checkpoint_touched_logs: 1024,
            checkpoint_busy_for: Duration::from_secs(10),
            retention_check_interval: Duration::from_secs(300),
            producer_id_expiration: Duration::from_secs(24 * 60 * 60),
            producer_ids_max: 100_000,
            decompressed_bytes_max: 128 << 20,
            device: DeviceChoice::Auto,
            tail_bytes_max: 256 << 20,
            scrub_bytes_per_second: 8 << 20,
            cleaner: CleanerConfig::default(),
            planted_bug: PlantedBug::None,
        }
    }
}

/// A defect that a crash test plants to show that it would be found.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlantedBug {
    /// The engine as it is.
    #[default]
    None,
    /// Written bytes count as flushed (acknowledged before the flush).
    AckBeforeFlush,
    /// A failed flush is tried again and its second answer is believed (case 26).
    RetryFailedFlush,
    /// A new segment's directory entry is not synced before the first acknowledgement (case 27).
    NoDirectorySync,
    /// What recovery cuts off stays in the file (case 41).
    KeepCutTail,
    /// A log that a checkpoint calls idle is written to without a note of it.
    NoTouchedNote,
    /// A rewritten segment takes its place before anything durable says so.
    SwapWithoutManifest,
    /// What recovery finds behind the last checkpoint counts as flushed without a flush.
    FoundIsNotFlushed,
}

/// How one log is kept. The broker makes it from the topic's settings; `checked` is called by the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A segment that an append would carry beyond this many bytes is sealed first (`segment.bytes`).
    pub segment_bytes: u32,
    /// A segment older than this is sealed by the next append (`segment.ms`).
    pub segment_age_max: Duration,
    /// What a segment's age may be sealed earlier by, so that logs do not all roll at once (`segment.jitter.ms`).
    pub segment_jitter_max: Duration,
    /// Bytes of an offset index that make its segment be sealed (`segment.index.bytes`).
    pub segment_index_bytes: u32,
    /// Bytes between two index entries (`index.interval.bytes`).
    pub index_interval_bytes: u32,
    /// Sealed and old active segments are deleted this long after their last record; `None` keeps them (`retention.ms`).
    pub retention_age: Option<Duration>,
    /// The oldest segments go while the log stays at least this large; `None` keeps them (`retention.bytes`).
    pub retention_bytes: Option<u64>,
    /// What retention may do at all (`cleanup.policy`).
    pub cleanup_policy: CleanupPolicy,
    /// A record is not compacted away before it is this old (`min.compaction.lag.ms`).
    pub compaction_lag_min: Duration,
    /// A record that is older is compacted whatever else holds; `None` never asks for that (`max.compaction.lag.ms`).
    pub compaction_lag_max: Option<Duration>,
    /// The part of a log that must be dirty before it is compacted, in millionths (`min.cleanable.dirty.ratio`).
    pub dirty_ratio_min_millionths: u32,
    /// How long a tombstone stays after the first pass over it (`delete.retention.ms`).
    pub delete_retention: Duration,
    /// Records between two flushes; 1, the default, makes every acknowledged record durable (`flush.messages`).
    pub flush_messages: u64,
    /// The longest that a written record waits for a flush where `flush_messages` is above 1 (`flush.ms`).
    pub flush_age_max: Option<Duration>,
    /// The largest batch taken, in bytes as stored (`max.message.bytes`).
    pub max_message_bytes: u32,
    /// The codec that batches are stored with (`compression.type`).
    pub compression: StoredCompression,
    /// Whose timestamps are stored (`message.timestamp.type`).
    pub timestamp_type: TimestampType,
    /// How far a record's timestamp may lie before now; `None` is no bound (`message.timestamp.before.max.ms`).
    pub timestamp_before_max: Option<Duration>,
    /// How far a record's timestamp may lie after now; `None` is no bound (`message.timestamp.after.max.ms`).
    pub timestamp_after_max: Option<Duration>,
    /// On a full disk it gets the space that is kept for what must not fail: metadata, without which nothing is deleted.
    pub uses_reserve: bool,
}

/// Which codec a log stores batches with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredCompression {
    /// Whatever the producer chose.
    Producer,
    /// This one: batches that come with another are compressed again, at `level` where the codec has levels.
    Codec {
        /// The codec.
        codec: Compression,
        /// Its level; `None` is the codec's default.
        level: Option<i32>,
    },
}

/// What may be removed from a log, besides what DeleteRecords asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CleanupPolicy {
    /// Whole old segments.
    Delete,
    /// Only records that a later one with the same key replaces. Retention never touches such a log.
    Compact,
    /// Both.
    CompactDelete,
    /// Nothing.
    Keep,
}

impl CleanupPolicy {
    /// Whether retention by time and size applies.
    pub fn deletes(self) -> bool {
        matches!(self, CleanupPolicy::Delete | CleanupPolicy::CompactDelete)
    }

    /// Whether records must have keys.
    pub fn compacts(self) -> bool {
        matches!(self, CleanupPolicy::Compact | CleanupPolicy::CompactDelete)
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            segment_bytes: 1 << 30,
            segment_age_max: Duration::from_secs(7 * 24 * 60 * 60),
            segment_jitter_max: Duration::ZERO,
            segment_index_bytes: 10 << 20,
            index_interval_bytes: 4096,
            retention_age: Some(Duration::from_secs(7 * 24 * 60 * 60)),
            retention_bytes: None,
            cleanup_policy: CleanupPolicy::Delete,
            compaction_lag_min: Duration::ZERO,
            compaction_lag_max: None,
            dirty_ratio_min_millionths: 500_000,
            delete_retention: Duration::from_secs(24 * 60 * 60),
            flush_messages: 1,
            flush_age_max: None,
            max_message_bytes: 1_048_588,
            compression: StoredCompression::Producer,
            timestamp_type: TimestampType::CreateTime,
            timestamp_before_max: None,
            timestamp_after_max: Some(Duration::from_secs(60 * 60)),
            uses_reserve: false,
        }
    }
}

/// The least that `segment_bytes` may be; Kafka's own bound is 14 bytes, ours holds at least a few batches.
pub const SEGMENT_BYTES_MIN: u32 = 1024;
/// The most that `segment_bytes` may be: positions in an index are 31 bits.
pub const SEGMENT_BYTES_MAX: u32 = i32::MAX as u32;

impl LogConfig {
    /// The same settings, raised or lowered to what the engine can keep.
    ///
    /// Kafka accepts a few values that no log can keep (a segment of 14 bytes); refusing a topic for them would break
    /// clients that work elsewhere.
    pub fn checked(mut self) -> LogConfig {
        self.segment_bytes = self.segment_bytes.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        self.segment_index_bytes = self.segment_index_bytes.max(crate::index::OFFSET_ENTRY_LEN as u32);
        self.flush_messages = self.flush_messages.max(1);
        self
    }

    /// How long a segment of a log takes appends: in a compacted topic not longer than a record may wait for compaction,
    /// and by a share of the jitter less, which is another for each segment but always the same for one.
    pub(crate) fn segment_lifetime(&self, log: LogId, base_offset: Offset) -> Duration {
        let lag = self.compaction_lag_max.filter(|_| self.cleanup_policy.compacts());
        let lifetime = lag.map_or(self.segment_age_max, |lag| lag.min(self.segment_age_max));
        if self.segment_jitter_max.is_zero() {
            return lifetime;
        }
        let jitter_max = self.segment_jitter_max.min(self.segment_age_max).as_millis().max(1);
        let jitter = u128::from(mixed(log, base_offset)) % jitter_max;
        lifetime.saturating_sub(Duration::from_millis(u64::try_from(jitter).unwrap_or(u64::MAX)))
    }

    /// Whether records may be acknowledged and read before they survive a power cut.
    pub fn relaxes_flushing(&self) -> bool {
        self.flush_messages > 1
    }
}

/// A number that looks like chance, of a segment's name.
fn mixed(log: LogId, base_offset: Offset) -> u64 {
    let [topic @ .., _, _, _, _, _, _, _, _] = log.topic.bytes();
    let words = [u64::from_le_bytes(topic), log.partition.get() as u64, base_offset.get() as u64];
    // The finalizer of splitmix64, over each word in turn.
    words.into_iter().fold(0x9e37_79b9_7f4a_7c15, |state: u64, word| {
        let state = (state ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    })
}

#[cfg(test)]
mod tests {
    use heddle_record::{PartitionIndex, TopicId};

    use super::*;

    #[test]
    fn every_log_is_durable_by_default() {
        assert!(!LogConfig::default().relaxes_flushing());
        assert!(LogConfig { flush_messages: 2, ..LogConfig::default() }.relaxes_flushing());
    }

    #[test]
    fn impossible_sizes_are_brought_into_range() {
        let config = LogConfig { segment_bytes: 14, segment_index_bytes: 0, flush_messages: 0, ..LogConfig::default() };
        let config = config.checked();
        assert_eq!(config.segment_bytes, SEGMENT_BYTES_MIN);
        assert_eq!(config.segment_index_bytes, 8);
        assert_eq!(config.flush_messages, 1);
    }

    #[test]
    fn compact_only_logs_are_not_for_retention() {
        assert!(!CleanupPolicy::Compact.deletes() && CleanupPolicy::Compact.compacts());
        assert!(CleanupPolicy::CompactDelete.deletes() && CleanupPolicy::CompactDelete.compacts());
        assert!(CleanupPolicy::Delete.deletes() && !CleanupPolicy::Delete.compacts());
        assert!(!CleanupPolicy::Keep.deletes() && !CleanupPolicy::Keep.compacts());
    }

    #[test]
    fn a_segment_is_sealed_earlier_by_its_own_share_of_the_jitter() {
        let hour = Duration::from_secs(3_600);
        let config = LogConfig { segment_age_max: hour, ..LogConfig::default() };
        let log = |partition| LogId { topic: TopicId::new([7; 16]), partition: PartitionIndex::new(partition) };
        assert_eq!(config.segment_lifetime(log(0), Offset::ZERO), hour, "without jitter");
        let config = LogConfig { segment_jitter_max: hour / 4, ..config };
        let lifetimes: Vec<Duration> =
            (0..100).map(|it| config.segment_lifetime(log(it % 10), Offset::new(it.into()))).collect();
        assert!(lifetimes.iter().all(|lifetime| (hour * 3 / 4..=hour).contains(lifetime)), "{lifetimes:?}");
        let mut distinct = lifetimes.clone();
        distinct.sort();
        distinct.dedup();
        assert!(distinct.len() > 90, "{distinct:?}");
        assert!(distinct[0] < hour * 4 / 5 && distinct[distinct.len() - 1] > hour * 19 / 20, "{distinct:?}");
        assert_eq!(config.segment_lifetime(log(3), Offset::new(3)), lifetimes[3], "the same after a start");
        // As in Kafka, not more than all of segment.ms.
        let config = LogConfig { segment_jitter_max: hour * 9, ..config };
        assert!((0..100).all(|it| config.segment_lifetime(log(it), Offset::ZERO) > Duration::ZERO));
    }
}
