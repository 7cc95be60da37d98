//! Records in and out: produce, fetch, offsets.

use std::time::Duration;

use heddle_protocol::messages::fetch::{FetchPartition, FetchRequest, FetchResponse, FetchTopic};
use heddle_protocol::messages::produce::ProduceResponse;
use heddle_protocol::{Records, Uuid};
use heddle_record::Batches;

use super::world::{Answer, World, batch, create_topic, produce, produced};

/// A fetch of some partitions of one topic, all from one offset.
pub(crate) fn fetch<'a>(
    topic: &'a str,
    partitions: &[i32],
    from: i64,
    min_bytes: i32,
    max_wait_ms: i32,
) -> FetchRequest<'a> {
    let partitions: Vec<FetchPartition> = partitions
        .iter()
        .map(|partition| FetchPartition {
            partition: *partition,
            current_leader_epoch: -1,
            fetch_offset: from,
            last_fetched_epoch: -1,
            log_start_offset: -1,
            partition_max_bytes: 1 << 20,
            high_watermark: i64::MAX,
            ..Default::default()
        })
        .collect();
    let topic = FetchTopic { topic, topic_id: Uuid::ZERO, partitions: partitions.into() };
    FetchRequest {
        replica_id: -1,
        max_wait_ms,
        min_bytes,
        max_bytes: 50 << 20,
        session_epoch: -1,
        topics: vec![topic].into(),
        ..Default::default()
    }
}

/// Partition, error, high watermark and number of records, for each partition of a fetch response.
fn fetched(answer: &Answer) -> Vec<(i32, i16, i64, usize)> {
    let response: FetchResponse<'_> = answer.decode();
    assert_eq!(response.error_code, 0);
    let topic = response.responses.first().expect("the topic that was asked for");
    let partitions = topic.partitions.iter().map(|partition| {
        let Some(Records::Bytes(bytes)) = partition.records else { panic!("records are never null") };
        let count = Batches::new(bytes).map(|batch| batch.expect("whole batches").record_count() as usize).sum();
        (partition.partition_index, partition.error_code, partition.high_watermark, count)
    });
    partitions.collect()
}

/// A long poll hears of records on whichever core they arrive, and of nothing else.
#[test]
fn a_fetch_waits_for_records() {
    for seed in 0..8 {
        let world = World::new(seed, 3, &[("num.partitions", "4")]);
        let (io, address) = (world.io.clone(), world.address);
        world.run(async move {
            let mut writer = World::connect(io.clone(), address).await;
            let mut reader = World::connect(io.clone(), address).await;
            create_topic(&mut writer, "loom").await;
            for partition in 0..4 {
                let mut request = fetch("loom", &[0, 1, 2, 3], 0, 1, 60_000);
                let at_end = |mut it: FetchPartition| {
                    it.fetch_offset = i64::from(it.partition < partition);
                    it
                };
                let partitions: Vec<FetchPartition> =
                    request.topics.first().expect("a topic").partitions.iter().map(at_end).collect();
                request.topics =
                    vec![FetchTopic { topic: "loom", partitions: partitions.into(), ..Default::default() }].into();
                let began = io.now();
                reader.send(11, &request).await;
                io.sleep(Duration::from_secs(2)).await;
                let answer = writer.call(7, &produce("loom", partition, -1, &batch(&["a"]))).await;
                assert_eq!(produced(&answer).0, 0);
                let answer = reader.answer(heddle_protocol::ApiKey::Fetch, 11).await;
                let expected: Vec<(i32, i16, i64, usize)> =
                    (0..4).map(|it| (it, 0, i64::from(it <= partition), usize::from(it == partition))).collect();
                assert_eq!(fetched(&answer), expected);
                let waited = io.now().since(began);
                assert!(waited >= Duration::from_secs(2) && waited < Duration::from_secs(3), "it waited {waited:?}");
            }
        });
    }
}

#[test]
fn a_fetch_waits_no_longer_than_it_was_told() {
    let world = World::new(11, 2, &[]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io.clone(), address).await;
        create_topic(&mut connection, "loom").await;
        let began = io.now();
        let answer = connection.call(12, &fetch("loom", &[0], 0, 1, 500)).await;
        assert_eq!(fetched(&answer), [(0, 0, 0, 0)]);
        let waited = io.now().since(began);
        assert!(waited >= Duration::from_millis(500) && waited < Duration::from_millis(600), "{waited:?}");
        connection.call(7, &produce("loom", 0, -1, &batch(&["a"]))).await;
        let answer = connection.call(12, &fetch("loom", &[0], 0, 1_000_000, 500)).await;
        assert_eq!(fetched(&answer), [(0, 0, 1, 1)], "less than min bytes is better than nothing");
    });
}

