//! From settings to what the engine and the partition go by: a topic's, and those of the cleaner.
//!
//! Owns the translation between the two crates' types, nothing else: names, defaults and checks are in
//! [`heddle_cluster::settings`], limits of the engine in [`heddle_engine::LogConfig`].

use std::time::Duration;

use heddle_cluster::settings::layers::Values;
use heddle_cluster::settings::topic::{self as cluster, TopicConfig};
use heddle_cluster::{MetadataImage, TopicImage};
use heddle_engine::{CleanerConfig, CleanupPolicy, LogConfig, StoredCompression};
use heddle_record::{BrokerId, Compression, TimestampType};

/// What a topic's settings come to on this broker.
pub(crate) struct TopicSettings {
    /// For the engine.
    pub(crate) log: LogConfig,
    /// In-sync replicas that an append with acks=all needs.
    pub(crate) in_sync_min: usize,
}

/// The settings of `topic`, all layers counted; `start` is what the broker was started with.
pub(crate) fn of(image: &MetadataImage, broker: BrokerId, start: &Values, topic: &TopicImage) -> TopicSettings {
    let config = TopicConfig::new(&image.layers(broker, start), &topic.config);
    TopicSettings { in_sync_min: config.min_insync_replicas as usize, log: log_config(&config) }
}

/// What the settings of the cleaner come to on one of `cores` cores, all layers counted: memory and bytes per second are
/// shared out evenly.
pub(crate) fn cleaner(image: &MetadataImage, broker: BrokerId, start: &Values, cores: usize) -> CleanerConfig {
    let layers = image.layers(broker, start);
    let text = |name| layers.broker_value(name).expect("every setting of the cleaner has a default");
    let number = |name| text(name).trim().parse::<u64>().unwrap_or(0);
    let bytes: f64 = text("log.cleaner.io.max.bytes.per.second").trim().parse().unwrap_or(f64::MAX);
    let share = bytes / cores as f64;
    CleanerConfig {
        enabled: !text("log.cleaner.enable").trim().eq_ignore_ascii_case("false"),
        map_bytes_max: usize::try_from(number("log.cleaner.dedupe.buffer.size")).unwrap_or(usize::MAX) / cores,
        bytes_per_second: (share < u64::MAX as f64).then_some((share as u64).max(1)),
        backoff: Duration::from_millis(number("log.cleaner.backoff.ms")).max(CLEANER_BACKOFF_MIN),
    }
}

/// A cleaner that has nothing to do looks not more often than this.
const CLEANER_BACKOFF_MIN: Duration = Duration::from_millis(10);

fn log_config(config: &TopicConfig) -> LogConfig {
    LogConfig {
        segment_bytes: config.segment_bytes,
        segment_age_max: Duration::from_millis(config.segment_ms),
        segment_jitter_max: Duration::from_millis(config.segment_jitter_ms),
        segment_index_bytes: config.segment_index_bytes,
        index_interval_bytes: config.index_interval_bytes,
        retention_age: config.retention_ms.map(Duration::from_millis),
        retention_bytes: config.retention_bytes,
        cleanup_policy: match (config.cleanup_policy.delete, config.cleanup_policy.compact) {
            (true, true) => CleanupPolicy::CompactDelete,
            (false, true) => CleanupPolicy::Compact,
            (true, false) => CleanupPolicy::Delete,
            (false, false) => CleanupPolicy::Keep,
        },
        compaction_lag_min: Duration::from_millis(config.min_compaction_lag_ms),
        compaction_lag_max: limited(config.max_compaction_lag_ms),
        dirty_ratio_min_millionths: config.min_cleanable_dirty_millionths,
        delete_retention: Duration::from_millis(config.delete_retention_ms),
        flush_messages: config.flush_messages,
        flush_age_max: limited(config.flush_ms),
        max_message_bytes: config.max_message_bytes,
        compression: compression(config.compression),
        timestamp_type: match config.message_timestamp_type {
            cluster::TimestampType::CreateTime => TimestampType::CreateTime,
            cluster::TimestampType::LogAppendTime => TimestampType::LogAppendTime,
        },
        timestamp_before_max: limited(config.message_timestamp_before_max_ms),
        timestamp_after_max: limited(config.message_timestamp_after_max_ms),
        uses_reserve: false,
    }
}

/// A number of milliseconds, of which Kafka's largest means no limit.
fn limited(milliseconds: u64) -> Option<Duration> {
    (milliseconds < i64::MAX as u64).then(|| Duration::from_millis(milliseconds))
}

fn compression(stored: cluster::StoredCompression) -> StoredCompression {
    let codec = |codec, level| StoredCompression::Codec { codec, level };
    match stored {
        cluster::StoredCompression::Producer => StoredCompression::Producer,
        cluster::StoredCompression::Uncompressed => codec(Compression::None, None),
        cluster::StoredCompression::Gzip(level) => codec(Compression::Gzip, level),
        cluster::StoredCompression::Snappy => codec(Compression::Snappy, None),
        cluster::StoredCompression::Lz4(level) => codec(Compression::Lz4, Some(level)),
        cluster::StoredCompression::Zstd(level) => codec(Compression::Zstd, Some(level)),
    }
}
