//! A flush that fails (case 26): on a FUSE file system that answers fsync with EIO no ack follows, not even after the
//! disk says that all is well again, and the log directory is offline. Needs `/dev/fuse` and the right to mount; `./check`
//! sets `HEDDLE_FUSE=required`, and then a machine without it fails this test.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{TimeZone, Utc};
use heddle_tests::failing_fs::FailingFs;
use heddle_tests::process::Broker;
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression, UnknownTopicHandling};
use rskafka::record::Record;

fn record(value: &str) -> Record {
    let timestamp = Utc.timestamp_millis_opt(1_700_000_000_000).single().expect("a valid time");
    Record { key: None, value: Some(value.as_bytes().to_vec()), headers: BTreeMap::new(), timestamp }
}

#[test]
fn no_ack_follows_a_failed_flush() {
    let mountpoint = tempfile::tempdir().expect("a temporary folder");
    let files = match FailingFs::mount(mountpoint.path()) {
        Ok(files) => files,
        Err(error) => {
            let required = std::env::var("HEDDLE_FUSE").is_ok_and(|word| word == "required");
            assert!(!required, "FUSE is required here, and cannot be used: {error}");
            println!("NOT RUN: FUSE cannot be used here ({error})");
            return;
        }
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
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

/// rskafka tries again for ever on a retriable error, so silence for two seconds counts as no ack.
async fn assert_not_acked<T, E>(produced: impl Future<Output = Result<T, E>>) {
    if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(2), produced).await {
        panic!("acked");
    }
}