/// A batch is whole however small the limits are, but only the first that is found.
#[test]
fn at_least_one_batch_and_no_more_than_the_limit() {
    let world = World::new(12, 3, &[("num.partitions", "3")]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        create_topic(&mut connection, "loom").await;
        let large = "x".repeat(10_000);
        let records = batch(&[&large]);
        for partition in [1, 2, 1, 2] {
            assert_eq!(produced(&connection.call(7, &produce("loom", partition, -1, &records)).await).0, 0);
        }
        let mut small = fetch("loom", &[0, 1, 2], 0, 1, 0);
        small.max_bytes = 100;
        let answer = connection.call(11, &small).await;
        assert_eq!(fetched(&answer), [(0, 0, 0, 0), (1, 0, 2, 1), (2, 0, 2, 0)]);
        small.max_bytes = 35_000;
        let answer = connection.call(11, &small).await;
        // What a core found beyond the limit is left for the next fetch.
        assert_eq!(fetched(&answer), [(0, 0, 0, 0), (1, 0, 2, 2), (2, 0, 2, 0)]);
        small.max_bytes = 45_000;
        let answer = connection.call(11, &small).await;
        assert_eq!(fetched(&answer), [(0, 0, 0, 0), (1, 0, 2, 2), (2, 0, 2, 2)]);
    });
}

#[test]
fn a_fetch_is_refused_in_kafkas_words() {
    let world = World::new(13, 2, &[]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        create_topic(&mut connection, "loom").await;
        connection.call(7, &produce("loom", 0, -1, &batch(&["a", "b"]))).await;
        let error = |answer: &Answer| answer.decode::<FetchResponse<'_>>().error_code;
        let partition_error = |answer: &Answer| fetched(answer)[0].1;

        let mut session = fetch("loom", &[0], 0, 1, 0);
        (session.session_id, session.session_epoch) = (77, 3);
        assert_eq!(error(&connection.call(11, &session).await), 70, "no session has this id");
        let mut replica = fetch("loom", &[0], 0, 1, 0);
        replica.replica_id = 2;
        assert_eq!(error(&connection.call(11, &replica).await), 31, "case 24");
        assert_eq!(partition_error(&connection.call(4, &replica).await), 31, "case 24, without an error of its own");

        assert_eq!(partition_error(&connection.call(11, &fetch("loom", &[0], 3, 1, 0)).await), 1);
        assert_eq!(partition_error(&connection.call(11, &fetch("loom", &[9], 0, 1, 0)).await), 3);
        assert_eq!(partition_error(&connection.call(11, &fetch("weft", &[0], 0, 1, 0)).await), 3);
        let by_id = connection.call(13, &fetch("", &[0], 0, 1, 0)).await;
        assert_eq!(partition_error(&by_id), 100, "no topic has this id");

        let with_epoch = |epoch| {
            let mut request = fetch("loom", &[0], 0, 1, 0);
            let mut partition = request.topics.first().expect("a topic").partitions.first().expect("a partition");
            partition.current_leader_epoch = epoch;
            let topic = FetchTopic { topic: "loom", partitions: vec![partition].into(), ..Default::default() };
            request.topics = vec![topic].into();
            request
        };
        assert_eq!(partition_error(&connection.call(11, &with_epoch(5)).await), 75);
        assert_eq!(partition_error(&connection.call(11, &with_epoch(0)).await), 0);
    });
}

#[test]
fn a_produce_is_refused_in_kafkas_words() {
    let world = World::new(14, 2, &[]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        create_topic(&mut connection, "loom").await;
        let good = batch(&["a"]);
        let refused =
            async |connection: &mut super::world::Connection, version, topic, partition, acks, records: &[u8]| {
                let answer = connection.call(version, &produce(topic, partition, acks, records)).await;
                let (error, base_offset) = produced(&answer);
                assert_eq!(base_offset == -1, error != 0);
                error
            };
        assert_eq!(refused(&mut connection, 7, "weft", 0, -1, &good).await, 3);
        assert_eq!(refused(&mut connection, 7, "loom", 9, -1, &good).await, 3);
        assert_eq!(refused(&mut connection, 7, "loom", 0, 5, &good).await, 21);
        assert_eq!(refused(&mut connection, 13, "", 0, -1, &good).await, 100);
        assert_eq!(refused(&mut connection, 7, "loom", 0, -1, &[]).await, 87);
        let two = [batch(&["a"]), batch(&["b"])].concat();
        assert_eq!(refused(&mut connection, 7, "loom", 0, -1, &two).await, 87, "one batch for each partition");
        let mut corrupt = good.clone();
        *corrupt.last_mut().expect("a byte") ^= 1;
        assert_eq!(refused(&mut connection, 7, "loom", 0, -1, &corrupt).await, 2);
        let mut old = good.clone();
        old[16] = 1;
        assert_ne!(refused(&mut connection, 7, "loom", 0, -1, &old).await, 0, "magic 1");
        let huge = batch(&[&"x".repeat(2_000_000)]);
        assert_eq!(refused(&mut connection, 7, "loom", 0, -1, &huge).await, 10);
        assert_eq!(refused(&mut connection, 7, "loom", 0, -1, &good).await, 0, "nothing of that was stored");
    });
}

