//! A topic's settings as typed values, for the engine: each one effective over all layers.

use alloc::string::{String, ToString};

use super::layers::{Layers, Values};
use super::topic_setting;
use super::value::{boolean, list_items};

/// Which clean-ups a topic asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CleanupPolicy {
    /// Old segments are deleted by age and size.
    pub delete: bool,
    /// The last record of each key is kept.
    pub compact: bool,
}

/// The codec that batches are stored in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoredCompression {
    /// As the producer sent them.
    Producer,
    /// Not compressed.
    Uncompressed,
    /// gzip at this level; `None`: the codec's own default.
    Gzip(Option<i32>),
    /// snappy.
    Snappy,
    /// lz4 at this level.
    Lz4(i32),
    /// zstd at this level.
    Zstd(i32),
}

/// Whose clock a record's timestamp is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The broker's, at the append.
    LogAppendTime,
}

/// Every topic setting that acts, as a checked value. Times in milliseconds, sizes in bytes.
#[derive(Clone, PartialEq, Debug)]
pub struct TopicConfig {
    /// `cleanup.policy`.
    pub cleanup_policy: CleanupPolicy,
    /// `compression.type` with its level.
    pub compression: StoredCompression,
    /// `delete.retention.ms`.
    pub delete_retention_ms: u64,
    /// `flush.messages`: records that may wait for their flush, at least 1.
    pub flush_messages: u64,
    /// `flush.ms`: longest wait for a flush; `u64::MAX` and near it: no limit.
    pub flush_ms: u64,
    /// `index.interval.bytes`.
    pub index_interval_bytes: u32,
    /// `max.compaction.lag.ms`; `u64::MAX` and near it: no limit.
    pub max_compaction_lag_ms: u64,
    /// `max.message.bytes`: largest batch.
    pub max_message_bytes: u32,
    /// `message.timestamp.type`.
    pub message_timestamp_type: TimestampType,
    /// `message.timestamp.before.max.ms`.
    pub message_timestamp_before_max_ms: u64,
    /// `message.timestamp.after.max.ms`.
    pub message_timestamp_after_max_ms: u64,
    /// `min.cleanable.dirty.ratio`, in millionths.
    pub min_cleanable_dirty_millionths: u32,
    /// `min.compaction.lag.ms`.
    pub min_compaction_lag_ms: u64,
    /// `min.insync.replicas`, at least 1.
    pub min_insync_replicas: u32,
    /// `retention.bytes`; `None`: no limit.
    pub retention_bytes: Option<u64>,
    /// `retention.ms`; `None`: no limit.
    pub retention_ms: Option<u64>,
    /// `segment.bytes`, or `internal.segment.bytes` where that is set.
    pub segment_bytes: u32,
    /// `segment.index.bytes`.
    pub segment_index_bytes: u32,
    /// `segment.jitter.ms`.
    pub segment_jitter_ms: u64,
    /// `segment.ms`.
    pub segment_ms: u64,
}

impl TopicConfig {
    /// The effective settings of a topic whose own values are `own`.
    ///
    /// # Panics
    /// When a value was never checked against the table.
    pub fn new(layers: &Layers<'_>, own: &Values) -> Self {
        let read = Reader { layers, own };
        Self {
            cleanup_policy: cleanup_policy(&read.text("cleanup.policy")),
            compression: read.compression(),
            delete_retention_ms: read.number("delete.retention.ms"),
            flush_messages: read.number("flush.messages"),
            flush_ms: read.number("flush.ms"),
            index_interval_bytes: read.number("index.interval.bytes"),
            max_compaction_lag_ms: read.number("max.compaction.lag.ms"),
            max_message_bytes: read.number("max.message.bytes"),
            message_timestamp_type: match read.text("message.timestamp.type").as_str() {
                "LogAppendTime" => TimestampType::LogAppendTime,
                _ => TimestampType::CreateTime,
            },
            message_timestamp_before_max_ms: read.number("message.timestamp.before.max.ms"),
            message_timestamp_after_max_ms: read.number("message.timestamp.after.max.ms"),
            min_cleanable_dirty_millionths: read.millionths("min.cleanable.dirty.ratio"),
            min_compaction_lag_ms: read.number("min.compaction.lag.ms"),
            min_insync_replicas: read.number("min.insync.replicas"),
            retention_bytes: read.limit("retention.bytes"),
            retention_ms: read.limit("retention.ms"),
            segment_bytes: read.optional("internal.segment.bytes").unwrap_or_else(|| read.number("segment.bytes")),
            segment_index_bytes: read.number("segment.index.bytes"),
            segment_jitter_ms: read.number("segment.jitter.ms"),
            segment_ms: read.number("segment.ms"),
        }
    }
}

fn cleanup_policy(text: &str) -> CleanupPolicy {
    let has = |policy| list_items(text).any(|item| item == policy);
    CleanupPolicy { delete: has("delete"), compact: has("compact") }
}

/// Reads checked texts into numbers.
struct Reader<'a> {
    layers: &'a Layers<'a>,
    own: &'a Values,
}

