//! A disk that fills up, for real: on a small ext4 produces are refused without a lie, what is stored can be read, topics can
//! be deleted although there is not a block left, and then all goes on by itself. Needs root for a loop device;
//! `HEDDLE_LOOP=required` makes its absence a failure.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{TimeZone, Utc};
use heddle_tests::loop_disk::LoopDisk;
use heddle_tests::process::Broker;
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression, PartitionClient, UnknownTopicHandling};
use rskafka::record::Record;

const DISK_BYTES: u64 = 64 << 20;
const RECORD_BYTES: usize = 200_000;
/// How long a produce may take before it counts as refused: the client tries again for ever.
const PATIENCE: Duration = Duration::from_secs(3);

fn record(bytes: usize) -> Record {
    let timestamp = Utc.timestamp_millis_opt(1_700_000_000_000).single().expect("a valid time");
    Record { key: None, value: Some(vec![b'v'; bytes]), headers: BTreeMap::new(), timestamp }
}

/// Whether a record is acknowledged in time.
async fn is_acked(partition: &PartitionClient, bytes: usize) -> bool {
    let produced = partition.produce(vec![record(bytes)], Compression::NoCompression);
    matches!(tokio::time::timeout(PATIENCE, produced).await, Ok(Ok(_)))
}

#[test]
fn a_full_disk_refuses_and_goes_on_on_both_devices() {
    for device in ["direct", "buffered"] {
        let home = tempfile::tempdir().expect("a temporary directory");
        let disk = match LoopDisk::mount(home.path(), DISK_BYTES) {
            Ok(disk) => disk,
            Err(error) => {
                let required = std::env::var("HEDDLE_LOOP").is_ok_and(|word| word == "required");
                assert!(!required, "a loop device is required here, and cannot be used: {error}");
                println!("NOT RUN: a loop device cannot be used here ({error})");
                return;
            }
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(fill_and_free(&disk, device));
    }
}

async fn fill_and_free(disk: &LoopDisk, device: &str) {
    let data = disk.path().join("data");
    let broker = Broker::start(&data, &["--set", &format!("log.device={device}")]);
    let client = ClientBuilder::new(vec![broker.address.clone()]).build().await.expect("it answers");
    let controller = client.controller_client().expect("a controller");
    for topic in ["large", "small"] {
        controller.create_topic(topic, 1, 1, 10_000).await.expect("the topic is created");
    }
    let large = client.partition_client("large", 0, UnknownTopicHandling::Retry).await.expect("a leader");
    let small = client.partition_client("small", 0, UnknownTopicHandling::Retry).await.expect("a leader");
    assert!(is_acked(&small, 1000).await);
    let mut acked = 0;
    while acked < 20 && is_acked(&large, RECORD_BYTES).await {
        acked += 1;
    }
    assert_eq!(acked, 20, "{device}: four megabytes of sixty");
    assert!(data.join("heddle.reserve").exists());
    disk.fill().expect("it can be filled");
    while is_acked(&large, RECORD_BYTES).await {
        acked += 1;
        assert!(acked < 1000, "{device}: a disk of 64 MiB is full by then");
    }

    // What is stored can be read.
    let (records, end) = large.fetch_records(0, 1..1_000_000, 1_000).await.expect("reads go on");
    assert!(!records.is_empty() && end >= acked);

    // Deleting works although there is no block left, and is what makes room.
    controller.delete_topic("large", 10_000).await.expect("the topic is deleted");
    let mut tries = 0;
    while !is_acked(&small, RECORD_BYTES).await {
        tries += 1;
        assert!(tries < 100, "{device}: it does not go on");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    controller.create_topic("next", 1, 1, 10_000).await.expect("topics are created again");
    broker.kill();
}
