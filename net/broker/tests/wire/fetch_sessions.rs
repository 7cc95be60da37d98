//! Fetch sessions (KIP-227), as Apache Kafka 4.3 answers them: each conversation here was held with it, byte by byte.

use std::time::Duration;

use heddle_protocol::messages::delete_records::{
    DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsResponse, DeleteRecordsTopic,
};
use heddle_protocol::messages::delete_topics::{DeleteTopicsRequest, DeleteTopicsResponse};
use heddle_protocol::messages::fetch::{FetchPartition, FetchRequest, FetchResponse, FetchTopic, ForgottenTopic};
use heddle_protocol::messages::metadata::{MetadataRequest, MetadataRequestTopic, MetadataResponse};
use heddle_protocol::{Records, Uuid};
use heddle_record::Batches;

use super::world::{Connection, World, batch, create_topic, produce, produced};

/// How long a fetch waits that has nothing to tell.
const WAIT: Duration = Duration::from_millis(100);

/// A partition in a request: topic, index, offset.
type Want<'a> = (&'a str, i32, i64);

/// What an answer says.
#[derive(Debug, PartialEq)]
struct Said {
    error: i16,
    /// Whether there is a session.
    session: bool,
    /// Whether it came only when the wait was over.
    waited: bool,
    /// Topic, partition, error, high watermark, log start, records.
    partitions: Vec<(String, i32, i16, i64, i64, usize)>,
}

/// A client, its session, and how it names topics.
struct Client {
    connection: Connection,
    session_id: i32,
    /// The id of each topic that is named by id.
    ids: Vec<(String, Uuid)>,
    version: i16,
    min_bytes: i32,
    max_bytes: i32,
}

impl Client {
    async fn new(world_io: heddle_io::Io, address: std::net::SocketAddr) -> Self {
        let connection = World::connect(world_io, address).await;
        Self { connection, session_id: 0, ids: Vec::new(), version: 11, min_bytes: 1, max_bytes: 1 << 20 }
    }

    fn id_of(&self, topic: &str) -> Uuid {
        self.ids.iter().find(|(name, _)| name == topic).map_or(Uuid([7; 16]), |(_, id)| *id)
    }

