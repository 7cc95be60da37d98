//! A disk that fails the real binary. A flush that fails (case 26): on a FUSE file system that answers fsync with EIO no ack follows, not even after the
//! disk says that all is well again, and the log directory is offline. Writes that fail beside the logs of topics: these go on.
//! And a disk that hangs: what lies elsewhere is served as before. Needs `/dev/fuse` and the right to mount; `./check`
//! sets `HEDDLE_FUSE=required`, and then a machine without it fails this test.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use chrono::{TimeZone, Utc};
use heddle_protocol::ApiKey;
use heddle_tests::failing_fs::FailingFs;
use heddle_tests::process::Broker;
use heddle_tests::wire::talk::Connection;
use heddle_tests::wire::value::Value;
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression, UnknownTopicHandling};
use rskafka::record::Record;

fn record(value: &str) -> Record {
    let timestamp = Utc.timestamp_millis_opt(1_700_000_000_000).single().expect("a valid time");
    Record { key: None, value: Some(value.as_bytes().to_vec()), headers: BTreeMap::new(), timestamp }
}

/// The file system, or nothing where there may be none.
fn mount(at: &Path) -> Option<FailingFs> {
    heddle_tests::available("FUSE", "HEDDLE_FUSE", FailingFs::mount(at))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

#[test]
fn no_ack_follows_a_failed_flush() {
    let mountpoint = tempfile::tempdir().expect("a temporary folder");
    let Some(files) = mount(mountpoint.path()) else { return };
    runtime().block_on(async {
        let broker = Broker::start(&mountpoint.path().join("data"), &[]);
        let client = ClientBuilder::new(vec![broker.address.clone()]).build().await.expect("it answers");
        let controller = client.controller_client().expect("a controller");
        for topic in ["one", "other"] {
            controller.create_topic(topic, 1, 1, 10_000).await.expect("the topic is created");
        }
        let one = client.partition_client("one", 0, UnknownTopicHandling::Retry).await.expect("a leader");
        let other = client.partition_client("other", 0, UnknownTopicHandling::Retry).await.expect("a leader");
        let acked = one.produce(vec![record("before")], Compression::NoCompression).await;
        assert_eq!(acked.expect("an ack"), [0]);
        assert!(files.flushes().0 > 0, "an ack of acks=all costs a flush");

        files.fail_flushes();
        assert_not_acked(one.produce(vec![record("lost")], Compression::NoCompression)).await;
        let (_, failed) = files.flushes();
        assert!(failed > 0, "the flush was tried");

        files.mend_flushes();
        for partition in [&one, &other] {
            assert_not_acked(partition.produce(vec![record("after")], Compression::NoCompression)).await;
        }
        let (_, failed_later) = files.flushes();
        assert_eq!(failed_later, failed);
        broker.kill();
    });
}

/// The error of one request at `path` in its answer; empty where there is none.
fn error_of(broker: &Broker, api: ApiKey, version: i16, fields: &str, path: &str) -> String {
    let answer = Connection::open(&broker.address).and_then(|mut it| it.call(api, version, fields));
    let answer = answer.expect("an answer");
    match answer.at(path) {
        Some(Value::Text(error)) => error.clone(),
        _ => String::new(),
    }
}

fn create(broker: &Broker, topic: &str) -> String {
    let fields = format!("{{topics: [{{name: {topic}, numPartitions: 1, replicationFactor: 1}}], timeoutMs: 9000}}");
    error_of(broker, ApiKey::CreateTopics, 4, &fields, "topics.0.errorCode")
}

/// Deletes the records of the topic before `offset`, which only a checkpoint makes durable.
fn delete_before(broker: &Broker, topic: &str, offset: i64) -> String {
    let fields = format!(
        "{{topics: [{{name: {topic}, partitions: [{{partitionIndex: 0, offset: {offset}}}]}}], timeoutMs: 9000}}"
    );
    error_of(broker, ApiKey::DeleteRecords, 1, &fields, "topics.0.partitions.0.errorCode")
}

/// Metadata and checkpoints on a disk that takes no write of theirs: whoever needs one is told so, records go on.
#[test]
fn a_write_that_fails_beside_the_logs_costs_no_record() {
    const REFUSED: &str = "KAFKA_STORAGE_ERROR";
    let mountpoint = tempfile::tempdir().expect("a temporary folder");
    let Some(files) = mount(mountpoint.path()) else { return };
    let data = mountpoint.path().join("data");
    let produce = async |broker: &Broker, expected: i64| {
        let client = ClientBuilder::new(vec![broker.address.clone()]).build().await.expect("it answers");
        let one = client.partition_client("one", 0, UnknownTopicHandling::Retry).await.expect("a leader");
        let acked = in_time(one.produce(vec![record("on")], Compression::NoCompression)).await;
        assert_eq!(acked.expect("an ack"), [expected]);
        one
    };
    runtime().block_on(async {
        let mut broker = Broker::start(&data, &[]);
        assert_eq!(create(&broker, "one"), "");
        produce(&broker, 0).await;
        files.fail_writes("__cluster_metadata");
        assert_eq!(create(&broker, "two"), REFUSED);
        let one = produce(&broker, 1).await;
        assert_eq!(in_time(one.fetch_records(0, 1..1_000_000, 1_000)).await.expect("a fetch").0.len(), 2);
        broker.wait_for(|line| {
            let says = ["metadata could not be stored", "__cluster_metadata", "check the disk"];
            says.iter().all(|words| line.contains(words)).then_some(())
        });
        files.mend_writes();
        assert_eq!(create(&broker, "two"), REFUSED, "what failed is never tried again");
        produce(&broker, 2).await;
        broker.kill();

        let broker = Broker::start(&data, &[]);
        assert_eq!(create(&broker, "two"), "", "a start takes what the disk has");
        files.fail_writes("heddle.checkpoint");
        assert_eq!(delete_before(&broker, "one", 1), REFUSED);
        produce(&broker, 3).await;
        files.mend_writes();
        assert_eq!(delete_before(&broker, "one", 1), "", "by itself");

        files.fail_writes("heddle.checkpoint");
        broker.signal("TERM");
        let (_, said) = broker.wait();
        assert!(said.lines().any(|line| line.contains("heddle.checkpoint")), "it names the file; it said:\n{said}");
        let broker = Broker::start(&data, &[]);
        let one = produce(&broker, 4).await;
        let (records, _) = in_time(one.fetch_records(1, 1..1_000_000, 1_000)).await.expect("a fetch");
        assert_eq!(records.iter().map(|record| record.offset).collect::<Vec<_>>(), [1, 2, 3, 4]);
        broker.kill();
    });
}

/// One core, one partition whose disk answers nothing: readers of it, and everybody else, go on.
#[test]
fn a_disk_that_hangs_holds_up_nobody_else() {
    let mountpoint = tempfile::tempdir().expect("a temporary folder");
    let Some(files) = mount(mountpoint.path()) else { return };
    runtime().block_on(async {
        let broker = Broker::start(&mountpoint.path().join("data"), &["--cores", "1"]);
        let client = ClientBuilder::new(vec![broker.address.clone()]).build().await.expect("it answers");
        let controller = client.controller_client().expect("a controller");
        for topic in ["hung", "other"] {
            controller.create_topic(topic, 1, 1, 10_000).await.expect("the topic is created");
        }
        let hung = client.partition_client("hung", 0, UnknownTopicHandling::Retry).await.expect("a leader");
        let other = client.partition_client("other", 0, UnknownTopicHandling::Retry).await.expect("a leader");
        for partition in [&hung, &other] {
            let acked = partition.produce(vec![record("before")], Compression::NoCompression).await;
            assert_eq!(acked.expect("an ack"), [0]);
            assert_eq!(partition.fetch_records(0, 1..1_000_000, 1_000).await.expect("a fetch").0.len(), 1);
        }

        files.hang("hung-");
        let mut late = std::pin::pin!(hung.produce(vec![record("late")], Compression::NoCompression));
        tokio::time::timeout(Duration::from_secs(1), &mut late).await.expect_err("acked although the disk hangs");
        for offset in 1..20 {
            let acked = in_time(other.produce(vec![record("on")], Compression::NoCompression)).await;
            assert_eq!(acked.expect("an ack"), [offset]);
        }
        assert_eq!(in_time(other.fetch_records(0, 1..1_000_000, 1_000)).await.expect("a fetch").0.len(), 20);
        let again = ClientBuilder::new(vec![broker.address.clone()]).build().await.expect("new clients are served");
        let reader = again.partition_client("hung", 0, UnknownTopicHandling::Retry).await.expect("a leader");
        assert_eq!(in_time(reader.fetch_records(0, 1..1_000_000, 1_000)).await.expect("a fetch").0.len(), 1);

        assert!(files.go_on() > 0, "something hung");
        assert_eq!(in_time(late).await.expect("an ack"), [1]);
        broker.stop();
    });
}

/// Whoever does not need the disk that hangs is served while it does, however busy the machine is.
async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("it waits for the disk that hangs")
}

/// rskafka tries again for ever on a retriable error, so silence for two seconds counts as no ack.
async fn assert_not_acked<T, E>(produced: impl Future<Output = Result<T, E>>) {
    if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(2), produced).await {
        panic!("acked");
    }
}
