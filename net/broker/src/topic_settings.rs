//! From a topic's settings to what the engine and the partition go by.
//!
//! Owns the translation between the two crates' types, nothing else: names, defaults and checks are in
//! [`heddle_cluster::settings`], limits of the engine in [`heddle_engine::LogConfig`].

use std::time::Duration;

use heddle_cluster::settings::layers::Values;
use heddle_cluster::settings::topic::{self as cluster, TopicConfig};
use heddle_cluster::{MetadataImage, TopicImage};
use heddle_engine::{CleanupPolicy, LogConfig, StoredCompression};
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

fn log_config(config: &TopicConfig) -> LogConfig {
    LogConfig {
        segment_bytes: config.segment_bytes,
        segment_age_max: Duration::from_millis(config.segment_ms),
        segment_index_bytes: config.segment_index_bytes,
        index_interval_bytes: config.index_interval_bytes,
        retention_age: config.retention_ms.map(Duration::from_millis),
        retention_bytes: config.retention_bytes,
        cleanup_policy: match (config.cleanup_policy.delete, config.cleanup_policy.compact) {
            (true, true) => CleanupPolicy::CompactDelete,
            (false, true) => CleanupPolicy::Compact,
            (_, false) => CleanupPolicy::Delete,
        },
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