    /// Fetches with a session id and an epoch.
    async fn fetch_as(&mut self, id: i32, epoch: i32, wants: &[Want<'_>], forgets: &[(&str, i32)]) -> Said {
        let topics: Vec<FetchTopic<'_>> = wants
            .iter()
            .map(|(topic, partition, fetch_offset)| {
                let partition = FetchPartition {
                    partition: *partition,
                    current_leader_epoch: -1,
                    fetch_offset: *fetch_offset,
                    last_fetched_epoch: -1,
                    log_start_offset: -1,
                    partition_max_bytes: 1 << 20,
                    ..Default::default()
                };
                FetchTopic { topic, topic_id: self.id_of(topic), partitions: vec![partition].into() }
            })
            .collect();
        let forgotten: Vec<ForgottenTopic<'_>> = forgets
            .iter()
            .map(|(topic, partition)| ForgottenTopic {
                topic,
                topic_id: self.id_of(topic),
                partitions: vec![*partition].into(),
            })
            .collect();
        let request = FetchRequest {
            replica_id: -1,
            max_wait_ms: i32::try_from(WAIT.as_millis()).expect("a short wait"),
            min_bytes: self.min_bytes,
            max_bytes: self.max_bytes,
            session_id: id,
            session_epoch: epoch,
            topics: topics.into(),
            forgotten_topics_data: forgotten.into(),
            ..Default::default()
        };
        let began = self.connection.io.now();
        let answer = self.connection.call(self.version, &request).await;
        let waited = self.connection.io.now().since(began) >= WAIT;
        let response: FetchResponse<'_> = answer.decode();
        if response.session_id != 0 {
            self.session_id = response.session_id;
        }
        let mut partitions = Vec::new();
        for topic in response.responses.iter() {
            let by_id = self.ids.iter().find(|(_, id)| *id == topic.topic_id).map_or("?", |(name, _)| name);
            let name = if self.version >= 13 { by_id } else { topic.topic };
            for it in topic.partitions.iter() {
                let Some(Records::Bytes(bytes)) = it.records else { panic!("records are never null") };
                let count = Batches::new(bytes).map(|batch| batch.expect("whole").record_count() as usize).sum();
                let limits = (it.high_watermark, it.log_start_offset);
                partitions.push((name.to_owned(), it.partition_index, it.error_code, limits.0, limits.1, count));
            }
        }
        Said { error: response.error_code, session: response.session_id != 0, waited, partitions }
    }

    /// Fetches with the last session.
    async fn fetch(&mut self, epoch: i32, wants: &[Want<'_>], forgets: &[(&str, i32)]) -> Said {
        self.fetch_as(self.session_id, epoch, wants, forgets).await
    }

    async fn produce(&mut self, topic: &str, partition: i32) {
        let answer = self.connection.call(7, &produce(topic, partition, -1, &batch(&["a"]))).await;
        assert_eq!(produced(&answer).0, 0);
    }

    async fn delete_records(&mut self, topic: &str, partition_index: i32, offset: i64) {
        let partitions = vec![DeleteRecordsPartition { partition_index, offset }].into();
        let topics = vec![DeleteRecordsTopic { name: topic, partitions }].into();
        let answer = self.connection.call(1, &DeleteRecordsRequest { topics, timeout_ms: 5_000 }).await;
        let response: DeleteRecordsResponse<'_> = answer.decode();
        let partition = response.topics.first().expect("a topic").partitions.first().expect("a partition");
        assert_eq!((partition.error_code, partition.low_watermark), (0, offset));
    }

    async fn delete_topic(&mut self, name: &str) {
        let request = DeleteTopicsRequest { topic_names: vec![name].into(), timeout_ms: 5_000, ..Default::default() };
        let answer = self.connection.call(4, &request).await;
        assert_eq!(answer.decode::<DeleteTopicsResponse<'_>>().responses.first().expect("a topic").error_code, 0);
    }

    async fn learn_id(&mut self, name: &str) {
        let topic = MetadataRequestTopic { name: Some(name), ..Default::default() };
        let request = MetadataRequest { topics: Some(vec![topic].into()), ..Default::default() };
        let answer = self.connection.call(12, &request).await;
        let id = answer.decode::<MetadataResponse<'_>>().topics.first().expect("a topic").topic_id;
        self.ids.push((name.to_owned(), id));
    }
}

fn said(error: i16, session: bool, waited: bool, partitions: &[(&str, i32, i16, i64, i64, usize)]) -> Said {
    let partitions = partitions.iter().map(|it| (it.0.to_owned(), it.1, it.2, it.3, it.4, it.5)).collect();
    Said { error, session, waited, partitions }
}

/// An answer of the last session that waited in vain, and names these.
fn idle(partitions: &[(&str, i32, i16, i64, i64, usize)]) -> Said {
    said(0, true, true, partitions)
}

/// An answer of the last session that had something to tell.
fn at_once(partitions: &[(&str, i32, i16, i64, i64, usize)]) -> Said {
    said(0, true, false, partitions)
}

fn refused(error: i16) -> Said {
    said(error, false, false, &[])
}

/// Runs a conversation with brokers of one to three cores.
fn converse(conversation: impl AsyncFn(&mut Client, &mut Client) + Copy + 'static) {
    for cores in 1..=3 {
        let world = World::new(cores as u64, cores, &[("num.partitions", "3")]);
        let (io, address) = (world.io.clone(), world.address);
        world.run(async move {
            let mut client = Client::new(io.clone(), address).await;
            let mut other = Client::new(io, address).await;
            for topic in ["warp", "weft", "felt"] {
                create_topic(&mut other.connection, topic).await;
            }
            conversation(&mut client, &mut other).await;
        });
    }
}

#[test]
fn epochs_and_ids_that_do_not_fit_are_refused() {
    converse(async |client, _| {
        let empty = [("warp", 0, 0, 0, 0, 0)];
        assert_eq!(client.fetch_as(0, -1, &[("warp", 0, 0)], &[]).await, said(0, false, true, &empty));
        assert_eq!(client.fetch_as(5, -1, &[("warp", 0, 0)], &[]).await, said(0, false, true, &empty));
        assert_eq!(client.fetch_as(77, 1, &[("warp", 0, 0)], &[]).await, refused(70));
        assert_eq!(client.fetch_as(0, 5, &[("warp", 0, 0)], &[]).await, refused(70));
        assert_eq!(client.fetch_as(77, -2, &[], &[]).await, refused(70));
        assert_eq!(client.fetch_as(0, 0, &[("warp", 0, 0)], &[]).await, idle(&empty));
        assert_eq!(client.fetch(2, &[], &[]).await, refused(71));
        assert_eq!(client.fetch(-2, &[], &[]).await, refused(71));
        assert_eq!(client.fetch(1, &[], &[]).await, idle(&[]));
        assert_eq!(client.fetch(1, &[], &[]).await, refused(71));
        assert_eq!(client.fetch(2, &[], &[]).await, idle(&[]));
    });
}

#[test]
fn an_answer_names_what_changed() {
    converse(async |client, other| {
        let wants = [("warp", 0, 0), ("warp", 1, 0), ("weft", 0, 0)];
        let all = [("warp", 0, 0, 0, 0, 0), ("warp", 1, 0, 0, 0, 0), ("weft", 0, 0, 0, 0, 0)];
        assert_eq!(client.fetch(0, &wants, &[]).await, idle(&all));
        assert_eq!(client.fetch(1, &[], &[]).await, idle(&[]));
        other.produce("warp", 1).await;
        let one = [("warp", 1, 0, 1, 0, 1)];
        assert_eq!(client.fetch(2, &[], &[]).await, at_once(&one));
        assert_eq!(client.fetch(3, &[], &[]).await, at_once(&one), "nobody said that they arrived");
        assert_eq!(client.fetch(4, &[("warp", 1, 1)], &[]).await, idle(&[]));
        client.min_bytes = 0;
        assert_eq!(client.fetch(5, &[], &[]).await, at_once(&[]));
        client.min_bytes = 1;
        assert_eq!(client.fetch(6, &[("felt", 0, 0)], &[]).await, idle(&[("felt", 0, 0, 0, 0, 0)]));
        assert_eq!(client.fetch(7, &[], &[("zzz", 0), ("felt", 2)]).await, idle(&[]));
        assert_eq!(client.fetch(8, &[("weft", 0, 99)], &[]).await, at_once(&[("weft", 0, 1, -1, -1, 0)]));
        assert_eq!(client.fetch(9, &[], &[]).await, at_once(&[("weft", 0, 1, -1, -1, 0)]));
        assert_eq!(client.fetch(10, &[("weft", 0, 0)], &[]).await, idle(&[("weft", 0, 0, 0, 0, 0)]));
        assert_eq!(client.fetch(11, &[], &[]).await, idle(&[]));
        other.produce("warp", 1).await;
        other.delete_records("warp", 1, 1).await;
        assert_eq!(client.fetch(12, &[("warp", 1, 2)], &[]).await, idle(&[("warp", 1, 0, 2, 1, 0)]));
        assert_eq!(client.fetch(13, &[], &[]).await, idle(&[]));
        other.delete_records("warp", 1, 2).await;
        assert_eq!(client.fetch(14, &[], &[]).await, idle(&[("warp", 1, 0, 2, 2, 0)]), "its start moved");
        assert_eq!(client.fetch(15, &[], &[]).await, idle(&[]));
    });
}

#[test]
fn what_nobody_has_is_told_when_the_wait_is_over() {
    converse(async |client, other| {
        assert_eq!(client.fetch(0, &[], &[]).await, at_once(&[]), "a session of nothing");
        assert_eq!(client.fetch(1, &[], &[]).await, said(0, false, false, &[]), "which ends with its next request");
        let nobodys = ("nope", 0, 3, -1, -1, 0);
        let wants = [("nope", 0, 0), ("warp", 0, 0), ("warp", 0, 0)];
        assert_eq!(client.fetch(0, &wants, &[]).await, idle(&[("warp", 0, 0, 0, 0, 0), nobodys]));
        assert_eq!(client.fetch(1, &[], &[]).await, idle(&[nobodys]));
        assert_eq!(client.fetch(2, &[("weft", 1, 0)], &[("weft", 1)]).await, idle(&[nobodys]));
        assert_eq!(client.fetch(3, &[("felt", 0, 0)], &[("nope", 0)]).await, idle(&[("felt", 0, 0, 0, 0, 0)]));
        other.delete_topic("felt").await;
        let deleted = ("felt", 0, 3, -1, -1, 0);
        assert_eq!(client.fetch(4, &[], &[]).await, idle(&[deleted]));
        assert_eq!(client.fetch(5, &[], &[]).await, idle(&[deleted]));
        assert_eq!(client.fetch(6, &[], &[("warp", 0), ("felt", 0)]).await, said(0, false, false, &[]));
        assert_eq!(client.fetch(7, &[], &[]).await, refused(70), "it was empty");
        assert_eq!(client.fetch_as(0, 0, &[("nope", 0, 0)], &[]).await, at_once(&[nobodys]), "nothing to wait for");
    });
}

#[test]
fn a_full_fetch_ends_the_session_that_it_names() {
    converse(async |client, _| {
        let empty = [("warp", 0, 0, 0, 0, 0)];
        assert_eq!(client.fetch(0, &[("warp", 0, 0)], &[]).await, idle(&empty));
        let first = client.session_id;
        assert_eq!(client.fetch(0, &[("warp", 0, 0)], &[]).await, idle(&empty));
        assert_ne!(client.session_id, first);
        assert_eq!(client.fetch_as(first, 1, &[], &[]).await, refused(70));
        assert_eq!(client.fetch(-1, &[], &[]).await, said(0, false, false, &[]));
        assert_eq!(client.fetch(1, &[], &[]).await, refused(70));
        client.fetch_as(0, 0, &[("warp", 0, 0)], &[]).await;
        assert_eq!(client.fetch(-1, &[("warp", 0, 0)], &[]).await, said(0, false, true, &empty));
        assert_eq!(client.fetch(1, &[], &[]).await, refused(70));
    });
}

#[test]
fn a_session_names_topics_in_one_way() {
    converse(async |client, other| {
        client.learn_id("warp").await;
        client.fetch(0, &[("warp", 0, 0)], &[]).await;
        client.version = 13;
        assert_eq!(client.fetch(1, &[], &[]).await, refused(106));
        client.version = 12;
        assert_eq!(client.fetch(1, &[], &[]).await, idle(&[]), "that cost no epoch");
        client.version = 13;
        client.fetch_as(0, 0, &[("warp", 0, 0), ("warp", 1, 0)], &[]).await;
        client.version = 11;
        assert_eq!(client.fetch(1, &[], &[]).await, refused(106));
        client.version = 13;
        let nobodys = ("?", 0, 100, -1, -1, 0);
        assert_eq!(client.fetch(1, &[("nope", 0, 0)], &[]).await, idle(&[nobodys]));
        assert_eq!(client.fetch(2, &[], &[]).await, idle(&[nobodys]));
        assert_eq!(client.fetch(3, &[("warp", 9, 0)], &[("nope", 0)]).await, idle(&[("warp", 9, 3, -1, -1, 0)]));
        assert_eq!(client.fetch(4, &[], &[("warp", 9)]).await, idle(&[]));
        for partition in [0, 1, 0, 1] {
            other.produce("warp", partition).await;
        }
        client.max_bytes = 1;
        let both = [("warp", 0, 0, 2, 0, 1), ("warp", 1, 0, 2, 0, 0)];
        assert_eq!(client.fetch(5, &[], &[]).await, at_once(&both), "one batch for one byte");
        assert_eq!(client.fetch(6, &[], &[]).await, at_once(&[("warp", 1, 0, 2, 0, 1)]), "then it is the other's turn");
        assert_eq!(client.fetch(7, &[], &[]).await, at_once(&[("warp", 0, 0, 2, 0, 1)]));
        other.delete_topic("warp").await;
        let deleted = [("warp", 1, 3, -1, -1, 0), ("warp", 0, 3, -1, -1, 0)];
        assert_eq!(client.fetch(8, &[], &[]).await, at_once(&deleted), "it was there once");
    });
}

/// Sessions belong to no connection; whoever goes on with one takes it, on whichever core, and who waits hears of it.
#[test]
fn another_connection_may_go_on_with_a_session() {
    converse(async |client, other| {
        client.fetch(0, &[("warp", 0, 0), ("warp", 1, 0), ("warp", 2, 0)], &[]).await;
        client.fetch(1, &[], &[]).await;
        other.session_id = client.session_id;
        other.produce("warp", 2).await;
        assert_eq!(other.fetch(2, &[], &[]).await, at_once(&[("warp", 2, 0, 1, 0, 1)]));
        assert_eq!(other.fetch(3, &[("warp", 2, 1)], &[]).await, idle(&[]));
        other.produce("warp", 0).await;
        assert_eq!(client.fetch(4, &[], &[]).await, at_once(&[("warp", 0, 0, 1, 0, 1)]));
        assert_eq!(other.fetch(4, &[], &[]).await, refused(71));
        assert_eq!(client.fetch(-1, &[], &[]).await, said(0, false, false, &[]));
        assert_eq!(other.fetch(5, &[], &[]).await, refused(70));
    });
}

#[test]
fn a_waiting_fetch_of_a_session_hears_of_every_core() {
    for seed in 0..6 {
        let world = World::new(seed, 3, &[("num.partitions", "6")]);
        let (io, address) = (world.io.clone(), world.address);
        world.run(async move {
            let mut client = Client::new(io.clone(), address).await;
            let mut other = Client::new(io.clone(), address).await;
            create_topic(&mut other.connection, "warp").await;
            let wants: Vec<Want<'_>> = (0..6).map(|partition| ("warp", partition, 0)).collect();
            client.fetch(0, &wants, &[]).await;
            let mut want = Vec::new();
            for epoch in 1..=6 {
                let partition = epoch - 1;
                let request = FetchRequest {
                    replica_id: -1,
                    max_wait_ms: 60_000,
                    min_bytes: 1,
                    max_bytes: 1 << 20,
                    session_id: client.session_id,
                    session_epoch: epoch,
                    topics: std::mem::take(&mut want).into(),
                    ..Default::default()
                };
                let began = io.now();
                client.connection.send(11, &request).await;
                io.sleep(Duration::from_secs(2)).await;
                other.produce("warp", partition).await;
                let answer = client.connection.answer(heddle_protocol::ApiKey::Fetch, 11).await;
                let response: FetchResponse<'_> = answer.decode();
                let topic = response.responses.first().expect("a topic");
                let told: Vec<i32> = topic.partitions.iter().map(|it| it.partition_index).collect();
                assert_eq!(told, [partition], "seed {seed}");
                let waited = io.now().since(began);
                assert!(waited >= Duration::from_secs(2) && waited < Duration::from_secs(3), "it waited {waited:?}");
                let moved = FetchPartition {
                    partition,
                    current_leader_epoch: -1,
                    fetch_offset: 1,
                    last_fetched_epoch: -1,
                    partition_max_bytes: 1 << 20,
                    ..Default::default()
                };
                want = vec![FetchTopic { topic: "warp", partitions: vec![moved].into(), ..Default::default() }];
            }
        });
    }
}

/// The bound is kept: without room there is no session, and all is answered as if none had been asked for. Two minutes
/// later an unused one makes room.
#[test]
fn sessions_are_bounded_and_make_room_by_kafkas_rules() {
    let world = World::new(1, 1, &[("max.incremental.fetch.session.cache.slots", "2"), ("num.partitions", "3")]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut client = Client::new(io.clone(), address).await;
        create_topic(&mut client.connection, "warp").await;
        let (one, two) = ([("warp", 0, 0)], [("warp", 0, 0), ("warp", 1, 0)]);
        assert!(client.fetch_as(0, 0, &two, &[]).await.session);
        let old = client.session_id;
        assert!(client.fetch_as(0, 0, &one, &[]).await.session);
        let unused = client.session_id;
        let none = client.fetch_as(0, 0, &one, &[]).await;
        assert_eq!(none, said(0, false, true, &[("warp", 0, 0, 0, 0, 0)]), "full");
        io.sleep(Duration::from_secs(121)).await;
        assert_eq!(client.fetch_as(old, 1, &[], &[]).await, idle(&[]), "old, and in use");
        assert!(client.fetch_as(0, 0, &one, &[]).await.session, "in the place of the unused one");
        assert_eq!(client.fetch_as(unused, 1, &[], &[]).await, refused(70));
        assert!(!client.fetch_as(0, 0, &one, &[]).await.session, "smaller than the one that is old enough to go");
        assert!(client.fetch_as(0, 0, &two, &[]).await.session, "not smaller");
        assert_eq!(client.fetch_as(old, 2, &[], &[]).await, refused(70));
    });
    let world = World::new(1, 1, &[("max.incremental.fetch.session.cache.slots", "0")]);
    let (io, address) = (world.io.clone(), world.address);
    world.run(async move {
        let mut client = Client::new(io, address).await;
        create_topic(&mut client.connection, "warp").await;
        assert!(!client.fetch_as(0, 0, &[("warp", 0, 0)], &[]).await.session);
    });
}