/// What was acknowledged is there with any number of cores, after the process was killed.
#[test]
fn a_data_directory_opens_with_any_number_of_cores() {
    let mut world = World::new(15, 2, &[("num.partitions", "4")]);
    for (there_already, cores) in (0..).zip([1, 3, 2]) {
        let (io, address) = (world.io.clone(), world.address);
        world.run(async move {
            let mut connection = World::connect(io, address).await;
            create_topic(&mut connection, "loom").await;
            for partition in 0..4 {
                let answer = connection.call(7, &produce("loom", partition, -1, &batch(&["a"]))).await;
                assert_eq!(produced(&answer), (0, there_already));
            }
        });
        let expected = there_already + 1;
        world.broker.kill();
        world.start(cores, &[("num.partitions", "4")]);
        let (io, address) = (world.io.clone(), world.address);
        world.run(async move {
            let mut connection = World::connect(io, address).await;
            let answer = connection.call(11, &fetch("loom", &[0, 1, 2, 3], 0, 1, 0)).await;
            let all: Vec<(i32, i16, i64, usize)> = (0..4).map(|it| (it, 0, expected, expected as usize)).collect();
            assert_eq!(fetched(&answer), all, "{cores} cores");
        });
    }
}

/// A consumer never sees what the disk could still lose: nothing comes back shorter after a power cut.
#[test]
fn what_was_read_survives_a_power_cut() {
    for seed in 0..10 {
        let mut world = World::new(seed, 2, &[("num.partitions", "1")]);
        let (io, address) = (world.io.clone(), world.address);
        let seen = world.run(async move {
            let mut writer = World::connect(io.clone(), address).await;
            let mut reader = World::connect(io.clone(), address).await;
            create_topic(&mut writer, "loom").await;
            let mut seen = 0;
            for round in 0..20 {
                // Nobody waits for these to be flushed.
                writer.send(7, &produce("loom", 0, i16::from(round % 2 == 0), &batch(&["a"]))).await;
                let answer = reader.call(11, &fetch("loom", &[0], 0, 1, 1)).await;
                seen = seen.max(fetched(&answer)[0].3);
            }
            seen
        });
        world.broker.power_cut();
        world.broker.restart();
        world.start(1, &[]);
        let (io, address) = (world.io.clone(), world.address);
        world.run(async move {
            let mut connection = World::connect(io, address).await;
            let answer = connection.call(11, &fetch("loom", &[0], 0, 1, 0)).await;
            assert!(fetched(&answer)[0].3 >= seen, "{seen} records were seen, seed {seed}");
        });
    }
}

#[test]
fn the_answer_to_a_produce_has_all_its_partitions() {
    let world = World::new(16, 3, &[("num.partitions", "3")]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut connection = World::connect(io, address).await;
        create_topic(&mut connection, "loom").await;
        let records = batch(&["a", "b"]);
        let mut request = produce("loom", 0, -1, &records);
        let partitions: Vec<_> = [2, 9, 0, 1]
            .into_iter()
            .map(|index| heddle_protocol::messages::produce::PartitionProduceData {
                index,
                records: Some(Records::Bytes(&records)),
            })
            .collect();
        let mut topic = request.topic_data.first().expect("a topic");
        topic.partition_data = partitions.into();
        request.topic_data = vec![topic].into();
        let answer = connection.call(8, &request).await;
        let response: ProduceResponse<'_> = answer.decode();
        let topic = response.responses.first().expect("a topic");
        let outcomes: Vec<(i32, i16, i64)> =
            topic.partition_responses.iter().map(|it| (it.index, it.error_code, it.base_offset)).collect();
        assert_eq!(outcomes, [(2, 0, 0), (9, 3, -1), (0, 0, 0), (1, 0, 0)]);
    });
}
