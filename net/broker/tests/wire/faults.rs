//! What clients are told of a disk that fails, hangs, is full or became read-only: an answer in time, never an ack of what is not
//! on disk, and everything again once the cause is gone.

use std::time::Duration;

use heddle_io::Io;
use heddle_io::sim::{Effect, Fault, OperationKind};
use heddle_protocol::ErrorCode;
use heddle_protocol::messages::fetch::FetchResponse;
use heddle_record::Batches;

use super::controller::{create, delete, topics};
use super::data::fetch;
use super::world::{Connection, World, batch, produce, produced};

const DEVICES: [&str; 2] = ["direct", "buffered"];
const EIO: i32 = 5;
const HANG: Duration = Duration::from_secs(30);
/// How soon everybody is answered whom the fault does not hold up.
const SOON: Duration = Duration::from_secs(1);

async fn soon<T>(io: &Io, future: impl Future<Output = T>) -> T {
    io.timeout(SOON, future).await.expect("an answer within a second")
}

/// Error and base offset of a produce of one record.
async fn put(connection: &mut Connection, topic: &str, partition: i32, acks: i16, bytes: usize) -> (i16, i64) {
    let records = batch(&["v".repeat(bytes).as_str()]);
    produced(&connection.call(7, &produce(topic, partition, acks, &records)).await)
}

/// How many records a fetch from the log's start finds.
async fn count(connection: &mut Connection, topic: &str, partition: i32) -> usize {
    let answer = connection.call(11, &fetch(topic, &[partition], 0, 1, 0)).await;
    let response: FetchResponse<'_> = answer.decode();
    let topic = response.responses.first().expect("the topic that was asked for");
    let partition = topic.partitions.first().expect("the partition that was asked for");
    assert_eq!(partition.error_code, 0);
    let Some(heddle_protocol::Records::Bytes(bytes)) = partition.records else { panic!("records are never null") };
    Batches::new(bytes).map(|batch| batch.expect("whole batches").record_count() as usize).sum()
}

/// The core goes on for every other partition and connection; who waits for the disk is told when their time is over.
#[test]
fn a_hanging_disk_is_answered_in_time_and_holds_up_nobody() {
    for (device, hung) in DEVICES.into_iter().flat_map(|it| [(it, OperationKind::Write), (it, OperationKind::Flush)]) {
        let world = World::new(3, 1, &[("log.device", device)]);
        let (io, address, host) = (world.io.clone(), world.address, world.broker.clone());
        world.run(async move {
            let mut waits = World::connect(io.clone(), address).await;
            let mut other = World::connect(io.clone(), address).await;
            assert_eq!(create(&mut other, "loom").await.0, 0);
            for partition in [0, 1] {
                assert_eq!(put(&mut other, "loom", partition, -1, 100).await, (0, 0));
            }
            let everybody = device == "direct" && hung == OperationKind::Flush;
            // One flush is for all logs there, or each has its own.
            host.plant(Fault::next(hung, Effect::Hang(HANG)).on_path(if everybody { "" } else { "loom-0" }));
            let began = io.now();
            let records = batch(&["late"]);
            waits.send(7, &produce("loom", 0, -1, &records)).await;
            io.sleep(Duration::from_millis(50)).await;
            assert_eq!(soon(&io, put(&mut other, "loom", 1, 1, 100)).await, (0, 1), "{device} {hung:?}");
            if !everybody {
                assert_eq!(soon(&io, put(&mut other, "loom", 1, -1, 100)).await, (0, 2), "{device} {hung:?}");
            }
            assert_eq!(soon(&io, count(&mut other, "loom", 0)).await, 1, "nobody reads what is not on disk");
            let late = produced(&waits.answer(heddle_protocol::ApiKey::Produce, 7).await);
            assert_eq!(late.0, ErrorCode::RequestTimedOut.code(), "{device} {hung:?}");
            let patience = Duration::from_secs(5);
            assert!((patience..patience + SOON).contains(&io.now().since(began)), "{device} {hung:?}");

            io.sleep(HANG).await;
            assert_eq!(soon(&io, put(&mut waits, "loom", 0, -1, 100)).await, (0, 2), "{device} {hung:?}: it goes on");
            assert_eq!(count(&mut other, "loom", 0).await, 3);
        });
    }
}

