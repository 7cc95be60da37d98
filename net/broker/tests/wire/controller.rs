//! What the controller promises: nothing that was answered is lost, nothing is half there, and a crowd is no storm.

use std::collections::BTreeSet;
use std::time::Duration;

use heddle_io::sim::{CutPoint, Effect, Fault, OperationKind};
use heddle_protocol::messages::create_topics::{
    CreatableTopic, CreatableTopicConfig, CreateTopicsRequest, CreateTopicsResponse,
};
use heddle_protocol::messages::delete_topics::{DeleteTopicsRequest, DeleteTopicsResponse};
use heddle_protocol::messages::describe_configs::{
    DescribeConfigsRequest, DescribeConfigsResource, DescribeConfigsResponse,
};
use heddle_protocol::messages::init_producer_id::{InitProducerIdRequest, InitProducerIdResponse};
use heddle_protocol::messages::metadata::{MetadataRequest, MetadataRequestTopic, MetadataResponse};
use heddle_protocol::{ErrorCode, Uuid};
use heddle_record::Batches;

use super::world::{Connection, World, batch, create_topic, produce, produced};

const RETENTION: &str = "12345678";
/// The same on every Linux.
const ENOSPC: i32 = 28;
const EIO: i32 = 5;

pub(super) fn creation(name: &str) -> CreateTopicsRequest<'_> {
    let config = CreatableTopicConfig { name: "retention.ms", value: Some(RETENTION) };
    let topic = CreatableTopic {
        name,
        num_partitions: 4,
        replication_factor: 1,
        configs: vec![config].into(),
        ..Default::default()
    };
    CreateTopicsRequest { topics: vec![topic].into(), timeout_ms: 5_000, ..Default::default() }
}

/// Creates a topic of four partitions; gives the error and the id.
pub(super) async fn create(connection: &mut Connection, name: &str) -> (i16, Uuid) {
    let answer = connection.call(7, &creation(name)).await;
    let response: CreateTopicsResponse<'_> = answer.decode();
    let topic = response.topics.first().expect("the topic that was to be made");
    (topic.error_code, topic.topic_id)
}

/// Name, id and number of partitions of every topic.
pub(super) async fn topics(connection: &mut Connection) -> Vec<(String, Uuid, usize)> {
    let answer = connection.call(12, &MetadataRequest { topics: None, ..Default::default() }).await;
    let response: MetadataResponse<'_> = answer.decode();
    let topic = |topic: heddle_protocol::messages::metadata::MetadataResponseTopic<'_>| {
        (topic.name.expect("a known topic has a name").to_owned(), topic.topic_id, topic.partitions.len())
    };
    response.topics.iter().map(topic).collect()
}

async fn retention(connection: &mut Connection, topic: &str) -> Option<String> {
    let resource = DescribeConfigsResource {
        resource_type: 2,
        resource_name: topic,
        configuration_keys: Some(vec!["retention.ms"].into()),
    };
    let answer =
        connection.call(4, &DescribeConfigsRequest { resources: vec![resource].into(), ..Default::default() }).await;
    let response: DescribeConfigsResponse<'_> = answer.decode();
    let result = response.results.first().expect("the topic that was asked for");
    result.configs.first().and_then(|config| config.value).map(str::to_owned)
}

async fn producer_id(connection: &mut Connection) -> i64 {
    let answer = connection.call(4, &InitProducerIdRequest { transactional_id: None, ..Default::default() }).await;
    let response: InitProducerIdResponse = answer.decode();
    assert_eq!(response.error_code, 0);
    response.producer_id
}

pub(super) async fn delete(connection: &mut Connection, name: &'static str) -> i16 {
    let request = DeleteTopicsRequest { topic_names: vec![name].into(), timeout_ms: 5_000, ..Default::default() };
    let answer = connection.call(5, &request).await;
    let response: DeleteTopicsResponse<'_> = answer.decode();
    response.responses.first().expect("the topic that was to go").error_code
}

/// The directories of logs, but for that of the metadata.
pub(super) fn logs(world: &World) -> BTreeSet<String> {
    let files = world.broker.files();
    let directories = files.iter().filter_map(|file| file.parent()?.file_name()?.to_str());
    directories.filter(|name| name.contains('.') && !name.starts_with("__")).map(str::to_owned).collect()
}

