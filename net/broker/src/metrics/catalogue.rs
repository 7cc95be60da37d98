//! Every metric there is: name, kind, labels, meaning, and the MBean of Kafka that it corresponds to.
//!
//! Owns the table, which `docs/metrics.md` shows word for word. Names end in their unit; what only grows ends in `_total`.

/// A metric and all its series.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
    /// What Kafka calls it, for the documentation; empty where it has no such thing.
    #[cfg(test)]
    pub(super) kafka: &'static str,
}

/// How the values of a metric are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows, until the broker starts again.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How often something took how long.
    Histogram,
}

impl Kind {
    /// Prometheus' word.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Writes the statics and the list of all of them.
macro_rules! families {
    ($($constant:ident $kind:ident $name:literal [$($label:literal),*] $help:literal $(= $kafka:literal)?;)+) => {
        $(pub(super) static $constant: Family = Family {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
            #[cfg(test)]
            kafka: concat!("" $(, $kafka)?),
        };)+

        /// All metrics, in the order in which they are shown.
        #[cfg(test)]
        pub(super) static ALL: &[&Family] = &[$(&$constant),+];
    };
}

families! {
    BUILD Gauge "heddle_build_info" ["version", "backend", "device"] "Always 1; the version, how IO is done, how logs are kept" = "kafka.server:type=app-info";
    IDENTITY Gauge "heddle_broker_info" ["cluster", "broker"] "Always 1; the cluster's and the broker's id";
    READY Gauge "heddle_ready" [] "1 if the broker serves, as /readyz says" = "kafka.server:type=KafkaServer,name=BrokerState";
    CORE_HERE Gauge "heddle_core_responding" ["core"] "1 if the core answered this time; else what is shown of it is what it told last";
    CORE_TIME Counter "heddle_core_seconds_total" ["core", "state"] "Time of the core: busy, spinning (awake for a message that may come) or asleep" = "kafka.server:type=KafkaRequestHandlerPool,name=RequestHandlerAvgIdlePercent";
    CORE_TASKS Gauge "heddle_core_tasks" ["core"] "Tasks on the core, waiting ones included";

    CONNECTIONS Gauge "heddle_connections" ["listener"] "Open connections" = "kafka.server:type=socket-server-metrics,name=connection-count";
    CONNECTIONS_ACCEPTED Counter "heddle_connections_accepted_total" [] "Connections that were accepted" = "kafka.server:type=socket-server-metrics,name=connection-creation-total";
    CONNECTIONS_REFUSED Counter "heddle_connections_refused_total" [] "Connections that were turned away (max.connections, max.connections.per.ip)";
    CONNECTIONS_CLOSED Counter "heddle_connections_closed_total" ["how"] "Connections that ended: finished, cut (too slow or idle), fault (no request that can be answered) or panicked" = "kafka.server:type=socket-server-metrics,name=connection-close-total";
    REQUESTS Counter "heddle_requests_total" ["api", "version"] "Requests" = "kafka.network:type=RequestMetrics,name=RequestsPerSec";
    REQUEST_ERRORS Counter "heddle_request_errors_total" ["api", "error"] "Errors in answers: each error code that an answer carries counts, so one answer may have many" = "kafka.network:type=RequestMetrics,name=ErrorsPerSec";
    REQUEST_TIME Histogram "heddle_request_duration_seconds" ["api"] "From the last byte of a request to its answer, the wait of a long poll or for the disk included" = "kafka.network:type=RequestMetrics,name=TotalTimeMs";

    RECORDS_IN Counter "heddle_records_in_total" [] "Records appended, all topics" = "kafka.server:type=BrokerTopicMetrics,name=MessagesInPerSec";
    BYTES_IN Counter "heddle_bytes_in_total" [] "Bytes of batches appended, all topics" = "kafka.server:type=BrokerTopicMetrics,name=BytesInPerSec";
    BYTES_OUT Counter "heddle_bytes_out_total" [] "Bytes of batches in answers to fetches, all topics" = "kafka.server:type=BrokerTopicMetrics,name=BytesOutPerSec";
    TOPIC_RECORDS_IN Counter "heddle_topic_records_in_total" ["topic"] "Records appended" = "kafka.server:type=BrokerTopicMetrics,name=MessagesInPerSec,topic";
    TOPIC_BYTES_IN Counter "heddle_topic_bytes_in_total" ["topic"] "Bytes of batches appended" = "kafka.server:type=BrokerTopicMetrics,name=BytesInPerSec,topic";
    TOPIC_BYTES_OUT Counter "heddle_topic_bytes_out_total" ["topic"] "Bytes of batches in answers to fetches" = "kafka.server:type=BrokerTopicMetrics,name=BytesOutPerSec,topic";
    TOPIC_PRODUCES Counter "heddle_topic_produce_requests_total" ["topic"] "Batches that were to be appended, each partition of a request for itself" = "kafka.server:type=BrokerTopicMetrics,name=TotalProduceRequestsPerSec,topic";
    TOPIC_PRODUCES_FAILED Counter "heddle_topic_produce_requests_failed_total" ["topic"] "Those that were refused" = "kafka.server:type=BrokerTopicMetrics,name=FailedProduceRequestsPerSec,topic";
    TOPIC_FETCHES Counter "heddle_topic_fetch_requests_total" ["topic"] "Reads for fetches, each partition of a request for itself; those of a session that sleep are not read" = "kafka.server:type=BrokerTopicMetrics,name=TotalFetchRequestsPerSec,topic";
    TOPIC_FETCHES_FAILED Counter "heddle_topic_fetch_requests_failed_total" ["topic"] "Those that failed" = "kafka.server:type=BrokerTopicMetrics,name=FailedFetchRequestsPerSec,topic";
    TOPIC_SIZE Gauge "heddle_topic_log_size_bytes" ["topic"] "Bytes of batches in the logs" = "kafka.log:type=Log,name=Size";

    TOPICS Gauge "heddle_topics" [] "Topics" = "kafka.controller:type=KafkaController,name=GlobalTopicCount";
    PARTITIONS Gauge "heddle_partitions" [] "Partitions of all topics" = "kafka.server:type=ReplicaManager,name=PartitionCount";
    PARTITIONS_OFFLINE Gauge "heddle_partitions_offline" [] "Partitions that take no appends: their logs are damaged, full or on a disk that failed" = "kafka.controller:type=KafkaController,name=OfflinePartitionsCount";
    SEGMENTS_DAMAGED Gauge "heddle_segments_damaged" [] "Segments that are damaged and not read";
    PARTITION_START Gauge "heddle_partition_log_start_offset" ["topic", "partition"] "First offset that can be read" = "kafka.log:type=Log,name=LogStartOffset";
    PARTITION_END Gauge "heddle_partition_log_end_offset" ["topic", "partition"] "Next offset to be written" = "kafka.log:type=Log,name=LogEndOffset";
    PARTITION_WATERMARK Gauge "heddle_partition_high_watermark" ["topic", "partition"] "End of what consumers can read";
    PARTITION_SIZE Gauge "heddle_partition_log_size_bytes" ["topic", "partition"] "Bytes of batches in the log" = "kafka.log:type=Log,name=Size";
    PARTITION_SEGMENTS Gauge "heddle_partition_log_segments" ["topic", "partition"] "Segments of the log" = "kafka.log:type=Log,name=NumLogSegments";

    GROUPS Gauge "heddle_groups" ["state"] "Consumer groups" = "kafka.server:type=GroupMetadataManager,name=NumGroups";
    COMMITS Gauge "heddle_group_offsets" [] "Committed offsets of all groups" = "kafka.server:type=GroupMetadataManager,name=NumOffsets";
    GROUP_LAG Gauge "heddle_group_lag_records" ["group", "topic", "partition"] "From the committed offset to the end of what can be read" = "kafka.consumer:type=consumer-fetch-manager-metrics,name=records-lag";
    GROUP_OFFSET Gauge "heddle_group_committed_offset" ["group", "topic", "partition"] "The committed offset";
    SESSIONS Gauge "heddle_fetch_sessions" [] "Fetch sessions" = "kafka.server:type=FetchSessionCache,name=NumIncrementalFetchSessions";
    SESSION_PARTITIONS Gauge "heddle_fetch_session_partitions" [] "Partitions in all fetch sessions" = "kafka.server:type=FetchSessionCache,name=NumIncrementalFetchPartitionsCached";
    SESSIONS_EVICTED Counter "heddle_fetch_sessions_evicted_total" [] "Fetch sessions that had to make room for others" = "kafka.server:type=FetchSessionCache,name=IncrementalFetchSessionEvictionsPerSec";
    OMITTED Gauge "heddle_metrics_omitted" ["what"] "Topics, partitions and committed offsets (group_partitions) without series of their own; topics are then counted in the topic (other)";

    DISK_ONLINE Gauge "heddle_data_directory_online" [] "0 once a flush has failed: nothing is acknowledged any more" = "kafka.log:type=LogManager,name=OfflineLogDirectoryCount";
    DISK_FREE Gauge "heddle_disk_free_bytes" [] "Bytes that can still be written to the data directory's file system";
    DISK_SIZE Gauge "heddle_disk_size_bytes" [] "Bytes of the data directory's file system";
    DISK_RESERVE Gauge "heddle_disk_reserve_held" [] "1 while the space is there that deletes need on a full disk";
    DISK_SHORT Gauge "heddle_disk_short" [] "1 while logs get no space because the disk is full";
    FLUSH_TIME Histogram "heddle_flush_duration_seconds" [] "Flushes to the disk, as long as the logs that share one waited for it" = "kafka.log:type=LogFlushStats,name=LogFlushRateAndTimeMs";
    FLUSH_FAILED Counter "heddle_flush_failures_total" [] "Flushes that failed";
    FLUSH_OLDEST Gauge "heddle_flush_oldest_seconds" [] "How long the oldest flush is under way; 0 without one. A disk that hangs shows here";
    PENDING Gauge "heddle_write_pending_bytes" [] "Bytes of batches that were accepted and are not written yet";
    TAIL_HITS Counter "heddle_tail_cache_hits_total" [] "Reads of logs that found all their bytes in memory";
    TAIL_MISSES Counter "heddle_tail_cache_misses_total" [] "Reads of logs that took bytes from a file, or from the page cache";
    READ_BYTES Counter "heddle_log_read_bytes_total" ["source"] "Bytes that reads of logs found, in memory or in a file";
    TAIL_BYTES Gauge "heddle_tail_cache_bytes" [] "Memory that the ends of logs take";
    TAIL_BYTES_MAX Gauge "heddle_tail_cache_max_bytes" [] "Memory that they may take (tail.memory.max.bytes)";
    PRODUCERS Gauge "heddle_producer_ids" [] "Idempotent producers that the logs remember" = "kafka.server:type=ReplicaManager,name=ProducerIdCount";
    COMPACTIONS Counter "heddle_compaction_passes_total" [] "Passes of the compaction over a log";
    COMPACTION_READ Counter "heddle_compaction_read_bytes_total" [] "Bytes that the passes have read";
    COMPACTION_WRITTEN Counter "heddle_compaction_written_bytes_total" [] "Bytes that they have written";
    COMPACTION_REMOVED Counter "heddle_compaction_removed_records_total" [] "Records that they have removed";
    COMPACTION_WAITING Gauge "heddle_compaction_candidates" [] "Logs that may have something to compact";
    SCRUB_ROUNDS Counter "heddle_scrub_rounds_total" [] "Rounds of the scrub over all sealed segments of a core";
    SCRUB_SEGMENTS Counter "heddle_scrub_segments_total" [] "Segments that it looked at";
    SCRUB_BYTES Counter "heddle_scrub_bytes_total" [] "Bytes that it checked";

    KERNEL_ENTERS Counter "heddle_io_enters_total" ["core"] "Calls that submit to the kernel or wait for it";
    KERNEL_SUBMISSIONS Counter "heddle_io_submissions_total" ["core"] "Operations that the kernel was given";
    KERNEL_PUNTS Counter "heddle_io_punts_total" ["core"] "Reads and writes that the kernel did on a thread of its own, since they could not be done without waiting";
    KERNEL_INLINE Counter "heddle_io_inline_writes_total" ["core"] "Writes to the page cache that the core did itself";
    KERNEL_FLUSHES Counter "heddle_io_flushes_total" ["core"] "Flushes of files that were started";
    KERNEL_HELPERS Counter "heddle_io_helper_jobs_total" ["core"] "Jobs for helper threads";

    PROCESS_CPU Counter "process_cpu_seconds_total" [] "CPU time, user and system";
    PROCESS_RESIDENT Gauge "process_resident_memory_bytes" [] "Memory that is resident";
    PROCESS_VIRTUAL Gauge "process_virtual_memory_bytes" [] "Address space";
    PROCESS_THREADS Gauge "process_threads" [] "Threads";
    PROCESS_FILES Gauge "process_open_fds" [] "File descriptors that are open";
    PROCESS_FILES_MAX Gauge "process_max_fds" [] "File descriptors that may be open";
    PROCESS_STARTED Gauge "process_start_time_seconds" [] "When the process started, in seconds since 1970";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn names_are_as_prometheus_wants_them() {
        let mut known = BTreeSet::new();
        for family in ALL {
            let name = family.name;
            assert!(known.insert(name), "{name} is there twice");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert_eq!(
                name.ends_with("_total"),
                family.kind == Kind::Counter,
                "{name}: counters and they alone end so"
            );
            assert!(family.kind != Kind::Histogram || name.ends_with("_seconds"), "{name}");
            assert!(!family.help.is_empty() && !family.help.ends_with('.'), "{name}");
            assert!(!family.help.contains('|'), "{name}: it has to fit into a table");
        }
    }

    /// The table of `docs/metrics.md`, as it has to be.
    fn table() -> String {
        let row = |family: &&Family| {
            let quoted = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
            let labels = family.labels.iter().map(|label| quoted(label)).collect::<Vec<_>>().join(", ");
            let (kind, help, kafka) = (family.kind.name(), family.help, quoted(family.kafka));
            format!("| `{}` | {kind} | {labels} | {help} | {kafka} |\n", family.name)
        };
        ALL.iter().map(row).collect()
    }

    #[test]
    fn the_documentation_shows_every_metric_and_no_other() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        let text = fs::read_to_string(path).expect("the documentation is there");
        let shown: String = text
            .lines()
            .filter(|line| line.starts_with("| `") && !line.starts_with("| `/"))
            .map(|line| format!("{line}\n"))
            .collect();
        let expected = table();
        assert!(shown == expected, "the table of docs/metrics.md is to be:\n{expected}");
    }
}