impl Reader<'_> {
    fn set_text(&self, name: &str) -> Option<String> {
        let setting = topic_setting(name).expect("every name in this file is in the table");
        self.layers.topic_setting(self.own, setting).value.map(|value| value.to_string())
    }

    fn text(&self, name: &str) -> String {
        self.set_text(name).expect("every setting read here has a default")
    }

    fn signed(&self, name: &str) -> i64 {
        self.text(name).trim().parse().expect("a value is checked before it is stored")
    }

    /// A number that is 0 or more. Where Kafka's checks let a broker's alias below 0 through, that means no limit.
    fn number<T: TryFrom<u64>>(&self, name: &str) -> T {
        let number = u64::try_from(self.signed(name)).unwrap_or(i64::MAX as u64);
        T::try_from(number).unwrap_or_else(|_| panic!("{name} is checked before it is stored"))
    }

    /// A part of 1, in millionths.
    fn millionths(&self, name: &str) -> u32 {
        let part: f64 = self.text(name).trim().parse().expect("a value is checked before it is stored");
        (part.clamp(0.0, 1.0) * 1e6 + 0.5) as u32
    }

    fn optional(&self, name: &str) -> Option<u32> {
        self.set_text(name).and_then(|text| text.trim().parse().ok())
    }

    /// A number where anything below 0 means no limit.
    fn limit(&self, name: &str) -> Option<u64> {
        u64::try_from(self.signed(name)).ok()
    }

    fn compression(&self) -> StoredCompression {
        let level = |name: &str| i32::try_from(self.signed(name)).expect("a level is an int");
        match self.text("compression.type").as_str() {
            "uncompressed" => StoredCompression::Uncompressed,
            "gzip" => StoredCompression::Gzip(Some(level("compression.gzip.level")).filter(|&level| level != -1)),
            "snappy" => StoredCompression::Snappy,
            "lz4" => StoredCompression::Lz4(level("compression.lz4.level")),
            "zstd" => StoredCompression::Zstd(level("compression.zstd.level")),
            _ => StoredCompression::Producer,
        }
    }
}

/// What one setting forbids another, after each has been checked by itself.
///
/// # Errors
/// The conflict, in Kafka's words.
pub fn check_together(layers: &Layers<'_>, own: &Values) -> Result<(), String> {
    let read = Reader { layers, own };
    let (least, most) = (read.signed("min.compaction.lag.ms"), read.signed("max.compaction.lag.ms"));
    if least > most {
        return Err(alloc::format!(
            "conflict topic config setting min.compaction.lag.ms ({least}) > max.compaction.lag.ms ({most})"
        ));
    }
    if boolean(&read.text("remote.storage.enable")) == Ok(true) {
        return Err("Tiered Storage functionality is disabled in the broker. \
                    Topic cannot be configured with remote log storage."
            .into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(start: &[(&str, &str)], own: &[(&str, &str)]) -> TopicConfig {
        let [start, own] = [start, own]
            .map(|pairs| pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect::<Values>());
        let none = Values::new();
        TopicConfig::new(&Layers { broker: &none, cluster: &none, start: &start }, &own)
    }

    #[test]
    fn defaults() {
        let defaults = config(&[], &[]);
        assert_eq!(defaults.flush_messages, 1, "acknowledged means on disk");
        assert_eq!(defaults.flush_ms, i64::MAX as u64);
        assert_eq!(defaults.cleanup_policy, CleanupPolicy { delete: true, compact: false });
        assert_eq!(defaults.compression, StoredCompression::Producer);
        assert_eq!((defaults.retention_ms, defaults.retention_bytes), (Some(604_800_000), None));
        assert_eq!((defaults.segment_bytes, defaults.segment_ms), (1 << 30, 604_800_000));
        assert_eq!((defaults.max_message_bytes, defaults.index_interval_bytes), (1_048_588, 4_096));
        assert_eq!(defaults.message_timestamp_type, TimestampType::CreateTime);
    }

    #[test]
    fn a_topics_own_values() {
        let own = config(
            &[("compression.gzip.level", "7")],
            &[
                ("cleanup.policy", "compact, delete"),
                ("compression.type", "gzip"),
                ("retention.ms", "-1"),
                ("message.timestamp.type", "LogAppendTime"),
                ("internal.segment.bytes", "1024"),
            ],
        );
        assert_eq!(own.cleanup_policy, CleanupPolicy { delete: true, compact: true });
        assert_eq!(own.compression, StoredCompression::Gzip(Some(7)));
        assert_eq!((own.retention_ms, own.segment_bytes), (None, 1024));
        assert_eq!(own.message_timestamp_type, TimestampType::LogAppendTime);
        assert_eq!(
            config(&[], &[("cleanup.policy", "")]).cleanup_policy,
            CleanupPolicy { delete: false, compact: false }
        );
    }

    #[test]
    fn the_start_reaches_topics() {
        let start = config(&[("log.retention.minutes", "2"), ("log.roll.hours", "1"), ("message.max.bytes", "9")], &[]);
        assert_eq!((start.retention_ms, start.segment_ms, start.max_message_bytes), (Some(120_000), 3_600_000, 9));
    }

    #[test]
    fn conflicts() {
        let none = Values::new();
        let layers = Layers { broker: &none, cluster: &none, start: &none };
        let check = |pairs: &[(&str, &str)]| {
            check_together(&layers, &pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
        };
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(
            check(&[("min.compaction.lag.ms", "100"), ("max.compaction.lag.ms", "10")]).unwrap_err(),
            "conflict topic config setting min.compaction.lag.ms (100) > max.compaction.lag.ms (10)"
        );
        assert!(check(&[("remote.storage.enable", "true")]).is_err());
    }
}