/// Deleting is what makes room, so it must not need any.
#[test]
fn on_a_full_disk_topics_are_deleted_and_all_goes_on() {
    for device in DEVICES {
        let world = World::new(4, 1, &[("log.device", device)]);
        let (io, address, host) = (world.io.clone(), world.address, world.broker.clone());
        world.run(async move {
            let mut connection = World::connect(io.clone(), address).await;
            for topic in ["loom", "spare"] {
                assert_eq!(create(&mut connection, topic).await.0, 0);
            }
            for _ in 0..40 {
                assert_eq!(put(&mut connection, "loom", 0, -1, 200_000).await.0, 0);
            }
            io.sleep(SOON).await;
            host.set_capacity(Some(host.used_bytes()));
            let storage = ErrorCode::KafkaStorageError.code();
            assert_eq!(soon(&io, put(&mut connection, "loom", 0, -1, 200_000)).await.0, storage, "{device}");
            assert!(soon(&io, count(&mut connection, "loom", 0)).await > 0, "{device}: reads go on");
            let (made, _) = soon(&io, create(&mut connection, "next")).await;
            assert!([0, storage].contains(&made), "{device}: {made}");
            assert_eq!(soon(&io, put(&mut connection, "spare", 0, -1, 200_000)).await.0, storage, "{device}");

            assert_eq!(soon(&io, delete(&mut connection, "loom")).await, 0, "{device}");
            io.sleep(5 * SOON).await;
            assert_eq!(soon(&io, put(&mut connection, "spare", 0, -1, 200_000)).await, (0, 0), "{device}");
            assert_eq!(soon(&io, create(&mut connection, "after")).await.0, 0, "{device}");
            assert_eq!(soon(&io, put(&mut connection, "after", 0, -1, 200_000)).await, (0, 0), "{device}");
        });
    }
}

#[test]
fn a_read_only_file_system_is_read_and_then_written_again() {
    for device in DEVICES {
        let world = World::new(5, 1, &[("log.device", device)]);
        let (io, address, host) = (world.io.clone(), world.address, world.broker.clone());
        world.run(async move {
            let mut connection = World::connect(io.clone(), address).await;
            assert_eq!(create(&mut connection, "loom").await.0, 0);
            assert_eq!(put(&mut connection, "loom", 0, -1, 100).await, (0, 0));
            host.set_read_only(true);
            let storage = ErrorCode::KafkaStorageError.code();
            for _ in 0..2 {
                assert_eq!(soon(&io, put(&mut connection, "loom", 0, -1, 100)).await.0, storage, "{device}");
            }
            assert_eq!(soon(&io, count(&mut connection, "loom", 0)).await, 1, "{device}: reads go on");
            assert_eq!(soon(&io, create(&mut connection, "next")).await.0, storage, "{device}");
            host.set_read_only(false);
            io.sleep(3 * SOON).await;
            assert_eq!(soon(&io, put(&mut connection, "loom", 0, -1, 100)).await, (0, 1), "{device}");
            assert_eq!(soon(&io, create(&mut connection, "after")).await.0, 0, "{device}");
        });
    }
}