/// Another number of cores, no time to say goodbye: topics keep their ids, settings and records, what was deleted stays
/// deleted, and no producer id is given twice.
#[test]
fn metadata_survives_power_cuts() {
    for seed in 0..4 {
        let mut world = World::new(seed, 2, &[]);
        let (io, address) = (world.io.clone(), world.address);
        let (before, first_ids) = world.run(async move {
            let mut connection = World::connect(io, address).await;
            assert_eq!(create(&mut connection, "loom").await.0, 0);
            assert_eq!(create(&mut connection, "gone").await.0, 0);
            assert_eq!(delete(&mut connection, "gone").await, 0);
            let answer = connection.call(7, &produce("loom", 3, -1, &batch(&["a"]))).await;
            assert_eq!(produced(&answer), (0, 0));
            let mut ids = BTreeSet::new();
            for _ in 0..3 {
                assert!(ids.insert(producer_id(&mut connection).await));
            }
            (topics(&mut connection).await, ids)
        });
        for cores in [1, 3] {
            world.broker.power_cut();
            world.broker.restart();
            world.start(cores, &[]);
            let (io, address, before, first_ids) = (world.io.clone(), world.address, before.clone(), first_ids.clone());
            world.run(async move {
                let mut connection = World::connect(io, address).await;
                assert_eq!(topics(&mut connection).await, before);
                assert_eq!(retention(&mut connection, "loom").await.as_deref(), Some(RETENTION));
                assert!(!first_ids.contains(&producer_id(&mut connection).await), "case 55");
                let answer = connection.call(7, &produce("loom", 3, -1, &batch(&["b"]))).await;
                assert_eq!(produced(&answer).0, 0);
                assert_ne!(produced(&answer).1, 0, "the record from before the cut is there");
            });
            assert_eq!(logs(&world).len(), 4, "{:?}", logs(&world));
        }
    }
}

/// The power is cut at every third step of a creation: afterwards the topic is wholly there or not at all, it is there
/// if its creation was answered, and no log is left that nobody knows.
#[test]
fn a_creation_is_whole_or_nothing() {
    let mut cuts = 0;
    for step in (0..).step_by(3) {
        let mut world = World::new(step, 2, &[]);
        world.broker.cut_at(CutPoint::Step(world.broker.counters().steps + 1 + step));
        let (io, address) = (world.io.clone(), world.address);
        let answered = world.run(async move {
            let mut connection = World::connect(io, address).await;
            connection.send(7, &creation("loom")).await;
            connection.receive().await.is_some()
        });
        let was_cut = !world.broker.is_up();
        if was_cut {
            cuts += 1;
            world.broker.restart();
            world.start(3, &[]);
        } else {
            world.broker.cut_at(CutPoint::Step(u64::MAX));
        }
        let (io, address) = (world.io.clone(), world.address);
        let found = world.run(async move {
            let mut connection = World::connect(io, address).await;
            let found = topics(&mut connection).await;
            for partition in (0..4).filter(|_| !found.is_empty()) {
                let answer = connection.call(7, &produce("loom", partition, -1, &batch(&["a"]))).await;
                assert_eq!(produced(&answer), (0, 0), "partition {partition}");
            }
            found
        });
        let partitions: Vec<usize> = found.iter().map(|(_, _, partitions)| *partitions).collect();
        assert!(partitions == [4] || partitions.is_empty() && !answered, "step {step}: {found:?}, answered {answered}");
        let expected = if found.is_empty() { 0 } else { 4 };
        assert_eq!(logs(&world).len(), expected, "step {step}: {:?}", logs(&world));
        if !was_cut {
            break;
        }
    }
    assert!(cuts > 5, "only {cuts} cuts: the creation was hardly disturbed");
}

/// Many clients that each want a topic share rounds: the metadata log gets far fewer batches than there are topics.
#[test]
fn a_crowd_of_creations_is_no_storm() {
    const CLIENTS: usize = 60;
    let world = World::new(7, 2, &[]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut clients = Vec::new();
        for index in 0..CLIENTS {
            let mut connection = World::connect(io.clone(), address).await;
            clients.push(io.spawn(async move {
                let name = format!("topic-{index}");
                create_topic(&mut connection, &name).await;
                create_topic(&mut connection, "shared").await;
            }));
        }
        for client in clients {
            client.await;
        }
    });
    let (io, address) = (world.io.clone(), world.address);
    let found = world.run(async move { topics(&mut World::connect(io, address).await).await });
    assert_eq!(found.len(), CLIENTS + 1);
    let files = world.broker.files();
    let log = files.iter().find(|file| {
        let path = file.to_string_lossy();
        path.contains("__cluster_metadata") && path.ends_with(".log")
    });
    let bytes = world.broker.peek(log.expect("the metadata log has a segment")).expect("it can be read");
    let batches = Batches::new(&bytes).take_while(Result::is_ok).count();
    assert!(batches < CLIENTS / 2, "{batches} batches for {CLIENTS} topics");
}

/// Where a log cannot be made, the topic is refused and nothing of it stays; the next try may succeed.
#[test]
fn a_topic_without_room_is_not_created() {
    let world = World::new(8, 2, &[]);
    let no_space = Fault::next(OperationKind::Metadata, Effect::Fail(ENOSPC)).on_path("loom").for_ever();
    world.broker.plant(no_space);
    let (io, address) = (world.io.clone(), world.address);
    let refused = world.run(async move { create(&mut World::connect(io, address).await, "loom").await.0 });
    assert_eq!(refused, ErrorCode::KafkaStorageError.code(), "case 43");
    world.broker.clear_faults();
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        assert_eq!(topics(&mut connection).await, []);
        assert_eq!(create(&mut connection, "loom").await.0, 0);
        assert_eq!(topics(&mut connection).await.len(), 1);
    });
}

/// A failed flush of the metadata log: no answer says that the topic is there, nor does any answer after it.
#[test]
fn a_topic_that_the_disk_may_not_have_is_not_reported() {
    let world = World::new(9, 2, &[]);
    let lost = Fault::next(OperationKind::Flush, Effect::Fail(EIO)).on_path("__cluster_metadata");
    world.broker.plant(lost);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        let storage_error = ErrorCode::KafkaStorageError.code();
        assert_eq!(create(&mut connection, "loom").await.0, storage_error, "case 26");
        assert_eq!(create(&mut connection, "warp").await.0, storage_error, "a failed flush is never tried again");
        assert_eq!(topics(&mut connection).await, []);
    });
}

/// A client that asks for metadata only hears of a topic whose leaders take writes.
#[test]
fn a_reported_topic_takes_writes() {
    for seed in 0..6 {
        let world = World::new(seed, 3, &[("num.partitions", "6")]);
        let (io, address) = (world.io.clone(), world.address);
        world.run(async move {
            let mut watcher = World::connect(io.clone(), address).await;
            let mut creator = World::connect(io.clone(), address).await;
            let creating = io.spawn(async move { create_topic(&mut creator, "loom").await });
            let asked = MetadataRequestTopic { name: Some("loom"), ..Default::default() };
            let request = MetadataRequest {
                topics: Some(vec![asked].into()),
                allow_auto_topic_creation: false,
                ..Default::default()
            };
            loop {
                let answer = watcher.call(9, &request).await;
                let response: MetadataResponse<'_> = answer.decode();
                if response.topics.first().expect("the topic").error_code == 0 {
                    break;
                }
            }
            for partition in 0..6 {
                let answer = watcher.call(7, &produce("loom", partition, -1, &batch(&["a"]))).await;
                assert_eq!(produced(&answer), (0, 0), "partition {partition}");
            }
            creating.await;
        });
    }
}

/// A damaged partition keeps its files while its topic is there; with the topic they go at once.
#[test]
fn the_files_of_a_damaged_partition_go_with_its_topic() {
    let mut world = World::new(10, 2, &[]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        assert_eq!(create(&mut connection, "loom").await.0, 0);
        let answer = connection.call(7, &produce("loom", 1, -1, &batch(&["a"]))).await;
        assert_eq!(produced(&answer), (0, 0));
    });
    world.stop().expect("a clean stop");
    let files = world.broker.files();
    let log = files
        .iter()
        .find(|file| file.to_string_lossy().contains("/loom-1.") && file.extension().is_some_and(|e| e == "log"));
    world.broker.flip_bit(log.expect("the log has a segment"), 65, 0).expect("it is there");
    world.broker.power_cut();
    world.broker.restart();
    world.start(2, &[]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        let answer = connection.call(7, &produce("loom", 1, -1, &batch(&["b"]))).await;
        assert_eq!(produced(&answer).0, ErrorCode::KafkaStorageError.code());
    });
    assert_eq!(logs(&world).len(), 4, "damaged files are left as they are");
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        assert_eq!(delete(&mut World::connect(io.clone(), address).await, "loom").await, 0);
        // Their names are gone; what is behind them is removed in the background.
        io.sleep(Duration::from_secs(1)).await;
    });
    assert_eq!(logs(&world).len(), 0, "{:?}", logs(&world));
}