/// What is stored of metadata is not known any more, so nothing is decided until the next start. Records go on where the
/// disk does.
#[test]
fn a_metadata_log_that_cannot_be_written_changes_no_more_and_records_go_on() {
    for (device, failed) in DEVICES.into_iter().flat_map(|it| [(it, OperationKind::Write), (it, OperationKind::Flush)])
    {
        let mut world = World::new(6, 2, &[("log.device", device)]);
        let (io, address, host) = (world.io.clone(), world.address, world.broker.clone());
        // A flush is one for all logs, or each has its own: either way it takes the whole directory offline.
        let goes_on = failed == OperationKind::Write;
        let storage = ErrorCode::KafkaStorageError.code();
        let acked = world.run(async move {
            let mut connection = World::connect(io.clone(), address).await;
            assert_eq!(create(&mut connection, "loom").await.0, 0);
            assert_eq!(put(&mut connection, "loom", 0, -1, 100).await, (0, 0));
            let path = if goes_on { "__cluster_metadata" } else { "" };
            host.plant(Fault::next(failed, Effect::Fail(EIO)).on_path(path).for_ever());
            assert_eq!(soon(&io, create(&mut connection, "next")).await.0, storage, "{device} {failed:?}");
            assert_eq!(soon(&io, delete(&mut connection, "loom")).await, storage, "{device} {failed:?}");
            let mut acked = 1;
            for cleared in [false, true] {
                let (error, _) = soon(&io, put(&mut connection, "loom", 0, -1, 100)).await;
                assert_eq!(error == 0, goes_on, "{device} {failed:?}: {error}");
                acked += usize::from(error == 0);
                assert_eq!(
                    soon(&io, count(&mut connection, "loom", 0)).await,
                    acked,
                    "{device} {failed:?}: reads go on"
                );
                assert_eq!(
                    soon(&io, create(&mut connection, "after")).await.0,
                    storage,
                    "{device}, cleared: {cleared}"
                );
                assert_eq!(topics(&mut connection).await.len(), 1, "{device} {failed:?}: nobody hears of what is not");
                host.clear_faults();
            }
            acked
        });
        world.broker.power_cut();
        world.broker.restart();
        world.start(2, &[("log.device", device)]);
        let (io, address) = (world.io.clone(), world.address);
        world.run(async move {
            let mut connection = World::connect(io.clone(), address).await;
            assert_eq!(create(&mut connection, "again").await.0, 0, "{device} {failed:?}");
            assert!(count(&mut connection, "loom", 0).await >= acked, "{device} {failed:?}");
            assert_eq!(delete(&mut connection, "loom").await, 0, "{device} {failed:?}");
        });
    }
}

/// The metadata in one piece only saves a start some work. A flush of it that fails is a disk that loses what it is given.
#[test]
fn a_snapshot_of_the_metadata_that_the_disk_refuses_costs_nobody_anything() {
    let always = [("metadata.log.max.record.bytes.between.snapshots", "1")];
    for failed in [OperationKind::Write, OperationKind::Metadata, OperationKind::Flush] {
        let mut world = World::new(7, 1, &always);
        let (io, address, host) = (world.io.clone(), world.address, world.broker.clone());
        let goes_on = failed != OperationKind::Flush;
        world.run(async move {
            let mut connection = World::connect(io.clone(), address).await;
            host.plant(Fault::next(failed, Effect::Fail(EIO)).on_path("heddle.metadata").for_ever());
            assert_eq!(soon(&io, create(&mut connection, "loom")).await.0, 0, "{failed:?}: the log has it");
            io.sleep(SOON).await;
            assert_eq!(soon(&io, put(&mut connection, "loom", 0, -1, 100)).await.0 == 0, goes_on, "{failed:?}");
            host.clear_faults();
            assert_eq!(soon(&io, create(&mut connection, "next")).await.0 == 0, goes_on, "{failed:?}");
            io.sleep(SOON).await;
            let has_snapshot = host.files().iter().any(|path| path.ends_with("heddle.metadata.0"));
            assert_eq!(has_snapshot, goes_on, "{failed:?}: it is tried again, unless a flush has failed");
        });
        world.broker.power_cut();
        world.broker.restart();
        world.start(1, &always);
        let (io, address) = (world.io.clone(), world.address);
        let found = world.run(async move { topics(&mut World::connect(io, address).await).await });
        assert!(found.iter().any(|(name, ..)| name == "loom"), "{failed:?}: it was answered: {found:?}");
    }
}
